"""The arithmetic of an inversion: as asked for, or chosen by time to quality."""

import pytest
import torch
from test_inversion import generator, run

from fastinv.errors import UsageError
from fastinv.inversion import precision
from fastinv.ops.frozen_conv import obstacle

BFLOAT16 = pytest.mark.skipif(bool(obstacle(torch.bfloat16)), reason=obstacle(torch.bfloat16) or "-")


@pytest.fixture
def target():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generator16():
    return generator()


def pick(monkeypatch, seconds: dict, target):
    """What auto takes if a step takes so many seconds in each dtype."""
    monkeypatch.setattr(precision, "_seconds_of_step", lambda P, target: seconds[P.dtype])
    G = generator()
    return precision.prepare(G, "auto", target[..., : G.resolution, : G.resolution])


@BFLOAT16
def test_auto_takes_what_reaches_the_quality_first(monkeypatch, target):
    factor = 1.5
    monkeypatch.setitem(precision.STEPS_TO_QUALITY, torch.bfloat16, factor)
    P, facts = pick(monkeypatch, {torch.float32: 2.0, torch.bfloat16: 1.0}, target)
    assert P.dtype == torch.bfloat16 and facts["dtype"] == "bfloat16"
    assert "1 s" in facts["why_dtype"] and "2 s" in facts["why_dtype"]
    # The faster step alone does not decide.
    P, facts = pick(monkeypatch, {torch.float32: 1.0, torch.bfloat16: 0.5 * (1 + 1 / factor)}, target)
    assert P.dtype == torch.float32 and facts["dtype"] == "float32"


def test_auto_keeps_other_generators_as_they_are(monkeypatch, target):
    monkeypatch.setattr(precision, "_seconds_of_step", None)  # nothing is timed
    for dtype in (torch.float64, torch.bfloat16):
        G = generator().to(dtype)
        P, facts = precision.prepare(G, "auto", target)
        assert P.dtype == dtype and "generator is" in facts["why_dtype"]


def test_auto_times_nothing_where_nothing_is_optimised(monkeypatch, target):
    monkeypatch.setattr(precision, "_seconds_of_step", None)
    P, facts = precision.prepare(generator(), "auto", target, steps=0)
    assert P.dtype == torch.float32 and facts["why_dtype"] == "auto: nothing is optimised"


def test_auto_without_bfloat16_arithmetic(monkeypatch, target):
    monkeypatch.setattr(precision, "obstacle", lambda dtype: "this CPU has no bfloat16 arithmetic")
    P, facts = precision.prepare(generator(), "auto", target)
    assert P.dtype == torch.float32 and facts["why_dtype"] == "auto: this CPU has no bfloat16 arithmetic"


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "auto", None])
def test_inversion_says_its_arithmetic(dtype):
    G = generator()
    images = torch.zeros(1, 3, G.resolution, G.resolution)
    result = run(G, images, steps=2, dtype=dtype)
    wanted = {"auto": ("float32", "bfloat16"), None: ("float32",)}.get(dtype, ("bfloat16",))
    assert result.settings["dtype"] in wanted and result.settings["why_dtype"]
    assert result.w_plus.dtype == result.images.dtype == torch.float32


def test_bad_dtypes_are_refused():
    G = generator()
    images = torch.zeros(1, 3, G.resolution, G.resolution)
    for dtype in ("int8", torch.int8, 3):
        with pytest.raises(UsageError, match="auto, None or one of float32"):
            run(G, images, dtype=dtype)
    with pytest.raises(UsageError, match="no prepare"):
        precision.check_dtype(object(), "auto")
