"""Image2StyleGAN (Abdal, Qin, Wonka 2019, arXiv 1904.03189): optimise a W+ code for pixel and perceptual distance."""

from dataclasses import dataclass
from typing import ClassVar

from fastinv.inversion.method import Method


@dataclass(frozen=True)
class Image2StyleGAN(Method):
    """``w* = argmin sum_j lambda_j / N_j ||F_j(G(w)) - F_j(I)||^2 + lambda_mse / N ||G(w) - I||^2``, by Adam.

    The paper: lambda all 1, VGG-16 conv1_1, conv1_2, conv3_2, conv4_2 at 256, Adam at a constant 0.01 for 5000 steps
    (``steps=5000, learning_rate=0.01, ramp_up=0, ramp_down=0``), mean start for faces, uniform start in [-1, 1] for
    other pictures. It does not say whether features are taken before or after the ReLU, nor how inputs are normalised.
    lambda_mse is ``pixel_weight``, lambda_j are ``layer_weights`` times ``perceptual_weight``.
    """

    name: ClassVar[str] = "image2stylegan"
