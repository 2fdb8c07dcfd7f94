"""adam_record and adam_step against their references in float64."""

import math

import pytest
import torch

from fastinv.ops.adam import adam_record_ref, adam_step_ref

from . import host

adam = host.load("adam")

DTYPES = [torch.float32, torch.float64]
BETAS, EPS = (0.9, 0.999), 1e-8


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def record(case, last, order="forward"):
    adam.set_order(order)
    adam.adam_record(*[host.to_numpy(tensor) for tensor in case], last)


def step(case, column, order="forward"):
    adam.set_order(order)
    adam.adam_step(*[host.to_numpy(tensor) for tensor in case], column, *BETAS, EPS)


def record_case(pictures, terms, dtype, row=2, page=4):
    total = draw(pictures).to(dtype)
    total[1::5], total[2::5], total[3::5] = math.nan, math.inf, -math.inf
    lowest = draw(pictures, seed=2).to(dtype)
    lowest[::3] = math.inf
    bad_step = torch.full([pictures], -1)
    bad_step[::4] = 3
    return [
        total,
        draw(terms, pictures, seed=1).to(dtype),
        torch.tensor([row - 1, 41]),
        torch.full([page, 1 + terms, pictures], -7, dtype=dtype),
        lowest,
        torch.arange(pictures),
        bad_step,
        torch.arange(pictures) % 2 == 0,
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("pictures", "terms"), [(1, 1), (1, 3), (8, 2), (31, 0), (300, 5), (0, 2)])
def test_record(pictures, terms, last, dtype, order):
    case = record_case(pictures, terms, dtype)
    expected = [tensor.clone() for tensor in case]
    adam_record_ref(*expected, last)
    record(case, last, order)
    assert case[2].tolist() == [2, 42]
    for got, wanted in zip(case, expected, strict=True):
        assert torch.equal(got.nan_to_num(12.5), wanted.nan_to_num(12.5))  # it only copies and compares


@pytest.mark.parametrize("row", [-1, 4, 2**40])
def test_record_beyond_the_page_leaves_memory_alone(row):
    case = record_case(5, 2, torch.float32, row=row)
    record(case, False)
    assert (case[3] == -7).all() and case[2].tolist() == [row, 42]


def step_case(sizes, dtype, columns=3, page=5, row=3, offset=0):
    def somewhere(values):
        """In memory that begins `offset` elements after an aligned address."""
        memory = torch.empty(offset + values.numel(), dtype=values.dtype)[offset:].view(values.shape)
        return memory.copy_(values)

    tensors = [draw(*sizes, seed=seed).to(dtype) for seed in range(5)]
    tensors[3] = tensors[3].abs()
    better = torch.arange(sizes[0]) % 3 != 1
    coefficients = draw(page, columns, seed=7).to(dtype)
    coefficients[:, -1] = 0.001 + coefficients[:, -1].abs()
    return [*map(somewhere, tensors), better, coefficients, torch.tensor([row, 900])]


def check_step(case, column, order="forward"):
    dtype = case[0].dtype
    before = [tensor.clone() for tensor in case]
    expected = [tensor.to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True) for tensor in case]
    adam_step_ref(*expected, column, BETAS, EPS)
    step(case, column, order)
    variable, gradient, mean, square, best, *rest = zip(case, expected, before, strict=True)
    unit = torch.finfo(dtype).eps
    for got, wanted, start in (mean, square):
        # Three roundings, of numbers no larger than the old value, the gradient or its square.
        largest = torch.maximum(start.double().abs(), torch.maximum(gradient[2].abs(), gradient[2].square()).double())
        assert ((got.double() - wanted).abs() <= 2 * unit * largest).all()
    change = (variable[1] - variable[2].double()).abs()
    error = (variable[0].double() - variable[1]).abs()
    slack = unit * (mean[2].double().abs() + gradient[2].double().abs()) / mean[1].abs().clamp(min=1e-300)
    assert (error <= unit * variable[1].abs() + change * (8 * unit + 2 * slack)).all()
    assert torch.equal(best[0], torch.where(case[5].view(-1, *[1] * (case[0].ndim - 1)), variable[2], best[2]))
    for got, _, start in (gradient, *rest):
        assert torch.equal(got, start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1,), (3,), (1, 1, 7), (2, 18, 16), (1, 1023), (2, 1024), (3, 1025), (1, 4500)])
def test_step(sizes, dtype):
    for column in (0, 1):
        check_step(step_case(sizes, dtype), column)


def test_orders(order):
    check_step(step_case((3, 2, 700), torch.float32), 1, order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 3])
def test_tensors_that_begin_at_any_element(offset, dtype):
    check_step(step_case((2, 33), dtype, offset=offset), 0)


@pytest.mark.parametrize("sizes", [(0, 4), (2, 0)])
def test_nothing_to_do(sizes):
    launches = adam.launches()
    step(step_case(sizes, torch.float32), 0)
    assert adam.launches() == launches


@pytest.mark.slow
def test_more_pictures_than_a_grid_has_rows():
    check_step(step_case((66000, 1), torch.float32), 0)


def test_a_gradient_of_zero_or_nan_stays_in_its_element():
    case = step_case((1, 40), torch.float32)
    for tensor in case[1:4]:
        tensor[0, 5] = 0  # 0 / (sqrt(0) + eps)
    case[1][0, 9] = math.nan
    before = case[0].clone()
    step(case, 0)
    assert case[0][0, 5] == before[0, 5] and case[0][0, 9].isnan() and case[0].isnan().sum() == 1


def test_ten_steps_with_a_table_are_adam():
    """The table of Adam.coefficients, the clock of adam_record and adam_step together, against torch.optim.Adam."""
    from fastinv.inversion.adam import Adam

    start, goal = draw(2, 50), draw(2, 50, seed=1)
    parameter = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    variable, mean, square, best = start.clone(), *torch.zeros(2, 2, 50).double(), start.clone()
    table = Adam({"x": variable}, 0.1).coefficients(0, [1.0] * 10)
    losses = record_case(2, 1, torch.float64, row=0, page=10)
    losses[2].copy_(torch.tensor([-1, -1]))
    losses[4].fill_(math.inf)
    for _ in range(10):
        optimizer.zero_grad()
        (parameter - goal).pow(4).sum().backward()
        optimizer.step()
        losses[0].copy_((variable - goal).pow(4).sum(1))
        record(losses, False)
        step([variable, 4 * (variable - goal).pow(3), mean, square, best, losses[7], table, losses[2]], 0)
    torch.testing.assert_close(variable, parameter.detach(), rtol=1e-12, atol=1e-12)
    assert losses[2].tolist() == [9, 9] and (losses[3][:, 0].diff(dim=0) < 0).all()
