"""Checks that the convolution ops share, beyond ops_contract: operands by name, and operands in mixed precision."""

import pytest
import torch

from fastinv import _ext, ops

native = pytest.mark.skipif(not _ext.available(), reason=f"the native library is not loaded: {_ext.why_not()}")
IMPLS = ["ref", pytest.param("native", marks=native)]


def function_of(op: str, impl: str):
    """The public function, held to an implementation: `<op>_ref` itself for "ref"."""
    if impl == "ref":
        return getattr(ops, op + "_ref")
    return lambda *args, **kwargs: getattr(ops, op)(*args, **kwargs, impl=impl)


def composed_op(name: str, kernel, setup_context, backward):
    """An op with the schema and autograd of fastinv::<name> whose CPU kernel is `kernel`.

    CUDA's Python kernels are held to the tests of the native op this way.
    """
    schema = str(getattr(torch.ops.fastinv, name).default._schema).removeprefix("fastinv::")
    if name not in _composed:
        library = _composed[name] = torch.library.Library("fastinv_composed", "FRAGMENT")
        library.define(schema)
        library.impl(name, kernel, "CPU")
        full_name = f"fastinv_composed::{name}"
        torch.library.register_autograd(full_name, backward, setup_context=setup_context, lib=library)
    return getattr(torch.ops.fastinv_composed, name)


_composed = {}  # libraries, which torch forgets when they are collected


def value_and_gradients(function, inputs: dict, dy=None, **options) -> dict[str, torch.Tensor]:
    """The result under "y" and the gradient of each input that is a floating tensor other than the filter."""
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and name not in ("f", "resample_filter")
    }
    y = function(**{**inputs, **leaves}, **options)
    dy = torch.ones([], dtype=y.dtype).expand(y.shape) if dy is None else dy.to(y.dtype)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y": y.detach(), **dict(zip(leaves, gradients))}


def check_accuracy(op: str, inputs: dict, dtype: torch.dtype, factor: float = 2.0, **options) -> None:
    """In `dtype`, the native op is at most `factor` times as far from float64 as the plain torch version is.

    Only x and dy are rounded to a 16-bit dtype; parameters stay in float32, as in a network under mixed precision.
    Errors are Euclidean, over three draws: with one, a result of few numbers may be right or wrong by luck.
    """
    small = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype

    def cast(to_x, to_small):
        return {
            name: value if name in ("f", "resample_filter") or not isinstance(value, torch.Tensor)
            else value.to(dtype if name == "x" else small).to(to_x if name == "x" else to_small)
            for name, value in inputs.items()
        }  # fmt: skip

    reference, native_op = function_of(op, "ref"), function_of(op, "native")
    ours, plain, size = {}, {}, {}
    for draw in range(3):
        inputs = inputs | {"x": inputs["x"] * (-1) ** draw + 0.1 * draw}
        exact_inputs = cast(torch.float64, torch.float64)
        with torch.no_grad():
            shape = reference(**exact_inputs, **options).shape
        dy = torch.randn(shape, generator=torch.Generator().manual_seed(draw)).to(inputs["x"].device, dtype)
        exact = value_and_gradients(reference, exact_inputs, dy, **options)
        results = [value_and_gradients(op, cast(dtype, small), dy, **options) for op in (native_op, reference)]
        for name, truth in exact.items():
            assert results[0][name].dtype == results[1][name].dtype and results[0][name].shape == truth.shape
            for errors, result in zip((ours, plain), results):
                errors[name] = errors.get(name, 0) + (result[name].double() - truth).square().sum().item()
            size[name] = size.get(name, 0) + truth.square().sum().item()
        if "noise_strength" in exact:  # an inner product: its rounding goes with its factors, not with what it comes to
            strength, noise = exact_inputs["noise_strength"], exact_inputs["noise"]
            size["noise_strength"] += (noise.norm() * exact["noise"].norm() / strength).square().item()
    plain = {name: (plain[name] / size[name]) ** 0.5 for name in plain}
    for name in ours:
        error = (ours[name] / size[name]) ** 0.5
        # A gradient that is a single number is held to plain torch's worst one.
        allowed = plain[name] if results[0][name].numel() > 1 else max(plain.values())
        # Where plain torch is exact but for the rounding of the result, so may we be.
        floor = torch.finfo(results[0][name].dtype).eps / 2
        assert error <= max(factor * allowed, floor), f"{name}: error {error:.2e}, plain torch {allowed:.2e}"


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same picture in the memory layouts that an op may meet."""
    n, c, h, w = x.shape
    wide = torch.empty([n, c, h, 2 * w], dtype=x.dtype)
    wide[..., ::2] = x
    roomy = torch.empty([n, c + 3, h, w], dtype=x.dtype).contiguous(memory_format=torch.channels_last)
    roomy[:, 1 : c + 1] = x
    return {
        "contiguous": x.contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "strided": wide[..., ::2],
        "channels_last, sliced": roomy[:, 1 : c + 1],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
