"""Every kernel against a measured copy of as many bytes, at five sizes.

    python benchmarks/kernels.py [--device cuda] [--quick] [--out FILE]

``of_copy`` is the copy's time over the kernel's, for the fewest bytes that the kernel can read and write: 1 is a copy's
speed. Both are timed as 16 calls in a CUDA graph, as kernels run in a recorded step; operands are random, and up to 16
sets of them take turns, which from about 8 MB a set on is more than the cache keeps.
"""

import math

import torch
from correctness import generator
from harness import Rows, copy_bandwidth, markdown, rotating, seconds_in_graph

from fastinv.ops import bias_act, setup_filter, synthesis, upfirdn2d
from fastinv.ops.adam import adam_step
from fastinv.ops.perceptual import perceptual_input, perceptual_stage

TAPS = [0.25, 0.75, 0.75, 0.25]


def _maps(n, c, h, w, dtype, device, channels_last=True):
    x = torch.randn(n, c, h, w, device=device, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


class Case:
    """One kernel at one size: how to make operands, what to call, how many bytes it must move."""

    def __init__(self, name: str, shape: tuple, moved: int, make, call):
        self.name, self.shape, self.moved, self.make, self.call = name, shape, moved, make, call


def _small(n, c, dtype, device):
    compute = torch.promote_types(dtype, torch.float32)
    return {
        "d": torch.rand(n, c, device=device, dtype=compute) + 0.5,
        "next_styles": torch.randn(n, c, device=device, dtype=compute),
        "strength": 0.1,
    }


def cases(n: int, c: int, size: int, dtype: torch.dtype, device: torch.device):
    """All kernels on feature maps [n, c, size, size]."""
    pixels, each = n * size * size, torch.empty([], dtype=dtype).element_size()
    a, shape = pixels * c * each, (n, c, size)
    compute = torch.promote_types(dtype, torch.float32)
    wide = torch.empty([], dtype=compute).element_size()
    noise = torch.randn(1, 1, size, size, device=device, dtype=compute)
    bias = torch.randn(c, device=device, dtype=compute)
    small = _small(n, c, dtype, device)
    rgb = {
        "rgb_weight": torch.randn(3, c, device=device, dtype=compute),
        "rgb_styles": torch.randn(n, c, device=device, dtype=compute),
    }
    picture, up = 3 * pixels * wide, synthesis.TRANSPOSED

    def maps(channels_last=True, size=size):
        return lambda: (_maps(n, c, size, size, dtype, device, channels_last),)

    def pairs(channels_last=True):
        return lambda: tuple(_maps(n, c, size, size, dtype, device, channels_last) for _ in range(2))

    def with_picture(make):
        return lambda: (*make(), torch.randn(n, 3, size, size, device=device, dtype=compute))

    yield Case(
        "epilogue", shape, 3 * a + noise.numel() * wide, maps(),
        lambda u: synthesis.epilogue(u, noise=noise, bias=bias, **small),
    )  # fmt: skip
    yield Case(
        "epilogue with toRGB", shape, 3 * a + picture + noise.numel() * wide, maps(),
        lambda u: synthesis.epilogue(u, noise=noise, bias=bias, **small, **rgb, rgb_bias=bias[:3].new_zeros(3)),
    )  # fmt: skip
    yield Case(
        "epilogue backward", shape, 3 * a + noise.numel() * wide, pairs(),
        lambda g, y: synthesis.epilogue_backward(g, None, y, noise=noise, **small),
    )  # fmt: skip
    yield Case(
        "epilogue backward with toRGB", shape, 3 * a + picture + noise.numel() * wide, with_picture(pairs()),
        lambda g, y, image: synthesis.epilogue_backward(g, image, y, noise=noise, **small, **rgb),
    )  # fmt: skip
    yield Case(
        "FIR + epilogue", shape, 3 * a + noise.numel() * wide, maps(size=size + 1),
        lambda u: synthesis.epilogue(u, noise=noise, bias=bias, **small, taps=TAPS, form=up),
    )  # fmt: skip
    yield Case(
        "FIR + epilogue backward", shape, 3 * a + noise.numel() * wide, pairs(),
        lambda g, y: synthesis.epilogue_backward(g, None, y, noise=noise, **small, taps=TAPS, form=up),
    )  # fmt: skip
    low = bias.to(dtype)
    for layout, last in (("NHWC", True), ("NCHW", False)):
        yield Case(f"bias_act {layout}", shape, 2 * a, maps(last), lambda x: bias_act(x, low, act="lrelu"))
        yield Case(
            f"bias_act backward {layout}", shape, 3 * a, pairs(last),
            lambda g, y: torch.ops.fastinv.bias_act_backward(g, y, low, 1, 2, 0.2, math.sqrt(2), -1.0, True),
        )  # fmt: skip
        f = setup_filter([1, 3, 3, 1], separable=True, device=device)
        dense = setup_filter([1, 3, 3, 1], device=device)
        for name, taps in (("4", f), ("4x4", dense)):
            yield Case(
                f"upfirdn2d {name} {layout}", shape, 2 * a, maps(last),
                lambda x, t=taps: upfirdn2d(x, t, padding=(2, 1, 2, 1)),
            )  # fmt: skip
            yield Case(
                f"upfirdn2d {name} up 2 {layout}", shape, 5 * a // 4, maps(last, size // 2),
                lambda x, t=taps: upfirdn2d(x, t, up=2, padding=(2, 1, 2, 1), gain=4),
            )  # fmt: skip
            yield Case(
                f"upfirdn2d {name} down 2 {layout}", shape, 5 * a // 4, maps(last),
                lambda x, t=taps: upfirdn2d(x, t, down=2, padding=1),
            )  # fmt: skip


def network_cases(scale, n: int, device: torch.device):
    """The kernels that work on all layers at once, the picture's, LPIPS's and the end of a step, for batch size n."""
    network = generator(scale, device).prepare(torch.float16 if device.type == "cuda" else None)._fast
    compute = {"device": device, "dtype": torch.float32}
    rows, outputs, w_dim = network.rows[-1], len(network.bias), network.affine_weight.shape[1]
    shape = (n, scale.resolution)
    weights, sumsq = network.affine_weight.numel() * 4, network.weight_sumsq.numel() * 4
    tables = (network.conv_rows, network.inputs, network.outputs)
    styles, d = torch.randn(n, rows, **compute), torch.rand(n, outputs, **compute) + 0.5
    scales = torch.ones(n, len(network.layers), **compute)
    w_plus = torch.randn(n, len(network.rows) - 1, w_dim, **compute)
    sums = [
        torch.randn(
            n, synthesis.sum_tiles(synthesis.TRANSPOSED if layer.convolution.up == 2 else synthesis.SAME,
                                   layer.resolution, layer.resolution), synthesis.SUMS, layer.outputs, **compute,
        )
        for layer in network.layers
    ]  # fmt: skip
    sums.append(torch.randn(n, 1, 1, network.inputs[0], **compute))
    gradient_tables = (network.next_rows, network.rgb_rows, network.first_outputs, rows)
    image = torch.randn(n, 3, scale.resolution, scale.resolution, **compute)

    def case(name, moved, call):
        return Case(name, shape, moved, lambda: (), call)

    yield case(
        "styles", weights, lambda: synthesis.styles(w_plus, network.affine_weight, network.affine_bias, network.rows)
    )
    yield case(
        "styles backward", weights, lambda: synthesis.styles_backward(styles, network.affine_weight, network.rows)
    )
    yield case(
        "demodulation", sumsq,
        lambda: synthesis.demodulation(styles, network.weight_sumsq, *tables, network.epsilons, True),
    )  # fmt: skip
    yield case(
        "demodulation backward", sumsq,
        lambda: synthesis.demodulation_backward(styles, d, styles, scales, network.weight_sumsq, *tables),
    )  # fmt: skip
    yield case(
        "style gradients", sum(part.numel() * 4 for part in sums),
        lambda: synthesis.style_gradients(sums, d, network.bias, None, *gradient_tables),
    )  # fmt: skip
    yield case("gradient scale", 3 * image.numel() * 4, lambda: synthesis.gradient_scale(image))
    low = (min(scale.picture, scale.resolution),) * 2
    yield case(
        "LPIPS input", image.numel() * 4,
        lambda: perceptual_input(image, (2.0, 2.0, 2.0), (0.1, 0.2, 0.3), low, 8, torch.float16),
    )  # fmt: skip
    feature = torch.randn(n, 64, *low, device=device).to(torch.float16 if device.type == "cuda" else torch.float32)
    feature = feature.contiguous(memory_format=torch.channels_last)
    bias, head = torch.randn(64, device=device).to(feature), torch.rand(64, **compute)
    with torch.no_grad():
        target, _, inverse, *_ = perceptual_stage(feature, bias)
    yield case(
        "LPIPS stage", 4 * feature.numel() * feature.element_size(),
        lambda: perceptual_stage(feature, bias, head, target, inverse),
    )  # fmt: skip
    variable, gradient = torch.randn_like(w_plus), torch.randn_like(w_plus)
    moments = torch.zeros(3, *w_plus.shape, **compute)
    better = torch.ones(n, dtype=torch.bool, device=device)
    clock, coefficients = torch.zeros(2, dtype=torch.long, device=device), torch.full((4, 2), 0.5, **compute)
    yield case(
        "Adam", 9 * variable.numel() * 4,
        lambda: adam_step(variable, gradient, *moments, better, coefficients, clock, 0, (0.9, 0.999), 1e-8),
    )  # fmt: skip


def measure(case: Case, dtype: str, device: torch.device, repeats: int, copies: dict) -> dict:
    """A row of the table."""
    row = {"kernel": case.name, "dtype": dtype, "shape": list(case.shape)}
    try:
        half = max(1, case.moved // 2)
        rate = copies[half] = copies.get(half) or copy_bandwidth(half, device, repeats)
        time = seconds_in_graph(rotating(case.make, case.call, case.moved), device, repeats)
        row |= {"us": time * 1e6, "GB/s": case.moved / time / 1e9, "of_copy": case.moved / rate / time}
    except (RuntimeError, ValueError) as error:  # one kernel that fails must not cost the others' numbers
        row["error"] = str(error).splitlines()[0]
    return row


def run(device: torch.device, scale, keep) -> dict:
    """Measures; scale is `gpu_check.Scale`, keep is called with what there is so far."""
    rows, copies = Rows(keep), {}
    for dtype in scale.dtypes:
        for shape in scale.maps:
            for case in cases(*shape, dtype, device):
                rows.append(measure(case, str(dtype).removeprefix("torch."), device, scale.repeats, copies))
    for n in scale.ladder_batches:
        for case in network_cases(scale, n, device):
            rows.append(measure(case, "", device, scale.repeats, copies))
    failed = [f"{row['kernel']} {row['shape']}: {row['error']}" for row in rows if "error" in row]
    return {"rows": rows, "copy_GB/s": {str(2 * size): rate / 1e9 for size, rate in copies.items()}, "failed": failed}


def table(result: dict) -> str:
    """All rows."""
    columns = ["kernel", "dtype", "shape", "us", "GB/s", "of_copy", "error"]
    return markdown(result["rows"], columns)


if __name__ == "__main__":
    from gpu_check import main_of_part

    main_of_part("kernels", __doc__)
