"""synthesis_epilogue and its backward, forms without a filter: CUDA kernels against the reference in float64."""

import pytest
import torch

from fastinv.ops import synthesis
from fastinv.ops.synthesis import SAME, SHUFFLED

from . import host

module = host.load("synthesis_epilogue")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TAPS = [0.25, 0.75, 0.7, 0.3]  # no two alike


def compute_dtype(dtype):
    return torch.promote_types(dtype, torch.float32)


class Layer:
    """Random operands of one layer. Small ones are slices of a longer row that begin at an odd place.

    without: names of the operands that are None. Bounds of the clamps are numbers that every dtype has.
    """

    def __init__(
        self, dtype, channels, height, width, samples=2, form=SAME, without=(), noise_maps=1, clamp=-1.0, rgb_clamp=-1.0
    ):  # fmt: skip
        self.dtype, self.form, self.generator = dtype, form, torch.Generator().manual_seed(0)
        self.samples, self.channels, self.height, self.width = samples, channels, height, width
        self.clamp, self.rgb_clamp = clamp, rgb_clamp
        compute = compute_dtype(dtype)
        folded = (samples, 4 * channels, height // 2, width // 2)
        shape = folded if form == SHUFFLED else (samples, channels, height, width)
        self.u = channels_last(self.draw(shape, dtype))
        rows = self.draw((samples, 3 * channels + 3), compute)
        self.d = rows[:, 1 : channels + 1]
        self.next_styles = rows[:, channels + 2 : 2 * channels + 2]
        self.rgb_styles = rows[:, 2 * channels + 3 :]
        self.bias = self.draw((channels,), compute)
        self.noise = self.draw((noise_maps, 1, height, width), compute)
        self.rgb_weight = self.draw((3, channels), compute) * channels**-0.5
        self.rgb_bias = self.draw((3,), compute)
        self.image = self.draw((samples, 3, height // 2, width // 2), compute)
        self.dnext = channels_last(self.draw((samples, channels, height, width), dtype))
        self.dimage = self.draw((samples, 3, height, width), compute)
        for name in without:
            setattr(self, name, None)
        if self.rgb_weight is None:
            self.rgb_styles = self.rgb_bias = self.image = self.dimage = None
        if height % 2 or width % 2:
            self.image = None
        y, _, _, self.rgb = self.reference(dtype)
        self.y = channels_last(y)

    def draw(self, shape, dtype):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def arguments(self, names, dtype):
        """The operands as they are, or all in float64, which loses nothing."""
        tensors = [getattr(self, name) for name in names.split()]
        return [t if t is None or dtype == self.dtype else t.to(dtype) for t in tensors]

    def reference(self, dtype):
        operands = self.arguments("bias next_styles rgb_weight rgb_styles rgb_bias image", dtype)
        u, d, noise = self.arguments("u d noise", dtype)
        return synthesis.epilogue_ref(
            u, d, noise, 0.7, *operands, TAPS, self.form, 0.2, 1.4, self.clamp, self.rgb_clamp
        )

    def reference_backward(self, dtype, need_noise):
        leaders = self.arguments("dnext dimage y rgb d noise", dtype)
        operands = self.arguments("next_styles rgb_weight rgb_styles", dtype)
        rest = (TAPS, self.form, 0.2, 1.4, self.clamp, self.rgb_clamp, need_noise)
        return synthesis.epilogue_backward_ref(*leaders, 0.7, *operands, *rest)

    # --- the kernels ------------------------------------------------------------------------------------------------
    def named(self):
        small = {name: getattr(self, name) for name in ("d", "next_styles", "rgb_weight", "rgb_styles")}
        small["noise"] = None if self.noise is None else self.noise[:, 0]
        arrays = {name: None if t is None else host.to_numpy(t) for name, t in small.items()}
        numbers = {"alpha": 0.2, "gain": 1.4, "clamp": self.clamp, "rgb_clamp": self.rgb_clamp}
        return arrays | numbers | {"form": self.form, "strength": 0.7, "taps": TAPS}

    def run(self, order="forward"):
        """y, next, image, rgb of the kernel, where there is something to compute."""
        compute, size = compute_dtype(self.dtype), (self.samples, 3, self.height, self.width)
        y = channels_last(nan(self.y.shape, self.dtype))
        following = None if self.next_styles is None else channels_last(nan(self.y.shape, self.dtype))
        image = None if self.rgb_weight is None else nan(size, compute)
        rgb = None if self.rgb_weight is None or self.rgb_clamp < 0 else nan(size, compute)
        module.set_order(order)
        arrays = (self.bias, self.rgb_bias, self.image, nhwc(y), nhwc(following), image, rgb)
        module.epilogue(self.named(), *map(numpy, (nhwc(self.u), *arrays)))
        return y, following, image, rgb

    def run_backward(self, order="forward", need_noise=False):
        """du, sums, dnoise of the kernel."""
        compute, tiles = compute_dtype(self.dtype), synthesis.sum_tiles(self.form, self.height, self.width)
        du = channels_last(nan(self.u.shape, self.dtype))
        sums = nan((self.samples, tiles, 5, self.channels), compute)
        dnoise = nan((self.samples, 1, self.height, self.width), compute) if need_noise else None
        rgb = self.rgb if self.rgb_clamp >= 0 and self.dimage is not None else None
        module.set_order(order)
        leaders = (nhwc(self.dnext), self.dimage, nhwc(self.y), rgb)
        module.epilogue_backward(self.named(), *map(numpy, (*leaders, nhwc(du), sums, dnoise)))
        return du, sums, dnoise


def nan(shape, dtype):
    """What no kernel may leave behind."""
    return torch.full(shape, float("nan"), dtype=dtype)


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def nhwc(tensor):
    return None if tensor is None else tensor.permute(0, 2, 3, 1)


def numpy(tensor):
    return None if tensor is None else host.to_numpy(tensor)


def check(actual, plain, wanted, name):
    """The error is at most twice that of plain torch in the same dtype, which may be lucky in the last bits."""
    if actual is None:
        return
    assert actual.shape == wanted.shape
    assert actual.isfinite().all(), f"{name}: {int((~actual.isfinite()).sum())} values are not finite"
    error, error_of_plain = (actual.double() - wanted).abs(), (plain.double() - wanted).abs()
    scale = wanted.abs().max().clamp_min(1e-30)
    least = (1e-13 if plain.dtype == torch.float64 else 4 * torch.finfo(torch.float32).eps) * scale
    for kind, ours, theirs in (
        ("largest", error.max(), error_of_plain.max()),
        ("mean square", error.square().mean().sqrt(), error_of_plain.square().mean().sqrt()),
    ):
        assert ours <= 2 * theirs + least, f"{name}: {kind} error {ours:.3g}, of plain torch {theirs:.3g}"


def check_layer(layer, order="random", need_noise=False):
    wanted, plain = layer.reference(torch.float64), layer.reference(layer.dtype)
    for name, *results in zip(("y", "next", "image", "rgb"), layer.run(order), plain, wanted, strict=True):
        check(*results, name)
    if layer.dnext is None and layer.dimage is None:
        return
    wanted = layer.reference_backward(torch.float64, need_noise)
    plain = layer.reference_backward(layer.dtype, need_noise)
    du, sums, dnoise = layer.run_backward(order, need_noise)
    check(du, plain[0], wanted[0], "du")
    assert sums.isfinite().all()
    total = sums.double().sum(1)  # as style_gradients adds them
    for plane in range(5):
        check(total[:, plane], plain[1][:, 0, plane], wanted[1][:, 0, plane], f"sums, plane {plane}")
    check(dnoise, plain[2], wanted[2], "dnoise")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 5, 8, 12, 32, 40])
def test_channels(channels, dtype):
    check_layer(Layer(dtype, channels, 5, 7, clamp=1.25, rgb_clamp=0.75), need_noise=True)
    check_layer(Layer(dtype, channels, 6, 10, form=SHUFFLED, clamp=1.25, rgb_clamp=0.75))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [512, 516, 1023, 1024])
def test_many_channels(channels, dtype):
    """Several warps make up a pixel; several blocks a tile, unless the noise's gradient is wanted."""
    for need_noise in (False, True):
        check_layer(Layer(dtype, channels, 2, 4, clamp=1.25), need_noise=need_noise)


OPTIONAL = ("d", "noise", "bias", "next_styles", "rgb_weight", "image", "dnext", "dimage")
MISSING = [(), *((name,) for name in OPTIONAL), OPTIONAL[:6], ("next_styles", "dnext")]


@pytest.mark.parametrize("form", [SAME, SHUFFLED])
@pytest.mark.parametrize("channels", [5, 16])
@pytest.mark.parametrize("without", MISSING, ids=str)
def test_optional_operands(without, channels, form):
    dtype = torch.float32 if form == SAME else torch.float16
    check_layer(Layer(dtype, channels, 4, 6, form=form, without=without), need_noise=True)


@pytest.mark.parametrize("form", [SAME, SHUFFLED])
@pytest.mark.parametrize("samples, maps", [(1, 1), (3, 1), (3, 3)])
def test_noise_of_all_or_of_each_sample(samples, maps, form):
    check_layer(Layer(torch.float32, 8, 4, 6, samples, form, noise_maps=maps), need_noise=True)


@pytest.mark.parametrize("clamp, rgb_clamp", [(-1.0, -1.0), (0.0, -1.0), (0.5, -1.0), (-1.0, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("channels", [3, 8])
def test_clamps(clamp, rgb_clamp, channels):
    layer = Layer(torch.bfloat16, channels, 4, 6, clamp=clamp, rgb_clamp=rgb_clamp)
    assert clamp < 0 or (layer.y.abs() == clamp).any()
    check_layer(layer)


@pytest.mark.parametrize("form", [SAME, SHUFFLED])
@pytest.mark.parametrize("channels", [4, 48])
def test_many_tiles(channels, form):
    """1480 pixels: tiles of 11, the last of 6; 1520: the last of 2."""
    layer = Layer(torch.float16, channels, 40, 37 if form == SAME else 38, 1, form, rgb_clamp=0.75)
    check_layer(layer, need_noise=form == SAME)


def test_largest_tile():
    layer = Layer(torch.float32, 4, 182, 181, 1)  # 32942 pixels: tiles of 256, the last of 174
    assert synthesis.sum_tiles(SAME, 182, 181) == 129
    check_layer(layer, "reverse", need_noise=True)


@pytest.mark.parametrize("form", [SAME, SHUFFLED])
def test_tiles_lie_where_the_contract_says(form):
    layer = Layer(torch.float32, 8, 24, 50, 2, form)
    pixels = 9  # of a tile: 1200 / 128
    for tile in (0, 1, 77, 133):
        chosen = torch.zeros(24 * 50)
        chosen[tile * pixels : (tile + 1) * pixels] = 1
        part = Layer(torch.float32, 8, 24, 50, 2, form)
        part.dnext, part.dimage = (t * chosen.view(24, 50) for t in (layer.dnext, layer.dimage))
        part.dnext = channels_last(part.dnext)
        _, sums, _ = part.run_backward()
        others = torch.arange(sums.shape[1]) != tile
        assert sums.shape[1] == 134 and (sums[:, others] == 0).all() and (sums[:, tile] != 0).all()


@pytest.mark.parametrize("form", [SAME, SHUFFLED])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bitwise_the_same_in_every_order(dtype, form):
    for channels, need_noise in ((3, True), (32, True), (136, False)):
        layer = Layer(dtype, channels, 6, 12, form=form, clamp=1.25, rgb_clamp=0.75)
        results = [[*layer.run(order), *layer.run_backward(order, need_noise)] for order in host.ORDERS]
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                assert (first is None and second is None) or torch.equal(first, second)


def test_blocks_of_several_steps():
    """Only launches with four thousand steps make a block take a second one: many small pictures do."""
    layer = Layer(torch.float16, 2, 17, 16, 2050)  # 272 pixels: a step has 256, two threads to a pixel
    for actual, wanted in zip(layer.run("random"), layer.reference(layer.dtype), strict=True):
        assert actual is None or torch.allclose(actual, wanted, rtol=2e-3, atol=1e-5)


def test_gradient_passes_where_nothing_is_clamped():
    """Infinity without a clamp is no clamped value."""
    layer = Layer(torch.float16, 8, 3, 3, 1)
    layer.y[0, 0, 0, 0] = float("inf")
    du, _, _ = layer.run_backward()
    wanted = layer.reference_backward(torch.float16, False)[0]
    assert wanted.isfinite().all() and torch.allclose(du, wanted, rtol=2e-3, atol=1e-5)


def test_nan_stays_nan():
    layer = Layer(torch.float32, 8, 3, 3, 1, clamp=1.25, rgb_clamp=0.75)
    layer.u[0, 3, 1, 1] = float("nan")
    for actual, wanted in zip(layer.run(), layer.reference(torch.float32), strict=True):
        assert torch.equal(actual.isnan(), wanted.isnan())


@pytest.mark.parametrize("sizes", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 0, 4, 4)])
def test_nothing_to_do(sizes):
    samples, channels, height, width = sizes
    layer = Layer(torch.float32, max(channels, 1), max(height, 1), width, max(samples, 1), without=("image",))
    for name in ("u", "y", "dnext"):
        setattr(layer, name, channels_last(torch.empty(sizes)))
    layer.noise = layer.noise[:, :, :height]
    layer.dimage = layer.dimage[:samples, :, :height]
    layer.samples, layer.channels, layer.height = samples, channels, height
    layer.run()
    _, sums, _ = layer.run_backward(need_noise=True)
    assert sums.shape[1] == (1 if height == 0 else 2) and (sums == 0).all()
