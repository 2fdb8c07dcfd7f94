"""The Fréchet distance against closed forms."""

import pytest
import torch

from fastinv.errors import UsageError
from fastinv.evaluation import frechet_distance


def test_same_set_and_shifted_set():
    a = torch.randn(500, 8, dtype=torch.float64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 8)


def test_commuting_covariances_have_a_closed_form():
    """Along common axes the distance is the sum of (difference of standard deviations)^2."""
    torch.manual_seed(0)
    a = torch.randn(1000, 5, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.cov(a.T))
    b = (a - a.mean(0)) @ vectors * scale @ vectors.T + a.mean(0)
    expected = ((values.sqrt() * (1 - scale)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected))
    assert frechet_distance(b, a) == pytest.approx(float(expected))


def test_one_feature():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    assert frechet_distance(a, b) == pytest.approx(4 + 2 + 8 - 2 * 4)


def test_bad_shapes():
    with pytest.raises(UsageError, match="features must be"):
        frechet_distance(torch.zeros(3, 2), torch.zeros(3, 4))
