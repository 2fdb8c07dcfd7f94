"""What an encoder's trainer measures on reconstructions."""

import torch
import torch.nn.functional as F

from fastinv.losses import PerceptualLoss, PixelLoss, load_trunk, mean_per_picture
from fastinv.models.attributes import AttributeNetwork, load_attribute_network

# Rows and columns of a 256-pixel portrait that hold the face, pSp's crop.
FACE_ROWS, FACE_COLUMNS = (35, 223), (32, 220)


class PictureLosses:
    """Weighted sum of distances of reconstructions to targets, pSp's (Richardson et al. 2021, arXiv 2008.00951).

    Terms, each computed only where its weight is above 0:
        pixel: mean squared error.
        perceptual: `fastinv.losses.PerceptualLoss` over VGG-16 where its file is here, else over the attribute network.
        identity: 1 - cosine of the attribute network's embeddings.
        crop_pixel, crop_perceptual: the first two on the face alone.

    Args:
        weights: {term: weight}; unknown terms are a KeyError.
        device: where pictures are.
        dtype: arithmetic of the feature networks.
    """

    TERMS = ("pixel", "perceptual", "identity", "crop_pixel", "crop_perceptual")

    def __init__(self, weights: dict[str, float], device: torch.device | str = "cpu", dtype=torch.float32):
        unknown = set(weights) - set(self.TERMS)
        if unknown:
            raise KeyError(unknown.pop())
        self.weights, self.dtype = {name: weight for name, weight in weights.items() if weight > 0}, dtype
        trunk, self.facts = load_trunk("auto", device=device, dtype=dtype)
        self.trunk = _Trunk(trunk, dtype)
        self.attributes = load_attribute_network(device=device, dtype=dtype)

    def __call__(self, images: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Unweighted terms: two [N, 3, R, R] in [-1, 1] -> {term: [N]}, differentiable in ``images``."""
        values = {}
        maps = target_maps = None
        if "pixel" in self.weights:
            values["pixel"] = PixelLoss(targets)(images)
        if "perceptual" in self.weights:
            loss = PerceptualLoss(targets, self.trunk)
            target_maps = self.trunk.maps
            values["perceptual"] = loss(images)
            maps = self.trunk.maps
        if "identity" in self.weights:
            with torch.no_grad():
                wanted = self._embedding(targets, target_maps)
            values["identity"] = 1 - F.cosine_similarity(self._embedding(images, maps), wanted, dim=1)
        if "crop_pixel" in self.weights:
            values["crop_pixel"] = PixelLoss(face(targets))(face(images))
        if "crop_perceptual" in self.weights:
            values["crop_perceptual"] = PerceptualLoss(face(targets), self.trunk)(face(images))
        return values

    def total(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum [N] of terms."""
        return sum(self.weights[name] * value for name, value in values.items())

    def _embedding(self, images: torch.Tensor, maps: list[torch.Tensor] | None) -> torch.Tensor:
        """[N, d], from the perceptual loss's feature maps where they are the same network's."""
        if maps is None or self.facts["name"] != "attributes":
            return self.attributes.embedding(_fitting(images, self.attributes.resolution).to(self.dtype)).float()
        return F.silu(self.attributes.hidden(maps[-1].flatten(1))).float()


class _Trunk:
    """A trunk of another precision, whose last feature maps are kept."""

    def __init__(self, trunk, dtype: torch.dtype):
        self.trunk, self.dtype, self.maps = trunk, dtype, None

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        if self.trunk.name == "attributes":
            images = _fitting(images, AttributeNetwork.resolution)
        self.maps = self.trunk(images.to(self.dtype))
        return self.maps


def _fitting(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Pictures of a size that the attribute network takes in every precision; as it would resize them itself."""
    if images.shape[-1] % resolution == 0:
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", align_corners=False, antialias=True)


def face(images: torch.Tensor) -> torch.Tensor:
    """The part of aligned portraits [N, 3, R, R] that holds the face, about 188 / 256 of each side."""
    size = images.shape[-1]
    (top, bottom), (left, right) = ([round(edge * size / 256) for edge in side] for side in (FACE_ROWS, FACE_COLUMNS))
    return images[:, :, top:bottom, left:right]


def code_norm(w_plus: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of codes relative to the mean latent: [N, num_ws, w_dim], [num_ws, w_dim] -> [N] (pSp's w-norm).

    A code at the mean has a gradient of zero, not one that is not a number.
    """
    return (mean_per_picture((w_plus - mean).square()) * w_plus[0].numel()).clamp_min(1e-12).sqrt()
