"""Target, reconstruction and their difference side by side, with names and metrics."""

import os
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

from fastinv.data.pictures import save_picture, to_pillow
from fastinv.errors import UsageError

AMPLIFICATION = 4  # the shown difference: |target - reconstruction| times this; black is equal
SMALLEST_TILE = 320  # pixels; smaller pictures are enlarged by a whole factor to at least this side

_PAPER, _INK, _FAINT = (250, 250, 248), (32, 34, 38), (122, 126, 134)


def comparison(
    targets: torch.Tensor,
    reconstructions: torch.Tensor,
    metrics: dict[str, float] | Sequence[dict[str, float]],
    path: str | os.PathLike | None = None,
    names: str | Sequence[str] | None = None,
) -> Image.Image:
    """Draw one row per picture: target, reconstruction, difference amplified by `AMPLIFICATION`; metrics below.

    `targets`, `reconstructions`: [N, 3, R, R] (or [3, R, R], one row) in [-1, 1]; reconstructions are clamped.
    `metrics`: one dict, name -> value, per row (the dict itself for one row). `names`: one title per row.
    Written as PNG to `path` if there is one. Returns the Pillow image.
    """
    if targets.ndim == 3:
        targets, reconstructions = targets[None], reconstructions[None]
    metrics = [metrics] if isinstance(metrics, dict) else list(metrics)
    names = [names] if isinstance(names, str) else list(names or [""] * len(targets))
    if targets.shape != reconstructions.shape or targets.ndim != 4 or not len(targets):
        raise UsageError(
            f"targets and reconstructions must both be [N, 3, R, R], not {list(targets.shape)} and "
            f"{list(reconstructions.shape)}"
        )
    if len(metrics) != len(targets) or len(names) != len(targets):
        raise UsageError(f"{len(targets)} pictures need as many metrics and names, not {len(metrics)}, {len(names)}")

    targets, reconstructions = (images.detach().float().cpu().clamp(-1, 1) for images in (targets, reconstructions))
    difference = (targets - reconstructions).abs() * AMPLIFICATION - 1  # 0 is black, -1
    height, width = targets.shape[2:]
    _, tile, unit, line, title = _layout(width, height)
    title = title if any(names) else 0
    large, small = ImageFont.load_default(unit), ImageFont.load_default(round(unit * 0.85))

    row_height = title + tile[1] + 2 * line
    sheet = Image.new("RGB", (3 * tile[0] + 4 * unit, 2 * unit + line + len(targets) * row_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    columns = [unit + index * (tile[0] + unit) for index in range(3)]
    for x, heading in zip(columns, ("target", "reconstruction", f"difference x {AMPLIFICATION}"), strict=True):
        draw.text((x, unit), heading, _INK, large)
    for row, values in enumerate(metrics):
        y = unit + line + row * row_height
        if title:
            draw.text((unit, y), _fitted(names[row], small, 3 * tile[0]), _FAINT, small)
        for x, images in zip(columns, (targets, reconstructions, difference), strict=True):
            sheet.paste(to_pillow(images[row]).resize(tile, Image.Resampling.BICUBIC), (x, y + title))
        text = "     ".join(f"{name} {_number(value)}" for name, value in values.items())
        draw.text((unit, y + title + tile[1] + unit // 3), _fitted(text, large, 3 * tile[0]), _INK, large)
    if path is not None:
        save_picture(sheet, path)
    return sheet


def target_in(sheet: Image.Image, width: int, height: int, row: int = 0) -> Image.Image | None:
    """The target of a row in a picture that `comparison` drew, at its own size; None where the picture is no such.

    `width`, `height`: of the target. Its 8-bit pixels where it was enlarged by an odd factor (or not at all), as
    bicubic interpolation goes through them; the mean of what was made of each pixel where the factor is even.
    """
    factor, tile, unit, line, title = _layout(width, height)
    for above in (title, 0):  # with and without names
        row_height = above + tile[1] + 2 * line
        rows, rest = divmod(sheet.height - 2 * unit - line, row_height)
        if rest == 0 and row < rows and sheet.width == 3 * tile[0] + 4 * unit:
            top = unit + line + row * row_height + above
            enlarged = sheet.crop((unit, top, unit + tile[0], top + tile[1]))
            return enlarged.resize((width, height), Image.Resampling.NEAREST if factor % 2 else Image.Resampling.BOX)
    return None


def _layout(width: int, height: int) -> tuple[int, tuple[int, int], int, int, int]:
    """(factor of enlargement, size of a tile, unit of text and margins, height of a line, of a title) in pixels."""
    factor = max(1, -(-SMALLEST_TILE // width))
    tile = (width * factor, height * factor)
    unit = max(16, tile[0] // 20)
    return factor, tile, unit, round(unit * 1.5), round(unit * 1.3)


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its end cut off where it would not fit."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
