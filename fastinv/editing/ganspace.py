"""Principal components of W (GANSpace; Härkönen et al. 2020, arXiv 2004.02546)."""

import torch

from fastinv.checkpoints import network_hash
from fastinv.editing.direction import Direction
from fastinv.editing.sefa import signed
from fastinv.errors import UsageError
from fastinv.latents import mapped_samples


@torch.no_grad()
def ganspace(
    G, count: int = 10, layers: tuple[int, int | None] = (0, None), samples: int = 20_000, seed: int = 0
) -> list[Direction]:
    """The directions along which W is widest.

    Args:
        G: the generator.
        count: of directions, at most w_dim.
        layers: style inputs that the directions act on; components do not depend on them, and GANSpace's edits name
            a component and a range.
        samples: of W. The authors take a million; the components of faces64 stay the same from some thousands on.
        seed: of the samples.

    Returns:
        Directions "ganspace-0", "ganspace-1" ..., by descending variance; a strength of 1 is one standard deviation of
        the component. Of the two signs that one whose largest coordinate is positive.

    Raises:
        UsageError: count out of range, or no more samples than w_dim.
    """
    if not 1 <= count <= G.w_dim:
        raise UsageError(f"the number of directions must be from 1 to {G.w_dim}, not {count}")
    if samples <= G.w_dim:
        raise UsageError(f"the components of {G.w_dim} dimensions need more samples than {samples}")
    variances, axes = torch.linalg.eigh(torch.cov(mapped_samples(G, samples, seed).T, correction=0))
    variances, units = variances.flip(0).clamp_min(0), signed(axes.flip(1).T)
    shares, deviations, sha256 = variances / variances.sum(), variances.sqrt(), network_hash(G)
    return [
        Direction(
            f"ganspace-{index}", "w", (units[index] * deviations[index]).float(), layers, 2.0, "ganspace", sha256,
            {"variance share": float(shares[index]), "standard deviation": float(deviations[index])},
        )
        for index in range(count)
    ]  # fmt: skip
