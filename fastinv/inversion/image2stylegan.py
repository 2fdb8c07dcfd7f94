"""Image2StyleGAN (Abdal, Qin, Wonka 2019, arXiv 1904.03189): optimise a W+ code for pixel and perceptual distance."""

import math
import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fastinv.errors import UsageError
from fastinv.inversion.loop import Term, Trace, optimize, ramped
from fastinv.inversion.task import Task
from fastinv.latents import expand, mean_latent
from fastinv.losses import PerceptualLoss, PixelLoss, load_trunk


def option(default, help: str):
    """A field of a method: its default and the line that documents it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Image2StyleGAN:
    """``w* = argmin sum_j lambda_j / N_j ||F_j(G(w)) - F_j(I)||^2 + lambda_mse / N ||G(w) - I||^2``, by Adam.

    The paper: lambda all 1, VGG-16 conv1_1, conv1_2, conv3_2, conv4_2 at 256, Adam at a constant 0.01 for 5000 steps
    (``steps=5000, learning_rate=0.01, ramp_up=0, ramp_down=0``), mean start for faces, uniform start in [-1, 1] for
    other pictures. It does not say whether features are taken before or after the ReLU, nor how inputs are normalised.
    """

    name: ClassVar[str] = "image2stylegan"
    spaces: ClassVar[tuple[str, ...]] = ("w+", "w")

    steps: int = option(300, "updates; 0 only evaluates the start")
    learning_rate: float = option(0.05, "peak learning rate of Adam")
    beta1: float = option(0.9, "Adam's decay of the gradient's mean")
    beta2: float = option(0.999, "Adam's decay of the gradient's square")
    ramp_up: float = option(0.05, "part of the steps in which the learning rate rises from zero")
    ramp_down: float = option(0.25, "part of the steps in which it falls to zero")
    start: str = option("mean", "mean (the average latent) or random (uniform in [-1, 1], one draw for all pictures)")
    pixel_weight: float = option(1.0, "lambda_mse")
    perceptual_weight: float = option(1.0, "factor of the perceptual sum; 0 needs no trunk")
    trunk: Any = option("auto", "auto, vgg16, attributes, or a module with features(images)")
    layers: tuple | None = option(None, "feature maps: names (vgg16) or positions (others); None is the trunk's choice")
    layer_weights: tuple | None = option(None, "lambda_j, one per layer; None is 1 for each")
    pre_relu: bool = option(False, "vgg16: take features before the ReLU")
    normalize: bool = option(True, "vgg16: normalise the input with ImageNet's mean and deviation")
    noise: str = option("const", "noise maps of the generator: const or none")

    def __post_init__(self):
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate must be positive and finite, not {self.learning_rate}")
        for name in ("layers", "layer_weights"):
            if not isinstance(getattr(self, name), (tuple, list, type(None))):
                raise UsageError(f"{name} must be a list, not {getattr(self, name)!r}")
        if not all(isinstance(weight, numbers.Real) and 0 <= weight < math.inf for weight in self.layer_weights or ()):
            raise UsageError(f"layer_weights must be numbers of at least 0, not {self.layer_weights!r}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("ramp_up", "ramp_down"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        for name in ("pixel_weight", "perceptual_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not self.pixel_weight and not self.perceptual_weight:
            raise UsageError("pixel_weight and perceptual_weight are both 0: nothing would be optimised")
        if self.start not in ("mean", "random"):
            raise UsageError(f"start must be mean or random, not {self.start!r}")
        if self.noise not in ("const", "none"):
            raise UsageError(f"noise must be const or none, not {self.noise!r}")

    def run(self, task: Task) -> Trace:
        """Optimise; the trace's only variable is ``w``, [N, 1, w_dim] in W or [N, num_ws, w_dim] in W+."""
        terms = []
        if self.pixel_weight:
            terms.append(Term("pixel", PixelLoss(task.target, task.mask), self.pixel_weight))
        if self.perceptual_weight:
            trunk, facts = load_trunk(
                self.trunk, self.layers, self.pre_relu, self.normalize, task.target.device, task.target.dtype
            )
            task.facts["trunk"] = facts
            loss = PerceptualLoss(task.target, trunk, self.layer_weights, task.mask)
            terms.append(Term("perceptual", loss, self.perceptual_weight))
        return optimize(
            {"w": self._start(task)}, lambda variables: self.render(task, variables), terms,
            steps=self.steps, learning_rate=self.learning_rate, schedule=ramped(self.ramp_up, self.ramp_down),
            betas=(self.beta1, self.beta2), callback=task.callback, progress=task.progress, graph=task.graph,
        )  # fmt: skip

    def render(self, task: Task, variables: dict[str, torch.Tensor]) -> torch.Tensor:
        """Pictures [N, 3, R, R] of the variables."""
        return task.synthesis(expand(variables["w"], task.G.num_ws), noise=self.noise)

    def w_plus(self, task: Task, variables: dict[str, torch.Tensor]) -> torch.Tensor:
        """The code [N, num_ws, w_dim] of the variables."""
        return expand(variables["w"], task.G.num_ws)

    def _start(self, task: Task) -> torch.Tensor:
        vectors = 1 if task.space == "w" else task.G.num_ws
        if self.start == "mean":
            w = mean_latent(task.G).expand(1, vectors, -1)
        else:
            random = torch.Generator().manual_seed(task.seed)
            w = torch.rand(1, vectors, task.G.w_dim, generator=random) * 2 - 1
        return w.to(task.target).expand(len(task.target), -1, -1).contiguous()
