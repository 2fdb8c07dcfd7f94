"""The noise regulariser and the normalisation: what they compute, and the native kernels of the CPU."""

import ops_contract as contract
import pytest
import torch

from fastinv.errors import UsageError
from fastinv.ops import noise


def maps_of(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(n, 1, size, size, dtype=dtype) for n, size in shapes]


def by_hand(x):
    """The formula for one map [R, R], pixel by pixel."""
    size, total = len(x), 0.0
    for shifted in ([[x[i][j - 1] for j in range(size)] for i in range(size)], [x[i - 1] for i in range(size)]):
        total += (sum(x[i][j] * shifted[i][j] for i in range(size) for j in range(size)) / size**2) ** 2
    if size <= 8:
        return total
    half = range(size // 2)
    average = lambda i, j: sum(x[2 * i + a][2 * j + b] for a in (0, 1) for b in (0, 1)) / 4  # noqa: E731
    return total + by_hand([[average(i, j) for j in half] for i in half])


@pytest.mark.parametrize("size", [1, 4, 8, 9, 16, 18, 32])
def test_value(size):
    (map,) = maps_of((2, size))
    expected = torch.tensor([by_hand(sample[0].tolist()) for sample in map], dtype=torch.float64)
    assert torch.allclose(noise.noise_regularization([map]), expected, rtol=1e-12)


def test_levels():
    """4 and 8 are one level, 16 two: as many as a map of 1024 has in the public projectors, 8 (73 for all 17 maps)."""
    assert [len(noise._level_sizes(size)) for size in (4, 8, 16, 1024)] == [1, 1, 2, 8]
    sizes = [4] + [size for k in range(3, 11) for size in (2**k, 2**k)]
    assert len(sizes) == 17 and sum(len(noise._level_sizes(size)) for size in sizes) == 73


def test_maps_of_a_batch():
    """Samples are apart, maps are added, a map of one sample counts for all."""
    a, b, c = maps_of((3, 16), (1, 8), (3, 4))
    together = noise.noise_regularization({"a": a, "b": b, "c": c})
    alone = sum(noise.noise_regularization([map]) for map in (a, b, c))
    assert together.shape == (3,) and torch.allclose(together, alone, rtol=1e-12)
    assert torch.allclose(together[1:2], noise.noise_regularization([a[1:2], b, c[1:2]]), rtol=1e-12)


def test_derivatives():
    maps = [map.requires_grad_(True) for map in maps_of((2, 4), (1, 9))]
    assert torch.autograd.gradcheck(lambda *maps: noise.noise_regularization(maps), maps)
    assert torch.autograd.gradgradcheck(lambda *maps: noise.noise_regularization_ref(maps), maps, fast_mode=True)


def test_white_noise_is_cheap_and_patterns_are_not():
    white, pattern = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(1)), torch.ones(1, 1, 128, 128)
    pattern[..., 64:] = -1
    assert noise.noise_regularization([white]) < 0.05 < 1 < noise.noise_regularization([pattern])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize(dtype):
    maps = [(5 + 3 * map).to(dtype).requires_grad_(True) for map in maps_of((2, 16), (1, 7))]
    before = [map.detach().clone() for map in maps]
    version = maps[0]._version
    result = noise.normalize_noise_(maps)
    for map, old, returned in zip(maps, before, result, strict=True):
        assert returned is map and map.requires_grad and map.is_leaf
        centred = old.double() - old.double().mean((1, 2, 3), keepdim=True)
        expected = centred / centred.square().mean((1, 2, 3), keepdim=True).sqrt()
        assert torch.allclose(map.detach().double(), expected, atol=30 * torch.finfo(dtype).eps)
    assert maps[0]._version > version


@pytest.mark.parametrize("impl", ["native", "ref"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalize_a_constant(dtype, impl):
    (map,) = noise.normalize_noise_([torch.full((2, 1, 97, 97), -1e5 / 3, dtype=dtype)], impl=impl)
    assert torch.equal(map, torch.zeros(2, 1, 97, 97, dtype=dtype))


CASES = [[(1, 4), (1, 8), (1, 16), (1, 9)], [(2, 75), (1, 300), (2, 256)], [(1, 1), (1, 2), (1, 3)], [(1, 512)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_native(case, dtype):
    """Value, gradient and normalised maps against float64."""
    maps = [(map + 0.3 + 0.5 * map.roll(1, 3) - 0.4 * map.roll(2, 2)).to(dtype) for map in maps_of(*case)]
    compute = torch.promote_types(dtype, torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6

    def results(maps, impl):
        leaves = [map.clone().requires_grad_(True) for map in maps]
        value = noise.noise_regularization(leaves, impl=impl)
        return [value.detach(), *torch.autograd.grad(value @ torch.arange(1, 1 + len(value)).to(value), leaves)]

    value, *gradients = results(maps, "native")
    exact_value, *exact = results([map.double() for map in maps], "ref")
    assert value.dtype == compute and contract.relative_error(value, exact_value) <= tolerance
    for actual, wanted in zip(gradients, exact, strict=True):
        rounding = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0
        assert actual.dtype == dtype and contract.relative_error(actual, wanted) <= tolerance + rounding
    normalised = noise.normalize_noise_([map.clone() for map in maps], impl="native")
    expected = noise.normalize_noise_([map.double() for map in maps], impl="ref")
    for actual, wanted in zip(normalised, expected, strict=True):
        assert torch.allclose(actual.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-12)


def test_threads():
    maps = maps_of((1, 256), (2, 130), dtype=torch.float32)

    def results():
        leaves = [map.clone().requires_grad_(True) for map in maps]
        value = noise.noise_regularization(leaves, impl="native")
        gradients = torch.autograd.grad(value.sum(), leaves)
        return [value, *gradients, *noise.normalize_noise_([map.clone() for map in maps], impl="native")]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = results()
        torch.set_num_threads(2)
        two = results()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_native_autograd():
    maps = [map.requires_grad_(True) for map in maps_of((2, 12), (1, 17), (2, 5))]
    native = lambda *maps: noise.noise_regularization(maps, impl="native")  # noqa: E731
    assert torch.autograd.gradcheck(native, maps, fast_mode=True)
    (gradient, *_) = torch.autograd.grad(native(*maps).sum(), maps, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(gradient.sum(), maps[0])


def test_opcheck():
    maps = [map.requires_grad_(True) for map in maps_of((2, 12), (1, 17))]
    op = torch.ops.fastinv
    torch.library.opcheck(op.noise_regularization.default, (maps,))
    plain = [map.detach() for map in maps]
    dvalue = torch.ones(2, dtype=torch.float64)
    tests = ("test_schema", "test_faketensor")
    backward = op.noise_regularization_backward.default
    torch.library.opcheck(backward, (dvalue, plain, *op.noise_regularization(plain)[1:]), test_utils=tests)
    torch.library.opcheck(op.normalize_noise_.default, (plain,), test_utils=tests)


def test_compile():
    maps = maps_of((2, 16), (1, 8))
    compiled = torch.compile(lambda maps: noise.noise_regularization(maps), backend="aot_eager", fullgraph=True)
    leaves = [map.clone().requires_grad_(True) for map in maps]
    compiled(leaves).sum().backward()
    again = [map.clone().requires_grad_(True) for map in maps]
    noise.noise_regularization(again, impl="ref").sum().backward()
    for a, b in zip(leaves, again, strict=True):
        assert contract.relative_error(a.grad, b.grad) <= 1e-12
    torch._dynamo.reset()


def test_empty_batch():
    assert noise.noise_regularization([torch.zeros(0, 1, 16, 16)]).shape == (0,)
    noise.normalize_noise_([torch.zeros(0, 1, 16, 16)])


@pytest.mark.parametrize("function", [noise.noise_regularization, noise.normalize_noise_])
def test_bad_arguments(function):
    map = torch.zeros(1, 1, 8, 8)
    for maps, words in [
        ([], "maps is empty"),
        ([map, map[0]], r"must be \[N or 1, 1, R, R\], got \[1, 8, 8\]"),
        ([torch.zeros(1, 1, 8, 4)], r"got \[1, 1, 8, 4\]"),
        ([torch.zeros(1, 1, 0, 0)], "must have pixels"),
        (
            {"a": map, "b": map.double()},
            "of one dtype and on one device; got torch.float64 on cpu beside torch.float32",
        ),
        ([3], "got int"),
    ]:
        with pytest.raises(UsageError, match=words):
            function(maps)
    with pytest.raises(UsageError, match="impl must be"):
        function([map], impl="quick")


def test_batches_that_do_not_fit():
    with pytest.raises(UsageError, match="N samples or 1, got maps of 2 and 3"):
        noise.noise_regularization(maps_of((2, 4), (3, 4)))
