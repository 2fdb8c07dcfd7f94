"""conv2d_resample: golden numbers, derivatives, layouts, dtypes, refusals."""

import importlib

import conv_contract as contract
import pytest
import torch
from conv_contract import native
from ops_contract import check_golden, golden_cases, relative_error

from fastinv.errors import UsageError
from fastinv.ops import conv2d_resample, conv2d_resample_ref, setup_filter

FILTER = setup_filter([1, 3, 3, 1])
CASES = [  # arguments, kernel
    ({}, (3, 3)),
    ({"padding": 1, "flip_weight": False}, (3, 3)),
    ({"up": 2, "padding": 1, "flip_weight": False}, (3, 3)),
    ({"up": 2, "padding": 0}, (1, 1)),
    ({"down": 2, "padding": 1}, (3, 3)),
    ({"down": 2}, (1, 1)),
    ({"up": 2, "down": 3, "padding": [2, 1, 0, 3]}, (3, 5)),
    ({"up": 3, "padding": [1, -1, -2, 4], "flip_filter": True}, (2, 3)),
    ({"padding": [3, 0, -1, 1], "groups": 2}, (3, 3)),
    ({"up": 2, "padding": 1, "groups": 2}, (3, 3)),
]


def inputs(kernel=(3, 3), groups=1, size=(5, 7), channels=4, out=6, dtype=torch.float64, n=2):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn([n, channels, *size], generator=generator, dtype=torch.float64)
    w = torch.randn([out, channels // groups, *kernel], generator=generator, dtype=torch.float64)
    return {"x": x.to(dtype), "w": w.to(dtype), "f": FILTER}


@pytest.mark.parametrize("impl", contract.IMPLS)
@pytest.mark.parametrize("case", **golden_cases("conv2d_resample"))
def test_golden(case, impl):
    check_golden(conv2d_resample, case, impl, optional=())


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
def test_definition(up, down):
    """Against the definition itself: stuff zeros, pad, filter, convolve, filter, decimate."""
    x, w = inputs(kernel=(3, 3))["x"], inputs(kernel=(3, 3))["w"]
    taps = torch.tensor([[1.0, 2, 0], [0, 3, 1], [4, 0, 2]]) / 16  # odd, not separable, not symmetric
    stuffed = x.new_zeros([*x.shape[:2], x.shape[2] * up, x.shape[3] * up])
    stuffed[:, :, ::up, ::up] = x
    before, after, pads = 1, 2, [1, 2, 1, 2]
    if up > 1:
        pads = [pads[0] + (3 + up - 1) // 2, pads[1] + (3 - up) // 2] * 2
    if down > 1:
        pads = [pads[0] + (3 - down + 1) // 2, pads[1] + (3 - down) // 2] * 2
    y = torch.nn.functional.pad(stuffed, pads)
    kernel = taps.double().flip(0, 1).expand(x.shape[1], 1, 3, 3)
    y = torch.nn.functional.conv2d(y, kernel * up * up, groups=x.shape[1]) if up > 1 else y
    y = torch.nn.functional.conv2d(y, w)
    kernel = taps.double().flip(0, 1).expand(w.shape[0], 1, 3, 3)
    y = torch.nn.functional.conv2d(y, kernel, groups=w.shape[0]) if down > 1 else y
    y = y[:, :, ::down, ::down]
    actual = conv2d_resample(x, w, taps, up=up, down=down, padding=[before, after, before, after])
    assert relative_error(actual, y) < 1e-14


@native
@pytest.mark.parametrize(("arguments", "kernel"), CASES)
def test_native_is_reference(arguments, kernel):
    """Odd sizes, every memory layout, an expanded cotangent."""
    given = inputs(kernel, arguments.get("groups", 1))
    expected = contract.value_and_gradients(conv2d_resample_ref, given, **arguments)
    for layout, x in contract.layouts(given["x"]).items():
        actual = contract.value_and_gradients(conv2d_resample, given | {"x": x}, impl="native", **arguments)
        for name, value in expected.items():
            assert relative_error(actual[name], value) < 1e-13, (layout, name)
        assert actual["y"].is_contiguous(memory_format=torch.channels_last) == layout.startswith("channels_last")


@native
@pytest.mark.parametrize(("arguments", "kernel"), [CASES[2], CASES[4], CASES[6]])
def test_derivatives(arguments, kernel):
    given = inputs(kernel, size=(3, 4), channels=2, out=2, n=1)
    leaves = [given["x"].requires_grad_(), given["w"].requires_grad_()]

    def function(x, w):
        return conv2d_resample(x, w, FILTER, impl="native", **arguments)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.fixture
def composed(monkeypatch):
    """The native op is CUDA's kernel: native FIRs and torch's convolution, composed in Python."""
    module = importlib.import_module("fastinv.ops.conv2d_resample")
    op = contract.composed_op("conv2d_resample", module.composed_resample, module._setup_context, module._backward)
    monkeypatch.setattr(torch.ops.fastinv, "conv2d_resample", op)


@native
@pytest.mark.parametrize(("arguments", "kernel"), CASES)
def test_composed_is_reference(arguments, kernel, composed):
    test_native_is_reference(arguments, kernel)


@native
@pytest.mark.parametrize(("arguments", "kernel"), [CASES[2], CASES[4], CASES[6]])
def test_composed_derivatives(arguments, kernel, composed):
    test_derivatives(arguments, kernel)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composed_precision(dtype, composed):
    test_precision(dtype, 2)


@native
def test_opcheck():
    given = inputs(dtype=torch.float32)
    x = given["x"].contiguous(memory_format=torch.channels_last).requires_grad_()
    arguments = (x, given["w"].requires_grad_(), FILTER, 2, 1, [1, 1, 1, 1], 1, False, False)
    torch.library.opcheck(torch.ops.fastinv.conv2d_resample.default, arguments)
    arguments = (x, given["w"], FILTER, 1, 2, [1, 1, 1, 1], 1, True, False)
    torch.library.opcheck(torch.ops.fastinv.conv2d_resample.default, arguments)


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("index", [1, 2, 4])
def test_precision(dtype, index):
    arguments, kernel = CASES[index]
    contract.check_accuracy("conv2d_resample", inputs(kernel, size=(12, 13), channels=24, out=20), dtype, **arguments)


@native
@pytest.mark.parametrize("flip_weight", [True, False])
@pytest.mark.parametrize("padding", [-1, 0, 1, [2, 0, 1, 3]])
def test_precision_of_upsampling_by_parity(padding, flip_weight):
    """bfloat16 channels_last has a way of its own, one convolution for the four parities of row and column."""
    given = inputs(size=(7, 5), channels=24, out=20)
    given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
    arguments = {"up": 2, "padding": padding, "flip_weight": flip_weight}
    contract.check_accuracy("conv2d_resample", given, torch.bfloat16, **arguments)


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_empty_batch(impl):
    for arguments in ({"up": 2, "padding": 1}, {"down": 2, "padding": 1}):
        result = contract.value_and_gradients(
            contract.function_of("conv2d_resample", impl), inputs(n=0, size=(6, 6)), **arguments
        )
        assert result["y"].shape[0] == 0 and not result["w"].any()


@pytest.mark.parametrize("impl", contract.IMPLS)
def test_autocast(impl):
    given = inputs(dtype=torch.float32, size=(8, 8), channels=16)
    function = contract.function_of("conv2d_resample", impl)
    exact = function(**given, up=2, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = function(**given, up=2, padding=1)
    assert y.dtype == torch.bfloat16
    assert relative_error(y, exact) < 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x must be a floating-point .*, got torch.float32 \[3, 4, 4\]"),
        ({"x": torch.zeros(1, 4, 4, 4, dtype=torch.int64)}, "floating-point"),
        ({"w": torch.zeros(3, 3)}, "weight must be"),
        ({"w": torch.zeros(6, 5, 3, 3)}, "x has 4 channels"),
        ({"groups": 0}, "groups must be"),
        ({"up": 1.5}, "up must be an integer"),
        ({"padding": [1, 2, 3]}, "padding"),
        ({"padding": -4}, "pad more"),
        ({"f": torch.ones(3, 3, dtype=torch.float64)}, "float32"),
        ({"impl": "cuda"}, "impl must be"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        conv2d_resample(**{**inputs(dtype=torch.float32), **change})
    assert "\n" not in str(caught.value)
