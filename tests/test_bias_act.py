"""bias_act: nine activations, two derivatives."""

from functools import partial

import ops_contract as contract
import pytest
import torch

from fastinv import ops
from fastinv.errors import NativeUnavailableError, UsageError
from fastinv.ops.bias_act import ACTIVATIONS

each_activation = pytest.mark.parametrize("act", ACTIVATIONS)


def call(act, **settings):
    return lambda x, b=None, impl="auto": ops.bias_act(x, b, act=act, **settings, impl=impl)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", ["native", "ref"])
@pytest.mark.parametrize("case", **contract.golden_cases("bias_act"))
def test_golden(case, impl):
    contract.check_golden(ops.bias_act, case, impl, optional=("b",))


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@each_activation
def test_precision(act, layout, dtype):
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 24, 13, 35)).contiguous(memory_format=layout)
    contract.check_precision(call(act, gain=1.3), [x, torch.randn(24)], dtype)


@pytest.mark.parametrize("dtype", contract.DTYPES)
def test_bias_gradient_of_a_large_batch(dtype):
    """Half a million values to a channel: summed in blocks, the error does not grow with their number."""
    torch.manual_seed(0)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(8, 3, 256, 256, dtype=dtype).contiguous(memory_format=layout)
        b = torch.randn(3, dtype=dtype)
        dy = torch.rand(x.shape).to(dtype)
        exact = contract.with_gradients(call("lrelu"), [x.double(), b.double()], "ref", dy)[2]
        native = contract.with_gradients(call("lrelu"), [x, b], "native", dy)[2]
        assert contract.relative_error(native, exact) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("act", [name for name in ACTIVATIONS if name not in ("linear", "relu", "lrelu")])
def test_precision_of_second_derivatives(act):
    """Over all magnitudes, float32 against float64, relative to each value where that is not tiny."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e-4, 0.0, 1e-4, -100.0, 100.0, -1e30, 1e30])])

    def derivatives(x, impl):
        x = x.detach().requires_grad_(True)
        y = ops.bias_act(x, act=act, impl=impl)
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        return [t.detach() for t in (y, first, second)]

    for actual, wanted in zip(derivatives(x, "native"), derivatives(x.double(), "ref")):
        assert torch.allclose(actual.double(), wanted, rtol=3e-6, atol=3e-7)


@each_activation
def test_special_values(act):
    """Infinities and NaN go through as in plain torch."""
    x = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e38, -1e38])
    native, plain = ops.bias_act(x, act=act, gain=1.0, impl="native"), ops.bias_act_ref(x, act=act, gain=1.0)
    assert torch.allclose(native, plain, equal_nan=True)


@pytest.mark.parametrize("settings", [{}, {"clamp": 0.7}, {"dim": 3}, {"dim": 0, "gain": -0.5}], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 600, 3, 1), (3, 1, 1, 4), (2, 5, 4, 4)])
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_every_walk_over_memory(act, shape, layout, settings):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    b = torch.randn(shape[settings.get("dim", 1)], dtype=torch.float64)
    native = contract.with_gradients(call(act, **settings), [x, b], "native")
    for actual, wanted in zip(native, contract.with_gradients(call(act, **settings), [x, b], "ref")):
        assert contract.relative_error(actual, wanted) <= 1e-12


@pytest.mark.parametrize("shape, dim", [((5,), 0), ((4, 6), 1), ((4, 6), 0), ((2, 3, 4), 1), ((2, 3, 2, 2, 2), 1)])
def test_any_number_of_dimensions(shape, dim):
    torch.manual_seed(0)
    x, b = torch.randn(shape, dtype=torch.float64), torch.randn(shape[dim], dtype=torch.float64)
    native = contract.with_gradients(call("tanh", dim=dim), [x, b], "native")
    for actual, wanted in zip(native, contract.with_gradients(call("tanh", dim=dim), [x, b], "ref")):
        assert contract.relative_error(actual, wanted) <= 1e-12


@each_activation
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_derivatives(act, clamp):
    torch.manual_seed(1)
    contract.check_derivatives(call(act, clamp=clamp), torch.randn(2, 3, 2, 2), torch.randn(3))


@pytest.mark.parametrize("act", ["lrelu", "softplus"])
def test_layouts(act):
    torch.manual_seed(0)
    contract.check_layouts(call(act), torch.randn(3, 4, 6, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64))


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_empty_batch(act):
    contract.check_empty(call(act), torch.randn(2, 3, 4, 5), torch.randn(3))


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_threads(act):
    x, b = torch.randn(4, 32, 64, 64), torch.randn(32)
    contract.check_threads(call(act), x, b)
    contract.check_threads(call(act), channels_last(x), b)


@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_opcheck(act):
    x = channels_last(torch.randn(2, 3, 2, 2)).requires_grad_(True)
    b = torch.randn(3, requires_grad=True)
    settings = (1, ACTIVATIONS[act].code, 0.2, 1.4, 0.9)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.fastinv.bias_act.default, (x, b, *settings))
    dy = torch.randn(2, 3, 2, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.fastinv.bias_act_backward.default, (dy, x, b, *settings, True), test_utils=checks)
    if act == "swish":
        arguments = (dy, dy, x, b, *settings, True)
        torch.library.opcheck(torch.ops.fastinv.bias_act_backward2.default, arguments, test_utils=checks)


def test_compile():
    x, b = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    contract.check_compile(call("lrelu", clamp=1.0), x, b)


def test_bias_of_another_dtype_follows_x():
    x, b = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(3, requires_grad=True)
    for impl in ("native", "ref"):
        y = ops.bias_act(x, b, act="lrelu", impl=impl)
        assert y.dtype == torch.bfloat16
        (grad,) = torch.autograd.grad(y.sum(), b)
        assert grad.dtype == torch.float32


def test_nothing_to_do_returns_x():
    x = torch.randn(2, 3)
    assert ops.bias_act(x) is x and ops.bias_act_ref(x) is x


def test_the_reference_leaves_its_input_alone():
    x, b = torch.randn(2, 3, 4, 4), torch.randn(3)
    before = x.clone()
    for act in ACTIVATIONS:
        for bias in (None, b):
            for gain in (None, 1.0):
                ops.bias_act_ref(x, bias, act=act, gain=gain)
    assert torch.equal(x, before)


def test_a_third_derivative_is_refused():
    x = torch.randn(3, requires_grad=True)
    y = ops.bias_act(x, act="tanh", impl="native")
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="two derivatives.*impl='ref'"):
        second.sum().backward()


def test_what_native_cannot_do_goes_to_the_reference():
    x = torch.randn(2, 3).half()
    assert ops.bias_act(x, act="relu").dtype == torch.float16
    with pytest.raises(NativeUnavailableError, match="float16"):
        ops.bias_act(x, act="relu", impl="native")
    x = torch.randn(2, 3)
    wanted = torch.nn.functional.leaky_relu(x, -0.5)
    assert torch.allclose(ops.bias_act(x, act="lrelu", alpha=-0.5, gain=1), wanted)
    with pytest.raises(NativeUnavailableError, match="alpha of lrelu is negative"):
        ops.bias_act(x, act="lrelu", alpha=-0.5, impl="native")


X = torch.zeros(2, 3, 4, 4)
WRONG = {
    "x must be a floating-point tensor": lambda f: f([1.0]),
    "x must be a floating-point tensor, got torch.int64": lambda f: f(torch.zeros(2, 3, dtype=torch.int64)),
    r"b must have shape \[3\]": lambda f: f(X, torch.zeros(4)),
    r"b must have shape \[4\]": lambda f: f(X, torch.zeros(3), dim=2),
    "dim must be in 0..3": lambda f: f(X, torch.zeros(3), dim=4),
    "act must be one of linear, relu": lambda f: f(X, act="gelu"),
    "clamp must be at least 0": lambda f: f(X, clamp=-1),
}


@pytest.mark.parametrize("function", [ops.bias_act, ops.bias_act_ref, partial(ops.bias_act, impl="native")])
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message, function):
    with pytest.raises(UsageError, match=f"^bias_act: {message}") as caught:
        WRONG[message](function)
    assert "\n" not in str(caught.value)
