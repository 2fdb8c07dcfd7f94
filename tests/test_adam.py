"""adam_record and adam_step in plain torch, their backends, and the table of Adam. The kernels: tests/kernels."""

import math

import pytest
import torch

from fastinv.errors import NativeUnavailableError, UsageError
from fastinv.inversion.adam import Adam
from fastinv.ops import _dispatch
from fastinv.ops.adam import adam_record, adam_step


def record_state(pictures, page, terms):
    return {
        "clock": torch.tensor([-1, 6]),
        "curves": torch.full([page, 1 + terms, pictures], -7.0),
        "lowest": torch.full([pictures], math.inf),
        "best_step": torch.zeros(pictures, dtype=torch.long),
        "bad_step": torch.full([pictures], -1),
        "better": torch.zeros(pictures, dtype=torch.bool),
    }


TOTALS = [[3.0, 2.0, math.nan], [4.0, 1.0, 1.0], [2.0, math.inf, 0.5], [2.0, -math.inf, math.nan]]


@pytest.mark.parametrize(
    ("last", "lowest", "best_step", "better"),
    [
        (False, [2.0, -math.inf, 0.5], [9, 10, 9], [False, True, False]),
        (True, [2.0, 1.0, 0.5], [10, 8, 9], [True, False, False]),
    ],
)
def test_record(last, lowest, best_step, better):
    state = record_state(pictures=3, page=5, terms=2)
    for total in TOTALS:
        total = torch.tensor(total)
        adam_record(total, torch.stack([total + 1, total * 2]), **state, last=last)
    assert state["clock"].tolist() == [3, 10]
    expected = torch.tensor(TOTALS)
    written = state["curves"][:4]
    for index, curve in enumerate((expected, expected + 1, expected * 2)):
        torch.testing.assert_close(written[:, index], curve, equal_nan=True, rtol=0, atol=0)
    assert (state["curves"][4] == -7).all()
    assert state["lowest"].tolist() == lowest and state["best_step"].tolist() == best_step
    assert state["better"].tolist() == better and state["bad_step"].tolist() == [-1, 9, 7]


def step_arguments(dtype=torch.float64):
    variable, gradient, best = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    variable, gradient, best = (x.flatten(1).clone() for x in (variable[None], gradient[None], best[None]))
    return {
        "variable": variable,
        "gradient": gradient,
        "mean": torch.zeros_like(variable),
        "square": torch.zeros_like(variable),
        "best": best,
        "better": torch.tensor([True]),
        "coefficients": torch.tensor([[9.0, 9, 9], [9, -0.5, 0.25]], dtype=dtype),
        "clock": torch.tensor([1, 77]),
    }


def test_step():
    state = step_arguments()
    x, g, best = (state[name].clone() for name in ("variable", "gradient", "best"))
    adam_step(**state, column=1, betas=(0.75, 0.5), eps=0.125)
    torch.testing.assert_close(state["mean"], 0.25 * g)
    torch.testing.assert_close(state["square"], 0.5 * g * g)
    torch.testing.assert_close(state["variable"], x - 0.5 * 0.25 * g / ((0.5 * g * g / 0.25).sqrt() + 0.125))
    assert torch.equal(state["best"], x)
    state["better"].fill_(False)
    adam_step(**state, column=1, betas=(0.75, 0.5), eps=0.125)
    assert torch.equal(state["best"], x) and not torch.equal(state["best"], best)


def test_backends():
    fallbacks = dict(_dispatch.fallbacks)
    state = step_arguments()
    rest = {"column": 1, "betas": (0.9, 0.99), "eps": 1e-8}
    adam_step(**state, **rest)
    assert _dispatch.fallbacks == fallbacks  # on the CPU the reference is what is meant
    before = {name: value.clone() for name, value in state.items()}
    with pytest.raises(NativeUnavailableError, match="adam_step: impl='native' cannot be used: "):
        adam_step(**state, **rest, impl="native")
    with pytest.raises(UsageError, match="adam_step: impl must be 'auto', 'native' or 'ref', got 'fast'"):
        adam_step(**state, **rest, impl="fast")
    with pytest.raises(NativeUnavailableError, match="adam_record: impl='native' cannot be used: "):
        adam_record(torch.ones(1), torch.ones(2, 1), **record_state(1, 2, 2), last=False, impl="native")
    assert all(torch.equal(state[name], value) for name, value in before.items())


@pytest.mark.skipif("adam_step" not in _dispatch.KERNELS, reason="the native library is not built, or older")
def test_the_schemas_say_what_is_changed():
    def changed(op):
        return [argument.name for argument in op.default._schema.arguments if argument.is_write]

    assert changed(torch.ops.fastinv.adam_step) == ["variable", "mean", "square", "best"]
    expected = ["clock", "curves", "lowest", "best_step", "bad_step", "better"]
    assert changed(torch.ops.fastinv.adam_record) == expected


def test_the_table():
    variables = {"a": torch.zeros(1, 2), "b": torch.zeros(1, dtype=torch.float64)}
    adam = Adam(variables, {"a": 0.5, "b": 2.0}, betas=(0.5, 0.75))
    table = adam.coefficients(2, [1.0, 0.25, 1e300])
    assert table.dtype == torch.float64 and table.shape == (3, 3)
    assert table[0].tolist() == [-0.5 / (1 - 0.5**3), -2 / (1 - 0.5**3), 1 - 0.75**3]
    assert table[1].tolist() == [-0.125 / (1 - 0.5**4), -0.5 / (1 - 0.5**4), 1 - 0.75**4]
    assert table[2, 0] == -torch.finfo(torch.float32).max and table[2, 1] == -2e300 / (1 - 0.5**5)
    assert Adam({"a": variables["a"]}, 0.5).coefficients(7, []).shape == (0, 2)
