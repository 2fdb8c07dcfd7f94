"""Interpolation between codes, as IDInvert does it (Zhu et al. 2020, arXiv 2004.00049): linear in W+."""

import torch

from fastinv.editing.codes import codes_of
from fastinv.errors import UsageError
from fastinv.inversion.task import whole_number
from fastinv.inversion.weights import WEIGHTS

BETWEEN = 5  # codes between two ends, in IDInvert


@torch.no_grad()
def interpolate(a, b, steps: int = BETWEEN, w_only: bool = False) -> dict[str, torch.Tensor]:
    """Codes on the straight line from one picture to another, both ends included: ``a + t (b - a)``.

    Args:
        a, b: codes of one picture each, see ``fastinv.editing.codes.codes_of``: a dict, w_plus, an InversionResult ...
        steps: codes between the two, at equal distances.
        w_only: interpolate w_plus alone, and leave out style channels, features and noise maps. Without it they are
            interpolated where both have them, so that the ends are the pictures of a and b.

    Returns:
        Codes of ``steps + 2`` pictures: the first is that of a, the last that of b, to the bit. z is left out, and what
        only one of them has, and tuned weights; ``left_out`` says what that is.

    Raises:
        UsageError: codes of several pictures, or for generators of different kinds.
    """
    steps = whole_number("steps", steps, least=0)
    a, b = codes_of(a), codes_of(b)
    left = left_out(a, b, w_only)
    t = torch.linspace(0, 1, steps + 2, dtype=torch.float64)
    found = {}
    for name, start in a.items():
        if name in left:
            continue
        end = b[name].to(start)
        if len(start) != 1 or start.shape != end.shape:
            raise UsageError(
                f"{name} has the shapes {list(start.shape)} and {list(end.shape)}; give codes of one picture each, for "
                "one generator"
            )
        weight = t.to(start).view(-1, *[1] * (start.ndim - 1))
        found[name] = torch.lerp(start, end, weight)  # torch has both ends exact
    return found


def left_out(a, b, w_only: bool = False) -> list[str]:
    """Names of the codes of a and b that ``interpolate`` leaves out."""
    a, b = codes_of(a), codes_of(b)
    kept = {"w_plus"} if w_only else {name for name in a if name in b and name != "z" and not name.startswith(WEIGHTS)}
    if not {"features", "picture"} <= kept or a["features"].shape != b["features"].shape:
        kept -= {"features", "picture"}  # they belong together, and to one block
    return [name for name in {**a, **b} if name not in kept]


def path(*ends, steps: int = BETWEEN, w_only: bool = False) -> dict[str, torch.Tensor]:
    """``interpolate`` from each of the codes to the next, each of them once: n + (n - 1) steps codes of n."""
    if len(ends) < 2:
        raise UsageError(f"an interpolation needs at least 2 codes, not {len(ends)}")
    ends = [codes_of(end) for end in ends]
    parts = [interpolate(a, b, steps, w_only) for a, b in zip(ends, ends[1:], strict=False)]
    names = set.intersection(*(set(part) for part in parts))
    return {
        name: torch.cat([parts[0][name]] + [part[name][1:] for part in parts[1:]])
        for name in parts[0] if name in names
    }  # fmt: skip
