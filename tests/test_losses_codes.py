"""Priors on codes and noise maps, each against its formula in float64."""

import pytest
import torch
from losses_contract import check_threads
from torch import nn
from torch.nn import functional

from fastinv.errors import UsageError
from fastinv.losses import (
    DomainLoss,
    MeanDistance,
    NoiseRegularizer,
    PNorm,
    PNormStatistics,
    pnorm_statistics,
)
from fastinv.models.encoders import IDInvertEncoder
from fastinv.models.stylegan2 import Generator
from fastinv.ops.noise import normalize_noise_

ROWS = torch.tensor([2, 0])


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# Distance to the mean


@pytest.mark.parametrize("p", [1, 2])
def test_mean_distance_follows_the_formula(p):
    w, mean = random(3, 4, 5), random(5, seed=1)
    expected = torch.stack([sum((row - mean).abs() ** p for row in code).sum() / 20 for code in w])
    loss = MeanDistance(mean, p)
    torch.testing.assert_close(loss({"w_plus": w}), expected)
    torch.testing.assert_close(loss.select(ROWS)({"w_plus": w[ROWS]}), expected[ROWS])
    assert loss({"w_plus": w[:0]}).shape == (0,)
    assert torch.autograd.gradcheck(lambda w: loss({"w_plus": w}), w.requires_grad_())


def test_mean_distance_of_style_channels():
    styles, mean = random(3, 40), random(40, seed=1)
    found = MeanDistance(mean, key="styles")({"styles": styles, "noise": {}})
    torch.testing.assert_close(found, (styles - mean).abs().mean(1))


def test_mean_distance_of_a_mean_for_each_style_input():
    w, mean = random(3, 4, 5), random(4, 5, seed=1)
    torch.testing.assert_close(MeanDistance(mean)({"w_plus": w}), (w - mean).abs().mean((1, 2)))


def test_mean_distance_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="p=1 .* or p=2 .*, not 3"):
        MeanDistance(random(5), p=3)
    with pytest.raises(UsageError, match="looks at 'w_plus'; the codes here have styles"):
        MeanDistance(random(5))({"styles": random(2, 5)})
    with pytest.raises(UsageError, match=r"codes \[2, 4, 6\] do not fit a mean \[5\]"):
        MeanDistance(random(5))({"w_plus": random(2, 4, 6)})


# P-norm


def generator(c_dim=0, z_dim=6, w_dim=6):
    torch.manual_seed(4)
    return Generator(8, z_dim, w_dim, c_dim, channels={4: 4, 8: 4}, mapping_layers=2, mapping_lr_multiplier=1.0)


def test_p_norm_follows_the_formula():
    w, mean, std = random(3, 4, 5), random(5, seed=1), random(5, seed=2).abs() + 0.1
    directions = torch.linalg.qr(random(5, 5, seed=3))[0]
    undone = torch.where(w < 0, 5 * w, w)
    expected = torch.stack([
        sum((((row - mean) @ directions[k]) / std[k]) ** 2 for row in code for k in range(5)) / 20 for code in undone
    ])  # fmt: skip
    loss = PNorm(PNormStatistics(mean, directions, std))
    torch.testing.assert_close(loss({"w_plus": w}), expected)
    torch.testing.assert_close(loss({"w_plus": w.float()}), expected.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.select(ROWS)({"w_plus": w[ROWS]}), expected[ROWS])
    assert torch.autograd.gradcheck(lambda w: loss({"w_plus": w}), w.requires_grad_())


@pytest.mark.parametrize("c_dim", [0, 3])
def test_latents_of_the_generator_have_a_p_norm_of_one(c_dim):
    G, mapped = generator(c_dim), []
    handle = G.mapping.register_forward_hook(lambda _, inputs, w: mapped.append(w[:, 0]))
    statistics = pnorm_statistics(G, samples=2500, seed=3, floor=0)
    handle.remove()
    w = torch.cat(mapped).double()
    x = torch.where(w < 0, 5 * w, w)
    assert len(w) == 2500
    torch.testing.assert_close(statistics.mean, x.mean(0))
    covariance = torch.cov(x.T, correction=0)
    identity = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(statistics.directions @ statistics.directions.T, identity)
    torch.testing.assert_close(
        statistics.directions @ covariance @ statistics.directions.T, statistics.std.square().diag()
    )
    assert (statistics.std.diff() <= 0).all()
    torch.testing.assert_close(PNorm(statistics)({"w_plus": w[:, None]}).mean(), identity[0, 0])
    # What the mapping network does not give counts more.
    assert PNorm(statistics)({"w_plus": 3 * w[:, None]}).mean() > 3


def test_p_norm_statistics_repeat():
    first, again, other = (pnorm_statistics(generator(), 500, seed) for seed in (1, 1, 2))
    for name in ("mean", "directions", "std"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.mean, other.mean)


def test_p_norm_statistics_have_the_same_bits_with_any_number_of_threads():
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(pnorm_statistics(generator(z_dim=64, w_dim=256), 2000))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for name in ("mean", "directions", "std"):
        assert torch.equal(*(getattr(statistics, name) for statistics in results))


def test_flat_directions_do_not_count_without_limit():
    exact, floored = (pnorm_statistics(generator(w_dim=12), samples=5, floor=floor) for floor in (0, 0.01))
    assert (exact.std[4:] < 1e-6 * exact.std[0]).all()  # five samples spread in four directions
    torch.testing.assert_close(floored.std, exact.std.clamp(min=0.01 * exact.std[0]))
    assert torch.equal(exact.mean, floored.mean) and torch.equal(exact.directions, floored.directions)


def test_p_norm_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="at least 2 samples, not 1"):
        pnorm_statistics(generator(), samples=1)
    with pytest.raises(UsageError, match=r"floor must be in \[0, 1\], not -1"):
        pnorm_statistics(generator(), floor=-1)
    statistics = pnorm_statistics(generator(), samples=100)
    with pytest.raises(UsageError, match="looks at 'w_plus'; the codes here have styles, noise"):
        PNorm(statistics)({"styles": random(2, 5), "noise": {}})
    with pytest.raises(UsageError, match=r"\[2, 4, 7\] do not fit statistics of 6 dimensions"):
        PNorm(statistics)({"w_plus": random(2, 4, 7)})
    with pytest.raises(UsageError, match="standard deviations above 0"):
        PNorm(PNormStatistics(statistics.mean, statistics.directions, statistics.std * 0))


def test_priors_have_the_same_bits_with_any_number_of_threads():
    w, mean = random(1, 18, 512, dtype=torch.float32), random(512, seed=1)
    directions = torch.linalg.qr(random(512, 512, seed=3))[0]
    losses = [PNorm(PNormStatistics(mean, directions, mean.abs() + 0.1))]
    losses += [MeanDistance(mean.float(), p) for p in (1, 2)]
    for loss in losses:
        for codes in (w, random(8, 18, 512, seed=2, dtype=torch.float32)):
            check_threads(lambda w, loss=loss: loss({"w_plus": w}), codes)
    styles = random(1, 9088, dtype=torch.float32)
    loss = MeanDistance(random(9088, seed=1, dtype=torch.float32), key="styles")
    check_threads(lambda s: loss({"styles": s}), styles)


# The encoder's domain


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(2)
    encoder = IDInvertEncoder(16, w_dim=5, channels=[4, 6, 8]).double()
    for module in encoder.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.running_var, 0.5, 2), nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return encoder


def test_domain_loss_follows_the_formula(encoder):
    images, w = random(3, 3, 16, 16) / 2, random(3, 6, 5, seed=1)
    expected = (w - encoder.eval().encode(images)).square().sum((1, 2)) / 30
    loss = DomainLoss(encoder.train())
    torch.testing.assert_close(loss(images, {"w_plus": w}), expected)
    torch.testing.assert_close(loss.select(ROWS)(images[ROWS], {"w_plus": w[ROWS]}), expected[ROWS])
    assert torch.autograd.gradcheck(
        lambda images, w: loss(images, {"w_plus": w}), (images.requires_grad_(), w.requires_grad_()), fast_mode=True
    )


def test_domain_loss_leaves_the_encoder_alone(encoder):
    encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    images = random(2, 3, 16, 16).requires_grad_()
    DomainLoss(encoder)(images, {"w_plus": random(2, 6, 5)}).sum().backward()
    assert images.grad.abs().sum() > 0 and encoder.training
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_domain_loss_refuses_what_does_not_fit(encoder):
    with pytest.raises(UsageError, match=r"has a method encode\(images\); Linear has none"):
        DomainLoss(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"gives codes \[1, 6, 5\], the generator takes \[1, 6, 7\]"):
        DomainLoss(encoder)(random(1, 3, 16, 16), {"w_plus": random(1, 6, 7)})
    with pytest.raises(UsageError, match="looks at 'w_plus'"):
        DomainLoss(encoder)(random(1, 3, 16, 16), {"styles": random(1, 7)})


@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 64), (1, 256)])
def test_domain_loss_has_the_same_bits_with_any_number_of_threads(count, size):
    torch.manual_seed(2)
    channels = [16] * (size.bit_length() - 2)
    loss = DomainLoss(IDInvertEncoder(size, w_dim=32, channels=channels))
    w = random(count, 2 * size.bit_length() - 4, 32, dtype=torch.float32)
    check_threads(lambda x: loss(x, {"w_plus": w}), random(count, 3, size, size, dtype=torch.float32) / 2)


# Noise maps


def textbook_regularizer(maps):
    """Pixel by pixel."""
    total = 0
    for level in maps:
        while True:
            side = level.shape[-1]
            before = [(i - 1) % side for i in range(side)]
            for shifted in (level[..., before, :], level[..., before]):
                total = total + (level * shifted).sum((1, 2, 3)).div(side * side) ** 2
            if side <= 8:
                break
            level = level.unflatten(3, (side // 2, 2)).unflatten(2, (side // 2, 2)).mean((3, 5))
    return total


def test_noise_regularizer_follows_the_formula():
    maps = {f"b{side}": random(3, 1, side, side, seed=side) for side in (4, 8, 16, 32)}
    found = NoiseRegularizer()({"noise": maps})
    expected = textbook_regularizer(maps.values())
    assert expected.min() > 0
    torch.testing.assert_close(found, expected)
    chosen = NoiseRegularizer().select(ROWS)({"noise": {name: noise[ROWS] for name, noise in maps.items()}})
    torch.testing.assert_close(chosen, expected[ROWS])
    inputs = [noise[:2].clone().requires_grad_() for noise in maps.values()]
    assert torch.autograd.gradcheck(
        lambda *maps: NoiseRegularizer()({"noise": dict(enumerate(maps))}), inputs, fast_mode=True
    )


def test_noise_regularizer_is_small_for_noise_and_large_for_pictures():
    noise = random(1, 1, 64, 64)
    smooth = functional.avg_pool2d(noise, 5, 1, 2)
    maps = {"noise": {"a": noise}}, {"noise": {"a": smooth / smooth.square().mean().sqrt()}}
    white, blurred = (NoiseRegularizer()(codes).item() for codes in maps)
    assert white < 0.1 < 1 < blurred


@pytest.mark.parametrize("codes", [{}, {"w_plus": random(1, 2, 3)}, {"noise": {}}])
def test_noise_regularizer_needs_noise_maps(codes):
    with pytest.raises(UsageError, match="needs noise maps in the codes"):
        NoiseRegularizer()(codes)


@pytest.mark.parametrize("side", [64, 256])
def test_noise_has_the_same_bits_with_any_number_of_threads(side):
    def normalised(noise):
        copy = noise.detach().clone()
        normalize_noise_([copy])
        return copy.flatten(1)[:, :100].sum(1) + 0 * noise.sum((1, 2, 3))

    for count in (1, 3):
        noise = random(count, 1, side, side, dtype=torch.float32)
        check_threads(lambda x: NoiseRegularizer()({"noise": {"a": x}}), noise)
        check_threads(normalised, noise + 3)
