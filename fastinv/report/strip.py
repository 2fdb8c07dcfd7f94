"""Pictures in rows with a label under each: edits of several strengths, mixtures, interpolations."""

import os
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from fastinv.data.pictures import save_picture, to_pillow
from fastinv.errors import UsageError
from fastinv.files import atomic_file
from fastinv.report.comparison import _FAINT, _INK, _PAPER, _fitted

TILE = 192  # pixels; smaller pictures are enlarged by a whole factor to at least this side ...
LARGEST = 384  # ... and larger ones than this are scaled down to it
SHOWN, HELD = 120, 600  # milliseconds for a frame of an animation, and for its two ends


def strip(
    rows: Sequence[Sequence[torch.Tensor | None]],
    labels: Sequence[Sequence[str]] | None = None,
    title: str = "",
    path: str | os.PathLike | None = None,
) -> Image.Image:
    """Draw rows of pictures, each with its label below.

    Args:
        rows: pictures [3, R, R] (or masks [1, R, R]) in [-1, 1]; None leaves a place empty.
        labels: of each of them; "" for none, None for none at all.
        title: above all; "" for none.
        path: PNG file to write, or None.

    Raises:
        UsageError: no picture, or not as many labels.
    """
    tiles = [[None if tile is None else _tile(tile) for tile in row] for row in rows]
    labels = [[""] * len(row) for row in rows] if labels is None else labels
    sides = [tile.width for row in tiles for tile in row if tile is not None]
    if not sides or [len(row) for row in labels] != [len(row) for row in rows]:
        raise UsageError("a strip needs at least one picture, and a label for each place")
    side = max(sides)
    unit = max(14, side // 13)  # of the text; half of it is between pictures
    gap, line = unit // 2, round(unit * 1.6)
    font = ImageFont.load_default(unit)
    top = unit + (line if title else 0)
    heights = [side + (line if any(row) else gap) for row in labels]
    width = 2 * unit + max(len(row) for row in tiles) * (side + gap) - gap
    sheet = Image.new("RGB", (width, top + sum(heights) + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((unit, gap), _fitted(title, font, width - 2 * unit), _FAINT, font)
    y = top
    for row, names, height in zip(tiles, labels, heights, strict=True):
        for column, (tile, name) in enumerate(zip(row, names, strict=True)):
            x = unit + column * (side + gap)
            if tile is not None:
                sheet.paste(tile, (x, y))
            text = _fitted(name, font, side)
            draw.text((x + (side - font.getlength(text)) / 2, y + side + unit * 0.15), text, _INK, font)
        y += height
    if path is not None:
        save_picture(sheet, path)
    return sheet


def animation(images: torch.Tensor, path: str | os.PathLike) -> None:
    """Write pictures [N, 3, R, R] in [-1, 1] as a GIF that goes to the last one and back, for ever.

    Raises:
        UsageError: it cannot be written.
    """
    frames = [_tile(image) for image in images]
    turned = frames + frames[-2:0:-1]
    times = [HELD if index in (0, len(frames) - 1) else SHOWN for index in range(len(turned))]
    with atomic_file(path) as temporary:
        turned[0].save(temporary, format="GIF", save_all=True, append_images=turned[1:], duration=times, loop=0)


def _tile(image: torch.Tensor) -> Image.Image:
    picture = to_pillow(image)
    if picture.width > LARGEST:
        return picture.resize((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    factor = max(1, -(-TILE // picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
