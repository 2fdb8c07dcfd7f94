"""What all losses share: a target that is looked at once, an optional mask, one value per picture."""

import copy

import torch
from torch.nn import functional


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


def mean_per_picture(values: torch.Tensor) -> torch.Tensor:
    """Mean over everything but the first axis: [N, C, ...] -> [N].

    Summed per channel first: torch splits a reduction to a single number over the threads, and then its bits depend on
    their count. A reduction to several numbers is not split, so one picture gives the same bits with any thread count.
    """
    return values.flatten(2).sum(2).sum(1) / values[0].numel()


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A mask at the size of a feature map, by area: [N, 1, R, R] -> [N, 1, *size]."""
    return mask if mask.shape[-2:] == size else functional.interpolate(mask, size=size, mode="area")
