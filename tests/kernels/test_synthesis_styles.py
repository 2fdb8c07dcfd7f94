"""Styles and demodulation: the CUDA kernels against the float64 reference."""

import pytest
import torch

from fastinv.ops import synthesis

from . import host

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE)

# 1, 4 and 8 samples have kernels of their own; 11 need two blocks. Widths: one and several vectors to a lane, or none.
CASES = [(1, 20), (3, 260), (8, 12), (11, 33), (2, 7)]
ROWS = [0, 3, 3, 20, 150]  # an input without rows
# rows 0:12 and 40:112 belong to convolutions, the rest to none
TABLES = {"rows": [40, 0], "inputs": [72, 12], "outputs": [37, 70], "count": 130}
ODD_TABLES = {"rows": [1, 34], "inputs": [33, 5], "outputs": [3, 18], "count": 41}
NO_TABLES = {"rows": [], "inputs": [], "outputs": [], "count": 5}


@pytest.fixture(scope="module")
def module():
    return host.load("synthesis_styles")


def run(function, *arguments):
    function(*(host.to_numpy(a) if isinstance(a, torch.Tensor) else a for a in arguments))


def unwritten(*shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


def check(actual, expected):
    """Largest error over the largest magnitude; exact for what is copied."""
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype], f"{error:.3g}"


def matrix_inputs(samples, width, dtype):
    torch.manual_seed(0)
    weight, bias = torch.randn(ROWS[-1], width, dtype=dtype), torch.randn(ROWS[-1], dtype=dtype)
    return torch.randn(samples, len(ROWS) - 1, width, dtype=dtype), weight, bias


@each_dtype
@pytest.mark.parametrize("samples, width", CASES)
def test_styles(module, order, samples, width, dtype):
    module.set_order(order)
    w_plus, weight, bias = matrix_inputs(samples, width, dtype)
    styles = unwritten(samples, ROWS[-1], dtype=dtype)
    launches = module.launches()
    run(module.styles, w_plus, weight, bias, ROWS, styles)
    assert module.launches() == launches + 1
    check(styles, synthesis.styles_ref(w_plus.double(), weight.double(), bias.double(), ROWS))


@each_dtype
@pytest.mark.parametrize("samples, width", CASES)
def test_styles_backward(module, order, samples, width, dtype):
    module.set_order(order)
    weight = matrix_inputs(samples, width, dtype)[1]
    dstyles = torch.randn(samples, ROWS[-1], dtype=dtype)
    dw_plus = unwritten(samples, len(ROWS) - 1, width, dtype=dtype)
    launches = module.launches()
    run(module.styles_backward, dstyles, weight, ROWS, dw_plus)
    assert module.launches() == launches + 1
    check(dw_plus, synthesis.styles_backward_ref(dstyles.double(), weight.double(), ROWS))
    assert torch.equal(dw_plus[:, 1], torch.zeros(samples, width, dtype=dtype))


def test_unaligned_tensors(module):
    """Where vectors are not aligned, single numbers are read."""
    module.set_order("forward")
    w_plus, weight, bias = matrix_inputs(2, 20, torch.float32)
    shifted = torch.zeros(weight.numel() + 1)[1:].view_as(weight).copy_(weight)
    styles = unwritten(2, ROWS[-1], dtype=torch.float32)
    run(module.styles, w_plus, shifted, bias, ROWS, styles)
    check(styles, synthesis.styles_ref(w_plus.double(), weight.double(), bias.double(), ROWS))


def demodulation_inputs(samples, tables, dtype, spread):
    torch.manual_seed(1)
    styles = torch.randn(samples, tables["count"], dtype=dtype)
    styles *= torch.logspace(-spread, spread, samples, dtype=dtype)[:, None]
    size = sum(i * o for i, o in zip(tables["inputs"], tables["outputs"]))
    return styles, torch.rand(size, dtype=dtype), [tables[name] for name in ("rows", "inputs", "outputs")]


def demodulate(module, styles, weight_sumsq, tables, epsilons, scale):
    samples, dtype = len(styles), styles.dtype
    scaled, scales = unwritten(*styles.shape, dtype=dtype), unwritten(samples, len(tables[0]), dtype=dtype)
    d = unwritten(samples, sum(tables[2]), dtype=dtype)
    run(module.demodulation, styles, weight_sumsq, *tables, epsilons, scale, scaled, d, scales)
    return scaled, d, scales


@each_dtype
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("samples, tables", [(1, TABLES), (3, ODD_TABLES), (8, TABLES), (9, ODD_TABLES)])
def test_demodulation(module, order, samples, tables, scale, dtype):
    module.set_order(order)
    styles, weight_sumsq, numbers = demodulation_inputs(samples, tables, dtype, 6 if scale else 0.5)
    epsilons = [1e-8, 3.0][: len(numbers[0])]
    launches = module.launches()
    scaled, d, scales = demodulate(module, styles, weight_sumsq, numbers, epsilons, scale)
    assert module.launches() == launches + 1
    expected = synthesis.demodulation_ref(styles.double(), weight_sumsq.double(), *numbers, epsilons, scale)
    assert torch.equal(scaled.double(), expected[0]) and torch.equal(scales.double(), expected[2])
    assert scale != bool((scales == 1).all()) or scales.numel() == 0
    error = ((d.double() - expected[1]) / expected[1]).abs()
    assert (error <= TOLERANCE[dtype]).all()


def test_demodulation_of_nothing(module, order):
    """Without convolutions the styles are copied."""
    module.set_order(order)
    styles, weight_sumsq, numbers = demodulation_inputs(2, NO_TABLES, torch.float32, 0)
    scaled, d, scales = demodulate(module, styles, weight_sumsq, numbers, [], True)
    assert torch.equal(scaled, styles) and d.numel() == 0 and scales.numel() == 0


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), 2.0**-149, 2.0**-119, 3e38])
def test_scale_of_special_styles(module, order, value):
    """Zero, infinity and NaN are left alone, exponents are limited; other samples do not feel it."""
    module.set_order(order)
    styles, weight_sumsq, tables = demodulation_inputs(5, TABLES, torch.float32, 0)
    styles[2, 40:112] = 0
    styles[2, 77] = -value
    scaled, d, scales = demodulate(module, styles, weight_sumsq, tables, [1e-8, 1e-8], True)
    expected = synthesis.demodulation_ref(styles, weight_sumsq, *tables, [1e-8, 1e-8], True)
    assert torch.equal(scales, expected[2])
    assert torch.allclose(scaled, expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.allclose(d, expected[1], rtol=1e-5, equal_nan=True)


@each_dtype
@pytest.mark.parametrize(
    "samples, tables", [(1, TABLES), (3, ODD_TABLES), (8, TABLES), (9, ODD_TABLES), (2, NO_TABLES)]
)
def test_demodulation_backward(module, order, samples, tables, dtype):
    module.set_order(order)
    styles, weight_sumsq, numbers = demodulation_inputs(samples, tables, dtype, 0)
    dstyles, q = torch.randn_like(styles), torch.randn(samples, sum(numbers[2]), dtype=dtype)
    factors = torch.rand(samples, len(numbers[0]), dtype=dtype) + 0.5
    result = unwritten(*styles.shape, dtype=dtype)
    launches = module.launches()
    run(module.demodulation_backward, dstyles, q, styles, factors, weight_sumsq, *numbers, result)
    assert module.launches() == launches + 1
    arguments = [t.double() for t in (dstyles, q, styles, factors, weight_sumsq)]
    check(result, synthesis.demodulation_backward_ref(*arguments, *numbers))


def test_the_same_bits_in_any_order_and_company(module):
    """Results depend on neither the order of blocks and threads nor the other samples of a batch of that size class."""
    w_plus, weight, bias = matrix_inputs(8, 260, torch.float32)
    results = []
    for order in host.ORDERS:
        module.set_order(order, seed=7)
        styles = unwritten(8, ROWS[-1], dtype=torch.float32)
        run(module.styles, w_plus, weight, bias, ROWS, styles)
        results.append(styles)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    styles = unwritten(6, ROWS[-1], dtype=torch.float32)
    run(module.styles, w_plus[:6], weight, bias, ROWS, styles)
    assert torch.equal(styles, results[0][:6])
