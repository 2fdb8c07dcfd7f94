"""``torch_utils.ops.filtered_lrelu``: StyleGAN3's alias-free activation (Karras et al. 2021, arXiv 2106.12423)."""

import numpy as np

from fastinv import ops
from fastinv.ops.compat.torch_utils._impl import backend


def filtered_lrelu(
    x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False,
    impl="cuda",
):  # fmt: skip
    """Bias, upsample, leaky ReLU, downsample: a leaky ReLU that adds no frequencies the picture cannot carry.

    Four of fastinv's ops, one after the other, not one fused kernel. Differentiable twice.

    Args:
        x: [N, C, H, W].
        fu, fd: float32 filters before and after the activation, from `setup_filter`; None is the identity.
        b: bias [C], or None.
        up, down: integer factors; up-sampling keeps the magnitude (a gain of up * up).
        padding: pixels on the up-sampled picture: one, (x, y) or (x_before, x_after, y_before, y_after).
        gain, slope, clamp: of the leaky ReLU, clamp after gain; None does not clamp.
        flip_filter: False is convolution with fu and fd, True is correlation.
        impl: "cuda" (our fastest on any device) or "ref".

    Returns:
        [N, C, H', W'] with H' = (H * up + y pads - (fu height - 1) - (fd height - 1) + down - 1) // down, W' likewise.
    """
    how = backend("filtered_lrelu", impl)
    padding = np.asarray(padding).tolist()  # StyleGAN3 computes it with numpy
    x = ops.bias_act(x, b, impl=how)
    x = ops.upfirdn2d(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2, impl=how)
    x = ops.bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp, impl=how)
    return ops.upfirdn2d(x, fd, down=down, flip_filter=flip_filter, impl=how)
