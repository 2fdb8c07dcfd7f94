"""The passes around convolutions on a CPU, against the memory limit: torch's in-place ``mul_`` on a map of that size.

    python benchmarks/passes.py [--budget 5] [--out FILE]

The limit of a pass is the bytes it must move (each operand read once, each result written once) at the speed at which
``mul_`` moves its own, measured in turn with the pass, on memory that is kept (a fresh block of 32 MB and more is
mapped anew by the system, which takes longer than filling it); ``times limit`` is the pass over that. Random data,
medians.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from harness import facts, interleaved, markdown, write

from fastinv.ops import setup_filter, upfirdn2d
from fastinv.ops.frozen_conv import bands, frozen_conv, frozen_conv_backward

MAPS = ((512, 64), (128, 256), (64, 512), (32, 1024))  # (channels, size) of config-f
GAIN = 2**0.5


def _map(channels: int, size: int, dtype: torch.dtype, channels_last: bool = True) -> torch.Tensor:
    x = torch.randn(1, channels, size, size).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def cases(channels: int, size: int, dtype: torch.dtype):
    """(name, bytes it must move, function) of every pass on maps [1, channels, size, size]."""
    x, gradient, y = (_map(channels, size, dtype) for _ in range(3))
    each, item = x.numel() * x.element_size(), x.element_size()
    d, bias = torch.rand(1, channels) + 0.5, torch.randn(channels)
    noise = torch.randn(1, 1, size, size)
    sums = torch.empty(1, bands(size, size), 5, channels)
    settings = {"d": d, "noise": noise, "strength": 0.1, "alpha": 0.2, "gain": GAIN}
    bounded = settings | {"bias": bias, "clamp": 256.0}  # in place it is fed with its own results
    yield "epilogue", 2 * each, lambda: frozen_conv(x, None, y, **bounded)
    yield "epilogue, in place", 2 * each, lambda: frozen_conv(x, None, x, **bounded)
    yield "epilogue backward", 3 * each, lambda: frozen_conv_backward(gradient, None, y, x, sums, **settings)
    steady = settings | {"d": torch.ones(1, channels), "alpha": 1.0, "gain": 1.0}  # or it would die out round by round
    yield (
        "epilogue backward, in place", 3 * each,
        lambda: frozen_conv_backward(gradient, None, y, gradient, sums, **steady),
    )  # fmt: skip
    f = setup_filter([1, 3, 3, 1])
    for layout, last in (("NHWC", True), ("NCHW", False)):
        for name, up, down, padding in (("4x4", 1, 1, (2, 1, 2, 1)), ("up 2", 2, 1, (2, 1, 2, 1)), ("down 2", 1, 2, 1)):
            source = _map(channels, size // up, dtype, last)
            target = _map(channels, size // down, dtype, last)
            moved = item * (source.numel() + target.numel())
            yield (
                f"upfirdn2d {name} {layout}", moved,
                lambda s=source, t=target, u=up, w=down, p=padding: upfirdn2d(s, f, up=u, down=w, padding=p, out=t),
            )  # fmt: skip


def run(budget: float = 5.0) -> dict:
    """Measures every pass for about `budget` seconds a size and dtype."""
    rows = []
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            for channels, size in MAPS:
                kept = _map(channels, size, dtype)
                found = list(cases(channels, size, dtype))
                functions = {name: function for name, _, function in found} | {"mul_": partial(kept.mul_, 1.0001)}
                times = interleaved(functions, rounds=7, budget=budget, warm_up=2)
                speed = 2 * kept.numel() * kept.element_size() / statistics.median(times["mul_"])
                for name, moved, _ in found:
                    seconds = statistics.median(times[name])
                    rows.append(
                        {
                            "pass": name, "channels": channels, "size": size,
                            "dtype": str(dtype).removeprefix("torch."), "ms": 1e3 * seconds,
                            "GB/s of mul_": speed / 1e9, "times limit": seconds * speed / moved,
                        }
                    )  # fmt: skip
    return {"rows": rows, "facts": facts(torch.device("cpu"))}


def table(result: dict) -> str:
    """A row per pass and dtype, a column per size."""
    rows: dict[tuple, dict] = {}
    for row in result["rows"]:
        at = rows.setdefault((row["pass"], row["dtype"]), {"pass": row["pass"], "dtype": row["dtype"]})
        at[f"{row['channels']} @ {row['size']}"] = row["times limit"]
    return markdown(list(rows.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds a size and dtype")
    parser.add_argument("--out", type=Path, help="JSON file of the result")
    options = parser.parse_args()
    result = run(options.budget)
    if options.out:
        write(options.out, result)
    print(table(result))
