"""Losses that look through a network: style, the choice of the perceptual distance, the discriminator."""

import pytest
import torch
from losses_contract import SmallNetwork, check_threads, pictures, soft_mask, value_and_gradient
from torch import nn
from torch.nn import functional

from fastinv.errors import CheckpointError, UsageError
from fastinv.losses import (
    DiscriminatorLoss,
    PerceptualLoss,
    StyleLoss,
    load_perceptual,
    load_style,
    load_trunk,
    mean_per_picture,
    perceptual,
    style,
    trunks,
)
from fastinv.models.discriminator import Discriminator

# Style


def textbook_style(trunk, images, mask, target, target_mask, layer_weights):
    def grams(pictures, mask):
        maps = trunk(pictures * mask)
        masks = [functional.adaptive_avg_pool2d(mask, x.shape[2:])[:, 0] for x in maps]
        return [
            torch.einsum("nhw,nahw,nbhw->nab", m, x, x) / m.sum((1, 2)).view(-1, 1, 1)
            for m, x in zip(masks, maps, strict=True)
        ]

    pairs = zip(grams(images, mask), grams(target, target_mask), layer_weights, strict=True)
    return sum(weight * (a - b).square().mean((1, 2)) for a, b, weight in pairs)


def test_style_loss_follows_the_formula():
    trunk, _ = load_trunk(SmallNetwork(), dtype=torch.float64)
    images, target = pictures(2, 24, seed=1), pictures(2, 17, 31, seed=2)  # of another size
    mask, target_mask = soft_mask(2, 24), soft_mask(2, 17, 31, seed=4)
    loss = StyleLoss(target, trunk, mask, target_mask, layer_weights=[0.5, 2.0])
    expected = textbook_style(trunk, images, mask, target, target_mask, [0.5, 2.0])
    torch.testing.assert_close(loss(images), expected, rtol=1e-9, atol=0)
    same = StyleLoss(pictures(2, 24, seed=2), trunk, mask)  # the mask holds for both
    expected = textbook_style(trunk, images, mask, pictures(2, 24, seed=2), mask, [1, 1])
    torch.testing.assert_close(same(images), expected, rtol=1e-9, atol=0)


def test_style_does_not_depend_on_places_and_scale_of_the_mask():
    features = torch.rand(2, 5, 6, 7, dtype=torch.float64)
    mask = torch.rand(2, 1, 6, 7, dtype=torch.float64)
    shuffled = features.flatten(2)[..., torch.randperm(42)].view(2, 5, 6, 7)
    torch.testing.assert_close(style.gram(features), style.gram(shuffled))
    torch.testing.assert_close(style.gram(features, mask), style.gram(features, 0.25 * mask))


def test_gram_matrices_have_the_same_bits_with_any_number_of_threads():
    for channels, side in ((16, 64), (64, 128), (256, 64)):  # the last is conv3_3 of VGG-16
        features = torch.randn(1, channels, side, side)
        check_threads(lambda x: mean_per_picture(style.gram(x).square()), features)


def test_style_arguments_that_do_not_fit():
    trunk, _ = load_trunk(SmallNetwork(), dtype=torch.float64)
    with pytest.raises(UsageError, match="3 layer weights for 2 feature maps"):
        StyleLoss(pictures(), trunk, layer_weights=[1, 1, 1])
    with pytest.raises(UsageError, match=r"pictures \[2, 3, 24, 24\] is \[2, 1, 24, 24\], not \[2, 1, 20, 20\]"):
        StyleLoss(pictures(), trunk, soft_mask(), soft_mask(2, 20))
    with pytest.raises(UsageError, match="unknown trunk 'lpips' of the style loss"):
        load_style("lpips", pictures())


# Perceptual distances


def test_log_cosh_of_features():
    trunk, _ = load_trunk(SmallNetwork(), dtype=torch.float64)
    a, b = pictures(seed=1), pictures(seed=2)
    expected = sum((x - y).cosh().log().mean((1, 2, 3)) for x, y in zip(trunk(a), trunk(b), strict=True))
    torch.testing.assert_close(PerceptualLoss(b, trunk, distance="log-cosh")(a), expected)
    with pytest.raises(UsageError, match="distance must be mse or log-cosh, not 'l1'"):
        PerceptualLoss(b, trunk, distance="l1")


@pytest.fixture
def no_vgg16(monkeypatch):
    for module in (perceptual, style, trunks):
        monkeypatch.setattr(module, "find_vgg16", lambda: None)


def test_without_vgg16_the_attribute_network_is_the_distance(no_vgg16):
    target, images, mask = pictures(2, 32, seed=1), pictures(2, 32, seed=2), soft_mask(2, 32)
    trunk, facts = load_trunk("attributes", dtype=torch.float64)
    for kind in ("auto", "attributes"):
        loss, found = load_perceptual(kind, target, mask)
        assert found == facts
        torch.testing.assert_close(loss(images), PerceptualLoss(target, trunk, mask=mask)(images))
        loss, found = load_style(kind, target, mask)
        assert found == facts
        torch.testing.assert_close(loss(images), StyleLoss(target, trunk, mask)(images))
    for kind in ("vgg16", "lpips"):
        with pytest.raises(CheckpointError):
            load_perceptual(kind, target)
    with pytest.raises(CheckpointError, match="no VGG-16 weights here"):
        load_style("vgg16", target)
    with pytest.raises(UsageError, match="unknown perceptual distance 'alex'; give auto, lpips, vgg16, attributes"):
        load_perceptual("alex", target)


def test_with_vgg16_and_the_lpips_package_lpips_is_the_distance(monkeypatch):
    monkeypatch.setattr(perceptual, "find_vgg16", lambda: "vgg16.pth")
    monkeypatch.setattr(perceptual, "load_lpips", lambda: ("network", {"name": "lpips"}))
    monkeypatch.setattr(perceptual, "LPIPS", lambda *arguments: arguments)
    target, mask = pictures(), soft_mask()
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: name)
    expected = (target, "network", mask, torch.float32), {"name": "lpips"}
    assert load_perceptual("auto", target, mask, torch.float32) == expected
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    assert load_perceptual("auto", target, mask)[1]["name"] == "attributes"


def test_style_of_vgg16_is_that_of_conv3_3(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for index, inputs, outputs in trunks.vgg16_convolutions().values():
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        weights |= {f"features.{index}.weight": weight, f"features.{index}.bias": torch.zeros(outputs)}
    for module in (style, trunks):
        monkeypatch.setattr(module, "find_vgg16", lambda: "vgg16.pth")
    monkeypatch.setattr(trunks, "read_weights", lambda path: (weights, "00"))
    target, images = (pictures(1, 16, seed=seed, dtype=torch.float32) for seed in (1, 2))
    loss, facts = load_style("auto", target)
    [a], [b] = (trunks.VGG16Trunk(weights, ("conv3_3",))(x) for x in (images, target))
    grams = [torch.einsum("nahw,nbhw->nab", x, x) / 16 for x in (a, b)]
    assert facts["layers"] == ["conv3_3"] and a.shape == (1, 256, 4, 4)
    torch.testing.assert_close(loss(images), (grams[0] - grams[1]).square().mean((1, 2)), rtol=1e-4, atol=0)


def test_a_lower_precision_is_that_of_the_trunk_alone(no_vgg16):
    target, images = (pictures(1, 64, seed=seed, dtype=torch.float32) for seed in (1, 2))
    for load in (load_perceptual, load_style):
        (exact, _), (low, _) = load("attributes", target), load("attributes", target, dtype=torch.bfloat16)
        (value, gradient), (expected, right) = value_and_gradient(low, images), value_and_gradient(exact, images)
        assert value.dtype == gradient.dtype == torch.float32
        assert 0 < (value - expected).abs() < 0.02 * expected
        assert 0 < (gradient - right).norm() < 0.1 * right.norm()


# The discriminator


def discriminator(resolution=16, dtype=torch.float64, **options):
    torch.manual_seed(5)
    channels = {r: 16 for r in (4, 8, 16, 32, 64, 128, 256) if r <= resolution}
    return Discriminator(resolution, channels=channels, **options).to(dtype)


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
def test_discriminator_loss_is_that_of_single_pictures(architecture):
    D, images = discriminator(architecture=architecture), pictures(4, 16)
    value, gradient = value_and_gradient(DiscriminatorLoss(D), images)
    alone = [value_and_gradient(lambda x: torch.log1p(torch.exp(-D(x)[:, 0])), image[None]) for image in images]
    torch.testing.assert_close(value, torch.cat([v for v, _ in alone]), rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, torch.cat([g for _, g in alone]), rtol=1e-8, atol=1e-14)
    # Not so the discriminator itself, which puts the pictures of a batch into one group.
    assert (functional.softplus(-D(images))[:, 0] - value).abs().max() > 1e-6


def test_discriminator_loss_of_a_picture_has_no_gradient_in_another():
    images = pictures(3, 16).requires_grad_()
    gradient = torch.autograd.grad(DiscriminatorLoss(discriminator())(images)[1], images)[0]
    assert (gradient[[0, 2]] == 0).all() and (gradient[1] != 0).any()


def test_discriminator_is_left_alone():
    D = discriminator().train()
    before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    images = pictures(3, 16).requires_grad_()
    expected = D(images.detach())
    DiscriminatorLoss(D)(images).sum().backward()
    assert D.training and D.b4.group_size == 4 and torch.equal(D(images.detach()), expected)
    assert all(p.requires_grad and p.grad is None for p in D.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in D.state_dict().items())
    # Its weights are not copied.
    assert DiscriminatorLoss(D).D.b4.fc.weight.data_ptr() == D.b4.fc.weight.data_ptr()


def test_discriminator_with_labels():
    D, images, c = discriminator(c_dim=2), pictures(3, 16), torch.rand(3, 2, dtype=torch.float64)
    loss, rows = DiscriminatorLoss(D, c), torch.tensor([2, 0])
    expected = torch.cat([functional.softplus(-D(images[i : i + 1], c[i : i + 1]))[:, 0] for i in range(3)])
    torch.testing.assert_close(loss(images), expected)
    torch.testing.assert_close(loss.select(rows)(images[rows]), expected[rows])
    for labels in (None, c[:, :1]):
        with pytest.raises(UsageError, match=r"c must be labels \[N, 2\]"):
            DiscriminatorLoss(D, labels)
    with pytest.raises(UsageError, match="takes a fastinv Discriminator, not a Linear"):
        DiscriminatorLoss(nn.Linear(2, 2))
    with pytest.raises(UsageError, match=r"images must have shape \[N, 3, 16, 16\]"):
        loss(pictures(3, 8))


def test_discriminator_gradients_agree_with_finite_differences():
    loss = DiscriminatorLoss(discriminator(8))
    assert torch.autograd.gradcheck(loss, pictures(2, 8).requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 64), (1, 256)])
def test_discriminator_has_the_same_bits_with_any_number_of_threads(count, size):
    D = discriminator(size, torch.float32)
    check_threads(DiscriminatorLoss(D), pictures(count, size, dtype=torch.float32))
