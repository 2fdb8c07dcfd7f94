"""The one optimisation loop. Methods configure it (variables, how to render them, loss terms); none copies it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from fastinv.errors import UsageError
from fastinv.inversion.adam import Adam
from fastinv.inversion.capture import Repeater
from fastinv.inversion.stopping import Stopping
from fastinv.ops.adam import adam_record

CHECK_EVERY = 10  # steps between looks at the losses from the host: each one waits for the device
PAGE = 1000  # steps whose learning rates and losses lie on the device at a time


@dataclass(frozen=True)
class Term:
    """One weighted term of the objective.

    Attributes:
        name: its name in the loss curves; the curves hold weighted values.
        loss: gives one value per picture, [N]; has ``select(rows)`` when it holds per-picture data (see ``Loss``).
        weight: its factor.
        of: what ``loss`` is called with: "images" [N, 3, R, R], "codes" (what ``render`` returns beside them), for
            priors, or "both".
    """

    name: str
    loss: Callable
    weight: float = 1.0
    of: str = "images"

    def __call__(self, images: torch.Tensor, codes) -> torch.Tensor:
        """Weighted loss of each picture, [N]."""
        value = self.loss(*{"images": (images,), "codes": (codes,), "both": (images, codes)}[self.of])
        return value if self.weight == 1 else self.weight * value

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
        best_step: [N], the row of the curves with the kept values: the updates after which they were reached (plus one
            for each stage before, which ends with an evaluation of its own).
        steps: updates done.
        stopped: whether the callback ended it early.
        failed: picture -> updates after which its loss was no longer finite.
        finished: picture -> (updates, why), for those that ``stopping`` ended early.
        captured: whether steps were replayed from a recording (a CUDA graph).
        why_eager: why not all of them were, apart from those before the recording; "" if they were.
    """

    variables: dict[str, torch.Tensor]
    losses: dict[str, torch.Tensor]
    best_step: torch.Tensor
    steps: int
    stopped: bool
    failed: dict[int, int] = field(default_factory=dict)
    finished: dict[int, tuple[int, str]] = field(default_factory=dict)
    captured: bool = False
    why_eager: str = ""


def joined(first: Trace, second: Trace) -> Trace:
    """Two stages as one: the curves one after the other (NaN where a stage lacks a term), the variables of both."""
    curves = {}
    for name in [*first.losses, *(name for name in second.losses if name not in first.losses)]:
        shapes = first.losses["total"], second.losses["total"]
        parts = [
            trace.losses.get(name, torch.full_like(like, math.nan))
            for trace, like in zip((first, second), shapes, strict=True)
        ]
        curves[name] = torch.cat(parts)
    offset = len(first.losses["total"])
    before = {row: done for row, (done, _) in first.finished.items()}  # those had fewer steps, and began again
    finished = {row: (before.get(row, first.steps) + done, why) for row, (done, why) in second.finished.items()}
    return Trace(
        first.variables | second.variables, curves, second.best_step + offset, first.steps + second.steps,
        first.stopped or second.stopped, first.failed | second.failed, finished,
        second.captured, second.why_eager,
    )  # fmt: skip


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
    render: Callable[[dict[str, torch.Tensor], torch.Tensor], tuple[torch.Tensor, object]],
    terms: list[Term],
    *,
    steps: int,
    learning_rate: float | dict[str, float],
    schedule: Callable[[int, int], float] | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    keep: str = "best",
    project: Callable | None = None,
    stopping: Stopping | None = None,
    callback: Callable | None = None,
    progress=None,
    graph: str | bool = "auto",
    checkpoint=None,
) -> Trace:
    """Minimise the sum of the terms over the variables with Adam (Kingma and Ba 2015).

    Pictures are independent: the objective is the sum over the pictures and Adam works element by element, so each row
    of a batch follows the path it would take alone. A picture whose loss is no longer finite, or that ``stopping``
    calls finished, leaves the batch with the best values it had; the others go on.

    On a CUDA device the whole step (forward, backward, Adam, bookkeeping) is recorded once, as a CUDA graph, and
    replayed: the host then only starts it. For that, ``render`` and the terms must do the same work in every step, on
    tensors that stay where they are, without a look at values from the host. Otherwise the steps run one by one.

    Args:
        variables: name -> start value [N, ...]; they are not changed.
        render: (variables, step) -> (images [N, 3, R, R], codes). Variables have fewer rows once a picture has left;
            step [1], int64, holds the updates done; codes are what the terms on codes are called with.
        terms: the objective.
        steps: updates; 0 only measures the start. There is one more evaluation than updates, so the last one counts.
        learning_rate: for all variables, or name -> value.
        schedule: (step, steps) -> factor on every learning rate; None is 1 throughout. It is asked ahead of the steps.
        betas, eps: Adam's.
        keep: "best" keeps, per picture, the values of the lowest total loss; "last" the last finite ones (for methods
            that add noise, where losses of different steps do not compare).
        project: (variables, best, step) changes the variables in place after each update, to keep them where they
            belong; best holds their values at the lowest loss so far, step [1], int64, the updates done.
        stopping: when a picture is finished before all steps are done; None is never.
        callback: called as ``callback(step, losses, images)`` at each of the ``steps + 1`` evaluations with the updates
            done so far, {"total": [N], term: [N], ...} and the pictures [N, 3, R, R] (pictures that left: NaN); a true
            return value ends the optimisation.
        progress: object with ``update(step, total, images)``, or None; it must not keep the tensors.
        graph: "auto" records the step where that works and pays, else ``Trace.why_eager`` says why not; True is an
            error where it does not work; False never records.
        checkpoint: where the state is kept, so that a killed optimisation can go on: an object with ``load()`` -> the
            state saved last, or None; ``due()``, whether to save now; ``save(state)``, a dict of tensors. What comes
            out is the same bits with and without an interruption.

    Raises:
        UsageError: graph is something else, or it is True and the step cannot be recorded; or the checkpoint is that of
            another optimisation.
    """
    count, device = len(next(iter(variables.values()))), next(iter(variables.values())).device
    current = {name: value.detach().clone().requires_grad_() for name, value in variables.items()}
    adam = Adam(current, learning_rate, betas, eps)

    def factors(first: int, last: int) -> list[float]:
        return [1.0 if schedule is None else schedule(step, steps) for step in range(first, min(last, steps))]

    batch = _Batch(render, terms, adam, keep, project, factors, min(PAGE, steps + 1))
    names = ["total", *(term.name for term in terms)]
    kept = {name: value.detach().clone() for name, value in variables.items()}  # of all pictures
    kept_step = torch.zeros(count, dtype=torch.long, device=device)
    history, failed, finished, stopped, first = [], {}, {}, False, 0
    watch = stopping.watch(count) if stopping is not None else None
    state = checkpoint.load() if checkpoint is not None else None
    if state is not None:
        first = _restore(state, batch, kept, kept_step, history, failed, finished, watch)
    repeat = Repeater(batch.step, device, graph, steps - first)

    for step in range(first, steps + 1):
        if step - batch.first == batch.size:
            history.append(batch.losses(step, count))
            batch.turn_page(step)
        if step < steps:
            images = repeat()
        else:
            images = batch.finish()
        if callback is not None or progress is not None:
            measured = _all_pictures(batch.curves[step - batch.first].T.clone(), batch.rows, count).T
            pictures = _all_pictures(images, batch.rows, count)
            if progress is not None:
                progress.update(step, measured[0], pictures)
            if callback is not None:
                if pictures is repeat.output:  # the next step overwrites it, and a callback may keep what it is given
                    pictures = pictures.clone()
                if callback(step, dict(zip(names, measured, strict=True)), pictures):
                    stopped = step < steps
                    break
        if step == steps or step % CHECK_EVERY:
            continue
        leaving = bad = batch.bad_step >= 0
        if watch is not None:
            losses = dict(zip(names, batch.curves[step - batch.first], strict=True))
            reasons = watch.look(step, batch.rows, batch.lowest, losses)
            finished |= {row: (step, why) for row, why in reasons.items() if row not in batch.bad_rows()}
            leaving = bad | torch.isin(batch.rows, torch.tensor(list(reasons), device=device, dtype=torch.long))
        if leaving.any():
            if leaving.all():
                break
            history.append(batch.losses(step + 1, count))
            batch.store(kept, kept_step, failed)
            batch.select((~leaving).nonzero()[:, 0])
            batch.turn_page(step + 1)
            repeat.restart(steps - step - 1)
        if checkpoint is not None and checkpoint.due():
            if batch.first <= step:
                history.append(batch.losses(step + 1, count))
                batch.turn_page(step + 1)
            checkpoint.save(_state(step + 1, batch, kept, kept_step, history, failed, finished))

    if step - batch.first >= 0:
        history.append(batch.losses(step + 1, count))
    batch.store(kept, kept_step, failed)
    curves = torch.cat(history)
    losses = {name: curves[:, index] for index, name in enumerate(names)}
    failed, finished = dict(sorted(failed.items())), dict(sorted(finished.items()))
    return Trace(kept, losses, kept_step.cpu(), step, stopped, failed, finished, repeat.captured, repeat.why_eager)


class _Batch:
    """The pictures that are still optimised, and one step of it.

    What a step reads and writes are tensors on the device that stay where they are (until ``select``), its own number
    among them. No Python value differs between two steps, so that one can be recorded and replayed, and no step waits
    for the host. Learning rates and losses come and go a page at a time.

    Args:
        render, terms, keep, project: as for ``optimize``.
        adam: with the variables of all pictures.
        factors: (first, last) -> the learning rates' factors of the steps from first to before last, or the end.
        size: evaluations on a page.

    Attributes:
        rows: which of all pictures these are, [N].
        curves: losses of this page, [size, 1 + terms, N], total first.
        first: updates that were done when the page began.
        bad_step: [N], after how many updates the loss was not finite for the first time; -1 if it always was.
    """

    def __init__(
        self, render: Callable, terms: list[Term], adam: Adam, keep: str, project, factors: Callable, size: int
    ):
        self.render, self.terms, self.adam, self.keep, self.project = render, terms, adam, keep, project
        self.factors, self.size = factors, size
        start = next(iter(adam.variables.values()))
        self.rows = torch.arange(len(start), device=start.device)
        self.best = {name: value.detach().clone() for name, value in adam.variables.items()}
        self.best_step = torch.zeros_like(self.rows)
        self.bad_step = torch.full_like(self.rows, -1)
        self.lowest, self.curves = None, None
        self.better = torch.zeros_like(self.rows, dtype=torch.bool)
        self.clock = self.rows.new_zeros(2)  # the row of the page; all updates done
        self.coefficients = None
        self.turn_page(0)

    def turn_page(self, first: int) -> None:
        """Begin an empty page with the evaluation after ``first`` updates."""
        self.first = first
        rows = self.adam.coefficients(first, self.factors(first, first + self.size))
        if self.coefficients is None:
            self.coefficients = rows.to(self.clock.device)
        else:
            self.coefficients[: len(rows)] = rows.to(self.clock.device)
        self.clock.copy_(torch.tensor([-1, first - 1]))  # an evaluation begins by advancing it

    def step(self) -> torch.Tensor:
        """Evaluate, then update the variables; returns the pictures [N, 3, R, R] before the update."""
        with torch.enable_grad():
            images, total = self._evaluate()
            gradients = torch.autograd.grad(total, list(self.adam.variables.values()), self.ones)
        self.adam.step(gradients, self.coefficients, self.clock, self.best, self.better)
        if self.project is not None:
            with torch.no_grad():
                self.project(self.adam.variables, self.best, self.clock[1:] + 1)
        return images

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """Evaluate what the last step made; returns the pictures [N, 3, R, R]."""
        images, _ = self._evaluate()
        for name, value in self.adam.variables.items():
            torch.where(self.better.view(-1, *[1] * (value.ndim - 1)), value, self.best[name], out=self.best[name])
        return images

    def _evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Render, measure and note the losses; returns the pictures [N, 3, R, R] and the total losses [N]."""
        variables = self.adam.variables
        images, codes = self.render(variables, self.clock[1:] + 1)
        values = torch.stack([term(images, codes) for term in self.terms])
        total = values.sum(0)
        if self.curves is None:  # only now the losses' dtype is known
            self.curves = values.new_zeros(self.size, 1 + len(values), len(total), requires_grad=False)
            self.ones = torch.ones_like(total, requires_grad=False)
            if self.lowest is None:
                self.lowest = torch.full_like(self.ones, math.inf)
        adam_record(
            total.detach(), values.detach(), self.clock, self.curves, self.lowest, self.best_step, self.bad_step,
            self.better, self.keep == "last",
        )  # fmt: skip
        return images.detach(), total

    def losses(self, evaluations: int, count: int) -> torch.Tensor:
        """The page after so many evaluations in all: float64 [rows, 1 + terms, count] on the CPU, NaN for others."""
        page = self.curves[: evaluations - self.first].to("cpu", torch.float64, copy=True)
        return _all_pictures(page.movedim(2, 0), self.rows.cpu(), count).movedim(0, 2)

    def bad_rows(self) -> set[int]:
        """The pictures whose loss was not finite."""
        return set(self.rows[self.bad_step >= 0].tolist())

    def store(self, kept: dict[str, torch.Tensor], kept_step: torch.Tensor, failed: dict) -> None:
        """Write what is known into the tables of all pictures."""
        for name, value in self.best.items():
            kept[name][self.rows] = value
        kept_step[self.rows] = self.best_step
        failed |= {row: bad for row, bad in zip(self.rows.tolist(), self.bad_step.tolist(), strict=True) if bad >= 0}

    def select(self, good: torch.Tensor) -> None:
        """Go on with some of the pictures, good [M], on a new page; all tensors are new ones."""
        self.rows, self.terms = self.rows[good], [term.select(good) for term in self.terms]
        self.adam.select(good)
        self.best = {name: value[good] for name, value in self.best.items()}
        self.best_step, self.bad_step = self.best_step[good], self.bad_step[good]
        self.lowest = None if self.lowest is None else self.lowest[good]
        self.better, self.curves = self.better[good], None


def _all_pictures(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Values of the pictures in the batch -> of all pictures, NaN for those that have left."""
    if len(values) == count:
        return values
    full = values.new_full((count, *values.shape[1:]), math.nan)
    full[rows] = values
    return full


STATE = ("mean", "square", "best")  # beside the variables, one tensor of their shape each


def _state(step, batch: _Batch, kept, kept_step, history, failed, finished) -> dict[str, torch.Tensor]:
    """All that decides how an optimisation goes on after ``step`` updates, as named tensors on the CPU."""
    tensors = {
        "step": torch.tensor([step]), "rows": batch.rows, "best_step": batch.best_step, "bad_step": batch.bad_step,
        "lowest": batch.lowest, "kept_step": kept_step, "history": torch.cat(history),
        "failed": torch.tensor(list(failed.items()), dtype=torch.long).view(-1, 2),
        "finished": torch.tensor([(row, done) for row, (done, _) in finished.items()], dtype=torch.long).view(-1, 2),
        "reasons": torch.tensor(list("\n".join(why for _, why in finished.values()).encode()), dtype=torch.uint8),
    }  # fmt: skip
    groups = {"variable": batch.adam.variables, "kept": kept}
    groups |= {"mean": batch.adam.mean, "square": batch.adam.square, "best": batch.best}
    for group, members in groups.items():
        tensors |= {f"{group}/{name}": value.detach() for name, value in members.items()}
    return {name: value.to("cpu", copy=True) for name, value in tensors.items()}


@torch.no_grad()
def _restore(state, batch: _Batch, kept, kept_step, history, failed, finished, watch) -> int:
    """Put everything back as it was when ``_state`` looked; returns the updates done."""
    step, rows = int(state["step"]), state["rows"].to(batch.rows.device)
    terms = 1 + len(batch.terms)
    if state["history"].shape[1:] != (terms, len(batch.rows)) or any(f"kept/{name}" not in state for name in kept):
        raise UsageError("the saved state belongs to another optimisation; remove it, or use another folder")
    history.append(state["history"])
    failed |= dict(state["failed"].tolist())
    reasons = bytes(state["reasons"].tolist()).decode().split("\n")
    finished |= {row: (done, why) for (row, done), why in zip(state["finished"].tolist(), reasons)}
    if watch is not None:
        watch.replay(state["history"][:, 0], CHECK_EVERY)
    for name, value in kept.items():
        value.copy_(state[f"kept/{name}"])
    kept_step.copy_(state["kept_step"])
    if len(rows) < len(batch.rows):
        batch.select(rows)
    groups = {"variable": batch.adam.variables, "mean": batch.adam.mean, "square": batch.adam.square}
    for group, members in (groups | {"best": batch.best}).items():
        for name, value in members.items():
            value.copy_(state[f"{group}/{name}"])
    batch.best_step.copy_(state["best_step"])
    batch.bad_step.copy_(state["bad_step"])
    batch.lowest = state["lowest"].to(batch.rows.device)
    batch.turn_page(step)
    return step
