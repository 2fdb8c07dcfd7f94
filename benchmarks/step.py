"""One step of latent optimisation on a CPU (config-f, W+, random weights): the bare-convolution floor, textbook torch,
ours.

    python benchmarks/step.py [--resolution 256] [--batch 1] [--lpips] [--budget 60] [--skip textbook] [--out FILE]

A step is synthesis, squared error (and LPIPS), backward. All take turns in one process; times are medians. Ours and the
textbook see the same weights, codes and target. The malloc of this process is what the environment says:
`benchmarks/cpu.py` runs this twice, with glibc's defaults and tuned for everybody.
"""

import argparse
import gc
import os
import statistics
from pathlib import Path

import torch
from correctness import generator, lpips_network
from floor import Floor
from gpu_check import Scale
from harness import facts, interleaved, markdown, write
from textbook import PlainLPIPS, Textbook

from fastinv.losses.lpips import LPIPS

TUNED = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=34359738368:glibc.malloc.trim_threshold=34359738368"
)  # the value of GLIBC_TUNABLES with which torch's memory is kept between steps
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def optimisation_step(synthesis, target, w_plus, distance=None):
    """A function that computes picture, loss and gradient once, and returns the gradient."""
    w = w_plus.clone().requires_grad_()

    def step():
        image = synthesis(w)
        loss = (image - target).square().mean((1, 2, 3)).sum()
        if distance is not None:
            loss = loss + distance(image).sum()
        return torch.autograd.grad(loss, w)[0]

    return step


def contestants(resolution: int, n: int, lpips: bool, skip=()) -> dict:
    """name -> step."""
    G = generator(Scale(resolution=resolution), torch.device("cpu"))
    w_plus = torch.randn(n, G.num_ws, G.w_dim)
    target = torch.randn(n, 3, resolution, resolution).clamp(-1, 1)
    network = lpips_network() if lpips else None
    found = {}
    for name, dtype in DTYPES.items():
        if "floor" not in skip and not lpips:
            found[f"floor {name}"] = Floor(resolution, n, dtype).run
        if "textbook" not in skip:
            distance = PlainLPIPS(target, network, dtype, False) if lpips else None
            found[f"textbook {name}"] = optimisation_step(Textbook(G, dtype).synthesis, target, w_plus, distance)
        distance = LPIPS(target, network, dtype=dtype) if lpips else None
        found[f"ours {name}"] = optimisation_step(G.prepare(dtype).synthesis, target, w_plus, distance)
    return found


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """What the targets are about: ours over the floor, and the textbook (float32) over ours."""
    found = {}
    for name in DTYPES:
        ours = seconds[f"ours {name}"]
        if f"floor {name}" in seconds:
            found[f"{name} / floor"] = ours / seconds[f"floor {name}"]
        if "textbook float32" in seconds:
            found[f"textbook float32 / {name}"] = seconds["textbook float32"] / ours
    return found


def run(resolution: int, n: int, lpips: bool = False, budget: float = 60.0, skip=(), rounds: int = 5) -> dict:
    """Times all contestants and says how they compare."""
    times = interleaved(contestants(resolution, n, lpips, skip), rounds=rounds, budget=budget)
    gc.collect()
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "resolution": resolution, "batch": n, "loss": "MSE + LPIPS" if lpips else "MSE",
        "malloc": "tuned" if os.environ.get("GLIBC_TUNABLES") == TUNED else "default",
        "rounds": len(next(iter(times.values()))), "seconds": seconds,
        "fastest": {name: min(values) for name, values in times.items()}, "ratios": ratios(seconds),
    }  # fmt: skip


def table(results: list[dict]) -> str:
    """One row per setting."""
    rows = []
    for result in results:
        row = {key: result[key] for key in ("resolution", "batch", "loss", "malloc")}
        row |= {name: value for name, value in result["seconds"].items() if name.startswith("ours")}
        rows.append(row | result["ratios"])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return markdown(rows, columns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lpips", action="store_true")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of measuring, at least five rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", default="", help="contestants to leave out, separated by commas: floor, textbook")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args()
    result = run(
        options.resolution, options.batch, options.lpips, options.budget, options.skip.split(","), options.rounds
    )
    result["facts"] = facts(torch.device("cpu"))
    if options.out:
        write(options.out, result)
    print(table([result]))
