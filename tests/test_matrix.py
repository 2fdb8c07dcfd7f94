"""The matrix products from which the frozen convolutions of the CPU are made (csrc/cpu/matrix.h).

Every instruction set: the lower ones run this file in a process of their own, from test_cpu_isa.py.
"""

import pytest
import torch

from fastinv import _ext

pytestmark = pytest.mark.skipif(not _ext.available(), reason=_ext.why_not())
ROWS = [*range(1, 50), 64, 100, 129]
# Relative to the sum of absolute terms, whatever the length of the sum: blocks of it are added up separately.
TOLERANCE = {torch.float32: 30 * 2.0**-24, torch.bfloat16: 60 * 2.0**-24}


def product(rows, columns, k, offsets, stride, dtype, add=False, spare=0, seed=0):
    """matrix_product beside the same sum in float64, and the sum of absolute terms."""
    generator = torch.Generator().manual_seed(seed)
    before, inner = -min(0, *offsets), -(-k // 32) * 32
    a = torch.randn(before + (rows - 1) * stride + max(offsets) + inner, generator=generator).to(dtype)
    b = torch.randn(len(offsets), k, columns, generator=generator).to(dtype).float()
    c = torch.randn(rows, -(-columns // 64) * 64 + spare, generator=generator)
    place = before + torch.arange(rows)[:, None] * stride + torch.arange(k)
    wanted, size = (c.double() * add, c.double().abs() * add)
    for offset, weight in zip(offsets, b.double()):
        wanted[:, :columns] += a.double()[place + offset] @ weight
        size[:, :columns] += a.double()[place + offset].abs() @ weight.abs()
    torch.ops.fastinv.matrix_product(a, before, stride, offsets, b, add, c)
    return c[:, :columns].double(), wanted[:, :columns], size[:, :columns]


def check(*arguments, **options):
    got, wanted, size = product(*arguments, **options)
    assert got.isfinite().all()
    worst = ((got - wanted).abs() / size).max().item()
    assert worst < TOLERANCE[arguments[5]], f"{worst:.2e} of the sum of absolute terms"


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@dtypes
@pytest.mark.parametrize("add", [False, True])
def test_every_number_of_rows(dtype, add):
    for rows in ROWS:
        check(rows, 40, 64, [0], 64, dtype, add=add, seed=rows)


@dtypes
@pytest.mark.parametrize("k", [1, 2, 3, 16, 31, 32, 33, 96, 127, 128, 129, 200, 256, 511, 512, 1000])
def test_every_length_of_sum(dtype, k):
    for taps in (1, 2, 9):
        check(17, 70, k, [t * 5 for t in range(taps)], k + 3, dtype, add=True, seed=k)


@dtypes
@pytest.mark.parametrize("columns", [1, 8, 31, 32, 33, 64, 65, 128])
def test_columns(dtype, columns):
    for rows in (1, 5, 16, 30, 33):
        check(rows, columns, 48, [0, 48], 96, dtype)


@dtypes
@pytest.mark.parametrize("stride", [1, 32, 64])
def test_overlapping_rows_and_offsets_to_both_sides(dtype, stride):
    """Neighbouring pixels, three taps in a row and three rows of them, as a convolution reads its input."""
    offsets = [(row * 40 + column) * 32 for row in (-1, 0, 1) for column in (-1, 0, 1)]
    check(37, 32, 32, offsets, stride, dtype)


@dtypes
def test_columns_beyond_the_panels_are_not_touched(dtype):
    a, b = torch.randn(64, dtype=dtype), torch.randn(1, 32, 64)
    c = torch.full((2, 72), 7.0)
    torch.ops.fastinv.matrix_product(a, 0, 32, [0], b, False, c)
    assert (c[:, 64:] == 7).all() and not (c[:, :64] == 7).any()


@dtypes
def test_result_is_the_same_every_time(dtype):
    assert torch.equal(*(product(45, 64, 512, [0], 512, dtype, seed=1)[0] for _ in range(2)))


def test_long_sums_are_added_up_in_blocks():
    """The error of 4096 terms of one sign stays near that of a short sum; added one by one it is 3 times larger."""
    a, b = torch.rand(14 * 4096), torch.rand(1, 4096, 64)
    c = torch.empty(14, 64)
    torch.ops.fastinv.matrix_product(a, 0, 4096, [0], b, False, c)
    wanted = a.view(14, 4096).double() @ b[0].double()
    error = ((c - wanted) / wanted).square().mean().sqrt().item()
    one_by_one = torch.zeros(14, 64)
    for k in range(4096):
        one_by_one += a.view(14, 4096)[:, k, None] * b[0, k]
    sequential = ((one_by_one - wanted) / wanted).square().mean().sqrt().item()
    assert error < sequential / 2


@pytest.mark.parametrize(
    "change",
    [
        {"start": -1}, {"start": 100}, {"offsets": [0]}, {"b": torch.zeros(2, 0, 32)}, {"c": torch.zeros(4, 8)},
        {"a": torch.zeros(9, 9).t()},
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change):
    arguments = {"a": torch.zeros(200), "start": 0, "a_stride": 32, "offsets": [0, 32]}
    arguments |= {"b": torch.zeros(2, 32, 32), "add": False, "c": torch.zeros(4, 64)} | change
    with pytest.raises(RuntimeError, match="matrix_product: "):
        torch.ops.fastinv.matrix_product(*arguments.values())
