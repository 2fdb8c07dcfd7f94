"""Pivotal tuning (Roich et al. 2021, arXiv 2106.05744): find a code, then tune the generator's weights around it."""

import copy
import dataclasses
import fnmatch
import inspect
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.func import functional_call

from fastinv.errors import UsageError
from fastinv.inversion.locality import Locality
from fastinv.inversion.loop import Term, Trace, joined
from fastinv.inversion.method import Method, changed, option
from fastinv.inversion.objective import build_terms
from fastinv.inversion.spaces import flat, nested, synthesize
from fastinv.inversion.stopping import Stopping
from fastinv.inversion.task import Task, configure
from fastinv.inversion.weights import WEIGHTS, compress, difference, has_weights, tuned_pictures

# A picture is finished at this perceptual distance: the paper's for LPIPS; for the attribute network's features, what
# the embedded generator's portraits have at about 45 dB (docs/pti.md).
FINISHED = {"lpips": 0.06, "attributes": 0.001}

# Options that say how codes are found: nothing to say in the stage that changes weights only.
OF_THE_PIVOT = (
    "start", "noise_start", "noise_learning_rate", "noise_weight", "features_at", "features_learning_rate",
    "coarse_resolution", "mean_weight", "p_norm_weight", "precondition",
)  # fmt: skip


@dataclass(frozen=True)
class PTI(Method):
    """``theta* = argmin LPIPS(x, G(w; theta)) + lambda_L2 ||x - G(w; theta)||^2 / N``, with the code w of the pivot.

    The pivot is found by another method, or is what ``init`` gives; then each picture has a generator of its own, whose
    weights Adam tunes, one picture after the other, always in the generator's own arithmetic. What a result keeps of
    them is a small difference (see ``inversion.weights``): ``InversionResult.generator`` makes the tuned generator,
    and ``images`` are its pictures.

    The paper: the pivot by the StyleGAN2 projector in W, 450 steps (``pivot="projector",
    pivot_options={"steps": 450}``); up to 350 steps at 3e-4 until LPIPS is 0.06, all weights, constant noise. The
    options of losses and of Adam are those of the tuning.
    """

    name: ClassVar[str] = "pti"
    spaces: ClassVar[tuple[str, ...]] = ("w", "w+", "z", "s", "w+noise", "f+w+")  # of the pivot

    steps: int = option(350, "updates of the weights, at most; 0 leaves them as they are")
    learning_rate: float = changed("learning_rate", 3e-4)
    ramp_up: float = changed("ramp_up", 0.0)
    ramp_down: float = changed("ramp_down", 0.0)
    perceptual_weight: float = changed("perceptual_weight", 0.0)
    lpips_weight: float = changed("lpips_weight", 1.0)
    pivot: str = option("image2stylegan", "method that finds the code; init= needs none")
    pivot_options: Any = option(None, 'its options, as a dict, {"steps": 450} among them; None is its own')
    parameters: tuple = option(("*",), 'what is tuned: parameters of G.synthesis by name or pattern, "*.conv?.weight"')
    stop_lpips: float | None = option(None, "a picture is finished at this distance; None is 0.06, for the attribute "
                                            "network 0.001; 0 for never")  # fmt: skip
    locality: bool = option(False, "keep what other codes make, by the locality regulariser")
    locality_interval: int = option(1, "... in every so manieth step")
    locality_alpha: float = option(30.0, "... at codes so far from the pivot")
    locality_pixel: float = option(0.1, "... its factor of the squared error")
    locality_lpips: float = option(0.1, "... its factor of the perceptual distance")

    def __post_init__(self):
        """Refuse options out of range, and those that are the pivot's."""
        super().__post_init__()
        defaults = {field.name: field.default for field in dataclasses.fields(Method)}
        for name in OF_THE_PIVOT:
            value = getattr(self, name)
            if value != defaults[name]:
                raise UsageError(f"{name} is for the pivot: pivot_options={{{name!r}: {value!r}}}")
        if self.noise == "optimize":
            raise UsageError("noise=optimize is for the pivot: pivot_options={'noise': 'optimize'}, or space w+noise")
        if not isinstance(self.pivot_options, (dict, type(None))):
            raise UsageError(f"pivot_options must be a dict of options of {self.pivot}, not {self.pivot_options!r}")
        if not self.parameters or not all(isinstance(pattern, str) for pattern in self.parameters):
            raise UsageError(f"parameters must be names or patterns, not {self.parameters!r}")
        if self.stop_lpips is not None and not 0 <= self.stop_lpips < math.inf:
            raise UsageError(f"stop_lpips must be at least 0, not {self.stop_lpips}")
        if self.locality_interval < 1:
            raise UsageError(f"locality_interval must be at least 1, not {self.locality_interval}")
        for name in ("locality_alpha", "locality_pixel", "locality_lpips"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.locality and not (self.locality_pixel or self.locality_lpips):
            raise UsageError("locality_pixel and locality_lpips are both 0: leave locality out")

    def check_space(self, space: str) -> None:
        """A UsageError where the pivot's method or its options do not fit."""
        super().check_space(space)
        self.pivot_method(space)

    def pivot_method(self, space: str) -> Method:
        """The method that finds the pivot; its trunk and noise are ours unless its options say otherwise."""
        from fastinv.inversion import METHODS  # the table holds this method, too

        options = {} if self.trunk == "auto" else {"trunk": self.trunk}
        options |= {"noise": self.noise} if self.noise != "const" else {}
        options |= self.pivot_options or {}
        others = {name: method for name, method in METHODS.items() if name != self.name}
        return configure(others, self.pivot, space, options.pop("steps", None), options)[0]

    def run(self, task: Task) -> tuple[Trace, dict[str, Any]]:
        """Find the pivot, then tune; the trace of both, and the codes with the differences of the weights."""
        network = Tunable(task.G, self.parameters, task.target.dtype)  # refuses wrong parameters before the pivot
        first, codes, given = self.find_pivot(task)
        if first is not None and first.stopped:
            return first, codes
        network.choose_used(codes, self.noise)
        terms = build_terms(self, task, task.target, task.mask)
        if self.lpips_weight:
            standard = FINISHED[task.facts["lpips"]["name"]]
            task.facts["stop_lpips"] = standard if self.stop_lpips is None else self.stop_lpips
        traces, changes = {}, []
        for row in range(len(task.target)):
            weights = network.start(given, row)
            if not any(trace.stopped for trace in traces.values()) and row not in (first.failed if first else ()):
                traces[row] = self.tune(task, row, network, weights, codes, terms)
                weights = traces[row].variables
            stored = [compress(name, weights[name] - network.own[name]) for name in network.names]
            changes.append({name: value for part in stored for name, value in part.items()})
        codes |= {name: torch.cat([change[name] for change in changes]) for name in changes[0]}
        return _trace(first, traces, len(task.target)), codes

    def find_pivot(self, task: Task) -> tuple[Trace | None, dict[str, Any], dict[str, torch.Tensor]]:
        """(trace, codes, weights to go on from) of the pivot's method; without a trace for codes that were given."""
        if task.start is not None:
            task.facts["pivot"] = "init"
            codes = {name: value for name, value in task.start.items() if not name.startswith(WEIGHTS)}
            return None, codes, {name: value for name, value in task.start.items() if name.startswith(WEIGHTS)}
        method = self.pivot_method(task.space).fitted(task.G, masked=task.mask is not None)
        trace, codes = method.run(task)
        task.facts["pivot"] = {"method": method.name, "steps": trace.steps}
        return trace, codes, {}

    def tune(self, task: Task, row: int, network: "Tunable", weights: dict, codes: dict, terms: list[Term]) -> Trace:
        """The stage of one picture; its variables are the weights [1, ...]."""
        part = _alone(task, row)
        own = nested({name: value[row : row + 1] for name, value in flat(codes).items()})
        terms = [term.select(torch.tensor([row], device=task.target.device)) for term in terms]
        if self.locality:
            terms.append(Term("locality", Locality(self, task, network), of="codes"))
        limits = {"lpips": self.lpips_weight * task.facts["stop_lpips"]} if task.facts.get("stop_lpips") else {}
        trace = self.stage(
            part, _Pivot(network, own, terms), weights, f"{self.name}, picture {row + 1} of {len(task.target)}",
            stopping=Stopping(self.stop_loss, self.stop_patience, self.stop_plateau, limits),
            keep="last" if self.locality else "best",  # its codes change with each step, and so do the losses
        )  # fmt: skip
        task.stages, task.updates = part.stages, part.updates
        return trace

    def render(self, task: Task, space: "_Pivot", variables, step: torch.Tensor, resolution: int | None = None):
        """(picture [1, 3, R, R], what the locality regulariser looks at) of the weights after ``step`` [1] updates."""
        weights = {name: value[0] for name, value in variables.items()}
        images = synthesize(space.network.having(weights), space.codes, self.noise).to(task.target.dtype)
        return images, {"w_plus": space.codes["w_plus"], "weights": weights, "step": step}

    def terms(self, task: Task, space: "_Pivot", target: torch.Tensor, mask: torch.Tensor | None) -> list[Term]:
        """The objective of one picture."""
        return space.terms

    def picture(self, task: Task, codes: dict[str, Any], resolution: int | None = None) -> torch.Tensor:
        """Pictures of codes in the arithmetic of the losses."""
        if not has_weights(codes):
            return super().picture(task, codes, resolution)
        return tuned_pictures(task.G, codes, self.noise).to(task.target.dtype)


class Tunable:
    """The synthesis network of a generator, as a function of its weights.

    Args:
        G: the generator; it is copied.
        patterns: names of parameters of its synthesis, or shell patterns.
        dtype: of the weights; the feature maps are computed in that of G.

    Attributes:
        own: name -> weights of G, all of them.
        names: those that are tuned.

    Raises:
        UsageError: a pattern that fits no parameter.
    """

    def __init__(self, G, patterns: tuple[str, ...], dtype: torch.dtype):
        self.network = copy.deepcopy(G.synthesis).to(dtype)
        self.own = {name: value.detach() for name, value in self.network.named_parameters()}
        self.options = {"dtype": G.w_avg.dtype}
        if "once" in inspect.signature(self.network.forward).parameters:
            self.options["once"] = True
        for pattern in patterns:
            if not fnmatch.filter(self.own, pattern):
                raise UsageError(f"parameters: {pattern!r} fits none of the generator's, {', '.join(self.own)}")
        self.names = [name for name in self.own if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def having(self, weights: dict[str, torch.Tensor]) -> "_Having":
        """A network with ``synthesis`` that has these weights, and its own ones where none are given."""
        return _Having(self, weights)

    def choose_used(self, codes: dict[str, Any], noise: str) -> None:
        """Leave out of ``names`` what has no say in pictures of such codes (as affine layers in S, or unused noise)."""
        one = nested({name: value[:1] for name, value in flat(codes).items()})
        with torch.enable_grad():
            weights = {name: self.own[name].clone().requires_grad_() for name in self.names}
            total = synthesize(self.having(weights), one, noise).sum()
            gradients = [None] * len(weights)
            if total.requires_grad:
                gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        self.names = [name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None]
        if not self.names:
            raise UsageError("none of the chosen parameters has a say in the picture of such codes; choose others")

    def start(self, given: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
        """Weights [1, ...] to start from: its own, and the differences that codes hold for a picture."""
        weights = {}
        for name in self.names:
            change = difference(given, name, self.own[name])
            weights[name] = self.own[name][None] + (0 if change is None else change[row : row + 1])
        return weights


@dataclass(frozen=True)
class _Having:
    tunable: Tunable
    weights: dict[str, torch.Tensor]

    def synthesis(self, code: torch.Tensor, **options) -> torch.Tensor:
        return functional_call(self.tunable.network, self.weights, (code,), options | self.tunable.options)


@dataclass(frozen=True)
class _Pivot:
    """What the tuning of one picture has in the place of a latent space."""

    network: Tunable
    codes: dict[str, Any]
    terms: list[Term]

    def frozen_variables(self) -> tuple[str, ...]:
        return ()


def _alone(task: Task, row: int) -> Task:
    """The task of one picture; the callback gets all pictures nevertheless, NaN for the others."""
    count = len(task.target)

    def spread(values: torch.Tensor) -> torch.Tensor:
        full = values.new_full((count, *values.shape[1:]), math.nan)
        full[row] = values[0]
        return full

    def callback(step, losses, images):
        return task.callback(step, {name: spread(value) for name, value in losses.items()}, spread(images))

    target, mask = task.target[row : row + 1], None if task.mask is None else task.mask[row : row + 1]
    if task.progress is not None:
        task.progress.target = target
    return dataclasses.replace(
        task, target=target, mask=mask, start=None, callback=None if task.callback is None else callback
    )


def _trace(first: Trace | None, traces: dict[int, Trace], count: int) -> Trace:
    """The pivot's trace and, after it, those of the pictures (row -> trace) side by side, NaN where one was over."""
    if not traces:
        return first
    longest = max(len(trace.losses["total"]) for trace in traces.values())
    some = next(iter(traces.values()))
    curves = {name: curve.new_full((longest, count), math.nan) for name, curve in some.losses.items()}
    best_step, failed, finished = torch.zeros(count, dtype=torch.long), {}, {}
    for row, trace in traces.items():
        for name, curve in trace.losses.items():
            curves[name][: len(curve), row] = curve[:, 0]
        best_step[row] = trace.best_step[0]
        if trace.failed:
            failed[row] = trace.failed[0]
        if trace.finished:
            finished[row] = trace.finished[0]
    whole = Trace(
        {}, curves, best_step, max(trace.steps for trace in traces.values()),
        any(trace.stopped for trace in traces.values()), failed, finished,
        any(trace.captured for trace in traces.values()),
        next((trace.why_eager for trace in traces.values() if trace.why_eager), ""),
    )  # fmt: skip
    if first is None:
        return whole
    whole = joined(first, whole)
    untuned = [row for row in range(count) if row not in traces]
    whole.best_step[untuned] = first.best_step[untuned]
    return whole
