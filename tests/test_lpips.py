"""LPIPS: the loss against a textbook and against the lpips package, its files."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fastinv.errors import CheckpointError, UsageError
from fastinv.losses import LPIPS, load_lpips, lpips, resize_mask, trunks


def pictures(count=1, size=32, seed=0, dtype=torch.float64):
    """Smooth ones: noise would give half precision nothing to agree on."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=generator, dtype=torch.float64) * 2 - 1
    return functional.interpolate(coarse, size=(size, size), mode="bilinear").to(dtype)


# The loss


@pytest.fixture(scope="module")
def state():
    """VGG-16's state dict with random weights that keep the size of what goes through."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for index, inputs, outputs in trunks.vgg16_convolutions().values():
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        weights |= {
            f"features.{index}.weight": weight,
            f"features.{index}.bias": torch.randn(outputs, generator=generator) * 0.1,
        }
    return weights


@pytest.fixture(scope="module")
def heads():
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(width, generator=generator) for _, width in trunks.VGG16_BLOCKS]


@pytest.fixture(scope="module")
def network(state, heads):
    return lpips.LPIPSNetwork(trunks.VGG16Trunk(state, layers=lpips.TAPS), heads)


def textbook(state, heads, images, target, mask=None):
    """LPIPS as the paper has it, in the dtype of the images and plain PyTorch."""

    def features(x):
        x = (x - x.new_tensor(lpips.SHIFT).view(3, 1, 1)) / x.new_tensor(lpips.SCALE).view(3, 1, 1)
        for name, (index, _, _) in trunks.vgg16_convolutions().items():
            if name.endswith("_1") and name != "conv1_1":
                x = functional.max_pool2d(x, 2)
            weight, bias = (state[f"features.{index}.{part}"].to(x.dtype) for part in ("weight", "bias"))
            x = functional.conv2d(x, weight, bias, padding=1).relu()
            if name in lpips.TAPS:
                yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    if mask is not None:
        images, target = images * mask, target * mask
    total = 0
    for a, b, head in zip(features(images), features(target), heads, strict=True):
        difference = a - b if mask is None else (a - b) * resize_mask(mask, a.shape[2:])
        total = total + (difference.square() * head.to(a.dtype).view(-1, 1, 1)).sum(1).mean((1, 2))
    return total


def value_and_gradient(function, images):
    images = images.detach().requires_grad_()
    value = function(images)
    return value, torch.autograd.grad(value.double() @ torch.arange(1.0, 1 + len(value)).double(), images)[0]


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [16, 36])
def test_value_and_gradient_agree_with_the_textbook(state, heads, network, size, masked):
    images, target = pictures(2, size, seed=1), pictures(2, size, seed=2)
    mask = torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(3)).double() if masked else None
    value, gradient = value_and_gradient(LPIPS(target, network, mask), images)
    expected, right = value_and_gradient(lambda x: textbook(state, heads, x, target, mask), images)
    assert relative_error(value, expected) < 1e-9 and relative_error(gradient, right) < 1e-9


@pytest.mark.parametrize("size", [32, 48])
def test_larger_pictures_are_shrunk_by_area(state, heads, network, monkeypatch, size):
    monkeypatch.setattr(lpips, "RESOLUTION", 16)
    images, target = pictures(1, size, seed=1), pictures(1, size, seed=2)
    value, gradient = value_and_gradient(LPIPS(target, network), images)

    def shrunk(x):
        return textbook(state, heads, trunks.resize_to(x, 16), trunks.resize_to(target, 16))

    expected, right = value_and_gradient(shrunk, images)
    assert relative_error(value, expected) < 1e-9 and relative_error(gradient, right) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_as_good_as_plain_torch(state, heads, network, dtype):
    images, target = pictures(1, 32, seed=1), pictures(1, 32, seed=2)
    exact, right = value_and_gradient(lambda x: textbook(state, heads, x, target), images)
    loss = LPIPS(target.float(), network, dtype=dtype)
    value, gradient = value_and_gradient(loss, images.float())
    # In float16 the textbook's gradient is scaled as users do, or it would be zero.
    scale = 2.0**14 if dtype == torch.float16 else 1
    plain_value, plain = value_and_gradient(
        lambda x: scale * textbook(state, heads, x, target.to(dtype)), images.to(dtype)
    )
    assert value.dtype == torch.float32 and gradient.dtype == torch.float32
    assert relative_error(value, exact) < 2 * max(relative_error(plain_value / scale, exact), 1e-7)
    assert relative_error(gradient, right) < 2 * relative_error(plain / scale, right)


def test_float16_gradients_do_not_depend_on_the_size_of_the_incoming_one(network):
    images, loss = (
        pictures(1, 16, 1, torch.float32),
        LPIPS(pictures(1, 16, 2, torch.float32), network, dtype=torch.float16),
    )
    _, gradient = value_and_gradient(loss, images)
    for exponent in (-40, -7, 30):
        _, scaled = value_and_gradient(lambda x, exponent=exponent: loss(x) * 2.0**exponent, images)
        assert torch.equal(scaled, gradient * 2.0**exponent)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_picture_is_at_distance_zero_of_itself(network, dtype):
    target = pictures(2, 16, dtype=torch.float32)
    value, gradient = value_and_gradient(LPIPS(target, network, dtype=dtype), target)
    assert (value == 0).all() and (gradient == 0).all()


def test_hidden_pixels_do_not_count(network):
    target, images = pictures(1, 32, 1), pictures(1, 32, 2)
    mask = torch.zeros(1, 1, 32, 32).double()
    mask[..., :16] = 1
    loss = LPIPS(target, network, mask)
    value, gradient = value_and_gradient(loss, images)
    images[..., 16:] = 5
    assert torch.equal(loss(images), value) and (gradient[..., 16:] == 0).all() and (gradient[..., :16] != 0).any()


@pytest.mark.parametrize("masked", [False, True])
def test_select(network, masked):
    target, images = pictures(3, 16, 1), pictures(3, 16, 2)
    mask = torch.rand(3, 1, 16, 16).double() if masked else None
    loss, rows = LPIPS(target, network, mask), torch.tensor([2, 0])
    chosen = loss.select(rows)
    torch.testing.assert_close(chosen(images[rows]), loss(images)[rows], rtol=1e-12, atol=0)
    assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in chosen.features)


class Operations(TorchDispatchMode):
    """Notes the operations that run, and what convolution_backward is asked for."""

    def __init__(self):
        super().__init__()
        self.names, self.masks = [], []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        self.names.append(name)
        if name == "convolution_backward":
            self.masks.append(list(arguments[-1]))
        return function(*arguments, **(keywords or {}))


def test_what_a_step_runs(network):
    loss, images = LPIPS(pictures(1, 16, 1), network), pictures(1, 16, 2).requires_grad_()
    with Operations() as forward:
        value = loss(images).sum()
    assert forward.names.count("convolution") == 13  # those of the target are not computed again
    with Operations() as backward:
        value.backward()
    assert backward.masks == [[True, False, False]] * 13
    assert not {"convolution", "_local_scalar_dense"} & set(backward.names)  # no recomputation, no wait for the device


def test_weights_are_prepared_once(network):
    assert LPIPS(pictures(), network).network is LPIPS(pictures(2), network).network
    prepared = network.prepare(torch.bfloat16, "cpu")
    assert prepared is network.prepare(torch.bfloat16, torch.device("cpu"))
    weights = [weight for stage in prepared.stages for weight in stage.weights]
    assert len(weights) == 13 and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert not any(weight.requires_grad for weight in weights)
    assert {head.dtype for head in prepared.heads} == {torch.float32}


def test_padded_input_channels_change_nothing(network, monkeypatch):
    images, target = pictures(1, 16, 1), pictures(1, 16, 2)
    expected, right = value_and_gradient(LPIPS(target, network), images)
    monkeypatch.setattr(lpips, "input_channels", lambda dtype, device: 8)
    padded = lpips.LPIPSNetwork.__new__(lpips.LPIPSNetwork)
    padded.heads, padded.convolutions, padded._prepared = network.heads, network.convolutions, {}
    loss = LPIPS(target, padded)
    assert loss.network.stages[0].weights[0].shape == (64, 8, 3, 3)
    value, gradient = value_and_gradient(loss, images)
    assert relative_error(value, expected) < 1e-12 and relative_error(gradient, right) < 1e-12


def test_input_channels():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    channels = [lpips.input_channels(dtype, cuda) for dtype in (torch.float16, torch.bfloat16, torch.float32)]
    assert channels == [8, 8, 3] and lpips.input_channels(torch.float16, cpu) == 3


def test_autocast_leaves_it_alone(network):
    images, loss = pictures(1, 16, 1, torch.float32), LPIPS(pictures(1, 16, 2, torch.float32), network)
    expected, right = value_and_gradient(loss, images)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = value_and_gradient(loss, images)
    assert torch.equal(value, expected)
    assert relative_error(gradient, right) < 1e-6  # torch's own gradient at 1x1 pixels varies from run to run


def test_compiles_into_one_graph(network):
    images, loss = pictures(1, 16, 1), LPIPS(pictures(1, 16, 2), network)
    expected, right = value_and_gradient(loss, images)
    value, gradient = value_and_gradient(torch.compile(loss, fullgraph=True, backend="aot_eager"), images)
    assert relative_error(value, expected) < 1e-12 and relative_error(gradient, right) < 1e-12


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 1, 16, 16), (3, 16, 16)])
def test_targets_that_are_no_pictures(network, shape):
    with pytest.raises(UsageError, match="at least 16x16 pixels, not"):
        LPIPS(torch.zeros(shape), network)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (1, 3, 32, 32)])
def test_pictures_that_do_not_fit_the_target(network, shape):
    loss = LPIPS(torch.zeros(1, 3, 16, 16), network)
    with pytest.raises(UsageError, match=r"1 target\(s\) of 16x16 pixels at the trunk, pictures \["):
        loss(torch.zeros(shape))


# The lpips package

needs_package = pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="lpips is not installed")


@pytest.fixture
def package(state, monkeypatch):
    """The lpips package, with stand-ins for what it imports: torchvision does not load beside a CPU torch."""

    class VGG(nn.Module):
        def __init__(self, pretrained=False, **_):
            super().__init__()
            layers = []
            for name, (_, inputs, outputs) in trunks.vgg16_convolutions().items():
                if name.endswith("_1") and name != "conv1_1":
                    layers.append(nn.MaxPool2d(2))
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            self.features = nn.Sequential(*layers, nn.MaxPool2d(2))
            self.load_state_dict(state)

    modules = {"torchvision": {}, "torchvision.models": {"vgg16": VGG}, "tqdm": {"tqdm": iter}}
    modules |= {"scipy": {}, "scipy.ndimage": {"zoom": None}}
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["torchvision"].models = sys.modules["torchvision.models"]
    for name in [name for name in sys.modules if name == "lpips" or name.startswith("lpips.")]:
        monkeypatch.delitem(sys.modules, name)
    yield importlib.import_module("lpips")
    for name in [name for name in sys.modules if name == "lpips" or name.startswith("lpips.")]:
        del sys.modules[name]


@needs_package
def test_agrees_with_the_lpips_package(state, package):
    heads, _ = lpips.read_heads(lpips.find_heads())
    network = lpips.LPIPSNetwork(trunks.VGG16Trunk(state, layers=lpips.TAPS), heads)
    theirs = package.LPIPS(net="vgg", verbose=False).double()
    images, target = pictures(2, 48, 1), pictures(2, 48, 2)
    value, gradient = value_and_gradient(LPIPS(target, network), images)
    expected, right = value_and_gradient(lambda x: theirs(x, target).flatten(), images)
    assert (value > 0.01).all()
    # Their SHIFT and SCALE are rounded to float32.
    assert relative_error(value, expected) < 1e-6 and relative_error(gradient, right) < 1e-6


@needs_package
def test_loads_from_local_files(state, monkeypatch, tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save(state, path)
    monkeypatch.setenv("FASTINV_VGG16", str(path))
    network, facts = load_lpips()
    assert "lpips" not in sys.modules
    assert facts["name"] == "lpips" and facts["trunk"]["file"] == str(path) and not facts["trunk"]["imagenet"]
    assert facts["heads"]["file"].endswith("lpips/weights/v0.1/vgg.pth") and len(facts["heads"]["sha256"]) == 64
    assert LPIPS(pictures(), network)(pictures(seed=1)).item() > 0


@needs_package
def test_without_vgg16(monkeypatch, tmp_path):
    for name in ("FASTINV_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("FASTINV_VGG16", raising=False)
    with pytest.raises(CheckpointError, match="set FASTINV_VGG16"):
        load_lpips()


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install --no-deps lpips"):
        load_lpips()


def test_package_without_the_file(monkeypatch, tmp_path):
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(CheckpointError, match="has no weights/v0.1/vgg.pth; pip install --no-deps lpips"):
        load_lpips()


def test_heads_that_do_not_fit(state, heads, tmp_path):
    path = tmp_path / "heads.pth"
    torch.save({"lin0.model.1.weight": heads[0]}, path)
    with pytest.raises(CheckpointError, match="lin1.model.1.weight is missing"):
        lpips.read_heads(path)
    with pytest.raises(CheckpointError, match=r"lengths \[64, 128, 256, 512, 512\], got \[\[64\]\]"):
        lpips.LPIPSNetwork(trunks.VGG16Trunk(state, layers=lpips.TAPS), heads[:1])
