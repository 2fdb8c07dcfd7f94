"""Correctness on a device: pictures and latent gradients of whole networks against float64, in every dtype and form.

    python benchmarks/correctness.py [--device cuda] [--quick] [--out FILE]

Errors are relative, ``||x - truth|| / ||truth||``. A row is fine when the error is at most twice that of plain torch in
the same dtype (`textbook.Plain`). The ops are held to float64 by tests/gpu (``pytest -m gpu``).
"""

import torch
from harness import Rows, markdown, relative_error
from textbook import Plain, PlainLPIPS

from fastinv.losses.lpips import LPIPS, TAPS, LPIPSNetwork
from fastinv.losses.trunks import VGG16_BLOCKS, VGG16Trunk
from fastinv.models.convolution import candidates
from fastinv.models.stylegan2 import Generator


def generator(scale, device: torch.device, seed: int = 0) -> Generator:
    """A config-f generator of the scale with random weights, and biases and noise strengths that are not zero."""
    torch.manual_seed(seed)
    G = Generator(scale.resolution, channel_base=scale.channel_base, channel_max=scale.channel_max, mapping_layers=2)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("noise_strength", "conv0.bias", "conv1.bias", "torgb.bias")):
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    return G.to(device).requires_grad_(False)


def random_trunk(seed: int = 0) -> VGG16Trunk:
    """VGG-16 with random weights of the scale that keeps the features' variance."""
    random = torch.Generator().manual_seed(seed)
    weights, inputs, index = {}, 3, 0
    for count, width in VGG16_BLOCKS:
        for _ in range(count):
            scale = (2 / (9 * inputs)) ** 0.5
            weights[f"features.{index}.weight"] = scale * torch.randn(width, inputs, 3, 3, generator=random)
            weights[f"features.{index}.bias"] = 0.1 * torch.randn(width, generator=random)
            inputs, index = width, index + 2
        index += 1
    return VGG16Trunk(weights, TAPS, pre_relu=False, normalize=False)


def lpips_network(seed: int = 0) -> LPIPSNetwork:
    """LPIPS with random weights and positive heads."""
    random = torch.Generator().manual_seed(seed)
    heads = [torch.rand(width, generator=random) for _, width in VGG16_BLOCKS]
    return LPIPSNetwork(random_trunk(seed), heads)


def image_and_gradient(synthesis, w_plus: torch.Tensor, cotangent: torch.Tensor, scale: float = 1.0):
    """The picture, and the gradient of its product with cotangent; backward passes `scale` times as much."""
    w_plus = w_plus.detach().clone().requires_grad_()
    image = synthesis(w_plus)
    return image.detach(), torch.autograd.grad((image * cotangent).sum() * scale, w_plus)[0] / scale


def run(device: torch.device, scale, keep) -> dict:
    """Measures; scale is `gpu_check.Scale`, keep is called with what there is so far."""
    G, rows = generator(scale, device), Rows(keep, 0)
    torch.manual_seed(1)
    exact_G = generator(scale, device).double()
    w_plus = torch.randn(2, G.num_ws, G.w_dim, device=device)
    # Of mostly one sign, as that of a picture that is too dark: such gradients grow most on their way.
    cotangent = 1 + torch.randn(2, 3, G.resolution, G.resolution, device=device)
    # Forms are not timed here: in float64 that would take most of the time of this part.
    first = {layer: candidates(2 if layer.endswith("conv0") else 1)[0] for layer in G.synthesis.noise_layers()}
    exact = exact_G.prepare(forms=first).synthesis
    truth = image_and_gradient(exact, w_plus.double(), cotangent.double())
    independent = image_and_gradient(exact_G.synthesis, w_plus.double(), cotangent.double())

    def row(what, dtype, found, plain=None, limit=None):
        errors = [relative_error(x, y) for x, y in zip(found, truth)]
        limits = limit or [max(2 * relative_error(x, y), 1e-6) for x, y in zip(plain, truth)]
        fine = all(error <= bound for error, bound in zip(errors, limits))  # a NaN is not
        rows.append(
            {
                "what": what, "dtype": str(dtype).removeprefix("torch."), "image": errors[0], "gradient": errors[1],
                "image_limit": limits[0], "gradient_limit": limits[1], "fine": fine,
            }
        )  # fmt: skip

    row("prepared against the training path", torch.float64, independent, limit=[1e-10, 1e-10])
    for dtype in scale.dtypes:
        scale_plain = 2.0**-10 if dtype == torch.float16 else 1.0  # float16 would overflow
        plain = image_and_gradient(Plain(G, dtype).synthesis, w_plus, cotangent, scale_plain)
        row("prepared, chosen forms", dtype, image_and_gradient(G.prepare(dtype).synthesis, w_plus, cotangent), plain)
        for up in candidates(2):
            same = candidates(1)[candidates(2).index(up) % 2]
            forms = {name: up if name.endswith("conv0") else same for name in G.synthesis.noise_layers()}
            found = image_and_gradient(G.prepare(dtype, forms).synthesis, w_plus, cotangent)
            row("prepared, " + "/".join(up), dtype, found, plain)

    network = lpips_network()
    target = torch.randn(2, 3, scale.picture, scale.picture, device=device).clamp(-1, 1)
    image = torch.randn(2, 3, scale.picture, scale.picture, device=device).clamp(-1, 1)

    def distance(dtype, wide):
        x = image.to(wide).requires_grad_()
        value = LPIPS(target.to(wide), network, dtype=dtype)(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    def plain_distance(dtype):
        x = image.clone().requires_grad_()
        value = PlainLPIPS(target, network, dtype, True)(x)
        scale = 2.0**20 if dtype == torch.float16 else 1.0  # its gradients are too small for float16
        return value.detach(), torch.autograd.grad(value.sum() * scale, x)[0] / scale

    truth = distance(torch.float64, torch.float64)
    for dtype in scale.dtypes:
        row("LPIPS", dtype, distance(dtype, torch.float32), plain_distance(dtype))
    return {"rows": rows, "failed": [row["what"] for row in rows if not row["fine"]]}


def table(result: dict) -> str:
    """All rows."""
    return markdown(result["rows"])


if __name__ == "__main__":
    from gpu_check import main_of_part

    main_of_part("correctness", __doc__)
