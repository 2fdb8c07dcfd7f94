"""Pixel losses, and the metrics of the same family."""

import math

import torch
from torch.nn import functional

from fastinv.losses.base import Loss, check_target, mean_per_picture


class PixelLoss(Loss):
    """Mean squared error, ``||M * (G - I)||^2 / N`` with N the scalars of a picture (Image2StyleGAN's pixel term).

    Args:
        target: [N, 3, R, R].
        mask: soft mask [N, 1, R, R] in [0, 1], or None.

    Raises:
        UsageError: target or mask have another shape.
    """

    per_picture = ("target", "mask")
    distance = staticmethod(torch.square)  # of one scalar

    def __init__(self, target: torch.Tensor, mask: torch.Tensor | None = None):
        check_target(type(self).__name__, target, mask)
        self.target, self.mask = target, mask

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N]."""
        difference = images - self.target
        if self.mask is not None:
            difference = difference * self.mask
        return mean_per_picture(self.distance(difference))


class L1Loss(PixelLoss):
    """Mean absolute error, ``sum |M * (G - I)| / N``; arguments as for ``PixelLoss``."""

    distance = staticmethod(torch.abs)


def log_cosh(x: torch.Tensor) -> torch.Tensor:
    """``log(cosh(x))``: x^2 / 2 where x is small, |x| - log 2 where it is large, exact and finite in both."""
    size = x.abs()
    # cosh(x) = 1 + 2 sinh(x / 2)^2 keeps the digits of small x; the clamp keeps large ones, not taken, from overflow.
    small = torch.log1p(2 * torch.sinh(x.clamp(-1, 1) / 2).square())
    return torch.where(size < 1, small, size + functional.softplus(-2 * size) - math.log(2))


class LogCoshLoss(PixelLoss):
    """Mean log-cosh error, ``sum log(cosh(M * (G - I))) / N`` (pbaylies' stylegan-encoder); arguments as for
    ``PixelLoss``. Quadratic for small differences, linear for large ones, so that outliers count less.
    """

    distance = staticmethod(log_cosh)


@torch.no_grad()
def mse(images: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of pictures clamped to [-1, 1], in float32 at least: two [N, 3, R, R] -> [N].

    With a mask [N, 1, R, R] it is the weighted mean over the pixels that count.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    squared = (images.to(dtype).clamp(-1, 1) - target.to(dtype).clamp(-1, 1)).square()
    if mask is None:
        return mean_per_picture(squared)
    return mean_per_picture(squared * mask) / mean_per_picture(mask.to(dtype))


def psnr(images: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] (data range 2), at most 100: two [N, 3, R, R] -> [N]."""
    return (10 * torch.log10(4 / mse(images, target, mask))).clamp(max=100)
