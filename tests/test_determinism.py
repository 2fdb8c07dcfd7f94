"""The same arguments and seed give the same bits, with one thread and with two."""

import pytest
import torch
from torch import nn

import fastinv
from fastinv.inversion import METHODS, invert
from fastinv.inversion.spaces import NAMES

STEPS = 3
OPTIONS = {"idinvert": {"start": "mean"}, "pti": {"pivot_options": {"steps": 2}, "locality": True}}


class Encoder(nn.Module):
    """Stands in for an encoder of the embedded generator."""

    def __init__(self, G):
        super().__init__()
        self.num_ws, self.w_dim = G.num_ws, G.w_dim
        random = torch.Generator().manual_seed(0)
        self.convolution = nn.Conv2d(3, 32, 5, stride=4)
        self.linear = nn.Linear(32 * 15 * 15, G.w_dim)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.02)

    def encode(self, images):
        x = self.convolution(images).relu().flatten(1)
        return self.linear(x).unsqueeze(1).repeat(1, self.num_ws, 1)


@pytest.fixture(scope="module")
def G():
    return fastinv.load_generator("faces64")


@pytest.fixture(scope="module")
def images():
    return fastinv.data.faces.sample(1, seed=0, split="heldout")[0]


def with_threads(count, G, images, method, space, **options):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        return invert(G, images, method, space, STEPS, progress=False, **options)
    finally:
        torch.set_num_threads(threads)


def same_bits_with_one_and_two_threads(G, images, method, space, **options):
    one, two = (with_threads(count, G, images, method, space, **options) for count in (1, 2))
    assert one.settings["threads"] == 1 and two.settings["threads"] == 2
    different = [
        name for name, curve in one.losses.items() if not torch.equal(curve.nan_to_num(), two.losses[name].nan_to_num())
    ]
    different += [name for name, value in one.codes.items() if not torch.equal(value, two.codes[name])]
    different += [] if torch.equal(one.w_plus, two.w_plus) else ["w_plus"]
    different += [] if torch.equal(one.images, two.images) else ["images"]
    assert not different


@pytest.mark.parametrize("space", NAMES)
def test_every_space(G, images, space):
    same_bits_with_one_and_two_threads(G, images, "image2stylegan", space)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(G, images, method):
    options = dict(OPTIONS.get(method, {}))
    if METHODS[method].encoder is None and method in ("idinvert", "stylegan-encoder"):
        options["encoder"] = Encoder(G)
    same_bits_with_one_and_two_threads(G, images, method, None, **options)


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_other_arithmetic(G, images, dtype):
    same_bits_with_one_and_two_threads(G, images, "image2stylegan", None, dtype=dtype)


@pytest.mark.parametrize("count", [2, 5])
def test_batches_and_masks(G, count):
    images = fastinv.data.faces.sample(count, seed=1, split="heldout")[0]
    masks = torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    same_bits_with_one_and_two_threads(G, images, "image2stylegan", None, masks=masks)
