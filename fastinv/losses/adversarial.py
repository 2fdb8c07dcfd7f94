"""What a discriminator thinks of a picture."""

import torch
from torch import nn
from torch.nn import functional

from fastinv.errors import UsageError
from fastinv.losses.base import Loss, frozen
from fastinv.models.discriminator import Discriminator, DiscriminatorEpilogue

CHANNELS = 16  # of the pictures that D's 1x1 convolutions get on a CPU, zeros after the first three


class DiscriminatorLoss(Loss):
    """``softplus(-D(G))``, the generator's non-saturating loss (Goodfellow et al. 2014), of each picture by itself.

    The minibatch standard deviation of a StyleGAN2 discriminator would mix the pictures of a batch; here every picture
    is a group of its own, as if D saw one at a time. There is no mask: a picture should look real as a whole, most of
    all where nothing is known of it.

    Args:
        D: the discriminator; it is not changed.
        c: [N, c_dim] labels of a conditional discriminator.

    Raises:
        UsageError: D is something else, or labels are missing or of another shape.
    """

    per_picture = ("c",)

    def __init__(self, D: Discriminator, c: torch.Tensor | None = None):
        if not isinstance(D, Discriminator):
            raise UsageError(f"DiscriminatorLoss takes a fastinv Discriminator, not a {type(D).__name__}")
        if D.c_dim and (c is None or c.ndim != 2 or c.shape[1] != D.c_dim):
            found = "none were given" if c is None else f"not {list(c.shape)}"
            raise UsageError(f"the discriminator is conditional: c must be labels [N, {D.c_dim}], {found}")
        self.D, self.c = frozen(D), c
        for module in self.D.modules():
            if isinstance(module, DiscriminatorEpilogue):
                module.group_size = 1
            if D.b4.fc.weight.device.type == "cpu" and hasattr(module, "fromrgb"):
                _pad_input(module.fromrgb)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] in [-1, 1], R the discriminator's, -> [N]. UsageError: another size."""
        return functional.softplus(-self.D(images, self.c)).squeeze(1)


def _pad_input(convolution: nn.Module) -> None:
    """The same convolution of pictures padded with zeros to ``CHANNELS``. oneDNN chooses the kernel for the gradient of
    three channels by the number of threads, and with it the bits; that for whole registers is always the same.
    """
    padding = [0] * 5 + [CHANNELS - convolution.weight.shape[1]]
    convolution.weight = nn.Parameter(functional.pad(convolution.weight, padding), requires_grad=False)
    convolution.register_forward_pre_hook(lambda _, inputs: (functional.pad(inputs[0], padding),))
