"""Pixel loss and the metrics of the same family."""

import torch

from fastinv.losses.base import Loss, mean_per_picture


class PixelLoss(Loss):
    """Mean squared error, ``||M * (G - I)||^2 / N`` with N the scalars of a picture (Image2StyleGAN's pixel term).

    Args:
        target: [N, 3, R, R].
        mask: soft mask [N, 1, R, R] in [0, 1], or None.
    """

    per_picture = ("target", "mask")

    def __init__(self, target: torch.Tensor, mask: torch.Tensor | None = None):
        self.target, self.mask = target, mask

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N]."""
        difference = images - self.target
        if self.mask is not None:
            difference = difference * self.mask
        return mean_per_picture(difference.square())


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
