"""The passes around the convolutions of a frozen synthesis network: against autograd, and native against reference."""

import functools

import pytest
import torch
from ops_contract import relative_error

from fastinv.ops import _dispatch, synthesis
from fastinv.ops.synthesis import FORMS, PHASES, SAME, SHUFFLED, TRANSPOSED

HAS_NATIVE = "synthesis_epilogue" in _dispatch.KERNELS
native = pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel")
TAPS = [0.3, 0.9, 0.7, 0.1]  # neither symmetric nor normalised: an order that is wrong shows


def left_by_convolution(form, n, c, h, w):
    return {
        SAME: (n, c, h, w), TRANSPOSED: (n, c, h + 1, w + 1), PHASES: (n, 4 * c, h // 2 + 1, w // 2 + 1),
        SHUFFLED: (n, 4 * c, h // 2, w // 2),
    }[form]  # fmt: skip


@functools.cache
def operands(form, n, c, h, w, full=True):
    """Arguments of `epilogue` in float64; without the optional ones unless full."""
    random = torch.Generator().manual_seed(form + 10 * c)

    def randn(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    u = randn(*left_by_convolution(form, n, c, h, w)).contiguous(memory_format=torch.channels_last)
    wide = randn(n, 3 * c + 2)  # styles and coefficients are slices of a wider tensor
    named = {"u": u, "taps": TAPS, "form": form}
    if full:
        named |= {
            "d": wide[:, :c].abs() + 0.1, "noise": randn(n, 1, h, w), "strength": 0.7, "bias": randn(c),
            "next_styles": wide[:, c + 1 : 2 * c + 1], "rgb_weight": randn(3, c),
            "rgb_styles": wide[:, 2 * c + 1 : 3 * c + 1], "rgb_bias": randn(3),
            "image": randn(n, 3, h // 2, w // 2), "clamp": 1.5, "rgb_clamp": 2.0,
        }  # fmt: skip
    return named


def cast(named, dtype):
    compute = torch.promote_types(dtype, torch.float32)
    return {
        name: value.to(dtype if name in ("u", "dnext", "y") else compute) if isinstance(value, torch.Tensor) else value
        for name, value in named.items()
    }


def backward_operands(named, dtype):
    """Arguments of `epilogue_backward` for those of `epilogue`, from the float64 result rounded to dtype."""
    y, following, image, rgb = synthesis.epilogue(**named, impl="ref")
    random = torch.Generator().manual_seed(3)
    shared = ("d", "noise", "strength", "next_styles", "rgb_weight", "rgb_styles", "taps", "form", "clamp", "rgb_clamp")
    back = {name: named[name] for name in shared if name in named}
    back["y"] = y
    back["dnext"] = torch.randn(y.shape, generator=random, dtype=torch.float64)
    back["dimage"] = torch.randn(image.shape, generator=random, dtype=torch.float64) if image.numel() else None
    back["rgb"] = rgb if rgb.numel() else None
    back["need_noise"] = "noise" in named
    return cast(back, dtype)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_backward_is_the_gradient_of_forward(form):
    named = operands(form, 2, 5, 8, 12)
    leaves = ("u", "d", "noise", "bias", "next_styles", "rgb_styles", "image")
    variables = {name: named[name].detach().clone().requires_grad_() for name in leaves}
    y, following, image, rgb = synthesis.epilogue(**(named | variables), impl="ref")
    dnext, dimage = torch.randn_like(following), torch.randn_like(image)
    expected = dict(zip(leaves, torch.autograd.grad([following, image], list(variables.values()), [dnext, dimage])))
    back = backward_operands(named, torch.float64) | {"dnext": dnext, "dimage": dimage}
    du, sums, dnoise = synthesis.epilogue_backward(**back, impl="ref")
    assert relative_error(du, expected["u"]) < 1e-12
    assert relative_error(dnoise, expected["noise"]) < 1e-12
    sums = sums.sum(1)
    assert relative_error(sums[:, 0], expected["next_styles"]) < 1e-12
    assert relative_error(sums[:, 1], expected["rgb_styles"]) < 1e-12
    assert relative_error((sums[:, 2] - sums[:, 3] - named["bias"] * sums[:, 4]) / named["d"], expected["d"]) < 1e-12
    assert relative_error(sums[:, 4].sum(0), expected["bias"]) < 1e-12


SHAPES = [(2, 5, 8, 12), (1, 40, 36, 132), (3, 16, 4, 4), (1, 1, 2, 6), (2, 33, 70, 10)]


@native
@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_native_agrees_in_float64(form, shape, full):
    named = operands(form, *shape, full)
    ours, expected = (synthesis.epilogue(**named, impl=impl) for impl in ("native", "ref"))
    for actual, truth in zip(ours, expected, strict=True):
        assert relative_error(actual, truth) < 1e-12
    back = backward_operands(named, torch.float64)
    (du, sums, dnoise), (du_ref, sums_ref, dnoise_ref) = (
        synthesis.epilogue_backward(**back, impl=impl) for impl in ("native", "ref")
    )
    assert relative_error(du, du_ref) < 1e-12 and relative_error(dnoise, dnoise_ref) < 1e-12
    assert sums.shape[1] == synthesis.sum_tiles(form, *shape[2:])
    assert relative_error(sums.sum(1), sums_ref.sum(1)) < 1e-12


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_native_precision(form, dtype):
    """At most twice the error of the reference, which computes in float32 and rounds once."""
    named = cast(operands(form, 2, 40, 36, 68), dtype)
    exact = cast(named, torch.float64)
    back = backward_operands(exact, dtype)
    exact_back = cast(back, torch.float64)
    for function, low, high in (
        (synthesis.epilogue, named, exact), (synthesis.epilogue_backward, back, exact_back),
    ):  # fmt: skip
        truth = function(**high, impl="ref")
        results = [function(**low, impl=impl) for impl in ("native", "ref")]
        for index, expected in enumerate(truth):
            actual, plain = (result[index].double() for result in results)
            if function is synthesis.epilogue_backward and index == 1:
                actual, plain, expected = actual.sum(1), plain.sum(1), expected.sum(1)
            size = expected.norm()
            assert results[0][index].dtype == results[1][index].dtype
            allowed = max(2 * (plain - expected).norm() / size, torch.finfo(results[0][index].dtype).eps / 2)
            assert (actual - expected).norm() / size <= allowed, (function.__name__, index)


@native
def test_shared_noise_absent_gradients_and_nothing_to_do():
    named = operands(SAME, 2, 8, 6, 6) | {"noise": operands(SAME, 2, 8, 6, 6)["noise"][:1]}
    for actual, truth in zip(*(synthesis.epilogue(**named, impl=impl) for impl in ("native", "ref")), strict=True):
        assert relative_error(actual, truth) < 1e-12
    for missing in ("dnext", "dimage"):
        back = backward_operands(named, torch.float64) | {missing: None}
        (du, sums, _), (du_ref, sums_ref, _) = (
            synthesis.epilogue_backward(**back, impl=impl) for impl in ("native", "ref")
        )
        assert relative_error(du, du_ref) < 1e-12 and relative_error(sums.sum(1), sums_ref.sum(1)) < 1e-12
    empty = synthesis.epilogue(torch.zeros(0, 8, 6, 6), impl="native")
    assert empty[0].shape == (0, 8, 6, 6)
    assert synthesis.epilogue_backward(empty[0], None, empty[0], impl="native")[0].shape == (0, 8, 6, 6)


@native
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_any_layout_gives_the_same(form):
    named = operands(form, 2, 6, 8, 8)
    back = backward_operands(named, torch.float64)
    plain = named | {"u": named["u"].contiguous()}
    other = back | {
        "y": back["y"].contiguous(), "dnext": back["dnext"][:, :1].expand_as(back["dnext"]),
        "dimage": back["dimage"].transpose(2, 3).contiguous().transpose(2, 3),
    }  # fmt: skip
    assert torch.equal(synthesis.epilogue(**plain, impl="native")[1], synthesis.epilogue(**named, impl="native")[1])
    expected = synthesis.epilogue_backward(**other, impl="ref")
    assert relative_error(synthesis.epilogue_backward(**other, impl="native")[0], expected[0]) < 1e-12


@native
@pytest.mark.parametrize("threads", [1, 2])
def test_results_do_not_depend_on_the_number_of_threads(threads):
    named = cast(operands(TRANSPOSED, 2, 40, 70, 68), torch.float32)
    back = backward_operands(cast(named, torch.float64), torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = [*synthesis.epilogue(**named, impl="native"), *synthesis.epilogue_backward(**back, impl="native")]
    finally:
        torch.set_num_threads(before)
    again = [*synthesis.epilogue(**named, impl="native"), *synthesis.epilogue_backward(**back, impl="native")]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@native
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_opcheck(form):
    named = cast(operands(form, 2, 6, 8, 8), torch.float32)
    names = "u d noise strength bias next_styles rgb_weight rgb_styles rgb_bias image taps form".split()
    torch.library.opcheck(
        torch.ops.fastinv.synthesis_epilogue.default,
        (*[named.get(name) for name in names], 0.2, 1.4, named["clamp"], named["rgb_clamp"]),
        test_utils=("test_schema", "test_faketensor"),
    )
    back = backward_operands(cast(named, torch.float64), torch.float32)
    names = "dnext dimage y rgb d noise strength next_styles rgb_weight rgb_styles taps form".split()
    torch.library.opcheck(
        torch.ops.fastinv.synthesis_epilogue_backward.default,
        (*[back.get(name) for name in names], 0.2, 1.4, back["clamp"], back["rgb_clamp"], True),
        test_utils=("test_schema", "test_faketensor"),
    )


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": 7}, "form must be 0 to 3"),
        ({"taps": [1.0]}, "taps must be 4 numbers"),
        ({"d": torch.zeros(2, 4)}, r"d must be Float \[2, 6\]"),
        ({"noise": torch.zeros(2, 1, 8, 7)}, r"noise must be Float \[2, 1, 8, 8\]"),
        ({"next_styles": torch.zeros(2, 6, dtype=torch.float64)}, r"next_styles must be Float \[2, 6\]"),
        ({"rgb_weight": None}, "come together"),
        ({"image": torch.zeros(2, 3, 8, 8)}, r"image must be Float \[2, 3, 4, 4\]"),
    ],
)
def test_bad_operands_are_refused(change, message):
    named = cast(operands(TRANSPOSED, 2, 6, 8, 8), torch.float32) | change
    with pytest.raises(RuntimeError, match=message):
        synthesis.epilogue(**named, impl="native")


def test_sum_tiles_cover_every_pixel_once():
    for form in (SAME, TRANSPOSED):
        assert synthesis.sum_tiles(form, 1, 1) == 1
        assert synthesis.sum_tiles(form, 1024, 1024) in (4096, 512)
