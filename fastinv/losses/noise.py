"""Losses on noise maps."""

import torch

from fastinv.errors import UsageError
from fastinv.losses.base import Loss
from fastinv.ops.noise import noise_regularization


class NoiseRegularizer(Loss):
    """The StyleGAN2 projector's pyramid regulariser, see ``fastinv.ops.noise_regularization``; there it weighs 1e5."""

    def __call__(self, codes: dict) -> torch.Tensor:
        """codes["noise"], layer -> map [N, 1, r, r], -> [N]. UsageError: the codes have no noise maps."""
        if not codes.get("noise"):
            raise UsageError("the noise regulariser needs noise maps in the codes: use space w+noise or noise=optimize")
        return noise_regularization(codes["noise"])
