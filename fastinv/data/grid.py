"""Many pictures in one."""

import torch
from PIL import Image

from fastinv.data.pictures import to_pillow
from fastinv.errors import UsageError


def grid(images: torch.Tensor, columns: int = 8, gap: int = 2) -> Image.Image:
    """Pictures [N, 3, H, W] in [-1, 1], row by row, with a white gap of `gap` pixels between them.

    Returns a Pillow image; `fastinv.data.pictures.save_picture` writes it.
    """
    if images.ndim != 4 or not len(images):
        raise UsageError(f"a grid needs pictures [N, 3, H, W] with N of at least 1, not {list(images.shape)}")
    if columns < 1 or gap < 0:
        raise UsageError(f"a grid needs at least one column and a gap of at least 0, not {columns} and {gap}")
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(to_pillow(image), (column * (width + gap), row * (height + gap)))
    return sheet
