"""End to end: one step of W+ optimisation with LPIPS, from textbook torch to ours.

    python benchmarks/ladder.py [--device cuda] [--quick] [--out FILE]

A step is synthesis, squared error and LPIPS at 256, backward and Adam. The rungs: textbook torch (per-sample weights,
NCHW); the best algebra in plain torch; that compiled, and in a CUDA graph; ours, eager; ours as ``invert`` runs it,
recorded. LPIPS is plain torch in all but ours. The column inversion_s is an inversion of 1000 steps, all included.

All rungs have cudnn.benchmark on (cuDNN times its kernels for every shape; `gpu_check.py --heuristics` has it off, as
torch does by default) and the same TF32 settings; all but the textbook are channels_last. Times are medians, for ours
means of a long run. GB is the most memory that torch's tensors took at a time.
"""

import time
from functools import partial

import torch
from correctness import generator, lpips_network
from harness import Rows, captured, markdown, seconds, wait
from textbook import Plain, PlainLPIPS, Textbook

from fastinv.inversion.loop import Term, optimize
from fastinv.losses import PixelLoss
from fastinv.losses.lpips import LPIPS


def torch_step(loss, w_plus):
    """One step of a rung in torch: everything that moves is in tensors, so that it can be captured."""
    w = w_plus.clone().requires_grad_()
    adam = torch.optim.Adam([w], lr=0.05, capturable=w.is_cuda)

    def step():
        adam.zero_grad(set_to_none=True)
        loss(w).backward()
        adam.step()

    return step


def objective(yardstick, network, target, channels_last: bool):
    """The loss as a function of w_plus.

    In float16 it is scaled, as Adam does not mind: else gradients would underflow, and zeros multiply faster.
    """
    lpips = PlainLPIPS(target, network, yardstick.dtype, channels_last)
    scale = 2.0**12 if yardstick.dtype == torch.float16 else 1.0

    def loss(w):
        image = yardstick.synthesis(w)
        return scale * ((image - target).square().mean((1, 2, 3)) + lpips(image)).sum()

    return loss


def rungs(G, network, target, w_plus, dtype):
    """(name, function that makes a step) of the rungs in torch."""

    def plain():
        return torch_step(objective(Plain(G, dtype), network, target, True), w_plus)

    yield "textbook torch", lambda: torch_step(objective(Textbook(G, dtype), network, target, False), w_plus)
    yield "plain torch", plain
    yield "plain torch, graph", lambda: captured(plain(), target.device)


def compiled_rungs(G, network, target, w_plus, dtype, backend: str):
    """Likewise, of the compiled ones, with the loss in one piece and fixed shapes."""
    torch._dynamo.reset()
    loss = objective(Plain(G, dtype, sums=True), network, target, True)
    step = torch_step(torch.compile(loss, dynamic=False, backend=backend), w_plus)
    yield "plain torch, compiled", lambda: step
    yield "plain torch, compiled, graph", lambda: captured(step, target.device)


def ours(G, network, target, w_plus, dtype, steps: int, graph) -> tuple[float, str]:
    """Seconds of an optimisation of so many steps, preparation included, and why it was eager."""
    wait(target.device)
    start = time.perf_counter()
    P = G.prepare(dtype)
    terms = [Term("pixel", PixelLoss(target, None)), Term("lpips", LPIPS(target, network, dtype=dtype))]
    trace = optimize(
        {"w": w_plus}, lambda v, _: (P.synthesis(v["w"]), v["w"]), terms, steps=steps, learning_rate=0.05, graph=graph
    )  # fmt: skip
    wait(target.device)
    spent = time.perf_counter() - start
    if trace.failed:
        raise ArithmeticError(f"the loss of some pictures is not finite: {trace.failed}")
    return spent, trace.why_eager


def measured(row: dict, device: torch.device, measure) -> dict:
    """The row with what measure returned for it, the memory it took, or why it could not."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        row |= measure()
    except Exception as error:  # out of memory, what cannot be captured or compiled: the other rungs still count
        row["note"] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    if device.type == "cuda":
        row["GB"] = torch.cuda.max_memory_allocated(device) / 1e9
    return row


def run(device: torch.device, scale, keep) -> dict:
    """Measures; scale is `gpu_check.Scale`, keep is called with what there is so far."""
    rows, network = Rows(keep, 0), lpips_network()

    def setting(resolution, n):
        G = generator(scale.at(resolution), device)
        target = torch.randn(n, 3, resolution, resolution, device=device).clamp(-1, 1)
        return G, network, target, torch.randn(n, G.num_ws, G.w_dim, device=device)

    def add(operands, dtype, name, measure):
        kind = str(dtype).removeprefix("torch.")
        row = {"resolution": operands[0].resolution, "batch": len(operands[2]), "dtype": kind, "rung": name}
        rows.append(measured(row, device, measure))

    def time_of(make):
        return {"ms": 1e3 * seconds(make(), device, scale.repeats)}

    def our_time(operands, dtype, graph, few, many):
        ours(*operands, dtype, 5, graph)  # the library's choices are made here
        (short, _), (long, why) = (ours(*operands, dtype, steps, graph) for steps in (few, many))
        inversion = {"inversion_s": long} if many >= 1000 else {}
        return {"ms": 1e3 * (long - short) / (many - few), "note": why} | inversion

    few, many = scale.steps // 10, scale.steps
    for resolution in scale.ladder:
        for n in scale.ladder_batches:
            operands = setting(resolution, n)
            for dtype in scale.ladder_dtypes:
                for name, make in rungs(*operands, dtype):
                    add(operands, dtype, name, partial(time_of, make))
                add(operands, dtype, "ours, eager", partial(our_time, operands, dtype, False, few // 4, few))
                add(operands, dtype, "ours", partial(our_time, operands, dtype, "auto", few, many))
    if scale.backend:  # last, because each takes a minute or more
        for resolution in scale.ladder:
            operands, dtype = setting(resolution, 1), scale.ladder_dtypes[0]
            for name, make in compiled_rungs(*operands, dtype, scale.backend):
                add(operands, dtype, name, partial(time_of, make))
    return {"rows": rows, "failed": [f"{row['rung']}: {row['note']}" for row in rows if "ms" not in row]}


def table(result: dict) -> str:
    """All rows, with the time of the textbook over that of the rung."""

    def where(row):
        return row["resolution"], row["batch"], row["dtype"]

    textbook = {where(row): row.get("ms") for row in result["rows"] if row["rung"] == "textbook torch"}
    rows = sorted(result["rows"], key=where, reverse=True)
    for row in rows:
        if textbook.get(where(row)) and "ms" in row:
            row["times faster"] = textbook[where(row)] / row["ms"]
    columns = ["resolution", "batch", "dtype", "rung", "ms", "times faster", "inversion_s", "GB", "note"]
    return markdown(rows, columns)


if __name__ == "__main__":
    from gpu_check import main_of_part

    main_of_part("ladder", __doc__)
