"""One call of ``invert``, checked: what every method gets to work on."""

import dataclasses
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fastinv.errors import UsageError

RANGE_TOLERANCE = 1e-3  # pictures may exceed [-1, 1] by this much: resampling and rounding do


@dataclass
class Task:
    """Pictures to invert with a generator.

    Attributes:
        G: the generator, frozen.
        synthesis: its frozen synthesis, ``synthesis(w_plus, noise=...)`` -> [N, 3, R, R] in the target's dtype.
        target: [N, 3, R, R] in [-1, 1], on the generator's device, float32 (float64 for a float64 generator).
        mask: soft mask [N, 1, R, R] in [0, 1] like the target, or None.
        space: name of the latent space.
        seed: of everything random.
        callback, graph, progress: for the loop.
        facts: what a method wants to add to the result's settings.
    """

    G: Any
    synthesis: Callable
    target: torch.Tensor
    mask: torch.Tensor | None
    space: str
    seed: int
    callback: Callable | None = None
    graph: str | bool = "auto"
    progress: Any = None
    facts: dict = field(default_factory=dict)


def configure(methods: dict[str, type], method: str, space: str, steps: int | None, options: dict):
    """The method object for the arguments of ``invert``; every wrong name or value is a UsageError."""
    if not isinstance(method, str) or method not in methods:
        raise UsageError(f"unknown method {method!r}; known are {', '.join(methods)}")
    chosen = methods[method]
    if space not in chosen.spaces:
        raise UsageError(f"unknown space {space!r} for {method}; it works in {', '.join(chosen.spaces)}")
    fields = {field.name: field for field in dataclasses.fields(chosen)}
    options = dict(options)
    for name, value in options.items():
        if name not in fields or name == "steps":
            valid = ", ".join(sorted(set(fields) - {"steps"}))
            raise UsageError(f"unknown option {name!r} for {method}; valid are {valid}")
        options[name] = _of_type(name, value, fields[name])
    if steps is not None:
        options["steps"] = whole_number("steps", steps, least=0)
    return chosen(**options)


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


def _of_type(name: str, value, field: dataclasses.Field):
    """The value as the type of the field's default, or a UsageError; sequences and trunks are left to the method."""
    kind = type(field.default)
    right = {
        float: isinstance(value, numbers.Real) and not isinstance(value, bool),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    if kind not in right or field.type in (Any, "Any"):
        return value
    if not right[kind]:
        raise UsageError(f"{name} must be a {kind.__name__}, not {value!r}")
    return kind(value)
