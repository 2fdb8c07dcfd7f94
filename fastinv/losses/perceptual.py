"""Perceptual loss: distance between the feature maps of a trunk; and the choice of a perceptual distance."""

import copy
import importlib.util

import torch

from fastinv.errors import UsageError
from fastinv.losses.base import Loss, check_target, mean_per_picture, resize_mask, wide
from fastinv.losses.lpips import LPIPS, load_lpips
from fastinv.losses.pixel import log_cosh
from fastinv.losses.trunks import find_vgg16, load_trunk

DISTANCES = {"mse": torch.square, "log-cosh": log_cosh}
KINDS = ("auto", "lpips", "vgg16", "attributes")


class PerceptualLoss(Loss):
    """``sum_j lambda_j / N_j * ||M_j * (F_j(G) - F_j(I))||^2`` over a trunk's feature maps F_j of N_j scalars each.

    Abdal et al. 2019 (Image2StyleGAN), equation 2. With a mask the difference of each feature map is weighted by the
    mask at its size (Image2StyleGAN++), and besides both pictures are multiplied by the mask before the trunk:
    otherwise hidden pixels reach visible features through their receptive fields. IDInvert does only the latter.

    Args:
        target: [N, 3, R, R] in [-1, 1]; its features are computed here, once.
        trunk: images -> list of feature maps [N, C_j, H_j, W_j], see ``load_trunk``.
        layer_weights: lambda_j, one per feature map; None is 1 for each.
        mask: soft mask [N, 1, R, R] in [0, 1], or None.
        dtype: of the pictures that the trunk gets; None leaves them as they are. Distances are float32 at least.
        distance: of two features, "mse" or "log-cosh" (pbaylies' stylegan-encoder).
        mask_features: whether the differences of the feature maps are weighted by the mask, too.

    Raises:
        UsageError: target or mask have another shape, as many layer weights as feature maps are needed, or the
            distance is unknown.
    """

    per_picture = ("features", "mask", "feature_masks")

    def __init__(
        self,
        target: torch.Tensor,
        trunk,
        layer_weights=None,
        mask: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        distance: str = "mse",
        mask_features: bool = True,
    ):
        check_target("the perceptual loss", target, mask)
        if distance not in DISTANCES:
            raise UsageError(f"distance must be {' or '.join(DISTANCES)}, not {distance!r}")
        self.trunk, self.mask, self.dtype, self.distance = trunk, mask, dtype, DISTANCES[distance]
        with torch.no_grad():
            self.features = [wide(feature) for feature in trunk(self._visible(target))]
        self.layer_weights = check_layer_weights(layer_weights, len(self.features))
        self.feature_masks = None
        if mask is not None and mask_features:
            self.feature_masks = [resize_mask(mask, feature.shape[-2:]) for feature in self.features]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N]."""
        total = 0
        for index, feature in enumerate(self.trunk(self._visible(images))):
            difference = wide(feature) - self.features[index]
            if self.feature_masks is not None:
                difference = difference * self.feature_masks[index]
            total = total + self.layer_weights[index] * mean_per_picture(self.distance(difference))
        return total

    def towards(self, target: torch.Tensor) -> "PerceptualLoss":
        """The same distance to other targets, without a mask."""
        other = copy.copy(self)
        other.mask = other.feature_masks = None
        with torch.no_grad():
            other.features = [wide(feature) for feature in self.trunk(other._visible(target))]
        return other

    def _visible(self, images: torch.Tensor) -> torch.Tensor:
        return visible(images, self.mask, self.dtype)


def visible(images: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype | None) -> torch.Tensor:
    """What a trunk gets to see: the pictures times the mask."""
    images = images if mask is None else images * mask
    return images if dtype is None else images.to(dtype)


def check_layer_weights(layer_weights, count: int) -> tuple[float, ...]:
    """One factor for each feature map; None is 1 for each."""
    weights = tuple(layer_weights or [1.0] * count)
    if len(weights) != count:
        raise UsageError(f"{len(weights)} layer weights for {count} feature maps; give one for each")
    return weights


def load_perceptual(
    kind: str, target: torch.Tensor, mask: torch.Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[Loss, dict]:
    """The perceptual distance to targets, and a description of it for the result's settings.

    Args:
        kind: "lpips"; "vgg16" or "attributes" (``PerceptualLoss`` with that trunk and its default layers); or "auto":
            LPIPS where a VGG-16 file and the lpips package are here, else the attribute network.
        target: [N, 3, R, R] in [-1, 1]; larger pictures than 256 are shrunk by the trunks.
        mask: soft mask [N, 1, R, R] in [0, 1], or None.
        dtype: arithmetic of the trunk; None is that of target.

    Returns:
        (loss, {"name", ...} of ``load_lpips`` or ``load_trunk``).

    Raises:
        UsageError: unknown kind, or a target of another shape. CheckpointError: weights missing or damaged.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown perceptual distance {kind!r}; give {', '.join(KINDS)}")
    if kind == "auto":
        found = find_vgg16() is not None and importlib.util.find_spec("lpips") is not None
        kind = "lpips" if found else "attributes"
    if kind == "lpips":
        network, facts = load_lpips()
        return LPIPS(target, network, mask, dtype), facts
    trunk, facts = load_trunk(kind, device=target.device, dtype=dtype or target.dtype)
    return PerceptualLoss(target, trunk, mask=mask, dtype=dtype), facts
