"""Perceptual loss: distance between the feature maps of a trunk."""

import torch

from fastinv.errors import UsageError
from fastinv.losses.base import Loss, mean_per_picture, resize_mask


class PerceptualLoss(Loss):
    """``sum_j lambda_j / N_j * ||M_j * (F_j(G) - F_j(I))||^2`` over a trunk's feature maps F_j of N_j scalars each.

    Abdal et al. 2019 (Image2StyleGAN), equation 2. With a mask the difference of each feature map is weighted by the
    mask at its size (Image2StyleGAN++), and besides both pictures are multiplied by the mask before the trunk:
    otherwise hidden pixels reach visible features through their receptive fields.

    Args:
        target: [N, 3, R, R] in [-1, 1]; its features are computed here, once.
        trunk: images -> list of feature maps [N, C_j, H_j, W_j], see ``load_trunk``.
        layer_weights: lambda_j, one per feature map; None is 1 for each.
        mask: soft mask [N, 1, R, R] in [0, 1], or None.
    """

    per_picture = ("features", "mask", "feature_masks")

    def __init__(self, target: torch.Tensor, trunk, layer_weights=None, mask: torch.Tensor | None = None):
        self.trunk, self.mask = trunk, mask
        with torch.no_grad():
            self.features = list(trunk(self._visible(target)))
        self.layer_weights = tuple(layer_weights or [1.0] * len(self.features))
        if len(self.layer_weights) != len(self.features):
            raise UsageError(
                f"{len(self.layer_weights)} layer weights for {len(self.features)} feature maps; give one for each"
            )
        self.feature_masks = None
        if mask is not None:
            self.feature_masks = [resize_mask(mask, feature.shape[-2:]) for feature in self.features]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N]."""
        total = 0
        for index, feature in enumerate(self.trunk(self._visible(images))):
            difference = feature - self.features[index]
            if self.feature_masks is not None:
                difference = difference * self.feature_masks[index]
            total = total + self.layer_weights[index] * mean_per_picture(difference.square())
        return total

    def _visible(self, images: torch.Tensor) -> torch.Tensor:
        return images if self.mask is None else images * self.mask
