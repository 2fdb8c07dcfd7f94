"""styled_conv: the composition it stands for, first derivatives, the refusal of a second one, layouts, dtypes."""

import importlib

import conv_contract as contract
import pytest
import torch
from conv_contract import native
from ops_contract import relative_error

from fastinv.errors import UsageError
from fastinv.ops import bias_act_ref, modulated_conv2d_ref, setup_filter, styled_conv, styled_conv_ref
from fastinv.ops.bias_act import ACTIVATIONS

FILTER = setup_filter([1, 3, 3, 1])


def inputs(size=(5, 7), channels=4, out=6, n=3, up=1, noise="shared", kernel=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    h, w = size[0] * up, size[1] * up
    return {
        "x": random(n, channels, *size),
        "weight": random(out, channels, kernel, kernel),
        "styles": 1 + 0.5 * random(n, channels),
        "bias": random(out),
        "noise": {"map": random(h, w), "shared": random(1, 1, h, w), "each": random(n, 1, h, w)}[noise],
        "noise_strength": torch.tensor(0.7, dtype=dtype),
        "resample_filter": FILTER,
    }


def test_reference_is_the_composition():
    given = inputs(up=2)
    y = modulated_conv2d_ref(
        given["x"], given["weight"], given["styles"], given["noise"] * 0.7, up=2, padding=1, resample_filter=FILTER,
        flip_weight=False,
    )  # fmt: skip
    y = bias_act_ref(y, given["bias"], act="lrelu", clamp=1.0)
    assert relative_error(styled_conv_ref(**given, up=2, clamp=1.0), y) < 1e-15


@native
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act, up, demodulate):
    given = inputs(up=up)
    options = {"act": act, "up": up, "demodulate": demodulate, "clamp": 0.9, "gain": 1.3}
    expected = contract.value_and_gradients(styled_conv_ref, given, **options)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        given["x"] = given["x"].contiguous(memory_format=memory_format)
        actual = contract.value_and_gradients(styled_conv, given, impl="native", **options)
        for name, value in expected.items():
            assert relative_error(actual[name], value) < 1e-12, name


@native
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gain": -0.5, "act": "relu"},  # y does not tell what went in
        {"clamp": 0.0},
        {"clamp": 0.5},
        {"flip_weight": False},
        {"up": 2, "flip_weight": True},
        {"up": 3},
    ],
)
@pytest.mark.parametrize("noise", ["map", "each"])
def test_options_and_layouts(options, noise):
    given = inputs(up=options.get("up", 1), noise=noise)
    dy = torch.randn(styled_conv_ref(**given, **options).shape, dtype=torch.float64)
    expected = contract.value_and_gradients(styled_conv_ref, given, dy, **options)
    for layout, x in contract.layouts(given["x"]).items():
        actual = contract.value_and_gradients(styled_conv, given | {"x": x}, dy, impl="native", **options)
        for name, value in expected.items():
            assert relative_error(actual[name], value) < 1e-12, (layout, name)
        assert actual["y"].is_contiguous(memory_format=torch.channels_last) == layout.startswith("channels_last")


@native
@pytest.mark.parametrize("left_out", ["bias", "noise", "noise_strength", "resample_filter"])
def test_optional_operands(left_out):
    given = inputs() | {left_out: None}
    if left_out == "noise":
        given.pop("noise_strength")
    expected = contract.value_and_gradients(styled_conv_ref, given)
    actual = contract.value_and_gradients(styled_conv, given, impl="native")
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-12, name


@native
@pytest.mark.parametrize("kernel", [1, 5])
@pytest.mark.parametrize("up", [1, 2])
def test_kernels(kernel, up):
    given = inputs(kernel=kernel, up=up)
    expected = contract.value_and_gradients(styled_conv_ref, given, up=up, demodulate=kernel > 1)
    actual = contract.value_and_gradients(styled_conv, given, up=up, demodulate=kernel > 1, impl="native")
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-12, name


@pytest.fixture
def composed(monkeypatch):
    """The native op is CUDA's kernel: native passes and torch's convolution, composed in Python."""
    module = importlib.import_module("fastinv.ops.styled_conv")
    op = contract.composed_op("styled_conv", module.composed_styled, module._setup_context, module._backward)
    monkeypatch.setattr(torch.ops.fastinv, "styled_conv", op)
    monkeypatch.setattr(torch.ops.fastinv, "styled_conv_backward", module.composed_styled_backward)


@native
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_composed_activations(act, demodulate, composed):
    test_activations(act, 1, demodulate)


@native
@pytest.mark.parametrize("noise", ["map", "each"])
@pytest.mark.parametrize(
    "options",
    [{"gain": -0.5, "act": "relu"}, {"clamp": 0.0}, {"clamp": 0.5, "act": "swish"}, {"up": 2, "flip_weight": True}],
)
def test_composed_options(options, noise, composed):
    test_options_and_layouts(options, noise)


@native
@pytest.mark.parametrize("left_out", ["bias", "noise", "noise_strength", "resample_filter"])
def test_composed_optional_operands(left_out, composed):
    test_optional_operands(left_out)


@native
@pytest.mark.parametrize("wanted", ["x", "weight", "styles", "bias", "noise", "noise_strength"])
def test_composed_gradient_alone(wanted, composed):
    test_each_gradient_alone(wanted)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composed_precision(dtype, composed):
    test_precision(dtype, 2, (16, 16), 48, torch.channels_last)


@native
def test_composed_empty_batch(composed):
    test_empty_batch("native")


@native
@pytest.mark.parametrize("act", ["lrelu", "swish"])
@pytest.mark.parametrize("up", [1, 2])
def test_gradcheck(act, up):
    given = inputs((3, 4), 2, 2, n=2, up=up)
    names = ["x", "weight", "styles", "bias", "noise", "noise_strength"]

    def function(*tensors):
        return styled_conv(*tensors, up=up, resample_filter=FILTER, act=act, impl="native")

    assert torch.autograd.gradcheck(function, [given[name].requires_grad_() for name in names])


@native
@pytest.mark.parametrize("wanted", ["x", "weight", "styles", "bias", "noise", "noise_strength"])
def test_each_gradient_alone(wanted):
    """What is not asked for is not computed; what is, stays the same."""
    given = inputs()
    expected = contract.value_and_gradients(styled_conv_ref, given)[wanted]
    given[wanted].requires_grad_()
    (actual,) = torch.autograd.grad(styled_conv(**given, impl="native").sum(), given[wanted])
    assert relative_error(actual, expected) < 1e-12


@native
@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weight_costs_no_weight_gradient(frozen):
    given = inputs((16, 16), 8, 8)
    given["x"].requires_grad_()
    given["styles"].requires_grad_()
    given["weight"].requires_grad_(not frozen)
    y = styled_conv(**given, impl="native").sum()
    with torch.profiler.profile(record_shapes=True) as profile:
        y.backward()
    (event,) = [event for event in profile.events() if event.name == "aten::convolution_backward"]
    assert event.concrete_inputs[10] == [True, not frozen, False]  # of x, weight, bias


@native
def test_second_derivative_is_refused():
    given = inputs()
    styles = given["styles"].requires_grad_()
    (gradient,) = torch.autograd.grad(styled_conv(**given, impl="native").sum(), styles, create_graph=True)
    with pytest.raises(UsageError, match="no second derivative; use modulated_conv2d and bias_act"):
        gradient.square().sum().backward()


@native
@pytest.mark.parametrize("act", ["lrelu", "tanh"])
def test_opcheck(act):
    given = inputs(dtype=torch.float32)
    code = ACTIVATIONS[act].code
    x = given["x"].contiguous(memory_format=torch.channels_last).requires_grad_()
    leaves = [given[name].requires_grad_() for name in ("weight", "styles", "bias", "noise", "noise_strength")]
    arguments = (x, *leaves, FILTER, None, 1, True, code, 0.2, 1.5, 0.8, True)
    torch.library.opcheck(torch.ops.fastinv.styled_conv.default, arguments)
    with torch.no_grad():
        y, d, u = torch.ops.fastinv.styled_conv(*arguments)
    arguments = (torch.ones_like(y), u if act == "tanh" else y, x, leaves[0], leaves[1], d, *leaves[2:], FILTER, None)
    arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    settings = (1, True, code, 0.2, 1.5, 0.8, True)
    for needs in ([True] * 6, [True, False, True, False, False, False]):
        torch.library.opcheck(torch.ops.fastinv.styled_conv_backward.default, (*arguments, *settings, *needs))


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("up", "size", "channels"), [(1, (40, 41), 32), (2, (16, 16), 48), (1, (17, 16), 5)])
def test_precision(dtype, up, size, channels, memory_format):
    given = inputs(size, channels, channels, up=up)
    given["x"] = given["x"].contiguous(memory_format=memory_format)
    contract.check_accuracy("styled_conv", given, dtype, up=up, clamp=2.0)


@native
def test_result_does_not_depend_on_threads():
    given = inputs((40, 40), 16, 16, dtype=torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(contract.value_and_gradients(styled_conv, given, impl="native"))
    finally:
        torch.set_num_threads(threads)
    for name in ("y", "bias", "noise", "noise_strength"):
        assert relative_error(results[0][name], results[1][name]) < 1e-6, name


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_empty_batch(impl):
    given = inputs(n=0)
    result = contract.value_and_gradients(contract.function_of("styled_conv", impl), given)
    assert list(result["y"].shape) == [0, 6, 5, 7] and not result["bias"].any() and not result["weight"].any()


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_autocast(impl):
    given = inputs((8, 8), 16, 16, dtype=torch.float32)
    function = contract.function_of("styled_conv", impl)
    exact = contract.value_and_gradients(function, given, act="linear")
    with torch.autocast("cpu", torch.bfloat16):
        actual = contract.value_and_gradients(function, given, act="linear")
    assert actual["y"].dtype == torch.bfloat16
    for name, value in exact.items():
        assert relative_error(actual[name], value) < 1e-2, name


@native
def test_compiles():
    given = inputs((8, 8), 8, 8, dtype=torch.float32)

    def function(x, styles):
        return styled_conv(x, given["weight"], styles, given["bias"])

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x, styles = given["x"].requires_grad_(), given["styles"].requires_grad_()
    expected = torch.autograd.grad(function(x, styles).sum(), [x, styles])
    for actual, value in zip(torch.autograd.grad(compiled(x, styles).sum(), [x, styles]), expected):
        assert relative_error(actual, value) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act": "gelu"}, "act must be one of linear, relu, lrelu, .*, got 'gelu'"),
        ({"clamp": -1}, "clamp must be at least 0"),
        ({"bias": torch.zeros(5)}, r"bias must be \[out\] = \[6\], got \[5\]"),
        ({"noise": torch.zeros(1, 1, 4, 4)}, r"noise must be \[5, 7\] or \[3 or 1, 1, 5, 7\], got \[1, 1, 4, 4\]"),
        ({"noise_strength": torch.zeros(2)}, "noise_strength must have one element"),
        ({"weight": torch.zeros(6, 4, 2, 2)}, "odd height and width"),
        ({"weight": None}, "weight must be"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        styled_conv(**{**inputs(dtype=torch.float32), **change})
    assert "\n" not in str(caught.value)
