"""The edit: codes, moved along a direction."""

from collections.abc import Sequence

import torch

from fastinv.editing.codes import check_generator, codes_of, edited
from fastinv.editing.direction import Direction
from fastinv.errors import UsageError
from fastinv.models.entries import style_inputs


@torch.no_grad()
def edit(
    G, codes, direction: Direction, strength: float | Sequence[float], force: bool = False, noise: str = "const"
) -> dict[str, torch.Tensor]:
    """Move codes along a direction.

    A direction of W or W+ is added to the style vectors of its layers; style channels and features that the codes hold
    move with them (see ``fastinv.editing.codes.edited``). One of S is added to the style channels of its layers, which
    the affine maps make of w_plus where the codes have none; w_plus moves by the smallest step that changes the styles
    so, as nearly as it can. Noise maps and tuned weights stay as they are; z is dropped.

    Args:
        G: the generator.
        codes: of N pictures: w_plus [N, num_ws, w_dim], a dict with it, an InversionResult or a Source; see
            ``fastinv.editing.codes.codes_of``.
        direction: what to add.
        strength: how much of it, in multiples: 1 is one standard deviation of the attribute or component, where that is
            known. A number, for all pictures; or K numbers, for K variants of one picture (N = 1).
        force: accept a direction that was made for another generator, by its hash.
        noise: mode of the noise maps that the codes do not hold.

    Returns:
        The codes, as a dict, of N pictures or of K variants.

    Raises:
        UsageError: codes or a direction that do not fit G, one for another generator, a strength that is not finite, or
            several for several pictures.
    """
    check_generator(direction.generator_sha256, G, f"direction {direction.name!r}", force)
    direction = direction.for_generator(G)
    codes = codes_of(codes, G)
    one = isinstance(strength, int | float)
    amounts = torch.tensor([strength] if one else list(strength), dtype=torch.float64)
    if not len(amounts) or not amounts.isfinite().all():
        raise UsageError(f"strength must be finite, or several such numbers, not {strength}")
    w_plus = codes["w_plus"]
    if not one and len(w_plus) != 1:
        raise UsageError(f"several strengths are for one picture; these are the codes of {len(w_plus)}")
    first, end = direction.layers
    amounts = amounts.to(w_plus.device)
    if direction.space == "s":
        return _styles_moved(G, codes, direction, amounts)
    step = torch.zeros(G.num_ws, G.w_dim, dtype=torch.float64, device=w_plus.device)
    vector = direction.vector.to(step)
    step[first:end] = vector[first:end] if direction.space == "w+" else vector
    return edited(G, codes, (w_plus.double() + amounts[:, None, None] * step).to(w_plus.dtype), noise)


def _styles_moved(G, codes: dict, direction: Direction, amounts: torch.Tensor) -> dict[str, torch.Tensor]:
    if "features" in codes:
        raise UsageError("codes with features (space F+W+) cannot be edited in space S; take a direction of W")
    w_plus = codes["w_plus"]
    styles = codes.get("styles")
    styles = G.styles(w_plus.to(G.w_avg)).to(w_plus) if styles is None else styles
    step = torch.zeros(styles.shape[1], dtype=torch.float64, device=styles.device)
    first, end = direction.layers
    for name, own in G.style_layers().items():
        if first <= style_inputs(G.synthesis)[name] < end:
            step[own] = direction.vector[own].to(step)
    moved = (styles.double() + amounts[:, None] * step).to(styles.dtype)
    count = len(moved)
    found = {name: value.expand(count, *value.shape[1:]) for name, value in codes.items() if name != "z"}
    zero, one = G.w_plus_of_styles(torch.stack([torch.zeros_like(step), step]).to(G.w_avg.device))
    shift = amounts[:, None, None] * (one - zero).to(amounts)
    return found | {"styles": moved, "w_plus": (w_plus.double() + shift).to(w_plus.dtype)}
