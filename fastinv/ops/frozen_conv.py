"""Convolutions with frozen 3x3 weights on a CPU, with all that stands between them: one pass a layer, forward and back.

Forward, one layer of a frozen network, from the output x of the layer before::

    u = conv(x * styles, W)                               and the FIR filter, for the kind "up"
    v = u * d + strength * noise + bias
    y = clamp(gain * max(v, alpha * v))
    picture += clamp(sum_c rgb_weight[k, c] * rgb_styles[c] * y_c + rgb_bias[k])

Backward, from du = dL/du of a layer to that of the layer before it, whose output was y::

    dnext = dL/d(y * next_styles) = adjoint of the convolution (and filter) on du
    q = sum_k rgb_weight[k] dimage[k]                     (0 where rgb was clamped)
    dy = (dnext * next_styles + q * rgb_styles) * [|y| < clamp]
    dv = dy * gain * (1 if y > 0 else alpha);  du_before = dv * d
    sums over the pixels: dnext * y, q * y, dy * y, dv * strength * noise, dv

The formulas are those of `fastinv.ops.synthesis`, whose `epilogue` and `epilogue_backward` are separate passes; here
they are the end of the convolution, done while its result is in the cache, and nothing but y is ever written to memory.
Everything is written into memory that the caller keeps: a fresh tensor of 32 MB and more costs more than filling it.
Feature maps are float32 or bfloat16, dense channels_last; all else is float32. VGG's layers are the case without
styles, d, noise and picture: alpha 0, gain 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from fastinv.errors import UsageError

from . import _dispatch
from .synthesis import SAME, SUMS, TRANSPOSED, epilogue_backward_ref, epilogue_ref, resampled_adjoint_ref, resampled_ref

# How a convolution is computed; csrc/cpu/frozen_conv.h has the twin of the codes.
KINDS = {
    "none": 0,  # no convolution: the pass after it alone
    "direct": 1,  # size kept, one multiplication for each tap
    "winograd": 2,  # size kept, F(4x4, 3x3), products in float32 also for bfloat16 maps
    "up": 3,  # size doubled: transposed convolution of stride 2, then the FIR filter
    "down": 4,  # the adjoint of "up": size halved
}


def band_rows(height: int, width: int) -> int:
    """Rows of the result whose sums are added up together; csrc/cpu/tail.h has the twin. Shapes alone decide, so that
    results do not depend on the number of threads.
    """
    return max(4, min(-(-height // 4), 64 // max(1, width)) * 4)


def bands(height: int, width: int) -> int:
    """Number of partial sums per sample and channel, of a result of this size."""
    return max(1, -(-height // band_rows(height, width)))


@dataclass
class FrozenWeight:
    """The weight of a frozen convolution, laid out once for the kernels of this machine.

    Args:
        source: [O, I, 3, 3]. Kinds "direct", "winograd": of ``F.conv2d(x, source, padding=1)``; "down": of
            ``F.conv2d(x, source, stride=2)``; "up": of ``F.conv_transpose2d(x, source.transpose(0, 1), stride=2)``.
        kind: a name in ``KINDS`` other than "none".
        dtype: of the feature maps.
        taps: for "up" and "down" the four taps of the separable FIR filter with its gain (2 per axis) as a correlation,
            in the order that "up" needs; "down" is the adjoint with the same taps.
    """

    source: torch.Tensor
    kind: str
    dtype: torch.dtype
    taps: tuple[float, ...] = ()
    packed: torch.Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.kind not in KINDS or self.kind == "none":
            raise UsageError(f"a frozen convolution is one of {', '.join(list(KINDS)[1:])}, not {self.kind!r}")
        if self.source.ndim != 4 or self.source.shape[2:] != (3, 3):
            raise UsageError(f"a frozen convolution has a weight [O, I, 3, 3], not {list(self.source.shape)}")
        self.source = self.source.detach()
        if not self.obstacle():
            self.packed = torch.ops.fastinv.frozen_conv_pack(
                self.source.float().contiguous(), KINDS[self.kind], self.dtype
            )

    @property
    def outputs(self) -> int:
        return self.source.shape[0]

    @property
    def inputs(self) -> int:
        return self.source.shape[1]

    def obstacle(self) -> str:
        """Why there is no kernel of this kind on this machine; "" if there is."""
        return obstacle(self.dtype, self.source.device.type)

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the result from those of the input."""
        if self.kind == "up":
            return 2 * height, 2 * width
        return (height // 2, width // 2) if self.kind == "down" else (height, width)

    def work_bytes(self, n: int, height: int, width: int) -> int:
        """Bytes of work memory for an input [n, I, height, width] with the present number of threads."""
        if self.packed is None:
            return 0
        return torch.ops.fastinv.frozen_conv_work(
            KINDS[self.kind], self.dtype, n, self.inputs, self.outputs, height, width
        )


def obstacle(dtype: torch.dtype, device_type: str = "cpu") -> str:
    """Why feature maps of this dtype have no kernels here; "" if they have."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the frozen convolutions take float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    reason = _dispatch.obstacle("frozen_conv", device_type, dtype)
    if not reason and dtype == torch.bfloat16 and not torch.ops.fastinv.cpu_matrix():
        return "this CPU has no bfloat16 arithmetic (AVX512_BF16 or AMX)"
    return reason


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def convolved_ref(x, weight: FrozenWeight | None, styles=None):
    """u: the convolution of x * styles (rounded to the dtype of x), with its filter, in float32 at least."""
    if weight is None:
        return _wide(x)
    if styles is not None:
        x = (_wide(x) * _wide(styles)[:, :, None, None]).to(x.dtype)
    x, source = _wide(x), weight.source.to(x.dtype)
    source = source.to(x.dtype)
    if weight.kind == "up":
        return resampled_ref(F.conv_transpose2d(x, source.transpose(0, 1), stride=2), weight.taps, TRANSPOSED)
    if weight.kind == "down":
        g = resampled_adjoint_ref(x, weight.taps, TRANSPOSED).to(weight.dtype)  # rounded, as it is multiplied so
        return F.conv2d(g.to(x.dtype), source, stride=2)
    return F.conv2d(x, source, padding=1)


def frozen_conv_ref(
    x, weight, y, styles=None, d=None, noise=None, strength=1.0, bias=None, rgb_weight=None, rgb_styles=None,
    rgb_bias=None, picture=None, rgb=None, alpha=1.0, gain=1.0, clamp=-1.0, rgb_clamp=-1.0, work=None,
):  # fmt: skip
    """`frozen_conv` in plain torch."""
    u = convolved_ref(x, weight, styles)
    result, _, added, clamped = epilogue_ref(
        u, d, noise, strength, bias, None, rgb_weight, rgb_styles, rgb_bias, None, (), SAME, alpha, gain, clamp,
        rgb_clamp,
    )  # fmt: skip
    y.copy_(result)
    if rgb_weight is not None:
        if y.dtype != result.dtype:  # toRGB sees the rounded y
            _, _, added, clamped = epilogue_ref(
                _wide(y), None, None, 1.0, None, None, rgb_weight, rgb_styles, rgb_bias, None, (), SAME, 1.0, 1.0, -1.0,
                rgb_clamp,
            )  # fmt: skip
        picture += added
        if rgb_clamp >= 0:
            rgb.copy_(clamped)


def frozen_conv(
    x, weight, y, styles=None, d=None, noise=None, strength=1.0, bias=None, rgb_weight=None, rgb_styles=None,
    rgb_bias=None, picture=None, rgb=None, alpha=1.0, gain=1.0, clamp=-1.0, rgb_clamp=-1.0, work=None, impl="auto",
):  # fmt: skip
    """One layer forward, written into y; the formula is at the head of this file.

    Args:
        x: [N, I, h, w], or [1, I, h, w] for one input of all samples (then y says N).
        weight: a `FrozenWeight`; None for no convolution (then y may be x itself).
        y: [N, O, H, W], is overwritten.
        styles: [N, I] or None for 1; not for the kind "down", which is the adjoint of a layer.
        d: [N, O] or None for 1.  noise: [1 or N, 1, H, W] or None; strength its factor.  bias: [O] or None.
        rgb_weight, rgb_styles, rgb_bias: [3, O], [N, O], [3], or all None for a layer without a picture.
        picture: [N, 3, H, W], contiguous, is added to.  rgb: likewise, overwritten with this layer's clamped part; for
            ``rgb_clamp >= 0``.
        alpha, gain: slope below zero and factor of the activation.  clamp, rgb_clamp: bounds; negative for none.
        work: uint8 tensor of at least ``weight.work_bytes(...)``; None makes one.
        impl: "auto", "native" or "ref".
    """
    arguments = (
        styles, d, noise, strength, bias, rgb_weight, rgb_styles, rgb_bias, picture, rgb, alpha, gain, clamp, rgb_clamp,
        work,
    )  # fmt: skip
    if _dispatch.choose("frozen_conv", impl, x, _check(x.dtype, weight)) == "ref":
        return frozen_conv_ref(x, weight, y, *arguments)
    kind, packed, taps = _operands(weight)
    torch.ops.fastinv.frozen_conv(x, packed, kind, taps, y, *arguments)


def frozen_conv_backward_ref(
    du, weight, y, du_before, sums=None, dimage=None, rgb=None, d=None, noise=None, strength=1.0, next_styles=None,
    rgb_weight=None, rgb_styles=None, dnoise=None, alpha=1.0, gain=1.0, clamp=-1.0, rgb_clamp=-1.0, work=None,
):  # fmt: skip
    """`frozen_conv_backward` in plain torch."""
    dnext = None if du is None else convolved_ref(du, weight)
    if y is None:
        du_before.copy_(dnext)
        return
    n = len(next(operand for operand in (dnext, dimage, y) if operand is not None))
    result, parts, map_gradient = epilogue_backward_ref(
        dnext, dimage, _wide(y).expand(n, -1, -1, -1), rgb, d, noise, strength,
        next_styles, rgb_weight, rgb_styles, (), SAME, alpha, gain, clamp, rgb_clamp, dnoise is not None,
    )  # fmt: skip
    if du_before is not None:
        du_before.copy_(result)
    if sums is not None:
        sums.zero_()
        sums[:, 0] = parts[:, 0]
    if dnoise is not None:
        dnoise.copy_(map_gradient)


def frozen_conv_backward(
    du, weight, y, du_before, sums=None, dimage=None, rgb=None, d=None, noise=None, strength=1.0, next_styles=None,
    rgb_weight=None, rgb_styles=None, dnoise=None, alpha=1.0, gain=1.0, clamp=-1.0, rgb_clamp=-1.0, work=None,
    impl="auto",
):  # fmt: skip
    """One layer backward: the convolution's adjoint, then the adjoint of all that the layer before did after its own.

    Args:
        du: [N, I, h, w], this layer's gradient; None after the last layer (then only dimage counts).
        weight: `FrozenWeight` of the adjoint: "direct" or "winograd" with ``w.flip(2, 3).transpose(0, 1)`` of the
            layer's weight w, "down" with ``w.transpose(0, 1)``; None where du is None,
            and where du itself is dnext (no convolution; then du_before may be du).
        y: [N or 1, O, H, W], output of the layer before; None stores dnext itself in du_before.
        du_before: [N, O, H, W], is overwritten; None where only the sums are wanted.
        sums: [N, ``bands(H, W)``, 5, O], is overwritten with parts to be added up; None where they are not wanted.
        dimage: [N, 3, H, W] or None.  rgb: what `frozen_conv` left, where ``rgb_clamp >= 0``.
        d, noise, strength, alpha, gain, clamp, rgb_*: of the layer before.
        next_styles: [N, O], the styles that multiplied y on its way into this layer, or None for 1.
        dnoise: [N, 1, H, W], is overwritten, or None.
        work, impl: as for `frozen_conv`.
    """
    arguments = (
        sums, dimage, rgb, d, noise, strength, next_styles, rgb_weight, rgb_styles, dnoise, alpha, gain, clamp,
        rgb_clamp, work,
    )  # fmt: skip
    leading = y if du is None else du
    if _dispatch.choose("frozen_conv", impl, leading, _check(leading.dtype, weight)) == "ref":
        return frozen_conv_backward_ref(du, weight, y, du_before, *arguments)
    kind, packed, taps = _operands(weight)
    torch.ops.fastinv.frozen_conv_backward(du, packed, kind, taps, y, du_before, *arguments)


def _check(dtype: torch.dtype, weight: FrozenWeight | None) -> tuple[bool, str]:
    reason = obstacle(dtype) if weight is None else weight.obstacle()
    return not reason, reason


def _operands(weight: FrozenWeight | None):
    if weight is None:
        return KINDS["none"], None, []
    return KINDS[weight.kind], weight.packed, list(weight.taps)


assert SUMS == 5
