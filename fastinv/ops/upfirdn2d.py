"""Resampling with FIR filters: pad, upsample, filter, downsample in one op.

Definition, per axis, for ``x`` of length W, ``f`` of length K, ``y`` of length (W * up + p0 + p1 - K) // down + 1::

    z[i]  = x[(i - p0) / up] where that index is whole and inside, else 0        (zero insertion, then padding)
    y[o]  = gain * sum_k f[K - 1 - k] * z[o * down + k]                          (a true convolution; flip_filter: f[k])

Negative padding crops. No implementation here ever builds ``z``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import UsageError
from . import _dispatch, _layout

Scaling = int | Sequence[int]


def _integers(op: str, name: str, value, counts: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(values) not in counts or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        allowed = " or ".join(str(n) for n in counts)
        raise UsageError(f"{op}: {name} must be an integer or {allowed} integers, got {value!r}")
    return values


def parse_scaling(op: str, name: str, value: Scaling) -> tuple[int, int]:
    """``up`` or ``down`` as (x, y); an integer stands for both axes."""
    values = _integers(op, name, value, (1, 2))
    if min(values) < 1:
        raise UsageError(f"{op}: {name} must be at least 1, got {value!r}")
    return values[0], values[-1]


def parse_padding(op: str, value: Scaling) -> tuple[int, int, int, int]:
    """``padding`` as (x_before, x_after, y_before, y_after); also from one integer or (x, y)."""
    values = _integers(op, "padding", value, (1, 2, 4))
    if len(values) == 4:
        return values
    x, y = values[0], values[-1]
    return x, x, y, y


def filter_size(op: str, f: torch.Tensor | None) -> tuple[int, int]:
    """(width, height) of a filter; None is the 1x1 identity, a 1-D filter serves both axes."""
    if f is None:
        return 1, 1
    if not isinstance(f, torch.Tensor) or f.ndim not in (1, 2) or f.numel() == 0:
        shape = list(f.shape) if isinstance(f, torch.Tensor) else type(f).__name__
        raise UsageError(f"{op}: f must be a non-empty 1-D or 2-D tensor (see setup_filter), got {shape}")
    if f.dtype != torch.float32:
        raise UsageError(f"{op}: f must be float32 (see setup_filter), got {f.dtype}")
    return f.shape[-1], f.shape[0]


def output_size(op: str, size: int, up: int, down: int, pad0: int, pad1: int, taps: int) -> int:
    out = (size * up + pad0 + pad1 - taps) // down + 1
    if out < 1:
        raise UsageError(
            f"{op}: padding ({pad0}, {pad1}) leaves no output for size {size}, up {up} and {taps} taps; pad more"
        )
    return out


def _check(op: str, x: torch.Tensor, f: torch.Tensor | None, gain: float) -> None:
    if not isinstance(x, torch.Tensor) or x.ndim != 4:
        shape = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise UsageError(f"{op}: x must be a tensor [N, C, H, W], got {shape}")
    if not x.is_floating_point():
        raise UsageError(f"{op}: x must be floating point, got {x.dtype}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise UsageError(f"{op}: x must not be empty in height or width, got {list(x.shape)}")
    filter_size(op, f)
    if f is not None and f.ndim == 1 and gain < 0:
        raise UsageError(f"{op}: gain must be >= 0 for a 1-D f (its square root goes to each axis), got {gain}")
    if f is not None and f.device != x.device:
        raise UsageError(f"{op}: f is on {f.device} but x is on {x.device}; move f with f.to(x.device)")


def setup_filter(
    f: torch.Tensor | Sequence | float | None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Make a filter for the functions of this module.

    Args:
        f: number, list of taps, list of rows, tensor, or None for the identity.
        normalize: divide by the sum, so that constant pictures keep their value.
        flip_filter: flip along every axis.
        gain: over-all gain for signal magnitude (split over the axes when the result is 1-D: it is applied twice).
        separable: keep a 1-D filter 1-D (True) or expand it to its outer product (False). Default: 1-D from 8 taps on.
        device: where to put it.

    Returns:
        float32 tensor [taps] (applied along both axes) or [height, width].
    """
    # Made on the CPU whatever device is the default one: its values are looked at.
    place = f.device if isinstance(f, torch.Tensor) else "cpu"
    f = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=place)
    if f.ndim > 2 or f.numel() == 0:
        raise UsageError(f"setup_filter: f must be a number, a list of taps or of rows, got shape {list(f.shape)}")
    f = f.reshape(1) if f.ndim == 0 else f
    if separable is None:
        separable = f.ndim == 1 and f.numel() >= 8
    if separable and f.ndim != 1:
        raise UsageError(f"setup_filter: separable needs a 1-D f, got shape {list(f.shape)}")
    if f.ndim == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        total = f.sum()
        if total == 0:
            raise UsageError("setup_filter: the taps of f sum to zero; pass normalize=False")
        f = f / total
    if flip_filter:
        f = f.flip(list(range(f.ndim)))
    return (f * gain ** (f.ndim / 2)).to(device=device)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: Scaling = 1,
    down: Scaling = 1,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Upsample (zero insertion), pad, filter and downsample a batch of pictures; differentiable any number of times.

    Args:
        x: [N, C, H, W].
        f: float32 filter [taps] (both axes) or [height, width] from `setup_filter`, or None for the identity.
        up, down: integer factors, one or (x, y).
        padding: pixels on the upsampled picture: one, (x, y) or (x_before, x_after, y_before, y_after); negative crops.
        flip_filter: False is convolution, True is correlation.
        gain: over-all gain for signal magnitude.
        impl: "auto", "native" (an error says why if it cannot) or "ref".
        out: memory for the result, of its shape, dtype and memory format and apart from that of x: without autograd.

    Returns:
        [N, C, (H*up + pads - height) // down + 1, (W*up + pads - width) // down + 1], dtype and memory format of x;
        ``out`` itself if that was given.
    """
    _check("upfirdn2d", x, f, gain)
    f_needs_gradient = f is not None and f.requires_grad
    how = _dispatch.choose(
        "upfirdn2d", impl, x, (not f_needs_gradient, "the filter needs a gradient"),
        (out is None or "upfirdn2d_out" in _dispatch.KERNELS, "this build of the library takes no out"),
    )  # fmt: skip
    if how == "ref" and out is None:
        return upfirdn2d_ref(x, f, up, down, padding, flip_filter, gain)
    up_x, up_y = parse_scaling("upfirdn2d", "up", up)
    down_x, down_y = parse_scaling("upfirdn2d", "down", down)
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding("upfirdn2d", padding)
    width, height = filter_size("upfirdn2d", f)
    out_w = output_size("upfirdn2d", x.shape[3], up_x, down_x, pad_x0, pad_x1, width)
    out_h = output_size("upfirdn2d", x.shape[2], up_y, down_y, pad_y0, pad_y1, height)
    if out is not None:
        _check_out(x, f, out, [x.shape[0], x.shape[1], out_h, out_w])
        if how == "ref":
            return out.copy_(upfirdn2d_ref(x, f, up, down, padding, flip_filter, gain))
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    scaling = (up_x, up_y, down_x, down_y)
    settings = (*scaling, pad_x0, pad_x1, pad_y0, pad_y1, flip_filter, float(gain))
    if out is None:
        return torch.ops.fastinv.upfirdn2d(x, f, *settings)
    torch.ops.fastinv.upfirdn2d_out(x, f, *settings, out)
    return out


def _check_out(x: torch.Tensor, f: torch.Tensor | None, out: torch.Tensor, shape: list[int]) -> None:
    tensors = [tensor for tensor in (x, f, out) if isinstance(tensor, torch.Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise UsageError("upfirdn2d: out is for use without autograd; leave it out, or call under torch.no_grad()")
    if not isinstance(out, torch.Tensor) or list(out.shape) != shape or (out.dtype, out.device) != (x.dtype, x.device):
        found = f"{out.dtype} {list(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise UsageError(f"upfirdn2d: out must be {x.dtype} {shape} on {x.device}, got {found}")
    if not out.is_contiguous(memory_format=_layout.memory_format(x)):
        raise UsageError("upfirdn2d: out must be dense in the memory format of x")
    if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
        first, last = out.data_ptr(), out.data_ptr() + out.numel() * out.element_size()
        # Bytes from the first to the last element of x, whatever its strides.
        extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        if first < x.data_ptr() + extent * x.element_size() and x.data_ptr() < last:
            raise UsageError("upfirdn2d: out must not overlap x")


def upfirdn2d_ref(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: Scaling = 1,
    down: Scaling = 1,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> torch.Tensor:
    """`upfirdn2d` in plain PyTorch: depthwise (transposed) convolutions."""
    op = "upfirdn2d"
    _check(op, x, f, gain)
    up_x, up_y = parse_scaling(op, "up", up)
    down_x, down_y = parse_scaling(op, "down", down)
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding(op, padding)
    width, height = filter_size(op, f)
    out_w = output_size(op, x.shape[3], up_x, down_x, pad_x0, pad_x1, width)
    out_h = output_size(op, x.shape[2], up_y, down_y, pad_y0, pad_y1, height)
    if x.numel() == 0:
        return x.sum() + x.new_zeros([x.shape[0], x.shape[1], out_h, out_w])
    if f is None:
        f = torch.ones([1, 1], dtype=torch.float32, device=x.device)
    # The gain goes into the filter, in float32 as the filter is.
    f = f * gain ** (f.ndim / 2)
    f = f.flip(list(range(f.ndim))) if not flip_filter else f

    # oneDNN has no quick strided or transposed depthwise convolution in half precision (50x slower than in float32).
    resamples = max(up_x, up_y, down_x, down_y) > 1
    compute = torch.float32 if resamples and x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    y = x.to(compute)
    f = f.to(compute)
    if f.ndim == 2:
        return _filter_ref(y, f, (up_x, up_y), (down_x, down_y), (pad_x0, pad_x1, pad_y0, pad_y1)).to(x.dtype)
    y = _filter_ref(y, f[None, :], (up_x, 1), (down_x, 1), (pad_x0, pad_x1, 0, 0))
    return _filter_ref(y, f[:, None], (1, up_y), (1, down_y), (0, 0, pad_y0, pad_y1)).to(x.dtype)


def _filter_ref(x, f, up, down, padding):
    """Correlate every channel of x with the 2-D filter f; up, down as (x, y)."""
    channels = x.shape[1]
    height, width = f.shape
    if up == (1, 1):
        pad_x0, pad_x1, pad_y0, pad_y1 = padding
        weight = f.expand(channels, 1, height, width)
        if pad_x0 == pad_x1 >= 0 and pad_y0 == pad_y1 >= 0:
            return F.conv2d(x, weight, stride=down[::-1], padding=(pad_y0, pad_x0), groups=channels)
        return F.conv2d(F.pad(x, padding), weight, stride=down[::-1], groups=channels)
    # A transposed convolution scatters x[i] to [i*up, i*up + taps), so output o of upfirdn is its element
    # o + taps - 1 - pad0; what lies beyond its ends is zero.
    weight = f.flip([0, 1]).expand(channels, 1, height, width)
    y = F.conv_transpose2d(x, weight, stride=up[::-1], groups=channels)
    pad_x0, pad_y0 = padding[0] - (width - 1), padding[2] - (height - 1)
    pad_x1, pad_y1 = padding[1] - (width - up[0]), padding[3] - (height - up[1])
    y = F.pad(y, [pad_x0, pad_x1, pad_y0, pad_y1])
    return y if down == (1, 1) else y[:, :, :: down[1], :: down[0]]


def _fake(x, f, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip_filter, gain):
    out_w = output_size("upfirdn2d", x.shape[3], up_x, down_x, pad_x0, pad_x1, f.shape[-1])
    out_h = output_size("upfirdn2d", x.shape[2], up_y, down_y, pad_y0, pad_y1, f.shape[0])
    return _layout.empty_like(x, [x.shape[0], x.shape[1], out_h, out_w])


def _setup_context(ctx, inputs, output):
    x, f, *ctx.settings = inputs
    ctx.save_for_backward(f)
    ctx.in_h, ctx.in_w, ctx.out_h, ctx.out_w = *x.shape[2:], *output.shape[2:]


def _backward(ctx, dy):
    """The adjoint of upfirdn2d is upfirdn2d: up and down swapped, the filter flipped, the paddings that then fit."""
    (f,) = ctx.saved_tensors
    up_x, up_y, down_x, down_y, pad_x0, _, pad_y0, _, flip_filter, gain = ctx.settings
    if ctx.needs_input_grad[1]:
        raise NotImplementedError("upfirdn2d: the native op has no gradient for the filter; use impl='ref'")
    width, height = f.shape[-1], f.shape[0]
    x0, y0 = width - 1 - pad_x0, height - 1 - pad_y0
    x1 = ctx.in_w * up_x - ctx.out_w * down_x + pad_x0 - up_x + 1
    y1 = ctx.in_h * up_y - ctx.out_h * down_y + pad_y0 - up_y + 1
    settings = (down_x, down_y, up_x, up_y, x0, x1, y0, y1, not flip_filter, gain)
    return torch.ops.fastinv.upfirdn2d(dy, f, *settings), *[None] * 11


def _out_by_copy(*arguments):
    *arguments, out = arguments
    out.copy_(torch.ops.fastinv.upfirdn2d(*arguments))


if "upfirdn2d" in _dispatch.KERNELS:  # not so without the library, or with an older build of it
    torch.library.register_fake("fastinv::upfirdn2d", _fake)
    torch.library.register_autograd("fastinv::upfirdn2d", _backward, setup_context=_setup_context)
if "upfirdn2d_out" in _dispatch.KERNELS:
    torch.library.register_fake("fastinv::upfirdn2d_out", lambda *arguments: None)
    for _device in ("cpu", "cuda"):  # where there is no kernel of its own
        _dispatch.register_composed("upfirdn2d_out", _device, _out_by_copy, "upfirdn2d")


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> torch.Tensor:
    """Filter pictures, output of the size of the input; ``padding`` is extra to that. See `upfirdn2d`.

    Returns [N, C, H + y pads, W + x pads].
    """
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding("filter2d", padding)
    width, height = filter_size("filter2d", f)
    pads = [pad_x0 + width // 2, pad_x1 + (width - 1) // 2, pad_y0 + height // 2, pad_y1 + (height - 1) // 2]
    return upfirdn2d(x, f, padding=pads, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: Scaling = 2,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> torch.Tensor:
    """Enlarge pictures by ``up`` and filter them; ``padding`` is extra. See `upfirdn2d`.

    The signal keeps its magnitude: zero insertion is made up for by a gain of up_x * up_y.
    Returns [N, C, H * up + y pads, W * up + x pads].
    """
    up_x, up_y = parse_scaling("upsample2d", "up", up)
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding("upsample2d", padding)
    width, height = filter_size("upsample2d", f)
    pads = [
        pad_x0 + (width + up_x - 1) // 2,
        pad_x1 + (width - up_x) // 2,
        pad_y0 + (height + up_y - 1) // 2,
        pad_y1 + (height - up_y) // 2,
    ]
    return upfirdn2d(x, f, up=up, padding=pads, flip_filter=flip_filter, gain=gain * up_x * up_y, impl=impl)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: Scaling = 2,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> torch.Tensor:
    """Filter pictures and shrink them by ``down``; ``padding`` is extra. See `upfirdn2d`.

    Returns [N, C, (H + y pads) / down, (W + x pads) / down], rounded down.
    """
    down_x, down_y = parse_scaling("downsample2d", "down", down)
    pad_x0, pad_x1, pad_y0, pad_y1 = parse_padding("downsample2d", padding)
    width, height = filter_size("downsample2d", f)
    pads = [
        pad_x0 + (width - down_x + 1) // 2,
        pad_x1 + (width - down_x) // 2,
        pad_y0 + (height - down_y + 1) // 2,
        pad_y1 + (height - down_y) // 2,
    ]
    return upfirdn2d(x, f, down=down, padding=pads, flip_filter=flip_filter, gain=gain, impl=impl)


filter2d_ref = functools.partial(filter2d, impl="ref")
upsample2d_ref = functools.partial(upsample2d, impl="ref")
downsample2d_ref = functools.partial(downsample2d, impl="ref")
