"""One frozen layer on the CPU, forward and backward: every kind of convolution against its formula in float64.

A result may be twice as far from it as plain torch is in the same dtype. Lower instruction sets run this file in
processes of their own, from test_cpu_isa.py.
"""

import itertools

import pytest
import torch

from fastinv import _ext
from fastinv.errors import UsageError
from fastinv.ops import frozen_conv as op
from fastinv.ops.frozen_conv import FrozenWeight, bands

pytestmark = pytest.mark.skipif(not _ext.available(), reason=_ext.why_not())
TAPS = (0.3, 0.9, 0.7, 0.1)  # neither symmetric nor normalised: an order that is wrong shows
DTYPES = [torch.float32, torch.bfloat16]
kinds = pytest.mark.parametrize(
    ("kind", "dtype"), [*itertools.product(op.KINDS, DTYPES)], ids=lambda value: str(value).removeprefix("torch.")
)

CHANCE = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-9}

# Which optional operands there are, forward and backward.
EVERYTHING = frozenset("styles d noise bias rgb clamp rgb_clamp dnext next_styles dimage du sums dnoise".split())
CHOICES = {
    "everything": EVERYTHING,
    "shared": EVERYTHING - {"clamp", "rgb_clamp"} | {"shared_noise"},
    "one_input": EVERYTHING - {"rgb_clamp"} | {"one_input", "shared_noise"},
    "vgg": frozenset({"bias", "relu", "dnext", "du"}),
    "nothing": frozenset({"dnext", "du"}),
    "store": frozenset({"dnext", "du", "store"}),
    "sums_alone": EVERYTHING - {"du"},
    "no_picture": EVERYTHING - {"rgb", "rgb_clamp", "dimage"},
    "picture_alone": EVERYTHING - {"dnext", "styles"},
}
# Samples, inputs, outputs and size of the map where the size is kept; the operands.
CASES = [
    (1, 512, 512, 4, 4, "everything"),
    (2, 96, 64, 4, 4, "shared"),
    (1, 64, 512, 8, 8, "everything"),
    (2, 512, 48, 8, 8, "one_input"),
    (2, 20, 8, 5, 7, "everything"),
    (1, 8, 20, 5, 7, "vgg"),
    (3, 1, 3, 5, 7, "shared"),
    (1, 3, 1, 6, 3, "everything"),
    (2, 48, 96, 16, 16, "everything"),
    (1, 64, 32, 33, 18, "everything"),
    (2, 20, 96, 33, 18, "one_input"),
    (1, 3, 64, 33, 18, "vgg"),
    (1, 32, 64, 64, 64, "everything"),
    (1, 32, 32, 9, 300, "everything"),
    (2, 8, 3, 70, 66, "no_picture"),
    (1, 1, 1, 1, 1, "everything"),
    (1, 5, 4, 1, 40, "shared"),
    (1, 4, 33, 40, 1, "everything"),
    (0, 8, 8, 8, 8, "everything"),
]


def input_size(kind, height, width):
    """The size of x for a result of about this size."""
    if kind == "up":
        return max(1, height // 2), max(1, width // 2)
    if kind == "down":
        return (2 * height, 2 * width) if height * width < 1000 else (height // 2 * 2, width // 2 * 2)
    return height, width


class Layer:
    """Operands of one layer, forward and backward, in the dtype; `exact` has the same numbers in float64."""

    def __init__(self, kind, dtype, n, inputs, outputs, height, width, choice="everything", seed=0):
        self.random = torch.Generator().manual_seed(seed + inputs + 1000 * outputs)
        self.dtype, self.has = dtype, CHOICES[choice]
        inputs = outputs if kind == "none" else inputs
        self.weight = None
        if kind != "none":
            source = (self.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)).to(dtype).float()
            self.weight = FrozenWeight(source, kind, dtype, TAPS)
        reason = op.obstacle(dtype) or (self.weight.obstacle() if self.weight else "")
        if reason:
            pytest.skip(reason)
        h, w = input_size(kind, height, width)
        self.result = (n, outputs, *(self.weight.result_size(h, w) if self.weight else (h, w)))
        self.x = self.map(1 if "one_input" in self.has else n, inputs, h, w)
        # With the signs of the result: values around zero and beyond the clamp are there.
        self.y = self.map(1 if "one_input" in self.has else n, *self.result[1:])
        self.styles = self.rows(n, inputs, "none" if kind in ("none", "down") else "styles")
        n, c, height, width = self.result
        common = dict(
            d=self.rows(n, c, "d"), noise=None, strength=0.7, rgb_weight=None, rgb_styles=None,
            alpha=0.0 if "relu" in self.has else 0.2, gain=1.4, clamp=1.5 if "clamp" in self.has else -1.0,
            rgb_clamp=0.9 if "rgb_clamp" in self.has else -1.0,
        )  # fmt: skip
        if "noise" in self.has:
            common["noise"] = self.randn(1 if "shared_noise" in self.has else n, 1, height, width)
        if "rgb" in self.has:
            common |= {"rgb_weight": self.randn(3, c) / c**0.5, "rgb_styles": self.rows(n, c, "rgb")}
        self.forward_operands = common | {"styles": self.styles}
        self.forward_operands["bias"] = self.randn(c) if "bias" in self.has else None
        if "rgb" in self.has:
            self.forward_operands["rgb_bias"] = self.randn(3)
        self.picture = self.randn(n, 3, height, width)
        self.backward_operands = common | {"next_styles": self.rows(n, c, "next_styles")}
        if "dimage" in self.has:
            self.backward_operands["dimage"] = self.randn(n, 3, height, width)
            self.backward_operands["rgb"] = self.randn(n, 3, height, width)

    def randn(self, *sizes):
        return torch.randn(sizes, generator=self.random)

    def map(self, *sizes):
        return self.randn(*sizes).to(self.dtype).contiguous(memory_format=torch.channels_last)

    def rows(self, n, columns, name):
        """Some columns of a wider matrix, near 1; None where the layer has no such operand."""
        wide = 1 + 0.3 * self.randn(n, 2 * columns + 3)
        return wide[:, columns : 2 * columns] if name in self.has else None

    def forward(self, impl, exact=False, **more):
        """[y, picture, rgb]."""
        n, c, h, w = self.result
        named = self.forward_operands
        y, picture, rgb = self.map_like_result(), self.picture.clone(), torch.full((n, 3, h, w), float("nan"))
        if "rgb" in self.has:
            named = named | {"picture": picture, "rgb": rgb}
        x, weight = self.x, self.weight
        if exact:
            x, y, weight, named = self.in_float64(x, y, weight, named)
            picture, rgb = named.get("picture"), named.get("rgb")
        op.frozen_conv(x, weight, y, **named, impl=impl, **more)
        found = {"y": y}
        if "rgb" in self.has:
            found["picture"] = picture
        if "rgb_clamp" in self.has and "rgb" in self.has:
            found["rgb"] = rgb
        return found

    def backward(self, impl, exact=False, **more):
        n, c, h, w = self.result
        named = self.backward_operands
        du = self.x if "dnext" in self.has else None
        weight = self.weight if du is not None else None
        if du is not None and len(du) != n:
            du = du.expand(n, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        found = {"du": self.map_like_result()}
        if "sums" in self.has:
            found["sums"] = torch.full((n, bands(h, w), 5, c), float("nan"))
        if "dnoise" in self.has:
            found["dnoise"] = torch.full((n, 1, h, w), float("nan"))
        if "du" not in self.has:
            del found["du"]
        y = None if "store" in self.has else self.y
        if exact:
            found = {name: tensor.double() for name, tensor in found.items()}
            du, y, weight, named = self.in_float64(du, y, weight, named)
        outputs = {"sums": found.get("sums"), "dnoise": found.get("dnoise")}
        op.frozen_conv_backward(du, weight, y, found.get("du"), **outputs, **named, impl=impl, **more)
        if "sums" in found:
            found["sums"] = found["sums"].sum(1)
        return found

    def map_like_result(self):
        y = torch.full(self.result, float("nan"), dtype=self.dtype)
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def in_float64(x, y, weight, named):
        def wide(value):
            return value.double() if isinstance(value, torch.Tensor) else value

        if weight is not None:
            weight = FrozenWeight(weight.source.double(), weight.kind, torch.float64, weight.taps)
        return wide(x), wide(y), weight, {name: wide(value) for name, value in named.items()}


def check(layer, direction):
    function = getattr(layer, direction)
    truth, plain, found = function("ref", exact=True), function("ref"), function("native")
    for name, wanted in truth.items():
        result = found[name].double()
        assert result.shape == wanted.shape and result.isfinite().all(), name
        if wanted.numel() == 0:
            continue
        size = max(wanted.norm().item(), wanted.numel() ** 0.5)  # operands are of size 1
        error = (result - wanted).norm().item() / size
        # Winograd's transforms, in float32, have larger numbers than the result. Few numbers may err by chance.
        winograd = layer.weight and layer.weight.kind == "winograd"
        loss = 8 if winograd and found[name].dtype == torch.float32 else 2
        allowed = loss * max((plain[name].double() - wanted).norm().item() / size, CHANCE[found[name].dtype])
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@kinds
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_forward_and_backward(kind, dtype, case):
    layer = Layer(kind, dtype, *case)
    check(layer, "forward")
    check(layer, "backward")


@kinds
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_operands(kind, dtype, choice):
    layer = Layer(kind, dtype, 2, 36, 40, 12, 8, choice)
    check(layer, "forward")
    check(layer, "backward")


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


@kinds
@pytest.mark.parametrize("size", [(1, 160, 96, 8, 8), (2, 40, 36, 16, 20), (1, 12, 20, 40, 70)], ids=str)
def test_same_bits_with_any_number_of_threads_and_any_memory(kind, dtype, size):
    layer = Layer(kind, dtype, *size)
    n, inputs, _, _, _ = size
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            h, w = layer.x.shape[2:]
            need = layer.weight.work_bytes(n, h, w) if layer.weight else None
            for spare in (0, 5) if need else ():
                work = torch.full((need + spare,), 255, dtype=torch.uint8)[spare:]  # NaN in every dtype; not aligned
                found.append((layer.forward("native", work=work), layer.backward("native", work=work)))
            found.append((layer.forward("native"), layer.backward("native")))
    finally:
        torch.set_num_threads(threads)
    assert all(same(forward, found[0][0]) and same(backward, found[0][1]) for forward, backward in found)


# Threads alone or together, by their number; a part of a band; bands of several samples; two blocks of inputs.
@pytest.mark.parametrize(
    "size", [(2, 160, 96, 16, 16), (1, 8, 12, 5, 1100), (9, 24, 16, 20, 12), (1, 130, 260, 12, 9)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_winograd_in_every_schedule(size, dtype):
    layer = Layer("winograd", dtype, *size)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            check(layer, "forward")
            check(layer, "backward")
            found.append((layer.forward("native"), layer.backward("native")))
    finally:
        torch.set_num_threads(threads)
    assert all(same(forward, found[0][0]) and same(backward, found[0][1]) for forward, backward in found)


def test_winograd_is_as_exact_as_the_direct_form_where_it_counts():
    """Many channels: there the error is that of the sums, which Winograd's transforms hardly add to."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 512, 16, 12, generator=random).contiguous(memory_format=torch.channels_last)
    weight = FrozenWeight(torch.randn(512, 512, 3, 3, generator=random) / 68, "winograd", torch.float32)
    wanted = op.convolved_ref(x.double(), weight)
    found = torch.empty_like(x)
    op.frozen_conv_backward(x, weight, None, found, impl="native")
    plain = op.convolved_ref(x, weight)
    assert (found - wanted).norm() <= 1.5 * (plain - wanted).norm()
    assert (found - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_convolution_y_may_be_x(dtype):
    layer = Layer("none", dtype, 2, 24, 24, 9, 10)
    wanted = layer.forward("native")["y"]
    y = layer.x.clone(memory_format=torch.channels_last)
    op.frozen_conv(
        y, None, y, **layer.forward_operands, picture=layer.picture.clone(), rgb=layer.picture.clone(), impl="native"
    )
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_convolution_du_before_may_be_du(dtype):
    layer = Layer("none", dtype, 2, 24, 24, 9, 10)
    wanted = layer.backward("native")["du"]
    du = layer.x.clone(memory_format=torch.channels_last)
    op.frozen_conv_backward(du, None, layer.y, du, **layer.backward_operands, impl="native")
    assert torch.equal(du, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_do_not_depend_on_each_other(dtype):
    """Also those of the small maps that are computed together."""
    layer = Layer("direct", dtype, 3, 72, 40, 6, 6, "nothing")
    together = layer.forward("native")["y"]
    for i in range(3):
        y = torch.empty_like(together[i : i + 1])
        op.frozen_conv(layer.x[i : i + 1], layer.weight, y, alpha=0.2, gain=1.4, impl="native")
        assert (y - together[i : i + 1]).abs().max() <= 4 * torch.finfo(dtype).eps * y.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"styles": torch.zeros(2, 4)}, r"styles must be Float \[2, 6\]"),
        ({"d": torch.zeros(2, 8, dtype=torch.float64)}, r"d must be Float \[2, 8\]"),
        ({"d": torch.zeros(8, 2).t()}, "the columns of d must lie side by side"),
        ({"noise": torch.zeros(2, 1, 8, 7)}, r"noise must be Float \[2, 1, 8, 8\]"),
        ({"rgb_styles": None}, "come together"),
        ({"rgb_bias": None}, "rgb_weight needs rgb_bias and picture"),
        ({"rgb": None}, "rgb_clamp needs rgb"),
        ({"picture": torch.zeros(2, 3, 8, 8).to(memory_format=torch.channels_last)}, "picture must be contiguous"),
        ({"y": torch.zeros(2, 8, 8, 8)}, "y must be dense in channels_last"),
        ({"y": torch.zeros(2, 8, 8, 9)}, r"y must be Float \[2, 8, 8, 8\]"),
        ({"x": torch.zeros(2, 6, 8, 8)}, "x must be dense in channels_last"),
        ({"x": torch.zeros(3, 6, 8, 8)}, r"x must be Float \[2, 6, 8, 8\]"),
        ({"x": torch.zeros(2, 5, 8, 8).contiguous(memory_format=torch.channels_last)}, "packed is not the result"),
        ({"work": torch.zeros(8, dtype=torch.uint8)}, "work must have [0-9]+ bytes for [0-9]+ threads, got 8"),
        ({"work": torch.zeros(8)}, "work must be a contiguous uint8 tensor"),
    ],
)  # fmt: skip
def test_bad_operands_are_named(change, message):
    layer = Layer("direct", torch.float32, 2, 6, 8, 8, 8)
    named = layer.forward_operands | {
        "x": layer.x, "weight": layer.weight, "y": layer.map_like_result(), "picture": layer.picture.clone(),
        "rgb": layer.picture.clone(),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message) as error:
        op.frozen_conv(**named | change, impl="native")
    assert "\n" not in str(error.value).split("Exception raised")[0].strip()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": None}, "sums, dimage and dnoise need y"),
        (dict.fromkeys(("y", "sums", "dnoise", "dimage", "du_before")), "there must be du and du_before"),
        ({"sums": torch.zeros(2, 1, 4, 8)}, r"sums must be Float \[2, 1, 5, 8\]"),
        ({"dimage": torch.zeros(2, 3, 4, 4)}, r"dimage must be Float \[2, 3, 8, 8\]"),
        ({"rgb_weight": None, "rgb_styles": None}, "dimage needs rgb_weight and rgb_styles"),
        ({"rgb": None}, "rgb_clamp needs rgb"),
        ({"du_before": torch.zeros(2, 8, 8, 8)}, "du_before must be dense in channels_last"),
        ({"next_styles": torch.zeros(2, 6)}, r"next_styles must be Float \[2, 8\]"),
        ({"dnoise": torch.zeros(1, 1, 8, 8)}, r"dnoise must be Float \[2, 1, 8, 8\]"),
    ],
)  # fmt: skip
def test_bad_operands_of_the_backward_pass_are_named(change, message):
    layer = Layer("direct", torch.float32, 2, 6, 8, 8, 8)
    named = layer.backward_operands | {
        "du": layer.x, "weight": layer.weight, "y": layer.y, "du_before": layer.map_like_result(),
        "sums": torch.zeros(2, 1, 5, 8), "dnoise": torch.zeros(2, 1, 8, 8),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        op.frozen_conv_backward(**named | change, impl="native")


def test_weights_that_are_none():
    with pytest.raises(UsageError, match="not 'sideways'"):
        FrozenWeight(torch.zeros(1, 1, 3, 3), "sideways", torch.float32)
    with pytest.raises(UsageError, match=r"\[O, I, 3, 3\]"):
        FrozenWeight(torch.zeros(1, 1, 5, 5), "direct", torch.float32)
    with pytest.raises(RuntimeError, match="kind must be 0 to 4, got 7"):
        torch.ops.fastinv.frozen_conv_work(7, torch.float32, 1, 1, 1, 1, 1)
    with pytest.raises(RuntimeError, match="dtype Double has no kernel"):
        torch.ops.fastinv.frozen_conv_pack(torch.zeros(1, 1, 3, 3), 1, torch.float64)


@kinds
@pytest.mark.parametrize("size", [(0, 8, 8), (1, 0, 8), (1, 8, 0)], ids=str)
def test_empty_maps_need_hardly_any_work_memory(kind, dtype, size):
    if reason := op.obstacle(dtype):
        pytest.skip(reason)
    assert 0 <= torch.ops.fastinv.frozen_conv_work(op.KINDS[kind], dtype, size[0], 16, 24, *size[1:]) <= 64


def test_bands_cover_every_row():
    for height, width in itertools.product((1, 3, 4, 5, 8, 17, 64, 1024), (1, 7, 16, 64, 1024)):
        rows = op.band_rows(height, width)
        assert (bands(height, width) - 1) * rows < height <= bands(height, width) * rows
