"""StyleGAN2's operations: each with a native kernel and a reference in plain PyTorch (`<op>_ref`)."""

from . import compat
from .bias_act import bias_act, bias_act_ref
from .conv2d_resample import conv2d_resample, conv2d_resample_ref
from .modulated_conv2d import modulated_conv2d, modulated_conv2d_ref
from .noise import noise_regularization, noise_regularization_ref, normalize_noise_, normalize_noise__ref
from .styled_conv import styled_conv, styled_conv_ref
from .upfirdn2d import (
    downsample2d,
    downsample2d_ref,
    filter2d,
    filter2d_ref,
    setup_filter,
    upfirdn2d,
    upfirdn2d_ref,
    upsample2d,
    upsample2d_ref,
)

__all__ = [
    "compat",
    "bias_act",
    "bias_act_ref",
    "conv2d_resample",
    "conv2d_resample_ref",
    "downsample2d",
    "downsample2d_ref",
    "filter2d",
    "filter2d_ref",
    "modulated_conv2d",
    "modulated_conv2d_ref",
    "noise_regularization",
    "noise_regularization_ref",
    "normalize_noise_",
    "normalize_noise__ref",
    "setup_filter",
    "styled_conv",
    "styled_conv_ref",
    "upfirdn2d",
    "upfirdn2d_ref",
    "upsample2d",
    "upsample2d_ref",
]
