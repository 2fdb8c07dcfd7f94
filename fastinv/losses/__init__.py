"""Losses of an inversion. ``Loss(target)`` is built once, then ``loss(images)`` gives one value per picture.

Priors on codes are called with the codes, ``DomainLoss`` with both.
"""

from fastinv.losses.adversarial import DiscriminatorLoss
from fastinv.losses.base import Loss, mean_per_picture, resize_mask
from fastinv.losses.latent import DomainLoss, MeanDistance, PNorm, PNormStatistics, pnorm_statistics
from fastinv.losses.lpips import LPIPS, load_lpips
from fastinv.losses.noise import NoiseRegularizer
from fastinv.losses.perceptual import PerceptualLoss, load_perceptual
from fastinv.losses.pixel import L1Loss, LogCoshLoss, PixelLoss, mse, psnr
from fastinv.losses.structure import MSSSIMLoss, ssim
from fastinv.losses.style import StyleLoss, load_style
from fastinv.losses.trunks import load_trunk

__all__ = [
    "LPIPS",
    "DiscriminatorLoss",
    "DomainLoss",
    "L1Loss",
    "LogCoshLoss",
    "Loss",
    "MSSSIMLoss",
    "MeanDistance",
    "NoiseRegularizer",
    "PNorm",
    "PNormStatistics",
    "PerceptualLoss",
    "PixelLoss",
    "StyleLoss",
    "load_lpips",
    "load_perceptual",
    "load_style",
    "load_trunk",
    "mean_per_picture",
    "mse",
    "pnorm_statistics",
    "psnr",
    "resize_mask",
    "ssim",
]
