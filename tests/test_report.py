"""Comparison pictures and grids: the right pixels at the right place."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastinv.errors import UsageError
from fastinv.report import comparison, grid
from fastinv.report.comparison import AMPLIFICATION, SMALLEST_TILE


def contains(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    """Number of pixels of exactly this colour."""
    return int((np.asarray(sheet) == np.array(colour)).all(-1).sum())


@pytest.mark.parametrize("resolution", [32, 64, 256, 512])
def test_comparison_shows_the_three_pictures(resolution, tmp_path):
    target = torch.full((3, resolution, resolution), -1.0)
    target[0] = 1.0  # red
    reconstruction = target.clone()
    reconstruction[2] = -1.0 + 2 * 20 / 255  # blue off by 20 levels
    sheet = comparison(target, reconstruction, {"psnr": 27.123456, "step": 3}, tmp_path / "a.png")
    side = resolution * max(1, -(-SMALLEST_TILE // resolution))
    assert side >= SMALLEST_TILE
    assert contains(sheet, (255, 0, 0)) == contains(sheet, (255, 0, 20)) == side**2
    assert contains(sheet, (0, 0, 20 * AMPLIFICATION)) == side**2
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(sheet))


def test_metrics_and_names_are_written():
    images = torch.zeros(2, 3, 64, 64)

    def drawn(metrics, names=None):
        return np.asarray(comparison(images, images, metrics, names=names)).astype(int)

    plain = drawn([{"psnr": 20.0}, {"psnr": 20.0}])
    other = drawn([{"psnr": 20.0}, {"psnr": 30.0}])
    changed = np.abs(plain - other).sum((1, 2)).nonzero()[0]
    assert len(changed) and changed.min() > plain.shape[0] // 2  # only the second row's line
    assert drawn([{}, {}], names=["a", "b"]).shape[0] > drawn([{}, {}]).shape[0]
    assert (drawn([{}, {}], names=["a", "b"]) != drawn([{}, {}], names=["a", "c"])).any()
    drawn([{}, {}], names=["x" * 500, "Zoë 李.png"])  # cut off, never an error


def test_comparison_of_out_of_range_values_is_clamped():
    sheet = comparison(torch.full((3, 64, 64), 1.0), torch.full((3, 64, 64), 1.7), {})
    assert contains(sheet, (0, 0, 0)) >= 320**2  # no difference after clamping


def test_comparison_refuses_what_does_not_match():
    with pytest.raises(UsageError, match=r"\[1, 3, 8, 8\]"):
        comparison(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 9), {})
    with pytest.raises(UsageError, match="2 pictures need"):
        comparison(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), {})


def test_grid():
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 6, 4)
    sheet = np.asarray(grid(images, columns=3, gap=2))
    assert sheet.shape == (2 * 6 + 2, 3 * 4 + 2 * 2, 3)
    assert (sheet[:6, :4] == 0).all() and (sheet[:6, 4:6] == 255).all()
    assert (sheet[8:, 6:10] == 255).all() and (sheet[8:, 0:4] == 191).all()
    assert grid(images[:2], columns=8).size == (2 * 4 + 2, 6)
    for bad in (torch.zeros(0, 3, 8, 8), torch.zeros(3, 8, 8)):
        with pytest.raises(UsageError):
            grid(bad)
    with pytest.raises(UsageError):
        grid(images, columns=0)
