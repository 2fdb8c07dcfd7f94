"""Closed-form factorisation of the style affines (SeFa; Shen and Zhou 2021, arXiv 2007.06600)."""

import torch

from fastinv.checkpoints import network_hash
from fastinv.editing.direction import Direction
from fastinv.errors import UsageError
from fastinv.latents import mapped_samples

SAMPLES = 10_000  # for the spread of W along a direction


def style_weights(G, layers: tuple[int, int | None] = (0, None)) -> torch.Tensor:
    """The weights [channels, w_dim], float64, of the style affines of some style inputs, one below the other.

    Those of the convolutions; of StyleGAN2 also that of the last toRGB, which has the last input to itself.

    Raises:
        UsageError: the generator lacks such layers.
    """
    first, end = layers
    end = G.num_ws if end is None else end
    if not 0 <= first < end <= G.num_ws:
        raise UsageError(f"layers must be (first, end) with 0 <= first < end <= {G.num_ws}, not {layers}")
    names = [f"b{r}.{conv}" for r in G.synthesis.resolutions for conv in ("conv0", "conv1")]
    if hasattr(G, "style_layers"):  # StyleGAN2: the first block has one convolution
        names = [*names[1:], f"b{G.resolution}.torgb"]
    affines = [G.synthesis.get_submodule(name).affine for name in names[first:end]]
    return torch.cat([affine.weight.detach().double() * affine.weight_gain for affine in affines])


@torch.no_grad()
def sefa(G, count: int = 10, layers: tuple[int, int | None] = (0, None), normalise: bool = True) -> list[Direction]:
    """The directions of W that change the styles most: eigenvectors of ``A^T A``, by descending eigenvalue.

    Args:
        G: a StyleGAN2 or StyleGAN generator.
        count: of directions, at most w_dim.
        layers: style inputs whose affines are looked at, and that the directions act on.
        normalise: every channel's weight has length 1 first, as in the authors' code.

    Returns:
        Directions "sefa-0", "sefa-1" ... A strength of 1 is one standard deviation of W along it; of the two signs that
        one whose largest coordinate is positive.

    Raises:
        UsageError: count or layers out of range.
    """
    if not 1 <= count <= G.w_dim:
        raise UsageError(f"the number of directions must be from 1 to {G.w_dim}, not {count}")
    weights = style_weights(G, layers)
    if normalise:
        weights = weights / weights.norm(dim=1, keepdim=True).clamp_min(1e-12)
    values, vectors = torch.linalg.eigh(weights.T @ weights)
    units = signed(vectors.flip(1)[:, :count].T)
    deviations = (mapped_samples(G, SAMPLES).to(units) @ units.T).std(0, correction=0)
    shares, sha256 = values.flip(0) / values.sum(), network_hash(G)
    return [
        Direction(
            f"sefa-{index}", "w", (unit * deviation).float(), layers, 3.0, "sefa", sha256,
            {"eigenvalue share": float(shares[index]), "standard deviation": float(deviation)},
        )
        for index, (unit, deviation) in enumerate(zip(units, deviations, strict=True))
    ]  # fmt: skip


def signed(vectors: torch.Tensor) -> torch.Tensor:
    """Rows [n, d] with the sign by which the coordinate of the largest absolute value is positive."""
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -vectors, vectors)
