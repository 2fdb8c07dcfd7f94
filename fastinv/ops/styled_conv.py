"""StyleGAN2's synthesis layer as one op: modulate, convolve, demodulate, add noise and bias, activate, scale, clamp.

With s the styles, W the weight, and d the demodulation coefficients (see `modulated_conv2d`)::

    u = conv(x * s, W);  v = u * d + noise_strength * noise + bias;  y = clamp(gain * act(v), -clamp, clamp)

Backward, given dy: one pass makes dv = dy * gain * act'(v) (zero where clamped), du = dv * d, and the sums
``sum dv * u`` (for d), ``sum dv`` (for bias and noise); one convolution takes du to the gradient of x * s; one pass
multiplies that by s and sums its product with x (for s). linear, relu and lrelu allow v, thus u, to be told from y, so
x and y are all that is kept; the other activations keep u as well. Sums of runs of 32 pixels are added in float64.
"""

from __future__ import annotations

import torch

from ..errors import UsageError
from . import _dispatch, _layout
from .bias_act import ACTIVATIONS, bias_act_ref
from .conv2d_resample import autocast_input, composed_resample, native_checks, plan, resample_gradients
from .modulated_conv2d import check_modulated, compute_dtype, demodulation, modulated_conv2d_ref, noise_maps
from .synthesis import SAME

OP = "styled_conv"


def styled_conv(
    x, weight, styles, bias=None, noise=None, noise_strength=None, up=1, resample_filter=None, demodulate=True,
    act="lrelu", gain=None, clamp=None, flip_weight=None, weight_sumsq=None, impl="auto",
):  # fmt: skip
    """One layer of StyleGAN2's synthesis network::

        y = clamp(gain * act(modulated_conv2d(x, weight, styles) + noise_strength * noise + bias))

    For inference and for first derivatives (inversion, encoders): one pass before and one after the convolution in
    each direction, and nothing kept but x and y. The native op refuses a second derivative (path length regularisation,
    R1 through the generator) with an error; use `modulated_conv2d` and `bias_act` for it. channels_last x is fastest.

    Args:
        x: [N, C, H, W], any floating dtype.
        weight: [out, C, k, k] with odd k. Frozen (not requiring a gradient), it costs no weight-gradient convolution.
        styles: [N, C], the factor of each input channel.
        bias: [out] or None.
        noise: maps of the size of the result: [H', W'] or [1, 1, H', W'] for all samples, [N, 1, H', W'] for each.
        noise_strength: factor of the noise, a number or a tensor with one element; None is 1.
        up: integer factor; the result is ``up`` times as large as x, filtered by resample_filter.
        resample_filter: float32 filter from `setup_filter`; None is the identity.
        demodulate: normalise each filter to unit norm.
        act, gain, clamp: as in `bias_act` (gain None is the activation's own, clamp None does not clamp).
        flip_weight: True is correlation, False convolution; None is StyleGAN2's habit, ``up == 1``.
        weight_sumsq: ``weight.square().sum((2, 3))`` [out, C], where it is known beforehand; only for a frozen weight.
        impl: "auto", "native" (an error says why if it cannot) or "ref".

    Returns:
        [N, out, H * up, W * up] in the dtype of x (of autocast where that is on) and its memory format. UsageError for
        arguments that do not fit together.
    """
    _check(x, weight, styles, bias, noise, noise_strength, up, resample_filter, act, clamp, weight_sumsq)
    x = autocast_input(x)
    if _dispatch.choose(OP, impl, x, *native_checks(x, weight, resample_filter)) == "ref":
        return styled_conv_ref(
            x, weight, styles, bias, noise, noise_strength, up, resample_filter, demodulate, act, gain, clamp,
            flip_weight, weight_sumsq,
        )  # fmt: skip
    compute = compute_dtype(x)
    noise = noise_maps(noise, _output_shape(x, weight, up), compute)
    if noise is None:
        noise_strength = None
    elif noise_strength is not None:
        noise_strength = torch.as_tensor(noise_strength, dtype=compute, device=x.device).reshape([])
    spec = ACTIVATIONS[act]
    y, _, _ = torch.ops.fastinv.styled_conv(
        x, weight, styles.to(compute), None if bias is None else bias.to(compute), noise, noise_strength,
        resample_filter, None if weight_sumsq is None else weight_sumsq.to(compute), up, demodulate, spec.code,
        spec.alpha, spec.gain if gain is None else float(gain), -1.0 if clamp is None else float(clamp),
        up == 1 if flip_weight is None else flip_weight,
    )  # fmt: skip
    return y


def styled_conv_ref(
    x, weight, styles, bias=None, noise=None, noise_strength=None, up=1, resample_filter=None, demodulate=True,
    act="lrelu", gain=None, clamp=None, flip_weight=None, weight_sumsq=None,
):  # fmt: skip
    """`styled_conv` in plain PyTorch; differentiable any number of times."""
    _check(x, weight, styles, bias, noise, noise_strength, up, resample_filter, act, clamp, weight_sumsq)
    if noise is not None and noise_strength is not None:
        noise = noise * noise_strength
    y = modulated_conv2d_ref(
        x, weight, styles, noise, up=up, padding=_padding(weight), resample_filter=resample_filter,
        demodulate=demodulate, flip_weight=up == 1 if flip_weight is None else flip_weight, weight_sumsq=weight_sumsq,
    )  # fmt: skip
    return bias_act_ref(y, None if bias is None else bias.to(y.dtype), act=act, gain=gain, clamp=clamp)


def _output_shape(x, weight, up: int) -> list[int]:
    return [x.shape[0], weight.shape[0], x.shape[2] * up, x.shape[3] * up]


def _padding(weight) -> tuple[int, int]:
    return weight.shape[-1] // 2, weight.shape[-2] // 2


def _check(x, weight, styles, bias, noise, noise_strength, up, resample_filter, act, clamp, weight_sumsq) -> None:
    padding = _padding(weight) if isinstance(weight, torch.Tensor) and weight.ndim == 4 else 0
    check_modulated(OP, x, weight, styles, noise, up, 1, padding, resample_filter, weight_sumsq)
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise UsageError(f"{OP}: the kernel must have odd height and width, got {weight.shape[2]}x{weight.shape[3]}")
    if act not in ACTIVATIONS:
        raise UsageError(f"{OP}: act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if clamp is not None and clamp < 0:
        raise UsageError(f"{OP}: clamp must be at least 0 (or None for no clamp), got {clamp}")
    if bias is not None and (not isinstance(bias, torch.Tensor) or list(bias.shape) != [weight.shape[0]]):
        shape = list(bias.shape) if isinstance(bias, torch.Tensor) else type(bias).__name__
        raise UsageError(f"{OP}: bias must be [out] = [{weight.shape[0]}], got {shape}")
    if noise is not None and noise_maps(noise, _output_shape(x, weight, up), noise.dtype) is None:
        size = f"{x.shape[2] * up}, {x.shape[3] * up}"
        raise UsageError(f"{OP}: noise must be [{size}] or [{x.shape[0]} or 1, 1, {size}], got {list(noise.shape)}")
    if isinstance(noise_strength, torch.Tensor) and noise_strength.numel() != 1:
        raise UsageError(f"{OP}: noise_strength must have one element, got {list(noise_strength.shape)}")


def _keeps_u(act: int, gain: float) -> bool:
    """Whether y does not tell v; the rule of csrc/cpu/styled_conv.cpp."""
    return act > ACTIVATIONS["lrelu"].code or gain <= 0


def _fake(
    x, weight, styles, bias, noise, noise_strength, resample_filter, weight_sumsq, up, demodulate, act, alpha, gain,
    clamp, flip_weight,
):  # fmt: skip
    shape = _output_shape(x, weight, up)
    y = _layout.empty_like(x, shape)
    d = styles.new_empty(shape[:2] if demodulate else [0])
    return y, d, torch.empty_like(y) if _keeps_u(act, gain) else y.new_empty([0])


def _setup_context(ctx, inputs, output):
    x, weight, styles, bias, noise, noise_strength, f, weight_sumsq, *ctx.settings = inputs
    y, d, u = output
    _, ctx.demodulate, act, _, gain, _, _ = ctx.settings
    saved = u if _keeps_u(act, gain) else y
    ctx.save_for_backward(saved, x, weight, styles, d, bias, noise, noise_strength, f, weight_sumsq)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dd, du):
    if dy is None:
        return (None,) * 15
    needs = list(ctx.needs_input_grad[:6])  # x, weight, styles, bias, noise, noise_strength
    gradients = torch.ops.fastinv.styled_conv_backward(dy, *ctx.saved_tensors, *ctx.settings, *needs)
    return *[gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)], *[None] * 9


def _fake_backward(
    dy, saved, x, weight, styles, d, bias, noise, noise_strength, resample_filter, weight_sumsq, up, demodulate, act,
    alpha, gain, clamp, flip_weight, need_x, need_weight, need_styles, need_bias, need_noise, need_strength,
):  # fmt: skip
    return (
        _layout.empty_like(x) if need_x else x.new_empty([0]),
        weight.new_empty(weight.shape) if need_weight else x.new_empty([0]),
        styles.new_empty(styles.shape) if need_styles else x.new_empty([0]),
        styles.new_empty([weight.shape[0]]) if need_bias else x.new_empty([0]),
        noise.new_empty(noise.shape) if need_noise else x.new_empty([0]),
        styles.new_empty([]) if need_strength else x.new_empty([0]),
    )


def composed_styled(
    x, weight, styles, bias, noise, noise_strength, f, weight_sumsq, up, demodulate, act, alpha, gain, clamp,
    flip_weight,
):  # fmt: skip
    """The native op, made of native passes and torch's convolution: its kernel on CUDA. Runs on any device."""
    memory_format = _layout.memory_format(x)
    ops = torch.ops.fastinv
    u = ops.modulated_conv2d_scale(x, styles)
    u = composed_resample(u, weight, f, up, 1, _paddings(weight), 1, flip_weight, False)
    d = demodulation(weight, styles, weight_sumsq) if demodulate else styles.new_empty([0])
    noise = noise if noise is None or noise_strength is None else noise * noise_strength
    if _keeps_u(act, gain):
        v = _before_activation(u, d if demodulate else None, noise)
        b = None if bias is None else bias.to(v.dtype)
        y = ops.bias_act(v, b, 0 if b is None else 1, act, alpha, gain, clamp)
        return y.contiguous(memory_format=memory_format), d, u
    y, *_ = ops.synthesis_epilogue(
        u, d if demodulate else None, noise, 1.0, bias, None, None, None, None, None, [], SAME, _slope(act, alpha),
        gain, clamp, -1.0,
    )  # fmt: skip
    return y.contiguous(memory_format=memory_format), d, u.new_empty([0])


def _paddings(weight) -> list[int]:
    x, y = _padding(weight)
    return [x, x, y, y]


def _slope(act: int, alpha: float) -> float:
    """The slope below zero of linear, relu and lrelu."""
    return (1.0, 0.0, alpha)[act]


def _before_activation(u, d, noise):
    v = u if d is None else torch.ops.fastinv.modulated_conv2d_scale(u, d)
    return v if noise is None else (v + noise).to(u.dtype)


def composed_styled_backward(
    dy, saved, x, weight, styles, d, bias, noise, noise_strength, f, weight_sumsq, up, demodulate, act, alpha, gain,
    clamp, flip_weight, need_x, need_weight, need_styles, need_bias, need_noise, need_strength,
):  # fmt: skip
    """The native backward op, composed like `composed_styled`."""
    ops, compute = torch.ops.fastinv, styles.dtype
    scaled_noise = noise if noise is None or noise_strength is None else noise * noise_strength
    coefficient = d if demodulate else None
    if _keeps_u(act, gain):
        v = _before_activation(saved, coefficient, scaled_noise)
        b = None if bias is None else bias.to(v.dtype)
        if act > ACTIVATIONS["lrelu"].code:
            dv, _ = ops.bias_act_backward(dy, v, b, 0 if b is None else 1, act, alpha, gain, clamp, False)
        else:  # the gain is not positive: the output does not tell the sign of its input
            v = v if b is None else v + b[:, None, None]
            slope = torch.full_like(v, gain).where(v > 0, gain * _slope(act, alpha))
            dv = dy * slope if clamp < 0 else torch.where((v * slope).abs() < clamp, dy * slope, 0.0)
        du = dv if coefficient is None else ops.modulated_conv2d_scale(dv, d)
        dd = ops.modulated_conv2d_dot(dv, saved)
        wide = dv.to(compute)
        dbias, dmap = wide.sum((0, 2, 3)), wide.sum(1, keepdim=True)
    else:
        du, sums, dmap = ops.synthesis_epilogue_backward(
            dy.contiguous(memory_format=torch.channels_last), None, saved, None, coefficient, scaled_noise, 1.0, None,
            None, None, [], SAME, _slope(act, alpha), gain, clamp, -1.0, need_noise or need_strength,
        )  # fmt: skip
        sums = sums.double().sum(1)
        dbias, dd = sums[:, 4].sum(0).to(compute), sums[:, 2] - sums[:, 3]
        if demodulate:
            dd = ((dd if bias is None else dd - bias * sums[:, 4]) / d).to(compute)

    nothing = [x.new_empty([0]) for _ in range(6)]
    steps = plan(f, weight.shape[2:], up, 1, _paddings(weight))
    modulated = ops.modulated_conv2d_scale(x, styles) if need_weight else x
    du = du.contiguous(memory_format=_layout.memory_format(x))
    dmodulated, dweight = resample_gradients(
        du, modulated, weight.to(x.dtype), f, steps, 1, flip_weight, False, need_x or need_styles, need_weight
    )
    dstyles = ops.modulated_conv2d_dot(dmodulated, x) if need_styles else None
    if demodulate and (need_styles or need_weight):
        q = dd * d.pow(3)
        if need_styles:
            sumsq = weight.to(compute).square().sum((2, 3)) if weight_sumsq is None else weight_sumsq
            dstyles = dstyles - styles * (q @ sumsq)
        if need_weight:
            dweight = dweight - weight * (q.t() @ styles.square())[:, :, None, None]
    gradients = [
        ops.modulated_conv2d_scale(dmodulated, styles) if need_x else None,
        dweight.to(weight.dtype).contiguous() if need_weight else None,
        dstyles,
        dbias if need_bias else None,
        None,
        None,
    ]
    if noise is not None and (need_noise or need_strength):
        dmap = dmap if len(noise) == len(x) else dmap.sum(0, keepdim=True)
        gradients[4] = dmap * (1.0 if noise_strength is None else noise_strength) if need_noise else None
        gradients[5] = (dmap * noise).sum() if need_strength else None
    return tuple(empty if gradient is None else gradient for gradient, empty in zip(gradients, nothing, strict=True))


def _no_second_derivative(ctx, *gradients):
    raise UsageError(
        f"{OP}: the native op has no second derivative; use modulated_conv2d and bias_act, or {OP} with impl='ref'"
    )


if OP in _dispatch.KERNELS:
    torch.library.register_fake("fastinv::styled_conv", _fake)
    torch.library.register_fake("fastinv::styled_conv_backward", _fake_backward)
    torch.library.register_autograd("fastinv::styled_conv", _backward, setup_context=_setup_context)
    torch.library.register_autograd("fastinv::styled_conv_backward", _no_second_derivative)
    _parts = (
        "upfirdn2d", "bias_act", "bias_act_backward", "modulated_conv2d_scale", "modulated_conv2d_dot",
        "synthesis_epilogue", "synthesis_epilogue_backward",
    )  # fmt: skip
    _dispatch.register_composed(OP, "cuda", composed_styled, *_parts)
    _dispatch.register_composed(OP + "_backward", "cuda", composed_styled_backward, *_parts)
