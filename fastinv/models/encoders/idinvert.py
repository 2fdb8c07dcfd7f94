"""The domain-guided encoder of IDInvert (Zhu et al. 2020, arXiv 2004.00049), as its PyTorch release has it.

Names: ``block0.{conv,bn}``; ``block{i}.{conv1,wscale1,bn1,conv2,wscale2,bn2}``, with ``conv`` and ``bn`` on the
shortcut where channels change; the last block ``fc`` and ``bn``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinv.errors import UsageError
from fastinv.models.encoders.base import Encoder, EqualisedConv2d
from fastinv.models.layers import block_resolutions

CHANNEL_BASE, CHANNEL_MAX = 64, 1024
# Batch norm in eval mode does not make up for this scale. sqrt(2) is from memory, unverified against a public file.
GAIN = math.sqrt(2)


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class FirstBlock(nn.Module):
    """Convolution, batch norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = EqualisedConv2d(in_channels, out_channels, 3, GAIN)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return _activate(self.bn(self.conv(x)))


class ResidualBlock(nn.Module):
    """Mean over 2x2, then two convolutions beside a shortcut: x [N, in, H, W] -> [N, out, H / 2, W / 2]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        hidden = min(in_channels, out_channels)
        self.conv = None
        if in_channels != out_channels:
            self.conv, self.bn = EqualisedConv2d(in_channels, out_channels, 1, GAIN), nn.BatchNorm2d(out_channels)
        self.conv1, self.bn1 = EqualisedConv2d(in_channels, hidden, 3, GAIN), nn.BatchNorm2d(hidden)
        self.conv2, self.bn2 = EqualisedConv2d(hidden, out_channels, 3, GAIN), nn.BatchNorm2d(out_channels)
        self.wscale1 = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(hidden))})
        self.wscale2 = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(out_channels))})

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 2)
        shortcut = x if self.conv is None else _activate(self.bn(self.conv(x)))
        x = _activate(self.bn1(self.conv1(x, self.wscale1["bias"])))
        x = _activate(self.bn2(self.conv2(x, self.wscale2["bias"])))
        return x + shortcut


class LastBlock(nn.Module):
    """All of x [N, C, 4, 4] -> [N, out], a linear layer without bias, scaled by 1 / sqrt(16 C), and batch norm."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.fc = nn.ParameterDict({"weight": nn.Parameter(torch.randn(out_features, in_features))})
        self.bn = nn.BatchNorm1d(out_features)
        self.gain = 1 / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.linear(x.flatten(1), self.fc["weight"] * self.gain))


class IDInvertEncoder(Encoder):
    """Predicts the latents themselves; ``latent_avg`` is zero. Train mode needs more than one picture (batch norm).

    Args:
        input_resolution, w_dim, input_nc: see `fastinv.models.encoders.base.Encoder`.
        num_ws: None is 2 log2(input_resolution) - 2: the generator has the encoder's resolution.
        channels: feature maps at input_resolution and after each halving down to 4x4; None is 64, 128, ... up to 1024.
    """

    def __init__(self, input_resolution=256, num_ws=None, w_dim=512, channels=None, input_nc=3):
        halvings = len(block_resolutions(input_resolution)) - 1
        super().__init__(num_ws or 2 * halvings + 2, w_dim, input_nc, input_resolution)
        if channels is None:
            channels = [min(CHANNEL_BASE << index, CHANNEL_MAX) for index in range(halvings + 1)]
        if len(channels) != halvings + 1 or min(channels) < 1:
            raise UsageError(f"channels must be {halvings + 1} positive counts, not {channels}")
        self.config["channels"] = list(channels)
        blocks = [FirstBlock(input_nc, channels[0])]
        blocks += [ResidualBlock(*pair) for pair in zip(channels[:-1], channels[1:], strict=True)]
        blocks += [LastBlock(channels[-1] * 16, self.num_ws * w_dim)]
        for index, block in enumerate(blocks):
            self.add_module(f"block{index}", block)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.children():
            x = block(x)
        return x.unflatten(1, (self.num_ws, self.w_dim))
