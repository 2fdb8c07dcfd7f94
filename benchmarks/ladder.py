"""End to end: one step of W+ optimisation with LPIPS, from textbook torch to ours.

    python benchmarks/ladder.py [--device cuda] [--quick] [--out FILE]

A step is synthesis, squared error and LPIPS at 256, backward and Adam. The rungs: textbook torch (per-sample weights,
NCHW); the best algebra in plain torch; that compiled, and in a CUDA graph; ours, eager; ours as ``invert`` runs it,
recorded. LPIPS is plain torch in all but ours. The column inversion_s is an inversion of 1000 steps, all included.
"""

import time

import torch
from correctness import generator, lpips_network
from harness import Rows, captured, markdown, seconds, wait
from textbook import Plain, PlainLPIPS, Textbook

from fastinv.inversion.loop import Term, optimize
from fastinv.losses import PixelLoss
from fastinv.losses.lpips import LPIPS


def torch_step(synthesis, lpips, target, w_plus):
    """One step of a rung in torch: everything that moves is in tensors, so that it can be captured."""
    w = w_plus.clone().requires_grad_()
    on_gpu = w.is_cuda
    adam = torch.optim.Adam([w], lr=0.05, capturable=on_gpu)

    def step():
        adam.zero_grad(set_to_none=True)
        image = synthesis(w)
        loss = ((image - target).square().mean((1, 2, 3)) + lpips(image)).sum()
        loss.backward()
        adam.step()

    return step


def rungs(G, network, target, w_plus, dtype, compile_too: bool):
    """(name, step) of the rungs in torch, made when their turn comes."""
    plain = Plain(G, dtype)

    def make(synthesis, channels_last):
        return torch_step(synthesis, PlainLPIPS(target, network, dtype, channels_last), target, w_plus)

    yield "textbook torch", lambda: make(Textbook(G, dtype).synthesis, False)
    yield "plain torch", lambda: make(plain.synthesis, True)
    if compile_too:
        yield "plain torch, compiled", lambda: make(torch.compile(plain.synthesis), True)
    yield "plain torch, graph", lambda: captured(make(plain.synthesis, True), target.device)
    if compile_too:
        compiled = torch.compile(plain.synthesis)
        yield "plain torch, compiled, graph", lambda: captured(make(compiled, True), target.device)


def ours(G, network, target, w_plus, dtype, steps: int, graph) -> tuple[float, str]:
    """Seconds of an optimisation of so many steps, preparation included, and why it was eager."""
    wait(target.device)
    start = time.perf_counter()
    P = G.prepare(dtype)
    terms = [Term("pixel", PixelLoss(target, None)), Term("lpips", LPIPS(target, network, dtype=dtype))]
    trace = optimize(
        {"w": w_plus}, lambda v: P.synthesis(v["w"]), terms, steps=steps, learning_rate=0.05, graph=graph
    )  # fmt: skip
    wait(target.device)
    return time.perf_counter() - start, trace.why_eager


def run(device: torch.device, scale, keep) -> dict:
    """Measures; scale is `gpu_check.Scale`, keep is called with what there is so far."""
    rows, network = Rows(keep), lpips_network()
    for resolution in scale.ladder:
        G = generator(scale.at(resolution), device)
        for n in scale.ladder_batches:
            target = torch.randn(n, 3, resolution, resolution, device=device).clamp(-1, 1)
            w_plus = torch.randn(n, G.num_ws, G.w_dim, device=device)
            for dtype in scale.ladder_dtypes:
                facts = {"resolution": resolution, "batch": n, "dtype": str(dtype).removeprefix("torch.")}
                for name, make in rungs(G, network, target, w_plus, dtype, scale.compile):
                    row = facts | {"rung": name}
                    try:
                        row["ms"] = 1e3 * seconds(make(), device, scale.repeats)
                    except RuntimeError as error:  # out of memory, or an operation that cannot be captured
                        row["note"] = str(error).splitlines()[0][:100]
                    rows.append(row)
                for name, graph in (("ours, eager", False), ("ours", "auto")):
                    ours(G, network, target, w_plus, dtype, 5, graph)  # the library's choices are made here
                    few, many = scale.steps // 4, scale.steps
                    (short, _), (long, why) = (
                        ours(G, network, target, w_plus, dtype, steps, graph) for steps in (few, many)
                    )
                    step = (long - short) / (many - few)
                    row = facts | {"rung": name, "ms": 1e3 * step, "note": why}
                    if many >= 1000:
                        row["inversion_s"] = long
                    rows.append(row)
    return {"rows": rows}


def table(result: dict) -> str:
    """All rows, with the time of the textbook over that of the rung."""
    rows, textbook = [], None
    for row in result["rows"]:
        textbook = row.get("ms") if row["rung"] == "textbook torch" else textbook
        rows.append(row | {"times faster": textbook / row["ms"] if textbook and "ms" in row else None})
    columns = ["resolution", "batch", "dtype", "rung", "ms", "times faster", "inversion_s", "note"]
    return markdown(rows, columns)


if __name__ == "__main__":
    from gpu_check import main_of_part

    main_of_part("ladder", __doc__)
