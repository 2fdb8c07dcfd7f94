"""Losses between pictures: what all of them have in common, and each of pixels and structure against its formula."""

import math

import pytest
import torch
from losses_contract import SmallNetwork, check_threads, pictures, soft_mask, value_and_gradient

from fastinv.errors import UsageError
from fastinv.losses import (
    L1Loss,
    LogCoshLoss,
    MSSSIMLoss,
    PerceptualLoss,
    PixelLoss,
    StyleLoss,
    load_trunk,
    mean_per_picture,
    mse,
    ssim,
)
from fastinv.losses.pixel import log_cosh
from fastinv.losses.structure import scale_count


def build(kind, target, mask=None, trunk=None):
    """A loss of each kind, with a trunk in the target's dtype."""
    if kind in ("perceptual", "perceptual log-cosh", "style"):
        trunk, _ = load_trunk(trunk or SmallNetwork(), dtype=target.dtype)
        if kind == "style":
            return StyleLoss(target, trunk, mask)
        return PerceptualLoss(target, trunk, mask=mask, distance="mse" if kind == "perceptual" else "log-cosh")
    return {"mse": PixelLoss, "l1": L1Loss, "log-cosh": LogCoshLoss, "ms-ssim": MSSSIMLoss}[kind](target, mask)


KINDS = ("mse", "l1", "log-cosh", "ms-ssim", "perceptual", "perceptual log-cosh", "style")


# All of them


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind, masked):
    target, images = pictures(2, 25, 23, seed=1), pictures(2, 25, 23, seed=1) + 0.3 * pictures(2, 25, 23, seed=2)
    loss = build(kind, target, soft_mask(2, 25, 23) if masked else None)
    assert loss(images).min() > 0
    assert torch.autograd.gradcheck(loss, images.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pictures_are_at_distance_zero(kind):
    target = pictures(dtype=torch.float32)
    for mask in (None, soft_mask(dtype=torch.float32)):
        value = build(kind, target, mask)(target)
        assert value.shape == (2,) and value.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_pixels_do_not_count(kind):
    target, images, mask = pictures(2, 50, seed=1), pictures(2, 50, seed=2), soft_mask(2, 50)
    other_target, other_images = target.clone(), images.clone()
    other_target[..., 34:], other_images[..., 34:] = 0.9, -0.3
    value, gradient = value_and_gradient(build(kind, target, mask), images)
    assert (mask[..., 34:] == 0).all() and (mask[..., 33] > 0).any()
    assert torch.equal(value, build(kind, other_target, mask)(other_images))
    assert (gradient[..., 34:] == 0).all() and (gradient[..., :33] != 0).any() and gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_ones_changes_nothing(kind):
    target, images = pictures(seed=1), pictures(seed=2)
    ones = torch.ones(2, 1, 24, 24, dtype=torch.float64)
    # The taps of the MS-SSIM window are float32, and so add up to 1 only nearly.
    torch.testing.assert_close(build(kind, target, ones)(images), build(kind, target)(images), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_of_zeros_leaves_no_gradient(kind):
    images, mask = pictures(seed=2), torch.zeros(2, 1, 24, 24, dtype=torch.float64)
    value, gradient = value_and_gradient(build(kind, pictures(seed=1), mask), images)
    assert value.tolist() == [0, 0] and (gradient == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_select_gives_the_loss_of_some_pictures(kind):
    target, images, mask = pictures(3, seed=1), pictures(3, seed=2), soft_mask(3)
    rows = torch.tensor([2, 0])
    for loss in (build(kind, target), build(kind, target, mask)):
        torch.testing.assert_close(loss.select(rows)(images[rows]), loss(images)[rows])
        assert loss.select(rows[:0])(images[:0]).shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_do_not_influence_each_other(kind):
    target, images = pictures(3, seed=1), pictures(3, seed=2)
    together = build(kind, target, soft_mask(3))(images)
    alone = [build(kind, target[i : i + 1], soft_mask(3)[i : i + 1])(images[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 64), (1, 256)])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_with_any_number_of_threads(kind, count, size):
    target, images = (pictures(count, size, seed=seed, dtype=torch.float32) for seed in (1, 2))
    for mask in (None, soft_mask(count, size, dtype=torch.float32)):
        check_threads(build(kind, target, mask, "attributes"), images)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_that_do_not_fit_are_refused(kind):
    target = pictures()
    with pytest.raises(UsageError, match=r"pictures \[N, 3, R, R\].*not \[2, 1, 24, 24\]"):
        build(kind, target[:, :1])
    with pytest.raises(UsageError, match=r"mask.*\[2, 1, .*not \[1, 1, 24, 24\]"):
        build(kind, target, soft_mask(1))


# Pixels


def test_pixel_losses_follow_their_formulas():
    a, b, mask = pictures(2, 9, 7, seed=1), 3 * pictures(2, 9, 7, seed=2), soft_mask(2, 9, 7)
    difference = mask * (a - b)
    torch.testing.assert_close(L1Loss(b, mask)(a), difference.abs().mean((1, 2, 3)))
    expected = difference.cosh().log().mean((1, 2, 3))
    torch.testing.assert_close(LogCoshLoss(b, mask)(a), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(LogCoshLoss(b)(a), (a - b).cosh().log().mean((1, 2, 3)), rtol=1e-12, atol=0)


def test_log_cosh_is_exact_for_small_numbers_and_finite_for_large_ones():
    x = torch.tensor([0, 1e-6, 1e-3, 0.5, 0.999, 1.001, 3, 90, 1e30]).requires_grad_()
    expected = [math.log(math.cosh(v)) if v > 1e-4 else v * v / 2 for v in x.tolist()[:-1]] + [1e30]
    for value in (x, -x):
        torch.testing.assert_close(log_cosh(value), torch.tensor(expected), rtol=3e-7, atol=0)
    gradient = torch.autograd.grad(log_cosh(x).sum(), x)[0]
    torch.testing.assert_close(gradient, x.detach().tanh(), rtol=3e-7, atol=0)


def test_the_mean_of_one_channel_has_the_same_bits_with_any_number_of_threads():
    # Of the masks behind the metrics: a sum of all at once would be split.
    images, target, mask = (
        f(1, 300, seed=s, dtype=torch.float32) for f, s in ((pictures, 1), (pictures, 2), (soft_mask, 3))
    )
    for function in (lambda x: mean_per_picture(x[:, :1]), lambda x: mse(x, target, mask) + 0 * x.sum()):
        check_threads(function, images)


# Structure


def window():
    """[11, 11], of one-dimensional taps rounded to float32 as the kernels take them."""
    taps = torch.tensor([math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)], dtype=torch.float64)
    taps = (taps / taps.sum()).float().double()
    return torch.outer(taps, taps)


def textbook_maps(x, y, mask):
    """Luminance and structure at every place, window by window, of halves of pictures in [-1, 1]."""

    def patches(t):  # [N, C, H - 10, W - 10, 11, 11]
        return t.unfold(2, 11, 1).unfold(3, 11, 1)

    weights = window().expand(len(x), 1, *patches(x).shape[2:])
    if mask is not None:
        weights = weights * patches(mask)
        weights = weights / weights.sum((4, 5), keepdim=True).clamp(min=1e-300)

    def mean(t):
        return (weights * t).sum((4, 5))

    px, py = patches(x), patches(y)
    mx, my = mean(px), mean(py)
    vx, vy, vxy = mean(px * px) - mx * mx, mean(py * py) - my * my, mean(px * py) - mx * my
    mx, my = mx + 0.5, my + 0.5
    return (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4), (2 * vxy + 9e-4) / (vx + vy + 9e-4)


def textbook_half(x, mask):
    """Weighted mean of 2x2 blocks; the last row and column of odd sizes count twice."""
    weights = torch.ones_like(x[:, :1]) if mask is None else mask
    height, width = x.shape[2:]
    rows, columns = ([*range(n), *[n - 1] * (n % 2)] for n in (height, width))

    def total(t):
        t = t[:, :, rows][:, :, :, columns]
        return t[:, :, 0::2, 0::2] + t[:, :, 1::2, 0::2] + t[:, :, 0::2, 1::2] + t[:, :, 1::2, 1::2]

    return total(weights * x) / total(weights).clamp(min=1e-300), None if mask is None else total(mask) / 4


def textbook_ms_ssim(x, y, mask):
    weights = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
    sides, result = [min(x.shape[2:])], 1
    while len(sides) < 5 and math.ceil(sides[-1] / 2) >= 11:
        sides.append(math.ceil(sides[-1] / 2))
    x, y = x / 2, y / 2
    for scale in range(len(sides)):
        luminance, structure = textbook_maps(x, y, mask)
        term = luminance * structure if scale == len(sides) - 1 else structure
        if mask is not None:
            term = 1 - (1 - term) * mask[:, :, 5:-5, 5:-5]
        mean = term.mean((2, 3))
        assert mean.min() > 0.01  # or the floor would be in the way
        result = result * mean ** (weights[scale] / sum(weights[: len(sides)]))
        x, y = textbook_half(x, mask)[0], textbook_half(y, mask)[0]
        mask = None if mask is None else textbook_half(mask, None)[0]
    return result.mean(1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("size", "scales"), [((11, 12), 1), ((23, 21), 2), ((45, 41), 3), ((161, 161), 5)])
def test_ms_ssim_agrees_with_the_textbook(size, scales, masked):
    count = 1 if size[0] > 100 else 2
    target = pictures(count, *size, seed=1)
    images, mask = target + 0.3 * pictures(count, *size, seed=2), soft_mask(count, *size) if masked else None
    loss = MSSSIMLoss(target, mask)
    assert len(loss.targets) == scales
    value, gradient = value_and_gradient(loss, images)
    expected, right = value_and_gradient(lambda x: 1 - textbook_ms_ssim(x, target, mask), images)
    assert expected.min() > 0.001
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    assert (gradient - right).norm() < 1e-9 * right.norm()


def test_ms_ssim_has_as_many_scales_as_the_window_fits_into():
    assert [scale_count(side) for side in (10, 11, 20, 21, 40, 41, 80, 81, 160, 161, 1024)] == [
        0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="at least 11x11 pixels"):
        MSSSIMLoss(pictures(1, 10))


@pytest.mark.parametrize("masked", [False, True])
def test_ssim_agrees_with_the_textbook(masked):
    target, images = pictures(2, 19, 30, seed=1), 1.5 * pictures(2, 19, 30, seed=2)
    mask = soft_mask(2, 19, 30) if masked else None
    luminance, structure = textbook_maps(images.clamp(-1, 1) / 2, target.clamp(-1, 1) / 2, mask)
    weights = torch.ones(2, 1, 9, 20, dtype=torch.float64) if mask is None else mask[:, :, 5:-5, 5:-5]
    expected = (luminance * structure * weights).mean(1).sum((1, 2)) / weights.sum((1, 2, 3))
    torch.testing.assert_close(ssim(images, target, mask), expected, rtol=1e-9, atol=0)
    assert images.abs().max() > 1


def test_ssim_of_flat_pictures_is_the_luminance_term():
    def flat(value):
        return torch.full((1, 3, 12, 12), 2 * value - 1, dtype=torch.float64)

    expected = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    assert ssim(flat(0.2), flat(0.6)).item() == pytest.approx(expected, rel=1e-5)
    assert ssim(flat(0.2), flat(0.2)).item() == pytest.approx(1, abs=1e-6)


def test_ms_ssim_of_opposites_has_a_finite_gradient():
    target = pictures(1, 48, dtype=torch.float32)
    value, gradient = value_and_gradient(MSSSIMLoss(target), -target)
    assert 0.9 < value.item() <= 1 and gradient.isfinite().all()


def test_ms_ssim_of_half_precision_is_computed_in_float32():
    target, images = (pictures(1, 32, seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    value = MSSSIMLoss(target)(images)
    assert value.dtype == torch.float32
    assert torch.equal(value, MSSSIMLoss(target.float())(images.float()))
