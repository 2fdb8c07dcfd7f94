"""style_gradients and gradient_scale: the CUDA kernels against the float64 reference."""

import pytest
import torch

from fastinv.ops import synthesis

from . import host

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(scope="module")
def module():
    return host.load("synthesis_sums")


def run(function, *arguments):
    def array(value):
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            return [host.to_numpy(v) for v in value]
        return host.to_numpy(value) if isinstance(value, torch.Tensor) else value

    function(*(array(a) for a in arguments))


def unwritten(*shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


# (tiles, planes, channels), next row, rgb row, first output. More than 8 chunks of 64 tiles; rows and outputs to spare.
LAYERS = [((3, 1, 20), 0, -1, -1), ((64, 5, 20), 25, 70, 0), ((65, 5, 33), 90, -1, 20), ((600, 5, 3), -1, 46, 55)]
COUNT, OUTPUTS = 130, 60


def sum_inputs(samples, dtype):
    torch.manual_seed(0)
    sums = [torch.randn(samples, *shape, dtype=dtype) for shape, *_ in LAYERS]
    sums[2] *= 1e4  # cancels to some per mille
    sums[2][:, 1::2] = -sums[2][:, :64:2] * (1 + 1e-3)
    d, bias = torch.rand(samples, OUTPUTS, dtype=dtype) + 0.5, torch.randn(OUTPUTS, dtype=dtype)
    tables = [list(column) for column in zip(*(layer[1:] for layer in LAYERS))]
    return sums, d, bias, tables


def style_gradients(module, sums, d, bias, unscale, tables):
    samples = len(d)
    dstyles = unwritten(samples, COUNT, dtype=d.dtype)
    q = unwritten(samples, OUTPUTS, dtype=d.dtype)
    chunks = [-(-part.shape[1] // module.tiles_per_chunk) for part in sums]
    partials = sum(c * part.shape[2] * part.shape[3] for c, part in zip(chunks, sums))
    partial = unwritten(samples, partials, dtype=torch.float64)
    run(module.style_gradients, sums, d, bias, unscale, *tables, partial, dstyles, q)
    assert not partial.isnan().any()
    return dstyles, q


@each_dtype
@pytest.mark.parametrize("with_unscale", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_style_gradients(module, order, samples, with_unscale, dtype):
    module.set_order(order)
    sums, d, bias, tables = sum_inputs(samples, dtype)
    unscale = torch.tensor([2.0**-9, 0.5, 8.0], dtype=dtype)[:samples] if with_unscale else None
    launches = module.launches()
    dstyles, q = style_gradients(module, sums, d, bias, unscale, tables)
    assert module.launches() == launches + 2
    wide = None if unscale is None else unscale.double()
    expected = synthesis.style_gradients_ref(
        [part.double() for part in sums], d.double(), bias.double(), wide, *tables, COUNT
    )
    # Sums are in float64 whatever the type: each value is the rounded one, but for float64's own rounding.
    rounding = 8 * torch.finfo(torch.float64).eps * max(part.abs().sum(1).max().item() for part in sums)
    for actual, wanted in zip((dstyles, q), expected):
        assert torch.allclose(actual.double(), wanted, rtol=torch.finfo(dtype).eps, atol=rounding)
        assert (wanted == 0).any() and torch.equal(actual == 0, wanted == 0)


def test_style_gradients_in_any_order(module):
    sums, d, bias, tables = sum_inputs(2, torch.float32)
    results = []
    for order in host.ORDERS:
        module.set_order(order, seed=5)
        results.append(style_gradients(module, sums, d, bias, None, tables))
    for dstyles, q in results[1:]:
        assert torch.equal(dstyles, results[0][0]) and torch.equal(q, results[0][1])


def test_style_gradients_of_no_layers(module, order):
    module.set_order(order)
    dstyles, q = unwritten(2, 300, dtype=torch.float32), unwritten(2, 7, dtype=torch.float32)
    partial = torch.empty(2, 0, dtype=torch.float64)
    run(module.style_gradients, [], torch.ones(2, 7), torch.ones(7), None, [], [], [], partial, dstyles, q)
    assert torch.equal(dstyles, torch.zeros(2, 300)) and torch.equal(q, torch.zeros(2, 7))


def scaled(module, gradient):
    out, inverse = torch.full_like(gradient, float("nan")), unwritten(len(gradient), dtype=gradient.dtype)
    tiles = -(-gradient.shape[1] // module.scale_tile)
    largest = unwritten(len(gradient), tiles, dtype=gradient.dtype)
    run(module.gradient_scale, gradient, out, inverse, largest)
    return out, inverse


@each_dtype
@pytest.mark.parametrize("elements", [48, 3 * 5 * 7, 2 * 4096 + 20, 4097])
def test_gradient_scale(module, order, elements, dtype):
    module.set_order(order)
    torch.manual_seed(0)
    gradient = torch.randn(3, elements, dtype=dtype) * torch.tensor([[1e-6], [1.0], [1e9]], dtype=dtype)
    gradient[2, elements - 1] = -(2.0**40)  # the largest is the last, and a power of two
    launches = module.launches()
    out, inverse = scaled(module, gradient)
    assert module.launches() == launches + 2
    expected = synthesis.gradient_scale_ref(gradient[:, None, None])
    assert torch.equal(out, expected[0][:, 0, 0]) and torch.equal(inverse, expected[1])
    assert ((out.abs().amax(1) >= 0.5) & (out.abs().amax(1) < 1)).all()


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), 1e-45, 3e38])
@pytest.mark.parametrize("place", [3, 4500])
def test_gradient_scale_of_special_values(module, order, value, place):
    module.set_order(order)
    gradient = torch.zeros(2, 4600)
    gradient[0, 0] = gradient[1, place] = -value
    out, inverse = scaled(module, gradient)
    expected = synthesis.gradient_scale_ref(gradient[:, None, None])
    assert torch.equal(inverse, expected[1])
    assert torch.allclose(out, expected[0][:, 0, 0], rtol=0, atol=0, equal_nan=True)
