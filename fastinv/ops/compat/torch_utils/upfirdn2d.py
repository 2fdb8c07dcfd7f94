"""``torch_utils.ops.upfirdn2d``: the functions of `fastinv.ops.upfirdn2d` in the public order of arguments."""

import torch

from fastinv import ops
from fastinv.ops.compat.torch_utils._impl import backend
from fastinv.ops.upfirdn2d import filter_size, parse_padding, parse_scaling


def setup_filter(f, device="cpu", normalize=True, flip_filter=False, gain=1, separable=None):
    """Make a float32 filter from a number, a list of taps or rows, or None; see `fastinv.ops.setup_filter`."""
    return ops.setup_filter(f, normalize, flip_filter, gain, separable, torch.device(device))


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Upsample, pad, filter and downsample x [N, C, H, W]; see `fastinv.ops.upfirdn2d`. impl: "cuda" or "ref"."""
    return ops.upfirdn2d(x, f, up, down, padding, flip_filter, gain, backend("upfirdn2d", impl))


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filter x [N, C, H, W] and keep its size; see `fastinv.ops.filter2d`."""
    return ops.filter2d(x, f, padding, flip_filter, gain, backend("filter2d", impl))


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Enlarge x [N, C, H, W] by up; see `fastinv.ops.upsample2d`."""
    return ops.upsample2d(x, f, up, padding, flip_filter, gain, backend("upsample2d", impl))


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Shrink x [N, C, H, W] by down; see `fastinv.ops.downsample2d`."""
    return ops.downsample2d(x, f, down, padding, flip_filter, gain, backend("downsample2d", impl))


# Forks import these from here.


def _parse_scaling(scaling):
    """(x, y) from one factor or two."""
    return parse_scaling("upfirdn2d", "scaling", scaling)


def _parse_padding(padding):
    """(x_before, x_after, y_before, y_after) from one number, (x, y) or all four."""
    return parse_padding("upfirdn2d", padding)


def _get_filter_size(f):
    """(width, height); (1, 1) for None."""
    return filter_size("upfirdn2d", f)
