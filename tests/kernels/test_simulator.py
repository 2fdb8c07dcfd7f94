"""The simulator: that the twins of the device's intrinsics compute what the device's do."""

import numpy
import pytest
import torch

from . import host

selftest = host.load("selftest")


def test_sum(order):
    x = numpy.random.default_rng(0).integers(-50, 50, 150).astype(numpy.float32)
    y = numpy.full(3, numpy.nan, numpy.float32)
    selftest.set_order(order)
    selftest.sum(x, y)
    assert y.tolist() == [x[:64].sum(), x[64:128].sum(), x[128:].sum()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_double(dtype, width, order):
    x = torch.arange(1, 201).to(dtype)
    y = torch.full_like(x, float("nan"))
    selftest.set_order(order)
    selftest.double(host.to_numpy(x), host.to_numpy(y), width)
    assert torch.equal(y, 2 * x)


def test_copy_async(order):
    x = numpy.random.default_rng(0).integers(-50, 50, (5, 64)).astype(numpy.float32)
    y = numpy.full_like(x, numpy.nan)
    selftest.set_order(order)
    selftest.neighbours(x, y)
    padded = numpy.pad(x, ((0, 0), (1, 1)))
    assert (y == padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma(dtype, order):
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-8, 9, (16, 16), generator=generator).to(dtype)  # sums of products are exact
    b = torch.randint(-8, 9, (16, 8), generator=generator).to(dtype)
    d = torch.full((16, 8), float("nan"))
    selftest.set_order(order)
    selftest.mma(host.to_numpy(a), host.to_numpy(b), host.to_numpy(d))
    assert torch.equal(d, a.float() @ b.float())
