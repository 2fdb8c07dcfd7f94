"""Procedural portraits with known attributes: the data set of the embedded default generator.

`sample` draws attributes and pictures, `render` draws pictures of given attributes. Everything is plain vectorised
torch: any resolution, any device, anti-aliased by coverage (a mask goes from 0 to 1 over one pixel), continuous in
every attribute but glasses. How a picture is made: fastinv.data.portrait.

`parts` and `sketch` draw the same portraits as maps of labels and as line drawings, `frontal` turns them to the front.

Distribution: all attributes are independent. Each is uniform on [low, high], except that `zeros` of the probability
mass sits at exactly `low` (hair_grey 0.3, beard 0.4); glasses is 1 with probability 0.4, else 0.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinv.data.parts import PARTS, PartMap
from fastinv.data.portrait import Portrait
from fastinv.errors import UsageError


class Attribute(NamedTuple):
    kind: str  # "continuous" or "binary"
    low: float
    high: float
    zeros: float  # probability of exactly `low`; the rest is uniform on [low, high] (continuous) or `high` (binary)
    description: str


def _continuous(low: float, high: float, description: str, zeros: float = 0.0) -> Attribute:
    return Attribute("continuous", low, high, zeros, description)


ATTRIBUTES: dict[str, Attribute] = {
    "yaw": _continuous(-1, 1, "head turned to the picture's left (-1, 24 degrees) or right (1)"),
    "pitch": _continuous(-1, 1, "head tilted up (-1, 14 degrees) or down (1)"),
    "smile": _continuous(-1, 1, "mild frown (-1), straight mouth (about -0.4) to open smile with teeth (1)"),
    "eye_open": _continuous(0, 1, "eyes closed (0) to wide open (1)"),
    "gaze": _continuous(-1, 1, "eyes look to the picture's left (-1) or right (1), relative to the head"),
    "hair_grey": _continuous(0, 1, "natural hair colour (0) to almost white (1); also greys the beard", zeros=0.3),
    "hair_length": _continuous(0, 1, "cropped (0) to below the shoulders (1)"),
    "hair_hue": _continuous(0, 1, "natural hair colour: black, brown, chestnut, copper, blond"),
    "skin_tone": _continuous(0, 1, "light (0) to dark (1) skin"),
    "glasses": Attribute("binary", 0, 1, 0.6, "wears round glasses (1) or not (0)"),
    "beard": _continuous(0, 1, "clean-shaven (0) over stubble to full beard (0.9 and above)", zeros=0.4),
    "bg_hue": _continuous(0, 1, "background colour: blue, teal, green, yellow, orange, pink, violet"),
    "bg_light": _continuous(0, 1, "background dark (0) to bright (1)"),
    "light": _continuous(-1, 1, "light comes from the picture's left (-1) or right (1)"),
    "face_width": _continuous(-1, 1, "narrow (-1) to wide (1) head"),
    "shirt": _continuous(0, 1, "shirt colour: navy, teal, cream, red, charcoal"),
}
NAMES: tuple[str, ...] = tuple(ATTRIBUTES)
SPLITS = ("train", "heldout")
BATCH = 32  # pictures drawn at a time
__all__ = [
    "ATTRIBUTES", "Attribute", "NAMES", "PARTS", "SPLITS", "attributes_from_uniform", "frontal", "parts", "render",
    "sample", "sample_attributes", "sample_uniform", "sketch",
]  # fmt: skip


# ---- sampling


def attributes_from_uniform(u: Tensor) -> dict[str, Tensor]:
    """Inverse cumulative distribution of every attribute: u [n, len(NAMES)] in [0, 1] -> {name: [n]}."""
    if u.ndim != 2 or u.shape[1] != len(NAMES):
        raise UsageError(f"u has shape {tuple(u.shape)}; give [n, {len(NAMES)}] numbers in [0, 1]")
    values = {}
    for column, (name, attribute) in zip(u.unbind(1), ATTRIBUTES.items(), strict=True):
        if attribute.kind == "binary":
            share = (column >= attribute.zeros).to(u.dtype)
        else:
            share = ((column - attribute.zeros) / (1 - attribute.zeros)).clamp(min=0)
        values[name] = attribute.low + (attribute.high - attribute.low) * share
    return values


def sample_uniform(n: int, seed: int = 0, split: str = "train") -> Tensor:
    """The uniform numbers [n, len(NAMES)] behind sample_attributes; float32, every one an odd multiple of 2**-24.

    The splits cannot overlap: every number is (4k + 1) / 2**24 in the train split and (4k + 3) / 2**24 in the held-out
    split with an integer k. Both are exact in float32, and so is yaw = 2u - 1: no yaw of one split is in the other.
    (The splits also draw from different random streams, or pictures would come in nearly equal pairs.)
    The first m rows of n > m are the rows that n = m gives.
    """
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if n < 0:
        raise UsageError(f"n is {n}; the number of pictures must not be negative")
    if not 0 <= seed < 2**62:
        raise UsageError(f"seed is {seed}; give an integer from 0 to 2**62 - 1")
    parity = SPLITS.index(split)
    generator = torch.Generator().manual_seed(2 * seed + parity)
    k = torch.randint(2**22, (n, len(NAMES)), generator=generator)
    return (4 * k + 2 * parity + 1).float() / 2**24


def sample_attributes(n: int, seed: int = 0, split: str = "train") -> dict[str, Tensor]:
    """n attribute vectors {name: [n]} of a split ("train" or "heldout"), the same for the same seed."""
    return attributes_from_uniform(sample_uniform(n, seed, split))


def sample(n: int, seed: int = 0, split: str = "train", resolution: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """n pictures [n, 3, resolution, resolution] float32 in [-1, 1] and their attributes {name: [n]}."""
    attributes = sample_attributes(n, seed, split)
    return render(attributes, resolution), attributes


# ---- rendering


def render(attributes: dict[str, Tensor], resolution: int = 64) -> Tensor:
    """Draw portraits: {name: [n]} (every name of NAMES, in range) -> [n, 3, resolution, resolution] float32 in [-1, 1].

    Runs on the device of the attributes, without gradients; a GPU or larger batches than 64 change nothing but speed.
    """
    return _drawn(attributes, resolution, Portrait).mul_(2).sub_(1)


def parts(attributes: dict[str, Tensor], resolution: int = 64) -> Tensor:
    """Which part of the portrait each pixel shows: uint8 [n, resolution, resolution], indices of PARTS.

    A pixel belongs to the part drawn last that covers more than half of it; a beard counts from about 0.48 on.
    Arguments as for ``render``.
    """
    return _drawn(attributes, resolution, PartMap).squeeze(1)


def sketch(attributes: dict[str, Tensor], resolution: int = 64) -> Tensor:
    """Line drawings of portraits, the borders of their parts: [n, 1, resolution, resolution] float32, from -1 (black
    line) to 1 (white paper).

    Lines are a 64th of the picture wide, a pixel at least. Arguments as for ``render``.
    """
    fine = parts(attributes, 2 * resolution)
    line = torch.zeros_like(fine, dtype=torch.float32)
    down, across = fine[:, 1:] != fine[:, :-1], fine[:, :, 1:] != fine[:, :, :-1]
    for border, (first, second) in ((down, (line[:, 1:], line[:, :-1])), (across, (line[:, :, 1:], line[:, :, :-1]))):
        first[border] = 1
        second[border] = 1
    # Two of the fine pixels are one now; thicker for larger pictures.
    reach = max(0, round(resolution / 64) - 1)
    line = F.max_pool2d(line.unsqueeze(1), 2 * reach + 1, 1, reach)
    return 1 - 2 * F.avg_pool2d(line, 2)


def frontal(attributes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same person, expression and light with the head turned to the viewer: yaw and pitch are 0."""
    return {name: torch.zeros_like(value) if name in ("yaw", "pitch") else value for name, value in attributes.items()}


def _drawn(attributes: dict[str, Tensor], resolution: int, kind: type[Portrait]) -> Tensor:
    """What ``kind`` paints of all portraits [n, channels, resolution, resolution]."""
    if not isinstance(resolution, int) or resolution < 1:
        raise UsageError(f"resolution is {resolution!r}; give a positive integer")
    values = _checked(attributes)
    drawn = torch.empty(len(values), kind.channels, resolution, resolution, dtype=kind.dtype, device=values.device)
    with torch.no_grad():
        for first in range(0, len(values), BATCH):  # in pieces that stay in the cache
            piece = dict(zip(NAMES, values[first : first + BATCH].unbind(1), strict=True))
            drawn[first : first + BATCH] = kind(piece, resolution).paint()
    return drawn


def _checked(attributes: dict[str, Tensor]) -> Tensor:
    """The attributes as one float32 tensor [n, len(NAMES)], or one clear error."""
    unknown = [name for name in attributes if name not in ATTRIBUTES]
    if unknown:
        raise UsageError(f"unknown attribute {unknown[0]!r}; the attributes are {', '.join(NAMES)}")
    missing = [name for name in NAMES if name not in attributes]
    if missing:
        raise UsageError(f"attribute {missing[0]!r} is missing; give all of {', '.join(NAMES)}")
    columns = [torch.as_tensor(attributes[name]).float() for name in NAMES]
    for name, column in zip(NAMES, columns, strict=True):
        if column.ndim != 1 or len(column) != len(columns[0]):
            raise UsageError(f"attribute {name!r} has shape {tuple(column.shape)}; all must be [n] with the same n")
    values = torch.stack(columns, 1)
    low = values.new_tensor([attribute.low for attribute in ATTRIBUTES.values()])
    high = values.new_tensor([attribute.high for attribute in ATTRIBUTES.values()])
    wrong = ~((values >= low) & (values <= high))  # also true for not-a-number
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        name = NAMES[column]
        value, attribute = values[row, column].item(), ATTRIBUTES[name]
        raise UsageError(f"attribute {name!r} is {value:g}; its range is {attribute.low:g} to {attribute.high:g}")
    return values
