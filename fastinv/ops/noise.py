"""Noise maps as variables of an inversion: the regulariser and the normalisation of the StyleGAN2 projector.

Karras et al. 2020, appendix D: noise that is optimised must not carry the picture, so neighbouring values of a map, and
of its averages at all coarser resolutions, are kept uncorrelated. With x_0 a map and x_l the average of x_{l-1} over
squares of 2x2, for all levels down to the first that is at most 8x8 (a map of 8x8 or less has x_0 alone)::

    R(x) = sum_l  mean(x_l * roll_x(x_l, 1))^2 + mean(x_l * roll_y(x_l, 1))^2

where roll shifts by one pixel, the borders joined. As in the public projectors the averages are not scaled; they weight
R with 1e5. Its gradient needs nothing but the levels and their means::

    dR/dx_0 = sum_l 4^-l up_l(2 / P_l * (mean_x,l * (left + right) + mean_y,l * (above + below)))    P_l: pixels of x_l
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..errors import UsageError
from . import _dispatch

SMALLEST = 8  # the regulariser averages while the map is larger than that
MOST_MAPS, LARGEST = 24, 4096  # of the CUDA kernels


def _maps(op: str, maps) -> list[torch.Tensor]:
    """The maps as a list, checked."""
    maps = list(maps.values() if isinstance(maps, dict) else maps)
    if not maps:
        raise UsageError(f"{op}: maps is empty; give at least one noise map")
    for map in maps:
        if not isinstance(map, torch.Tensor) or map.ndim != 4 or map.shape[1] != 1 or map.shape[2] != map.shape[3]:
            shape = list(map.shape) if isinstance(map, torch.Tensor) else type(map).__name__
            raise UsageError(f"{op}: maps must be [N or 1, 1, R, R], got {shape}")
        if map.shape[2] == 0:
            raise UsageError(f"{op}: maps must have pixels, got {list(map.shape)}")
        if not map.is_floating_point() or map.dtype != maps[0].dtype or map.device != maps[0].device:
            raise UsageError(
                f"{op}: maps must be floating point, of one dtype and on one device; got {map.dtype} on {map.device} "
                f"beside {maps[0].dtype} on {maps[0].device}"
            )
    return maps


def _batch(op: str, maps: list[torch.Tensor]) -> int:
    sizes = {len(map) for map in maps} - {1}
    if len(sizes) > 1:
        raise UsageError(f"{op}: maps must have N samples or 1, got maps of {' and '.join(map(str, sorted(sizes)))}")
    return sizes.pop() if sizes else 1


def _compute(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    return [map.to(torch.promote_types(map.dtype, torch.float32)) for map in maps]


def _choose(op: str, impl: str, maps: list[torch.Tensor], *checks) -> str:
    largest = max(map.shape[2] for map in maps)
    return _dispatch.choose(
        op,
        impl,
        maps[0],
        (len(maps) <= MOST_MAPS, f"the kernels take {MOST_MAPS} maps, not {len(maps)}"),
        (largest <= LARGEST, f"the kernels take maps of {LARGEST}x{LARGEST}, not {largest}x{largest}"),
        *checks,
    )


def noise_regularization_ref(maps):
    """`noise_regularization` in plain torch; differentiable any number of times."""
    maps = _compute(_maps("noise_regularization", maps))
    total = maps[0].new_zeros([_batch("noise_regularization", maps)])
    for x in maps:
        while True:
            for axis in (3, 2):
                total = total + (x * x.roll(1, axis)).mean((1, 2, 3)).square()
            if x.shape[2] <= SMALLEST:
                break
            x = F.avg_pool2d(x, 2)
    return total


def noise_regularization(maps, impl="auto"):
    """How much neighbours in noise maps, and in their averages, resemble each other; the formula is at the head.

    Args:
        maps: list or dict of [N or 1, 1, R, R]; a map of one sample counts for all. Odd sizes lose their last row and
            column in the average.
        impl: "auto", "native" (an error says why if it cannot; the gradient is then of the first order only) or "ref".

    Returns:
        [N], the sums over the maps, in float32 for half precision.
    """
    maps = _compute(_maps("noise_regularization", maps))
    _batch("noise_regularization", maps)
    if _choose("noise_regularization", impl, maps, (len(maps[0]) > 0, "the batch is empty")) == "ref":
        return noise_regularization_ref(maps)
    return torch.ops.fastinv.noise_regularization(maps)[0]


def normalize_noise__ref(maps):
    """`normalize_noise_` in plain torch."""
    maps = _maps("normalize_noise_", maps)
    with torch.no_grad():
        for map in maps:
            first = map[:, :, :1, :1].double()
            centred = map.double() - first
            mean = centred.mean((1, 2, 3), keepdim=True)
            centred -= mean
            square = centred.square().mean((1, 2, 3), keepdim=True)
            is_constant = square <= (4 * torch.finfo(map.dtype).eps * (first + mean)).square()
            map.copy_(centred * torch.where(is_constant, 0.0, square.rsqrt()))
    return maps


def normalize_noise_(maps, impl="auto"):
    """Gives every sample of every map mean 0 and mean square 1, in place and without a gradient.

    A sample that is constant, to four units in the last place, becomes zeros. Meant for after each step of an
    optimiser.

    Args:
        maps: list or dict of [N, 1, R, R], also leaves that need a gradient.

    Returns:
        The maps, as a list.
    """
    maps = _maps("normalize_noise_", maps)
    dense = all(map.is_contiguous() for map in maps)
    if _choose("normalize_noise_", impl, maps, (dense, "a map is not contiguous")) == "ref":
        return normalize_noise__ref(maps)
    with torch.no_grad():
        compute = _compute([map.detach() for map in maps])
        torch.ops.fastinv.normalize_noise_(compute)
        if compute[0].dtype != maps[0].dtype:
            torch._foreach_copy_(maps, compute)
        else:
            torch.autograd.graph.increment_version(maps)
    return maps


def _level_sizes(size: int) -> list[int]:
    """Sizes of the levels; twin of noise_layout in csrc/cuda/noise.cu."""
    sizes = [size]
    while sizes[-1] > SMALLEST:
        sizes.append(sizes[-1] // 2)
    return sizes


def scratch_sizes(maps) -> tuple[int, int]:
    """Rows of `means` and elements of `pyramid`, which the native op keeps for its backward pass."""
    means = sum(len(map) * len(_level_sizes(map.shape[2])) for map in maps)
    pyramid = sum(len(map) * sum(-(-(s * s) // 4) * 4 for s in _level_sizes(map.shape[2])[1:]) for map in maps)
    return means, pyramid


def _fake(maps):
    means, pyramid = scratch_sizes(maps)
    x = maps[0]
    return (
        x.new_empty([_batch("noise_regularization", maps)]), x.new_empty([means, 2], dtype=torch.float64),
        x.new_empty([pyramid]),
    )  # fmt: skip


def _setup_context(ctx, inputs, output):
    (maps,) = inputs
    _, means, pyramid = output
    ctx.mark_non_differentiable(means, pyramid)
    ctx.save_for_backward(means, pyramid, *maps)


def _backward(ctx, dvalue, dmeans, dpyramid):
    means, pyramid, *maps = ctx.saved_tensors
    return (torch.ops.fastinv.noise_regularization_backward(dvalue, maps, means, pyramid),)


def _no_second_derivative(ctx, *gradients):
    raise NotImplementedError("noise_regularization: the native op has no second derivative; use impl='ref'")


if "noise_regularization" in _dispatch.KERNELS:
    torch.library.register_fake("fastinv::noise_regularization", _fake)
    torch.library.register_fake(
        "fastinv::noise_regularization_backward",
        lambda dvalue, maps, means, pyramid: [
            torch.empty_like(map, memory_format=torch.contiguous_format) for map in maps
        ],
    )
    torch.library.register_fake("fastinv::normalize_noise_", lambda maps: None)
    torch.library.register_autograd("fastinv::noise_regularization", _backward, setup_context=_setup_context)
    torch.library.register_autograd("fastinv::noise_regularization_backward", _no_second_derivative)
