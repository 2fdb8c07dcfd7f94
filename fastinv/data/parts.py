"""Which part of a procedural portrait each pixel shows: the layers of `fastinv.data.portrait` on a canvas of labels."""

import colorsys

import torch
from torch import Tensor

from fastinv.data.portrait import Portrait

PARTS = (
    "background", "hair", "neck", "clothes", "face", "beard", "nose", "lips", "mouth", "eyes", "irises", "brows",
    "ears", "glasses",
)  # fmt: skip


class PartMap(Portrait):
    """A canvas [n, 1, R, R] of labels, uint8 indices of ``PARTS``: a pixel gets the label of a layer that covers more
    than half of it. Light and shade leave it alone.
    """

    channels, dtype = 1, torch.uint8

    def fill(self, colour, part):
        self.canvas = torch.full_like(colour[:, :1], PARTS.index(part), dtype=torch.uint8)

    def lay(self, colour, mask, rows=slice(None), part=None):
        if part is not None:
            self.canvas[:, :, rows].masked_fill_(mask > 0.5, PARTS.index(part))

    def cut(self, mask, behind):
        self.canvas = torch.where(mask > 0.5, self.canvas, behind)

    def paint(self):
        """All layers; the labels [n, 1, R, R]."""
        self.paint_layers()
        return self.canvas


def label_colours(count: int) -> Tensor:
    """A colour for each of ``count`` labels, to look at label maps: [count, 3] in [-1, 1]; label 0 is nearly black."""
    golden = 0.61803398875  # turns of the hue that never come near each other soon
    colours = [colorsys.hsv_to_rgb(index * golden % 1, 0.75 - 0.3 * (index % 2), 0.95) for index in range(1, count)]
    return 2 * torch.tensor([(0.1, 0.1, 0.12), *colours][:count]) - 1
