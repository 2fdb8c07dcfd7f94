"""The network of the Fréchet inception distance: Inception v3 (Szegedy et al. 2016, arXiv 1512.00567, figures 5 to 7).

It is the one of 2015-12-05 that Heusel et al. 2017 took: its average poolings leave padding out of the mean, and the
last block has a maximum pooling instead. Tensors have the names of torchvision's, which is how its weights are spread.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastinv.errors import UsageError

RESOLUTION = 299
FEATURES = 2048
# Branches of the blocks: name -> (channels, kernel, stride) of each convolution. Kernels of stride 1 keep the size.
_ONE = (1, 1)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel=(1, 1), stride: int = 1, padding=None):
        super().__init__()
        if padding is None:
            padding = tuple(side // 2 for side in kernel) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Block(nn.Module):
    """Branches side by side, their maps one after the other.

    Args:
        inputs: channels.
        branches: of each the list of its convolutions, (name, outputs, kernel, stride); where a name stands for a list
            of two, both look at the same maps.
        pool: "average" or "maximum" of 3x3 before a convolution ``branch_pool``, or "reduce": maximum with stride 2.
        pooled: outputs of ``branch_pool``.
    """

    def __init__(self, inputs: int, branches: list[list], pool: str, pooled: int = 0):
        super().__init__()
        self.pool, self.paths, self.width = pool, [], 0
        for branch in branches:
            wide, path = inputs, []
            for step in branch:
                forks = step if isinstance(step, list) else [step]
                for name, outputs, kernel, stride in forks:
                    setattr(self, name, ConvNorm(wide, outputs, kernel, stride))
                path.append([name for name, *_ in forks])
                wide = sum(outputs for _, outputs, *_ in forks)
            self.paths.append(path)
            self.width += wide
        if pool == "reduce":
            self.width += inputs
        else:
            self.branch_pool = ConvNorm(inputs, pooled)
            self.width += pooled

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([getattr(self, name)(y) for name in names], dim=1)
            maps.append(y)
        if self.pool == "reduce":
            maps.append(functional.max_pool2d(x, 3, 2))
        elif self.pool == "maximum":
            maps.append(self.branch_pool(functional.max_pool2d(x, 3, 1, 1)))
        else:
            maps.append(self.branch_pool(functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(maps, dim=1)


def _chain(name: str, *steps: tuple, first: int = 1) -> list[tuple]:
    """Convolutions ``name_1``, ``name_2``, ...: (outputs, kernel) or (outputs, kernel, stride)."""
    return [(f"{name}_{index}", *step, *((1,) if len(step) == 2 else ())) for index, step in enumerate(steps, first)]


def _at_35(inputs: int, pooled: int) -> Block:
    return Block(inputs, [
        [("branch1x1", 64, _ONE, 1)],
        _chain("branch5x5", (48, _ONE), (64, (5, 5))),
        _chain("branch3x3dbl", (64, _ONE), (96, (3, 3)), (96, (3, 3))),
    ], "average", pooled)  # fmt: skip


def _to_17(inputs: int) -> Block:
    return Block(inputs, [
        [("branch3x3", 384, (3, 3), 2)],
        _chain("branch3x3dbl", (64, _ONE), (96, (3, 3)), (96, (3, 3), 2)),
    ], "reduce")  # fmt: skip


def _at_17(inputs: int, c: int) -> Block:
    row, column = (1, 7), (7, 1)
    return Block(inputs, [
        [("branch1x1", 192, _ONE, 1)],
        _chain("branch7x7", (c, _ONE), (c, row), (192, column)),
        _chain("branch7x7dbl", (c, _ONE), (c, column), (c, row), (c, column), (192, row)),
    ], "average", 192)  # fmt: skip


def _to_8(inputs: int) -> Block:
    return Block(inputs, [
        _chain("branch3x3", (192, _ONE), (320, (3, 3), 2)),
        _chain("branch7x7x3", (192, _ONE), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)),
    ], "reduce")  # fmt: skip


def _at_8(inputs: int, pool: str) -> Block:
    def fork(name: str) -> list[tuple]:
        return [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]

    return Block(inputs, [
        [("branch1x1", 320, _ONE, 1)],
        [*_chain("branch3x3", (384, _ONE)), fork("branch3x3_2")],
        [*_chain("branch3x3dbl", (448, _ONE), (384, (3, 3))), fork("branch3x3dbl_3")],
    ], pool, 192)  # fmt: skip


class FIDInception(nn.Module):
    """Pictures [N, 3, H, W] in [-1, 1] -> features [N, 2048] after the global mean pooling.

    Pictures of other sizes than 299x299 are resized bilinearly, with half-pixel centres and without anti-aliasing, as
    pytorch-fid does; TensorFlow's original places the pixels a little otherwise.
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), padding=0)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), padding=0)
        blocks = {"5b": _at_35(192, 32), "5c": _at_35(256, 64), "5d": _at_35(288, 64), "6a": _to_17(288)}
        blocks |= {name: _at_17(768, c) for name, c in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items()}
        blocks |= {"7a": _to_8(768), "7b": _at_8(1280, "average"), "7c": _at_8(FEATURES, "maximum")}
        self.names = [f"Mixed_{name}" for name in blocks]
        for name, block in zip(self.names, blocks.values(), strict=True):
            setattr(self, name, block)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"Inception takes pictures [N, 3, H, W], not {list(images.shape)}")
        x = images
        if x.shape[2:] != (RESOLUTION, RESOLUTION):
            x = functional.interpolate(x, (RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name in self.names:
            x = getattr(self, name)(x)
        return x.mean((2, 3))
