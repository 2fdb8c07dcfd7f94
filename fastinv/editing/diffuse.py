"""Semantic diffusion (IDInvert; Zhu, Shen, Zhao, Zhou 2020, arXiv 2004.00049): a part of one picture in another.

The part is pasted into its new context, and an encoder that knows the domain finds the code of a natural picture near
the result. From there the code is optimised for the part alone: the context has had its say through the encoder.
"""

import dataclasses

import torch

from fastinv.errors import UsageError
from fastinv.inversion import InversionResult, invert
from fastinv.inversion.local_edits import pasted
from fastinv.inversion.task import check_generator, check_images, check_masks

METHOD = "idinvert"
# The square of IDInvert's faces: 110 pixels a side round (125, 145) of 256 x 256.
FACE_CENTER, FACE_SIZE = (125 / 256, 145 / 256), 110 / 256


def diffuse(G, target: torch.Tensor, context: torch.Tensor, mask: torch.Tensor, **options) -> InversionResult:
    """Diffuse a part of the target into the context.

        composite = mask target + (1 - mask) context,    w starts as E(composite)
        min_w mean (mask (G(w) - target))^2 + perceptual_weight mean (F(mask G(w)) - F(mask target))^2

    E is IDInvert's encoder, F the features of the trunk. As in the original: 100 steps of Adam at 0.01, and no domain
    term; its weight of 5e-5 is ``perceptual_weight`` 0.17 here, see the method "idinvert".

    Args:
        G: a generator with an encoder: a bundled one of idinvert-encoder, or give ``encoder=``.
        target: pictures [N, 3, R, R] (or [3, R, R]) in [-1, 1], whose part it is.
        context: pictures of the same shape that it comes into.
        mask: soft masks in [0, 1], [R, R], [1, 1, R, R] or [N, 1, R, R]: 1 (white) is the part of the target.
        options: further arguments of ``fastinv.invert`` and of the method "idinvert", such as ``steps``, ``encoder``,
            ``init`` or ``progress``; they take precedence.

    Returns:
        A result whose metrics compare it with the composite; the masked ones with the part of the target.

    Raises:
        UsageError: a wrong argument, found before the work starts.
    """
    check_generator(G)
    target, context = check_images(target, G.resolution), check_images(context, G.resolution)
    if len(target) != len(context):
        raise UsageError(f"there are {len(target)} targets and {len(context)} contexts; two of each pair are needed")
    mask = check_masks(mask, len(target), G.resolution)
    if mask is None:
        raise UsageError("mask says which part of the target is diffused: give it, 1 (white) for that part")
    target = target.to(G.w_avg.device)
    mask = mask.to(target)
    composite = pasted(target, context.to(target), mask, blur=0.0)
    result = invert(G, composite, METHOD, masks=mask, **{"domain_weight": 0.0} | options)
    return dataclasses.replace(result, settings=result.settings | {"task": {"name": "diffuse"}})
