"""StyleGAN2's modulated convolution (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN").

The paper scales the weights by the style and normalises each filter::

    w'[n, o, i, k] = d[n, o] * styles[n, i] * weight[o, i, k]
    d[n, o] = 1 / sqrt(sum over i, k of (styles[n, i] * weight[o, i, k])^2 + 1e-8)

Both factors leave the sum over positions, so here the style scales the input channels and d the output channels, and
d needs only ``styles^2`` and ``sum over k of weight^2``. No per-sample weights are ever built.
"""

from __future__ import annotations

import torch

from ..errors import UsageError
from . import _dispatch, _layout
from .conv2d_resample import (
    autocast_input,
    check_conv,
    composed_resample,
    conv2d_resample_ref,
    native_checks,
    output_shape,
    plan,
    resample_gradients,
)
from .upfirdn2d import parse_padding

OP = "modulated_conv2d"
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
        noise: added to the result; any shape that broadcasts onto it, usually [N or 1, 1, H', W'].
        up, down, padding, resample_filter, flip_weight: as in `conv2d_resample`. StyleGAN2 has flip_weight = (up == 1).
        demodulate: normalise each filter to unit norm.
        fused_modconv: accepted for compatibility and ignored: there is one way of computing it, for any batch size.
        impl: "auto", "native" (an error says why if it cannot) or "ref".
        weight_sumsq: ``weight.square().sum((2, 3))`` [out, C], where it is known beforehand; only for a frozen weight.

    Returns:
        [N, out, H', W'] with the size of `conv2d_resample`, in the dtype of x (of autocast where that is on).
        Demodulation coefficients are computed in float32 or better. UsageError for arguments that do not fit together.
    """
    check_modulated(OP, x, weight, styles, noise, up, down, padding, resample_filter, weight_sumsq)
    x = autocast_input(x)
    if _dispatch.choose(OP, impl, x, *native_checks(x, weight, resample_filter)) == "ref":
        return modulated_conv2d_ref(
            x, weight, styles, noise, up, down, padding, resample_filter, demodulate, flip_weight,
            weight_sumsq=weight_sumsq,
        )  # fmt: skip
    compute = compute_dtype(x)
    shape = output_shape(x, weight, up, down, padding)
    maps = noise_maps(noise, shape, compute)
    sumsq = None if weight_sumsq is None else weight_sumsq.to(compute)
    y = torch.ops.fastinv.modulated_conv2d(
        x, weight, styles.to(compute), maps, resample_filter, sumsq, up, down, list(parse_padding(OP, padding)),
        demodulate, flip_weight,
    )  # fmt: skip
    return y if maps is not None or noise is None else y + noise.to(y.dtype)


def modulated_conv2d_ref(
    x, weight, styles, noise=None, up=1, down=1, padding=0, resample_filter=None, demodulate=True, flip_weight=True,
    fused_modconv=True, *, weight_sumsq=None,
):  # fmt: skip
    """`modulated_conv2d` in plain PyTorch."""
    check_modulated(OP, x, weight, styles, noise, up, down, padding, resample_filter, weight_sumsq)
    x = autocast_input(x)
    y = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample_ref(y, weight, resample_filter, up, down, padding, flip_weight=flip_weight)
    if not demodulate:
        return y if noise is None else y + noise.to(y.dtype)
    d = demodulation(weight, styles, weight_sumsq).to(y.dtype)[:, :, None, None]
    return y * d if noise is None else torch.addcmul(noise.to(y.dtype), y, d)


def composed_modulated(
    x, weight, styles, noise, resample_filter, weight_sumsq, up, down, padding, demodulate, flip_weight
) -> torch.Tensor:
    """The native op, made of native scalings and `composed_resample`: its kernel on CUDA. On any device."""
    scale = torch.ops.fastinv.modulated_conv2d_scale
    y = scale(x, styles)
    y = composed_resample(y, weight, resample_filter, up, down, padding, 1, flip_weight, False)
    if demodulate:
        y = scale(y, demodulation(weight, styles, weight_sumsq))
    y = y if noise is None else y.add_(noise)
    return y.contiguous(memory_format=_layout.memory_format(x))


def demodulation(weight, styles, weight_sumsq=None) -> torch.Tensor:
    """Coefficients d [N, out], in float32 or, if weight or styles are, float64."""
    dtype = torch.promote_types(torch.promote_types(weight.dtype, styles.dtype), torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        if weight_sumsq is None:
            weight_sumsq = weight.to(dtype).square().sum((2, 3))
        return (styles.to(dtype).square() @ weight_sumsq.to(dtype).t() + EPSILON).rsqrt()


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Dtype of the small operands (styles, bias, noise) of the native ops."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def noise_maps(noise, shape: list[int], dtype: torch.dtype) -> torch.Tensor | None:
    """noise as [N or 1, 1, H, W] if it is one map for all samples or one for each, else None."""
    if noise is None:
        return None
    one, each = [1, 1, *shape[2:]], [shape[0], 1, *shape[2:]]
    padded = [1] * (4 - noise.ndim) + list(noise.shape)
    return noise.reshape(padded).to(dtype) if padded in (one, each) else None


def check_modulated(name, x, weight, styles, noise, up, down, padding, resample_filter, weight_sumsq) -> None:
    """One clear line for arguments that do not fit together."""
    check_conv(name, x, weight, resample_filter, up, down, 1, padding)
    if not isinstance(styles, torch.Tensor) or list(styles.shape) != [x.shape[0], x.shape[1]]:
        shape = list(styles.shape) if isinstance(styles, torch.Tensor) else type(styles).__name__
        raise UsageError(f"{name}: styles must be [N, C] = {[x.shape[0], x.shape[1]]}, got {shape}")
    if noise is not None and not isinstance(noise, torch.Tensor):
        raise UsageError(f"{name}: noise must be a tensor or None, got {type(noise).__name__}")
    if weight_sumsq is None:
        return
    if list(weight_sumsq.shape) != list(weight.shape[:2]):
        shape, wanted = list(weight_sumsq.shape), list(weight.shape[:2])
        raise UsageError(f"{name}: weight_sumsq must be [out, C] = {wanted}, got {shape}")
    if torch.is_grad_enabled() and weight.requires_grad:
        raise UsageError(f"{name}: weight_sumsq is only for a frozen weight; leave it out while training")


def _fake(x, weight, styles, noise, resample_filter, weight_sumsq, up, down, padding, demodulate, flip_weight):
    return _layout.empty_like(x, output_shape(x, weight, up, down, padding))


def _setup_context(ctx, inputs, output):
    x, weight, styles, noise, f, weight_sumsq, ctx.up, ctx.down, ctx.padding, ctx.demodulate, ctx.flip_weight = inputs
    ctx.save_for_backward(x, weight, styles, noise, f, weight_sumsq, output if ctx.demodulate else None)


def _backward(ctx, dy):
    """Made of differentiable ops, so it has a derivative itself.

    With u the convolution of x * s: y = u * d + noise, so the gradient of d is sum(dy * (y - noise)) / d.
    """
    x, weight, styles, noise, f, weight_sumsq, y = ctx.saved_tensors
    dy = dy.contiguous(memory_format=_layout.memory_format(x))  # a picture's gradient comes in another layout
    need_x, need_weight, need_styles, need_noise = ctx.needs_input_grad[:4]
    scale, dot = torch.ops.fastinv.modulated_conv2d_scale, torch.ops.fastinv.modulated_conv2d_dot
    dweight = dstyles = dnoise = None
    du = dy
    if ctx.demodulate and (need_x or need_weight or need_styles):
        d = demodulation(weight, styles, weight_sumsq)
        du = scale(dy, d)
        if need_weight or need_styles:
            sumsq = weight.to(d.dtype).square().sum((2, 3)) if weight_sumsq is None else weight_sumsq
            u = y if noise is None else y - noise.to(y.dtype)
            q = dot(dy, u) * d.square()  # (gradient of d) * d^3
            if need_styles:
                dstyles = -styles * (q @ sumsq)
            if need_weight:
                dweight = -weight * (q.t() @ styles.square())[:, :, None, None].to(weight.dtype)
    steps = plan(f, weight.shape[2:], ctx.up, ctx.down, ctx.padding)
    dmodulated, dw = resample_gradients(
        du, scale(x, styles) if need_weight else x, weight.to(x.dtype), f, steps, 1, ctx.flip_weight, False,
        need_x or need_styles, need_weight,
    )  # fmt: skip
    if need_weight:
        dw = dw.to(weight.dtype)
        dweight = dw if dweight is None else dweight + dw
    if need_styles:
        ds = dot(dmodulated, x)
        dstyles = ds if dstyles is None else dstyles + ds
    dx = scale(dmodulated, styles) if need_x else None
    if need_noise:
        dnoise = dy.sum(1 if noise.shape[0] == dy.shape[0] else (0, 1), keepdim=True, dtype=noise.dtype)
    return dx, dweight, dstyles, dnoise, *[None] * 7


# The two passes over a feature map, each the other's derivative.


def _setup_context_pair(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_scale(ctx, dy):
    x, scale = ctx.saved_tensors
    dx = torch.ops.fastinv.modulated_conv2d_scale(dy, scale) if ctx.needs_input_grad[0] else None
    return dx, torch.ops.fastinv.modulated_conv2d_dot(dy, x) if ctx.needs_input_grad[1] else None


def _backward_dot(ctx, dy):
    return tuple(
        torch.ops.fastinv.modulated_conv2d_scale(other, dy) if needed else None
        for other, needed in zip(reversed(ctx.saved_tensors), ctx.needs_input_grad, strict=True)
    )


if OP in _dispatch.KERNELS:
    torch.library.register_fake("fastinv::modulated_conv2d", _fake)
    torch.library.register_fake("fastinv::modulated_conv2d_scale", lambda x, scale: _layout.empty_like(x))
    torch.library.register_fake(
        "fastinv::modulated_conv2d_dot", lambda a, b: a.new_empty(a.shape[:2], dtype=compute_dtype(a))
    )
    torch.library.register_autograd("fastinv::modulated_conv2d", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "fastinv::modulated_conv2d_scale", _backward_scale, setup_context=_setup_context_pair
    )
    torch.library.register_autograd("fastinv::modulated_conv2d_dot", _backward_dot, setup_context=_setup_context_pair)
    _dispatch.register_composed(OP, "cuda", composed_modulated, "upfirdn2d", OP + "_scale", OP + "_dot")
