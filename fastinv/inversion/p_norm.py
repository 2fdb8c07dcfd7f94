"""II2S (Zhu, Abdal, Qin, Femiani, Wonka 2020, arXiv 2012.09036): optimise a W+ code with the P-norm+ prior."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastinv.errors import UsageError
from fastinv.inversion.loop import Trace, joined, ramped
from fastinv.inversion.method import Method, changed, option
from fastinv.inversion.spaces import Space, make_space
from fastinv.inversion.task import Task


@dataclass(frozen=True)
class PNormPlus(Method):
    """``min_w mean (G(w) - I)^2 + LPIPS(G(w), I) + 0.001 mean v^2``, by Adam; v is w where the latents of the generator
    are about normal: ``(leaky_relu(w, 5) - mean) C^T / deviation``, for each style input by itself.

    In space F+W+ the features after a block are optimised after the code, together with it, for the last
    ``features_part`` of the steps (FS space of Barbershop, Zhu et al. 2021, arXiv 2106.01505). Only the style inputs
    above the block have a say in the picture then.

    The authors: Adam at a constant 0.01, 1300 steps in W+ in II2S; 1100, and 250 with the features after the block of
    32, in Barbershop (``steps=1350, features_at=32, learning_rate=0.01, ramp_up=0, ramp_down=0``). Ours are 500 steps
    with a peak of 0.05, which rises and falls in each of the two stages: on 64x64 pictures that gives a lower loss
    sooner. The statistics of W are exact, of 100,000 latents; theirs are an incremental PCA of a million.
    """

    name: ClassVar[str] = "p-norm"
    spaces: ClassVar[tuple[str, ...]] = ("w+", "w", "w+noise", "f+w+")

    steps: int = changed("steps", 500)
    perceptual_weight: float = changed("perceptual_weight", 0.0)
    lpips_weight: float = changed("lpips_weight", 1.0)
    p_norm_weight: float = changed("p_norm_weight", 0.001)
    features_part: float = option(0.2, "f+w+: part of the steps in which features are optimised, after those in W+")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.features_part <= 1:
            raise UsageError(f"features_part must be in [0, 1], not {self.features_part}")

    def run(self, task: Task) -> tuple[Trace, dict[str, Any]]:
        if task.space != "f+w+":
            return super().run(task)
        codes_only = make_space("w+", task.G, self.noise, precondition=self.precondition)
        features = round(self.steps * self.features_part)
        first = self.alone(task, codes_only, self.start_variables(task, codes_only), self.name, self.steps - features)
        with torch.no_grad():
            codes = codes_only.finish(first.variables)
            if first.stopped:
                return first, codes
            space = self.space(task)
            variables = space.start(codes["w_plus"], codes.get("noise"), task.seed)
        trace = joined(first, self.alone(task, space, variables, f"{self.name} with features", features))
        with torch.no_grad():
            return trace, space.finish(trace.variables)

    def alone(self, task: Task, space: Space, variables, label: str, steps: int) -> Trace:
        """A stage with a rise and fall of the learning rate of its own."""
        ramp = ramped(self.ramp_up, self.ramp_down)
        return self.stage(task, space, variables, label, steps=steps, schedule=ramp)
