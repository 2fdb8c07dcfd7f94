"""Chains of frozen convolutions: fused against torch's operators, and who uses them. Where there are no kernels the
fused path runs on its references.
"""

import pickle

import pytest
import torch
from torch.nn import functional

from fastinv.losses import LPIPS, lpips, trunks
from fastinv.models import chain as chain_module
from fastinv.models.chain import FrozenChain
from fastinv.ops import frozen_conv as ops

# Relative errors. In bfloat16 every map is rounded, and a ReLU whose input is rounded to the other side of zero changes
# the gradient; what is asked there is to be as good as torch, which rounds likewise.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def convolutions(*channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for inputs, outputs in zip(channels, channels[1:], strict=False):
        weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        yield weight, torch.randn(outputs, generator=generator) * 0.2


def maps(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def good(found, plain, expected):
    """Whether a result is about as near to the expected one as what torch's operators gave in the same dtype."""
    return relative_error(found, expected) < max(1.5 * relative_error(plain, expected), TOLERANCE[torch.float32])


def exact(pairs, x, ending):
    """The chain in float64, by the formula."""
    pairs, x = list(pairs), x.double()
    for index, (weight, bias) in enumerate(pairs):
        last = index + 1 == len(pairs)
        bias = None if last and ending == "none" else bias.to(weight.dtype).double()
        x = functional.conv2d(x, weight.double(), bias, padding=1)
        x = x.relu() if not last or ending == "relu" else x
    return x


@pytest.mark.parametrize("ending", ["relu", "bias", "none"])
@pytest.mark.parametrize("channels", [(3, 64), (3, 8, 5), (64, 64, 80, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient(dtype, channels, ending):
    size = (33, 34) if min(channels) == 64 else (5, 6)  # of the first, Winograd takes the layers in float32
    pairs = [(weight.to(dtype), bias.to(dtype)) for weight, bias in convolutions(*channels)]
    x, weight = maps(2, channels[0], *size, dtype=dtype), maps(2, channels[-1], *size, seed=2, dtype=dtype)
    expected = exact(pairs, leaf := x.double().requires_grad_(), ending)
    [right] = torch.autograd.grad(expected, leaf, weight.double())
    results = []
    for fused in (True, False):
        chain, leaf = FrozenChain(pairs, dtype, fused=fused), x.clone().requires_grad_()
        assert chain.fused == fused
        results.append([found := chain(leaf, ending), *torch.autograd.grad(found, leaf, weight)])
        assert {result.dtype for result in results[-1]} == {dtype}
        assert torch.equal(chain(x, ending), found)
    (found, gradient), (plain, plain_gradient) = results
    assert relative_error(found, expected) < TOLERANCE[dtype]
    assert good(found, plain, expected) and good(gradient, plain_gradient, right)


@pytest.mark.parametrize("fused", [True, False])
def test_maps_of_a_chain(fused):
    chain, x = FrozenChain(convolutions(3, 8, 4), torch.float32, fused=fused), maps(1, 3, 6, 5)
    first, middle, last = chain.forward(x)
    assert torch.equal(first, x) and middle.shape == (1, 8, 6, 5) and last.shape == (1, 4, 6, 5)
    assert all(m.is_contiguous(memory_format=torch.channels_last) and (m >= 0).all() for m in (middle, last))
    *before, alone = chain.forward(x, keep=False)
    assert before == [None, None] and torch.equal(alone, last)
    du = maps(1, 4, 6, 5, seed=3)
    expected = functional.conv_transpose2d(du, chain.weights[1], padding=1) * (middle > 0)
    expected = functional.conv_transpose2d(expected, chain.weights[0], padding=1)
    torch.testing.assert_close(chain.backward(du, [first, middle]), expected)


def test_results_that_are_alive_share_no_memory():
    chain = FrozenChain(convolutions(3, 8, 8), torch.float32, fused=True)
    inputs = [maps(1, 3, 8, 8, seed=seed).requires_grad_() for seed in range(3)]
    alone = [torch.autograd.grad(chain(x).square().sum(), x)[0] for x in inputs]
    results = [chain(x) for x in inputs]
    copies = [y.detach().clone() for y in results]
    together = [torch.autograd.grad(y.square().sum(), x)[0] for x, y in zip(inputs, results, strict=True)]
    for a, b in ((together, alone), (results, copies)):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_memory_is_kept_between_steps():
    chain, x = FrozenChain(convolutions(3, 8, 8), torch.float32, fused=True), maps(1, 3, 8, 8).requires_grad_()
    places = set()
    for _ in range(4):
        y = chain(x)
        places.add(y.data_ptr())
        y.sum().backward()
        del y
    assert len(places) == 1
    kept = chain(maps(1, 3, 8, 8))  # without a gradient the result is no part of a larger block
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_second_derivatives():
    chain = FrozenChain(convolutions(2, 3, 3), torch.float32, fused=True)
    x, direction = maps(1, 2, 4, 4).requires_grad_(), maps(1, 2, 4, 4, seed=5)

    def twice(function):
        [gradient] = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad((gradient * direction).sum(), x)[0]

    torch.testing.assert_close(twice(chain), twice(chain.differentiable))


def test_compiles_into_one_graph_of_torchs_operators():
    chain, x = FrozenChain(convolutions(3, 8, 4), torch.float32, fused=True), maps(1, 3, 6, 5)
    compiled = torch.compile(lambda x: chain.forward(x)[-1], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), chain(x))


# Who uses them


@pytest.fixture
def counted(monkeypatch):
    """Fused where "on" is true; the numbers of calls forward and back."""
    calls = {"on": True, "frozen_conv": 0, "frozen_conv_backward": 0}

    def wrapped(name):
        def call(*arguments, **keywords):
            calls[name] += 1
            return getattr(ops, name)(*arguments, **keywords)

        return call

    def obstacle(dtype, device_type="cpu"):
        return "" if calls["on"] and dtype in (torch.float32, torch.bfloat16) else "not here"

    monkeypatch.setattr(chain_module, "obstacle", obstacle)
    for name in list(calls)[1:]:
        monkeypatch.setattr(chain_module, name, wrapped(name))
    return calls


@pytest.fixture(scope="module")
def state():
    """VGG-16's state dict with random weights."""
    table = trunks.vgg16_convolutions()
    pairs = convolutions(*[inputs for _, inputs, _ in table.values()], 512)
    return {
        f"features.{index}.{part}": value
        for (index, _, _), pair in zip(table.values(), pairs, strict=True)
        for part, value in zip(("weight", "bias"), pair, strict=True)
    }


def smooth(seed):
    return functional.interpolate(maps(1, 3, 4, 4, seed=seed).tanh(), size=(32, 32), mode="bilinear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lpips_is_fused(state, counted, dtype):
    vgg = trunks.VGG16Trunk(state, layers=lpips.TAPS)
    heads = [torch.rand(width, generator=torch.Generator().manual_seed(2)) for _, width in trunks.VGG16_BLOCKS]
    images, target = smooth(1).requires_grad_(), smooth(2)

    def value_and_gradient(dtype):
        loss = LPIPS(target.double() if dtype == torch.float64 else target, lpips.LPIPSNetwork(vgg, heads), dtype=dtype)
        value = loss(images.double() if dtype == torch.float64 else images)
        return value, *torch.autograd.grad(value.sum(), images)

    exact = value_and_gradient(torch.float64)
    assert (counted["frozen_conv"], counted["frozen_conv_backward"]) == (0, 0)  # float64 has no kernels
    found = value_and_gradient(dtype)
    assert (counted["frozen_conv"], counted["frozen_conv_backward"]) == (26, 13)  # target and picture
    counted["on"] = False
    plain = value_and_gradient(dtype)
    assert counted["frozen_conv"] == 26
    assert relative_error(found[0], exact[0]) < TOLERANCE[dtype]
    assert all(good(*triple) for triple in zip(found[1:], plain[1:], exact[1:], strict=True))


@pytest.mark.parametrize("pre_relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vgg16_is_fused(state, counted, dtype, pre_relu):
    images = smooth(1).requires_grad_()

    def features_and_gradient(dtype):
        features = trunks.VGG16Trunk(state, pre_relu=pre_relu).to(dtype)(images.to(dtype))
        value = sum(feature.double().square().mean() for feature in features)
        return *features, *torch.autograd.grad(value, images)

    found = features_and_gradient(dtype)
    assert (counted["frozen_conv"], counted["frozen_conv_backward"]) == (9, 9)  # to conv4_2
    counted["on"] = False
    plain, exact = features_and_gradient(dtype), features_and_gradient(torch.float64)
    assert counted["frozen_conv"] == 9
    assert all(good(*triple) for triple in zip(found, plain, exact, strict=True))


def test_a_changed_trunk_is_laid_out_again(state, counted):
    trunk, images = trunks.VGG16Trunk(state, layers=("conv1_1",)), smooth(1)
    [before] = trunk(images)
    with torch.no_grad():
        trunk.convolutions["conv1_1"].weight.mul_(2)
    assert not torch.equal(trunk(images)[0], before)
    trunk.requires_grad_(True)  # then torch's own operators, which give gradients of the weights
    trunk(images)[0].sum().backward()
    assert counted["frozen_conv"] == 2 and trunk.convolutions["conv1_1"].weight.grad is not None


def test_a_pickled_trunk_has_only_its_own_weights(state):
    trunk = trunks.VGG16Trunk(state, layers=("conv1_2",))
    size = len(pickle.dumps(trunk))
    image = smooth(1).requires_grad_()
    trunk(image)[0].sum().backward()  # lays out the weights, forward and backward
    assert len(pickle.dumps(trunk)) < 1.01 * size


@pytest.mark.parametrize("fused", [False, True])
def test_an_empty_batch(fused):
    chain = FrozenChain(convolutions(3, 8, 4), torch.float32, fused=fused)
    x = torch.zeros(0, 3, 8, 8, requires_grad=True)
    y = chain(x)
    assert y.shape == (0, 4, 8, 8) and torch.autograd.grad(y.sum(), x)[0].shape == x.shape
