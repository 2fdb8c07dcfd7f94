"""Edit scores, against a generator and a network whose codes and attributes are known."""

import pytest
import torch

from fastinv.editing.regression import attribute_directions
from fastinv.errors import UsageError
from fastinv.evaluation.editability import edit_scores, latent_editing_consistency

WIDTH, LAYERS, ATTRIBUTES = 5, 3, 4


class Linear:
    """w = z; the picture holds the mean style vector; c_dim, num_ws and so on as a generator has them."""

    z_dim, c_dim, num_ws, w_avg = WIDTH, 0, LAYERS, torch.zeros(WIDTH)

    def mapping(self, z, c=None):
        return z.unsqueeze(1).expand(-1, LAYERS, -1)

    def synthesis(self, w_plus):
        return w_plus.mean(1)[:, :, None, None].expand(-1, -1, 2, 2)


class Reader:
    """Attributes are a matrix times the picture's mean."""

    def __init__(self, matrix):
        self.matrix = matrix

    def standardised(self, images):
        return images.mean((2, 3)) @ self.matrix.t()


@pytest.fixture
def reader():
    rows = torch.randn(ATTRIBUTES, WIDTH, generator=torch.Generator().manual_seed(0))
    return Reader(rows / rows.norm(dim=1, keepdim=True))


def test_directions_change_one_attribute(reader):
    directions = attribute_directions(Linear(), reader, samples=4000)
    expected = reader.matrix.t() @ torch.linalg.inv(reader.matrix @ reader.matrix.t())  # E[w | a] for w ~ N(0, 1)
    torch.testing.assert_close(directions, expected.t(), atol=0.1, rtol=0)
    effect = directions @ reader.matrix.t()
    torch.testing.assert_close(effect, torch.eye(ATTRIBUTES), atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="of 4 attributes need 8 samples, not 7"):
        attribute_directions(Linear(), reader, samples=7)


def test_edit_scores(reader):
    G = Linear()
    w_plus = torch.randn(6, LAYERS, WIDTH, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.pinv(reader.matrix).t()
    scores = edit_scores(G.synthesis, w_plus, exact, reader)
    assert {name: value.shape for name, value in scores.items()} == dict.fromkeys(("moved", "leaked", "done"), (6, 4))
    torch.testing.assert_close(scores["moved"], torch.ones(6, 4), atol=1e-5, rtol=0)
    assert scores["leaked"].max() < 1e-5 and scores["done"].all()

    mixed = exact.clone()
    mixed[0] = 0.4 * exact[0]  # too little
    mixed[1] = exact[1] + exact[2] + exact[3]  # 3 standard deviations of others, 1 each on average
    scores = edit_scores(G.synthesis, w_plus, mixed, reader, strength=2.0)
    torch.testing.assert_close(scores["moved"][:, 0], torch.full((6,), 0.4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores["leaked"][:, 1], torch.full((6,), 4 / 3), atol=1e-5, rtol=0)
    assert scores["done"].all(0).tolist() == [False, False, True, True]


def test_edits_lead_away_from_what_there_is(reader):
    """So that no edit asks for more than the generator has ever made."""
    asked = []

    def render(w_plus):
        asked.append(reader.standardised(Linear().synthesis(w_plus)))
        return Linear().synthesis(w_plus)

    edit_scores(render, torch.randn(6, LAYERS, WIDTH), torch.linalg.pinv(reader.matrix).t(), reader)
    for index, after in enumerate(asked[1:]):
        change = (after - asked[0])[:, index]
        assert (change.sign() == -asked[0][:, index].sign()).all()


def test_latent_editing_consistency():
    G = Linear()
    w_plus, edits = torch.randn(2000, LAYERS, WIDTH), torch.randn(2000, WIDTH)
    kept = {}

    def render(codes):
        kept["codes"] = codes
        return G.synthesis(codes)

    found = latent_editing_consistency(lambda images: kept["codes"], render, w_plus, edits, G)
    assert found.shape == (2000,) and found.max() < 1e-5
    # What forgets everything: independent codes in W for a picture, whose distance is 1 by definition.
    w_plus = w_plus[:, :1].expand(-1, LAYERS, -1)
    other = torch.randn(2000, 1, WIDTH).expand(-1, LAYERS, -1)
    forgotten = latent_editing_consistency(lambda images: other + edits[:, None], render, w_plus, edits, G)
    assert forgotten.square().mean() == pytest.approx(1, abs=0.05)
    shifted = latent_editing_consistency(lambda images: kept["codes"] + 1, render, w_plus, edits, G)
    torch.testing.assert_close(shifted, torch.full_like(shifted, 0.5**0.5), atol=0.02, rtol=0)


def test_a_strength_of_zero_is_refused(reader):
    with pytest.raises(UsageError, match="strength must be above 0, not 0"):
        edit_scores(Linear().synthesis, torch.zeros(1, LAYERS, WIDTH), torch.zeros(4, WIDTH), reader, strength=0)
