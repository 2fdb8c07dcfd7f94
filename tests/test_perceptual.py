"""The ops of LPIPS: gradients of the references, native against reference. CUDA: tests/kernels/test_perceptual.py."""

import pytest
import torch

import fastinv
from fastinv.ops import _dispatch, perceptual

SCALE, OFFSET = (2.0, -3.0, 0.75), (0.5, 0.25, -1.0)


class Input(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, size, channels):
        ctx.size = images.shape[2:]
        return perceptual.perceptual_input(images, SCALE, OFFSET, size, channels)

    @staticmethod
    def backward(ctx, grad):
        ones = grad.new_ones(len(grad))
        return perceptual.perceptual_input_backward(grad, ones, SCALE, ctx.size), None, None


@pytest.mark.parametrize("size", [(8, 6), (4, 3), (4, 2), (3, 5), (1, 1)])
def test_gradient_of_the_input(size):
    images = torch.randn(2, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Input.apply(x, size, 4), images)


def test_input_is_the_area_average_scaled():
    images = torch.randn(1, 3, 8, 6, dtype=torch.float64)
    found = perceptual.perceptual_input(images, SCALE, OFFSET, (2, 3), 5)
    averages = images.view(1, 3, 2, 4, 3, 2).mean((3, 5))
    expected = averages * torch.tensor(SCALE).view(3, 1, 1) + torch.tensor(OFFSET).view(3, 1, 1)
    torch.testing.assert_close(found[:, :3], expected)
    assert found.shape == (1, 5, 2, 3) and (found[:, 3:] == 0).all()
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(0, 2), (9, 2), (2, 7)])
def test_input_of_a_wrong_size(size):
    with pytest.raises(ValueError, match=r"size must be between 1 and \(8, 6\)"):
        perceptual.perceptual_input(torch.zeros(1, 3, 8, 6), SCALE, OFFSET, size)


native_input = pytest.mark.skipif(
    "cpu" not in _dispatch.KERNELS.get("perceptual_input", ()), reason="the native library is not built"
)
PAIRS = [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16)]
PAIRS.append((torch.float32, torch.bfloat16))


@native_input
@pytest.mark.parametrize("size", [(8, 6), (4, 3), (3, 5), (1, 1), (8, 1)])
@pytest.mark.parametrize(("images_dtype", "dtype"), PAIRS)
def test_native_input(images_dtype, dtype, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 8, 6, generator=generator, dtype=torch.float64).to(images_dtype)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3}  # one rounding
    for given in (
        images,
        images.contiguous(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        images[:1].expand(2, -1, -1, -1),
    ):
        for channels in (3, 5):
            found = perceptual.perceptual_input(given, SCALE, OFFSET, size, channels, dtype, impl="native")
            expected = perceptual.perceptual_input_ref(given, SCALE, OFFSET, size, channels, dtype)
            fake = perceptual._fake_input(given, SCALE, OFFSET, *size, channels, dtype)
            assert (found.shape, found.stride(), found.dtype) == (fake.shape, fake.stride(), fake.dtype)
            torch.testing.assert_close(found, expected, rtol=tolerance[dtype], atol=tolerance[dtype])
    grad, ones = torch.randn(2, 5, *size, generator=generator, dtype=torch.float64).to(dtype), torch.ones(2)
    for given in (grad, grad.contiguous(memory_format=torch.channels_last)):
        found = perceptual.perceptual_input_backward(given, ones, SCALE, (8, 6), images_dtype, impl="native")
        expected = perceptual.perceptual_input_backward_ref(given, ones, SCALE, (8, 6), images_dtype)
        assert found.is_contiguous() and found.dtype == images_dtype
        wide = max(tolerance[images_dtype], 1e-6 if dtype != torch.float64 else 0)
        torch.testing.assert_close(found, expected, rtol=wide, atol=wide)


@native_input
def test_native_input_leaves_other_dtypes_to_the_reference():
    images = torch.zeros(1, 3, 4, 4)
    for dtype in (torch.float16, torch.float64):
        assert perceptual.perceptual_input(images, SCALE, OFFSET, (2, 2), 3, dtype).dtype == dtype
        with pytest.raises(fastinv.NativeUnavailableError, match="no kernels between images of torch.float32"):
            perceptual.perceptual_input(images, SCALE, OFFSET, (2, 2), 3, dtype, impl="native")


class Stage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, bias, constants):
        h, pooled, inverse, slope, partial = perceptual.perceptual_stage(u, bias, *constants)
        ctx.save_for_backward(h, inverse, slope)
        ctx.constants = constants
        return pooled, perceptual.perceptual_sum([partial])

    @staticmethod
    def backward(ctx, grad_pooled, grad_value):
        grad = perceptual.perceptual_stage_backward(*ctx.saved_tensors, *ctx.constants, grad_value, grad_pooled)
        return grad, None, None


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_a_stage(weighted):
    generator = torch.Generator().manual_seed(0)
    u, bias, target = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 4, 5, 6), (4,), (2, 4, 5, 6))
    )
    head = torch.rand(4, generator=generator, dtype=torch.float64)
    inverse = torch.rand(2, 5, 6, generator=generator, dtype=torch.float64)
    weight = torch.rand(2, 5, 6, generator=generator, dtype=torch.float64) if weighted else None
    constants = head, target.relu(), inverse, weight
    assert torch.autograd.gradcheck(lambda x: Stage.apply(x, bias, constants), u.requires_grad_())


def test_a_pixel_without_features_has_no_gradient():
    u = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    u[..., 0, 0], u[0, 0, 1, 1] = -1, 2
    ones = torch.ones(1, 2, 2, dtype=torch.float64)
    constants = torch.ones(4, dtype=torch.float64), torch.ones_like(u), ones, None
    h, _, inverse, slope, _ = perceptual.perceptual_stage(u, u.new_zeros(4), *constants)
    grad = perceptual.perceptual_stage_backward(h, inverse, slope, *constants, ones[:, 0, 0], None)
    assert torch.isfinite(grad).all() and (grad[..., 0, 0] == 0).all() and (grad[..., 1, 1] != 0).any()


def stage_inputs(dtype, count=2, channels=24, height=5, width=7):
    """u, bias and the constants of a stage; ties, a pixel without features, gradients of both outputs."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=perceptual.compute_dtype(dtype)):  # noqa: B008
        return torch.randn(shape, generator=generator).to(dtype)

    u = ((random(count, channels, height, width) * 4).round() / 4).to(dtype)
    u[0, :, 0, 0] = -9
    constants = random(channels).abs(), random(*u.shape, dtype=dtype).relu(), random(count, height, width).abs()
    grads = random(count), random(count, channels, height // 2, width // 2, dtype=dtype)
    return u, random(channels).round().to(dtype), constants, random(count, height, width).square(), grads


native = pytest.mark.skipif(
    "cpu" not in _dispatch.KERNELS.get("perceptual_stage", ()), reason="the native library is not built"
)


@native
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(24, 5, 7), (64, 4, 6), (3, 2, 2), (130, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_native_stage(dtype, size, weighted):
    u, bias, constants, pixel_weight, (grad_value, grad_pooled) = stage_inputs(dtype, 2, *size)
    constants, pool = (*constants, pixel_weight if weighted else None), size[1] > 1
    found = perceptual.perceptual_stage(u, bias, *constants, pool=pool, impl="native")
    expected = perceptual.perceptual_stage_ref(u, bias, *constants, pool=pool)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    fake = perceptual._fake_stage(u, bias, *constants, pool)
    assert [(x.shape, x.stride(), x.dtype) for x in found] == [(x.shape, x.stride(), x.dtype) for x in fake]
    tolerance = {"rtol": 1e-13, "atol": 0} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 1e-6}
    for a, b in zip((*found[2:4], found[4].sum(1)), (*expected[2:4], expected[4].sum(1)), strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    without_target = perceptual.perceptual_stage(u, bias, pool=pool, impl="native")
    assert all(torch.equal(a, b) for a, b in zip(found[:3], without_target[:3], strict=True))
    assert without_target[3].numel() == without_target[4].numel() == 0
    h, *without_bias = perceptual.perceptual_stage(found[0], None, *constants, pool=pool, impl="native")
    assert h is found[0] and all(torch.equal(a, b) for a, b in zip(without_bias, found[1:], strict=True))
    fake = perceptual._fake_stage(u, None, *constants, pool)
    assert fake[0].shape == (0,)

    arguments = found[0], *found[2:4], *constants, grad_value, grad_pooled if pool else None
    grad = perceptual.perceptual_stage_backward(*arguments, impl="native")
    right = perceptual.perceptual_stage_backward_ref(*arguments)
    if dtype == torch.bfloat16:  # one rounding of the result
        tolerance = {"rtol": 8e-3, "atol": 1e-5}
    torch.testing.assert_close(grad, right, **(tolerance | {"atol": max(tolerance["atol"], 1e-13)}))
    assert grad.is_contiguous(memory_format=torch.channels_last)


@native
def test_native_stage_keeps_torchs_contract():
    u, bias, constants, pixel_weight, (grad_value, grad_pooled) = stage_inputs(torch.float32)
    constants = *constants, pixel_weight
    h, _, inverse, slope, _ = perceptual.perceptual_stage(u, bias, *constants)
    parts = ("test_schema", "test_faketensor")
    for given in (bias, None):
        operands = u, given, *constants, True
        torch.library.opcheck(torch.ops.fastinv.perceptual_stage.default, operands, test_utils=parts)
    arguments = h, inverse, slope, *constants, grad_value, grad_pooled
    torch.library.opcheck(torch.ops.fastinv.perceptual_stage_backward.default, arguments, test_utils=parts)


@native
def test_native_stage_refuses_what_does_not_fit():
    u, bias, constants, *_ = stage_inputs(torch.float32)
    head, target, inverse = constants
    for wrong in (
        (bias[1:], head, target, inverse),
        (bias, head.double(), target, inverse),
        (bias, head, u[1:], inverse),
    ):
        with pytest.raises(RuntimeError, match="perceptual_stage: (bias|head|target) must be"):
            perceptual.perceptual_stage(u, *wrong, impl="native")
    with pytest.raises(RuntimeError, match="head, target and target_inverse come together"):
        perceptual.perceptual_stage(u, bias, head, impl="native")
    with pytest.raises(RuntimeError, match="pooling needs at least 2x2 pixels, got 1x7"):
        perceptual.perceptual_stage(u[:, :, :1], bias, impl="native")


@pytest.mark.parametrize("channels_last", [False, True])
def test_stage_takes_any_layout(channels_last):
    u, bias, constants, _, grads = stage_inputs(torch.float32)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    expected = perceptual.perceptual_stage_ref(u, bias, *constants)
    laid_out = constants[0], constants[1].contiguous(memory_format=layout), constants[2]
    found = perceptual.perceptual_stage(u.contiguous(memory_format=layout), bias, *laid_out)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[4].sum(1), expected[4].sum(1))
