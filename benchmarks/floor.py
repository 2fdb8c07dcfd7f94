"""The bare-convolution floor of one optimisation step: every 3x3 convolution of config-f, forward and input gradient,
as torch's library (oneDNN) computes it at its best, and nothing else.

Each convolution is run in every form that torch has for it (channels_last; with weights as they are or packed
beforehand; a transposed convolution whole, or as the convolutions of its four phases), and the fastest one counts.
"""

from functools import partial

import torch
import torch.nn.functional as F
from convolutions import layers
from harness import interleaved

from fastinv.models.convolution import phase_weight

PHASES = ((0, 0, 2, 2), (0, 1, 2, 1), (1, 0, 1, 2), (1, 1, 1, 1))  # phase, and its taps in height and width


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _packed(x, weight, padding, stride):
    """A convolution with weights in oneDNN's own layout. These operators are private to torch: for a yardstick only."""
    fixed = list(padding), list(stride), [1, 1], 1
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *fixed, list(x.shape))
    return partial(torch.ops.mkldnn._convolution_pointwise, x, packed, None, *fixed, "none", [], "")


def forwards(x, weight, up: int):
    """Functions that each compute one layer's convolution; weight is [O, I, 3, 3]."""
    if up == 1:
        yield partial(F.conv2d, x, _last(weight), padding=1)
        yield _packed(x, weight, (1, 1), (1, 1))
        return
    yield partial(F.conv_transpose2d, x, _last(weight.transpose(0, 1)), stride=2)
    phases = phase_weight(weight)
    yield partial(F.conv2d, x, _last(phases), padding=1)
    outputs = len(weight)
    parts = [phases[i * outputs : (i + 1) * outputs] for i in range(4)]
    for make in (lambda w, p: partial(F.conv2d, x, _last(w), padding=p), lambda w, p: _packed(x, w, p, (1, 1))):
        calls = [
            make(part[:, :, 2 - height :, 2 - width :].contiguous(), (height - 1, width - 1))
            for part, (_, _, height, width) in zip(parts, PHASES, strict=True)
        ]
        yield lambda calls=calls: [call() for call in calls]


def gradients(du, weight, up: int):
    """Functions that each compute the gradient of the layer's input from that of its convolution's result."""
    if up == 2:
        w = weight.transpose(0, 1)
        yield partial(F.conv2d, du, _last(w), stride=2)
        yield _packed(du, w.contiguous(), (0, 0), (2, 2))
        return
    flipped = weight.flip(2, 3).transpose(0, 1).contiguous()
    yield partial(F.conv_transpose2d, du, _last(weight), padding=1)
    yield partial(F.conv2d, du, _last(flipped), padding=1)
    yield _packed(du, flipped, (1, 1), (1, 1))


class Floor:
    """The fastest form of every convolution of a network; ``run`` computes them all once."""

    def __init__(self, resolution: int, n: int, dtype: torch.dtype, base: int = 32768, largest: int = 512):
        self.calls, self.operations = [], 0
        for _, inputs, outputs, size, up in layers(resolution, base, largest):
            weight = (torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)).to(dtype)
            x = _last(torch.randn(n, inputs, size, size).to(dtype))
            wide = size if up == 1 else 2 * size + 1
            du = _last(torch.randn(n, outputs, wide, wide).to(dtype))
            self.operations += 2 * 2 * 9 * inputs * outputs * n * size**2
            for candidates in (list(forwards(x, weight, up)), list(gradients(du, weight, up))):
                times = interleaved(dict(enumerate(candidates)), rounds=5)
                self.calls.append(candidates[min(times, key=lambda index: min(times[index]))])

    @torch.no_grad()
    def run(self) -> None:
        for call in self.calls:
            call()
