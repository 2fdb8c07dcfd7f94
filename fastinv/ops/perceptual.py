"""What LPIPS does around its convolutions: the trunk's input, the end of each stage, and their gradients.

A stage is what lies between two poolings of VGG-16. Its last convolution is followed by bias, ReLU, the distance of the
features to those of a target, and the pooling, all in one pass over memory; the backward is one pass too. Tensors of
features are channels_last. These ops are steps of one differentiable function (``fastinv.losses.lpips``), so they have
no autograd of their own.

float16: gradients of single features are far below float16's smallest number (a distance is a mean over thousands of
pixels), so ``perceptual_stage_backward`` multiplies its share by a power of two and ``perceptual_input_backward``
divides by the same one, see ``loss_scale``.
"""

import torch
from torch.nn import functional

from . import _dispatch

EPSILON = 1e-10  # added to the length of a feature vector, as in the lpips package
LOSS_SCALE = 2.0**20  # of a distance whose gradient is 1; float16 only
THREADS = 128  # of a block of the kernels, which decides the number of partial sums
MOST_PARTIALS = 8  # tensors that perceptual_sum takes


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, norms and weights beside features of a dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def loss_scale(grad_value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The power of two that carries the gradients of float16 features: ``LOSS_SCALE / 2^floor(log2 |grad_value|)``.

    It is found from the exponent's bits, so it is exact. Gradients below 2^-100, infinite and NaN ones count as 1; the
    other dtypes have the scale 1.

    Args:
        grad_value: [N], float32 or float64: gradients of the distances.
        dtype: of the features.
    """
    if dtype != torch.float16:
        return torch.ones_like(grad_value)
    exponent_bits = grad_value.float().contiguous().view(torch.int32) & 0x7F800000
    odd = (exponent_bits < 27 << 23) | (exponent_bits == 0x7F800000)
    power = torch.where(odd, 0x3F800000, exponent_bits).view(torch.float32)
    return LOSS_SCALE / power


def perceptual_input(
    images: torch.Tensor,
    scale: tuple[float, float, float],
    offset: tuple[float, float, float],
    size: tuple[int, int],
    channels: int = 3,
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """``scale[c] * area(images)[:, c] + offset[c]``: the input of a trunk, in one pass.

    area is the mean over the window of each output pixel, rows floor(i H / h) to ceil((i + 1) H / h).

    Args:
        images: [N, 3, H, W], any strides.
        scale, offset: one number per channel.
        size: (h, w), at most (H, W).
        channels: of the result; those beyond the third are zero.
        dtype: of the result; None is that of images.
        impl: "auto", "native" (an error says why if it cannot) or "ref".

    Returns:
        [N, channels, h, w], channels_last.

    Raises:
        ValueError: images are not [N, 3, H, W], or size is larger than they are.
    """
    dtype = dtype or images.dtype
    _check_input(images.shape, size, channels)
    if _dispatch.choose("perceptual_input", impl, images, _input_check(images.dtype, dtype, images.device)) == "ref":
        return perceptual_input_ref(images, scale, offset, size, channels, dtype)
    return torch.ops.fastinv.perceptual_input(images, scale, offset, *size, channels, dtype)


def perceptual_input_ref(images, scale, offset, size, channels=3, dtype=None) -> torch.Tensor:
    """`perceptual_input` in plain PyTorch."""
    dtype = dtype or images.dtype
    _check_input(images.shape, size, channels)
    x = images.to(torch.promote_types(compute_dtype(images.dtype), compute_dtype(dtype)))
    if tuple(size) != tuple(images.shape[2:]):
        x = functional.interpolate(x, size=size, mode="area")
    x = x * x.new_tensor(scale).view(3, 1, 1) + x.new_tensor(offset).view(3, 1, 1)
    x = functional.pad(x, [0, 0, 0, 0, 0, channels - 3])
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def perceptual_input_backward(
    grad: torch.Tensor,
    grad_value: torch.Tensor,
    scale: tuple[float, float, float],
    size: tuple[int, int],
    dtype: torch.dtype | None = None,
    impl: str = "auto",
) -> torch.Tensor:
    """The gradient of the images from that of ``perceptual_input``, divided by ``loss_scale``.

    Args:
        grad: [N, channels, h, w].
        grad_value: [N] as given to ``perceptual_stage_backward``.
        scale: as in the forward.
        size: (H, W) of the images.
        dtype: of the images; None is that of grad.
        impl: "auto", "native" or "ref".

    Returns:
        [N, 3, H, W], contiguous.
    """
    dtype = dtype or grad.dtype
    if _dispatch.choose("perceptual_input", impl, grad, _input_check(dtype, grad.dtype, grad.device)) == "ref":
        return perceptual_input_backward_ref(grad, grad_value, scale, size, dtype)
    return torch.ops.fastinv.perceptual_input_backward(grad, grad_value, scale, *size, dtype)


def perceptual_input_backward_ref(grad, grad_value, scale, size, dtype=None) -> torch.Tensor:
    """`perceptual_input_backward` in plain PyTorch."""
    x = grad[:, :3].to(compute_dtype(grad.dtype))
    x = x * x.new_tensor(scale).view(3, 1, 1) / loss_scale(grad_value, grad.dtype).to(x.dtype).view(-1, 1, 1, 1)
    (height, width), (rows, columns) = size, grad.shape[2:]
    if height % rows == 0 and width % columns == 0:  # one window a pixel
        x = x.repeat_interleave(height // rows, 2).repeat_interleave(width // columns, 3) / (
            height // rows * (width // columns)
        )
    else:
        x = _area_weights(height, rows, x).mT @ x @ _area_weights(width, columns, x)
    return x.to(dtype or grad.dtype).contiguous()


def _area_weights(inputs: int, outputs: int, like: torch.Tensor) -> torch.Tensor:
    """The matrix [outputs, inputs] of area averaging along one axis."""
    index = torch.arange(outputs, device=like.device)
    first, last = index * inputs // outputs, -(-(index + 1) * inputs // outputs)
    position = torch.arange(inputs, device=like.device)
    inside = (position >= first[:, None]) & (position < last[:, None])
    return inside.to(like.dtype) / (last - first)[:, None]


def _input_check(images: torch.dtype, features: torch.dtype, device: torch.device) -> tuple[bool, str]:
    fine = images == features or (images == torch.float32 and features in (torch.float16, torch.bfloat16))
    fine = fine and features in _dispatch.DTYPES.get(device.type, ())
    return fine, f"there are no kernels between images of {images} and features of {features}"


def _check_input(shape, size, channels) -> None:
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"perceptual_input: images must be [N, 3, H, W], got {list(shape)}")
    if not (1 <= size[0] <= shape[2] and 1 <= size[1] <= shape[3]):
        raise ValueError(f"perceptual_input: size must be between 1 and {tuple(shape[2:])}, got {tuple(size)}")
    if channels < 3:
        raise ValueError(f"perceptual_input: channels must be at least 3, got {channels}")


def perceptual_stage(
    u: torch.Tensor,
    bias: torch.Tensor | None,
    head: torch.Tensor | None = None,
    target: torch.Tensor | None = None,
    target_inverse: torch.Tensor | None = None,
    pixel_weight: torch.Tensor | None = None,
    pool: bool = True,
    impl: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The end of a stage: ``h = relu(u + bias)``, its 2x2 max pooling, and its distance to the target's h.

    With ``i = 1 / (|h| + 1e-10)`` over the channels of a pixel and ``d = i h - i_target h_target``, the distance is
    ``1 / (H W) * sum_pixels pixel_weight * sum_c head_c d_c^2``.

    Args:
        u: [N, C, H, W], the last convolution's output without bias.
        bias: [C], of the dtype of u; None if u is h already, which is then returned as it is.
        head: [C] weights, of ``compute_dtype``; None together with target: no distance.
        target: [N, C, H, W], the h that the target gave, dtype of u.
        target_inverse: [N, H, W], the inverse that the target gave.
        pixel_weight: [N, H, W], of ``compute_dtype``; None is 1.
        pool: whether the pooling is wanted (H and W of at least 2).
        impl: "auto", "native" or "ref".

    Returns:
        (h [N, C, H, W], pooled [N, C, H // 2, W // 2], inverse [N, H, W], slope [N, H, W], partial [N, K]): the sum of
        partial along K is the distance, K depends on the shape only; slope is what the backward needs besides. Empty:
        pooled without pool, slope and partial without target.
    """
    checks = _stage_checks(u)
    if u.device.type == "cuda":
        checks.append((bias is not None, "the CUDA kernels add a bias"))
    if _dispatch.choose("perceptual_stage", impl, u, *checks) == "ref":
        return perceptual_stage_ref(u, bias, head, target, target_inverse, pixel_weight, pool)
    results = torch.ops.fastinv.perceptual_stage(u, bias, head, target, target_inverse, pixel_weight, pool)
    return results if bias is not None else (u, *results[1:])


def perceptual_stage_ref(u, bias, head=None, target=None, target_inverse=None, pixel_weight=None, pool=True):
    """`perceptual_stage` in plain PyTorch."""
    dtype = compute_dtype(u.dtype)
    if bias is None:
        h = u
    else:
        h = (u.to(dtype) + bias.to(dtype).view(-1, 1, 1)).relu().to(u.dtype)
        h = h.contiguous(memory_format=torch.channels_last)
    pooled = functional.max_pool2d(h, 2) if pool else h.new_empty(0)
    norm = h.to(dtype).square().sum(1).sqrt()
    inverse = 1 / (norm + EPSILON)
    if target is None:
        return h, pooled, inverse, inverse.new_empty(0), inverse.new_empty(0)
    weighted, difference = _differences(h, inverse, target, target_inverse, head)
    distance = (weighted * difference).sum(1)
    if pixel_weight is not None:
        distance = distance * pixel_weight
    dot = 2 * (weighted * h.to(dtype)).sum(1)
    slope = torch.where(norm > 0, dot * inverse * inverse / norm, torch.zeros_like(norm))
    return h, pooled, inverse, slope, distance.sum(2) / distance[0].numel()


def perceptual_stage_backward(
    h: torch.Tensor,
    inverse: torch.Tensor,
    slope: torch.Tensor,
    head: torch.Tensor,
    target: torch.Tensor,
    target_inverse: torch.Tensor,
    pixel_weight: torch.Tensor | None,
    grad_value: torch.Tensor,
    grad_pooled: torch.Tensor | None,
    impl: str = "auto",
) -> torch.Tensor:
    """The gradient of u in ``perceptual_stage``, in one pass.

    ``[h > 0] * (loss_scale * grad_value / (H W) * pixel_weight * (2 head d i - h slope) + unpooled(grad_pooled))``; the
    first of several equal values in a window takes the gradient of the pooling. In float16 results beyond the largest
    finite number become that number.

    Args:
        h, inverse, slope: as ``perceptual_stage`` returned them.
        head, target, target_inverse, pixel_weight: as it was given them.
        grad_value: [N], of ``compute_dtype``: gradient of the distance.
        grad_pooled: gradient of pooled, already multiplied by ``loss_scale``; None if there is none.
        impl: "auto", "native" or "ref".

    Returns:
        [N, C, H, W], channels_last.
    """
    tensors = h, inverse, slope, head, target, target_inverse, pixel_weight, grad_value, grad_pooled
    if _dispatch.choose("perceptual_stage", impl, h, *_stage_checks(h)) == "ref":
        return perceptual_stage_backward_ref(*tensors)
    return torch.ops.fastinv.perceptual_stage_backward(*tensors)


def perceptual_stage_backward_ref(
    h, inverse, slope, head, target, target_inverse, pixel_weight, grad_value, grad_pooled
) -> torch.Tensor:
    """`perceptual_stage_backward` in plain PyTorch."""
    dtype = compute_dtype(h.dtype)
    weighted, _ = _differences(h, inverse, target, target_inverse, head)
    factor = (grad_value * loss_scale(grad_value, h.dtype)).view(-1, 1, 1) / inverse[0].numel()
    if pixel_weight is not None:
        factor = factor * pixel_weight
    grad = 2 * weighted * (inverse * factor)[:, None] - h.to(dtype) * (slope * factor)[:, None]
    if grad_pooled is not None:
        _, index = functional.max_pool2d(h.to(dtype), 2, return_indices=True)
        grad = grad + functional.max_unpool2d(grad_pooled.to(dtype), index, 2, output_size=h.shape[2:])
    grad = grad * (h > 0)
    if h.dtype == torch.float16:
        largest = torch.finfo(torch.float16).max
        grad = grad.clamp(-largest, largest)
    return grad.to(h.dtype).contiguous(memory_format=torch.channels_last)


def _differences(h, inverse, target, target_inverse, head) -> tuple[torch.Tensor, torch.Tensor]:
    """(head d, d), [N, C, H, W] each."""
    dtype = compute_dtype(h.dtype)
    difference = h.to(dtype) * inverse[:, None] - target.to(dtype) * target_inverse[:, None]
    return head.view(-1, 1, 1) * difference, difference


def _vector(dtype: torch.dtype) -> int:
    """Channels that a thread of the kernels takes at once: 16 bytes."""
    return 128 // torch.finfo(dtype).bits


def _stage_checks(u: torch.Tensor) -> list[tuple[bool, str]]:
    if u.device.type != "cuda":
        return []
    channels = u.shape[1]
    fine = channels & (channels - 1) == 0 and _vector(u.dtype) <= channels <= 512
    return [(fine, f"the kernels take powers of two up to 512 as channels, not {channels}")]


def perceptual_sum(partials: list[torch.Tensor], impl: str = "auto") -> torch.Tensor:
    """The sum over all columns of all tensors, in an order that depends on the shapes only.

    Args:
        partials: one to eight of [N, K], float32 or float64.
        impl: "auto", "native" or "ref".

    Returns:
        [N].
    """
    check = 1 <= len(partials) <= MOST_PARTIALS, f"the kernel takes 1 to {MOST_PARTIALS} tensors, not {len(partials)}"
    if _dispatch.choose("perceptual_sum", impl, partials[0], check) == "ref":
        return perceptual_sum_ref(partials)
    return torch.ops.fastinv.perceptual_sum(partials)


def perceptual_sum_ref(partials: list[torch.Tensor]) -> torch.Tensor:
    """`perceptual_sum` in plain PyTorch."""
    return torch.cat(partials, 1).sum(1)


def _empty_features(shape: list[int], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _fake_input(images, scale, offset, height, width, channels, dtype):
    return _empty_features([images.shape[0], channels, height, width], images, dtype)


def _fake_input_backward(grad, grad_value, scale, height, width, dtype):
    return grad.new_empty([grad.shape[0], 3, height, width], dtype=dtype)


def _fake_stage(u, bias, head, target, target_inverse, pixel_weight, pool):
    count, channels, height, width = u.shape
    h = u.new_empty([0]) if bias is None else _empty_features(u.shape, u, u.dtype)
    pooled = _empty_features([count, channels, height // 2, width // 2], u, u.dtype) if pool else u.new_empty([0])
    inverse = u.new_empty([count, height, width], dtype=compute_dtype(u.dtype))
    blocks = (height + 1) // 2
    if u.device.type == "cuda":
        lanes = min(32, channels // _vector(u.dtype))
        blocks *= -(-((width + 1) // 2) // (THREADS // lanes))
    with_target = target is not None
    slope = inverse.new_empty([count, height, width] if with_target else [0])
    return h, pooled, inverse, slope, inverse.new_empty([count, blocks] if with_target else [0])


def _fake_stage_backward(h, inverse, slope, head, target, target_inverse, pixel_weight, grad_value, grad_pooled):
    return _empty_features(h.shape, h, h.dtype)


def _fake_sum(partials):
    return partials[0].new_empty([partials[0].shape[0]])


if "perceptual_stage" in _dispatch.KERNELS:  # not so without the library, or with an older build of it
    torch.library.register_fake("fastinv::perceptual_input", _fake_input)
    torch.library.register_fake("fastinv::perceptual_input_backward", _fake_input_backward)
    torch.library.register_fake("fastinv::perceptual_stage", _fake_stage)
    torch.library.register_fake("fastinv::perceptual_stage_backward", _fake_stage_backward)
    torch.library.register_fake("fastinv::perceptual_sum", _fake_sum)
