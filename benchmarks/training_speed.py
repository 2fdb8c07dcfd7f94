"""Pictures per second of GAN training of the embedded generator (64x64, batch 16), as docs/training/faces64.md did it.

    python benchmarks/training_speed.py --out benchmarks/results/training_speed.json [--before ../other-checkout]

One step trains generator and discriminator on a kept batch; rendering one is timed by itself ("ms data"). The lazy
penalties are timed as steps of their own and then counted in their proportion: R1 every 16 steps (what faces64 was
trained with), and also path length every 4 (the command's default). With ``--before`` another checkout takes part: its
steps are run in turn with ours, each checkout in a process of its own while the other waits.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = {"plain": (1, 0.0), "r1": (16, 0.0), "path": (4, 2.0)}  # kind: number of the step, weight of the path length
OPTIONS = (
    "--data faces --seed 0 --batch 16 --channels 256,256,192,128,64 --d-channels 128,128,96,64,32 "
    "--mapping-lr-multiplier 0.4 --paired 5 --paired-details 10 --g-lr 0.004 --d-lr 0.003 --style-mixing 0.3 "
    "--r1-gamma 0.3 --path-length-interval 4 --device cpu --out /nowhere"
)


def work(dtype: str, threads: int):
    """Read kinds of steps from standard input, run each, and write how many seconds it took."""
    import torch

    from fastinv.training.generator import Trainer
    from fastinv.training.generator_options import parser

    torch.set_num_threads(threads)
    trainer = Trainer(parser().parse_args([*OPTIONS.split(), "--dtype", dtype]))
    render, batch = trainer.source.batch, trainer.source.batch(16, 64)
    trainer.source.batch = lambda *_, **__: batch
    for line in sys.stdin:
        kind = line.strip()
        trainer.step, trainer.options.path_length = STEPS.get(kind, (0, 0))
        start = time.perf_counter()
        if kind == "data":
            render(16, 64)
        else:
            trainer.iterate()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """`work` in a process of its own, with the fastinv of a checkout."""

    def __init__(self, checkout: Path, dtype: str, threads: int):
        command = [sys.executable, __file__, "--work", dtype, "--threads", str(threads)]
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def step(self, kind: str) -> float:
        print(kind, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def measure(checkouts: dict[str, Path], dtype: str, threads: int, repeats: int) -> list[dict]:
    """One row for each checkout."""
    workers = {name: Worker(path, dtype, threads) for name, path in checkouts.items()}
    kinds = [*STEPS, "data"]
    seconds = {name: {kind: [] for kind in kinds} for name in workers}
    for round_number in range(repeats + 1):
        for kind in ["plain", *kinds]:  # the step that all others add to is timed most often
            for name, worker in workers.items():
                found = worker.step(kind)
                if round_number > 0:
                    seconds[name][kind].append(found)
    for worker in workers.values():
        worker.end()
    rows = []
    for name in workers:
        row = {"checkout": name, "dtype": dtype, "threads": threads}
        for number, what in ((statistics.median, ""), (min, "fastest ")):
            plain, r1, path, data = (number(seconds[name][kind]) for kind in kinds)
            row |= {f"{what}ms {kind}": 1e3 * value for kind, value in zip(kinds, (plain, r1, path, data))}
            with_r1 = plain + (r1 - plain) / 16
            row |= {f"{what}pictures/s": 16 / plain, f"{what}pictures/s, R1": 16 / with_r1}
            row[f"{what}pictures/s, R1 and path length"] = 16 / (with_r1 + (path - plain) / 4)
        if "before" in seconds and name != "before":  # steps in turn: what disturbs the machine for long disturbs both
            for kind in STEPS:
                pairs = zip(seconds["before"][kind], seconds[name][kind])
                row[f"times before, {kind}"] = statistics.median(before / ours for before, ours in pairs)
        rows.append(row)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--before", help="another checkout, with its library built")
    p.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    p.add_argument("--threads", nargs="*", type=int, default=[2, 1])
    p.add_argument("--repeats", type=int, default=10)
    p.add_argument("--out", help="JSON file for the numbers")
    p.add_argument("--work", help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.work:
        work(options.work, options.threads[0])
        return

    import harness
    import torch

    here = Path(__file__).resolve().parent.parent
    checkouts = {"ours": here}
    if options.before:
        checkouts = {"before": Path(options.before).resolve()} | checkouts
    result = {"facts": harness.facts(torch.device("cpu")), "options": OPTIONS, "rows": []}
    result["commits"] = {name: harness._first_line("git", "-C", str(path), "describe", "--always", "--dirty")
                         for name, path in checkouts.items()}  # fmt: skip
    for threads in options.threads:
        for dtype in options.dtypes:
            result["rows"] += measure(checkouts, dtype, threads, options.repeats)
            if options.out:
                harness.write(Path(options.out), result)
    print(harness.markdown(result["rows"]))


if __name__ == "__main__":
    main()
