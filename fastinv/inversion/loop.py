"""The one optimisation loop. Methods configure it (variables, how to render them, loss terms); none copies it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from fastinv.inversion.adam import Adam

CHECK_EVERY = 10  # steps between looks at the losses from the host: each one waits for the device


@dataclass(frozen=True)
class Term:
    """One weighted term of the objective.

    Attributes:
        name: its name in the loss curves; the curves hold weighted values.
        loss: gives one value per picture, [N]; has ``select(rows)`` when it holds per-picture data (see ``Loss``).
        weight: its factor.
        of: what ``loss`` is called with: "images" [N, 3, R, R], or "variables" (the dict), for priors on the code.
    """

    name: str
    loss: Callable
    weight: float = 1.0
    of: str = "images"

    def select(self, rows: torch.Tensor) -> "Term":
        loss = self.loss.select(rows) if hasattr(self.loss, "select") else self.loss
        return Term(self.name, loss, self.weight, self.of)


@dataclass
class Trace:
    """What an optimisation leaves behind, for N pictures.

    Attributes:
        variables: the kept values of every variable, [N, ...], without gradient.
        losses: curves, "total" and one per term, [evaluations, N] on the CPU. Row s was measured after s updates; NaN
            where a picture had left the batch.
        best_step: [N], the number of updates after which the kept values were reached.
        steps: updates done.
        stopped: whether the callback ended it early.
        failed: picture -> updates after which its loss was no longer finite.
    """

    variables: dict[str, torch.Tensor]
    losses: dict[str, torch.Tensor]
    best_step: torch.Tensor
    steps: int
    stopped: bool
    failed: dict[int, int] = field(default_factory=dict)


def ramped(up: float, down: float) -> Callable[[int, int], float]:
    """Learning-rate schedule: linear rise over the first ``up`` of the steps, cosine fall over the last ``down``.

    Fractions in [0, 1]; 0 for none. The shape is the StyleGAN2 projector's (Karras et al. 2020, appendix D), shifted
    by one step in the rise so that the first step is not lost to a learning rate of zero.
    """

    def factor(step: int, steps: int) -> float:
        rise = min(1.0, (step + 1) / steps / up) if up else 1.0
        left = min(1.0, (1 - step / steps) / down) if down else 1.0
        return rise * (0.5 - 0.5 * math.cos(math.pi * left))

    return factor


@contextmanager
def frozen(*networks: torch.nn.Module) -> Iterator[None]:
    """Networks in eval mode with no parameter gradients, each flag put back afterwards."""
    parameters = [parameter for network in networks for parameter in network.parameters()]
    modules = [module for network in networks for module in network.modules()]
    flags = [parameter.requires_grad for parameter in parameters]
    modes = [module.training for module in modules]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in modules:
            module.training = False
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def optimize(
    variables: dict[str, torch.Tensor],
    render: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    terms: list[Term],
    *,
    steps: int,
    learning_rate: float | dict[str, float],
    schedule: Callable[[int, int], float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    keep: str = "best",
    callback: Callable | None = None,
    progress=None,
) -> Trace:
    """Minimise the sum of the terms over the variables with Adam (Kingma and Ba 2015).

    Pictures are independent: the objective is the sum over the pictures and Adam works element by element, so each row
    of a batch follows the path it would take alone. A picture whose loss is no longer finite leaves the batch with the
    best values it had; the others go on.

    Args:
        variables: name -> start value [N, ...]; they are not changed.
        render: variables (the same names, fewer rows once a picture has left) -> images [N, 3, R, R].
        terms: the objective.
        steps: updates; 0 only measures the start. There is one more evaluation than updates, so the last one counts.
        learning_rate: for all variables, or name -> value.
        schedule: (step, steps) -> factor on every learning rate; None is 1 throughout.
        betas, eps: Adam's.
        keep: "best" keeps, per picture, the values of the lowest total loss; "last" the last finite ones (for methods
            that add noise, where losses of different steps do not compare).
        callback: called as ``callback(step, losses, images)`` at each of the ``steps + 1`` evaluations with the updates
            done so far, {"total": [N], term: [N], ...} and the pictures [N, 3, R, R] (pictures that left: NaN); a true
            return value ends the optimisation.
        progress: object with ``update(step, total, images)``, or None.
    """
    start = next(iter(variables.values()))
    count, device = len(start), start.device
    current = {name: value.detach().clone().requires_grad_() for name, value in variables.items()}
    adam = Adam(current, learning_rate, betas, eps)
    names = ["total", *(term.name for term in terms)]
    rows = torch.arange(count, device=device)  # the pictures still in the batch
    tracker = _Tracker(current, keep)
    kept = {name: value.detach().clone() for name, value in variables.items()}  # of all pictures
    kept_step = torch.zeros(count, dtype=torch.long, device=device)
    curves, failed, stopped = [], {}, False

    for step in range(steps + 1):
        with torch.set_grad_enabled(step < steps):
            images = render(current)
            values = [term.weight * term.loss(images if term.of == "images" else current) for term in terms]
            total = torch.stack(values).sum(0)
            objective = total.sum()
        tracker.update(step, total.detach(), current)
        measured = _all_pictures(torch.stack([total, *values], dim=1).detach(), rows, count).T
        curves.append(measured)
        if callback is not None or progress is not None:
            pictures = _all_pictures(images.detach(), rows, count)
            if progress is not None:
                progress.update(step, measured[0], pictures)
            if callback is not None and callback(step, dict(zip(names, measured, strict=True)), pictures):
                stopped = step < steps
                break
        if step == steps:
            break

        gradients = torch.autograd.grad(objective, list(current.values()))
        factor = 1.0 if schedule is None else schedule(step, steps)
        adam.step(dict(zip(current, gradients, strict=True)), factor)

        if step % CHECK_EVERY == 0 and (bad := tracker.bad_step >= 0).any():
            if bad.all():
                break
            tracker.store(kept, kept_step, failed, rows)
            good = (~bad).nonzero()[:, 0]
            rows, terms = rows[good], [term.select(good) for term in terms]
            tracker.select(good)
            current = adam.select(good)

    tracker.store(kept, kept_step, failed, rows)
    history = torch.stack(curves).double().cpu()
    losses = {name: history[:, index] for index, name in enumerate(names)}
    return Trace(kept, losses, kept_step.cpu(), len(curves) - 1, stopped, dict(sorted(failed.items())))


class _Tracker:
    """The best values of every picture in the batch. Stays on the device: no step waits for the host."""

    def __init__(self, current: dict[str, torch.Tensor], keep: str):
        start = next(iter(current.values()))
        self.keep = keep
        self.best = {name: value.detach().clone() for name, value in current.items()}
        self.loss = torch.full_like(start.detach().flatten(1)[:, 0], math.inf)
        self.step = torch.zeros_like(self.loss, dtype=torch.long)
        self.bad_step = torch.full_like(self.step, -1)

    def update(self, step: int, total: torch.Tensor, current: dict[str, torch.Tensor]) -> None:
        """Take over the values of the pictures that got better, and note the first loss that is not finite."""
        finite = total.isfinite()
        better = finite if self.keep == "last" else total < self.loss
        self.loss = torch.where(better, total, self.loss)
        self.step = torch.where(better, step, self.step)
        self.bad_step = torch.where((self.bad_step < 0) & ~finite, step, self.bad_step)
        for name, value in current.items():
            self.best[name] = torch.where(better.view(-1, *[1] * (value.ndim - 1)), value.detach(), self.best[name])

    def store(self, kept: dict[str, torch.Tensor], kept_step: torch.Tensor, failed: dict, rows: torch.Tensor) -> None:
        """Write what is known into the tables of all pictures."""
        for name, value in self.best.items():
            kept[name][rows] = value
        kept_step[rows] = self.step
        failed |= {row: bad for row, bad in zip(rows.tolist(), self.bad_step.tolist(), strict=True) if bad >= 0}

    def select(self, good: torch.Tensor) -> None:
        self.best = {name: value[good] for name, value in self.best.items()}
        self.loss, self.step, self.bad_step = self.loss[good], self.step[good], self.bad_step[good]


def _all_pictures(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Values of the pictures in the batch -> of all pictures, NaN for those that have left."""
    if len(values) == count:
        return values
    full = values.new_full((count, *values.shape[1:]), math.nan)
    full[rows] = values
    return full
