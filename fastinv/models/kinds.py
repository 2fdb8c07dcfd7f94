"""Which kind of `fastinv.ops.frozen_conv` computes each convolution of a frozen network on a CPU.

A table by shape, and a rule for shapes that it does not have; nothing is timed at run time, so that results are the
same in every process. ``python -m fastinv.models.kinds [--resolution 1024]`` times both kinds for the layers of a
network and prints rows for the table.
"""

import argparse
import itertools
import time

import torch

from fastinv import _ext
from fastinv.errors import UsageError
from fastinv.models.convolution import Form, FrozenConvolution
from fastinv.ops.frozen_conv import FrozenWeight, frozen_conv

SAME_SIZE = ("direct", "winograd")
# (instruction set, inputs, outputs, size of the map) -> kind, where the rule is wrong for float32. Empty: it is right
# for all layers of config-f on the machines where they were measured, Intel and AMD Zen 4 with AVX-512.
TABLE: dict[tuple[str, int, int, int], str] = {}


def candidates(up: int) -> list[Form]:
    """All forms of a fused layer with this up-sampling factor."""
    if up == 2:
        return [Form("up", "down")]
    return [Form(*pair) for pair in itertools.product(SAME_SIZE, SAME_SIZE)]


def choose_kind(inputs: int, outputs: int, size: int, dtype: torch.dtype) -> str:
    """The kind for a convolution that keeps the size of its [N, inputs, size, size].

    Winograd has four times fewer multiplications and four times larger weights: it needs large maps to pay for reading
    those, and many channels to pay for its transforms. At 512 channels and 16x16 it is still 1.5 times as fast, but
    that is one hundredth of a step, and its weights would be a twentieth of the memory.

    Of bfloat16 maps Winograd makes float32 products: AVX512_BF16 has twice their rate and loses (Zen 4: 1.2 to 1.5
    times the time), AMX has more.
    """
    rule = "winograd" if min(inputs, outputs) >= 32 and size >= 32 else "direct"
    if dtype != torch.float32:
        return "direct" if _ext.cpu_matrix() == "amx" else rule
    return TABLE.get((_ext.cpu_isa(), inputs, outputs, size), rule)


def choose(convolution: FrozenConvolution, size: int, override: Form | None = None) -> Form:
    """The form of a fused layer with an output of this size.

    Raises:
        UsageError: an override that is no form of such a layer.
    """
    forms = candidates(convolution.up)
    if override is not None:
        form = Form(*override)
        if form not in forms:
            dtype = str(convolution.dtype).removeprefix("torch.")
            raise UsageError(f"{tuple(form)} is no form of a fused layer with up={convolution.up} in {dtype}")
        return form
    if convolution.up == 2:
        return forms[0]
    outputs, inputs = convolution.source.shape[:2]
    return Form(*(choose_kind(*pair, size, convolution.dtype) for pair in ((inputs, outputs), (outputs, inputs))))


def measure(inputs: int, outputs: int, size: int, seconds: float = 0.5) -> dict[str, float]:
    """Shortest time of each kind, in turns, forward in float32 for one picture."""
    random = torch.Generator().manual_seed(0)
    source = torch.randn(outputs, inputs, 3, 3, generator=random)
    x = torch.randn(1, inputs, size, size, generator=random).contiguous(memory_format=torch.channels_last)
    y = torch.empty(1, outputs, size, size).contiguous(memory_format=torch.channels_last)
    weights = {kind: FrozenWeight(source, kind, torch.float32) for kind in SAME_SIZE}
    work = torch.empty(max(weight.work_bytes(1, size, size) for weight in weights.values()) + 1, dtype=torch.uint8)
    best = dict.fromkeys(SAME_SIZE, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or max(best.values()) == float("inf"):
        for kind, weight in weights.items():
            start = time.perf_counter()
            frozen_conv(x, weight, y, alpha=0.2, work=work)
            best[kind] = min(best[kind], time.perf_counter() - start)
    return best


def main() -> None:
    """Print a row for each shape of a config-f network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024)
    resolution = parser.parse_args().resolution
    isa, size = _ext.cpu_isa(), 4
    while size <= resolution:
        channels = min(512, 32768 // size)
        best = measure(channels, channels, size)
        kind = min(best, key=best.get)
        times = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in best.items())
        mark = "" if kind == choose_kind(channels, channels, size, torch.float32) else "  <- not the present choice"
        print(f'    ("{isa}", {channels}, {channels}, {size}): "{kind}",  # {times}{mark}', flush=True)
        size *= 2


if __name__ == "__main__":
    main()
