"""Style loss: which features occur together, wherever they are."""

import torch

from fastinv.errors import UsageError
from fastinv.losses.base import Loss, check_target, mean_per_picture, resize_mask, wide
from fastinv.losses.perceptual import check_layer_weights, visible
from fastinv.losses.trunks import find_vgg16, load_trunk

STYLE_LAYERS = ("conv3_3",)  # of VGG-16, in Image2StyleGAN++


class StyleLoss(Loss):
    """``sum_j lambda_j mean (Gram_j(G) - Gram_j(S))^2``, mean over the C_j x C_j entries of the Gram matrices.

    Gatys, Ecker, Bethge 2016 without their factor 1/4, as the style term of Image2StyleGAN++ (Abdal et al. 2020) under
    a mask: ``Gram = sum_p M_p F_p F_p^T / sum_p M_p`` over the pixels p of a feature map, M the mask at its size. Both
    pictures are multiplied by their masks before the trunk, as in ``PerceptualLoss``.

    Args:
        target: [N, 3, R, R] in [-1, 1], the pictures with the style; they may be of another size than the images.
        trunk: images -> list of feature maps [N, C_j, H_j, W_j], see ``load_trunk``.
        mask: soft mask [N, 1, R, R] in [0, 1] of the images, or None.
        target_mask: likewise of the target, as large as it; None is the same as ``mask``.
        layer_weights: lambda_j, one per feature map; None is 1 for each.
        dtype: of the pictures that the trunk gets; None leaves them as they are. Gram matrices are float32 at least.

    Raises:
        UsageError: target or its mask have another shape, or as many layer weights as feature maps are needed.
    """

    per_picture = ("grams", "mask")

    def __init__(
        self,
        target: torch.Tensor,
        trunk,
        mask: torch.Tensor | None = None,
        target_mask: torch.Tensor | None = None,
        layer_weights=None,
        dtype: torch.dtype | None = None,
    ):
        target_mask = mask if target_mask is None else target_mask
        check_target("the style loss", target, target_mask)
        if mask is not None and (mask.ndim != 4 or mask.shape[:2] != (len(target), 1)):
            raise UsageError(f"the style loss takes a mask [{len(target)}, 1, R, R], not {list(mask.shape)}")
        self.trunk, self.mask, self.dtype = trunk, mask, dtype
        with torch.no_grad():
            self.grams = self._grams(target, target_mask)
        self.layer_weights = check_layer_weights(layer_weights, len(self.grams))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N]."""
        grams = self._grams(images, self.mask)
        terms = zip(grams, self.grams, self.layer_weights, strict=True)
        return sum(weight * mean_per_picture((found - wanted).square()) for found, wanted, weight in terms)

    def _grams(self, images: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
        features = self.trunk(visible(images, mask, self.dtype))
        return [gram(wide(x), None if mask is None else resize_mask(mask, x.shape[-2:])) for x in features]


def gram(features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean outer product of the feature vectors, weighted by a mask: [N, C, H, W], [N, 1, H, W] -> [N, C, C]; zeros
    where the mask is 0 everywhere.
    """
    vectors = features.flatten(2)
    weighted = vectors if mask is None else vectors * mask.to(features.dtype).flatten(2)
    total = weighted @ vectors.mT / vectors.shape[2]
    if mask is None:
        return total
    weight = mean_per_picture(mask.to(features.dtype))
    return total / weight.clamp(min=torch.finfo(weight.dtype).tiny).view(-1, 1, 1)


def load_style(
    kind: str,
    target: torch.Tensor,
    mask: torch.Tensor | None = None,
    target_mask: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[StyleLoss, dict]:
    """The style loss for targets, and a description of its trunk for the result's settings.

    Args:
        kind: "vgg16" (conv3_3), "attributes" (all maps of the attribute network), or "auto": VGG-16 where there is a
            local file of it.
        target, mask, target_mask: see ``StyleLoss``.
        dtype: arithmetic of the trunk; None is that of target.

    Raises:
        UsageError: unknown kind, or a target of another shape. CheckpointError: weights missing or damaged.
    """
    if kind not in ("auto", "vgg16", "attributes"):
        raise UsageError(f"unknown trunk {kind!r} of the style loss; give auto, vgg16, attributes")
    if kind == "auto":
        kind = "attributes" if find_vgg16() is None else "vgg16"
    layers = STYLE_LAYERS if kind == "vgg16" else None
    trunk, facts = load_trunk(kind, layers, device=target.device, dtype=dtype or target.dtype)
    return StyleLoss(target, trunk, mask, target_mask, dtype=dtype), facts
