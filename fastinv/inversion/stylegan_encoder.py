"""The hybrid of stylegan-encoder (github.com/pbaylies/stylegan-encoder): a guess, then optimisation for many losses."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fastinv.errors import UsageError
from fastinv.inversion.loop import Trace, joined
from fastinv.inversion.method import Method, changed, option
from fastinv.inversion.spaces import Space
from fastinv.inversion.start import start_codes
from fastinv.inversion.task import Task
from fastinv.latents import mean_latent, w_statistics
from fastinv.models.entries import with_zero_gradients

AVERAGE = "average"  # the variable that is carried along, not optimised


@dataclass(frozen=True)
class StyleGANEncoder(Method):
    """Optimise a code, from an encoder's guess if there is one, for log-cosh of pixels and of features, MS-SSIM, LPIPS
    and the distance to the mean latent, by Adam.

    The start is ``init`` of ``invert``, or the option ``encoder``, or the mean.

    Average: with every code that is better than all before it, ``average = 0.25 average + 0.75 code``. At the end the
    average is measured, too, and is the result where its loss is lower.

    Stochastic clipping: a coordinate that is more than ``clip`` standard deviations of W away from the mean is put to
    a random place (uniform) within, after each update; the places of a step are the same for all pictures.

    Early stop: a picture is finished when its loss has fallen by less than 1% over 50 steps.

    The original's weights are for pictures in 0..255: pixels 1.5, features 0.4, MS-SSIM 200, LPIPS 100, discriminator
    0.5, and 0.5 for the L1 distance to the mean, summed over a code's width. Here LPIPS has 1. The others, for means
    and pictures in [-1, 1], were chosen on the embedded generator, so that no term outweighs the rest there: pixels 4,
    features 2, MS-SSIM 1 (with more of it, as there, some faces end in a wrong one), L1 0.01 (theirs outweighs the
    picture). The discriminator has 0: it needs a good one, and that of the embedded generator is small.

    Their optimiser (ggt at 0.25, 100 steps) is Adam here, and their patience (10 steps without a fall of 0.5) one in
    parts of the loss. They clip at 2.0 in units of w; generators have W of different widths, so ours are deviations,
    and 4 of them: at 2, where 5% of the latents' own coordinates lie outside, some faces get up to 5 dB worse. Not
    kept: face masks by GrabCut (give ``masks``), sharpening, the adaptive robust loss.
    """

    name: ClassVar[str] = "stylegan-encoder"
    spaces: ClassVar[tuple[str, ...]] = ("w+", "w")

    steps: int = changed("steps", 200)
    learning_rate: float = changed("learning_rate", 0.1)
    stop_patience: int | None = changed("stop_patience", 50)
    pixel_loss: str = changed("pixel_loss", "log-cosh")
    pixel_weight: float = changed("pixel_weight", 4.0)
    feature_loss: str = changed("feature_loss", "log-cosh")
    perceptual_weight: float = changed("perceptual_weight", 2.0)
    ms_ssim_weight: float = changed("ms_ssim_weight", 1.0)
    lpips_weight: float = changed("lpips_weight", 1.0)
    mean_weight: float = changed("mean_weight", 0.01)
    average_best_loss: float = option(0.25, "share of the average before in the average of the best codes; 0 for none")
    clip: float | None = option(4.0, "standard deviations from the mean latent at which codes are clipped; None never")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.average_best_loss < 1:
            raise UsageError(f"average_best_loss must be in [0, 1), not {self.average_best_loss}")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip must be above 0, or None for no clipping, not {self.clip}")
        if self.precondition and self.clip is not None:
            raise UsageError("clip is for the coordinates of W, which precondition turns: set clip to None")

    def start_codes(self, task: Task) -> torch.Tensor:
        if task.start is not None or self.encoder is None:
            return super().start_codes(task)
        codes, facts = start_codes(self.encoder, task.G, task.target)
        task.facts |= facts
        return codes["w_plus"]

    def optimize(self, task: Task, space: Space, variables: dict[str, torch.Tensor]) -> Trace:
        """With clipping, and with the average carried along and measured at the end."""
        if self.clip is not None:
            self.tabulate_clipping(task, variables["w"])
        if not self.average_best_loss:
            return super().optimize(task, space, variables)
        code = _code(variables)
        trace = super().optimize(task, space, variables | {AVERAGE: variables[code]})
        if trace.stopped:
            return trace
        average = trace.variables | {code: self.mixed(trace.variables)}
        return lower_of(trace, self.stage(task, space, average, f"{self.name}, average", steps=0, done=self.steps))

    def mixed(self, best: dict[str, torch.Tensor]) -> torch.Tensor:
        """The average with the best code, from the code and what the average was before it."""
        return self.average_best_loss * best[AVERAGE] + (1 - self.average_best_loss) * best[_code(best)]

    def tabulate_clipping(self, task: Task, w: torch.Tensor) -> None:
        """The range of each coordinate, and where those outside are put after each update [steps, vectors, w_dim]."""
        mean, std = mean_latent(task.G).to(w), w_statistics(task.G).std.to(w)
        random = torch.Generator().manual_seed(-1 - task.seed)  # not the numbers that the start is made of
        places = torch.rand(self.steps, *w.shape[1:], generator=random, dtype=w.dtype).to(w.device)
        limit = self.clip * std
        task.tables |= {"mean": mean, "limit": limit, "places": mean + (2 * places - 1) * limit}

    def rates(self, space: Space, variables) -> dict[str, float]:
        return super().rates(space, variables) | dict.fromkeys({AVERAGE} & set(variables), 0.0)

    def render(self, task: Task, space: Space, variables, step: torch.Tensor, resolution: int | None = None):
        codes = space.codes(variables)
        if AVERAGE in variables:
            codes["w_plus"] = with_zero_gradients(codes["w_plus"], [variables[AVERAGE]])
        return self.picture(task, codes, resolution), codes

    def stage(self, task: Task, space: Space, variables, label: str, done: int = 0, **options) -> Trace:
        def project(variables, best, step):
            if self.clip is not None:
                w, tables = variables["w"], task.tables
                outside = (w - tables["mean"]).abs() > tables["limit"]
                w.copy_(torch.where(outside, tables["places"].index_select(0, step + (done - 1)), w))
            if AVERAGE in variables:
                variables[AVERAGE].copy_(self.mixed(best))

        return super().stage(task, space, variables, label, done=done, project=project, **options)


def _code(variables: dict[str, torch.Tensor]) -> str:
    """The variable that holds the code."""
    return "v" if "v" in variables else "w"


def lower_of(trace: Trace, other: Trace) -> Trace:
    """A trace, and an evaluation of other variables after it; of each picture the variables with the lower loss."""
    both = joined(trace, other)
    totals = both.losses["total"]
    lower = totals[-1] < totals[trace.best_step, torch.arange(totals.shape[1])]
    for name, value in trace.variables.items():
        chosen = lower.to(value.device).view(-1, *[1] * (value.ndim - 1))
        both.variables[name] = torch.where(chosen, other.variables[name], value)
    both.best_step = torch.where(lower, both.best_step, trace.best_step)
    both.finished, both.captured, both.why_eager = trace.finished, trace.captured, trace.why_eager
    return both
