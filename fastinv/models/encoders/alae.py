"""The encoder of ALAE, adversarial latent autoencoders (Pidhorskyi et al. 2020, arXiv 2004.04467).

Names: ``from_rgb.{i}.from_rgb`` and ``encode_block.{i}.{conv_1,bias_1,style_1,conv_2,bias_2,style_2}``, i = 0 at the
full resolution. Weights are scaled at run time as in models.layers; public files store them scaled.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinv.errors import UsageError
from fastinv.models.encoders.base import Encoder, EqualisedConv2d
from fastinv.models.layers import FullyConnected, block_resolutions
from fastinv.ops import filter2d, setup_filter

CHANNEL_START, CHANNEL_MAX = 16, 512
BLUR = (1, 2, 1)
EPSILON = 1e-5  # of the instance norm; from memory


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean and standard deviation of each feature map [N, 2C], x with instance norm)."""
    mean = x.mean((2, 3), keepdim=True)
    x = x - mean
    variance = x.square().mean((2, 3), keepdim=True)
    # A constant feature map has no gradient here; the plain square root's would be infinite.
    deviation = variance.clamp_min(1e-12).sqrt()
    return torch.cat([mean, deviation], dim=1).flatten(1), x * (variance + EPSILON).rsqrt()


class FromRGB(nn.Module):
    """Picture -> feature maps."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.from_rgb = EqualisedConv2d(in_channels, out_channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return _activate(self.from_rgb(x))


class EncodeBlock(nn.Module):
    """x [N, in, H, W] -> ([N, out, H / 2, W / 2], the level's part of w [N, w_dim])."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int):
        super().__init__()
        self.conv_1 = EqualisedConv2d(in_channels, in_channels, 3)
        self.bias_1 = nn.Parameter(torch.zeros(1, in_channels, 1, 1))
        self.style_1 = FullyConnected(2 * in_channels, w_dim)
        self.conv_2 = EqualisedConv2d(in_channels, out_channels, 3)
        self.bias_2 = nn.Parameter(torch.zeros(1, out_channels, 1, 1))
        self.style_2 = FullyConnected(2 * out_channels, w_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = _activate(self.conv_1(x, self.bias_1.flatten()))
        statistics, x = _statistics(x)
        w = self.style_1(statistics)
        x = filter2d(x, setup_filter(BLUR, device=x.device))
        # Convolution and mean over 2x2 in one: a 4x4 kernel, the sum of the four shifts of the 3x3 one, with stride 2.
        weight = self.conv_2.scaled_weight
        weight = sum(F.pad(weight, (i, 1 - i, j, 1 - j)) for i in (0, 1) for j in (0, 1)) / 4
        x = _activate(F.conv2d(x, weight, self.bias_2.flatten(), stride=2, padding=1))
        statistics, x = _statistics(x)
        return x, w + self.style_2(statistics)


class ALAEEncoder(Encoder):
    """One vector w, the sum over all levels of linear maps of feature statistics, for every layer of the generator.

    ``latent_avg`` is zero.

    Args:
        input_resolution, w_dim, input_nc: see `fastinv.models.encoders.base.Encoder`.
        num_ws: None is 2 log2(input_resolution) - 2: the generator has the encoder's resolution.
        channels: feature maps at input_resolution and after each halving down to 2x2; None is 16, 32, ... up to 512.
    """

    def __init__(self, input_resolution=1024, num_ws=None, w_dim=512, channels=None, input_nc=3):
        levels = len(block_resolutions(input_resolution))
        super().__init__(num_ws or 2 * levels, w_dim, input_nc, input_resolution)
        if channels is None:
            channels = [min(CHANNEL_START << index, CHANNEL_MAX) for index in range(levels + 1)]
        if len(channels) != levels + 1 or min(channels) < 1:
            raise UsageError(f"channels must be {levels + 1} positive counts, not {channels}")
        self.config["channels"] = list(channels)
        self.from_rgb = nn.ModuleList(FromRGB(input_nc, width) for width in channels[:-1])
        self.encode_block = nn.ModuleList(
            EncodeBlock(*pair, w_dim) for pair in zip(channels[:-1], channels[1:], strict=True)
        )

    def forward(self, x: Tensor, level: int = 0, fade: float = 1.0) -> Tensor:
        """Pictures of 1 / 2^level of the full resolution enter at that level, as in progressive growing.

        With ``fade`` below 1 they enter at the next level, too: 0 is what they would be there alone.
        """
        halved = F.avg_pool2d(x, 2) if fade < 1 else None
        x, w = self.from_rgb[level](x), 0
        if halved is not None:
            x, w = self.encode_block[level](x)
            level += 1
            x, w = torch.lerp(self.from_rgb[level](halved), x, fade), fade * w
        for block in self.encode_block[level:]:
            x, part = block(x)
            w = w + part
        return w.unsqueeze(1).expand(-1, self.num_ws, -1)
