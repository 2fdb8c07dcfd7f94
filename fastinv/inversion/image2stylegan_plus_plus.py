"""Image2StyleGAN++ (Abdal, Qin, Wonka 2020, arXiv 1911.11544): a W+ code, then the noise maps, under soft masks."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional

from fastinv.errors import UsageError
from fastinv.inversion.loop import Term, Trace, joined, ramped
from fastinv.inversion.method import Method, option
from fastinv.inversion.objective import PIXEL_LOSSES
from fastinv.inversion.spaces import NOISE, Space
from fastinv.inversion.stopping import Stopping
from fastinv.inversion.task import Task, check_images, check_masks
from fastinv.losses import NoiseRegularizer, PixelLoss, StyleLoss, load_style, load_trunk, resize_mask


@dataclass(frozen=True)
class Image2StyleGANPlusPlus(Method):
    """Two stages of Adam. The first is over the code w in W+, and minimises

        l_s L_style(M_s, G, y) + l_m1 / N ||M_m (G - x)||^2 + l_m2 / N ||(1 - M_m) (G - y)||^2
            + l_p L_percept(M_p, G, x)

    the second is over the noise maps n, with w fixed: ``1 / N ||M_n (G - x)||^2 + 1 / N ||(1 - M_n) (G - y)||^2``. In
    space W+ there is only the first.

    x is the picture, y another one (``second``). M_m are the masks of ``invert``, the others ``perceptual_mask`` (that
    of all losses of x but the pixel loss), ``style_mask`` and ``noise_mask``. l_m1, l_m2, l_s and l_p are
    ``pixel_weight``, ``second_weight``, ``style_weight`` and ``perceptual_weight``; L_style compares Gram matrices.
    Without a y that counts, with l_m2, the second stage has the picture of the first in its place.

    The paper: 5000 steps at 0.01, then 3000 at 5 for the noise maps of an FFHQ generator, all rates constant, weights
    1e-5 for sums of squares, not means (``steps=5000, learning_rate=0.01, noise_steps=3000, noise_learning_rate=5,
    noise_by_strength=False, ramp_up=0, ramp_down=0``). How much a layer's noise counts is learned, and differs by
    orders of magnitude between layers and generators; our rate is that of what is added, map times strength.
    """

    name: ClassVar[str] = "image2stylegan++"
    spaces: ClassVar[tuple[str, ...]] = ("w+noise", "w+")

    steps: int = option(300, "updates of the code; 0 only evaluates the start")
    noise_steps: int = option(200, "w+noise: updates of the noise maps, after those of the code")
    noise_learning_rate: float | None = option(0.1, "peak learning rate of the noise maps; None is learning_rate")
    noise_by_strength: bool = option(True, "divide it by the strength of the layer")
    mask_blur: float = option(0.0, "standard deviation, in pixels, of the Gaussian that softens all masks")
    perceptual_mask: Any = option(None, "of all other losses of the picture; None is the mask itself")
    noise_mask: Any = option(None, "of the picture in the stage of the noise maps; None is the mask itself")
    second: Any = option(None, "another picture, as large: fitted where the mask is 0, and source of the style")
    second_weight: float = option(1.0, "of its pixel loss, where the mask is 0")
    style_weight: float = option(0.0, "of the distance of Gram matrices to those of the second picture")
    style_mask: Any = option(None, "where the style goes to; None is everywhere")
    second_style_mask: Any = option(None, "where in the second picture it comes from; None is where it goes to")
    trained_rows: tuple | None = option(None, "style inputs, counted from 0, whose codes change; None is all of them")

    def __post_init__(self):
        """Refuse options out of range."""
        super().__post_init__()
        if self.noise_steps < 0:
            raise UsageError(f"noise_steps must be at least 0, not {self.noise_steps}")
        if not 0 <= self.mask_blur < math.inf:
            raise UsageError(f"mask_blur must be at least 0 and finite, not {self.mask_blur}")
        if self.style_weight and self.second is None:
            raise UsageError("style_weight needs a picture with the style: give second=")
        weights = [field.name for field in dataclasses.fields(Method) if field.name.endswith("_weight")]
        if not self.style_weight and not any(getattr(self, name) for name in weights):
            raise UsageError("all weights of the picture are 0: the code would not be optimised")
        rows = self.trained_rows
        whole = isinstance(rows, (tuple, list)) and all(type(row) is int and row >= 0 for row in rows)
        if rows is not None and not (whole and rows):
            raise UsageError(f"trained_rows must be style inputs, counted from 0, such as [0, 1], not {rows!r}")

    @property
    def fits_second(self) -> bool:
        """Whether the second picture is fitted, where the mask is 0."""
        return self.second is not None and self.second_weight > 0

    def run(self, task: Task) -> tuple[Trace, dict[str, Any]]:
        space, rates = self.prepare(task)
        trace = self.optimize(task, space, self.start_variables(task, space))
        if rates is not None and not trace.stopped:
            trace = joined(trace, self.fit_noise(task, space, trace.variables, rates))
        with torch.no_grad():
            return trace, space.finish(trace.variables)

    def prepare(self, task: Task) -> tuple[Space, dict[str, float] | None]:
        """The space, and the learning rates of the second stage if there is one; a UsageError for what does not fit."""
        space = self.space(task)
        task.tables |= self.pictures_and_masks(task)
        return space, self.noise_rates(task) if space.optimise_noise and self.noise_steps else None

    def space(self, task: Task) -> Space:
        space = super().space(task)
        if self.trained_rows is None:
            return space
        if max(self.trained_rows) >= task.G.num_ws:
            last = task.G.num_ws - 1
            raise UsageError(f"trained_rows: the generator has style inputs 0 to {last}, not {max(self.trained_rows)}")
        return SomeRows(task.G, space.optimise_noise, self.features_at, space.basis, self.trained_rows)

    def pictures_and_masks(self, task: Task) -> dict[str, torch.Tensor | None]:
        """Checked and blurred, on the target's device: the masks by name, and second."""
        target, count, resolution = task.target, len(task.target), task.G.resolution
        given = {"mask": task.mask} | {
            name: check_masks(getattr(self, name), count, resolution)
            for name in ("perceptual_mask", "noise_mask", "style_mask", "second_style_mask")
        }
        given = {name: None if mask is None else mask.to(target) for name, mask in given.items()}
        found = {name: None if mask is None else blurred(mask, self.mask_blur) for name, mask in given.items()}
        if not self.fits_second:
            # What is hidden may be anything, and stays hidden: the masks are soft on their own side only.
            for name in ("mask", "perceptual_mask", "noise_mask"):
                found[name] = None if given[name] is None else found[name] * given[name]
        for name in ("perceptual_mask", "noise_mask"):
            found[name] = found["mask"] if given[name] is None else found[name]
        found["second"] = None
        if self.second is not None:
            second = check_images(self.second, resolution)
            if len(second) not in (1, count):
                raise UsageError(f"second must be one picture or {count}, one for each; it has {len(second)}")
            found["second"] = second.to(target).expand_as(target)
            if self.fits_second and task.mask is None:
                raise UsageError("second is fitted where the mask is 0: give masks=, or second_weight=0")
        return found

    def rates(self, space: Space, variables) -> dict[str, float]:
        """The learning rates of the first stage, in which the noise maps stay."""
        return super().rates(space, variables) | {name: 0.0 for name in variables if name.startswith(NOISE)}

    def noise_rates(self, task: Task) -> dict[str, float]:
        """The learning rates of the second stage, variable -> rate; 0 where a layer does not use its map.

        Raises:
            UsageError: the generator ignores noise.
        """
        rate = self.learning_rate if self.noise_learning_rate is None else self.noise_learning_rate
        rates = {}
        for layer in task.G.synthesis.noise_layers():
            strength = task.G.synthesis.get_submodule(layer).noise_strength.detach()
            strength = float(strength.double().square().mean().sqrt())  # StyleGAN has one for each channel
            rates[NOISE + layer] = 0.0 if not strength else rate / strength if self.noise_by_strength else rate
        if not any(rates.values()):
            raise UsageError("the noise strengths of this generator are all 0: use space w+, or noise_steps=0")
        return rates

    def terms(self, task: Task, space: Space, target: torch.Tensor, mask: torch.Tensor | None) -> list[Term]:
        """The objective of the first stage for targets of some size."""
        small = {
            name: None if value is None else resize_mask(value, target.shape[-2:])
            for name, value in task.tables.items()
        }
        terms = super().terms(task, space, target, small["perceptual_mask"])
        terms = [term for term in terms if term.name != "noise"]  # that is for the second stage
        for index, term in enumerate(terms):
            if term.name == "pixel":
                loss = PIXEL_LOSSES[self.pixel_loss](target, small["mask"])
                terms[index] = dataclasses.replace(term, loss=loss)
        if small["second"] is None:
            return terms
        if self.fits_second:
            loss = PIXEL_LOSSES[self.pixel_loss](small["second"], 1 - small["mask"])
            terms.append(Term("second", loss, self.second_weight))
        if self.style_weight:
            masks = small["style_mask"], small["second_style_mask"]
            if isinstance(self.trunk, str):
                loss, task.facts["style"] = load_style(self.trunk, small["second"], *masks)
            else:
                trunk, _ = load_trunk(self.trunk, self.layers, device=target.device, dtype=target.dtype)
                loss = StyleLoss(small["second"], trunk, *masks)
            terms.append(Term("style", loss, self.style_weight))
        return terms

    def fit_noise(self, task: Task, space: Space, variables: dict[str, torch.Tensor], rates: dict[str, float]) -> Trace:
        """The second stage."""
        mask, second = task.tables["noise_mask"], task.tables["second"]
        terms = [Term("pixel", PixelLoss(task.target, mask))]
        if mask is not None:
            if not self.fits_second:
                with torch.no_grad():
                    second = self.picture(task, space.codes(variables))
            terms.append(Term("second", PixelLoss(second, 1 - mask)))
        if self.noise_weight:
            terms.append(Term("noise", NoiseRegularizer(), self.noise_weight, "codes"))
        ramp = ramped(self.ramp_up, self.ramp_down)
        stopping = None if self.stop_patience is None else Stopping(None, self.stop_patience, self.stop_plateau)
        return task.optimize(
            f"{self.name}, noise", variables, lambda variables, step: self.render(task, space, variables, step), terms,
            steps=self.noise_steps, learning_rate=dict.fromkeys(variables, 0.0) | rates, schedule=ramp,
            betas=(self.beta1, self.beta2), stopping=stopping,
        )  # fmt: skip


class SomeRows(Space):
    """W+ of which some rows change; the others keep the bits of the start.

    Args:
        rows: the style inputs that change, counted from 0; the others are as for ``Space``.
    """

    def __init__(self, G, optimise_noise: bool, features_at: int, basis: torch.Tensor | None, rows):
        super().__init__(G, optimise_noise, features_at, basis)
        self.changing = torch.zeros(G.num_ws, 1, dtype=torch.bool, device=G.w_avg.device)
        self.changing[list(rows)] = True

    def _codes(self, variables) -> dict[str, Any]:
        name = "w" if self.basis is None else "v"
        rows = variables[name]
        # Adam does not move what has no gradient.
        return super()._codes(variables | {name: torch.where(self.changing, rows, rows.detach())})


def blurred(mask: torch.Tensor, deviation: float) -> torch.Tensor:
    """Masks [N, 1, R, R] after a Gaussian of this standard deviation in pixels; beyond its border a mask goes on."""
    if not deviation:
        return mask
    radius = math.ceil(3 * deviation)
    x = torch.arange(-radius, radius + 1, dtype=torch.float64)
    window = (-0.5 * (x / deviation).square()).exp()
    window = (window / window.sum()).to(mask)
    wide = functional.pad(mask, [radius] * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(wide, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1)).clamp(0, 1)
