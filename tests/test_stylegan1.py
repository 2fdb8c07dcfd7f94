"""The first StyleGAN's generator against its formulas, written out in plain torch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastinv
from fastinv.errors import UsageError
from fastinv.latents import mean_latent, w_statistics
from fastinv.models.stylegan1 import StyleGAN1Generator, adaptive_instance_norm

CHANNELS = {4: 7, 8: 6, 16: 5}


def generator(**options):
    """A small generator without zeros among its parameters, in float64."""
    torch.manual_seed(0)
    options = {"resolution": 16, "z_dim": 5, "w_dim": 8, "channels": CHANNELS, "mapping_layers": 3} | options
    G = StyleGAN1Generator(**options).double().eval()
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("bias", "noise_strength", "const")):
                parameter.add_(0.5 * torch.randn_like(parameter))
        G.mapping.w_avg.copy_(torch.randn(8))
    return G


# The formulas. ``fused_from``: from this resolution on, the published networks' transposed convolution.


def expected_mapping(state, z, num_ws, lr_multiplier, depth):
    x = z / (z.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(depth):
        weight, bias = state[f"mapping.fc{i}.weight"], state[f"mapping.fc{i}.bias"]
        x = x @ (weight * math.sqrt(2 / weight.shape[1]) * lr_multiplier).T + bias * lr_multiplier
        x = torch.where(x > 0, x, 0.2 * x)
    w_dim = len(state["mapping.w_avg"])
    return x.view(len(z), num_ws, w_dim) if x.shape[1] != w_dim else x[:, None].repeat(1, num_ws, 1)


def with_zeros_between(x):
    n, channels, height, width = x.shape
    y = x.new_zeros(n, channels, 2 * height, 2 * width)
    y[:, :, ::2, ::2] = x
    return y


def enlarged_convolution(x, weight, fused):
    if not fused:
        return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1)
    stored = weight.flip(2, 3)  # as those networks store it
    kernel = sum(F.pad(stored, (right, 1 - right, down, 1 - down)) for right in (0, 1) for down in (0, 1))
    # y[2 i + j - 1] += x[i] kernel[j], as a correlation of the flipped kernel with the zero-filled x
    return F.conv2d(F.pad(with_zeros_between(x), (2, 1, 2, 1)), kernel.flip(2, 3))


def expected_layer(state, name, x, w, noise, fused):
    layer = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
    if "weight" in layer:
        weight = layer["weight"] * math.sqrt(2 / (9 * x.shape[1]))
        if name.endswith("conv1"):
            x = F.conv2d(x, weight, padding=1)
        else:
            x = enlarged_convolution(x, weight, fused)
            taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype)
            blur = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3) / 16
            x = F.conv2d(x, blur, padding=1, groups=x.shape[1])
    if noise is not None:
        x = x + layer["noise_strength"][:, None, None] * noise
    x = x + layer["bias"][:, None, None]
    x = torch.where(x > 0, x, 0.2 * x)
    mean = x.mean((2, 3), keepdim=True)
    x = (x - mean) / ((x - mean).pow(2).mean((2, 3), keepdim=True) + 1e-8).sqrt()
    style = w @ layer["affine.weight"].T / math.sqrt(w.shape[1]) + layer["affine.bias"]
    channels = x.shape[1]
    return x * (style[:, :channels, None, None] + 1) + style[:, channels:, None, None]


def expected_synthesis(state, w_plus, noise, resolution, fused_from=128, final_tanh=False):
    x = state["synthesis.b4.const"].expand(len(w_plus), -1, -1, -1)
    for i in range(w_plus.shape[1]):
        r = 4 * 2 ** (i // 2)
        layer = f"b{r}.conv{i % 2}"
        x = expected_layer(state, f"synthesis.{layer}", x, w_plus[:, i], noise.get(layer), r >= fused_from)
    weight, bias = (state[f"synthesis.b{resolution}.torgb.{part}"] for part in ("weight", "bias"))
    x = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0] / math.sqrt(weight.shape[1]), x) + bias[:, None, None]
    return x.tanh() if final_tanh else x


def stored_noise(G):
    return {name: G.synthesis.get_submodule(name).noise_const for name in G.synthesis.noise_layers()}


def codes(G, count=3):
    return torch.randn(count, G.num_ws, G.w_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# The generator


@pytest.mark.parametrize("outputs", ["w", "w+"])
def test_mapping(outputs):
    G = generator(mapping_outputs=outputs, mapping_lr_multiplier=0.1)
    z = torch.randn(4, 5, dtype=torch.float64)
    w_plus = G.mapping(z)
    expected = expected_mapping(G.state_dict(), z, 6, 0.1, 3)
    assert w_plus.shape == (4, 6, 8)
    torch.testing.assert_close(w_plus, expected, rtol=1e-12, atol=1e-14)
    truncated = G.w_avg + 0.7 * (expected - G.w_avg)
    torch.testing.assert_close(G.mapping(z, truncation_psi=0.7), truncated, rtol=1e-12, atol=1e-14)
    first = torch.cat([truncated[:, :2], expected[:, 2:]], dim=1)
    torch.testing.assert_close(G.mapping(z, None, 0.7, 2), first, rtol=1e-12, atol=1e-14)
    assert (outputs == "w") == torch.equal(w_plus, w_plus[:, :1].expand_as(w_plus))


@pytest.mark.parametrize("fused_from", [8, 16, 128])
@pytest.mark.parametrize("final_tanh", [False, True])
def test_synthesis_is_the_published_one_in_both_its_forms(fused_from, final_tanh):
    G = generator(final_tanh=final_tanh)
    w_plus = codes(G).requires_grad_()
    own = {name: torch.randn(3, 1, r, r, dtype=torch.float64) for name, r in G.synthesis.noise_layers().items()}
    maps = {name: noise.clone().requires_grad_() for name, noise in own.items()}
    image = G.synthesis(w_plus, noise=maps)
    cotangent = torch.randn_like(image)
    found = torch.autograd.grad((image * cotangent).sum(), [w_plus, *maps.values()])
    expected_maps = {name: noise.clone().requires_grad_() for name, noise in own.items()}
    expected = expected_synthesis(G.state_dict(), w_plus, expected_maps, 16, fused_from, final_tanh)
    gradients = torch.autograd.grad((expected * cotangent).sum(), [w_plus, *expected_maps.values()])
    torch.testing.assert_close(image, expected, rtol=1e-10, atol=1e-12)
    for name, gradient, wanted in zip(["w_plus", *maps], found, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: name + text)


def test_noise_modes():
    G = generator()
    w_plus, stored = codes(G), stored_noise(G)
    with torch.no_grad():
        const, none = G.synthesis(w_plus), G.synthesis(w_plus, noise="none")
        expected = expected_synthesis(G.state_dict(), w_plus, stored, 16)
        torch.testing.assert_close(const, expected, rtol=1e-10, atol=1e-12)
        expected = expected_synthesis(G.state_dict(), w_plus, {}, 16)
        torch.testing.assert_close(none, expected, rtol=1e-10, atol=1e-12)
        own = {"b8.conv0": torch.randn(8, 8, dtype=torch.float64)}
        expected = expected_synthesis(G.state_dict(), w_plus, stored | own, 16)
        torch.testing.assert_close(G.synthesis(w_plus, noise=own), expected, rtol=1e-10, atol=1e-12)
        drawn = [G.synthesis(w_plus, noise="random") for _ in range(2)]
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[0], const)
    assert list(G.synthesis.noise_layers().items())[:3] == [("b4.conv0", 4), ("b4.conv1", 4), ("b8.conv0", 8)]


def test_first_and_second_derivatives():
    """Against numeric differences: the seeds keep away from the kinks of the leaky ReLU."""
    G = generator(resolution=8, channels={4: 3, 8: 2}, mapping_layers=1)
    w_plus = codes(G, 2).requires_grad_()
    weight = G.synthesis.b8.conv0.weight.detach().clone().requires_grad_()

    def pictures(w_plus, weight):
        return torch.func.functional_call(G.synthesis, {"b8.conv0.weight": weight}, (w_plus,))

    assert torch.autograd.gradcheck(pictures, (w_plus, weight), atol=1e-6)
    assert torch.autograd.gradgradcheck(pictures, (w_plus, weight), atol=1e-6, fast_mode=True)


def test_every_parameter_gets_a_gradient():
    G = generator()
    G(torch.randn(2, 5)).sum().backward()
    assert [name for name, parameter in G.named_parameters() if parameter.grad is None] == []


def test_adaptive_instance_norm_of_odd_sizes_and_empty_batches():
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    styles = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    y = adaptive_instance_norm(x, styles)
    std, mean = torch.std_mean(x, (2, 3), correction=0, keepdim=True)
    expected = (x - mean) / std * (styles[:, :3, None, None] + 1) + styles[:, 3:, None, None]
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-7)
    assert torch.autograd.gradcheck(adaptive_instance_norm, (x, styles))
    assert torch.autograd.gradgradcheck(adaptive_instance_norm, (x, styles))
    constant = adaptive_instance_norm(torch.ones(1, 3, 4, 4), torch.tensor([[0.0, 1, 2, 3, 4, 5]]))
    assert torch.equal(constant[0, :, 0, 0], torch.tensor([3.0, 4, 5]))  # no variance: only the shift is left
    half = adaptive_instance_norm(x.detach().bfloat16(), styles.detach().float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), y.detach(), rtol=0.02, atol=0.05)
    G = generator()
    w_plus = torch.zeros(0, 6, 8, dtype=torch.float64, requires_grad=True)
    image = G.synthesis(w_plus)
    assert image.shape == (0, 3, 16, 16)
    assert torch.autograd.grad(image.sum(), w_plus)[0].shape == w_plus.shape
    assert G(torch.zeros(0, 5)).shape == (0, 3, 16, 16)


def test_sizes_and_names():
    """The paper's sizes, and the names that a saved generator has; nothing is allocated."""
    with torch.device("meta"):
        G = StyleGAN1Generator(1024)
    expected = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    assert (G.num_ws, G.c_dim, G.config["channels"]) == (18, 0, expected)
    shapes = {name: list(tensor.shape) for name, tensor in G.state_dict().items()}
    assert len(shapes) == 8 * 2 + 1 + 1 + 18 * 5 + 17 + 2
    assert shapes["synthesis.b4.const"] == [512, 4, 4] and "synthesis.b4.conv0.weight" not in shapes
    layer = {name.removeprefix("synthesis.b64.conv0."): shape for name, shape in shapes.items() if "b64.conv0" in name}
    assert layer == {
        "weight": [256, 512, 3, 3], "bias": [256], "noise_strength": [256], "noise_const": [64, 64],
        "affine.weight": [512, 512], "affine.bias": [512],
    }  # fmt: skip
    last = [f"synthesis.b1024.torgb.{part}" for part in ("weight", "bias")]
    assert [name for name in shapes if "torgb" in name] == last
    copy = StyleGAN1Generator(**generator().config)
    copy.load_state_dict(generator().state_dict(), assign=True)
    assert torch.equal(copy.synthesis(codes(copy)), generator().synthesis(codes(copy)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda G: G.mapping(torch.zeros(2, 8)), r"z must have shape \[N, 5\]"),
        (lambda G: G.mapping(torch.zeros(2, 5), torch.zeros(2, 3)), "not conditional"),
        (lambda G: G.synthesis(torch.zeros(2, 5, 8)), r"w_plus must have shape \[N, 6, 8\]"),
        (lambda G: G.synthesis(torch.zeros(2, 6, 8), noise="constant"), "noise must be one of const"),
        (lambda G: G.synthesis(torch.zeros(2, 6, 8), noise={"b4.conv2": torch.zeros(4, 4)}), "no layer takes"),
        (lambda G: G.synthesis(torch.zeros(2, 6, 8), noise={"b8.conv0": torch.zeros(4, 4)}), "must have shape"),
        (lambda G: StyleGAN1Generator(48), "power of two"),
        (lambda G: StyleGAN1Generator(8, channels={4: 4}), "channels must give"),
        (lambda G: StyleGAN1Generator(8, channels={4: 4, 8: 4}, mapping_outputs="z"), "mapping_outputs must be one of"),
        (lambda G: StyleGAN1Generator(8, channels={4: 4, 8: 4}, mapping_layers=0), "mapping_layers must be at least 1"),
        (lambda G: G.prepare(torch.int8), "dtype must be one of"),
        (lambda G: G.prepare(forms={"b8.conv0": ("plain", "plain")}), "forms cannot be chosen"),
        (lambda G: G.prepare().synthesis(torch.zeros(2, 5, 8)), r"w_plus must have shape \[N, 6, 8\]"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call(generator())


# Prepared, and inversion


def test_prepared_generator_gives_the_same_pictures_and_gradients():
    G = generator(final_tanh=True)
    P = G.prepare()
    for name in ("resolution", "z_dim", "w_dim", "c_dim", "num_ws", "config"):
        assert getattr(P, name) == getattr(G, name)
    assert torch.equal(P.w_avg, G.w_avg)
    assert torch.equal(P.mapping(torch.ones(1, 5)), G.mapping(torch.ones(1, 5)))
    w_plus = codes(G).requires_grad_()
    maps = {name: noise.clone().requires_grad_() for name, noise in stored_noise(G).items()}
    results = []
    for synthesis in (G.synthesis, P.synthesis):
        image = synthesis(w_plus, noise=maps)
        cotangent = torch.linspace(-1, 1, image.numel(), dtype=torch.float64).view_as(image)
        results.append([image, *torch.autograd.grad((image * cotangent).sum(), [w_plus, *maps.values()])])
    for plain, prepared in zip(*results, strict=True):
        torch.testing.assert_close(prepared, plain, rtol=1e-10, atol=1e-12)


def test_prepared_generator_is_independent_and_frozen():
    G = generator().float()
    with torch.inference_mode():
        P = G.prepare()
    w_plus = codes(G).float()
    before = P.synthesis(w_plus)
    assert not before.requires_grad
    with torch.no_grad():
        for parameter in G.parameters():
            parameter.zero_()
    assert torch.equal(P.synthesis(w_plus), before)
    assert all(parameter.requires_grad for parameter in G.parameters())
    (gradient,) = torch.autograd.grad(P.synthesis(w_plus.requires_grad_()).sum(), w_plus)
    assert gradient.abs().min() > 0
    assert P.synthesis(w_plus[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    G = generator()
    exact = G.synthesis(codes(G)).detach()
    G = G.float()
    w_plus = codes(G).float().requires_grad_()
    for image in (G.synthesis(w_plus, dtype=dtype), G.prepare(dtype).synthesis(w_plus)):
        assert image.dtype == torch.float32
        error = (image.detach() - exact).norm() / exact.norm()
        assert error < (0.03 if dtype == torch.bfloat16 else 0.004)
        assert torch.autograd.grad(image.square().sum(), w_plus)[0].isfinite().all()
    own = G.bfloat16()
    assert own.synthesis(w_plus.bfloat16()).dtype == own.prepare().synthesis(w_plus).dtype == torch.float32


@pytest.mark.parametrize("outputs", ["w", "w+"])
def test_inversion(outputs):
    G = generator(mapping_outputs=outputs).float()
    mean = w_statistics(G).mean
    G.mapping.w_avg.zero_()
    torch.testing.assert_close(mean_latent(G), mean)  # without a tracked mean it is measured
    with torch.no_grad():
        target = G.synthesis(G.mapping(torch.randn(2, 5))).tanh()
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    result = fastinv.invert(G, target, steps=60, perceptual_weight=0, learning_rate=0.1, progress=False)
    curve = result.losses["total"]
    assert (curve[-1] < 0.3 * curve[0]).all()
    torch.testing.assert_close(G.synthesis(result.w_plus), result.images, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in G.state_dict().items())
    auto = fastinv.invert(G, target, steps=3, perceptual_weight=0, space="w", dtype="auto", progress=False)
    assert auto.settings["dtype"] in ("float32", "bfloat16")
