"""Final losses of inversions in every arithmetic, against the reference path: what speed costs in quality.

    python benchmarks/losses.py [--count 20] [--steps 300] [--out FILE]

Held-out portraits are inverted with the embedded generator in W+: by the references in plain torch (float32, a process
without the native library), by the kernels in float32, and in bfloat16. ``ratio`` is the mean final loss over the
reference's; ``mse in float32`` is that of the codes found, rendered by the generator itself in float32 (in the process
that found them, so by the references only for their own run); ``steps to quality`` the steps until the loss that the
reference has at the end, relative to the reference's own (median of the pictures; the longest run counts for those that
never get there).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from harness import facts, markdown, write

RUNS = {"reference float32": "float32", "ours float32": "float32", "ours bfloat16": "bfloat16"}


def work(dtype: str, count: int, steps: int, out: Path) -> None:
    """One inversion in this process; curves, codes and seconds go to a file."""
    import fastinv

    G = fastinv.load_generator("faces64")
    images, _ = fastinv.data.faces.sample(count, seed=7, split="heldout")
    result = fastinv.invert(G, images, steps=steps, dtype=dtype, progress=False)
    with torch.no_grad():
        rendered = G.synthesis(result.w_plus.float())
    torch.save(
        {
            "loss": result.losses["total"].double(), "seconds": result.settings["seconds"],
            "mse": (rendered - images).square().mean((1, 2, 3)),
        },
        out,
    )  # fmt: skip


def run(count: int, steps: int) -> dict:
    """All runs, each in a process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dtype in RUNS.items():
            out = Path(folder) / "result.pt"
            environment = os.environ | ({"FASTINV_DISABLE_NATIVE": "1"} if name.startswith("reference") else {})
            command = [sys.executable, __file__, "--work", dtype, "--count", str(count), "--steps", str(steps)]
            subprocess.run([*command, "--out", str(out)], check=True, env=environment)
            found[name] = torch.load(out)
    curves = {name: result["loss"].cummin(0).values for name, result in found.items()}
    goal = curves["reference float32"][-1]
    own = (curves["reference float32"] > goal).sum(0)
    rows = []
    for name, result in found.items():
        steps_needed = (curves[name] > goal).sum(0)
        each = curves[name][-1] / goal
        rows.append(
            {
                "run": name, "final loss": curves[name][-1].mean().item(),
                "ratio": (curves[name][-1].mean() / goal.mean()).item(), "worst picture": each.max().item(),
                "mse in float32": result["mse"].mean().item(),
                "steps to quality": statistics.median((steps_needed / own).tolist()), "seconds": result["seconds"],
            }
        )  # fmt: skip
    return {"rows": rows, "count": count, "steps": steps, "table": markdown(rows), "facts": facts(torch.device("cpu"))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.count, options.steps, options.out)
        sys.exit()
    result = run(options.count, options.steps)
    if options.out:
        write(options.out, result)
    print(result["table"])
