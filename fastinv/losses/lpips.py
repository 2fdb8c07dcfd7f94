"""LPIPS (Zhang et al. 2018, version 0.1, VGG-16) on our own passes, with frozen weights prepared once.

``sum_l 1 / (H_l W_l) * sum_pixels sum_c head_lc (f_lc(G) - f_lc(I))^2`` with f_l the features after the last ReLU of
each of VGG-16's five stages, divided at each pixel by their length over the channels. VGG-16's weights are the local
file that ``load_trunk`` finds; the heads are the data file of the ``lpips`` package (BSD-2-Clause), which is looked up
but never imported, because it imports torchvision.
"""

import copy
import importlib.util
import itertools
from pathlib import Path

import torch
from torch.nn import functional

from fastinv.errors import CheckpointError, UsageError
from fastinv.losses.base import Loss, resize_mask
from fastinv.losses.trunks import VGG16_BLOCKS, VGG16Trunk, load_trunk, read_weights
from fastinv.models.chain import FrozenChain
from fastinv.ops.perceptual import (
    compute_dtype,
    perceptual_input,
    perceptual_input_backward,
    perceptual_stage,
    perceptual_stage_backward,
    perceptual_sum,
)

TAPS = tuple(f"conv{block}_{count}" for block, (count, _) in enumerate(VGG16_BLOCKS, start=1))
HEADS_FILE = Path("weights", "v0.1", "vgg.pth")  # in the lpips package
# The package's input layer: pictures in [-1, 1] minus SHIFT, divided by SCALE.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
RESOLUTION = 256  # larger pictures are shrunk to it by area
SMALLEST = 2 ** (len(TAPS) - 1)  # pixels a side that the four poolings leave something of


class LPIPSNetwork:
    """The frozen weights of LPIPS.

    Args:
        trunk: VGG-16 with all of its convolutions (``layers=TAPS``).
        heads: five [C] vectors of weights, one per stage.

    Raises:
        CheckpointError: heads of wrong number or length.
    """

    def __init__(self, trunk: VGG16Trunk, heads: list[torch.Tensor]):
        widths = [width for _, width in VGG16_BLOCKS]
        if [tuple(head.shape) for head in heads] != [(width,) for width in widths]:
            raise CheckpointError(f"LPIPS heads must have lengths {widths}, got {[list(head.shape) for head in heads]}")
        self.heads = [head.detach() for head in heads]
        self.convolutions = [
            [trunk.convolutions[f"conv{block}_{number}"] for number in range(1, count + 1)]
            for block, (count, _) in enumerate(VGG16_BLOCKS, start=1)
        ]
        self._prepared: dict = {}

    def prepare(self, dtype: torch.dtype, device) -> "PreparedNetwork":
        """The weights for one dtype and device; made once."""
        key = dtype, torch.device(device)
        if key not in self._prepared:
            self._prepared[key] = PreparedNetwork(self, *key)
        return self._prepared[key]


def input_channels(dtype: torch.dtype, device: torch.device) -> int:
    """Channels of the trunk's input: padded from 3 to what tensor cores take of 16-bit numbers, else as they are."""
    return 8 if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) else 3


class PreparedNetwork:
    """Weights in one dtype on one device: a `FrozenChain` for each stage."""

    def __init__(self, network: LPIPSNetwork, dtype: torch.dtype, device: torch.device):
        self.dtype = dtype
        self.channels = input_channels(dtype, device)
        self.scale = tuple(1 / scale for scale in SCALE)
        self.offset = tuple(-shift / scale for shift, scale in zip(SHIFT, SCALE, strict=True))
        self.heads = [head.to(device, compute_dtype(dtype)) for head in network.heads]
        self.stages = []
        for convolutions in network.convolutions:
            pairs = [(convolution.weight.detach(), convolution.bias) for convolution in convolutions]
            if not self.stages:  # the pictures' own three channels
                pairs[0] = functional.pad(pairs[0][0], [0, 0, 0, 0, 0, self.channels - 3]), pairs[0][1]
            self.stages.append(FrozenChain(pairs, dtype, device))

    def run(self, images: torch.Tensor, features=None, inverses=None, pixel_weights=None, keep: bool = False):
        """One forward pass: (inputs of each stage's convolutions, one ``perceptual_stage`` result per stage).

        Args:
            images: [N, 3, R, R] in [-1, 1].
            features, inverses: of the target, one tensor per stage; None for the target itself.
            pixel_weights: one [N, H, W] per stage, or None.
            keep: whether the inputs of the convolutions are wanted; else they are None.
        """
        size = tuple(min(side, RESOLUTION) for side in images.shape[2:])
        x = perceptual_input(images, self.scale, self.offset, size, self.channels, self.dtype)
        inputs, results = [], []
        for index, stage in enumerate(self.stages):
            # Bias and ReLU of the last convolution are part of it, or else of the pass that ends the stage.
            *maps, x = stage.forward(x, "relu" if stage.fused else "none", keep)
            target = (None,) * 4
            if features is not None:
                weights = pixel_weights[index] if pixel_weights is not None else None
                target = self.heads[index], features[index], inverses[index], weights
            pool = index < len(self.stages) - 1
            results.append(perceptual_stage(x, None if stage.fused else stage.biases[-1], *target, pool=pool))
            inputs.append(maps)
            x = results[-1][1]
        return inputs, results


class _Distance(torch.autograd.Function):
    """Distances to a target as one node: its backward has no weight gradients and one pass for each stage's end."""

    @staticmethod
    def forward(ctx, images, network, features, inverses, pixel_weights):
        inputs, results = network.run(images, features, inverses, pixel_weights, ctx.needs_input_grad[0])
        ctx.constants = network, features, inverses, pixel_weights
        ctx.image = images.shape[2:], images.dtype
        saved = [tensor for h, _, inverse, slope, _ in results for tensor in (h, inverse, slope)]
        ctx.save_for_backward(*saved, *itertools.chain.from_iterable(inputs))
        return perceptual_sum([partial for *_, partial in results])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_value):
        network, features, inverses, pixel_weights = ctx.constants
        count = len(network.stages)
        saved, inputs = ctx.saved_tensors[: 3 * count], list(ctx.saved_tensors[3 * count :])
        grad_value = grad_value.contiguous()
        grad = None
        for index in reversed(range(count)):
            own, stage = saved[3 * index : 3 * index + 3], network.stages[index]
            weights = pixel_weights[index] if pixel_weights is not None else None
            grad = perceptual_stage_backward(
                *own, network.heads[index], features[index], inverses[index], weights, grad_value, grad
            )
            first = len(inputs) - len(stage)
            grad, inputs = stage.backward(grad, inputs[first:]), inputs[:first]
        size, dtype = ctx.image
        return perceptual_input_backward(grad, grad_value, network.scale, size, dtype), None, None, None, None


class LPIPS(Loss):
    """LPIPS distance to a target, with the features of the target computed once.

    With a mask both pictures are multiplied by it before the trunk, and the difference of each feature map by the mask
    at its size, as in ``PerceptualLoss``.

    Args:
        target: [N, 3, R, R] in [-1, 1], R of at least 16.
        network: the weights, see ``load_lpips``.
        mask: soft mask [N, 1, R, R] in [0, 1], or None.
        dtype: arithmetic of the trunk (float64, float32, bfloat16 or float16); None is that of target. Distances, and
            sums on the way to them, are float32 for the 16-bit ones. Pictures should be float32 at least: a picture's
            gradient is too small for float16.

    Raises:
        UsageError: target is no batch of pictures of at least 16x16 pixels.
    """

    per_picture = ("features", "inverses", "mask", "pixel_weights")

    def __init__(
        self,
        target: torch.Tensor,
        network: LPIPSNetwork,
        mask: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
    ):
        if target.ndim != 4 or target.shape[1] != 3 or min(target.shape[2:]) < SMALLEST:
            raise UsageError(
                f"LPIPS takes pictures [N, 3, R, R] of at least {SMALLEST}x{SMALLEST} pixels, not {list(target.shape)}"
            )
        self.network = network.prepare(dtype or target.dtype, target.device)
        self.mask, self.pixel_weights = mask, None
        self._look_at(target)
        if mask is not None:
            masks = [resize_mask(mask, h.shape[-2:])[:, 0] for h in self.features]
            self.pixel_weights = [
                small.to(inverse.dtype).square().contiguous()
                for small, inverse in zip(masks, self.inverses, strict=True)
            ]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N], float64 for a float64 trunk, else float32. Differentiable once.

        Raises:
            UsageError: as many pictures as targets are needed, of a size that gives feature maps of the target's.
        """
        expected = len(self.features[0]), *self.features[0].shape[2:]
        if (len(images), *(min(side, RESOLUTION) for side in images.shape[2:])) != expected:
            count, height, width = expected
            raise UsageError(
                f"LPIPS: {count} target(s) of {height}x{width} pixels at the trunk, pictures {list(images.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            return _Distance.apply(
                self._visible(images), self.network, self.features, self.inverses, self.pixel_weights
            )

    def towards(self, target: torch.Tensor) -> "LPIPS":
        """The same distance to other targets, without a mask."""
        other = copy.copy(self)
        other.mask = other.pixel_weights = None
        other._look_at(target)
        return other

    def _look_at(self, target: torch.Tensor) -> None:
        with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
            _, results = self.network.run(self._visible(target))
        self.features = [h for h, *_ in results]
        self.inverses = [inverse for _, _, inverse, *_ in results]

    def select(self, rows: torch.Tensor) -> "LPIPS":
        chosen = super().select(rows)
        chosen.features = [h.contiguous(memory_format=torch.channels_last) for h in chosen.features]
        return chosen

    def _visible(self, images: torch.Tensor) -> torch.Tensor:
        return images if self.mask is None else images * self.mask


def find_heads() -> Path:
    """The file of the linear heads in the installed ``lpips`` package, which is not imported.

    Raises:
        CheckpointError: the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("lpips")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise CheckpointError(
            "LPIPS needs the weights in the lpips package, which is not installed: pip install --no-deps lpips "
            "(--no-deps, because its dependencies would replace torch)"
        )
    path = Path(folders[0]) / HEADS_FILE
    if not path.is_file():
        raise CheckpointError(
            f"the lpips package in {folders[0]} has no {HEADS_FILE}; pip install --no-deps lpips==0.1.4"
        )
    return path


def read_heads(path: str | Path) -> tuple[list[torch.Tensor], str]:
    """The five heads [C] of an lpips data file, and the file's sha256.

    Raises:
        CheckpointError: unreadable, or a head is missing.
    """
    weights, sha256 = read_weights(path)
    names = [f"lin{index}.model.1.weight" for index in range(len(TAPS))]
    missing = [name for name in names if name not in weights]
    if missing:
        raise CheckpointError(f"{path} holds no LPIPS heads of VGG-16: {missing[0]} is missing")
    return [weights[name].flatten() for name in names], sha256


def load_lpips() -> tuple[LPIPSNetwork, dict]:
    """The network from local files, and what is known of it: {"name", "trunk": {...}, "heads": {...}}.

    Raises:
        CheckpointError: VGG-16's weights or the lpips package are not here, or are damaged; says what to install.
    """
    path = find_heads()
    heads, sha256 = read_heads(path)
    trunk, facts = load_trunk("vgg16", layers=TAPS)
    facts = {name: facts[name] for name in ("file", "sha256", "imagenet")}
    return LPIPSNetwork(trunk, heads), {"name": "lpips", "trunk": facts, "heads": {"file": str(path), "sha256": sha256}}
