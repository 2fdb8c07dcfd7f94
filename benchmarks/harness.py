"""What the benchmarks share: timing, a measured copy to compare with, facts about the machine, tables, result files."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastinv import _ext
from fastinv.files import atomic_file
from fastinv.models.convolution import PAUSE

ROOT = Path(__file__).parent.parent


def _first_line(*command: str) -> str:
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip().splitlines()[0] if found.returncode == 0 and found.stdout.strip() else ""


def facts(device: torch.device) -> dict:
    """Where and with what something was measured."""
    result = {
        "torch": torch.__version__,
        # A copy of the tree may come without .git; then the variable says what it is.
        "commit": os.environ.get("FASTINV_COMMIT") or _first_line("git", "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "native": _ext.why_not() or "loaded",
        "native_cuda": _ext.cuda_why_not() or "loaded",
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", str(device.index or 0))
        result |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "driver": _first_line(*query),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            "tf32": {
                "convolutions": torch.backends.cudnn.allow_tf32, "matrices": torch.backends.cuda.matmul.allow_tf32,
            },
        }  # fmt: skip
    else:
        cpu = [line for line in _cpuinfo() if line.startswith("model name")]
        result |= {"cpu": cpu[0].partition(":")[2].strip() if cpu else platform.processor(), "isa": _ext.cpu_isa()}
        result["threads"] = torch.get_num_threads()
        result["bfloat16"] = torch.ops.fastinv.cpu_matrix() if _ext.available() else ""
    return result


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def wait(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    function: Callable, device: torch.device, repeats: int = 20, warm_up: int = 3, behind: bool = False
) -> float:
    """Median time of one call, on the device's own clock where it has one.

    On a GPU the calls are queued one after the other, so that the host's share only counts where it is the slower one;
    with ``behind`` they are queued behind a pause of the device, so that it does not count at all.
    """
    for _ in range(warm_up):
        function()
    wait(device)
    if device.type == "cuda":
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        if behind:
            torch.cuda._sleep(PAUSE)
        events[0].record()
        for event in events[1:]:
            function()
            event.record()
        wait(device)
        return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:])) / 1e3
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def interleaved(functions: dict, rounds: int = 5, budget: float = 0.0, warm_up: int = 1) -> dict:
    """Seconds of each call, name -> list: the functions take turns, so that all are disturbed alike. For the CPU.

    Args:
        functions: name -> function without arguments.
        rounds: at least so many turns each.
        budget: go on with further turns until so many seconds are over.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    times, started = {name: [] for name in functions}, time.perf_counter()
    while rounds > 0 or time.perf_counter() - started < budget:
        rounds -= 1
        for name, function in functions.items():
            before = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - before)
    return times


def rotating(make: Callable[[], tuple], function: Callable, bytes_each: int, cache: int = 120 << 20) -> Callable:
    """function called on sets of operands in turn, so many (at most 16) that a cache of this size keeps none."""
    sets = [make() for _ in range(max(1, min(16, -(-cache // max(1, bytes_each)))))]
    turn = [0]

    def call():
        turn[0] = (turn[0] + 1) % len(sets)
        return function(*sets[turn[0]])

    return call


def captured(function: Callable, device: torch.device) -> Callable:
    """The work of function as a CUDA graph's replay, so that launches cost what they cost in a captured step; on other
    devices the function itself. Its operands must stay where they are.
    """
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        function()
    return graph.replay


def seconds_in_graph(function: Callable, device: torch.device, repeats: int, calls: int = 16) -> float:
    """Median time of one call among several in a CUDA graph: what a kernel costs in a recorded step."""

    def several():
        for _ in range(calls):
            function()

    return seconds(captured(several, device), device, repeats) / calls


def copy_bandwidth(size: int, device: torch.device, repeats: int = 20) -> float:
    """Bytes per second, read and written, of copying `size` bytes from one buffer to another."""

    def make():
        source = torch.randint(256, (max(1, size),), dtype=torch.uint8, device=device)
        return source, torch.empty_like(source)

    call = rotating(make, lambda source, target: target.copy_(source), 2 * size)
    return 2 * size / seconds_in_graph(call, device, repeats)


def relative_error(actual: torch.Tensor, truth: torch.Tensor) -> float:
    """||actual - truth|| / ||truth|| in float64; NaN stays NaN."""
    truth = truth.double()
    return float((actual.to(truth) - truth).norm() / truth.norm().clamp_min(1e-300))


def write(path: Path, data) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        Path(temporary).write_text(json.dumps(data, indent=1) + "\n")


class Rows(list):
    """Rows of a result; every few seconds ``keep`` is called with those there are, so that a stop costs few."""

    def __init__(self, keep: Callable, interval: float = 3.0):
        super().__init__()
        self.keep, self.interval, self.kept_at = keep, interval, time.monotonic()

    def append(self, row: dict) -> None:
        super().append(row)
        if time.monotonic() - self.kept_at > self.interval:
            self.keep({"rows": list(self)})
            self.kept_at = time.monotonic()


def markdown(rows: list[dict], columns: list[str] | None = None) -> str:
    """A Markdown table of rows; floats with three significant digits."""
    if not rows:
        return "(nothing measured)\n"
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))

    def cell(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"
