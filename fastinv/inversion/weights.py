"""Tuned weights of a generator, kept as small differences to it.

Among the codes of a result (see ``inversion.spaces``) the difference of a parameter of the synthesis network is

    weights.<parameter>          int8 [N, rows, n], or uint8 [N, rows, ceil(n / 2)] with two values of 4 bits in each
                                 byte, the first in the low half, 8 added to each; rows is the parameter's first axis
    weights.<parameter>.scale    [N, rows], what one unit of a row stands for

or, for parameters with fewer than two axes (biases, strengths), the difference itself. 4 bits are for the layers
that convolve; the weights of toRGB and the constant, few but sensitive, get 8 (docs/pti.md has the measurements).
"""

import copy

import torch

from fastinv.devices import one_thread
from fastinv.errors import UsageError
from fastinv.inversion.spaces import flat, nested, synthesize

WEIGHTS = "weights."  # prefix of the names
SCALE = ".scale"


def compress(parameter: str, difference: torch.Tensor) -> dict[str, torch.Tensor]:
    """The entries of the codes for one parameter.

    Args:
        parameter: its name in the synthesis network, such as "b8.conv0.weight".
        difference: [N, *shape of the parameter], floating point and finite.
    """
    if difference.ndim < 3:
        return {WEIGHTS + parameter: difference}
    rows = difference.flatten(2)
    four_bits = ".conv" in parameter
    largest = 7 if four_bits else 127
    scale = rows.abs().amax(2, keepdim=True) / largest
    values = (rows / scale.where(scale > 0, 1)).round().clamp(-largest, largest).to(torch.int8)
    return {WEIGHTS + parameter: _pack(values) if four_bits else values, WEIGHTS + parameter + SCALE: scale[:, :, 0]}


def difference(codes: dict[str, torch.Tensor], parameter: str, like: torch.Tensor) -> torch.Tensor | None:
    """What ``compress`` was given for a parameter, up to rounding: [N, *like.shape]; None where it was not tuned.

    Args:
        codes: with the tuned weights.
        parameter: its name.
        like: a tensor of the parameter's shape; the result has its dtype and device.

    Raises:
        UsageError: the codes are for a parameter of another shape.
    """
    values, scale = codes.get(WEIGHTS + parameter), codes.get(WEIGHTS + parameter + SCALE)
    if values is None:
        return None
    if scale is not None:
        values = _unpack(values, like[0].numel()) if values.dtype == torch.uint8 else values
        values = values.to(like) * scale.to(like)[:, :, None]
    if values[0].numel() != like.numel() or len(like.shape) and values.shape[1] != len(like):
        raise UsageError(
            f"the tuned weights of {parameter!r} do not fit the shape {list(like.shape)} of this generator's; use "
            "that of the inversion"
        )
    return values.to(like).view(len(values), *like.shape)


def has_weights(codes: dict) -> bool:
    """Whether codes hold tuned weights."""
    return any(name.startswith(WEIGHTS) for name in codes)


@torch.no_grad()
def tuned_generator(G, codes: dict, index: int):
    """A copy of G, in float32 at least, with the weights that belong to picture ``index``.

    Raises:
        UsageError: G has no such parameters, or of other shapes.
    """
    tuned = copy.deepcopy(G).to(torch.promote_types(G.w_avg.dtype, torch.float32))
    parameters = dict(tuned.synthesis.named_parameters())
    mine = {name: value[index : index + 1] for name, value in codes.items() if name.startswith(WEIGHTS)}
    for name in mine:
        parameter = name.removeprefix(WEIGHTS)
        if parameter not in parameters and not (parameter.endswith(SCALE) and name.removesuffix(SCALE) in mine):
            raise UsageError(f"the generator has no {parameter!r} to add tuned weights to; use that of the inversion")
    for name, parameter in parameters.items():
        change = difference(mine, name, parameter)
        if change is not None:
            parameter += change[0]
    return tuned


@torch.no_grad()
def render(G, codes: dict[str, torch.Tensor], noise: str = "const") -> torch.Tensor:
    """The pictures [N, 3, R, R] of codes as files hold them, without gradients.

    Args:
        G: the generator that they were found with, or another one like it; the codes go to its device and dtype.
        codes: {"w_plus": [N, num_ws, w_dim], ...}, see ``fastinv.latents.load_codes``; with tuned weights each picture
            is made by its own generator.
        noise: mode of the noise maps that the codes do not hold, "const", "random" or "none".

    Raises:
        UsageError: codes of another shape than the generator takes.
    """
    device, dtype = G.w_avg.device, G.w_avg.dtype
    codes = {name: value.to(device) for name, value in codes.items()}
    if has_weights(codes):
        return tuned_pictures(G, nested(codes), noise)
    return synthesize(G, nested({name: value.to(dtype) for name, value in codes.items()}), noise)


@torch.no_grad()
def tuned_pictures(G, codes: dict, noise: str) -> torch.Tensor:
    """Pictures [N, 3, R, R] of codes with tuned weights, each by its own generator; arguments as for ``synthesize``."""
    pictures, codes = [], flat(codes)
    others = [name for name in codes if not name.startswith(WEIGHTS)]
    for index in range(len(codes["w_plus"])):
        tuned = tuned_generator(G, codes, index)
        own = {name: codes[name][index : index + 1].to(tuned.w_avg.dtype) for name in others}
        with one_thread():  # so that the bits do not depend on their number
            pictures.append(synthesize(tuned, nested(own), noise))
    return torch.cat(pictures)


def _pack(values: torch.Tensor) -> torch.Tensor:
    """int8 [N, rows, n] in [-8, 7] -> uint8 [N, rows, ceil(n / 2)]."""
    values = torch.nn.functional.pad(values, (0, values.shape[2] % 2)).add(8).to(torch.uint8)
    return values[:, :, 0::2] | (values[:, :, 1::2] << 4)


def _unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The inverse of ``_pack`` for n = count."""
    values = torch.stack([packed & 15, packed >> 4], dim=3).flatten(2)[:, :, :count]
    return values.to(torch.int8) - 8
