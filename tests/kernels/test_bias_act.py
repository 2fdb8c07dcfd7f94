"""bias_act: nine activations, two derivatives, the bias gradient, against autograd of the reference in float64."""

import pytest
import torch

from fastinv.ops import bias_act_ref
from fastinv.ops.bias_act import ACTIVATIONS

from . import host

bias_act = host.load("bias_act")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PIECEWISE = ("linear", "relu", "lrelu")
SMOOTH = [name for name in ACTIVATIONS if name not in PIECEWISE]
SIZES = [  # outer, channels, inner: rows of channels (inner 1) and planes, of every alignment
    (5, 24, 1),
    (90, 3, 1),
    (3, 300, 1),
    (2, 3, 35),
    (2, 9, 16),
    (1, 2, 4200),
    (700, 1, 1),
]


def draw(sizes, dtype, seed, scale=3.0, offset=0):
    values = scale * torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    memory = torch.empty(offset + values.numel(), dtype=dtype)[offset:].view(sizes)
    return memory.copy_(values)


def run(order, act, x, dy=None, grad=None, b=None, gain=1.0, clamp=-1.0, alpha=0.2, need_db=False, turns="forward"):
    """(out, db) of the launcher; order 0 forward, 1 first derivative, 2 second."""
    out = torch.full_like(x, float("nan"))
    db = torch.full(x.shape[1:2], float("nan"), dtype=x.dtype) if need_db else None
    bias_act.set_order(turns)
    arrays = [None if t is None else host.to_numpy(t) for t in (x, dy, grad, b, out, db)]
    bias_act.bias_act(order, ACTIVATIONS[act].code, alpha, gain, clamp, list(x.shape), *arrays)
    return out, db


def reference(act, x, dy, grad, b, gain, clamp):
    """y, dx, db of the first derivative; dx, db of the second. In float64."""
    x, dy, b = (t.double().requires_grad_() for t in (x, dy, b))
    y = bias_act_ref(x, b, act=act, gain=gain, clamp=None if clamp < 0 else clamp)
    dx, db = torch.autograd.grad(y, [x, b], dy, create_graph=True)
    second = [torch.zeros_like(x), torch.zeros_like(b)]
    if act in SMOOTH:
        second = torch.autograd.grad(dx, [x, b], grad.double())
    return [t.detach() for t in (y, dx, db, *second)]


def check(actual, wanted, dtype, factors, terms=None):
    """The result is rounded once to dtype; before, a few roundings of the computing type, relative to the factors.

    factors: what multiplies the activation's derivative. terms: for sums, of the magnitudes of what is added.
    """
    compute = 32 * torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    allowed = torch.finfo(dtype).eps / 2 * wanted.abs() + compute * (factors if terms is None else terms)
    allowed += torch.finfo(dtype).smallest_normal
    error = (actual.double() - wanted).abs()
    assert (error <= allowed).all(), f"error {error.max():.3g}, {(error / allowed).max():.3g} times what is allowed"


def check_all(act, sizes, dtype, gain=1.3, clamp=-1.0, turns="forward", offset=0):
    x, dy, grad = (draw(sizes, dtype, seed, 1.5, offset) for seed in range(3))
    b = draw(sizes[1:2], dtype, 3, 1.0)
    x[x + b[:, None] == 0] = 1.0  # the reference multiplies by the gain first, and then has either sign there
    y, dx, db, d2x, d2b = reference(act, x, dy, grad, b, gain, clamp)
    settings = {"gain": gain, "clamp": clamp, "turns": turns}
    actual, _ = run(0, act, x, b=b, **settings)
    z = (x.double() + b.double()[:, None]).abs()
    check(actual, y, dtype, abs(gain) * (z + 1))
    first = abs(gain) * dy.double().abs()
    second = first * grad.double().abs()
    if act in PIECEWISE:
        result = run(1, act, actual, dy, need_db=True, **settings)
    else:
        result = run(1, act, x, dy, b=b, need_db=True, **settings)
    check(result[0], dx, dtype, first)
    check(result[1], db, dtype, first, first.sum((0, 2)))
    if act in SMOOTH:
        result = run(2, act, x, dy, grad, b, need_db=True, **settings)
        check(result[0], d2x, dtype, second)
        check(result[1], d2b, dtype, second, second.sum((0, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation(act, dtype):
    check_all(act, (2, 20, 5), dtype)
    check_all(act, (12, 20, 1), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_every_walk(act, sizes, dtype):
    check_all(act, sizes, dtype)


@pytest.mark.parametrize("gain", [1.3, -0.7])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_clamp(act, gain):
    check_all(act, (3, 4, 35), torch.float64, gain, clamp=0.6)


@pytest.mark.parametrize("act", ["lrelu", "swish"])
@pytest.mark.parametrize("sizes", [(21, 12, 1), (2, 5, 35)])
def test_orders(act, sizes, order):
    check_all(act, sizes, torch.float16, turns=order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(9, 6, 1), (2, 3, 21)])
def test_tensors_that_begin_at_any_element(sizes, dtype):
    for offset in (1, 3):
        check_all("lrelu", sizes, dtype, offset=offset)


@pytest.mark.parametrize("sizes", [(3, 5, 7), (35, 3, 1)])
@pytest.mark.parametrize("act", ["lrelu", "tanh"])
def test_no_bias(act, sizes):
    """Without bias and bias gradient there are no channels to tell apart; with the gradient alone there are."""
    x, dy, grad = (draw(sizes, torch.float64, seed, 1.5) for seed in range(3))
    y, dx, db, *_ = reference(act, x, dy, grad, torch.zeros(sizes[1]), 1.3, -1.0)
    actual, _ = run(0, act, x, gain=1.3)
    check(actual, y, torch.float64, x.abs() + 1)
    saved = actual if act in PIECEWISE else x
    check(run(1, act, saved, dy, gain=1.3)[0], dx, torch.float64, 1.3 * dy.abs())
    actual = run(1, act, saved, dy, gain=1.3, need_db=True)[1]
    check(actual, db, torch.float64, None, 1.3 * dy.abs().sum((0, 2)))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_special_values(act):
    """NaN and infinities go through as in plain torch, and the derivative at zero is torch's."""
    values = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e38, -1e38, 100.0, -100.0]
    x = torch.tensor(values).view(1, 1, -1).requires_grad_()
    y = bias_act_ref(x, act=act, gain=1.0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    actual, _ = run(0, act, x)
    assert torch.allclose(actual, y, equal_nan=True)
    if act in PIECEWISE:  # from the output
        finite = ~y.isnan()
        assert torch.equal(run(1, act, y.detach(), torch.ones_like(y))[0][finite], dx[finite])
    else:
        # The formulas give torch's limits; swish at infinity is not a number in torch either way.
        known = x.isfinite().detach()
        assert torch.allclose(run(1, act, x, torch.ones_like(y))[0][known], dx[known])


def test_clamp_at_its_edge():
    """At |y| = clamp the piecewise activations, which only see y, are flat; the others pass the gradient, as torch."""
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64).view(1, 1, -1)
    ones = torch.ones_like(x)
    y, _ = run(0, "linear", x, clamp=1.0)
    assert y.flatten().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.0]
    assert run(1, "linear", y, ones, clamp=1.0)[0].flatten().tolist() == [0, 1, 1, 1, 0, 0]
    edge = run(0, "tanh", x)[0].flatten()[3].item()
    slopes = run(1, "tanh", x, ones, clamp=edge)[0].flatten()
    assert (slopes != 0).tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("sizes", [(0, 3, 4), (0, 3, 1), (2, 3, 0), (2, 0, 4), (5, 0, 1)])
def test_empty(sizes):
    x = draw(sizes, torch.float32, 0)
    out, db = run(1, "lrelu", x, x, need_db=True)
    assert out.shape == x.shape and torch.equal(db, torch.zeros(sizes[1]))


@pytest.mark.parametrize("sizes", [(600, 9, 1), (3, 7, 65)])
def test_the_bias_gradient_is_the_same_in_every_order(sizes):
    y, dy = draw(sizes, torch.float32, 0), draw(sizes, torch.float32, 1)
    first, *others = [run(1, "lrelu", y, dy, need_db=True, turns=turns)[1] for turns in host.ORDERS]
    assert all(torch.equal(first, other) for other in others)
