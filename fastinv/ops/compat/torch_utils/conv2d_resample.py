"""``torch_utils.ops.conv2d_resample``: `fastinv.ops.conv2d_resample` that heeds `no_weight_gradients`."""

import torch

from fastinv import ops
from fastinv.ops.conv2d_resample import autocast_input, check_conv, plan, torch_weight

from . import conv2d_gradfix  # of the public package that this file runs in


def conv2d_resample(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False):
    """Convolve x [N, C, H, W] with w [out, C / groups, height, width], up- or down-sampling by the FIR filter f.

    See `fastinv.ops.conv2d_resample`.
    """
    if not (torch.is_grad_enabled() and isinstance(w, torch.Tensor) and w.requires_grad):
        return ops.conv2d_resample(x, w, f, up, down, padding, groups, flip_weight, flip_filter)
    # The same steps one by one: the whole op would compute the gradient of w in every backward pass, R1's, too.
    check_conv("conv2d_resample", x, w, f, up, down, groups, padding)
    x = autocast_input(x)
    steps = plan(f, w.shape[2:], up, down, padding)
    for fir in steps.before:
        x = _filtered(x, f, fir, flip_filter)
    convolution = conv2d_gradfix.conv_transpose2d if steps.transposed else conv2d_gradfix.conv2d
    w = torch_weight(w.to(x.dtype), steps, groups, flip_weight)
    x = convolution(x, w, stride=steps.stride, padding=steps.crop, groups=groups)
    for fir in steps.after:
        x = _filtered(x, f, fir, flip_filter)
    return x


def _filtered(x, f, fir, flip_filter):
    f = f if fir.filtered else None
    return ops.upfirdn2d(x, f, fir.up, fir.down, fir.padding, flip_filter, fir.gain)
