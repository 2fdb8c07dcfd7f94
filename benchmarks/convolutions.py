"""The convolution table: every layer shape of config-f, in every form, dtype and batch size.

    python benchmarks/convolutions.py [--device cuda] [--quick] [--out FILE]

A row is a layer with the passes around it, forward and gradient, see `fastinv.models.convolution`. The fastest form of
each is what a prepared generator takes; ``share`` is the part of the device's matrix rate in the same dtype that its
convolutions reach (float32 is TF32 in both).
"""

import math
from functools import partial

import torch
from harness import Rows, markdown, seconds

from fastinv.models.convolution import FORMS, FrozenConvolution, candidates

TAPS = (0.25, 0.75, 0.75, 0.25)


def layers(resolution: int, base: int, largest: int):
    """(name, inputs, outputs, input size, up) of config-f's layers up to a resolution."""
    channels = {2**e: min(base // 2**e, largest) for e in range(2, 12)}
    yield "b4.conv1", channels[4], channels[4], 4, 1
    r = 8
    while r <= resolution:
        yield f"b{r}.conv0", channels[r // 2], channels[r], r // 2, 2
        yield f"b{r}.conv1", channels[r], channels[r], r, 1
        r *= 2


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations per second of a matrix product of this size on random data, with TF32 where convolutions have it."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        return 2 * size**3 / seconds(lambda: a @ b, device, repeats=10)
    finally:
        matmul.allow_tf32 = before


def run(device: torch.device, scale, keep) -> dict:
    """Measures; scale is `gpu_check.Scale`, keep is called with what there is so far."""
    rows, rates = Rows(keep), {}
    for dtype, n in scale.convolutions:
        kind = str(dtype).removeprefix("torch.")
        rates[kind] = rates.get(kind) or matrix_rate(device, dtype, scale.matrix)
        for name, inputs, outputs, size, up in layers(scale.resolution, scale.channel_base, scale.channel_max):
            weight = torch.randn(outputs, inputs, 3, 3, device=device) / (3 * inputs**0.5)
            layer = FrozenConvolution(weight, up, TAPS, dtype)
            x = torch.randn(n, inputs, size, size, device=device, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            timed = FORMS.measure(layer, x, scale.repeats)
            operations = 2 * 2 * 9 * inputs * outputs * n * size**2  # forward and gradient, as few as there can be
            for form in candidates(up):
                row = {
                    "layer": name, "dtype": kind, "batch": n, "forward": form.forward, "gradient": form.gradient,
                    "layer_us": timed[form] * 1e6, "fastest": form == min(timed, key=timed.get),
                }  # fmt: skip
                if timed[form] < math.inf:
                    u = layer.forward(x, form)
                    alone = seconds(partial(layer.forward, x, form), device, scale.repeats, 1, behind=True)
                    alone += seconds(partial(layer.gradient, u, form), device, scale.repeats, 1, behind=True)
                    row |= {"convolutions_us": alone * 1e6, "share": operations / alone / rates[kind]}
                rows.append(row)
    return {"rows": rows, "matrix_rate": rates}


def table(result: dict) -> str:
    """The fastest form of each layer, dtype and batch size."""
    return markdown([row for row in result["rows"] if row["fastest"]])


if __name__ == "__main__":
    from gpu_check import main_of_part

    main_of_part("convolutions", __doc__)
