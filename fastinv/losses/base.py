"""What all losses share: a target that is looked at once, an optional mask, one value per picture."""

import copy

import torch
from torch import nn
from torch.nn import functional

from fastinv.errors import UsageError


class Loss:
    """Distance of pictures to targets. A subclass prepares its targets in ``__init__`` and implements ``__call__``.

    Masks are soft weights in [0, 1], [N, 1, R, R]: 1 fits a pixel, 0 ignores it. As in Image2StyleGAN++ (Abdal et al.
    2020, equation 1) they multiply the difference and the mean stays over all scalars, masked or not.

    Attributes:
        per_picture: names of the attributes that hold one row per picture (tensors, lists of tensors, or None).
    """

    per_picture: tuple[str, ...] = ()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Loss of each picture: [N, 3, R, R] -> [N]."""
        raise NotImplementedError

    def select(self, rows: torch.Tensor) -> "Loss":
        """The same loss for some of the pictures only; rows: [M] indices."""
        chosen = copy.copy(self)
        for name in self.per_picture:
            value = getattr(self, name)
            if isinstance(value, list):
                setattr(chosen, name, [item[rows] for item in value])
            elif value is not None:
                setattr(chosen, name, value[rows])
        return chosen


def check_target(name: str, target: torch.Tensor, mask: torch.Tensor | None, smallest: int = 1) -> None:
    """A UsageError unless target is [N, 3, H, W] of at least ``smallest`` pixels a side and mask [N, 1, H, W]."""
    if target.ndim != 4 or target.shape[1] != 3 or min(target.shape[2:]) < smallest:
        raise UsageError(
            f"{name} takes pictures [N, 3, R, R] of at least {smallest}x{smallest} pixels, not {list(target.shape)}"
        )
    expected = [len(target), 1, *target.shape[2:]]
    if mask is not None and list(mask.shape) != expected:
        raise UsageError(f"{name}: a mask for pictures {list(target.shape)} is {expected}, not {list(mask.shape)}")


def mean_per_picture(values: torch.Tensor) -> torch.Tensor:
    """Mean over everything but the first axis: [N, C, ...] -> [N].

    Summed per channel first (per row, where there is one channel): torch splits a reduction to a single number over
    the threads, and then its bits depend on their count. A reduction to several numbers is not split, so one picture
    gives the same bits with any thread count.
    """
    rows = values[:, 0] if values.ndim > 3 and values.shape[1] == 1 else values
    return rows.flatten(2).sum(2).sum(1) / values.shape[1:].numel()


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask at the size of a feature map, by area: [N, 1, R, R] -> [N, 1, *size]."""
    return mask if mask.shape[-2:] == size else functional.interpolate(mask, size=size, mode="area")


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def frozen(network: nn.Module) -> nn.Module:
    """The network in eval mode and without gradients, on the same memory; the given one stays as it is."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()}
    shared |= {id(buffer): buffer for buffer in network.buffers()}
    return copy.deepcopy(network, shared).eval()
