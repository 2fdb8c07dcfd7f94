"""`fastinv info`: what is installed, what was built and why not, and which backend each op takes."""

import importlib.metadata
import json
import os
import platform
import sys

import torch

from . import __version__, _ext, ops
from .ops import _dispatch

PACKAGES = ("numpy", "pillow", "safetensors", "typer", "rich")
VARIABLES = ("FASTINV_DISABLE_NATIVE", "FASTINV_LIBRARY", "FASTINV_CPU_ISA")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Public ops that run on the native op of another one.
RUNS_ON = {name: "upfirdn2d" for name in ("filter2d", "upsample2d", "downsample2d")}
# Native ops that are no public functions: of a prepared generator (all of its own), of LPIPS, of the inversion loop.
FAMILIES = ("synthesis", "perceptual_stage", "adam")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def op_backends() -> list[dict]:
    """One entry for each op, device type and dtype: {"op", "device", "dtype", "backend", "reason"}.

    backend is "native" or "ref"; reason says why it is the reference, "" for native. Single calls can still fall back
    for reasons that lie in their arguments; `_dispatch.fallbacks` counts those of this process.
    """
    entries = []
    for op in [*sorted(name for name in ops.__all__ if f"{name}_ref" in ops.__all__), *FAMILIES]:
        for device in _dispatch.DTYPES:
            for dtype in DTYPES:
                reason = _dispatch.obstacle(RUNS_ON.get(op, op), device, dtype)
                entry = {"op": op, "device": device, "dtype": str(dtype).removeprefix("torch.")}
                entries.append(entry | {"backend": "ref" if reason else "native", "reason": reason})
    return entries


def collect() -> dict:
    """Everything that `fastinv info` shows, as plain dicts, lists, strings and numbers (fit for JSON)."""
    build = _ext.build_info()
    return {
        "fastinv": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda or "",
            "threads": torch.get_num_threads(),
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "library": {
            "path": str(_ext.library_path()),
            "loaded": _ext.available(),
            "why_not": _ext.why_not(),
            "cuda_loaded": _ext.cuda_available(),
            "cuda_why_not": _ext.cuda_why_not(),
        },
        "build": build,
        "cpu_isa": {
            "in_use": _ext.cpu_isa(),
            "bfloat16_products": _ext.cpu_matrix(),
            "available": _ext.cpu_isas(),
            "built": build.get("cpu_isas", "").split(";") if build else [],
        },
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "ops": op_backends(),
        "fallbacks": [
            {"op": op, "device": device, "reason": reason, "calls": calls}
            for (op, device, reason), calls in _dispatch.fallbacks.items()
        ],
    }


def _lines(facts: dict):
    """The report, line by line."""

    def line(name: str, value) -> str:
        return f"{name:<12} {value}"

    library, build, isa = facts["library"], facts["build"], facts["cpu_isa"]
    devices = ", ".join(facts["torch"]["devices"]) or "no CUDA device"
    yield line("fastinv", facts["fastinv"])
    yield line("python", f"{facts['python']} on {facts['platform']}")
    cuda = f"CUDA {facts['torch']['cuda']} build" if facts["torch"]["cuda"] else "CPU build"
    yield line("torch", f"{facts['torch']['version']} ({cuda}), {facts['torch']['threads']} threads, {devices}")
    yield line("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    for name, value in facts["environment"].items():
        yield line("environment", f"{name}={value}")
    yield ""
    yield line("library", library["path"])
    yield line("  loaded", "yes" if library["loaded"] else f"no: {library['why_not']}")
    yield line("  cuda part", "loaded" if library["cuda_loaded"] else f"not loaded: {library['cuda_why_not']}")
    if build:
        torches = f"against torch {build['torch']}, for torch >= {build['torch_target']}"
        yield line("  built with", f"{build['compiler']}, {torches}")
        made = build["cuda"]
        detail = f"{made['compiler']}, architectures {made['architectures']}; {made['reason']}" if made["built"] else ""
        yield line("  cuda build", f"yes: {detail}" if made["built"] else f"no: {made['reason']}")
    if library["loaded"]:
        used = " with ".join(filter(None, (isa["in_use"], isa["bfloat16_products"])))
        yield line("cpu kernels", f"{used} in use; this machine has {', '.join(isa['available'])}")
    yield ""

    backends: dict[tuple[str, str], dict[str, list[str]]] = {}
    reasons: dict[str, list[str]] = {}
    for entry in facts["ops"]:
        backends.setdefault((entry["op"], entry["device"]), {}).setdefault(entry["backend"], []).append(entry["dtype"])
        if entry["reason"]:
            reasons.setdefault(entry["reason"], []).append(f"{entry['op']} {entry['device']} {entry['dtype']}")
    width = max(len(op) for op, _ in backends)
    yield f"{'op':<{width}} {'device':<7} {'native for':<37} reference for"
    for (op, device), dtypes in backends.items():
        native, reference = (", ".join(dtypes.get(kind, ["-"])) for kind in ("native", "ref"))
        yield f"{op:<{width}} {device:<7} {native:<37} {reference}"
    if reasons:
        yield ""
        yield "why the reference:"
    for reason, cases in reasons.items():
        yield f"  {reason}"
        yield f"    ({_summary(cases)})"
    for fallback in facts["fallbacks"]:
        where = f"{fallback['op']} on {fallback['device']}, {fallback['calls']} calls"
        yield f"in this process: {where}: {fallback['reason']}"


def _summary(cases: list[str]) -> str:
    """["a cpu float16", "a cpu float32", "b cpu float16"] -> "a, b on cpu"."""
    names = sorted({case.split()[0] for case in cases})
    devices = sorted({case.split()[1] for case in cases})
    return f"{', '.join(names)} on {', '.join(devices)}"


def main(as_json: bool = False) -> None:
    """Print the report, or the facts as JSON."""
    facts = collect()
    print(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


if __name__ == "__main__":
    main(as_json="--json" in sys.argv[1:])
