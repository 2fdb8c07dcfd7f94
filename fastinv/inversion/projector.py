"""The projector of StyleGAN2 (Karras et al. 2020, arXiv 1912.04958, appendix D): one code in W, and the noise maps."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fastinv.errors import UsageError
from fastinv.inversion.loop import Trace
from fastinv.inversion.method import Method, changed, option
from fastinv.inversion.spaces import NOISE, Space
from fastinv.inversion.task import Task
from fastinv.latents import w_statistics
from fastinv.ops.noise import normalize_noise_

SAMPLES, SEED = 10_000, 123  # latents that give the mean and the deviation of W
STAND_IN = 0.35  # the attribute network's distance of a mean face, 1.8, becomes what LPIPS gives for one, about 0.6


@dataclass(frozen=True)
class Projector(Method):
    """``min_{w, n} D(G(w + e, n), I) + 1e5 sum_{maps, levels} mean(n * right(n))^2 + mean(n * down(n))^2``, by Adam.

    e is noise on w, ``N(0, 1) * 0.05 * deviation * max(0, 1 - t / 0.75)^2`` with t from 0 to 1 over the steps. One draw
    per step serves all pictures, and all style inputs where there is one code. The maps n start random and are brought
    to mean 0 and mean square 1 after each update. As losses of different steps do not compare, the last code is kept.

    D is the squared distance of LPIPS-weighted VGG-16 features, summed: LPIPS. Where no VGG-16 weights are here, it is
    the attribute network's distance times 0.35, so that it is about as large, and the weight of the noise term keeps
    its meaning. The original takes NVIDIA's own heads, we those of the ``lpips`` package.

    As in the original: Adam with 0.9, 0.999 and a peak rate of 0.1 over 1000 steps, which rises over 5% of them and
    falls over 25%; the start is the mean of 10,000 mapped latents, whose root mean square distance from it is the
    deviation. Not as there: the rate of the first step is not zero, and W+ is a space, too.
    """

    name: ClassVar[str] = "projector"
    spaces: ClassVar[tuple[str, ...]] = ("w", "w+")

    steps: int = changed("steps", 1000)
    learning_rate: float = changed("learning_rate", 0.1)
    noise: str = changed("noise", "optimize")
    noise_start: str = changed("noise_start", "random")
    pixel_weight: float = changed("pixel_weight", 0.0)
    perceptual_weight: float = changed("perceptual_weight", 0.0)
    lpips_weight: float = changed("lpips_weight", 1.0)
    noise_weight: float = changed("noise_weight", 1e5)
    w_noise: float = option(0.05, "noise on w at the first step, as a part of the deviation of W; 0 for none")
    w_noise_part: float = option(0.75, "part of the steps after which there is none")

    def __post_init__(self):
        super().__post_init__()
        for name in ("w_noise", "w_noise_part"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in [0, 1], not {getattr(self, name)}")

    def run(self, task: Task):
        self.tabulate(task)
        return super().run(task)

    def tabulate(self, task: Task) -> None:
        """The mean of W, and the noise on w after each number of updates, [steps + 1, vectors, w_dim]."""
        statistics = w_statistics(task.G, SAMPLES, SEED)
        random = torch.Generator().manual_seed(-1 - task.seed)  # not the numbers that the noise maps start from
        vectors = 1 if task.space == "w" else task.G.num_ws
        draws = torch.randn(self.steps + 1, vectors, task.G.w_dim, generator=random, dtype=task.target.dtype)
        part = torch.arange(self.steps + 1, dtype=torch.float64) / max(self.steps, 1)
        left = (1 - part / self.w_noise_part).clamp(min=0) if self.w_noise_part else torch.zeros_like(part)
        strength = (self.w_noise * statistics.radius * left.square()).to(draws.dtype)
        task.tables["mean"] = statistics.mean
        task.tables["w_noise"] = (draws * strength.view(-1, 1, 1)).to(task.target.device)

    def start_codes(self, task: Task) -> torch.Tensor:
        if task.start is None and self.start == "mean":
            return task.tables["mean"].to(task.target).expand(len(task.target), task.G.num_ws, -1)
        return super().start_codes(task)

    def render(self, task: Task, space: Space, variables, step: torch.Tensor, resolution: int | None = None):
        codes = space.codes(variables)
        codes["w_plus"] = codes["w_plus"] + task.tables["w_noise"].index_select(0, step)
        return self.picture(task, codes, resolution), codes

    def stage(self, task: Task, space: Space, variables, label: str, **options) -> Trace:
        return super().stage(task, space, variables, label, keep="last", project=_normalize, **options)

    def terms(self, task: Task, space: Space, target: torch.Tensor, mask: torch.Tensor | None) -> list:
        terms = super().terms(task, space, target, mask)
        if task.facts.get("lpips", {}).get("name") != "attributes":
            return terms
        return [replace(term, weight=STAND_IN * term.weight) if term.name == "lpips" else term for term in terms]


def _normalize(variables: dict[str, torch.Tensor], best: dict[str, torch.Tensor], step: torch.Tensor) -> None:
    maps = [value for name, value in variables.items() if name.startswith(NOISE)]
    if maps:
        normalize_noise_(maps)
