"""The tasks of Image2StyleGAN++ (Abdal, Qin, Wonka 2020, arXiv 1911.11544): edits of parts of a picture.

Each takes a generator G, pictures [N, 3, R, R] in [-1, 1] and masks in [0, 1] ([R, R], [1, 1, R, R] or [N, 1, R, R]),
and gives an ``InversionResult``. ``options`` are further arguments of ``fastinv.invert`` and of the method
"image2stylegan++", such as ``steps``, ``noise_steps``, ``learning_rate``, ``mask_blur`` or ``dtype``; they take
precedence over what a task sets. Wrong arguments are a UsageError before work starts.
"""

import dataclasses
import math

import torch
from torch.nn import functional

from fastinv.errors import UsageError
from fastinv.inversion import METHODS, InversionResult, invert
from fastinv.inversion.image2stylegan_plus_plus import Image2StyleGANPlusPlus, blurred
from fastinv.inversion.method import Method
from fastinv.inversion.spaces import nested
from fastinv.inversion.task import Task, check_generator, check_images, check_masks, configure
from fastinv.losses import mse, psnr, resize_mask

COARSE = 64  # pixels: what larger blocks draw is texture, which the paper leaves at the mean
METHOD = Image2StyleGANPlusPlus.name
CHANGED = 0.05  # a pixel is drawn on where a colour differs by more than this, 6 of 255 levels


def reconstruct(G, pictures: torch.Tensor, **options) -> InversionResult:
    """The pictures, by a code in W+ and by noise maps."""
    return _named("reconstruct", invert(G, pictures, METHOD, **options))


def inpaint(G, pictures: torch.Tensor, masks: torch.Tensor, **options) -> InversionResult:
    """Fill what is missing.

    The code is fitted to what is known, the noise maps as well; where pixels are missing these keep what the code made.
    Only the ``inpainting_rows`` are trained, the others stay at the mean latent.

    Args:
        masks: 1 (white) where the picture is known, 0 (black) where it is missing and pixels may hold anything.
    """
    settings = {"trained_rows": inpainting_rows(G), "mask_blur": default_blur(G)} | options
    return _named(
        "inpaint", invert(G, pictures, METHOD, masks=_needed(masks, "where the picture is known"), **settings)
    )


def crossover(G, first: torch.Tensor, second: torch.Tensor, masks: torch.Tensor, **options) -> InversionResult:
    """One picture of parts of two, which are pasted together, softly, and embedded.

    Args:
        masks: 1 (white) takes the first picture, 0 (black) the second.

    Returns:
        A result whose metrics compare it with the pasted picture.
    """
    first, second, masks = _pair(G, first, second, _needed(masks, "which parts come from the first picture"))
    settings = {"mask_blur": default_blur(G)} | options
    target = pasted(first, second, masks, settings["mask_blur"])
    settings = {"second": second, "perceptual_mask": torch.ones_like(masks)} | settings
    return _named("crossover", invert(G, target, METHOD, masks=masks, **settings))


def scribble(
    G, pictures: torch.Tensor, scribbled: torch.Tensor, masks: torch.Tensor | None = None, **options
) -> InversionResult:
    """What a drawing on a picture means.

    From the picture's own code the ``coarse_rows`` are fitted to the drawing, with a prior (P-norm+, which the paper
    does not have) that keeps the code where pictures look natural. Then the noise maps bring the picture back where
    nothing was drawn.

    Args:
        scribbled: the pictures, drawn on.
        masks: 1 (white) where something is to change, 0 (black) where the picture stays; None is near the pixels that
            differ.

    Returns:
        A result whose metrics compare it with the scribbled picture.
    """
    pictures, scribbled, masks = _pair(G, pictures, scribbled, masks)
    masks = _drawn(pictures, scribbled) if masks is None else masks
    settings = {
        "trained_rows": coarse_rows(G), "mask_blur": default_blur(G), "noise_mask": 1 - masks, "p_norm_weight": 0.01,
    }  # fmt: skip
    return _named("scribble", _from_own_code(G, pictures, scribbled, None, settings | options, options))


def style_transfer(G, content: torch.Tensor, style: torch.Tensor, masks: torch.Tensor, **options) -> InversionResult:
    """A part of a picture in the colours and texture of the same part of another.

    From the content's own code the code is fitted to the content where the mask is 0, to the Gram matrices of the style
    where it is 1.

    Args:
        masks: 1 (white) takes the style, 0 (black) stays as it is. Option ``second_style_mask`` says which part of the
            style picture counts; the same part without it.

    Returns:
        A result whose metrics compare it with the content; masked ones where it was to stay.
    """
    content, style, masks = _pair(G, content, style, _needed(masks, "which part takes the style"))
    settings = {
        "second": style, "second_weight": 0.0, "style_weight": 1.0, "style_mask": masks, "mask_blur": default_blur(G),
    } | options  # fmt: skip
    return _named("style transfer", _from_own_code(G, content, content, 1 - masks, settings, options))


def activation_transfer(
    G, target: torch.Tensor, source: torch.Tensor, masks: torch.Tensor, at: int, **options
) -> InversionResult:
    """A part of a picture from another, by a copy of the feature maps of the generator after a block.

    Both are inverted in W+. What the synthesis of the source has after the block, under the mask, takes the place of
    what that of the target has, and the layers above go on with the codes of the target: the coarser the block, the
    more the copy adapts to its surroundings.

    Args:
        masks: 1 (white) comes from the source, 0 (black) from the target.
        at: resolution of the block, from 4 to that of the generator.

    Returns:
        A result with features (space F+W+), whose metrics compare it with the source pasted into the target.
    """
    check_generator(G)
    if not hasattr(G, "features"):
        raise UsageError(f"an activation transfer needs a StyleGAN2 generator; a {type(G).__name__} has no features")
    resolutions = G.synthesis.resolutions
    if at not in resolutions:
        raise UsageError(f"at must be the resolution of a block, {', '.join(map(str, resolutions))}, not {at!r}")
    target, source, masks = _pair(G, target, source, _needed(masks, "which part comes from the source"))
    settings = {"space": "w+", "mask_blur": default_blur(G)} | options
    both = invert(G, torch.cat([target, source]), METHOD, **settings)
    count = len(target)
    result, other = both[:count], both[count:]
    own, copied = (part.codes | _features(G, part, at) for part in (result, other))
    blur = settings["mask_blur"]
    result = dataclasses.replace(
        result, codes={name: pasted(copied[name], own[name], masks.to(own[name]), blur) for name in own}
    )
    images = result.render(G).to(result.images)
    aim = pasted(source, target, masks, blur).to(images)
    metrics = result.metrics | {"psnr": psnr(images, aim).tolist(), "mse": mse(images, aim).tolist()}
    return _named("activation transfer", dataclasses.replace(result, images=images, metrics=metrics), {"at": at})


def inpainting_rows(G) -> tuple[int, ...]:
    """The ``coarse_rows`` and the last two: of 18 style inputs, at 1024x1024, 0 to 8, 16 and 17, as in the paper."""
    return tuple(sorted({*coarse_rows(G), G.num_ws - 2, G.num_ws - 1}))


def coarse_rows(G) -> tuple[int, ...]:
    """The style inputs up to 64x64 pixels: of 18 of them 0 to 8, as in the paper; all that a generator of 64x64 has."""
    check_generator(G)
    if G.resolution <= COARSE:
        return tuple(range(G.num_ws))
    return tuple(range(2 * int(math.log2(COARSE)) - 3))


def pasted(inside: torch.Tensor, outside: torch.Tensor, masks: torch.Tensor, blur: float) -> torch.Tensor:
    """Maps [N, C, r, r]: those of ``inside`` where masks [N, 1, R, R] are 1, with soft borders (``blur`` in pixels)."""
    return torch.lerp(outside, inside, resize_mask(blurred(masks, blur), inside.shape[-2:]))


def default_blur(G) -> float:
    """Standard deviation, in pixels, of the blur of masks: a 64th of the picture."""
    return G.resolution / 64


def _needed(masks, what: str):
    if masks is None:
        raise UsageError(f"masks say {what}: give them, 1 (white) for yes")
    return masks


def _pair(G, first, second, masks):
    """Two pictures and a mask of one size and number, or a UsageError."""
    check_generator(G)
    first, second = check_images(first, G.resolution), check_images(second, G.resolution)
    if len(first) != len(second):
        raise UsageError(f"there are {len(first)} and {len(second)} pictures; two of each pair are needed")
    second = second.to(first)
    masks = check_masks(masks, len(first), G.resolution)
    return first, second, None if masks is None else masks.to(first)


def _drawn(pictures: torch.Tensor, scribbled: torch.Tensor) -> torch.Tensor:
    """1 near the pixels that differ, [N, 1, R, R]."""
    changed = ((scribbled - pictures).abs().amax(1, keepdim=True) > CHANGED).to(pictures)
    for row, empty in enumerate((changed.flatten(1).amax(1) == 0).tolist()):
        if empty:
            raise UsageError(f"nothing is drawn on picture {row}: it is the same as the scribbled one")
    reach = max(pictures.shape[-1] // 32, 1)
    return functional.max_pool2d(changed, 2 * reach + 1, stride=1, padding=reach)


def _from_own_code(G, pictures, target, masks, settings: dict, options: dict) -> InversionResult:
    """``invert`` of a target, which starts from the code of the pictures."""
    _check(G, target, masks, settings)  # before the first inversion, not after it
    if options.get("init") is None:
        of_edits = _fields(Image2StyleGANPlusPlus) - _fields(Method)
        leave = of_edits | {"space", "init", "noise_weight"}
        common = {name: value for name, value in options.items() if name not in leave}
        settings["init"] = invert(G, pictures, METHOD, "w+", **common).w_plus
        if (checkpoints := options.get("checkpoints")) is not None:  # the first inversion had at most two stages
            settings["checkpoints"] = lambda stage: checkpoints(stage + 2)
    return invert(G, target, METHOD, masks=masks, **settings)


def _check(G, target, masks, settings: dict) -> None:
    """A UsageError for settings that ``invert`` would refuse."""
    options = {name: value for name, value in settings.items() if name in _fields(Image2StyleGANPlusPlus) - {"steps"}}
    method, space = configure(METHODS, METHOD, settings.get("space"), settings.get("steps"), options)
    method.prepare(Task(G, None, target, check_masks(masks, len(target), G.resolution), space, 0))


def _fields(method: type) -> set[str]:
    return {field.name for field in dataclasses.fields(method)}


@torch.no_grad()
def _features(G, result: InversionResult, at: int) -> dict[str, torch.Tensor]:
    """The state of the synthesis of a result after a block."""
    dtype = G.w_avg.dtype
    noise = nested(result.codes).get("noise", {})
    noise = {layer: value.to(dtype) for layer, value in noise.items()}
    mode = "none" if result.settings["options"]["noise"] == "none" else "const"
    x, picture = G.features(result.w_plus.to(dtype), at, noise or mode)
    return {"features": x.to(result.w_plus), "picture": picture.to(result.w_plus)}


def _named(task: str, result: InversionResult, facts: dict | None = None) -> InversionResult:
    settings = result.settings | {"task": {"name": task, **(facts or {})}}
    return dataclasses.replace(result, settings=settings)
