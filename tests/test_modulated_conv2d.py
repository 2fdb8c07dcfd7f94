"""modulated_conv2d: golden numbers, derivatives, layouts, dtypes, instruction sets, refusals."""

import importlib

import conv_contract as contract
import pytest
import torch
from conv_contract import native
from ops_contract import check_golden, golden_cases, relative_error

from fastinv.errors import UsageError
from fastinv.ops import modulated_conv2d, modulated_conv2d_ref, setup_filter

FILTER = setup_filter([1, 3, 3, 1])
CASES = [
    {"padding": 1},
    {"padding": 1, "up": 2, "flip_weight": False},
    {"padding": 1, "down": 2},
    {"padding": 1, "demodulate": False},
]


def inputs(size=(5, 7), channels=4, out=6, n=3, up=1, down=1, noise="shared", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    h, w = size[0] * up // down, size[1] * up // down
    noises = {"none": None, "map": random(h, w), "shared": random(1, 1, h, w), "each": random(n, 1, h, w)}
    return {
        "x": random(n, channels, *size),
        "weight": random(out, channels, 3, 3),
        "styles": 1 + 0.5 * random(n, channels),
        "noise": random(n, out, h, w) if noise == "full" else noises[noise],
        "resample_filter": FILTER,
    }


def factors(arguments):
    return {"up": arguments.get("up", 1), "down": arguments.get("down", 1)}


@pytest.mark.parametrize("impl", contract.IMPLS)
@pytest.mark.parametrize("case", **golden_cases("modulated_conv2d"))
def test_golden(case, impl):
    check_golden(modulated_conv2d, case, impl, optional=())


def test_definition():
    """Against the paper's formula, with weights of its own for every sample."""
    given = inputs(noise="none")
    w = given["weight"][None] * given["styles"][:, None, :, None, None]
    w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    expected = [torch.nn.functional.conv2d(x[None], k, padding=1) for x, k in zip(given["x"], w)]
    assert relative_error(modulated_conv2d(**given, padding=1), torch.cat(expected)) < 1e-14


@native
@pytest.mark.parametrize("noise", ["none", "map", "shared", "each", "full"])
@pytest.mark.parametrize("arguments", CASES)
def test_native_is_reference(arguments, noise):
    given = inputs(**factors(arguments), noise=noise)
    expected = contract.value_and_gradients(modulated_conv2d_ref, given, **arguments)
    for layout, x in contract.layouts(given["x"]).items():
        actual = contract.value_and_gradients(modulated_conv2d, given | {"x": x}, impl="native", **arguments)
        for name, value in expected.items():
            assert relative_error(actual[name], value) < 1e-12, (layout, name)


@native
@pytest.mark.parametrize("arguments", CASES)
def test_derivatives(arguments):
    given = inputs((3, 4), 2, 2, n=2, **factors(arguments))
    leaves = [given[name].requires_grad_() for name in ("x", "weight", "styles", "noise")]

    def function(x, weight, styles, noise):
        return modulated_conv2d(x, weight, styles, noise, resample_filter=FILTER, impl="native", **arguments)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.fixture
def composed(monkeypatch):
    """The native op is CUDA's kernel: native passes and torch's convolution, composed in Python."""
    module = importlib.import_module("fastinv.ops.modulated_conv2d")
    op = contract.composed_op("modulated_conv2d", module.composed_modulated, module._setup_context, module._backward)
    monkeypatch.setattr(torch.ops.fastinv, "modulated_conv2d", op)


@native
@pytest.mark.parametrize("noise", ["none", "map", "shared", "each", "full"])
@pytest.mark.parametrize("arguments", CASES)
def test_composed_is_reference(arguments, noise, composed):
    test_native_is_reference(arguments, noise)


@native
@pytest.mark.parametrize("arguments", CASES)
def test_composed_derivatives(arguments, composed):
    test_derivatives(arguments)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composed_precision(dtype, composed):
    test_precision(dtype, CASES[1])


@native
def test_composed_takes_a_precomputed_sum_of_squares(composed):
    test_precomputed_sum_of_squares("native")


@native
def test_opcheck():
    given = inputs(dtype=torch.float32)
    x = given["x"].contiguous(memory_format=torch.channels_last).requires_grad_()
    styles, weight = given["styles"].requires_grad_(), given["weight"].requires_grad_()
    arguments = (x, weight, styles, given["noise"], FILTER, None, 1, 1, [1, 1, 1, 1], True, True)
    torch.library.opcheck(torch.ops.fastinv.modulated_conv2d.default, arguments)
    torch.library.opcheck(torch.ops.fastinv.modulated_conv2d_scale.default, (x, styles))
    other = torch.randn_like(given["x"]).requires_grad_()
    torch.library.opcheck(torch.ops.fastinv.modulated_conv2d_dot.default, (x, other))


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arguments", CASES[:2])
def test_precision(dtype, arguments):
    given = inputs((16, 17), 24, 20, **factors(arguments))
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    contract.check_accuracy("modulated_conv2d", given, dtype, **arguments)


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_precomputed_sum_of_squares(impl):
    given = inputs()
    function = contract.function_of("modulated_conv2d", impl)
    sumsq = given["weight"].square().sum((2, 3))
    assert relative_error(function(**given, weight_sumsq=sumsq, padding=1), function(**given, padding=1)) < 1e-14
    # It is really used, and has no gradient to give to the weight.
    assert relative_error(function(**given, weight_sumsq=4 * sumsq, padding=1), function(**given, padding=1)) > 0.1
    given["weight"].requires_grad_()
    with pytest.raises(UsageError, match="frozen"):
        function(**given, weight_sumsq=sumsq, padding=1)


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_empty_batch(impl):
    given = inputs(n=0) | {"noise": None}
    result = contract.value_and_gradients(contract.function_of("modulated_conv2d", impl), given, padding=1)
    assert list(result["y"].shape) == [0, 6, 5, 7] and not result["weight"].any()


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_autocast(impl):
    given = inputs((8, 8), 16, 16, dtype=torch.float32)
    function = contract.function_of("modulated_conv2d", impl)
    exact = function(**given, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = function(**given, padding=1)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, exact) < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": torch.zeros(3, 5)}, r"styles must be \[N, C\] = \[3, 4\], got \[3, 5\]"),
        ({"styles": None}, "styles must be"),
        ({"noise": 1.0}, "noise must be a tensor"),
        ({"weight": torch.zeros(6, 3, 3, 3)}, "x has 4 channels"),
        ({"weight_sumsq": torch.zeros(4, 6)}, r"weight_sumsq must be \[out, C\] = \[6, 4\]"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        modulated_conv2d(**{**inputs(dtype=torch.float32), **change})
    assert "\n" not in str(caught.value)
