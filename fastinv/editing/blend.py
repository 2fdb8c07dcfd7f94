"""Local edits: what an edit changes under a mask, and the picture as it was elsewhere, by a blend in feature space.

The synthesis runs twice, with the codes as they were (x_o) and with the edited ones (x_e), and after every block the
feature maps and the pictures of the edited run become ``m x_e + (1 - m) x_o``, m the mask at their size. So the edit
comes from all layers and is fitted into its surroundings by those that follow, and the last blend, of the pictures,
leaves what is outside the mask as it was, exactly.
"""

import torch

from fastinv.editing.codes import codes_of, rows
from fastinv.errors import UsageError
from fastinv.inversion.image2stylegan_plus_plus import blurred
from fastinv.inversion.spaces import nested
from fastinv.inversion.task import check_masks, whole_number
from fastinv.inversion.weights import has_weights, tuned_generator
from fastinv.losses import resize_mask


@torch.no_grad()
def blend(G, codes, edited, mask: torch.Tensor, soften: float = 0.0, noise: str = "const") -> torch.Tensor:
    """Pictures [K, 3, R, R] of an edit that is done only under a mask.

    Args:
        G: a StyleGAN2 generator of the skip architecture.
        codes: of the picture before the edit, or of K pictures, see ``codes_of``.
        edited: the codes after it, of K variants.
        mask: in [0, 1], [R, R], [1, 1, R, R] or [K, 1, R, R]: 1 is edited, 0 stays; it may be 0 everywhere.
        soften: standard deviation, in pixels of the picture, of a Gaussian that softens the edge of the mask.
        noise: mode of the noise maps that the codes do not hold.

    Raises:
        UsageError: a generator of another kind, or a shape or value that does not fit.
    """
    check_blend(G)
    codes, edited = codes_of(codes, G), codes_of(edited, G)
    count = len(edited["w_plus"])
    if len(codes["w_plus"]) not in (1, count):
        raise UsageError(f"codes of {len(codes['w_plus'])} pictures, edited ones of {count}; give as many, or one")
    if not 0 <= soften < G.resolution:
        raise UsageError(f"soften must be from 0 to below the resolution, {G.resolution} pixels, not {soften}")
    mask = blurred(checked_mask(mask, count, G.resolution), soften).to(G.w_avg)
    codes = {name: value.expand(count, *value.shape[1:]) for name, value in codes.items()}
    if not has_weights(codes):
        return _blended(G, codes, edited, mask, noise)
    pictures = []
    for row in range(count):  # each has a generator of its own
        tuned = tuned_generator(G, edited, row)
        pictures.append(_blended(tuned, rows(codes, row), rows(edited, row), mask[row : row + 1], noise))
    return torch.cat(pictures)


def check_blend(G) -> None:
    """A UsageError unless G is a generator that local edits work with."""
    kind = type(G).__name__
    if not hasattr(G, "features"):
        raise UsageError(f"a local edit (a mask) needs a StyleGAN2 generator; a {kind} has no features to blend")
    if G.synthesis.architecture != "skip":
        raise UsageError(
            f"a local edit (a mask) needs the skip architecture; this {kind} is {G.synthesis.architecture!r}"
        )


def checked_mask(mask, count: int, resolution: int) -> torch.Tensor:
    """A mask as [count, 1, R, R] in [0, 1]; unlike those of losses it may be empty."""
    if isinstance(mask, torch.Tensor) and mask.numel() and not mask.any():
        return check_masks(torch.ones_like(mask), count, resolution) * 0
    return check_masks(mask, count, resolution)


def box(resolution: int, center: tuple[float, float], size: float) -> torch.Tensor:
    """A mask [R, R]: 1 in the square of ``size`` pixels a side round ``center`` (x to the right, y down), 0 elsewhere.

    Raises:
        UsageError: no pixel is in it.
    """
    x, y = center
    at = torch.arange(whole_number("resolution", resolution, least=1)) + 0.5  # the centres of the pixels
    inside = [(at > middle - size / 2) & (at < middle + size / 2) for middle in (y, x)]
    mask = (inside[0][:, None] & inside[1]).float()
    if not mask.any():
        raise UsageError(
            f"the square of {size:g} pixels round {x:g},{y:g} has no pixel of the picture, {resolution} x {resolution}"
        )
    return mask


def _blended(G, codes: dict, edited: dict, mask: torch.Tensor, noise: str) -> torch.Tensor:
    """``blend`` of codes with as many rows each, by one generator."""
    runs = [nested({name: value.to(G.w_avg) for name, value in given.items()}) for given in (codes, edited)]
    states: list = [_features(run) for run in runs]
    for resolution in G.synthesis.resolutions:
        for index, run in enumerate(runs):
            if states[index] is None or states[index][0].shape[-1] < resolution:
                code = run["styles"] if "styles" in run else run["w_plus"]
                states[index] = G.features(code, resolution, run.get("noise") or noise, states[index])
        if all(state[0].shape[-1] == resolution for state in states):
            small = resize_mask(mask, (resolution, resolution))
            states[1] = tuple(torch.lerp(old, new, small.to(new)) for old, new in zip(*states, strict=True))
    return states[1][1].to(mask)


def _features(codes: dict) -> tuple[torch.Tensor, torch.Tensor] | None:
    return (codes["features"], codes["picture"]) if "features" in codes else None
