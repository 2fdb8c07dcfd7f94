"""The generator and discriminator against numbers of the public ADA implementation (tests/golden, float64)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastinv.errors import UsageError
from fastinv.models.discriminator import Discriminator, minibatch_stddev
from fastinv.models.stylegan2 import Generator

GOLDEN = Path(__file__).parent / "golden"
CHANNELS = {4: 32, 8: 32, 16: 32, 32: 16}
# tiny_ada_cond has three labels and clamps low enough to bite.
CASES = {"tiny_ada": (0, None, None), "tiny_ada_cond": (3, 1.5, 4.0)}


def relative_error(found, expected):
    return float((found - expected).detach().abs().max() / expected.abs().max())


@pytest.fixture(params=CASES)
def golden(request):
    c_dim, clamp, _ = CASES[request.param]
    G = Generator(32, 32, 32, c_dim, CHANNELS, mapping_layers=2, conv_clamp=clamp)
    G.load_state_dict(load_file(GOLDEN / f"{request.param}.G_ema.state.safetensors"))
    return G.double().eval(), load_file(GOLDEN / f"{request.param}.expected.safetensors"), request.param


def test_mapping(golden):
    G, expected, _ = golden
    c = expected.get("c")
    assert G.num_ws == 8
    assert relative_error(G.mapping(expected["z"], c), expected["w_plus"]) < 1e-10
    truncated = G.mapping(expected["z"], c, truncation_psi=0.7)
    assert relative_error(truncated, expected["w_plus_psi0.7"]) < 1e-10
    first = G.mapping(expected["z"], c, truncation_psi=0.7, truncation_cutoff=3)
    assert torch.equal(first[:, :3], truncated[:, :3])
    assert relative_error(first[:, 3:], expected["w_plus"][:, 3:]) < 1e-10
    assert relative_error(G.w_avg, expected["w_avg"]) < 1e-10


def test_synthesis(golden):
    G, expected, _ = golden
    own = {k.removeprefix("noise_own."): v for k, v in expected.items() if k.startswith("noise_own.")}
    with torch.no_grad():
        pictures = {
            "image_const": G.synthesis(expected["w_plus"]),
            "image_none": G.synthesis(expected["w_plus"], noise="none"),
            "image_psi0.7_const": G.synthesis(expected["w_plus_psi0.7"]),
            "image_mixed_const": G.synthesis(expected["w_plus_mixed"]),
            "image_mixed_own_noise": G.synthesis(expected["w_plus_mixed"], noise=own),
        }
    for name, image in pictures.items():
        assert relative_error(image, expected[name]) < 1e-10, name


def test_gradients(golden):
    G, expected, _ = golden
    w_plus = expected["w_plus_mixed"].clone().requires_grad_(True)
    names = list(G.synthesis.noise_layers())
    maps = {name: expected[f"noise_const.{name}"].clone().requires_grad_(True) for name in names}
    image = G.synthesis(w_plus, noise=maps)
    gradients = torch.autograd.grad((image * expected["cotangent"]).sum(), [w_plus, *maps.values()])
    assert relative_error(gradients[0], expected["grad.w_plus_mixed"]) < 1e-10
    for name, gradient in zip(names, gradients[1:], strict=True):
        assert relative_error(gradient, expected[f"grad.noise_const.{name}"]) < 1e-10, name


def test_discriminator(golden):
    _, expected, name = golden
    c_dim, _, clamp = CASES[name]
    D = Discriminator(32, c_dim, CHANNELS, mapping_layers=2, conv_clamp=clamp)
    D.load_state_dict(load_file(GOLDEN / f"{name}.D.state.safetensors"))
    D = D.double().eval()
    image = expected["d_image"].clone().requires_grad_(True)
    logits = D(image, expected.get("d_c"))
    assert relative_error(logits, expected["d_logits"]) < 1e-10
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert relative_error(gradient, expected["grad.d_image"]) < 1e-10


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_architectures_forward_and_backward(architecture):
    torch.manual_seed(0)
    G = Generator(16, 8, 8, channels={4: 8, 8: 8, 16: 4}, mapping_layers=1, architecture=architecture)
    D = Discriminator(16, channels={4: 8, 8: 8, 16: 4}, architecture=architecture)
    image = G(torch.randn(3, 8), noise="random")
    assert image.shape == (3, 3, 16, 16)
    logits = D(image)
    assert logits.shape == (3, 1)
    logits.sum().backward()
    missing = [name for name, p in [*G.named_parameters(), *D.named_parameters()] if p.grad is None]
    assert missing == []


def test_second_derivative_of_synthesis_and_discriminator():
    """R1 and path length need it; checked against numeric differences in float64."""
    torch.manual_seed(0)
    channels = {4: 3, 8: 2}
    G = Generator(8, 4, 4, channels=channels, mapping_layers=1).double()
    D = Discriminator(8, channels=channels, group_size=2).double()
    # Gradgradcheck of a leaky ReLU network is exact except across kinks; seed 0 keeps away from them.
    w_plus = torch.randn(2, G.num_ws, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: G.synthesis(w), w_plus, atol=1e-6, fast_mode=True)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: D(x), image, atol=1e-6, fast_mode=True)


def test_empty_batch():
    G = Generator(8, 4, 4, channels={4: 4, 8: 4}, mapping_layers=1)
    D = Discriminator(8, channels={4: 4, 8: 4})
    image = G(torch.zeros(0, 4))
    assert image.shape == (0, 3, 8, 8)
    assert D(image).shape == (0, 1)


def test_bfloat16_feature_maps_stay_close(golden):
    G, expected, _ = golden
    G = G.float()
    w_plus = expected["w_plus"].float()
    with torch.no_grad():
        exact = G.synthesis(w_plus)
        half = G.synthesis(w_plus, dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert float((half - exact).norm() / exact.norm()) < 0.03


def test_progressive_picture_is_the_smaller_block_output():
    G = Generator(32, 8, 8, channels=CHANNELS, mapping_layers=1)
    D = Discriminator(32, channels=CHANNELS, progressive=True)
    w_plus = G.mapping(torch.randn(2, 8))
    small = G.synthesis(w_plus, resolution=8)
    assert small.shape == (2, 3, 8, 8)
    assert D(small).shape == (2, 1)


def test_minibatch_stddev_groups():
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    y = minibatch_stddev(x, 4)  # 4 does not divide 6: groups of three, {0, 2, 4} and {1, 3, 5}
    for group in ([0, 2, 4], [1, 3, 5]):
        expected = (x[group].var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        assert torch.allclose(y[group, 2], expected.expand(3, 4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda G: G.mapping(torch.zeros(2, 5)), r"z must have shape \[N, 8\]"),
        (lambda G: G.mapping(torch.zeros(2, 8), torch.zeros(2, 3)), "not conditional"),
        (lambda G: G.synthesis(torch.zeros(2, 3, 8)), r"w_plus must have shape \[N, 4, 8\]"),
        (lambda G: G.synthesis(torch.zeros(2, 4, 8), noise="constant"), "noise must be one of const"),
        (lambda G: G.synthesis(torch.zeros(2, 4, 8), noise={"b8.conv9": torch.zeros(8, 8)}), "no layer takes"),
        (lambda G: G.synthesis(torch.zeros(2, 4, 8), noise={"b8.conv0": torch.zeros(4, 4)}), "must have shape"),
        (lambda G: Generator(48), "power of two"),
        (lambda G: Generator(8, architecture="stylegan"), "architecture must be one of"),
        (lambda G: Generator(8, channels={4: 4}), "channels must give"),
        (lambda G: Discriminator(8, 2)(torch.zeros(1, 3, 8, 8)), "conditional: c must have .* none was given"),
        (lambda G: Discriminator(8, 2)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3)), r"c must have .*\[1, 2\], not"),
        (lambda G: Discriminator(8)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3)), "not conditional"),
        (lambda G: Discriminator(16, channels={4: 4, 8: 4, 16: 4})(torch.zeros(1, 3, 8, 8)), "images must have shape"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    G = Generator(8, 8, 8, channels={4: 4, 8: 4}, mapping_layers=1)
    with pytest.raises(UsageError, match=message):
        call(G)


def test_prepared_generator_gives_the_same_pictures_and_gradients(golden):
    G, expected, _ = golden
    P = G.prepare()
    w_plus = expected["w_plus_mixed"].clone().requires_grad_(True)
    maps = {n: expected[f"noise_const.{n}"].clone().requires_grad_(True) for n in G.synthesis.noise_layers()}
    image = P.synthesis(w_plus, noise=maps)
    assert relative_error(image, expected["image_mixed_const"]) < 1e-10
    gradients = torch.autograd.grad((image * expected["cotangent"]).sum(), [w_plus, *maps.values()])
    assert relative_error(gradients[0], expected["grad.w_plus_mixed"]) < 1e-10
    for name, gradient in zip(maps, gradients[1:], strict=True):
        assert relative_error(gradient, expected[f"grad.noise_const.{name}"]) < 1e-10, name


def test_prepared_generator_is_independent_and_frozen():
    G = Generator(8, 8, 8, channels={4: 4, 8: 4}, mapping_layers=1)
    P = G.prepare()
    w_plus = G.mapping(torch.randn(2, 8)).detach()
    before = P.synthesis(w_plus)
    assert not before.requires_grad
    with torch.no_grad():
        G.synthesis.b8.conv1.weight.zero_()
    assert torch.equal(P.synthesis(w_plus), before)
    assert all(p.requires_grad for p in G.parameters())
    assert "weight_sumsq" not in " ".join(G.state_dict())
    with pytest.raises(UsageError, match="dtype must be one of"):
        G.prepare(torch.int8)


def test_prepared_bfloat16_is_as_close_as_the_training_path(golden):
    G, expected, _ = golden
    w_plus = expected["w_plus"].float()
    exact = expected["image_const"]
    G = G.float()
    with torch.no_grad():
        plain = G.synthesis(w_plus, dtype=torch.bfloat16)
        fast = G.prepare(torch.bfloat16).synthesis(w_plus)
    assert float((fast - exact).norm()) <= 2 * float((plain - exact).norm())


@pytest.mark.parametrize("architecture", ("skip", "resnet"))
def test_layers_as_one_op_give_the_same_pictures_and_gradients(architecture):
    """`once`, which training takes where it needs no second derivative."""
    G = Generator(16, 8, 8, channels={4: 6, 8: 5, 16: 4}, architecture=architecture).double().train()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.3)
    w_plus, results = torch.randn(2, G.num_ws, 8, dtype=torch.float64), []
    for once in (False, True):
        G.zero_grad()
        torch.manual_seed(0)
        images = G.synthesis(w_plus, noise="random", once=once)
        (images * torch.linspace(-1, 1, images.numel(), dtype=images.dtype).view_as(images)).sum().backward()
        results.append([images.detach(), *(p.grad for p in G.synthesis.parameters())])
    for composed, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, composed, rtol=1e-9, atol=1e-11)
