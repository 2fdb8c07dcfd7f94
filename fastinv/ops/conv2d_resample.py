"""2-D convolution with optional up- or down-sampling by a FIR filter."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import UsageError
from . import _dispatch, _layout
from .upfirdn2d import filter_size, parse_padding, upfirdn2d_ref

OP = "conv2d_resample"


def conv2d_resample(
    x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False, impl="auto"
):  # fmt: skip
    """Convolve, and up-sample before or down-sample after with a FIR filter; differentiable any number of times.

    Args:
        x: [N, C, H, W], any floating dtype.
        w: weights [out, C / groups, height, width]; taken in the dtype of x.
        f: float32 filter from `setup_filter`, used where ``up`` or ``down`` is above 1; None is the identity.
        up, down: integer factors. The result keeps its magnitude (up-sampling has a gain of up * up).
        padding: pixels on the up-sampled picture: one, (x, y) or (x_before, x_after, y_before, y_after); negative
            crops. Give kernel // 2 to keep the size; the filter's own width is taken care of.
        groups: the channels are split into this many independent convolutions.
        flip_weight: True is correlation, as torch.nn.functional.conv2d; False is convolution.
        flip_filter: False is convolution with f, True is correlation.
        impl: "auto", "native" (an error says why if it cannot) or "ref".

    Returns:
        [N, out, (H * up + y pads - height + 1) // down, (W * up + x pads - width + 1) // down] in the dtype of x, or
        of autocast where that is on. UsageError for arguments that do not fit together.
    """
    check_conv(OP, x, w, f, up, down, groups, padding)
    x = autocast_input(x)
    if _dispatch.choose(OP, impl, x, *native_checks(x, w, f)) == "ref":
        return conv2d_resample_ref(x, w, f, up, down, padding, groups, flip_weight, flip_filter)
    padding = list(parse_padding(OP, padding))
    if f is not None and up == 1 < down and torch.is_grad_enabled() and (x.requires_grad or w.requires_grad):
        # An op of its own, whose result is kept for the gradient of w instead of being made again.
        steps = plan(f, w.shape[2:], up, down, padding)
        (fir,) = steps.before
        x = _fir(x, f, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
        f, down = None, steps.stride
        padding = [-((2 - down) // 2), -((1 - down) // 2)] * 2  # what a plan without filter takes off again
    return torch.ops.fastinv.conv2d_resample(x, w.to(x.dtype), f, up, down, padding, groups, flip_weight, flip_filter)


def conv2d_resample_ref(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    """`conv2d_resample` in plain PyTorch."""
    check_conv(OP, x, w, f, up, down, groups, padding)
    steps = plan(f, w.shape[2:], up, down, padding)
    x = autocast_input(x)
    for fir in steps.before:
        x = upfirdn2d_ref(x, f if fir.filtered else None, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
    w = torch_weight(w.to(x.dtype), steps, groups, flip_weight)
    convolution = F.conv_transpose2d if steps.transposed else F.conv2d
    x = convolution(x, w, stride=steps.stride, padding=steps.crop, groups=groups)
    for fir in steps.after:
        x = upfirdn2d_ref(x, f if fir.filtered else None, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
    return x


class Fir(NamedTuple):
    """One call of upfirdn2d: with the filter, or (``filtered`` False) without it, only to pad or crop."""

    filtered: bool = True
    up: int = 1
    down: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    gain: float = 1.0


class Plan(NamedTuple):
    """FIRs, then the convolution, then FIRs. ``crop`` is the convolution's padding (y, x).

    The padding of a transposed convolution cuts the edges of its result. csrc/cpu/conv2d_resample.cpp has the twin.
    """

    before: list[Fir]
    transposed: bool
    stride: int
    crop: tuple[int, int]
    after: list[Fir]


def plan(f, kernel, up: int, down: int, padding) -> Plan:
    """Cheapest order of filtering and convolution; the zero-stuffed tensor is never built.

    Convolution and FIR commute, so up-sampling is a transposed convolution followed by the FIR, and down-sampling is
    the FIR followed by a strided convolution. A 1x1 kernel works on whichever side is smaller.
    """
    kernel_y, kernel_x = kernel
    width, height = filter_size(OP, f)
    x0, x1, y0, y1 = parse_padding(OP, padding)
    if up > 1:  # a centred filter adds its width - 1 to the padding, split as in upsample2d
        x0, x1 = x0 + (width + up - 1) // 2, x1 + (width - up) // 2
        y0, y1 = y0 + (height + up - 1) // 2, y1 + (height - up) // 2
    if down > 1:  # and as in downsample2d
        x0, x1 = x0 + (width - down + 1) // 2, x1 + (width - down) // 2
        y0, y1 = y0 + (height - down + 1) // 2, y1 + (height - down) // 2
    pad = (x0, x1, y0, y1)
    pointwise = kernel_y == kernel_x == 1

    if up > 1:
        gain = float(up * up)
        decimate = [Fir(down=down)] if down > 1 else []
        if pointwise:
            return Plan([], False, 1, (0, 0), [Fir(up=up, padding=pad, gain=gain), *decimate])
        # The transposed convolution is the full one less its up - 1 trailing zeros: give up the kernel - 1 rows and
        # columns it has too many, by its own padding as far as both edges have them.
        x0, x1, y0, y1 = x0 - kernel_x + 1, x1 - kernel_x + up, y0 - kernel_y + 1, y1 - kernel_y + up
        crop_x, crop_y = max(0, min(-x0, -x1)), max(0, min(-y0, -y1))
        pad = (x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y)
        return Plan([], True, up, (crop_y, crop_x), [Fir(padding=pad, gain=gain), *decimate])
    if down > 1:
        if pointwise:
            return Plan([Fir(down=down, padding=pad)], False, 1, (0, 0), [])
        before = [] if f is None and not any(pad) else [Fir(padding=pad)]
        return Plan(before, False, down, (0, 0), [])
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return Plan([], False, 1, (y0, x0), [])
    return Plan([Fir(filtered=False, padding=pad)], False, 1, (0, 0), [])


def torch_weight(w, steps: Plan, groups: int, flip_weight: bool) -> torch.Tensor:
    """The weight as torch's operators take it: they correlate, or do the adjoint of that, which convolves."""
    w = _swap_channels(w, groups) if steps.transposed else w
    return w.flip(2, 3) if flip_weight == steps.transposed else w


def _swap_channels(w, groups: int) -> torch.Tensor:
    """[out, in / groups, height, width] <-> [in, out / groups, height, width]."""
    if groups == 1:
        return w.transpose(0, 1)
    rows, columns, *kernel = w.shape
    w = w.reshape(groups, rows // groups, columns, *kernel).transpose(1, 2)
    return w.reshape(groups * columns, rows // groups, *kernel)


def composed_resample(x, w, f, up, down, padding, groups, flip_weight, flip_filter) -> torch.Tensor:
    """The native op, made of native FIRs and torch's convolution: its kernel on CUDA. Runs on any device."""
    memory_format = _layout.memory_format(x)
    steps = plan(f, w.shape[2:], up, down, padding)
    x = x.contiguous(memory_format=memory_format)
    for fir in steps.before:
        x = _fir(x, f if fir.filtered else None, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
    x = torch.ops.aten.convolution(
        x, torch_weight(w.to(x.dtype), steps, groups, flip_weight), None, [steps.stride] * 2, list(steps.crop), [1, 1],
        steps.transposed, [0, 0], groups,
    ).contiguous(memory_format=memory_format)  # fmt: skip
    for fir in steps.after:
        x = _fir(x, f if fir.filtered else None, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
    return x.contiguous(memory_format=memory_format)


def resample_gradients(dy, x, w, f, steps: Plan, groups, flip_weight, flip_filter, need_x=True, need_w=True):
    """Gradients of the native op with respect to x and w (None where not needed), made of differentiable ops."""
    if not need_x and not need_w:
        return None, None
    before = [x.shape[2:]]
    for fir in steps.before:
        x = _fir(x, f if fir.filtered else None, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
        before.append(x.shape[2:])
    axes = list(zip(x.shape[2:], steps.crop, w.shape[2:], strict=True))
    after = [[(n + 2 * crop - k) // steps.stride + 1 for n, crop, k in axes]]
    if steps.transposed:
        after = [[(n - 1) * steps.stride + k - 2 * crop for n, crop, k in axes]]
    for fir in steps.after:
        after.append([_fir_size(axis, after[-1][axis], f, fir) for axis in (0, 1)])

    for fir, size in zip(reversed(steps.after), reversed(after[:-1]), strict=True):
        dy = _fir_adjoint(dy, size, f, fir, flip_filter)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, torch_weight(w, steps, groups, flip_weight), None, [steps.stride] * 2, list(steps.crop), [1, 1],
        steps.transposed, [0, 0], groups, [need_x, need_w, False],
    )  # fmt: skip
    if need_x:
        for fir, size in zip(reversed(steps.before), reversed(before[:-1]), strict=True):
            dx = _fir_adjoint(dx, size, f, fir, flip_filter)
    if need_w:
        dw = dw.flip(2, 3) if flip_weight == steps.transposed else dw
        dw = _swap_channels(dw, groups) if steps.transposed else dw
    return dx if need_x else None, dw if need_w else None


def _fir_size(axis: int, size: int, f, fir: Fir) -> int:
    taps = filter_size(OP, f if fir.filtered else None)[1 - axis]
    x0, x1, y0, y1 = fir.padding
    return (size * fir.up + (x0 + x1 if axis else y0 + y1) - taps) // fir.down + 1


def _fir_adjoint(dy, size, f, fir: Fir, flip_filter: bool) -> torch.Tensor:
    """Gradient of a FIR with respect to its input of the given (height, width): up and down swapped, filter flipped."""
    width, height = filter_size(OP, f if fir.filtered else None)
    x0, _, y0, _ = fir.padding
    x1 = size[1] * fir.up - dy.shape[3] * fir.down + x0 - fir.up + 1
    y1 = size[0] * fir.up - dy.shape[2] * fir.down + y0 - fir.up + 1
    padding = (width - 1 - x0, x1, height - 1 - y0, y1)
    return _fir(dy, f if fir.filtered else None, fir.down, fir.up, padding, not flip_filter, fir.gain)


def _fir(x, f, up: int, down: int, padding, flip_filter: bool, gain: float) -> torch.Tensor:
    """The native op itself: under torch.compile the paddings may be symbols, which the public function would refuse."""
    f = torch.ones([1, 1], dtype=torch.float32, device=x.device) if f is None else f
    return torch.ops.fastinv.upfirdn2d(x, f, up, up, down, down, *padding, flip_filter, gain)


def output_size(size: int, kernel: int, up: int, down: int, before: int, after: int) -> int:
    """Rows (or columns) that come out along one axis. The filter's width does not matter, for it is centred."""
    return (size * up + before + after - kernel + 1) // down


def output_shape(x, w, up: int, down: int, padding) -> list[int]:
    """[N, out, H', W'] of the op."""
    x0, x1, y0, y1 = parse_padding(OP, padding)
    height = output_size(x.shape[2], w.shape[2], up, down, y0, y1)
    return [x.shape[0], w.shape[0], height, output_size(x.shape[3], w.shape[3], up, down, x0, x1)]


def autocast_input(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that autocast asks convolutions to run in; x itself without autocast (or for float64)."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def native_checks(x, w, f) -> list[tuple[bool, str]]:
    """What the native ops of this family ask for beyond a dtype that they know."""
    return [
        (w.dtype in (x.dtype, torch.float32), f"the weight is {w.dtype} while x is {x.dtype}"),
        (f is None or not f.requires_grad, "the filter needs a gradient"),
    ]


def check_conv(name: str, x, w, f, up: int, down: int, groups: int, padding) -> None:
    """One clear line for arguments that cannot be convolved."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"{name}: x must be a floating-point tensor [N, C, H, W], got {_describe(x)}")
    if not isinstance(w, torch.Tensor) or w.ndim != 4 or not w.is_floating_point():
        raise UsageError(f"{name}: the weight must be a tensor [out, in, height, width], got {_describe(w)}")
    filter_size(name, f)
    for label, tensor in (("the weight", w), ("the filter", f)):
        if tensor is not None and tensor.device != x.device:
            raise UsageError(f"{name}: {label} is on {tensor.device} but x is on {x.device}; move it there")
    for label, value in (("up", up), ("down", down), ("groups", groups)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}: {label} must be an integer of at least 1, got {value!r}")
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise UsageError(
            f"{name}: x has {x.shape[1]} channels, but a weight {list(w.shape)} with groups={groups} "
            f"takes {w.shape[1] * groups}"
        )
    parse_padding(name, padding)
    height, width = output_shape(x, w, up, down, padding)[2:]
    if height < 1 or width < 1:
        raise UsageError(
            f"{name}: a kernel of {w.shape[2]}x{w.shape[3]} leaves nothing of a {x.shape[2]}x{x.shape[3]} input with "
            f"up={up}, down={down}, padding={padding}; pad more"
        )


def _describe(value) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def _fake(x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    return _layout.empty_like(x, output_shape(x, w, up, down, padding))


def _setup_context(ctx, inputs, output):
    x, w, f, ctx.up, ctx.down, ctx.padding, *ctx.settings = inputs
    ctx.save_for_backward(x, w, f)


def _backward(ctx, dy):
    x, w, f = ctx.saved_tensors
    steps = plan(f, w.shape[2:], ctx.up, ctx.down, ctx.padding)
    dx, dw = resample_gradients(dy, x, w, f, steps, *ctx.settings, *ctx.needs_input_grad[:2])
    return dx, dw, *[None] * 7


if OP in _dispatch.KERNELS:  # not so without the library, or with an older build of it
    torch.library.register_fake("fastinv::conv2d_resample", _fake)
    torch.library.register_autograd("fastinv::conv2d_resample", _backward, setup_context=_setup_context)
    _dispatch.register_composed(OP, "cuda", composed_resample, "upfirdn2d")
