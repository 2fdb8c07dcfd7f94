"""Losses between pictures: ``Loss(target)`` is built once, then ``loss(images)`` gives one value per picture."""

from fastinv.losses.base import Loss, mean_per_picture, resize_mask
from fastinv.losses.lpips import LPIPS, load_lpips
from fastinv.losses.perceptual import PerceptualLoss
from fastinv.losses.pixel import PixelLoss, mse, psnr
from fastinv.losses.trunks import load_trunk

__all__ = [
    "LPIPS",
    "Loss",
    "PerceptualLoss",
    "PixelLoss",
    "load_lpips",
    "load_trunk",
    "mean_per_picture",
    "mse",
    "psnr",
    "resize_mask",
]
