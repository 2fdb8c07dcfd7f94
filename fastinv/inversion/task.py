"""One call of ``invert``, checked: what every method gets to work on."""

import dataclasses
import difflib
import numbers
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fastinv.errors import UsageError
from fastinv.inversion.loop import Trace, optimize
from fastinv.inversion.spaces import NAMES

RANGE_TOLERANCE = 1e-3  # pictures may exceed [-1, 1] by this much: resampling and rounding do


@dataclass
class Task:
    """Pictures to invert with a generator.

    Attributes:
        G: the generator, frozen.
        network: its prepared, fast form, see ``G.prepare``.
        target: [N, 3, R, R] in [-1, 1], on the generator's device, float32 (float64 for a float64 generator).
        mask: soft mask [N, 1, R, R] in [0, 1] like the target, or None.
        space: name of the latent space.
        seed: of everything random.
        start: codes to start from, {"w_plus": [N, num_ws, w_dim]} and possibly {"noise": ...}; None for the method's.
        callback, graph, progress: for the loop.
        checkpoints: (stage number) -> where that stage's state is kept, or None; see ``loop.optimize``.
        facts: what a method wants to add to the result's settings.
        tables: what a method works out once, and its steps look up.
    """

    G: Any
    network: Any
    target: torch.Tensor
    mask: torch.Tensor | None
    space: str
    seed: int
    start: dict | None = None
    callback: Callable | None = None
    graph: str | bool = "auto"
    progress: Any = None
    checkpoints: Callable | None = None
    facts: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    stages: int = 0  # done so far
    updates: int = 0  # done so far

    def optimize(self, label: str, variables: dict, render: Callable, terms: list, *, steps: int, **options) -> Trace:
        """One stage: ``loop.optimize`` with the task's callback, progress and checkpoint.

        Args:
            label: what the progress calls it.
            variables, render, terms, steps, options: as for ``loop.optimize``.
        """
        stage, offset = self.stages, self.updates
        checkpoint = None if self.checkpoints is None else self.checkpoints(stage)
        trace = None if checkpoint is None else checkpoint.finished(self.target.device)
        if trace is None:
            callback = self.callback
            if callback is not None and offset:
                callback = lambda step, *rest: self.callback(step + offset, *rest)  # noqa: E731
            if self.progress is not None:
                self.progress.begin(label, steps)
            trace = optimize(
                variables, render, terms, steps=steps, callback=callback, progress=self.progress, graph=self.graph,
                checkpoint=checkpoint, **options,
            )  # fmt: skip
            if checkpoint is not None:
                checkpoint.finish(trace)
        self.stages, self.updates = stage + 1, offset + trace.steps
        return trace


def configure(methods: dict[str, type], method: str, space: str | None, steps: int | None, options: dict):
    """(method object, space) for the arguments of ``invert``; every wrong name or value is a UsageError."""
    if not isinstance(method, str) or method not in methods:
        raise UsageError(f"unknown method {method!r}; known are {', '.join(methods)}")
    chosen = methods[method]
    space = chosen.spaces[0] if space is None else space
    if space not in chosen.spaces:
        known = "does not work" if space in NAMES else "is no latent space"
        raise UsageError(f"space {space!r} {known} for {method}; it works in {', '.join(chosen.spaces)}")
    fields = {field.name: field for field in dataclasses.fields(chosen)}
    options = dict(options)
    for name, value in options.items():
        if name not in fields or name == "steps":
            valid = sorted(set(fields) - {"steps"})
            near = difflib.get_close_matches(name, valid, 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "valid are " + ", ".join(valid)
            raise UsageError(f"unknown option {name!r} for {method}; {hint}")
        options[name] = _of_type(name, value, fields[name].type)
    if steps is not None:
        options["steps"] = whole_number("steps", steps, least=0)
    configured = chosen(**options)
    configured.check_space(space)
    return configured, space


def whole_number(name: str, value, least: int) -> int:
    """``value`` as an int that fits into 64 bits, or a UsageError."""
    if isinstance(value, numbers.Integral) and value >= 2**62:
        raise UsageError(f"{name} must be below 2**62, not {value}")
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def check_generator(G) -> None:
    """A UsageError unless G offers what inversion needs."""
    if hasattr(G, "synthesis") and not isinstance(G, torch.nn.Module):
        raise UsageError(f"G must be the generator itself, not a {type(G).__name__}; inversion prepares it")
    for name in ("mapping", "synthesis", "num_ws", "w_dim", "w_avg", "resolution"):
        if not hasattr(G, name):
            raise UsageError(f"not a generator: {type(G).__name__} has no {name!r}; see fastinv.load_generator")


def check_images(images, resolution: int) -> torch.Tensor:
    """Pictures as [N, 3, R, R], or a UsageError that says what is wrong."""
    if not isinstance(images, torch.Tensor):
        raise UsageError(
            f"images must be a tensor [N, 3, {resolution}, {resolution}] in [-1, 1], not {type(images).__name__}"
        )
    if not images.is_floating_point():
        raise UsageError(
            f"images must be floating point in [-1, 1], not {images.dtype}; 8-bit: images.float() / 127.5 - 1"
        )
    images = images.unsqueeze(0) if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise UsageError(f"images must have shape [N, 3, {resolution}, {resolution}], not {list(images.shape)}")
    if images.shape[2:] != (resolution, resolution):
        raise UsageError(
            f"images are {images.shape[2]} x {images.shape[3]}, the generator makes {resolution} x {resolution}; "
            "crop and resize them first"
        )
    if not images.isfinite().all():
        raise UsageError("images contain values that are not finite (NaN or infinity)")
    low, high = images.min().item(), images.max().item()
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise UsageError(f"images must lie in [-1, 1]; found {low:.4g} to {high:.4g} (from 0..255: images / 127.5 - 1)")
    return images


def check_masks(masks, count: int, resolution: int) -> torch.Tensor | None:
    """Masks as [N, 1, R, R] in [0, 1] (floating point), or a UsageError; None stays None."""
    if masks is None:
        return None
    if not isinstance(masks, torch.Tensor):
        raise UsageError(f"masks must be a tensor [N, 1, {resolution}, {resolution}], not {type(masks).__name__}")
    side = (resolution, resolution)
    if masks.shape not in (side, (1, *side), (1, 1, *side), (count, 1, *side)):
        raise UsageError(
            f"masks must have shape [{resolution}, {resolution}] or [{count}, 1, {resolution}, {resolution}], "
            f"not {list(masks.shape)}"
        )
    masks = masks if masks.is_floating_point() else masks.float()
    if not (masks.isfinite().all() and masks.min() >= 0 and masks.max() <= 1):
        raise UsageError(f"masks must lie in [0, 1]; found {masks.min().item():.4g} to {masks.max().item():.4g}")
    masks = masks.reshape(-1, 1, *side).expand(count, -1, -1, -1)
    empty = (masks.flatten(1).amax(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise UsageError(f"the mask of picture {empty[0]} hides all of it: nothing is left to fit (1 fits, 0 ignores)")
    return masks


def _of_type(name: str, value, kind):
    """The value as the field's annotation wants it, or a UsageError; sequences and modules are left to the method."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if Any in kinds or tuple in kinds or (value is None and types.NoneType in kinds):
        return value
    right = {
        float: isinstance(value, numbers.Real) and not isinstance(value, bool),
        int: isinstance(value, numbers.Integral) and not isinstance(value, bool),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    for one in kinds:
        if right.get(one):
            return one(value)
    wanted = " or ".join("None" if one is types.NoneType else one.__name__ for one in kinds)
    article = "an" if wanted[0] in "aeio" else "a"
    raise UsageError(f"{name} must be {article} {wanted}, not {value!r}")
