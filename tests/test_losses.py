"""Losses between pictures, their masks, and the trunks behind the perceptual one."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastinv.checkpoints import network_hash
from fastinv.errors import CheckpointError, UsageError
from fastinv.losses import PerceptualLoss, PixelLoss, load_trunk, mean_per_picture, mse, psnr, resize_mask, trunks
from fastinv.models.attributes import AttributeNetwork

# torchvision's vgg16.features, written out: the position of every convolution, ReLU and pooling layer.
VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


class SmallNetwork(nn.Module):
    """Two feature maps; counts its calls."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator) * 0.2)
        self.second = nn.Parameter(torch.randn(5, 4, 3, 3, generator=generator) * 0.2)

    def features(self, images):
        a = nn.functional.conv2d(images, self.first, stride=2).relu()
        return [a, nn.functional.conv2d(a, self.second, stride=2).tanh()]


def pictures(count=2, resolution=16, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, resolution, resolution, generator=generator, dtype=dtype) * 2 - 1


def half_mask(count=2, resolution=16):
    """1 on the left half, 0 on the right."""
    mask = torch.zeros(count, 1, resolution, resolution)
    mask[..., : resolution // 2] = 1
    return mask


def test_pixel_loss_is_the_mean_square():
    a, b = pictures(seed=1), pictures(seed=2)
    torch.testing.assert_close(PixelLoss(b)(a), (a - b).square().mean((1, 2, 3)))


def test_pixel_loss_with_a_soft_mask_follows_the_formula():
    a, b, mask = pictures(seed=1), pictures(seed=2), torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(PixelLoss(b, mask)(a), (mask * (a - b)).square().sum((1, 2, 3)) / (3 * 16 * 16))


def test_perceptual_loss_follows_the_formula():
    a, b = pictures(seed=1), pictures(seed=2)
    trunk, _ = load_trunk(SmallNetwork())
    maps = zip(trunk(a), trunk(b), [0.5, 2.0], strict=True)
    expected = sum(weight * (x - y).square().mean((1, 2, 3)) for x, y, weight in maps)
    torch.testing.assert_close(PerceptualLoss(b, trunk, [0.5, 2.0])(a), expected)
    assert torch.equal(PerceptualLoss(b, trunk)(b), torch.zeros(2))


def test_target_features_are_computed_once():
    calls = []

    def trunk(images):
        calls.append(len(images))
        return [images]

    loss = PerceptualLoss(pictures(2), trunk)
    for seed in range(5):
        loss(pictures(2, seed=seed))
    assert calls == [2] * 6  # one for the target, one for each evaluation


@pytest.mark.parametrize("kind", ["pixel", "perceptual"])
def test_hidden_pixels_do_not_count(kind):
    def build(target, mask):
        if kind == "pixel":
            return PixelLoss(target, mask)
        return PerceptualLoss(target, load_trunk(SmallNetwork())[0], mask=mask)

    target, images, mask = pictures(seed=1), pictures(seed=2), half_mask()
    other_target, other_images = target.clone(), images.clone()
    other_target[..., 8:], other_images[..., 8:] = 0.9, -0.3
    value = build(target, mask)(images)
    assert value.min() > 0
    assert torch.equal(value, build(other_target, mask)(other_images))
    other_images[..., 3] += 0.1  # but visible ones do
    assert not torch.equal(value, build(target, mask)(other_images))


def test_a_mask_of_ones_changes_nothing():
    target, images, ones = pictures(seed=1), pictures(seed=2), torch.ones(2, 1, 16, 16)
    trunk, _ = load_trunk(SmallNetwork())
    assert torch.equal(PixelLoss(target)(images), PixelLoss(target, ones)(images))
    torch.testing.assert_close(PerceptualLoss(target, trunk)(images), PerceptualLoss(target, trunk, mask=ones)(images))


def test_select_gives_the_loss_of_some_pictures():
    target, images, mask = pictures(3, seed=1), pictures(3, seed=2), torch.rand(3, 1, 16, 16)
    rows = torch.tensor([2, 0])
    trunk, _ = load_trunk(SmallNetwork())
    for loss in (PixelLoss(target), PixelLoss(target, mask), PerceptualLoss(target, trunk, mask=mask)):
        torch.testing.assert_close(loss.select(rows)(images[rows]), loss(images)[rows])


def test_masks_shrink_by_area():
    small = resize_mask(half_mask(1, 6), (2, 2))
    assert torch.equal(small, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))
    assert resize_mask(half_mask(1, 6), (3, 3))[0, 0, 0].tolist() == [1.0, 0.5, 0.0]


def test_the_mean_has_the_same_bits_with_any_number_of_threads():
    values = torch.randn(1, 3, 300, 300)
    threads = torch.get_num_threads()
    try:
        results = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.add(mean_per_picture(values).item())
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1


def test_metrics_have_known_values():
    black, grey = -torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    assert mse(black, grey).item() == 1
    assert psnr(black, grey).item() == pytest.approx(10 * math.log10(4))
    assert psnr(black, black).item() == 100
    assert mse(black - 5, grey).item() == 1  # clamped
    images = grey.clone()
    images[..., :2] = 0.5  # a quarter of the picture is off by a half
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    assert mse(images, grey).item() == pytest.approx(0.25 / 4)
    assert mse(images, grey, mask).item() == pytest.approx(0.25 / 2)


def test_large_pictures_are_averaged_down():
    images = pictures(1, 8)
    expected = images.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(trunks.resize_to(images, 4), expected)
    torch.testing.assert_close(trunks.resize_to(images, 3), nn.functional.interpolate(images, size=(3, 3), mode="area"))
    assert trunks.resize_to(images, 16) is images


def test_vgg16_shrinks_large_pictures_to_256(vgg16):
    trunk = trunks.VGG16Trunk(state_dict(vgg16), layers=("conv1_1",))
    large = pictures(1, 512)
    [feature], [expected] = trunk(large), trunk(nn.functional.avg_pool2d(large, 2))
    assert feature.shape == (1, 64, 256, 256) and torch.equal(feature, expected)


def test_facts_of_a_network_trunk():
    trunk, facts = load_trunk(SmallNetwork())
    assert facts == {"name": "SmallNetwork", "sha256": network_hash(SmallNetwork()), "layers": "all"}
    assert load_trunk(SmallNetwork(), layers=[1])[1]["layers"] == [1]
    for flag in ({"pre_relu": True}, {"normalize": False}):
        with pytest.raises(UsageError, match="options of vgg16; the trunk here is SmallNetwork"):
            load_trunk(SmallNetwork(), **flag)


def test_network_trunk_leaves_the_network_alone():
    network = SmallNetwork().train()
    trunk, _ = load_trunk(network, dtype=torch.float64)
    assert network.training and network.first.requires_grad and network.first.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


def test_layers_of_a_network_trunk():
    images = pictures(1, 64)
    both = load_trunk(SmallNetwork())[0](images)
    [only] = load_trunk(SmallNetwork(), layers=(1,))[0](images)
    assert torch.equal(only, both[1])
    for layers in ((2,), ("conv1_1",), ()):
        with pytest.raises(UsageError, match="feature maps 0 to 1"):
            load_trunk(SmallNetwork(), layers=layers)[0](images)


# VGG-16


@pytest.fixture(scope="module")
def vgg16():
    """torchvision's layout with random weights."""
    torch.manual_seed(1)
    layers, channels = [], 3
    for width in VGG16[:12]:  # through conv4_2: deeper layers only cost time
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers).requires_grad_(False)


def state_dict(vgg16):
    weights = {f"features.{name}": value for name, value in vgg16.state_dict().items()}
    return {**weights, "classifier.0.weight": torch.zeros(2, 2)}


def test_vgg16_positions():
    table = trunks.vgg16_convolutions()
    position, expected = 0, []
    for width in VGG16:
        if width != "M":
            expected.append((position, width))
        position += 1 if width == "M" else 2
    assert [(index, width) for index, _, width in table.values()] == expected
    assert list(table)[0] == "conv1_1" and list(table)[-1] == "conv5_3" and len(table) == 13


@pytest.mark.parametrize(("pre_relu", "normalize"), [(False, True), (True, True), (False, False)])
def test_vgg16_features(vgg16, pre_relu, normalize):
    images = pictures(1, 32)
    x = (images + 1) / 2
    if normalize:
        x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    positions = (0, 2, 12, 19) if pre_relu else (1, 3, 13, 20)  # conv1_1, conv1_2, conv3_2, conv4_2
    expected = [vgg16[: position + 1](x) for position in positions]
    trunk = trunks.VGG16Trunk(state_dict(vgg16), pre_relu=pre_relu, normalize=normalize)
    for found, right in zip(trunk(images), expected, strict=True):
        torch.testing.assert_close(found, right)


def test_vgg16_stops_at_the_last_layer_asked_for(vgg16):
    trunk = trunks.VGG16Trunk(state_dict(vgg16), layers=("conv2_1", "conv1_1"))
    assert list(trunk.convolutions) == ["conv1_1", "conv1_2", "conv2_1"]
    assert [feature.shape[1] for feature in trunk(pictures(1, 8))] == [128, 64]


def test_vgg16_leaves_the_random_numbers_alone(vgg16):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    trunks.VGG16Trunk(state_dict(vgg16))
    assert torch.equal(torch.rand(3), expected)


def test_vgg16_refuses_what_does_not_fit(vgg16):
    weights = state_dict(vgg16)
    with pytest.raises(UsageError, match="no layer 'conv6_1'; it has conv1_1, "):
        trunks.VGG16Trunk(weights, layers=("conv6_1",))
    with pytest.raises(CheckpointError, match=r"features.12.bias is missing, expected \[256\]"):
        trunks.VGG16Trunk({name: value for name, value in weights.items() if name != "features.12.bias"})
    with pytest.raises(CheckpointError, match=r"features.2.weight has shape \[1\]"):
        trunks.VGG16Trunk({**weights, "features.2.weight": torch.zeros(1)})


@pytest.fixture
def no_local_files(monkeypatch, tmp_path):
    """No VGG-16 file anywhere; returns the empty cache folder."""
    monkeypatch.delenv("FASTINV_VGG16", raising=False)
    monkeypatch.setenv("FASTINV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_vgg16_from_a_file_of_the_user(vgg16, no_local_files, monkeypatch, tmp_path, suffix):
    weights, path = state_dict(vgg16), tmp_path / f"mine{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    monkeypatch.setenv("FASTINV_VGG16", str(path))
    trunk, facts = load_trunk("auto", layers=["conv1_2"], pre_relu=True)
    assert isinstance(trunk, trunks.VGG16Trunk)
    assert facts.pop("sha256") == trunks.read_weights(path)[1]
    assert facts == {
        "name": "vgg16", "file": str(path), "imagenet": False,
        "layers": ["conv1_2"], "pre_relu": True, "normalize": True,
    }  # fmt: skip


def test_vgg16_from_the_cache_folder_is_held_to_the_hash_in_its_name(vgg16, no_local_files):
    torch.save(state_dict(vgg16), no_local_files / "vgg16-397923af.pth")
    with pytest.raises(CheckpointError, match="damaged: its sha256 starts with .*, its name says 397923af"):
        load_trunk("auto")


def test_vgg16_missing(no_local_files, monkeypatch):
    assert trunks.find_vgg16() is None
    with pytest.raises(CheckpointError, match="set FASTINV_VGG16"):
        load_trunk("vgg16")
    monkeypatch.setenv("FASTINV_VGG16", "/nowhere/vgg.pth")
    with pytest.raises(CheckpointError, match="FASTINV_VGG16 names '/nowhere/vgg.pth', which is not a file"):
        load_trunk("auto")


def test_without_vgg16_the_attribute_network_is_used(no_local_files, monkeypatch):
    torch.manual_seed(0)
    network = AttributeNetwork()
    monkeypatch.setattr(trunks, "load_attribute_network", lambda: network)
    trunk, facts = load_trunk("auto", dtype=torch.float64)
    assert facts == {"name": "attributes", "sha256": network_hash(network), "layers": "all"}
    for size in (32, 64, 128):
        features = trunk(pictures(1, size, dtype=torch.float64))
        assert [feature.shape[-1] for feature in features] == [64, 32, 16, 8, 4]
    with pytest.raises(UsageError, match="attributes has feature maps 0 to 4, not 'conv1_1'"):
        load_trunk("auto", layers=("conv1_1",))[0](pictures(1, 64))


class Bomb:
    """Would run code when unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("content", ["code", "list", "noise", "empty"])
def test_weights_that_cannot_be_read(tmp_path, capsys, content):
    path = tmp_path / "weights.pth"
    if content in ("code", "list"):
        torch.save({"a": Bomb()} if content == "code" else [1, 2], path)
    else:
        path.write_bytes(b"" if content == "empty" else bytes(range(256)))
    with pytest.raises(CheckpointError, match="weights.pth"):
        trunks.read_weights(path)
    assert "unpickled" not in capsys.readouterr().out


def test_unknown_trunks():
    with pytest.raises(UsageError, match="unknown trunk 'resnet'; give auto, vgg16, attributes"):
        load_trunk("resnet")
    with pytest.raises(UsageError, match="Linear has none"):
        load_trunk(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="3 layer weights for 2 feature maps"):
        PerceptualLoss(pictures(1), load_trunk(SmallNetwork())[0], [1, 1, 1])


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_agree_with_finite_differences(masked):
    target, images = pictures(2, 12, seed=1, dtype=torch.float64), pictures(2, 12, seed=2, dtype=torch.float64)
    mask = torch.rand(2, 1, 12, 12, dtype=torch.float64) if masked else None
    trunk, _ = load_trunk(SmallNetwork(), dtype=torch.float64)
    for loss in (PixelLoss(target, mask), PerceptualLoss(target, trunk, mask=mask)):
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x), images.requires_grad_(), fast_mode=True)
