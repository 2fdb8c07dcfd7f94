"""What all methods of latent optimisation share: their options, a start, an objective, and the stages of the loop.

A method is a small dataclass that derives from ``Method``: its own defaults, and what it does differently.
"""

import dataclasses
import math
import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn import functional

from fastinv.checkpoints.registry import DEFAULT
from fastinv.errors import UsageError
from fastinv.inversion.loop import Trace, joined, ramped
from fastinv.inversion.objective import build_terms, read_encoder
from fastinv.inversion.spaces import NAMES, NOISE, Space, make_space, synthesize
from fastinv.inversion.stopping import Stopping
from fastinv.inversion.task import Task
from fastinv.latents import mean_latent
from fastinv.models.layers import block_resolutions

NO_CODE_PRIOR = ("s",)  # spaces without a w that a prior on W could look at


def option(default, help: str):
    """A field of a method: its default and the line that documents it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Method:
    """Adam on the variables of a latent space, for a weighted sum of losses (each is left out where its weight is 0).

    Attributes:
        name: in ``METHODS`` and on the command line.
        spaces: where it works; the first is its default.
        generator: bundled name of the generator that the command line takes where none is given.
        mask_features: whether masks weight the trunk's feature maps, or only the pictures that it sees.
    """

    name: ClassVar[str]
    mask_features: ClassVar[bool] = True
    generator: ClassVar[str] = DEFAULT
    spaces: ClassVar[tuple[str, ...]] = ("w+", "w", "z", "s", "w+noise", "f+w+")

    steps: int = option(300, "updates; 0 only evaluates the start")
    learning_rate: float = option(0.05, "peak learning rate of Adam")
    noise_learning_rate: float | None = option(None, "that of the noise maps; None is the same")
    features_learning_rate: float | None = option(None, "that of the features of F+W+; None is the same")
    precondition: float = option(0.0, "w, w+: optimise along the principal axes of W, times their deviation to this")
    beta1: float = option(0.9, "Adam's decay of the gradient's mean")
    beta2: float = option(0.999, "Adam's decay of the gradient's square")
    ramp_up: float = option(0.05, "part of the steps in which the learning rate rises from zero")
    ramp_down: float = option(0.25, "part of the steps in which it falls to zero")
    start: str = option("mean", "mean (the average latent) or random (uniform in [-1, 1], one draw for all pictures)")
    noise: str = option("const", "noise maps of the generator: const, none, or optimize")
    noise_start: str = option("const", "optimised noise maps begin as: const (the generator's), random or zero")
    features_at: int = option(16, "f+w+: resolution of the block whose features are optimised")
    coarse_resolution: int = option(0, "begin with pictures of this size, which is faster; 0 for no such stage")
    coarse_part: float = option(0.5, "part of the steps that are done in that stage")
    stop_loss: float | None = option(None, "a picture is finished when its total loss is this low")
    stop_patience: int | None = option(None, "a picture is finished when its loss has not fallen for so many steps ...")
    stop_plateau: float = option(0.01, "... by this part of itself")

    pixel_weight: float = option(1.0, "of the pixel loss")
    pixel_loss: str = option("mse", "mse, l1 or log-cosh")
    perceptual_weight: float = option(1.0, "of the distance of the trunk's features; 0 needs no trunk")
    trunk: Any = option("auto", "auto, vgg16, attributes, or a module with features(images)")
    layers: tuple | None = option(None, "feature maps: names (vgg16) or positions (others); None is the trunk's choice")
    layer_weights: tuple | None = option(None, "of the layers, one for each; None is 1 for each")
    feature_loss: str = option("mse", "distance of the trunk's features: mse or log-cosh")
    pre_relu: bool = option(False, "vgg16: take features before the ReLU")
    normalize: bool = option(True, "vgg16: normalise the input with ImageNet's mean and deviation")
    lpips_weight: float = option(0.0, "of LPIPS (VGG-16); without its weights here the attribute network stands in")
    ms_ssim_weight: float = option(0.0, "of 1 - MS-SSIM")
    mean_weight: float = option(0.0, "of the mean absolute distance of the code from the mean latent")
    p_norm_weight: float = option(0.0, "of the P-norm+ prior of II2S")
    discriminator_weight: float = option(0.0, "of softplus(-D(picture))")
    discriminator: Any = option(None, "the discriminator: a module, bundled name or file; None is the generator's own")
    domain_weight: float = option(0.0, "of the distance between the code and what the encoder makes of its picture")
    encoder: Any = option(None, "the encoder: a module, bundled name or file")
    noise_weight: float = option(0.0, "of the noise maps' pyramid regulariser, where they are optimised")

    def __post_init__(self):
        """Refuse options out of range."""
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"learning_rate must be positive and finite, not {self.learning_rate}")
        for name in ("noise_learning_rate", "features_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be positive and finite, not {value}")
        for name in ("layers", "layer_weights"):
            if not isinstance(getattr(self, name), (tuple, list, type(None))):
                raise UsageError(f"{name} must be a list, not {getattr(self, name)!r}")
        if not all(isinstance(weight, numbers.Real) and 0 <= weight < math.inf for weight in self.layer_weights or ()):
            raise UsageError(f"layer_weights must be numbers of at least 0, not {self.layer_weights!r}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        for name in ("ramp_up", "ramp_down", "coarse_part", "stop_plateau", "precondition"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be in [0, 1], not {getattr(self, name)}")
        weights = [field.name for field in dataclasses.fields(self) if field.name.endswith("_weight")]
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not any(getattr(self, name) for name in weights if name not in ("mean_weight", "p_norm_weight")):
            raise UsageError("pixel_weight, perceptual_weight and all others are 0: nothing would be optimised")
        choices = {
            "start": ("mean", "random"), "noise": ("const", "none", "optimize"),
            "noise_start": ("const", "random", "zero"), "pixel_loss": ("mse", "l1", "log-cosh"),
            "feature_loss": ("mse", "log-cosh"),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, not {getattr(self, name)!r}")
        for name in ("features_at", "coarse_resolution"):
            value = getattr(self, name)
            if value and (value < 4 or value & (value - 1)):
                raise UsageError(f"{name} must be the resolution of a block, a power of two of at least 4, not {value}")
        if self.stop_patience is not None and self.stop_patience < 1:
            raise UsageError(f"stop_patience must be at least 1, not {self.stop_patience}")

    def fitted(self, G, masked: bool = False, started: bool = False) -> "Method":
        """What works with a generator: an encoder that is given by name or file is read.

        Args:
            G: the generator.
            masked, started: whether ``invert`` has masks, and a start.

        Raises:
            UsageError: there is no encoder where one is needed, or it does not fit the generator.
            CheckpointError: its file cannot be read.
        """
        if self.domain_weight and self.encoder is None:
            raise UsageError("domain_weight needs an encoder: give encoder=, a name or file (see `fastinv models`)")
        return self if self.encoder is None else dataclasses.replace(self, encoder=read_encoder(self.encoder, G))

    def check_space(self, space: str) -> None:
        """A UsageError where a loss or a stage makes no sense in a space (docs/inversion.md has the table)."""
        if space in NO_CODE_PRIOR:
            for name in ("p_norm_weight", "domain_weight"):
                if getattr(self, name):
                    raise UsageError(f"{name} is for codes in W; space {space!r} has none: set it to 0")
        optimised = self.noise == "optimize" or space == "w+noise"
        if self.noise_weight and not optimised:
            raise UsageError("noise_weight is for optimised noise maps: use noise=optimize or w+noise, or set it to 0")
        if self.precondition and space in ("z", "s"):
            raise UsageError(f"precondition is for codes in W, not for space {space!r}: set it to 0")
        if self.coarse_resolution and space == "f+w+":
            raise UsageError("coarse_resolution does not go with space 'f+w+', whose features have one size")
        if self.coarse_resolution and self.discriminator_weight:
            raise UsageError("coarse_resolution does not go with discriminator_weight: D takes pictures of one size")

    def run(self, task: Task) -> tuple[Trace, dict[str, Any]]:
        """Optimise; the trace, and the codes of the kept variables (see ``inversion.spaces``)."""
        space = self.space(task)
        trace = self.optimize(task, space, self.start_variables(task, space))
        with torch.no_grad():
            return trace, space.finish(trace.variables)

    def space(self, task: Task) -> Space:
        """The space, as the method uses it."""
        return make_space(task.space, task.G, self.noise, self.features_at, self.precondition)

    def start_codes(self, task: Task) -> torch.Tensor:
        """The code [N, num_ws, w_dim] to start near."""
        if task.start is not None:
            return task.start["w_plus"]
        shape = len(task.target), task.G.num_ws, task.G.w_dim
        if self.start == "mean":
            return mean_latent(task.G).to(task.target).expand(shape)
        random = torch.Generator().manual_seed(task.seed)
        vectors = 1 if task.space in ("w", "z") else task.G.num_ws
        w = torch.rand(1, vectors, task.G.w_dim, generator=random) * 2 - 1
        return w.to(task.target).expand(shape)

    def start_variables(self, task: Task, space: Space) -> dict[str, torch.Tensor]:
        """Start values of everything that is optimised."""
        noise = None if task.start is None else task.start.get("noise")
        if noise is None and self.noise_start != "const" and space.optimise_noise:
            random = torch.Generator().manual_seed(task.seed)
            sides = task.G.synthesis.noise_layers()
            noise = {layer: torch.randn(1, 1, side, side, generator=random) for layer, side in sides.items()}
            if self.noise_start == "zero":
                noise = {layer: torch.zeros_like(value) for layer, value in noise.items()}
        return space.start(self.start_codes(task), noise, task.seed)

    def optimize(self, task: Task, space: Space, variables: dict[str, torch.Tensor]) -> Trace:
        """All stages: at a low resolution where the options say so, then at the full one."""
        coarse = round(self.steps * self.coarse_part) if self.coarse_resolution else 0
        if coarse == 0:
            return self.stage(task, space, variables, self.name)
        resolution = self.coarse_resolution
        if resolution not in block_resolutions(task.G.resolution)[:-1]:
            raise UsageError(
                f"coarse_resolution must be a block's below the generator's {task.G.resolution}, not {resolution}"
            )
        first = self.stage(
            task, space, variables, f"{self.name} at {resolution}", steps=coarse, resolution=resolution
        )
        if first.stopped:
            return first
        second = self.stage(task, space, first.variables, self.name, steps=self.steps - coarse, done=coarse)
        return joined(first, second)

    def stage(
        self,
        task: Task,
        space: Space,
        variables: dict[str, torch.Tensor],
        label: str,
        steps: int | None = None,
        done: int = 0,
        resolution: int | None = None,
        **options,
    ) -> Trace:
        """One run of the loop.

        Args:
            variables: to begin with.
            label: for the progress.
            steps: updates; None is all that the method has.
            done: updates of the stages before, for the learning rate, which rises and falls once over all.
            resolution: of the pictures; None is the generator's.
            options: further ones for the loop.
        """
        target, mask = task.target, task.mask
        if resolution is not None:
            factor = task.G.resolution // resolution
            target = functional.avg_pool2d(target, factor)
            mask = None if mask is None else functional.avg_pool2d(mask, factor)
        whole, ramp = self.steps, ramped(self.ramp_up, self.ramp_down)
        stopping = None
        if self.stop_loss is not None or self.stop_patience is not None:
            low = None if resolution is not None else self.stop_loss  # another size has other losses
            stopping = Stopping(low, self.stop_patience, self.stop_plateau)
        options = {"schedule": lambda step, _: ramp(step + done, whole), "stopping": stopping} | options
        return task.optimize(
            label, variables, lambda variables, step: self.render(task, space, variables, step + done, resolution),
            self.terms(task, space, target, mask), steps=self.steps if steps is None else steps,
            learning_rate=self.rates(space, variables), betas=(self.beta1, self.beta2), **options,
        )  # fmt: skip

    def rates(self, space: Space, variables) -> dict[str, float]:
        """The learning rate of each variable."""
        rates = dict.fromkeys(variables, self.learning_rate)
        for name in variables:
            if name.startswith(NOISE) and self.noise_learning_rate is not None:
                rates[name] = self.noise_learning_rate
        if "features" in variables and self.features_learning_rate is not None:
            rates["features"] = self.features_learning_rate
        return rates | dict.fromkeys(space.frozen_variables(), 0.0)

    def render(self, task: Task, space: Space, variables, step: torch.Tensor, resolution: int | None = None):
        """(pictures [N, 3, R, R], codes) of the variables after ``step`` [1] updates of all stages."""
        codes = space.codes(variables)
        return self.picture(task, codes, resolution), codes

    def picture(self, task: Task, codes: dict[str, Any], resolution: int | None = None) -> torch.Tensor:
        """Pictures of codes in the arithmetic of the losses."""
        mode = "none" if self.noise == "none" else "const"
        return synthesize(task.network, codes, mode, resolution).to(task.target.dtype)

    def terms(self, task: Task, space: Space, target: torch.Tensor, mask: torch.Tensor | None) -> list:
        """The objective for targets of some size."""
        return build_terms(self, task, target, mask)


def changed(name: str, default):
    """The option of ``Method`` of this name with another default, for the methods."""
    return option(default, Method.__dataclass_fields__[name].metadata["help"])


assert set(Method.spaces) == set(NAMES)
