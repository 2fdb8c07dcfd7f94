"""``op.upfirdn2d``."""

import torch

from fastinv import ops
from fastinv.errors import UsageError


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    """Upsample (zero insertion), pad, convolve and downsample; see `fastinv.ops.upfirdn2d`.

    Args:
        input: [N, C, H, W].
        kernel: [height, width], of any floating dtype; a true convolution, without a gain beyond its own sum.
        up, down: integer factors, one or (x, y).
        pad: pixels on the up-sampled picture: (before, after) for both axes, or (x_before, x_after, y_before, y_after);
            negative crops.

    Returns:
        [N, C, (H*up + pads - height) // down + 1, (W*up + pads - width) // down + 1], dtype of input.
    """
    if not isinstance(pad, (list, tuple)) or len(pad) not in (2, 4):
        raise UsageError(f"upfirdn2d: pad must be (before, after) or (x0, x1, y0, y1), got {pad!r}")
    if not isinstance(kernel, torch.Tensor):
        raise UsageError(f"upfirdn2d: kernel must be a tensor [height, width], got {type(kernel).__name__}")
    settings = {"up": up, "down": down, "padding": [*pad] if len(pad) == 4 else [*pad, *pad]}
    y = ops.upfirdn2d(input, kernel.float(), **settings)
    if kernel.dtype != torch.float64:
        return y
    # Our filters are float32: two of them hold a float64 one, and the op is linear in its filter.
    return y + ops.upfirdn2d(input, (kernel - kernel.float()).float(), **settings)
