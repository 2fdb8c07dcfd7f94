"""Styles, demodulation and their sums on the CPU: native against reference, and the formulas against autograd."""

import ops_contract as contract
import pytest
import torch

from fastinv.ops import synthesis

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}

ROWS = [0, 3, 3, 20, 150]
TABLES = {"rows": [40, 0], "inputs": [72, 12], "outputs": [37, 70]}
COUNT, OUTPUTS = 150, 107
EPSILONS = [1e-8, 3.0]
# [tiles, planes, channels] of each layer, and where its sums belong
SUMS = [(3, 1, 20), (64, 5, 20), (65, 5, 33), (600, 5, 3)]
PLACES = {"next_rows": [0, 25, 90, -1], "rgb_rows": [-1, 70, -1, 46], "first_outputs": [-1, 0, 20, 55]}


def check(actual, expected, dtype):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == dtype and contract.relative_error(a, b) <= TOLERANCE[dtype]


def convert(arguments, dtype):
    one = lambda x: x.to(dtype) if isinstance(x, torch.Tensor) else x  # noqa: E731
    return [[one(y) for y in x] if isinstance(x, list) else one(x) for x in arguments]


def cases(samples=3, width=260):
    """Name of the op -> arguments, in float64."""
    torch.manual_seed(0)
    styles, weight_sumsq = torch.randn(samples, COUNT), torch.rand(72 * 37 + 12 * 70)
    d, bias = torch.rand(samples, OUTPUTS) + 0.5, torch.randn(OUTPUTS)
    unscale = 2.0 ** -torch.arange(samples)
    sums = [torch.randn(samples, *shape) for shape in SUMS]
    result = {
        "styles": [torch.randn(samples, 4, width), torch.randn(COUNT, width), torch.randn(COUNT), ROWS],
        "styles_backward": [torch.randn(samples, COUNT), torch.randn(COUNT, width), ROWS],
        "demodulation": [styles * 1000, weight_sumsq, *TABLES.values(), EPSILONS, True],
        "demodulation_backward": [
            torch.randn(samples, COUNT), torch.randn(samples, OUTPUTS), styles, torch.rand(samples, 2), weight_sumsq,
            *TABLES.values(),
        ],
        "style_gradients": [sums, d, bias, unscale, *PLACES.values(), COUNT],
        "gradient_scale": [1e-6 * torch.randn(samples, 3, 33, 65)],
    }  # fmt: skip
    return {name: convert(arguments, torch.float64) for name, arguments in result.items()}


def call(name, arguments, impl="native"):
    result = getattr(synthesis, name)(*arguments, impl=impl)
    return result if isinstance(result, tuple) else (result,)


@each_dtype
@pytest.mark.parametrize("samples, width", [(1, 64), (3, 260), (9, 7)])
@pytest.mark.parametrize("name", cases())
def test_native(name, samples, width, dtype):
    arguments = convert(cases(samples, width)[name], dtype)
    actual = call(name, arguments)
    check(actual, call(name, convert(arguments, torch.float64), "ref"), dtype)
    for a, b in zip(actual, call(name, arguments, "ref"), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous()


@pytest.mark.parametrize("name", cases())
def test_empty_batch(name):
    for a, b in zip(call(name, cases(0)[name]), call(name, cases(2)[name])):
        assert a.shape == (0, *b.shape[1:])


@pytest.mark.parametrize("name", cases())
def test_other_layouts(name):
    """Expanded and strided operands give the numbers of dense ones."""
    dense = cases(4)[name]

    def scattered(x):
        if not isinstance(x, torch.Tensor):
            return x
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]

    strided = [[scattered(y) for y in x] if isinstance(x, list) else scattered(x) for x in dense]
    for a, b in zip(call(name, strided), call(name, dense)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", cases())
def test_threads(name):
    arguments = convert(cases(2, 512)[name], torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = call(name, arguments)
        torch.set_num_threads(2)
        two = call(name, arguments)
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", cases())
def test_opcheck(name):
    arguments = cases()[name]
    if name == "gradient_scale":
        arguments = [arguments[0].float()]
    op = getattr(torch.ops.fastinv, f"synthesis_{name}").default
    torch.library.opcheck(op, tuple(arguments), test_utils=("test_schema", "test_faketensor"))


def test_gradients():
    """w_plus -> styles -> scaled styles and d, by hand backwards, is what autograd says of the reference formulas."""
    every = cases(3, 20)
    w_plus, weight, bias, _ = every["styles"]
    weight_sumsq = every["demodulation"][1]
    tables = list(TABLES.values())
    dscaled, dd = torch.randn(3, COUNT, dtype=torch.float64), torch.randn(3, OUTPUTS, dtype=torch.float64)

    leaf = w_plus.clone().requires_grad_(True)
    styles = synthesis.styles_ref(leaf, weight, bias, ROWS)
    scaled, d, _ = synthesis.demodulation_ref(styles, weight_sumsq, *tables, EPSILONS, False)
    (expected,) = torch.autograd.grad((scaled * dscaled).sum() + (d * dd).sum(), leaf)

    for scale in (False, True):
        (styles,) = call("styles", [w_plus, weight, bias, ROWS])
        own, own_d, scales = call("demodulation", [styles, weight_sumsq, *tables, EPSILONS, scale])
        # The loss in terms of the scaled operands: s = own / f, d = own_d * f.
        f = torch.cat([scales[:, i : i + 1].expand(-1, outs) for i, outs in enumerate(TABLES["outputs"])], 1)
        dscaled_own = dscaled.clone()
        for i, (row, count) in enumerate(zip(TABLES["rows"], TABLES["inputs"])):
            dscaled_own[:, row : row + count] /= scales[:, i : i + 1]
        q = dd * f * own_d**3
        (dstyles,) = call("demodulation_backward", [dscaled_own, q, own, scales, weight_sumsq, *tables])
        (actual,) = call("styles_backward", [dstyles, weight, ROWS])
        assert contract.relative_error(actual, expected) <= 1e-12


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), 2.0**-149, 2.0**-119, 3e38])
@pytest.mark.parametrize("impl", ["native", "ref"])
def test_special_values(value, impl):
    """Zero, infinity and NaN have factor 1, exponents are limited to 120."""
    image = torch.zeros(2, 3, 5, 7)
    image[0, 1, 2, 3] = -value
    scaled, inverse = synthesis.gradient_scale(image, impl=impl)
    if value in (2.0**-149, 3e38):
        assert inverse[0] == 2.0 ** (-120 if value < 1 else 120)
    elif value == 2.0**-119:
        assert inverse[0] == 2.0**-118 and scaled.abs().max() == 0.5
    else:
        assert inverse[0] == 1 and torch.allclose(scaled, image, rtol=0, atol=0, equal_nan=True)
    assert inverse[1] == 1 and not scaled[1].any()

    styles = torch.zeros(2, 8)
    styles[0, 4:6] = torch.tensor([value, 0.0])
    scales = synthesis.demodulation(styles, torch.ones(24), [2], [6], [4], [1e-8], scale=True, impl=impl)[2]
    assert torch.equal(scales * inverse[:, None], torch.ones(2, 1))


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("styles", {3: [0, 3, 3, 20]}, "rows must go from 0 to 150, got 0 to 20"),
        ("styles", {3: [0, 30, 3, 20, 150]}, "rows must not fall, got 30 before 3"),
        ("styles", {3: [0, 3, 3, 150]}, "rows must have 5 numbers"),
        ("styles", {3: [0] * 40 + [150]}, "at most 32 style inputs, got 40"),
        ("styles", {2: torch.zeros(3, dtype=torch.float64)}, "bias must be Double .150."),
        (
            "styles",
            {0: torch.zeros(2, 4, 260, dtype=torch.bfloat16)},
            "w_plus must be float32 or float64, got BFloat16",
        ),
        ("demodulation", {2: [80, 0]}, "convolution 0 with rows from 80, 72 inputs and 37 outputs does not fit styles"),
        ("demodulation", {4: [37, 71]}, "weight_sumsq must be flat with 3516 elements"),
        ("demodulation", {5: [1e-8]}, "2 rows need as many epsilons, got 1"),
        ("style_gradients", {5: [0, 70, -1, 46]}, r"sums.0. has only the first of the 5 sums"),
        ("style_gradients", {4: [140, 25, 90, -1]}, "layer 0 with 20 channels does not fit 150 rows at 140"),
        ("style_gradients", {6: [-1, 0, 100, 55]}, "layer 2 with 33 channels does not fit 107 outputs at 100"),
    ],
)
def test_errors(name, change, words):
    arguments = cases()[name]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(RuntimeError, match=words):
        call(name, arguments)
