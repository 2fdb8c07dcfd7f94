"""2-D convolution with optional up- or down-sampling by a FIR filter."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from fastinv.errors import UsageError

from .upfirdn2d import upfirdn2d, upfirdn2d_ref


class Plan(NamedTuple):
    """How a call is carried out: FIR, then convolution, then FIRs. A FIR is the keyword arguments of upfirdn2d.

    ``crop`` is the padding of the convolution, [y, x]; of a transposed convolution it cuts the edges of the result.
    """

    before: dict | None
    transposed: bool
    stride: int
    crop: tuple[int, int]
    after: tuple[dict, ...]


def parse_padding(padding) -> tuple[int, int, int, int]:
    """One number, [x, y] or [x_before, x_after, y_before, y_after] -> the four numbers."""
    values = [padding] if isinstance(padding, int) else list(padding)
    if len(values) not in (1, 2, 4) or not all(isinstance(v, int) for v in values):
        raise UsageError(f"padding must be 1, 2 or 4 whole numbers, not {padding!r}")
    if len(values) == 4:
        return tuple(values)
    x, y = values[0], values[-1]
    return (x, x, y, y)


def output_size(size: int, kernel: int, up: int, down: int, before: int, after: int) -> int:
    """Rows (or columns) that come out of ``conv2d_resample`` along one axis; independent of the filter's width.

    The FIR is centred: it adds width - 1 to the padding and takes it away again.
    """
    return (size * up + before + after - kernel) // down + 1


def check_conv(name: str, x, w, f, up: int, down: int, groups: int) -> None:
    """One clear line for arguments that cannot be convolved."""
    if not isinstance(x, torch.Tensor) or x.ndim != 4:
        raise UsageError(f"{name}: x must be a tensor [N, C, H, W], not {_shape(x)}")
    if not isinstance(w, torch.Tensor) or w.ndim != 4:
        raise UsageError(f"{name}: the weight must be a tensor [out, in, height, width], not {_shape(w)}")
    if f is not None and (not isinstance(f, torch.Tensor) or f.ndim not in (1, 2) or f.numel() == 0):
        raise UsageError(f"{name}: the filter must be a 1-D or 2-D tensor (see setup_filter), not {_shape(f)}")
    for label, value in (("up", up), ("down", down), ("groups", groups)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}: {label} must be a positive whole number, not {value!r}")
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise UsageError(
            f"{name}: x has {x.shape[1]} channels but the weight {_shape(w)} with groups={groups} "
            f"takes {w.shape[1] * groups}"
        )
    if not x.is_floating_point():
        raise UsageError(f"{name}: x must be floating point, not {x.dtype}")


def _shape(value) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__


def plan(f, kernel: tuple[int, int], up: int, down: int, padding, flip_filter: bool) -> Plan:
    """Order of filtering and convolution that costs least; the zero-stuffed tensor is never built.

    Convolution and FIR commute, so up-sampling is a transposed convolution followed by the FIR, and down-sampling the
    FIR followed by a strided convolution. A 1x1 kernel is applied on the smaller side.
    """
    x0, x1, y0, y1 = parse_padding(padding)
    height, width = (f.shape[0], f.shape[-1]) if f is not None else (1, 1)
    for factor, resampled in ((up, up > 1), (down, down > 1)):
        if resampled:  # keep the filter centred: upsample2d and downsample2d pad alike
            if factor == up and up > 1 and (factor, resampled) != (down, down > 1):
                pass
    if up > 1:
        x0, x1, y0, y1 = x0 + (width + up - 1) // 2, x1 + (width - up) // 2, y0 + (height + up - 1) // 2, y1 + (height - up) // 2
    if down > 1:
        x0, x1 = x0 + (width - down + 1) // 2, x1 + (width - down) // 2
        y0, y1 = y0 + (height - down + 1) // 2, y1 + (height - down) // 2
    return None
