"""StyleGAN2's synthesis layer as one op: modulate, convolve, demodulate, add noise and bias, activate, scale, clamp."""

from __future__ import annotations

import torch

from .bias_act import bias_act_ref
from .modulated_conv2d import modulated_conv2d_ref


def styled_conv(
    x, weight, styles, bias=None, noise=None, noise_strength=None, up=1, resample_filter=None, demodulate=True,
    act="lrelu", gain=None, clamp=None, flip_weight=None, weight_sumsq=None, impl="auto",
):  # fmt: skip
    """One layer of StyleGAN2's synthesis network::

        y = clamp(gain * act(modulated_conv2d(x, weight, styles) + noise_strength * noise + bias))

    For inference and for first derivatives (inversion, encoders): one pass before and one after the convolution in
    each direction, and nothing kept but x and y. A second derivative (path length regularisation, R1 through the
    generator) is refused; use `modulated_conv2d` and `bias_act` for it.

    Args:
        x: [N, C, H, W], any floating dtype. The result has its dtype, or that of autocast where that is on.
        weight: [out, C, k, k] with odd k. Frozen (not requiring a gradient), it costs no weight-gradient convolution.
        styles: [N, C], the factor of each input channel.
        bias: [out] or None.
        noise: maps of the size of the result: [H', W'] or [1, 1, H', W'] for all samples, [N, 1, H', W'] for each.
        noise_strength: factor of the noise, a number or a tensor with one element; None is 1.
        up: 1 or more; the result is ``up`` times as large as x (filtered by resample_filter).
        resample_filter: float32 filter from `setup_filter`; None is the identity.
        demodulate: normalise each filter to unit norm.
        act, gain, clamp: as in `bias_act` (gain None is the activation's own, clamp None does not clamp).
        flip_weight: True is correlation, False convolution; None is StyleGAN2's habit, ``up == 1``.
        weight_sumsq: ``weight.square().sum((2, 3))`` [out, C], where it is known beforehand; only for a frozen weight.
        impl: "auto", "native" (an error says why if it cannot) or "ref".

    Returns:
        [N, out, H * up, W * up].
    """
    return styled_conv_ref(
        x, weight, styles, bias, noise, noise_strength, up, resample_filter, demodulate, act, gain, clamp, flip_weight,
        weight_sumsq,
    )  # fmt: skip


def styled_conv_ref(
    x, weight, styles, bias=None, noise=None, noise_strength=None, up=1, resample_filter=None, demodulate=True,
    act="lrelu", gain=None, clamp=None, flip_weight=None, weight_sumsq=None,
):  # fmt: skip
    """`styled_conv` in plain PyTorch; differentiable any number of times."""
    if noise is not None and noise_strength is not None:
        noise = noise * noise_strength
    flip_weight = up == 1 if flip_weight is None else flip_weight
    y = modulated_conv2d_ref(
        x, weight, styles, noise, up=up, padding=weight.shape[2] // 2, resample_filter=resample_filter,
        demodulate=demodulate, flip_weight=flip_weight, weight_sumsq=weight_sumsq,
    )  # fmt: skip
    return bias_act_ref(y, None if bias is None else bias.to(y.dtype), act=act, gain=gain, clamp=clamp)
