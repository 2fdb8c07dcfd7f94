"""StyleGAN2's modulated convolution (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN").

The paper scales the weights by the style and normalises each filter::

    w'[n, o, i, k] = d[n, o] * styles[n, i] * weight[o, i, k]
    d[n, o] = 1 / sqrt(sum over i, k of (styles[n, i] * weight[o, i, k])^2 + 1e-8)

Both factors leave the sum over positions, so here the style scales the input channels and d the output channels, and
d^2 needs only ``styles^2 @ sum over k of weight^2``. No per-sample weights are ever built.
"""

from __future__ import annotations

import torch

from ..errors import UsageError
from .conv2d_resample import autocast_input, check_conv, conv2d_resample, conv2d_resample_ref

EPSILON = 1e-8  # under the square root of the demodulation


def modulated_conv2d(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None, demodulate=True, flip_weight=True,
    fused_modconv=True, impl="auto", *, weight_sumsq=None,
):  # fmt: skip
    """Convolution whose weights are scaled by a style per sample; differentiable any number of times.

    Args:
        x: [N, C, H, W], any floating dtype.
        weight: [out, C, height, width]; convolved in the dtype of x.
        styles: [N, C], the factor of each input channel.
        noise: added to the result; any shape that broadcasts onto it, usually [N or 1, 1, H, W].
        up, down, padding, resample_filter, flip_weight: as in `conv2d_resample`. StyleGAN2 uses flip_weight = (up == 1).
        demodulate: normalise each filter to unit norm.
        fused_modconv: accepted for compatibility and ignored: there is one way of computing it, for any batch size.
        impl: "auto", "native" (an error says why if it cannot) or "ref".
        weight_sumsq: ``weight.square().sum((2, 3))`` [out, C], where it is known beforehand; only for a frozen weight.

    Returns:
        [N, out, H', W'] with the size of `conv2d_resample`, in the dtype of x (of autocast where that is on).
        Demodulation coefficients are computed in float32 or better. UsageError for arguments that do not fit together.
    """
    return _modulated(
        conv2d_resample, x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight, weight_sumsq
    )


def modulated_conv2d_ref(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None, demodulate=True, flip_weight=True,
    fused_modconv=True, *, weight_sumsq=None,
):  # fmt: skip
    """`modulated_conv2d` in plain PyTorch."""
    return _modulated(
        conv2d_resample_ref, x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight,
        weight_sumsq,
    )  # fmt: skip


def _modulated(
    resample, x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight, weight_sumsq
):  # fmt: skip
    check_modulated("modulated_conv2d", x, weight, styles, noise, up, down, padding, resample_filter, weight_sumsq)
    x = autocast_input(x)
    y = x * styles.to(x.dtype)[:, :, None, None]
    y = resample(
        y, weight, f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight
    )  # fmt: skip
    if not demodulate:
        return y if noise is None else y + noise.to(y.dtype)
    d = demodulation(weight, styles, weight_sumsq).to(y.dtype)[:, :, None, None]
    return y * d if noise is None else torch.addcmul(noise.to(y.dtype), y, d)


def demodulation(weight, styles, weight_sumsq=None) -> torch.Tensor:
    """Coefficients d [N, out], in float32 or, if weight or styles are, float64."""
    dtype = torch.promote_types(torch.promote_types(weight.dtype, styles.dtype), torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        if weight_sumsq is None:
            weight_sumsq = weight.to(dtype).square().sum((2, 3))
        return (styles.to(dtype).square() @ weight_sumsq.to(dtype).t() + EPSILON).rsqrt()


def check_modulated(name, x, weight, styles, noise, up, down, padding, resample_filter, weight_sumsq) -> None:
    """One clear line for arguments that do not fit together."""
    check_conv(name, x, weight, resample_filter, up, down, 1, padding)
    if not isinstance(styles, torch.Tensor) or list(styles.shape) != [x.shape[0], x.shape[1]]:
        shape = list(styles.shape) if isinstance(styles, torch.Tensor) else type(styles).__name__
        raise UsageError(f"{name}: styles must be [N, C] = {[x.shape[0], x.shape[1]]}, got {shape}")
    if noise is not None and not isinstance(noise, torch.Tensor):
        raise UsageError(f"{name}: noise must be a tensor or None, got {type(noise).__name__}")
    if weight_sumsq is not None:
        if list(weight_sumsq.shape) != list(weight.shape[:2]):
            raise UsageError(
                f"{name}: weight_sumsq must be [out, C] = {list(weight.shape[:2])}, got {list(weight_sumsq.shape)}"
            )
        if torch.is_grad_enabled() and weight.requires_grad:
            raise UsageError(f"{name}: weight_sumsq is for a frozen weight; leave it out when weight requires a gradient")
