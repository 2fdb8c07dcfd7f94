"""Layers that the StyleGAN2 generator and discriminator share, with equalised learning rate.

Equalised learning rate (Karras et al. 2018): weights are stored with unit variance (divided by the learning-rate
multiplier) and scaled at run time by ``lr_multiplier / sqrt(fan_in)``, so Adam moves every layer at the same pace.
"""

import math

import torch
from torch import nn

from fastinv.errors import UsageError
from fastinv.ops import bias_act, conv2d_resample, setup_filter

ARCHITECTURES = ("skip", "resnet", "orig")


def block_resolutions(resolution: int) -> list[int]:
    """Resolutions of a network's blocks, [4, 8, ..., resolution]; refuses all but powers of two from 8 to 16384."""
    if not 8 <= resolution <= 2**14 or resolution & (resolution - 1):
        raise UsageError(f"resolution must be a power of two from 8 to 16384, not {str(resolution)[:40]}")
    return [2**exponent for exponent in range(2, resolution.bit_length())]


def channel_table(resolution: int, channels: dict[int, int] | None, base: int, maximum: int) -> dict[int, int]:
    """Feature maps per block resolution: ``channels`` if given, else the papers' ``min(base / r, maximum)``."""
    resolutions = block_resolutions(resolution)
    if channels is None:
        return {r: min(base // r, maximum) for r in resolutions}
    table = {int(r): int(count) for r, count in channels.items()}
    if sorted(table) != resolutions or min(table.values()) < 1:
        raise UsageError(f"channels must give a positive count for each of {resolutions}, not {channels}")
    return {r: table[r] for r in resolutions}


def normalize_second_moment(x: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Scale each row of x [N, C] to a mean square of one."""
    return x * (x.square().mean(dim=1, keepdim=True) + eps).rsqrt()


class FullyConnected(nn.Module):
    """x [N, in] -> act(x W^T + b) [N, out]."""

    def __init__(self, in_features, out_features, activation="linear", bias_init=0.0, lr_multiplier=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init)))
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(x.dtype) * self.weight_gain
        bias = self.bias.to(x.dtype) * self.bias_gain
        if self.activation == "linear":
            return torch.addmm(bias, x, weight.t())
        return bias_act(x @ weight.t(), bias, act=self.activation)


class Conv2d(nn.Module):
    """x [N, in, H, W] -> convolution, optional up- or down-sampling by 2, bias, activation, gain, clamp."""

    def __init__(
        self, in_channels, out_channels, kernel_size, bias=True, activation="linear", up=1, down=1,
        resample_filter=(1, 3, 3, 1), conv_clamp=None,
    ):  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        weight = (self.weight * self.weight_gain).to(x.dtype)
        x = conv2d_resample(
            x, weight, f=self.resample_filter.float(), up=self.up, down=self.down, padding=self.padding,
            flip_weight=self.up == 1,
        )  # fmt: skip
        bias = None if self.bias is None else self.bias.to(x.dtype)
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act(x, bias, act=self.activation, gain=activation_gain(self.activation) * gain, clamp=clamp)


def activation_gain(activation: str) -> float:
    """Gain that keeps the variance through an activation that the networks use."""
    return math.sqrt(2) if activation in ("lrelu", "relu") else 1.0


def mapping_layers(in_features: int, width: int, count: int, lr_multiplier: float) -> dict[str, FullyConnected]:
    """Layers fc0 .. fc{count-1} of a mapping network, leaky ReLU each."""
    widths = [in_features] + [width] * count
    return {
        f"fc{i}": FullyConnected(widths[i], widths[i + 1], activation="lrelu", lr_multiplier=lr_multiplier)
        for i in range(count)
    }


def truncated(w_plus: torch.Tensor, w_avg: torch.Tensor, psi: float, cutoff: int | None) -> torch.Tensor:
    """w_plus [N, num_ws, w_dim], the first ``cutoff`` inputs, or all, moved to ``w_avg + psi (w - w_avg)``."""
    if psi == 1:
        return w_plus
    cutoff = w_plus.shape[1] if cutoff is None else cutoff
    return torch.cat([w_avg.lerp(w_plus[:, :cutoff], psi), w_plus[:, cutoff:]], dim=1)
