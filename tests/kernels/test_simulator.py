"""The simulator: twins of the device's intrinsics compute what the device's do; barriers and limits are held."""

import numpy
import pytest
import torch

from . import host
from .selftest_checks import check_double, check_mma, check_neighbours, check_sum

selftest = host.load("selftest")


def test_block_reduction(order):
    selftest.set_order(order)
    check_sum(selftest.sum)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_vector_copy(dtype, order):
    selftest.set_order(order)
    check_double(selftest.double, dtype)


def test_copy_async(order):
    selftest.set_order(order)
    check_neighbours(selftest.neighbours)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma(dtype, order):
    selftest.set_order(order)
    check_mma(selftest.mma, dtype)


@pytest.mark.parametrize("block", [(64, 1, 1), (8, 4, 3), (32, 32, 1), (16, 3, 1)])
def test_lanes(block, order):
    threads = numpy.prod(block)
    y = numpy.full((6, threads), numpy.nan)
    selftest.set_order(order, seed=5)
    launches = selftest.launches()
    if threads % 32:  # shuffle_down reads from lanes that the last warp does not have
        with pytest.raises(RuntimeError, match=r"lane \d+ of the warp does not exist \(selftest.cuh:"):
            selftest.lanes(y, *block)
        return
    selftest.lanes(y, *block)
    assert selftest.launches() == launches + 1
    thread = numpy.arange(threads)
    lane, first = thread % 32, thread // 32 * 32
    assert (y[0] == first + 3).all()
    assert (y[1] == first + (lane ^ 5)).all()
    assert (y[2] == numpy.where(lane + 7 < 32, thread + 7, thread)).all()
    assert (y[3] == 0xAAAAAAAA).all()
    assert (y[4] == thread // 32).all()
    assert (y[5] == first + (lane ^ 1) + 0.25).all()


def test_orders_differ():
    """Thread and block order take effect: the last of two writers of one place wins, and it is another one."""
    x = numpy.arange(130, dtype=numpy.float32)
    seen = set()
    for order in host.ORDERS:
        y = numpy.zeros_like(x)
        selftest.set_order(order)
        selftest.double_plain_write_race(x, y)
        seen.add(y.tobytes())
    assert len(seen) == 3


@pytest.mark.parametrize(
    "kind, check, kernel",
    [
        ("block_barrier", check_sum, "sum"),
        ("shuffle_xor", check_sum, "sum"),
        ("copy_async_wait", check_neighbours, "neighbours"),
        ("warp_barrier", check_mma, "mma"),
    ],
)
def test_omit(kind, check, kernel):
    """An operation of a kernel can be left out at run time, which the check of the kernel notices."""
    selftest.set_order("forward")
    selftest.forget_operations()
    check(getattr(selftest, kernel))
    (operation,) = [name for name in selftest.operations() if name.startswith(kind + " selftest.cuh:")]
    selftest.omit(operation)
    try:
        with pytest.raises(AssertionError):
            check(getattr(selftest, kernel))
    finally:
        selftest.omit("")
    check(getattr(selftest, kernel))


def test_unknown_order():
    with pytest.raises(ValueError, match="order: sideways; must be forward, reverse or random"):
        selftest.set_order("sideways")


@pytest.mark.parametrize(
    "grid, block, shared, refusal",
    [
        ((1, 65535, 65535), (1024, 1, 1), 227 * 1024, ""),
        ((2**31 - 1, 1, 1), (1, 1, 64), 0, ""),
        ((1, 65536, 1), (1, 1, 1), 0, "invalid configuration argument (grid)"),
        ((1, 1, 65536), (1, 1, 1), 0, "invalid configuration argument (grid)"),
        ((0, 1, 1), (1, 1, 1), 0, "invalid configuration argument (grid)"),
        ((1, 1, 1), (1025, 1, 1), 0, "invalid configuration argument (block)"),
        ((1, 1, 1), (32, 33, 1), 0, "invalid configuration argument (block)"),
        ((1, 1, 1), (1, 1, 65), 0, "invalid configuration argument (block)"),
        ((1, 1, 1), (1, 1, 1), 227 * 1024 + 1, "invalid argument (dynamic shared memory)"),
    ],
)
def test_launch_limits(grid, block, shared, refusal):
    assert selftest.refusal(grid, block, shared) == refusal


def test_arrays_are_checked():
    x, y = numpy.ones(64, numpy.float32), numpy.ones(1, numpy.float32)
    with pytest.raises(ValueError, match="x: dtype float64; must be float32"):
        selftest.sum(x.astype(numpy.float64), y)
    with pytest.raises(ValueError, match="x: dtype int32; must be float32, float64, float16 or uint16"):
        selftest.double(x.astype(numpy.int32), y)
    y.flags.writeable = False
    with pytest.raises(ValueError, match="y: the array is read-only"):
        selftest.sum(x, y)


def same_bits(ours, theirs):
    """Equal bit by bit, where any NaN is as good as any other."""
    nan = torch.isnan(theirs)
    bits = {2: torch.int16, 4: torch.int32}[theirs.element_size()]
    return torch.equal(torch.isnan(ours), nan) and torch.equal(ours[~nan].view(bits), theirs[~nan].view(bits))


def test_float16_and_bfloat16():
    """Every 16-bit pattern to float; floats around every rounding boundary, and random bits, to 16 bits."""
    patterns = numpy.arange(65536, dtype=numpy.uint16)
    bits = numpy.random.default_rng(0).integers(0, 2**32, 300_000, dtype=numpy.uint32).view(numpy.float32)
    for dtype, to_bits, from_bits in [
        (torch.float16, selftest.to_half, selftest.from_half),
        (torch.bfloat16, selftest.to_bfloat16, selftest.from_bfloat16),
    ]:
        exact = torch.from_numpy(patterns.view(numpy.int16)).view(dtype)
        assert same_bits(torch.from_numpy(from_bits(patterns)), exact.float())
        exact = exact[torch.isfinite(exact)].float().double()
        steps = torch.sort(exact).values
        halfway = ((steps[1:] + steps[:-1]) / 2).float().numpy()
        floats = numpy.concatenate(
            [halfway, numpy.nextafter(halfway, numpy.float32("inf")), numpy.nextafter(halfway, numpy.float32("-inf"))]
            + [bits, numpy.float32([0.0, -0.0, "inf", "-inf", "nan", 65504, 65519.996, 65520, 2**-24, 2**-25, 1e-45])]
        )
        ours = torch.from_numpy(to_bits(floats).view(numpy.int16)).view(dtype)
        assert same_bits(ours, torch.from_numpy(floats).to(dtype))
