"""Checks of the simulator's own kernels: each runs a kernel and compares with what NumPy and torch compute."""

import numpy
import torch

from . import host


def check_sum(kernel):
    x = numpy.random.default_rng(0).integers(-50, 50, 150).astype(numpy.float32)
    y = numpy.full(3, numpy.nan, numpy.float32)
    kernel(x, y)
    assert y.tolist() == [x[:64].sum(), x[64:128].sum(), x[128:].sum()]


def check_double(kernel, dtype=torch.float32):
    x = torch.arange(1, 201).to(dtype)
    y = torch.full_like(x, float("nan"))
    kernel(host.to_numpy(x), host.to_numpy(y))
    assert torch.equal(y, 2 * x)


def check_neighbours(kernel):
    x = numpy.random.default_rng(0).integers(-50, 50, (5, 64)).astype(numpy.float32)
    y = numpy.full_like(x, numpy.nan)
    kernel(x, y)
    padded = numpy.pad(x, ((0, 0), (1, 1)))
    assert (y == padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]).all()


def check_mma(kernel, dtype=torch.float16):
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-8, 9, (16, 16), generator=generator).to(dtype)  # sums of products are exact
    b = torch.randint(-8, 9, (16, 8), generator=generator).to(dtype)
    d = torch.full((16, 8), float("nan"))
    kernel(host.to_numpy(a), host.to_numpy(b), host.to_numpy(d))
    assert torch.equal(d, a.float() @ b.float())
