"""The LPIPS kernels against their references: every dtype, vectors per thread, edges, alignments."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastinv.ops import perceptual

from . import host

kernels = host.load("perceptual")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SCALE, OFFSET = (2.0, -3.0, 0.75), (0.5, 0.25, -1.0)
RELATIVE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# (channels, height, width): one to eight vectors per thread, one to 32 threads per window, even and odd sizes.
SHAPES = {
    torch.float32: [(4, 5, 7), (64, 4, 6), (256, 3, 2), (512, 2, 11)],
    torch.float64: [(2, 5, 7), (64, 3, 6), (128, 3, 2), (256, 2, 3), (512, 2, 11)],
    torch.float16: [(8, 5, 7), (64, 4, 6), (256, 3, 2), (512, 2, 11), (8, 2, 259)],
    torch.bfloat16: [(8, 5, 7), (128, 3, 6), (512, 3, 5)],
}
CASES = [(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]


def random(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def unset(shape, dtype):
    return torch.full(shape, float("nan"), dtype=dtype)


def call(name, *arguments):
    """Run a launcher; tensors are handed over as NumPy arrays of the same memory, NCHW features as NHWC."""
    arrays = [host.to_numpy(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments]
    getattr(kernels, name)(*arrays)


def nhwc(x):
    return None if x is None else x.permute(0, 2, 3, 1).contiguous()


def nchw(x):
    return x.permute(0, 3, 1, 2)


def assert_near(found, expected, relative):
    """The largest error, relative to the largest expected number."""
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape and torch.isfinite(found).all()
    assert (found - expected).abs().max() <= relative * expected.abs().max()


# Input


def run_input(images, size, channels, dtype):
    features = unset((len(images), *size, channels), dtype)
    call("perceptual_input", images, SCALE, OFFSET, features)
    return nchw(features)


def run_input_backward(grad, grad_value, size, dtype):
    images = unset((len(grad), 3, *size), dtype)
    call("perceptual_input_backward", nhwc(grad), grad_value, SCALE, images)
    return images


# (size of the pictures, size of the features): factors 1, 2 and 4; 3 and mixed ones; windows that overlap.
SIZES = [((5, 7), (5, 7)), ((6, 10), (3, 5)), ((8, 12), (2, 3)), ((9, 6), (3, 2)), ((8, 6), (4, 2)), ((7, 11), (3, 4))]


@pytest.mark.parametrize("size, smaller", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_input(dtype, size, smaller, order):
    kernels.set_order(order)
    image_dtypes = {dtype, torch.float32} if dtype != torch.float64 else {dtype}
    for image_dtype, channels in itertools.product(image_dtypes, (3, 4, 8)):
        images = random((2, 3, *size), image_dtype, 1)
        expected = perceptual.perceptual_input_ref(images.double(), SCALE, OFFSET, smaller, channels)
        assert_near(run_input(images, smaller, channels, dtype), expected, RELATIVE[dtype])

        grad = random((2, channels, *smaller), dtype, 2)
        grad_value = torch.tensor([3.0, 1e-3], dtype=perceptual.compute_dtype(dtype))
        found = run_input_backward(grad, grad_value, size, image_dtype)
        scale = perceptual.loss_scale(grad_value, dtype).view(-1, 1, 1, 1)
        expected = perceptual.perceptual_input_backward_ref(grad.double() / scale, grad_value, SCALE, size)
        for row in range(2):  # their scales differ
            error = 6e-8 if image_dtype == torch.float16 else 0  # float16's smallest number
            distance = (found[row].double() - expected[row]).abs().max()
            assert distance <= max(RELATIVE[dtype] * expected[row].abs().max(), error)


def test_input_of_any_strides(order):
    kernels.set_order(order)
    dense = random((2, 3, 8, 8), torch.float32, 1)
    expected = perceptual.perceptual_input_ref(dense, SCALE, OFFSET, (2, 2))
    shifted = torch.zeros(2 * 3 * 8 * 8 + 1)[1:].view(2, 3, 8, 8).copy_(dense)  # not aligned to 16 bytes
    channels_last = dense.contiguous(memory_format=torch.channels_last)
    cropped = torch.zeros(2, 4, 9, 11)[:, 1:, 1:, 2:-1].copy_(dense)
    for images in (dense, shifted, channels_last, cropped):
        assert_near(run_input(images, (2, 2), 3, torch.float32), expected, 1e-6)
    expanded = dense[:1].expand(2, -1, -1, -1)
    assert_near(run_input(expanded, (2, 2), 3, torch.float32)[1:], expected[:1], 1e-6)


def test_input_of_several_blocks():
    images = random((1, 3, 2, 260), torch.float32, 1)
    expected = perceptual.perceptual_input_ref(images, SCALE, OFFSET, (2, 130), 8)
    assert_near(run_input(images, (2, 130), 8, torch.float16), expected, 1e-3)


def test_input_refuses_pairs_without_a_kernel():
    with pytest.raises(RuntimeError, match="no kernel for this pair"):
        run_input(random((1, 3, 2, 2), torch.float16, 1), (2, 2), 3, torch.float32)
    with pytest.raises(RuntimeError, match="no kernel for this pair"):
        run_input(random((1, 3, 2, 2), torch.float32, 1), (2, 2), 3, torch.float64)


# Stage


def run_stage(u, bias, head=None, target=None, target_inverse=None, pixel_weight=None, pool=True):
    count, channels, height, width = u.shape
    dtype, compute = u.dtype, perceptual.compute_dtype(u.dtype)
    h, inverse = unset((count, height, width, channels), dtype), unset((count, height, width), compute)
    pooled = unset((count, height // 2, width // 2, channels), dtype) if pool else None
    slope = partial = None
    if target is not None:
        slope = unset((count, height, width), compute)
        partial = unset((count, kernels.perceptual_blocks(host.to_numpy(h))), compute)
    arguments = nhwc(u), bias, head, nhwc(target), target_inverse, pixel_weight
    call("perceptual_stage", *arguments, h, pooled, inverse, slope, partial)
    return nchw(h), nchw(pooled) if pool else None, inverse, slope, partial


def run_stage_backward(h, inverse, slope, head, target, target_inverse, pixel_weight, grad_value, grad_pooled):
    grad = unset(nhwc(h).shape, h.dtype)
    arguments = nhwc(h), inverse, slope, head, nhwc(target), target_inverse, pixel_weight, grad_value
    call("perceptual_stage_backward", *arguments, nhwc(grad_pooled), grad)
    return nchw(grad)


def stage_inputs(dtype, channels, height, width, count=2):
    """u, bias, head, target, target_inverse, pixel_weight; one pixel has no feature at all."""
    compute = perceptual.compute_dtype(dtype)
    u, bias = random((count, channels, height, width), dtype, 1), random((channels,), dtype, 2) * 0.5
    u[0, :, 0, 0] = -9
    target = random((count, channels, height, width), dtype, 3).relu()
    target_inverse = 1 / (target.to(compute).square().sum(1).sqrt() + perceptual.EPSILON)
    pixel_weight = random((count, height, width), compute, 5).square()
    return u, bias, random((channels,), compute, 4).abs(), target, target_inverse, pixel_weight


def double(tensors):
    return [None if tensor is None else tensor.double() for tensor in tensors]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype, shape", CASES)
def test_stage(dtype, shape, weighted, order):
    kernels.set_order(order)
    u, bias, head, target, target_inverse, pixel_weight = stage_inputs(dtype, *shape)
    constants = head, target, target_inverse, pixel_weight if weighted else None
    h, pooled, inverse, slope, partial = run_stage(u, bias, *constants)
    expected_h, expected_pooled, *_ = perceptual.perceptual_stage_ref(u, bias)
    assert torch.equal(h, expected_h) and torch.equal(pooled, expected_pooled)
    # From here on the rounded h is what counts.
    tolerance = 1e-5 if dtype != torch.float64 else 1e-13
    exact = perceptual.perceptual_stage_ref(h.double(), torch.zeros(shape[0]).double(), *double(constants))
    assert inverse[0, 0, 0] == 1 / torch.tensor(perceptual.EPSILON, dtype=inverse.dtype) and slope[0, 0, 0] == 0
    inverse[0, 0, 0] = exact[2][0, 0, 0] = 0
    assert_near(inverse, exact[2], tolerance)
    assert_near(slope, exact[3], tolerance)
    assert_near(partial.double().sum(1), exact[4].sum(1), tolerance)


@pytest.mark.parametrize("weighted, pooled", [(False, False), (True, True)])
@pytest.mark.parametrize("dtype, shape", CASES)
def test_stage_backward(dtype, shape, weighted, pooled, order):
    kernels.set_order(order)
    u, bias, head, target, target_inverse, pixel_weight = stage_inputs(dtype, *shape)
    constants = head, target, target_inverse, pixel_weight if weighted else None
    h, _, inverse, slope, _ = perceptual.perceptual_stage_ref((u * 4).round() / 4, bias * 0, *constants)  # with ties
    compute, (channels, height, width) = perceptual.compute_dtype(dtype), shape
    grad_value = torch.tensor([3.0, -1e-3], dtype=compute)
    grad_pooled = random((2, channels, height // 2, width // 2), dtype, 6) if pooled else None
    if dtype == torch.float16 and pooled:
        grad_pooled *= 100
    found = run_stage_backward(h, inverse, slope, *constants, grad_value, grad_pooled)
    grad_value = grad_value * perceptual.loss_scale(grad_value, dtype)
    tensors = double([h, inverse, slope, *constants, grad_value, grad_pooled])
    expected = perceptual.perceptual_stage_backward_ref(*tensors)
    if dtype == torch.float16:
        expected = expected.clamp(-65504, 65504)
    for row in range(2):  # of very different sizes, but for float16
        assert_near(found[row], expected[row], RELATIVE[dtype])
    assert (found[h <= 0] == 0).all()


def test_stage_of_one_pixel_without_pooling_or_target():
    u, bias = random((2, 64, 1, 1), torch.float32, 1), random((64,), torch.float32, 2)
    h, _, inverse, *_ = run_stage(u, bias, pool=False)
    expected = perceptual.perceptual_stage_ref(u, bias, pool=False)
    assert torch.equal(h, expected[0])
    assert_near(inverse, expected[2], 1e-6)


def test_the_same_features_are_at_distance_zero():
    for dtype in DTYPES:
        u, bias, head, *_ = stage_inputs(dtype, 64, 4, 3)
        h, _, inverse, *_ = run_stage(u, bias)
        *_, partial = run_stage(u, bias, head, h, inverse)
        assert (partial == 0).all()


def test_a_nan_stays_one():
    u, bias, head, target, target_inverse, _ = stage_inputs(torch.float32, 64, 4, 4)
    u[1, 5, 3, 2] = float("nan")
    h, pooled, _, _, partial = run_stage(u, bias, head, target, target_inverse)
    assert torch.isnan(h[1, 5, 3, 2]) and torch.isnan(pooled[1, 5, 1, 1])
    assert torch.isfinite(partial[0]).all() and torch.isnan(partial[1].sum())


def test_gradients_beyond_float16_become_its_largest_number():
    u, bias, head, target, target_inverse, _ = stage_inputs(torch.float16, 8, 2, 2)
    h, inverse, slope = torch.ones_like(u), torch.full((2, 2, 2), 1e9), torch.zeros(2, 2, 2)
    grad = run_stage_backward(h, inverse, slope, head, target, target_inverse, None, torch.tensor([1.0, -1.0]), None)
    assert (grad[0] == 65504).all() and (grad[1] == -65504).all()


def test_loss_scale_is_an_exact_power_of_two_of_the_gradient():
    values = torch.tensor([1.0, 1.999, -3.0, 2.0**-100, 1e30, 2.0**-101, 0.0, 1e-40, float("inf"), float("nan")])
    scale = perceptual.loss_scale(values, torch.float16)
    assert scale.tolist() == [2.0**20, 2.0**20, 2.0**19, 2.0**120, 2.0 ** (20 - 99), *[2.0**20] * 5]
    grad = torch.ones(len(values), 3, 1, 1, dtype=torch.float16)
    images = run_input_backward(grad, values, (1, 1), torch.float32)
    assert torch.equal(images[:, :, 0, 0], torch.tensor(SCALE) / scale[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sum(dtype, order):
    kernels.set_order(order)
    partials = [random((3, columns), dtype, columns) for columns in (1, 700, 256, 31, 5)]
    values = unset((3,), dtype)
    kernels.perceptual_sum([host.to_numpy(partial) for partial in partials], host.to_numpy(values))
    assert_near(values, torch.cat(partials, 1).double().sum(1), 1e-5 if dtype == torch.float32 else 1e-13)


def test_bits_do_not_depend_on_the_order():
    results = []
    for order in host.ORDERS:
        kernels.set_order(order, seed=3)
        u, bias, head, target, target_inverse, pixel_weight = stage_inputs(torch.float32, 512, 2, 11)
        *_, slope, partial = run_stage(u, bias, head, target, target_inverse, pixel_weight)
        values = unset((2,), torch.float32)
        kernels.perceptual_sum([host.to_numpy(partial)], host.to_numpy(values))
        results.append(torch.cat([slope.flatten(), partial.flatten(), values]))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_partial_sums_are_as_many_as_the_fake_kernel_says():
    for dtype, shape in CASES:
        with FakeTensorMode():
            u = torch.empty(2, *shape, dtype=dtype, device="cuda")
            *_, partial = perceptual._fake_stage(u, None, None, u, None, None, True)
        features = host.to_numpy(torch.empty(2, *shape[1:], shape[0], dtype=dtype))
        assert partial.shape == (2, kernels.perceptual_blocks(features))


def test_channels_that_no_kernel_takes():
    for channels in (2, 12, 1024):
        u, bias = random((1, channels, 2, 2), torch.float32, 1), random((channels,), torch.float32, 2)
        with pytest.raises(RuntimeError, match="no kernel for this number of channels"):
            h, inverse = unset((1, 2, 2, channels), torch.float32), unset((1, 2, 2), torch.float32)
            call("perceptual_stage", nhwc(u), bias, None, None, None, None, h, None, inverse, None, None)
