"""``op.fused_act``: bias and leaky ReLU."""

import torch
from torch import nn

from fastinv import ops


class FusedLeakyReLU(nn.Module):
    """`fused_leaky_relu` with a bias of its own: parameter ``bias`` [channel], zeros at first, or None."""

    def __init__(self, channel, bias=True, negative_slope=0.2, scale=2**0.5):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input):
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
    """``scale * leaky_relu(input + bias)``, twice differentiable; see `fastinv.ops.bias_act`.

    Args:
        input: [N, C] or [N, C, ...]; any shape without bias.
        bias: [C], along axis 1, or None.

    Returns:
        Tensor of the shape and dtype of input. UsageError where the bias does not fit axis 1.
    """
    return ops.bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)
