"""What all encoders share: pictures are checked and resized, and the mean latent is added."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinv.errors import UsageError
from fastinv.models.layers import block_resolutions


class Encoder(nn.Module):
    """Pictures -> style vectors of every layer. ``forward`` gives them relative to the mean latent.

    Args:
        num_ws: style inputs of the generator, 2 log2(its resolution) - 2.
        w_dim: width of a style vector.
        input_nc: channels of the pictures: 3 for RGB, 1 for sketches, the number of labels for one-hot label maps.
        input_resolution: size at which the network looks at pictures, a power of two of at least 8.

    ``config`` holds the constructor arguments. Buffer ``latent_avg`` [num_ws, w_dim]: what ``encode`` adds, the mean
    latent of the generator that the encoder was trained for; zeros where it predicts the latent itself.
    """

    rows: tuple[int, int] | None = None  # (first, end) of the resized picture that the network looks at; None is all
    origin: str | None = None  # name or path that it was loaded from
    generator_sha256: str | None = None  # `network_hash` of the generator that it was trained for, where known

    def __init__(self, num_ws: int, w_dim: int, input_nc: int, input_resolution: int):
        super().__init__()
        sizes = {"num_ws": num_ws, "w_dim": w_dim, "input_nc": input_nc}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a positive integer, not {value!r}")
        block_resolutions(input_resolution)  # refuses all but powers of two
        self.num_ws, self.w_dim, self.input_nc, self.input_resolution = num_ws, w_dim, input_nc, input_resolution
        self.config = sizes | {"input_resolution": input_resolution}
        self.register_buffer("latent_avg", torch.zeros(num_ws, w_dim))

    def encode(self, images: Tensor) -> Tensor:
        """Latent codes of pictures. Differentiable.

        Args:
            images: [N, input_nc, R, R] in [-1, 1], floating point; other sizes than ``input_resolution`` are resized.

        Returns:
            w_plus [N, num_ws, w_dim] in the encoder's own type.

        Raises:
            UsageError: another shape or an integer type.
        """
        return self(self.fit(images)) + self.latent_avg

    def fit(self, images: Tensor, channels: int | None = None) -> Tensor:
        """Pictures [N, channels, R, R] as ``forward`` takes them: the encoder's type, size and rows.

        Larger pictures are averaged over areas, smaller ones are interpolated bilinearly. ``channels`` defaults to
        ``input_nc``; errors as for ``encode``.
        """
        channels = channels or self.input_nc
        shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        if not isinstance(images, Tensor) or images.ndim != 4 or shape[1] != channels or not shape[2] == shape[3] > 0:
            raise UsageError(f"images must have shape [N, {channels}, R, R], not {shape}")
        if not images.is_floating_point():
            raise UsageError(f"images must be floating point in [-1, 1], not {images.dtype}; see fastinv.data.pictures")
        x = images.to(self.latent_avg.dtype)
        size = (self.input_resolution,) * 2
        if shape[2] > self.input_resolution:
            x = F.interpolate(x, size, mode="area")
        elif shape[2] < self.input_resolution:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x if self.rows is None else x[:, :, slice(*self.rows)]


class EqualisedConv2d(nn.Module):
    """Convolution that keeps the size, its weight scaled at run time by gain / sqrt(fan_in) (see models.layers).

    ``forward(x, bias)`` takes the bias from outside where the public names have it in another module.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 1.0, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.gain = gain / math.sqrt(in_channels * kernel_size**2)

    @property
    def scaled_weight(self) -> Tensor:
        """The weight that is convolved with."""
        return self.weight * self.gain

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.bias if bias is None else bias
        return F.conv2d(x, self.scaled_weight, bias, padding=self.weight.shape[-1] // 2)
