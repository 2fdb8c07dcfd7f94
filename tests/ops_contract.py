"""What every op of fastinv.ops promises, as checks that the test files of the ops share.

A `function` here takes tensors and the keyword `impl` ("native" or "ref").
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
DTYPES = [torch.float32, torch.bfloat16]


def relative_error(actual, expected) -> float:
    """Largest difference over the largest expected magnitude (or over 1 where all is expected to be zero)."""
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    difference = (actual.detach().double() - expected.detach().double()).abs().max().item()
    assert difference == difference, "not a number"
    return difference / (expected.detach().double().abs().max().item() or 1.0)


def golden_cases(*ops):
    """The entries of golden/ops.json for these ops; the argument list of a pytest parametrisation, with ids."""
    cases = [case for case in json.loads((GOLDEN / "ops.json").read_text())["cases"] if case["op"] in ops]
    assert cases
    return {"argvalues": cases, "ids": [case["name"] for case in cases]}


_golden = {}


def golden_tensors():
    if not _golden:
        _golden.update(load_file(GOLDEN / "ops.safetensors"))
    return _golden


def check_golden(function, case, impl, optional=("f",)):
    """Output, gradients and second-order gradients of one golden case in float64, to 1e-10 relative."""
    stored = golden_tensors()
    inputs = {name: stored[key].clone() for name, key in case["inputs"].items()}
    for name, tensor in inputs.items():
        if name in case["grads"]:
            tensor.requires_grad_(True)
    missing = {name: None for name in optional if name not in inputs}
    y = function(**inputs, **missing, **case["args"], impl=impl)
    assert relative_error(y, stored[case["output"]]) <= 1e-10

    dy = stored[case["cotangent"]].clone().requires_grad_(True)
    names = list(case["grads"])
    grads = torch.autograd.grad(y, [inputs[name] for name in names], dy, create_graph="second" in case)
    for name, grad in zip(names, grads):
        assert relative_error(grad, stored[case["grads"][name]]) <= 1e-10, f"gradient of {name}"
    if "second" not in case:
        return
    scalar = sum((grad * stored[case["second"]["v"][name]]).sum() for name, grad in zip(names, grads))
    names = list(case["second"]["grads"])
    leaves = [dy if name == "dy" else inputs[name] for name in names]
    for name, grad in zip(names, torch.autograd.grad(scalar, leaves, allow_unused=True)):
        expected = stored[case["second"]["grads"][name]]
        grad = torch.zeros_like(expected) if grad is None else grad
        assert relative_error(grad, expected) <= 1e-10, f"second-order gradient of {name}"


def with_gradients(function, tensors, impl, cotangent=None):
    """[y, gradient of each tensor], from fresh leaves; the cotangent is ones if none is given."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_(True) for t in tensors]
    y = function(*leaves, impl=impl)
    cotangent = torch.ones_like(y) if cotangent is None else cotangent.to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def check_precision(function, tensors, dtype):
    """In `dtype`, the native op is at most twice as far from the float64 result as plain torch in the same dtype.

    Half a unit in the last place of the largest value is allowed always: the rounding of an exact result.
    """
    tensors = [t.to(dtype) for t in tensors]
    exact = [t.double() for t in tensors]
    cotangent = torch.randn(function(*exact, impl="ref").shape, dtype=torch.float64).to(dtype)
    expected = with_gradients(function, exact, "ref", cotangent)
    native = with_gradients(function, tensors, "native", cotangent)
    plain = with_gradients(function, tensors, "ref", cotangent)
    for i in range(len(expected)):
        assert native[i].dtype == dtype
        allowed = 2 * max(relative_error(plain[i], expected[i]), torch.finfo(dtype).eps / 2)
        error = relative_error(native[i], expected[i])
        what = "output" if i == 0 else f"gradient {i - 1}"
        assert error <= allowed, f"{what}: error {error:.3g}, plain torch {allowed / 2:.3g}"


def check_derivatives(function, *tensors):
    """gradcheck and gradgradcheck of the native op, in float64."""
    leaves = [t.detach().double().requires_grad_(True) for t in tensors]
    assert torch.autograd.gradcheck(lambda *x: function(*x, impl="native"), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: function(*x, impl="native"), leaves)


def check_layouts(function, x, *others):
    """The same numbers from x [N, C, H, W] in any memory layout; channels_last stays channels_last. N, C, H, W > 2."""
    expected = with_gradients(function, [x.contiguous(), *others], "native")
    scattered = torch.randn(x.shape[0], x.shape[1], x.shape[2], 2 * x.shape[3], dtype=x.dtype)
    scattered[..., ::2] = x
    padded = torch.randn(x.shape[0], x.shape[1] + 1, x.shape[2] + 2, x.shape[3] + 1, dtype=x.dtype)
    padded[:, :-1, 1:-1, 1:] = x
    cropped = padded.contiguous(memory_format=torch.channels_last)[:, :-1, 1:-1, 1:]
    layouts = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "every second column": scattered[..., ::2],
        "cropped": padded[:, :-1, 1:-1, 1:],
        "cropped channels_last": cropped,
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for name, layout in layouts.items():
        leaf = layout.detach().requires_grad_(True)
        rest = [t.detach().clone().requires_grad_(True) for t in others]
        y = function(leaf, *rest, impl="native")
        # sum() hands an expanded gradient of stride 0 to backward
        grads = torch.autograd.grad(y.sum(), [leaf, *rest], retain_graph=True)
        for actual, wanted in zip([y, *grads], expected):
            assert relative_error(actual, wanted) <= 1e-12, name
        if "channels_last" in name:
            assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
            (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
            assert grad.is_contiguous(memory_format=torch.channels_last) and torch.equal(grad, grads[0])
    row = x[:1, :, :1, :1].expand(x.shape)
    actual = function(row, *others, impl="native")
    assert relative_error(actual, function(row.contiguous(), *others, impl="native")) <= 1e-12, "expanded"


def check_empty(function, x, *others):
    """An empty batch gives an empty output and gradients of the right shapes, like the reference."""
    native = with_gradients(function, [x[:0], *others], "native")
    plain = with_gradients(function, [x[:0], *others], "ref")
    for actual, wanted in zip(native, plain):
        assert actual.shape == wanted.shape and actual.dtype == wanted.dtype
        assert torch.equal(actual, torch.zeros_like(actual))


def check_threads(function, *tensors):
    """One thread and two give the same bits, output and gradients."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = with_gradients(function, tensors, "native")
        torch.set_num_threads(2)
        two = with_gradients(function, tensors, "native")
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two):
        assert torch.equal(a, b)


def check_compile(function, *tensors):
    """torch.compile takes the public function in one graph, forward and backward, with the same numbers."""
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    expected = with_gradients(function, tensors, "native")
    for actual, wanted in zip(with_gradients(compiled, tensors, "native"), expected):
        assert relative_error(actual, wanted) <= 1e-12
    torch._dynamo.reset()
