"""Bias, activation, gain and clamp in one op.

``y = clamp(gain * act(x + b), -clamp, clamp)`` with ``b`` running along axis ``dim``. First and second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import UsageError
from . import _dispatch, _layout


class Activation(NamedTuple):
    """An activation: its code in the native op, its function of (x, alpha), and the defaults."""

    code: int
    function: Callable[[torch.Tensor, float], torch.Tensor]
    alpha: float = 0.0
    gain: float = 1.0


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(0, lambda x, alpha: x),
    "relu": Activation(1, lambda x, alpha: F.relu(x), gain=sqrt(2)),
    "lrelu": Activation(2, lambda x, alpha: F.leaky_relu(x, alpha), alpha=0.2, gain=sqrt(2)),
    "tanh": Activation(3, lambda x, alpha: torch.tanh(x)),
    "sigmoid": Activation(4, lambda x, alpha: torch.sigmoid(x)),
    "elu": Activation(5, lambda x, alpha: F.elu(x)),
    "selu": Activation(6, lambda x, alpha: F.selu(x)),
    "softplus": Activation(7, lambda x, alpha: F.softplus(x)),
    "swish": Activation(8, lambda x, alpha: F.silu(x), gain=sqrt(2)),
}


def _check(x: torch.Tensor, b: torch.Tensor | None, dim: int, act: str, clamp: float | None) -> None:
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise UsageError(f"bias_act: x must be a floating-point tensor, got {kind}")
    if act not in ACTIVATIONS:
        raise UsageError(f"bias_act: act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
    if clamp is not None and clamp < 0:
        raise UsageError(f"bias_act: clamp must be at least 0 (or None for no clamp), got {clamp}")
    if b is None:
        return
    if not isinstance(dim, int) or not 0 <= dim < x.ndim:
        raise UsageError(f"bias_act: dim must be in 0..{x.ndim - 1} for x of {x.ndim} dimensions, got {dim}")
    if not isinstance(b, torch.Tensor) or list(b.shape) != [x.shape[dim]]:
        shape = list(b.shape) if isinstance(b, torch.Tensor) else type(b).__name__
        raise UsageError(f"bias_act: b must have shape [{x.shape[dim]}] (axis {dim} of x), got {shape}")
    if b.device != x.device:
        raise UsageError(f"bias_act: b is on {b.device} but x is on {x.device}; move b with b.to(x.device)")


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """``clamp(gain * act(x + b), -clamp, clamp)``, twice differentiable in x and b.

    Args:
        x: any shape.
        b: bias [x.shape[dim]], or None; it is brought to the dtype of x.
        dim: axis of x along which b runs.
        act: linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus or swish.
        alpha: slope of lrelu below zero (0.2); the others ignore it.
        gain: factor after the activation; default sqrt(2) for relu, lrelu and swish, else 1.
        clamp: largest magnitude of the output, >= 0 (0 gives zeros); None leaves it.
        impl: "auto", "native" (an error says why if it cannot) or "ref".

    Returns:
        Tensor of the shape, dtype and memory format of x.
    """
    _check(x, b, dim, act, clamp)
    spec = ACTIVATIONS[act]
    negative_slope = act == "lrelu" and alpha is not None and alpha < 0
    how = _dispatch.choose("bias_act", impl, x, (not negative_slope, "alpha of lrelu is negative"))
    if how == "ref":
        return bias_act_ref(x, b, dim, act, alpha, gain, clamp)
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
    if b is None:
        if act == "linear" and gain == 1 and clamp is None:
            return x
        dim = 0
    elif b.dtype != x.dtype:
        b = b.to(x.dtype)
    return torch.ops.fastinv.bias_act(x, b, dim, spec.code, alpha, gain, -1.0 if clamp is None else float(clamp))


def bias_act_ref(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> torch.Tensor:
    """`bias_act` in plain PyTorch."""
    _check(x, b, dim, act, clamp)
    spec = ACTIVATIONS[act]
    alpha = spec.alpha if alpha is None else float(alpha)
    gain = spec.gain if gain is None else float(gain)
    if b is not None:
        b = b.to(x.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    if act in ("linear", "relu", "lrelu") and gain > 0 and alpha >= 0:
        # These commute with a positive factor: gain * act(x + b) = act(gain * x + gain * b), one pass less, and the
        # activation may then overwrite its fresh input.
        y = x if gain == 1 else x * gain if b is None else torch.add(b * gain, x, alpha=gain)
        y = y + b if b is not None and gain == 1 else y
        fresh = y is not x
        if act == "relu":
            y = F.relu(y, inplace=fresh)
        elif act == "lrelu":
            y = F.leaky_relu(y, alpha, inplace=fresh)
    else:
        y = spec.function(x if b is None else x + b, alpha)
        y = y if gain == 1 else y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


# Autograd of the native op. linear, relu and lrelu need their output only (which the next layer keeps anyway) and have
# no second derivative in x; the others keep x and b.
_LAST_PIECEWISE = ACTIVATIONS["lrelu"].code


def _fake(x, b, dim, act, alpha, gain, clamp):
    return _layout.empty_like(x)


def _setup_context(ctx, inputs, output):
    x, b, *ctx.settings = inputs
    piecewise = ctx.settings[1] <= _LAST_PIECEWISE
    ctx.has_bias = b is not None
    ctx.save_for_backward(output if piecewise else x, None if piecewise else b)


def _backward(ctx, dy):
    saved, b = ctx.saved_tensors
    need_db = ctx.has_bias and ctx.needs_input_grad[1]
    dx, db = torch.ops.fastinv.bias_act_backward(dy, saved, b, *ctx.settings, need_db)
    return dx if ctx.needs_input_grad[0] else None, db if need_db else None, *[None] * 5


def _fake_backward(dy, saved, b, dim, act, alpha, gain, clamp, need_db):
    return _layout.empty_like(saved), saved.new_empty([saved.shape[dim] if need_db else 0])


def _setup_context_backward(ctx, inputs, output):
    dy, saved, b, *ctx.settings, _ = inputs
    ctx.save_for_backward(dy, saved, b)
    ctx.set_materialize_grads(False)


def _backward_of_backward(ctx, grad_dx, grad_db):
    """Cotangents of dx = dy * g'(x + b) and db = sum of dx to those of dy, x and b."""
    dy, saved, b = ctx.saved_tensors
    dim, act = ctx.settings[:2]
    if grad_db is not None and grad_db.numel() > 0:
        grad_db = grad_db.reshape([-1 if i == dim else 1 for i in range(saved.ndim)])
        grad_dx = grad_db.expand_as(saved) if grad_dx is None else grad_dx + grad_db
    grad_dy = grad_x = grad_b = None
    if grad_dx is not None and ctx.needs_input_grad[0]:
        grad_dy, _ = torch.ops.fastinv.bias_act_backward(grad_dx, saved, b, *ctx.settings, False)
    need_db = b is not None and ctx.needs_input_grad[2]
    if grad_dx is not None and act > _LAST_PIECEWISE and (need_db or ctx.needs_input_grad[1]):
        grad_x, grad_b = torch.ops.fastinv.bias_act_backward2(grad_dx, dy, saved, b, *ctx.settings, need_db)
    return grad_dy, grad_x, grad_b if need_db else None, *[None] * 6


def _fake_backward2(grad_dx, dy, x, b, dim, act, alpha, gain, clamp, need_db):
    return _fake_backward(dy, x, b, dim, act, alpha, gain, clamp, need_db)


def _no_third_derivative(ctx, *grads):
    raise NotImplementedError("bias_act: the native op has two derivatives, a third was asked for; use impl='ref'")


if "bias_act" in _dispatch.KERNELS:  # not so without the library, or with an older build of it
    torch.library.register_fake("fastinv::bias_act", _fake)
    torch.library.register_fake("fastinv::bias_act_backward", _fake_backward)
    torch.library.register_fake("fastinv::bias_act_backward2", _fake_backward2)
    torch.library.register_autograd("fastinv::bias_act", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "fastinv::bias_act_backward", _backward_of_backward, setup_context=_setup_context_backward
    )
    torch.library.register_autograd("fastinv::bias_act_backward2", _no_third_derivative)
