"""The same arguments and seed give the same bits, with one thread and with two."""

import pytest
import torch
from torch import nn

import fastinv
from fastinv.inversion import METHODS, invert
from fastinv.inversion.method import Method
from fastinv.inversion.spaces import NAMES

STEPS = 3


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
    return fastinv.data.faces.sample(3, seed=0, split="heldout")[0]


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
    same_bits(one, two)


def same_bits(one, two):
    pairs = {f"losses: {name}": (curve, two.losses[name]) for name, curve in one.losses.items()}
    pairs |= {f"codes: {name}": (value, two.codes[name]) for name, value in one.codes.items()}
    pairs |= {"w_plus": (one.w_plus, two.w_plus), "images": (one.images, two.images)}
    assert not [name for name, (a, b) in pairs.items() if not torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))]


@pytest.mark.parametrize("space", NAMES)
def test_every_space(G, images, space):
    # Three pictures: products of 3 to 16 rows are where MKL's bits differ.
    same_bits_with_one_and_two_threads(G, images, "image2stylegan", space)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "pti" and issubclass(METHODS[name], Method)])
def test_every_method(G, images, method):
    options = {"idinvert": {"encoder": Encoder(G)}, "image2stylegan++": {"noise_steps": STEPS}}.get(method, {})
    same_bits_with_one_and_two_threads(G, images[:1], method, None, **options)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_principal_axes(G, images, space):
    same_bits_with_one_and_two_threads(G, images[:1], "image2stylegan", space, precondition=0.5)


def test_bfloat16(G, images):
    same_bits_with_one_and_two_threads(G, images[:1], "image2stylegan", None, dtype="bfloat16")


def test_masks(G, images):
    masks = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    same_bits_with_one_and_two_threads(G, images, "image2stylegan", None, masks=masks)


def test_pivotal_tuning_depends_on_the_number_of_threads_alone(G, images):
    """The exception: torch's convolutions, which give the weights their gradients, split sums over the threads."""
    options = {"init": G.w_avg.expand(1, G.num_ws, -1).clone()}
    one, two, again = (with_threads(count, G, images[:1], "pti", None, **options) for count in (1, 2, 2))
    same_bits(two, again)
    torch.testing.assert_close(one.losses["total"], two.losses["total"], rtol=1e-3, atol=0)
    for result in (two, again):  # the pictures of what is stored, however many threads make them
        assert torch.equal(result.render(G), result.images)
