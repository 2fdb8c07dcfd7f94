"""Everything that is claimed of the CPU, measured in one call: `make bench` (`make bench QUICK=1` for a short run).

    python benchmarks/cpu.py [--quick] [--only PART,...] [--out DIR] [--update-readme]

Parts, each a process (or several) of its own, each leaving DIR/<part>.json:

    step      one optimisation step against the bare-convolution floor and textbook torch (benchmarks/step.py), with
              glibc's malloc as it is and tuned for everybody
    lpips     LPIPS-VGG16 at 256, forward and backward, against channels_last torch
    passes    epilogue and upfirdn2d against the memory limit (benchmarks/passes.py)
    memory    peak memory of a process that takes steps, textbook and ours
    accuracy  picture and gradient against float64, ours and torch
    losses    300-step inversions of 20 pictures, every dtype and the reference path (benchmarks/losses.py)
    training  pictures per second of GAN training (benchmarks/training_speed.py)

Numbers are medians of runs in turn on random data; the machine should have nothing else to do. The tables go to
DIR/cpu.md, and with --update-readme the first ones between the marks in README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from harness import ROOT, facts, interleaved, markdown, relative_error, write
from step import DTYPES, TUNED, generator, lpips_network, optimisation_step
from step import table as step_table

HERE = Path(__file__).parent
PARTS = ("step", "lpips", "passes", "memory", "accuracy", "losses", "training")
MARKS = "<!-- make bench: begin -->", "<!-- make bench: end -->"


def child(script: str, *arguments, out: Path, tuned: bool = False):
    """Another benchmark in a process of its own; its result."""
    ours = ("GLIBC_TUNABLES", "FASTINV_DISABLE_NATIVE", "FASTINV_CPU_ISA")  # would change what is measured
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"GLIBC_TUNABLES": TUNED} if tuned else {}
    command = [sys.executable, str(HERE / script), *map(str, arguments), "--out", str(out)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads(out.read_text())


def step(options) -> dict:
    """(resolution, batch, with LPIPS) of the step benchmark, in both ways of malloc."""
    settings = [(256, 1, False), (1024, 1, False), (64, 1, False), (256, 1, True)]
    if not options.quick:
        settings += [(64, 4, False), (256, 4, False), (1024, 4, False), (64, 1, True), (1024, 1, True)]
    results = []
    for resolution, n, lpips in settings:
        for tuned in (False, True):
            arguments = ["--resolution", resolution, "--batch", n, "--budget", 10 if options.quick else 40]
            arguments += ["--lpips"] if lpips else []
            arguments += ["--rounds", 3 if resolution * n > 512 else 5]
            arguments += ["--skip", "textbook"] if resolution * n > 1024 else []
            results.append(child("step.py", *arguments, out=options.out / "unfinished.json", tuned=tuned))
            print(step_table(results[-1:]).splitlines()[-1], flush=True)
    (options.out / "unfinished.json").unlink()
    return {"rows": results, "table": step_table(results)}


def lpips(options) -> dict:
    """LPIPS alone: ours and channels_last torch, float32 and bfloat16."""
    from textbook import PlainLPIPS

    from fastinv.losses.lpips import LPIPS

    network = lpips_network()
    target, image = (torch.randn(1, 3, 256, 256).clamp(-1, 1) for _ in range(2))
    image.requires_grad_()

    def distance(loss):
        return lambda: torch.autograd.grad(loss(image).sum(), image)

    found = {}
    for name, dtype in DTYPES.items():
        found[f"torch {name}"] = distance(PlainLPIPS(target, network, dtype, True))
        found[f"ours {name}"] = distance(LPIPS(target, network, dtype=dtype))
    times = interleaved(found, rounds=7, budget=5 if options.quick else 30)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        {"dtype": d, "torch s": seconds[f"torch {d}"], "ours s": seconds[f"ours {d}"],
         "ours / torch": seconds[f"ours {d}"] / seconds[f"torch {d}"]}
        for d in DTYPES
    ]  # fmt: skip
    return {"rows": rows, "table": markdown(rows)}


def passes(options) -> dict:
    import passes as script

    result = script.run(1.0 if options.quick else 5.0)
    return result | {"table": script.table(result)}


def memory(options) -> dict:
    """Peak resident memory of a process that takes three steps, less that of one that only has the generator."""
    rows = []
    for resolution in (256,) if options.quick else (256, 1024):
        peaks = {}
        for who in ("nothing", "textbook float32", "textbook bfloat16", "ours float32", "ours bfloat16"):
            command = [sys.executable, str(HERE / "cpu.py"), "--peak", who, str(resolution)]
            peaks[who] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name in DTYPES:
            textbook, ours = (peaks[f"{who} {name}"] - peaks["nothing"] for who in ("textbook", "ours"))
            rows.append(
                {"resolution": resolution, "dtype": name, "textbook GB": textbook, "ours GB": ours,
                 "ours / textbook": ours / textbook, "generator alone GB": peaks["nothing"]}
            )  # fmt: skip
    return {"rows": rows, "table": markdown(rows)}


def peak(who: str, resolution: int) -> float:
    """GB at the peak of this process, which takes three steps."""
    from gpu_check import Scale
    from textbook import Textbook

    G = generator(Scale(resolution=resolution), torch.device("cpu"))
    name, _, dtype = who.partition(" ")
    if name != "nothing":
        synthesis = Textbook(G, DTYPES[dtype]).synthesis if name == "textbook" else G.prepare(DTYPES[dtype]).synthesis
        target, w_plus = torch.zeros(1, 3, resolution, resolution), torch.randn(1, G.num_ws, G.w_dim)
        take = optimisation_step(synthesis, target, w_plus)
        for _ in range(3):
            take()
    # Not ru_maxrss, which begins with what the process that started this one had.
    peak_line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak_line.split()[1]) * 1024 / 1e9


def accuracy(options) -> dict:
    """Relative errors against the training path in float64."""
    from correctness import image_and_gradient
    from gpu_check import Scale
    from textbook import Plain, Textbook

    rows = []
    for resolution in (64,) if options.quick else (64, 256):
        G = generator(Scale(resolution=resolution), torch.device("cpu"))
        w_plus, cotangent = torch.randn(1, G.num_ws, G.w_dim), torch.randn(1, 3, resolution, resolution)
        exact = generator(Scale(resolution=resolution), torch.device("cpu")).double().synthesis
        truth = image_and_gradient(exact, w_plus.double(), cotangent.double())
        for name, dtype in DTYPES.items():
            contestants = {"textbook": Textbook(G, dtype), "plain": Plain(G, dtype), "ours": G.prepare(dtype)}
            for who, network in contestants.items():
                found = image_and_gradient(network.synthesis, w_plus, cotangent)
                image, gradient = (relative_error(x, y) for x, y in zip(found, truth, strict=True))
                row = {"resolution": resolution, "dtype": name, "who": who, "image": image, "gradient": gradient}
                rows.append(row)
    return {"rows": rows, "table": markdown(rows)}


def losses(options) -> dict:
    arguments = ["--count", 4, "--steps", 30] if options.quick else []
    return child("losses.py", *arguments, out=options.out / "losses.json")


def training(options) -> dict:
    result = child("training_speed.py", *(["--repeats", 2] if options.quick else []), out=options.out / "training.json")
    return result | {"table": markdown(result["rows"])}


def readme(tables: dict[str, str], where: dict) -> None:
    """Put the tables that the README shows between its marks."""
    path = ROOT / "README.md"
    before, begin, rest = path.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (begin and end and "step" in tables):
        sys.exit("--update-readme needs the marks in README.md and the part step")
    machine = "{cpu}, {threads} threads, {isa}, torch {torch}, commit {commit}".format(**where)
    text = "\n".join([MARKS[0], "", f"Measured by `make bench` on: {machine}.", "", tables["step"], MARKS[1]])
    path.write_text(before + text + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer settings, minutes")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu")
    parser.add_argument("--update-readme", action="store_true", help="put the step table into README.md")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak[0], int(options.peak[1])))
        return
    unknown = [name for name in options.only.split(",") if name not in PARTS]
    if unknown:
        parser.error(f"no part is called {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only.split(","):
        started = time.perf_counter()
        result = globals()[name](options)
        result |= {"facts": facts(torch.device("cpu")), "seconds": time.perf_counter() - started}
        write(options.out / f"{name}.json", result)
        print(f"## {name}, {result['seconds']:.0f} s\n\n{result['table']}", flush=True)
    files = {name: options.out / f"{name}.json" for name in PARTS}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    pages = [
        "## {} ({commit}, {date})\n\n{}".format(name, part["table"], **part["facts"]) for name, part in found.items()
    ]
    where = "\n".join(f"- {key}: {value}" for key, value in next(iter(found.values()))["facts"].items())
    (options.out / "cpu.md").write_text("# make bench\n\n" + where + "\n\n" + "\n".join(pages))
    if options.update_readme:
        readme({name: part["table"] for name, part in found.items()}, found.get("step", result)["facts"])


if __name__ == "__main__":
    main()
