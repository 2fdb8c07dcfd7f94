"""2-D convolution with optional up- or down-sampling by a FIR filter."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import UsageError

from .upfirdn2d import filter_size, parse_padding, upfirdn2d, upfirdn2d_ref


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
        [N, out, (H * up + y pads - height) // down + 1, (W * up + x pads - width) // down + 1] in the dtype of x, or
        of autocast where that is on. UsageError for arguments that do not fit together.
    """
    return _resample(upfirdn2d, x, w, f, up, down, padding, groups, flip_weight, flip_filter)


def conv2d_resample_ref(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    """`conv2d_resample` in plain PyTorch."""
    return _resample(upfirdn2d_ref, x, w, f, up, down, padding, groups, flip_weight, flip_filter)


def _resample(upfirdn, x, w, f, up, down, padding, groups, flip_weight, flip_filter):
    check_conv("conv2d_resample", x, w, f, up, down, groups, padding)
    steps = plan(f, w.shape[2:], up, down, padding)
    x = autocast_input(x)
    for fir in steps.before:
        x = upfirdn(x, f if fir.filtered else None, flip_filter=flip_filter, **fir.arguments)
    x = convolve(x, w.to(x.dtype), steps, groups, flip_weight)
    for fir in steps.after:
        x = upfirdn(x, f if fir.filtered else None, flip_filter=flip_filter, **fir.arguments)
    return x


class Fir(NamedTuple):
    """One call of upfirdn2d: with the filter, or without it (``filtered`` False: it only pads, crops, scales)."""

    filtered: bool
    arguments: dict


class Plan(NamedTuple):
    """FIRs, then the convolution, then FIRs. ``crop`` is the convolution's padding (y, x).

    The padding of a transposed convolution cuts the edges of its result.
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
    width, height = filter_size("conv2d_resample", f)
    x0, x1, y0, y1 = parse_padding("conv2d_resample", padding)
    if up > 1:  # a centred filter adds its width - 1 to the padding, split as in upsample2d
        x0, x1 = x0 + (width + up - 1) // 2, x1 + (width - up) // 2
        y0, y1 = y0 + (height + up - 1) // 2, y1 + (height - up) // 2
    if down > 1:  # and as in downsample2d
        x0, x1 = x0 + (width - down + 1) // 2, x1 + (width - down) // 2
        y0, y1 = y0 + (height - down + 1) // 2, y1 + (height - down) // 2
    pad = [x0, x1, y0, y1]
    pointwise = kernel_y == kernel_x == 1

    if up > 1:
        gain = float(up * up)
        decimate = [Fir(True, {"down": down})] if down > 1 else []
        if pointwise:
            return Plan([], False, 1, (0, 0), [Fir(True, {"up": up, "padding": pad, "gain": gain}), *decimate])
        # The transposed convolution is the full one less its up - 1 trailing zeros: give up the kernel - 1 rows and
        # columns it has too many, by its own padding as far as both edges have them.
        x0, x1, y0, y1 = x0 - kernel_x + 1, x1 - kernel_x + up, y0 - kernel_y + 1, y1 - kernel_y + up
        crop_x, crop_y = max(0, min(-x0, -x1)), max(0, min(-y0, -y1))
        pad = [x0 + crop_x, x1 + crop_x, y0 + crop_y, y1 + crop_y]
        return Plan([], True, up, (crop_y, crop_x), [Fir(True, {"padding": pad, "gain": gain}), *decimate])
    if down > 1:
        if pointwise:
            return Plan([Fir(True, {"down": down, "padding": pad})], False, 1, (0, 0), [])
        return Plan([Fir(True, {"padding": pad})], False, down, (0, 0), [])
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return Plan([], False, 1, (y0, x0), [])
    return Plan([Fir(False, {"padding": pad})], False, 1, (0, 0), [])


def convolve(x, w, steps: Plan, groups: int, flip_weight: bool) -> torch.Tensor:
    """The convolution of a plan; w [out, in / groups, height, width] in the dtype of x."""
    if not steps.transposed:
        w = w if flip_weight else w.flip(2, 3)  # torch correlates
        return F.conv2d(x, w, stride=steps.stride, padding=steps.crop, groups=groups)
    w = w.flip(2, 3) if flip_weight else w  # the adjoint of a correlation convolves
    return F.conv_transpose2d(x, transposed_weight(w, groups), stride=steps.stride, padding=steps.crop, groups=groups)


def transposed_weight(w, groups: int) -> torch.Tensor:
    """[out, in / groups, height, width] -> [in, out / groups, height, width]."""
    if groups == 1:
        return w.transpose(0, 1)
    out_channels, in_channels, *kernel = w.shape
    w = w.reshape(groups, out_channels // groups, in_channels, *kernel).transpose(1, 2)
    return w.reshape(groups * in_channels, out_channels // groups, *kernel)


def output_size(size: int, kernel: int, up: int, down: int, before: int, after: int) -> int:
    """Rows (or columns) that come out along one axis. The filter's width does not matter, for it is centred."""
    return (size * up + before + after - kernel) // down + 1


def autocast_input(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that autocast asks convolutions to run in; x itself without autocast (or for float64)."""
    device = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return x
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def check_conv(name: str, x, w, f, up: int, down: int, groups: int, padding=0) -> None:
    """One clear line for arguments that cannot be convolved."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4 or not x.is_floating_point():
        raise UsageError(f"{name}: x must be a floating point tensor [N, C, H, W], not {_describe(x)}")
    if not isinstance(w, torch.Tensor) or w.ndim != 4 or not w.is_floating_point():
        raise UsageError(f"{name}: the weight must be a tensor [out, in, height, width], not {_describe(w)}")
    filter_size(name, f)
    for label, value in (("up", up), ("down", down), ("groups", groups)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}: {label} must be a positive whole number, not {value!r}")
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise UsageError(
            f"{name}: x has {x.shape[1]} channels, but a weight of shape {list(w.shape)} with groups={groups} "
            f"takes {w.shape[1] * groups}"
        )
    x0, x1, y0, y1 = parse_padding(name, padding)
    height = output_size(x.shape[2], w.shape[2], up, down, y0, y1)
    width = output_size(x.shape[3], w.shape[3], up, down, x0, x1)
    if height < 1 or width < 1:
        raise UsageError(
            f"{name}: a {x.shape[2]}x{x.shape[3]} input with up={up}, down={down}, padding={padding} and a "
            f"{w.shape[2]}x{w.shape[3]} kernel leaves nothing; use more padding or a larger input"
        )


def _describe(value) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
