"""modulated_conv2d_scale and modulated_conv2d_dot, and the walk over memory that they share with bias_act."""

import random

import pytest
import torch

from . import host

channel_scale = host.load("channel_scale")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [  # samples, channels, pixels: odd planes, a plane in pieces, many small planes, one pixel
    (2, 8, 33),
    (1, 3, 35),
    (3, 5, 7),
    (1, 2, 4200),
    (2, 40, 16),
    (1, 300, 3),
    (2, 24, 1),
    (1, 1, 5),
]


def compute(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def draw(shape, channels_last, dtype, seed=0, offset=0):
    """Values [samples, channels, pixels], laid out as asked; offset: elements before the first."""
    samples, channels, pixels = shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    memory = torch.empty(offset + values.numel(), dtype=dtype)[offset:]
    if channels_last:
        memory = memory.view(samples, pixels, channels).transpose(1, 2)
    else:
        memory = memory.view(shape)
    return memory.copy_(values)


def run_scale(x, scale, channels_last, order):
    out = torch.full_like(x, float("nan"))
    channel_scale.set_order(order)
    arrays = [host.to_numpy(t) for t in (x, scale, out)]
    channel_scale.channel_scale(*arrays, list(x.shape), channels_last)
    return out


def run_dot(a, b, channels_last, order):
    out = torch.full(a.shape[:2], float("nan"), dtype=compute(a.dtype))
    channel_scale.set_order(order)
    channel_scale.channel_dot(*[host.to_numpy(t) for t in (a, b, out)], list(a.shape), channels_last)
    return out


def check(shape, channels_last, dtype, order, offset=0):
    x, other = (draw(shape, channels_last, dtype, seed, offset) for seed in (0, 1))
    scale = draw((1, *shape[:2]), False, compute(dtype), 2)[0]
    wanted = (x.double() * scale.double()[:, :, None]).to(dtype)
    # The product of the rounded operands, rounded once more from float: at most one unit in the last place apart.
    assert torch.allclose(run_scale(x, scale, channels_last, order), wanted, rtol=torch.finfo(dtype).eps, atol=0)
    terms = x.double() * other.double()
    error = (run_dot(x, other, channels_last, order).double() - terms.sum(2)).abs()
    # Runs are short: the error is a few roundings of the sum of magnitudes, however many the terms.
    assert (error <= 6 * torch.finfo(compute(dtype)).eps * terms.abs().sum(2)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_float64(shape, channels_last, dtype):
    check(shape, channels_last, dtype, "forward")


@pytest.mark.parametrize("channels_last", [False, True])
def test_orders(channels_last, order):
    check((3, 12, 35), channels_last, torch.float16, order)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_that_begin_at_any_element(dtype, channels_last):
    for offset in (1, 3):
        check((2, 6, 21), channels_last, dtype, "forward", offset)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_empty(shape, channels_last):
    x = draw(shape, channels_last, torch.float32)
    assert run_scale(x, torch.ones(shape[:2]), channels_last, "forward").shape == x.shape
    assert torch.equal(run_dot(x, x, channels_last, "forward"), torch.zeros(shape[:2]))


def test_sums_do_not_depend_on_the_order():
    x = draw((2, 20, 300), True, torch.float32)
    first, *others = [run_dot(x, x, True, order) for order in host.ORDERS]
    assert all(torch.equal(first, other) for other in others)


def walk_of(columns, shape, vector, iterations=0):
    samples, channels, pixels = shape
    if columns:
        return channel_scale.walk_columns(samples, pixels, channels, vector, True, iterations)
    return channel_scale.walk_planes(samples, channels, pixels, vector, True, iterations)


@pytest.mark.parametrize("iterations", [1, 2, 5, 16])
@pytest.mark.parametrize("shape, columns", [((1, 2, 21003), False), ((1, 256, 70), True), ((2, 6, 5003), True)])
def test_long_marches(shape, columns, iterations, order):
    """Several vectors to a thread, as in large tensors: whole batches of loads, and what is left of them."""
    x = draw(shape, columns, torch.float32)
    scale = draw((1, *shape[:2]), False, torch.float32, 2)[0]
    out, sums = torch.full_like(x, float("nan")), torch.full(shape[:2], float("nan"))
    channel_scale.set_order(order)
    channel_scale.along(walk_of(columns, shape, 4, iterations), *[host.to_numpy(t) for t in (x, scale, out, sums)])
    assert torch.equal(out, x * scale[:, :, None])
    squares = x.double().square().sum(2)
    assert torch.allclose(sums.double(), squares, rtol=16 * torch.finfo(torch.float32).eps)


def positions_of(part, vector):
    """Elements that a thread processes, relative to part.base."""
    for at in range(part.first, part.end, part.step):
        yield from (i for i in range(at, at + vector) if part.begin <= i < part.end)


@pytest.mark.parametrize("vector", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("columns", [False, True])
def test_every_element_has_one_thread(columns, shape, vector):
    samples, channels, pixels = shape
    walk = walk_of(columns, shape, vector)
    seen = set()
    for block in range(walk.blocks):
        for thread in range(256):
            part = channel_scale.thread_range(walk, vector, block, thread)
            for i in positions_of(part, vector):
                check_position(walk, columns, shape, part, i, vector)
                assert part.base + i not in seen
                seen.add(part.base + i)
    assert seen == set(range(samples * channels * pixels))


def check_position(walk, columns, shape, part, i, vector):
    """That the thread has the channel, the sample and the partial sum of the element at part.base + i."""
    samples, channels, pixels = shape
    element = part.base + i
    assert 0 <= element < samples * channels * pixels
    assert part.base % vector == 0
    if columns:
        lane = (i - part.first) % vector
        assert (part.channel + lane) % channels == element % channels
        assert part.sample == element // (pixels * channels)
        partial = part.partial + (part.slot + lane) % walk.period
    else:
        assert part.channel == element // pixels % channels
        assert part.sample == element // (pixels * channels)
        partial = part.partial
    rows = walk.partial_count // channels  # of partial sums, as many for each sample
    assert partial < walk.partial_count
    assert partial % channels == element % (channels if columns else channels * pixels) // (1 if columns else pixels)
    assert partial // channels // (rows // samples) == part.sample


LARGE = [  # samples, channels, pixels: far more than 2^31 elements
    (64, 512, 1024 * 1024),
    (70000, 3, 257 * 257),
    (1, 64, 3 * 2**30 + 1),
    (2**27, 5, 9),
    (3, 513, 2**24 + 1),
]


@pytest.mark.parametrize("vector", [4, 8])
@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("columns", [False, True])
def test_index_arithmetic_beyond_32_bits(columns, shape, vector):
    samples, channels, pixels = shape
    walk = walk_of(columns, shape, vector)
    assert 0 < walk.blocks < 2**31
    generator = random.Random(0)
    blocks = {0, walk.blocks - 1, *(generator.randrange(walk.blocks) for _ in range(200))}
    most = 0
    for block in blocks:
        for thread in (0, 1, 100, 255, generator.randrange(256)):
            part = channel_scale.thread_range(walk, vector, block, thread)
            assert part.end + 4 * part.step < 2**31
            for at in (part.first, part.first + (part.end - part.first) // part.step * part.step):
                for i in range(at, at + vector):
                    if part.begin <= i < part.end:
                        check_position(walk, columns, shape, part, i, vector)
                        most = max(most, part.base + i)
    assert most > 2**32


@pytest.mark.parametrize("columns", [False, True])
def test_the_last_blocks_reach_the_end(columns):
    for shape in LARGE:
        samples, channels, pixels = shape
        for vector in (2, 8):
            walk = walk_of(columns, shape, vector)
            blocks = range(max(0, walk.blocks - 64), walk.blocks)  # of columns, several stand side by side
            parts = [
                channel_scale.thread_range(walk, vector, block, thread) for block in blocks for thread in range(256)
            ]
            assert max(part.base + part.end for part in parts if part.end > part.first) == samples * channels * pixels
