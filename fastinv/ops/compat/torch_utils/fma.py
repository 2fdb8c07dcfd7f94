"""``torch_utils.ops.fma``: fused multiply-add."""

import torch


def fma(a, b, c):
    """``a * b + c`` in one pass; the three are broadcast to a common shape."""
    return torch.addcmul(c, a, b)
