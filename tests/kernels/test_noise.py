"""The noise regulariser and the normalisation: the CUDA kernels against the float64 reference."""

import pytest
import torch

from fastinv.ops import noise

from . import host

each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}

# (samples, size) of each map. 64 and less: one block does all. 132 and 136: tiles that are cut off, two levels of them
# (the first with rows of single numbers at 66). Odd sizes lose rows on the way: 75 -> 37 -> 18 -> 9 -> 4.
CASES = {
    "small": [(1, 4), (1, 8), (1, 16), (1, 9)],
    "one tile": [(2, 64), (2, 33)],
    "tiles": [(1, 132)],
    "odd": [(2, 75), (1, 129)],
    "shared by samples": [(3, 16), (1, 136), (3, 4)],
    "tiny": [(1, 1), (1, 2), (1, 3)],
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(scope="module")
def module():
    return host.load("noise")


def arrays(maps):
    return [host.to_numpy(map[:, 0]) for map in maps]


def unwritten(*shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


def make(case, dtype):
    """Maps that are not white: the means of neighbours' products are well away from zero on every level."""
    torch.manual_seed(0)
    maps = [torch.randn(n, 1, size, size, dtype=torch.float64) + 0.3 for n, size in case]
    for map in maps:
        map += 0.5 * map.roll(1, 3) - 0.4 * map.roll(2, 2)
    return [map.to(dtype) for map in maps]


def forward(module, maps):
    sizes = module.layout(arrays(maps))
    assert sizes[:2] == noise.scratch_sizes(maps)[::-1]
    value = unwritten(max(map.shape[0] for map in maps), dtype=maps[0].dtype)
    means = unwritten(sizes[1], 2, dtype=torch.float64)
    pyramid, partials = unwritten(sizes[0], dtype=maps[0].dtype), unwritten(sizes[2], 2, dtype=torch.float64)
    module.regularization(arrays(maps), *map(host.to_numpy, (value, means, pyramid, partials)))
    assert not partials.isnan().any() and not means.isnan().any()
    return value, means, pyramid


def backward(module, dvalue, maps, means, pyramid):
    gradients = [unwritten(*map.shape, dtype=map.dtype) for map in maps]
    module.regularization_backward(
        host.to_numpy(dvalue), arrays(maps), *map(host.to_numpy, (means, pyramid)), arrays(gradients)
    )
    return gradients


def check(actual, expected):
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype], f"{error:.3g}"


@each_dtype
@each_case
def test_regularization(module, order, case, dtype):
    module.set_order(order)
    maps = make(case, dtype)
    launches = module.launches()
    value, means, pyramid = forward(module, maps)
    assert module.launches() - launches <= 3
    leaves = [map.double().requires_grad_(True) for map in maps]
    expected = noise.noise_regularization_ref(leaves)
    check(value, expected.detach())

    dvalue = torch.linspace(1, 2, len(value), dtype=dtype)
    launches = module.launches()
    gradients = backward(module, dvalue, maps, means, pyramid)
    assert module.launches() == launches + 1
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, leaves, dvalue.double()), strict=True):
        check(actual, wanted)


def test_a_map_that_is_not_aligned(module):
    module.set_order("forward")
    (map,) = make([(1, 68)], torch.float32)
    shifted = torch.zeros(map.numel() + 1)[1:].view_as(map).copy_(map)
    expected, actual = forward(module, [map]), forward(module, [shifted])
    assert torch.equal(actual[0], expected[0])
    dvalue = torch.ones(1)
    assert torch.equal(
        backward(module, dvalue, [shifted], *actual[1:])[0], backward(module, dvalue, [map], *expected[1:])[0]
    )


def test_the_same_bits_in_any_order(module):
    maps = make([(2, 136), (1, 20)], torch.float32)
    results = []
    for order in host.ORDERS:
        module.set_order(order, seed=3)
        value, means, pyramid = forward(module, maps)
        results.append([value, means, *backward(module, torch.ones(2), maps, means, pyramid)])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


@each_dtype
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("case", [[(2, 4), (1, 33)], [(2, 68), (1, 8)], [(1, 132), (3, 5)]])
def test_normalize(module, order, case, offset, dtype):
    module.set_order(order)
    maps = [map + offset for map in make(case, dtype)]
    expected = noise.normalize_noise__ref([map.double() for map in maps])
    launches = module.launches()
    module.normalize(arrays(maps))
    assert module.launches() == launches + 2
    for actual, wanted in zip(maps, expected, strict=True):
        # Nothing cancels: the offset costs no more than the rounding of float64.
        assert (actual.double() - wanted).abs().max() <= 2 * TOLERANCE[dtype] + 1e-15 * offset
        assert actual.double().mean().abs() <= 1e-6


@each_dtype
def test_normalize_a_constant(module, order, dtype):
    module.set_order(order)
    maps = [torch.full((1, 1, 70, 70), 0.1, dtype=dtype), torch.full((1, 1, 97, 97), -1e5 / 3, dtype=dtype)]
    maps += [torch.zeros(1, 1, 4, 4, dtype=dtype), torch.arange(16, dtype=dtype).view(1, 1, 4, 4)]
    module.normalize(arrays(maps))
    assert not any(map.any() for map in maps[:3]) and abs(maps[3].square().mean() - 1) < 1e-6
