"""Checks and measures the CUDA side on a GPU in one call: `make gpu-check`, or on a machine without one `DRY=1`.

    python benchmarks/gpu_check.py [--quick] [--dry] [--only PART,...] [--skip PART,...] [--again] [--heuristics]
                                   [--out DIR]

Parts, each a process of its own with a time limit, each leaving DIR/<part>.json when it is done (what it has so far if
it is stopped); a part that is there already for this commit, GPU and size is not run again (--again does). Time that is
left over goes to the next parts. docs/gpu-check.md has the reading of the results:

    build         the CUDA library: a carried one (FASTINV_LIBRARY), else it is built for the GPU that is here
    tests         pytest -m gpu: every op against float64, devices, streams, autocast, torch.compile, graph capture
    correctness   pictures and latent gradients of whole networks against float64
    sanitizer     compute-sanitizer (memcheck, racecheck, initcheck) on small shapes, where it is installed
    convolutions  every layer shape in every form; its choices go to DIR/forms.json
    kernels       every kernel at five sizes against a measured copy
    ladder        one optimisation step from textbook torch to ours, and an inversion of 1000 steps

The end: DIR/gpu_check.json with all of it and DIR/gpu_check.md with the tables. Exit status 1 if a check failed.
--dry runs the same code on the CPU, with sizes of seconds: it tests this script, its times mean nothing.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, write

HERE = Path(__file__).parent
# Seconds that each part is sure to have; together below nine minutes.
PARTS = {
    "build": 90, "tests": 80, "correctness": 60, "sanitizer": 60, "convolutions": 80, "kernels": 45, "ladder": 115,
}  # fmt: skip
# Where cuDNN may time its kernels for every shape: where times are measured. Elsewhere its rules are quicker.
TIMED = ("convolutions", "ladder")
SANITIZER_TOOLS = ("memcheck", "racecheck", "initcheck")


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    resolution: int = 1024  # of the correctness and the convolutions
    channel_base: int = 32768
    channel_max: int = 512
    picture: int = 256  # of LPIPS
    dtypes: tuple = (torch.float16, torch.bfloat16, torch.float32)
    # (dtype, batch size) of the convolution table, the most wanted first
    convolutions: tuple = (
        (torch.float16, 1), (torch.float16, 8), (torch.float32, 1), (torch.bfloat16, 1), (torch.float16, 4),
        (torch.float16, 2), (torch.float32, 8), (torch.bfloat16, 8),
    )  # fmt: skip
    matrix: int = 8192
    maps: tuple = ((1, 512, 32), (1, 512, 64), (1, 256, 128), (1, 64, 512), (1, 32, 1024))
    repeats: int = 10
    ladder: tuple = (1024, 256)
    ladder_batches: tuple = (1, 8)
    ladder_dtypes: tuple = (torch.float16,)
    steps: int = 1000
    backend: str = "inductor"  # of torch.compile in the ladder; "" for none

    def at(self, resolution: int) -> "Scale":
        return replace(self, resolution=resolution)


FULL = Scale()
QUICK = Scale(
    resolution=256, dtypes=(torch.float16,), convolutions=FULL.convolutions[:1], maps=FULL.maps[::2], repeats=5,
    ladder_batches=(1,), backend="",
)  # fmt: skip
DRY = Scale(
    resolution=16, channel_base=128, channel_max=16, picture=32, dtypes=(torch.float32, torch.bfloat16),
    convolutions=((torch.float32, 1), (torch.bfloat16, 1)), matrix=64, maps=((1, 16, 8), (2, 8, 16)), repeats=1,
    ladder=(16,), ladder_batches=(1,), ladder_dtypes=(torch.float32,), steps=80, backend="aot_eager",
)  # fmt: skip


def build(device, scale, options) -> dict:
    """Builds the CUDA part into the package, unless a library that has it was carried along."""
    from fastinv import _ext

    started = time.perf_counter()
    if not _ext.cuda_available() and device.type == "cuda":
        if os.environ.get("FASTINV_LIBRARY"):
            raise RuntimeError(f"the carried library has no usable CUDA part: {_ext.cuda_why_not()}")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"FASTINV_CUDA": "1"})
    code = "from fastinv import _ext, info; print(_ext.cuda_why_not() or 'loaded')"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = found.stdout.strip().splitlines()[-1]
    failed = [loaded] if loaded != "loaded" and device.type == "cuda" else []
    return {"cuda": loaded, "seconds_to_build": time.perf_counter() - started, "failed": failed}


def tests(device, scale, options) -> dict:
    """pytest on tests/gpu, in several processes where pytest-xdist is there; in a dry run they are only collected."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-p", "no:cacheprovider", "-vv"]
    if options.dry:
        command += ["--collect-only"]
    elif importlib.util.find_spec("xdist"):
        command += ["-n", "6"]
    log = options.out / "tests.log"
    with open(log, "w") as file:  # so that a stop leaves what there is
        status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    lines = log.read_text().strip().splitlines() or ["no output"]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1], "failed": failed or ([] if status == 0 else lines[-1:])}


def sanitizer(device, scale, options) -> dict:
    """compute-sanitizer over this script's ``--touch``, which runs every kernel once on small shapes."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    touch = [sys.executable, str(HERE / "gpu_check.py"), "--device", str(device), "--touch"]
    if program is None or device.type != "cuda":
        subprocess.run([*touch, "all"], cwd=ROOT, check=True)
        why = "there is no GPU" if device.type != "cuda" else "compute-sanitizer is not installed"
        return {"note": f"{why}: the kernels were run without it", "failed": []}

    def check(tool: str) -> dict:
        command = [program, "--tool", tool, "--show-backtrace", "no", "--error-exitcode", "9"]
        if tool == "initcheck":  # it must see torch's kernels write, too; without cuDNN's that is bearable
            command += [*touch, "ops"]
        else:
            command += ["--kernel-name", "kernel_substring=fastinv", *touch, "all"]
        # Each tensor is an allocation of its own then, whose bounds the tools know.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        log, started = options.out / f"sanitizer_{tool}.log", time.perf_counter()
        with open(log, "w") as file:
            status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, env=environment).returncode
        lines = log.read_text().splitlines()
        summary = [line for line in lines if "SUMMARY" in line] or lines[-1:] or ["no output"]
        ours = status != 0
        if tool == "initcheck" and status == 9:  # what torch's own kernels read is not our business
            ours = any(line.startswith("=========     at ") and "fastinv" in line for line in lines)
        spent = time.perf_counter() - started
        return {"tool": tool, "seconds": spent, "summary": summary[-1], "status": status, "fine": not ours}

    with ThreadPoolExecutor() as pool:  # side by side: most of the time is the loading of modules
        rows = list(pool.map(check, SANITIZER_TOOLS))
    return {"rows": rows, "failed": [f"{row['tool']}: {row['summary']}" for row in rows if not row["fine"]]}


def touch(device: torch.device, what: str) -> None:
    """Every kernel once, on small shapes: those that are benchmarked and, for "all", two steps of an optimisation."""
    import kernels
    import ladder
    from correctness import generator, lpips_network

    for case in kernels.network_cases(DRY, 2, device):
        case.call(*case.make())
    for dtype in DRY.dtypes if device.type == "cpu" else FULL.dtypes:
        for case in kernels.cases(1, 16, 8, dtype, device):
            case.call(*case.make())
        if what == "ops":
            continue
        G = generator(DRY, device)
        target, w_plus = torch.rand(2, 3, 16, 16, device=device), torch.randn(2, G.num_ws, G.w_dim, device=device)
        ladder.ours(G, lpips_network(), target, w_plus, dtype, 2, False)


def run_part(name: str, options) -> dict:
    """One part in this process."""
    device = torch.device("cpu" if options.dry else options.device)
    scale = DRY if options.dry else QUICK if options.quick else FULL
    started = time.perf_counter()
    torch.backends.cudnn.benchmark = name in TIMED and not options.heuristics
    if name in ("build", "tests", "sanitizer"):
        result = globals()[name](device, scale, options)
    else:
        from fastinv.models.convolution import FORMS

        module = importlib.import_module(name)
        choices = options.out / "forms.json"
        if name != "convolutions" and choices.exists():
            FORMS.load(choices)
        unfinished = options.out / f"{name}.unfinished.json"
        started_with = facts(device) | {"size": options.size}

        def keep(result: dict) -> None:
            write(unfinished, result | {"seconds": time.perf_counter() - started, "facts": started_with})
            if name == "convolutions":
                FORMS.save(choices)

        result = module.run(device, scale, keep)
        keep(result)
        unfinished.unlink()
        result["table"] = module.table(result)
    result["seconds"] = time.perf_counter() - started
    result["facts"] = facts(device) | {"size": options.size}
    return result


def run_limited(command: list[str], limit: float) -> str:
    """Run a command for at most so many seconds, with all that it starts; what went wrong, "" for nothing."""
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=os.setpgrp)
    try:
        status = process.wait(limit)
        return f"exit status {status}" if status else ""
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # its own group: also pytest's and the compiler's processes
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def done_already(path: Path, options) -> bool:
    """Whether the part's result is of this commit, machine and size."""
    try:
        found = json.loads(path.read_text())["facts"]
    except (OSError, ValueError, KeyError):
        return False
    now = facts(torch.device("cpu" if options.dry else options.device)) | {"size": options.size}
    return all(found.get(key) == now.get(key) for key in ("commit", "gpu", "torch", "size"))


def summarise(options) -> tuple[str, list[str]]:
    """The Markdown page of all parts that are there, and what failed."""
    failed, pages, parts = [], [], {}
    for name in PARTS:
        path = options.out / f"{name}.json"
        unfinished = not path.exists()
        path = options.out / f"{name}.unfinished.json" if unfinished else path
        if not path.exists():
            continue
        result = parts[name] = json.loads(path.read_text())
        failed += [f"{name}: {what}" for what in result.get("failed", [])]
        if unfinished:
            result["table"] = "Not finished.\n\n" + markdown(result["rows"])
        text = result.get("table") or "\n".join(
            f"- {key}: {value}" for key, value in result.items() if key not in ("facts", "rows", "table")
        )
        if "rows" in result and "table" not in result:
            text += "\n" + "\n".join(f"- {row}" for row in result["rows"])
        pages.append(f"## {name} ({result['seconds']:.0f} s, commit {result['facts'].get('commit')})\n\n{text}\n")
    where = next(iter(parts.values()))["facts"] if parts else {}
    head = "# gpu-check" + (" (dry: the times mean nothing)" if options.dry else "")
    lines = [head, "", *[f"- {key}: {value}" for key, value in where.items()], ""]
    lines += [f"**Failed: {what}**" for what in failed] or ["No check failed."]
    write(options.out / "gpu_check.json", parts)
    return "\n".join([*lines, "", *pages]), failed


def main_of_part(name: str, description: str) -> None:
    """The command line of a part that is run by itself."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    _arguments(parser)
    options = _options(parser)
    print(run_part(name, options)["table"])


def _arguments(parser) -> None:
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, about two minutes in all")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny: only checks that everything runs")
    parser.add_argument("--heuristics", action="store_true", help="leave cudnn.benchmark off, as torch does by default")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")


def _options(parser):
    options = parser.parse_args()
    options.size = "dry" if options.dry else "quick" if options.quick else "full"
    options.size += ", heuristics" if options.heuristics else ""
    default = ROOT / "build" / "gpu_check_dry" if options.dry else ROOT / "benchmarks" / "results" / "gpu"
    options.out = (options.out or default).absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.dry and options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "gpu-check: torch sees no CUDA device here; --dry (make gpu-check DRY=1) runs it on the CPU\n")
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _arguments(parser)
    parser.add_argument("--only", help="parts to run, separated by commas")
    parser.add_argument("--skip", default="", help="parts to leave out")
    parser.add_argument("--again", action="store_true", help="run parts that are there already")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in this process
    parser.add_argument("--touch", choices=("ops", "all"), help=argparse.SUPPRESS)
    options = _options(parser)
    if options.touch:
        return touch(torch.device("cpu" if options.dry else options.device), options.touch)
    if options.part:
        return write(options.out / f"{options.part}.json", run_part(options.part, options))

    chosen = (options.only or ",".join(PARTS)).split(",")
    unknown = sorted({*chosen, *filter(None, options.skip.split(","))} - set(PARTS))
    if unknown:
        parser.error(f"no part is called {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    chosen = [name for name in PARTS if name in chosen and name not in options.skip.split(",")]
    broken, end = [], time.perf_counter() + sum(PARTS.values())
    for index, name in enumerate(chosen):
        if not options.again and done_already(options.out / f"{name}.json", options):
            print(f"{name}: done already", flush=True)
            continue
        for old in (f"{name}.json", f"{name}.unfinished.json"):
            (options.out / old).unlink(missing_ok=True)
        started = time.perf_counter()
        command = [sys.executable, str(HERE / "gpu_check.py"), "--part", name, "--out", str(options.out)]
        command += ["--device", options.device]
        command += ["--dry"] if options.dry else ["--quick"] if options.quick else []
        command += ["--heuristics"] if options.heuristics else []
        status = run_limited(command, end - started - sum(PARTS[later] for later in chosen[index + 1 :]))
        broken += [f"{name}: {status}"] if status else []
        print(f"{name}: {status or 'done'}, {time.perf_counter() - started:.0f} s", flush=True)
    page, failed = summarise(options)
    (options.out / "gpu_check.md").write_text(page)
    print(page[-10000:])
    print(f"{options.out}/gpu_check.md")
    if broken or failed:
        sys.exit("gpu-check: " + "; ".join(broken + failed))


if __name__ == "__main__":
    main()
