"""Boundaries between codes with and without an attribute (InterFaceGAN; Shen et al. 2020, arXiv 2005.09635)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastinv.checkpoints import network_hash
from fastinv.editing.direction import Direction
from fastinv.editing.samples import Samples
from fastinv.errors import UsageError

SHARE, VALIDATION = 0.02, 0.3  # the authors'
STRENGTH = 1.5


@dataclass(frozen=True)
class Boundary:
    """A hyperplane in W, ``normal . w + offset = 0``.

    Attributes:
        normal: [w_dim], float64, of length 1; it points to more of the attribute.
        offset: of the plane.
        accuracy: share of codes on the right side: "training" and "validation" of those that were chosen, "others" of
            all that were not (above or below the middle between the two ends).
    """

    normal: torch.Tensor
    offset: float
    accuracy: dict[str, float]


def boundary(w: torch.Tensor, scores: torch.Tensor, share: float = SHARE, seed: int = 0, cost: float = 1.0) -> Boundary:
    """A linear support vector machine between the codes of the highest and of the lowest scores.

    Args:
        w: codes [N, w_dim].
        scores: [N], of an attribute.
        share: of the codes taken from either end, of which 30 % validate.
        seed: of the choice of those that validate.
        cost: of an error, C in ``|n|^2 / 2 + C sum max(0, 1 - y (n . w + b))^2``, in coordinates in which the codes
            have a mean square of 1 per dimension.

    Raises:
        UsageError: too few codes at the ends, or no two different scores there.
    """
    count = round(share * len(w)) if 0 < share <= 0.5 else 0
    if count < 4:
        raise UsageError(
            f"a boundary needs 4 codes at least from either end; a share of {share} of {len(w)} codes (0.5 at most) "
            f"gives {count}"
        )
    order = scores.argsort(stable=True)
    low, high = order[:count], order[-count:]
    if scores[low].max() >= scores[high].min():
        raise UsageError(f"the {count} highest scores are not above the {count} lowest; take a smaller share")
    random = torch.Generator().manual_seed(seed)
    kept = count - round(VALIDATION * count)
    parts = [part[torch.randperm(count, generator=random)] for part in (low.cpu(), high.cpu())]
    training, validation = (torch.cat([part[rows] for part in parts]) for rows in (slice(kept), slice(kept, None)))
    points, middle = w.double(), (scores[low].mean() + scores[high].mean()) / 2
    center = points[training].mean(0)
    scale = (points[training] - center).square().mean().sqrt().clamp_min(1e-12)
    labels = torch.where(scores > middle, 1.0, -1.0).to(points)
    labels[low], labels[high] = -1.0, 1.0
    weight, bias = _separated((points[training] - center) / scale, labels[training], cost)
    normal = weight / weight.norm()
    offset = float(bias * scale / weight.norm() - normal @ center)
    right = ((points @ normal + offset) * labels > 0).double()
    others = torch.ones(len(w), dtype=torch.bool)
    others[torch.cat([training, validation])] = False
    rows = {"training": training, "validation": validation, "others": others}
    return Boundary(normal, offset, {name: float(right[part].mean()) for name, part in rows.items() if part.any()})


def _separated(x: torch.Tensor, y: torch.Tensor, cost: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight [d] and bias of least ``|n|^2 / 2 + C sum max(0, 1 - y (n . x + b))^2``: convex and smooth."""
    found = torch.zeros(x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [found], max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss():
        solver.zero_grad()
        margins = y * (x @ found[:-1] + found[-1])
        value = found[:-1].square().sum() / 2 + cost * (1 - margins).clamp_min(0).square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    return found.detach()[:-1], found.detach()[-1]


def conditional(normal: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The direction that leaves other attributes: the part of a normal orthogonal to other normals, of length 1.

    Args:
        normal: [w_dim].
        others: [M, w_dim], of any lengths, not necessarily independent.

    Raises:
        UsageError: nothing is left.
    """
    _, values, basis = torch.linalg.svd(others.double(), full_matrices=False)
    basis = basis[values > 1e-10 * values.max()] if len(values) else basis
    left = normal.double() / normal.norm() - basis.T @ (basis @ (normal.double() / normal.norm()))
    if left.norm() < 1e-6:
        raise UsageError("the direction lies in the span of those that it should leave; nothing of it is left")
    return left / left.norm()


def interfacegan(
    G,
    samples: Samples,
    attributes: Sequence[str] | None = None,
    conditions: Sequence[str] = (),
    share: float = SHARE,
    seed: int = 0,
    layers: tuple[int, int | None] = (0, None),
) -> list[Direction]:
    """One direction of W for each attribute, the normal of its boundary.

    Args:
        G: the generator of the samples.
        samples: of ``read_samples`` or ``given_samples``.
        attributes: whose; None is all.
        conditions: attributes that stay: a direction is projected onto the complement of their normals (its own is
            left out).
        share, seed: see ``boundary``.
        layers: style inputs that the directions act on.

    Returns:
        Directions named by the attribute, with the accuracies in their facts. A strength of 1 is one standard deviation
        of the attribute, as a linear fit of scores to codes says.

    Raises:
        UsageError: unknown attributes, or as for ``boundary`` and ``conditional``.
    """
    chosen = samples.names if attributes is None else tuple(attributes)
    planes = {
        name: boundary(samples.w, samples.of(name), share, seed) for name in dict.fromkeys([*chosen, *conditions])
    }
    sha256, found = network_hash(G), []
    for name in chosen:
        normal, held = planes[name].normal, [other for other in conditions if other != name]
        if held:
            normal = conditional(normal, torch.stack([planes[other].normal for other in held]))
        facts = {"attribute": name, "samples": len(samples.w), "share": share, "accuracy": planes[name].accuracy}
        facts |= {"conditions": held} if held else {}
        vector = (normal * deviation(samples.w, samples.of(name), normal)).float()
        found.append(Direction(name, "w", vector, layers, STRENGTH, "interfacegan", sha256, facts))
    return found


def deviation(w: torch.Tensor, scores: torch.Tensor, unit: torch.Tensor) -> float:
    """How far to go along a unit vector [w_dim] for one standard deviation of the scores [N], by a linear fit of them
    to codes w [N, w_dim]; where it says that the score does not rise that way, one standard deviation of w."""
    centered = w - w.mean(0)
    spread = float((centered @ unit).std(correction=0))
    # Directions in which the samples hardly vary say nothing; without a limit they would say very much.
    gradient = torch.linalg.pinv(centered, rtol=1e-4) @ (scores - scores.mean()).to(centered)
    slope = float(gradient @ unit)
    return 1 / slope if slope * spread > 1e-2 else spread
