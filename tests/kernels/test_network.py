"""A whole prepared network on the simulated CUDA kernels: what each of them leaves is what the next one takes."""

import numpy
import pytest
import torch

from fastinv.models import frozen
from fastinv.models.convolution import candidates
from fastinv.models.stylegan2 import Generator
from fastinv.ops import synthesis

from . import host


def arrays(*tensors):
    return [None if tensor is None else host.to_numpy(tensor) for tensor in tensors]


def pixels_last(tensor):
    """The array [N, H, W, C] of a channels_last tensor."""
    return None if tensor is None else host.to_numpy(tensor.permute(0, 2, 3, 1).contiguous())


def maps(sizes, dtype):
    """A channels_last tensor of NaN and its array [N, H, W, C]: what a kernel leaves unwritten shows."""
    n, c, h, w = sizes
    tensor = torch.full((n, h, w, c), float("nan"), dtype=dtype)
    return tensor.permute(0, 3, 1, 2), host.to_numpy(tensor)


class Kernels:
    """The functions of `fastinv.ops.synthesis` that a network calls, on the kernels that CUDA gets."""

    FORMS = synthesis.FORMS

    def __init__(self, order):
        self.same, self.filtered = host.load("synthesis_epilogue"), host.load("fir_epilogue")
        self.of_styles, self.of_sums = host.load("synthesis_styles"), host.load("synthesis_sums")
        for module in (self.same, self.filtered, self.of_styles, self.of_sums):
            module.set_order(order, 1)

    def module(self, form):
        return self.filtered if form in (synthesis.TRANSPOSED, synthesis.PHASES) else self.same

    def layer(self, d, noise, strength, next_styles, rgb_weight, rgb_styles, taps, form, alpha, gain, clamp, rgb_clamp):
        names = ("d", "noise", "next_styles", "rgb_weight", "rgb_styles")
        small = dict(zip(names, arrays(d, noise, next_styles, rgb_weight, rgb_styles), strict=True))
        return small | {
            "strength": strength, "taps": list(taps), "form": form, "alpha": alpha, "gain": gain, "clamp": clamp,
            "rgb_clamp": rgb_clamp,
        }  # fmt: skip

    def epilogue(
        self, u, d, noise, strength, bias, next_styles, rgb_weight, rgb_styles, rgb_bias, image, taps, form, alpha,
        gain, clamp, rgb_clamp,
    ):  # fmt: skip
        compute = torch.promote_types(u.dtype, torch.float32)
        sizes = (len(u), *synthesis.epilogue_size(u, form))
        (y, y_out), (following, next_out) = maps(sizes, u.dtype), maps(sizes, u.dtype)
        pictures = [torch.full((sizes[0], 3, *sizes[2:]), float("nan"), dtype=compute) for _ in range(2)]
        has_rgb = rgb_weight is not None
        wanted = (next_styles is not None, has_rgb, has_rgb and rgb_clamp >= 0)
        outputs = (next_out, *arrays(*pictures))
        self.module(form).epilogue(
            self.layer(
                d, noise, strength, next_styles, rgb_weight, rgb_styles, taps, form, alpha, gain, clamp, rgb_clamp
            ),
            pixels_last(u), *arrays(bias, rgb_bias, image), y_out,
            *[output if want else None for output, want in zip(outputs, wanted, strict=True)],
        )  # fmt: skip
        empty = u.new_empty([0])
        found = (following, *pictures)
        return y, *[tensor if want else empty for tensor, want in zip(found, wanted, strict=True)]

    def epilogue_backward(
        self, dnext, dimage, y, rgb, d, noise, strength, next_styles, rgb_weight, rgb_styles, taps, form, alpha, gain,
        clamp, rgb_clamp, need_noise,
    ):  # fmt: skip
        n, c, h, w = y.shape
        compute = torch.promote_types(y.dtype, torch.float32)
        sizes = {
            synthesis.SAME: (n, c, h, w), synthesis.TRANSPOSED: (n, c, h + 1, w + 1),
            synthesis.PHASES: (n, 4 * c, h // 2 + 1, w // 2 + 1), synthesis.SHUFFLED: (n, 4 * c, h // 2, w // 2),
        }[form]  # fmt: skip
        du, du_out = maps(sizes, y.dtype)
        sums = torch.full((n, synthesis.sum_tiles(form, h, w), synthesis.SUMS, c), float("nan"), dtype=compute)
        dnoise = torch.full((n, 1, h, w), float("nan"), dtype=compute) if need_noise else None
        self.module(form).epilogue_backward(
            self.layer(
                d, noise, strength, next_styles, rgb_weight, rgb_styles, taps, form, alpha, gain, clamp, rgb_clamp
            ),
            pixels_last(dnext), *arrays(dimage), pixels_last(y), *arrays(rgb if rgb.numel() else None), du_out,
            *arrays(sums, dnoise),
        )  # fmt: skip
        return du, sums, y.new_empty([0]) if dnoise is None else dnoise

    def styles(self, w_plus, weight, bias, rows):
        styles = torch.full((len(w_plus), len(weight)), float("nan"), dtype=w_plus.dtype)
        self.of_styles.styles(*arrays(w_plus, weight, bias), rows, host.to_numpy(styles))
        return styles

    def styles_backward(self, dstyles, weight, rows):
        result = torch.full((len(dstyles), len(rows) - 1, weight.shape[1]), float("nan"), dtype=dstyles.dtype)
        self.of_styles.styles_backward(*arrays(dstyles, weight), rows, host.to_numpy(result))
        return result

    def demodulation(self, styles, weight_sumsq, rows, inputs, outputs, epsilons, scale):
        nan = torch.full((len(styles), max(styles.shape[1], sum(outputs))), float("nan"), dtype=styles.dtype)
        found = [nan[:, :count].clone() for count in (styles.shape[1], sum(outputs), len(rows))]
        self.of_styles.demodulation(
            *arrays(styles, weight_sumsq), rows, inputs, outputs, epsilons, scale, *arrays(*found)
        )
        return found

    def demodulation_backward(self, dstyles, q, styles, scales, weight_sumsq, rows, inputs, outputs):
        result = torch.full_like(dstyles, float("nan"))
        operands = arrays(dstyles, q, styles, scales, weight_sumsq)
        self.of_styles.demodulation_backward(*operands, rows, inputs, outputs, host.to_numpy(result))
        return result

    def style_gradients(self, sums, d, bias, unscale, next_rows, rgb_rows, first_outputs, count):
        dstyles, q = torch.full((len(d), count), float("nan"), dtype=d.dtype), torch.full_like(d, float("nan"))
        chunks = sum(-(-part.shape[1] // self.of_sums.tiles_per_chunk) * part[0, 0].numel() for part in sums)
        partial = numpy.full((len(d), chunks), numpy.nan)
        self.of_sums.style_gradients(
            arrays(*[part.contiguous() for part in sums]), *arrays(d, bias, unscale), next_rows, rgb_rows,
            first_outputs, partial, *arrays(dstyles, q),
        )  # fmt: skip
        return dstyles, q

    def gradient_scale(self, dimage):
        flat = dimage.reshape(len(dimage), -1)
        scaled, inverse = torch.full_like(flat, float("nan")), torch.full_like(flat[:, 0], float("nan"))
        tiles = -(-flat.shape[1] // self.of_sums.scale_tile)
        largest = torch.full((len(flat), tiles), float("nan"), dtype=flat.dtype)
        self.of_sums.gradient_scale(*arrays(flat, scaled, inverse, largest))
        return scaled.view_as(dimage), inverse


def image_and_gradients(P, w_plus, noise):
    w_plus, noise = w_plus.clone().requires_grad_(), noise.clone().requires_grad_()
    image = P.synthesis(w_plus, noise={"b8.conv1": noise})
    cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(image)
    return [image.detach(), *torch.autograd.grad((1e-6 * image * cotangent).sum(), [w_plus, noise])]


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [form for form in candidates(2) if form.gradient == "flipped"], ids="-".join)
def test_network_on_the_kernels_is_the_network_on_the_references(up, dtype, order, monkeypatch):
    torch.manual_seed(0)
    G = Generator(16, 8, 8, channels={4: 16, 8: 12, 16: 8}, mapping_layers=1, conv_clamp=1.5)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("noise_strength", "conv0.bias", "conv1.bias", "torgb.bias")):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    G = G.to(torch.promote_types(dtype, torch.float32))
    w_plus = torch.randn(2, G.num_ws, G.w_dim).to(G.w_avg)
    noise = torch.randn(2, 1, 8, 8).to(G.w_avg)
    P = G.prepare(dtype, {name: up for name in G.synthesis.noise_layers() if name.endswith("conv0")})
    references = image_and_gradients(P, w_plus, noise)
    exact = image_and_gradients(G.double().prepare(), w_plus.double(), noise.double())
    monkeypatch.setattr(frozen, "synthesis", Kernels(order))
    kernels = image_and_gradients(P, w_plus, noise)
    for actual, other, truth in zip(kernels, references, exact, strict=True):
        error, allowed = ((found.double() - truth).norm() / truth.norm() for found in (actual, other))
        assert error <= max(2 * allowed, 1e-14 if dtype == torch.float64 else 1e-6)
