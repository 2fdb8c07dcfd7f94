"""Feature networks for perceptual losses: VGG-16 from a local file, or the shipped attribute network.

No torchvision: VGG-16's convolutions are built here and their weights read by torchvision's names
(``features.N.weight``).
"""

import copy
import hashlib
import os
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from fastinv.checkpoints import network_hash
from fastinv.checkpoints.registry import cache_folder
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.attributes import load_attribute_network
from fastinv.models.chain import FusedChains

# VGG-16 (Simonyan and Zisserman 2015, configuration D): convolutions per block and their output channels.
VGG16_BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# torchvision's ImageNet weights: its file name carries the first digits of the sha256.
VGG16_IMAGENET = "397923af"
VGG16_FILES = ("vgg16.safetensors", "vgg16.pth", f"vgg16-{VGG16_IMAGENET}.pth")


def resize_to(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Shrink square pictures to a resolution by area averaging; smaller ones stay as they are."""
    size = images.shape[-1]
    if size <= resolution:
        return images
    if size % resolution == 0:  # the gradient of a plain average pool is deterministic on every device
        return functional.avg_pool2d(images, size // resolution)
    return functional.interpolate(images, size=(resolution, resolution), mode="area")


class VGG16Trunk(nn.Module):
    """Feature maps of VGG-16: [N, 3, R, R] in [-1, 1] -> list of [N, C, H, W]; larger pictures are shrunk to 256.

    Args:
        weights: torchvision's state dict (``features.N.weight``, ``features.N.bias``; others are ignored).
        layers: which convolutions to tap, e.g. ``conv3_2``.
        pre_relu: tap before the ReLU instead of after it.
        normalize: subtract ImageNet's mean and divide by its standard deviation, as in training; False feeds [0, 1].

    Raises:
        UsageError: a layer that VGG-16 does not have. CheckpointError: a missing tensor or a wrong shape.
    """

    name = "vgg16"
    resolution = 256
    default_layers = ("conv1_1", "conv1_2", "conv3_2", "conv4_2")

    def __init__(self, weights: dict, layers=default_layers, pre_relu: bool = False, normalize: bool = True):
        super().__init__()
        self.layers, self.pre_relu, self.normalize = tuple(layers), pre_relu, normalize
        names = vgg16_convolutions()
        unknown = [layer for layer in self.layers if layer not in names]
        if unknown or not self.layers:
            raise UsageError(f"VGG-16 has no layer {unknown[0] if unknown else '()'!r}; it has {', '.join(names)}")
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.convolutions = nn.ModuleDict()
        for name, (index, in_channels, out_channels) in names.items():
            convolution = nn.utils.skip_init(nn.Conv2d, in_channels, out_channels, 3, padding=1)
            for part, parameter in convolution.named_parameters():
                given = weights.get(f"features.{index}.{part}")
                if given is None or given.shape != parameter.shape:
                    found = "is missing" if given is None else f"has shape {list(given.shape)}"
                    raise CheckpointError(
                        f"not torchvision's VGG-16 weights: features.{index}.{part} {found}, "
                        f"expected {list(parameter.shape)}"
                    )
                parameter.data = given.float()
            self.convolutions[name] = convolution
            if set(self.layers) <= set(self.convolutions):
                break  # what lies deeper is not needed
        self._runs = _runs(self.convolutions, self.layers)
        self._fused = FusedChains()
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = resize_to(images, self.resolution) * 0.5 + 0.5
        if self.normalize:
            x = (x - self.mean) / self.std
        chains = self._fused.of([[self.convolutions[name] for name in names] for names in self._runs], x)
        taps = {}
        for index, names in enumerate(self._runs):
            if names[0].endswith("_1") and names[0] != "conv1_1":
                x = functional.max_pool2d(x, 2)
            if chains:
                u = chains[index](x, "bias" if self.pre_relu else "relu")
                x = u.relu() if self.pre_relu else u
            else:
                for name in names:
                    u = self.convolutions[name](x)
                    x = u.relu()
            taps[names[-1]] = u if self.pre_relu else x
        return [taps[layer] for layer in self.layers]


class FeatureTrunk(nn.Module):
    """Feature maps of a network with a ``features(images)`` method, such as the attribute network.

    Args:
        network: ``features`` takes [N, 3, R, R] in [-1, 1] and returns a list of [N, C, H, W]; resizing is its business
            (the attribute network brings every size to 64).
        layers: which maps to use, by position; None takes all.
        name: what the settings call it; None is the class's name.
    """

    def __init__(self, network: nn.Module, layers: tuple[int, ...] | None = None, name: str | None = None):
        super().__init__()
        self.network, self.layers = network, layers
        self.name = name or type(network).__name__
        self.eval().requires_grad_(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps = list(self.network.features(images))
        if self.layers is None:
            return maps
        bad = [layer for layer in self.layers if not isinstance(layer, int) or not 0 <= layer < len(maps)]
        if bad or not self.layers:
            raise UsageError(f"{self.name} has feature maps 0 to {len(maps) - 1}, not {bad[0] if bad else '()'!r}")
        return [maps[layer] for layer in self.layers]


def _runs(names, taps) -> list[tuple[str, ...]]:
    """Names of VGG-16's convolutions cut after each tap and before each pooling."""
    runs = [[]]
    for name in names:
        if runs[-1] and (name.endswith("_1") or runs[-1][-1] in taps):
            runs.append([])
        runs[-1].append(name)
    return [tuple(run) for run in runs]


def vgg16_convolutions() -> dict[str, tuple[int, int, int]]:
    """``conv1_1`` ... ``conv5_3`` -> (position in torchvision's ``features``, input channels, output channels)."""
    table, index, channels = {}, 0, 3
    for block, (count, width) in enumerate(VGG16_BLOCKS, start=1):
        for number in range(1, count + 1):
            table[f"conv{block}_{number}"] = (index, channels, width)
            index, channels = index + 2, width  # the convolution and its ReLU
        index += 1  # the pooling layer
    return table


def find_vgg16() -> Path | None:
    """The local VGG-16 file: FASTINV_VGG16, else one in the cache folder or from torch.hub; None if none."""
    given = os.environ.get("FASTINV_VGG16")
    if given:
        if not Path(given).is_file():
            raise CheckpointError(f"FASTINV_VGG16 names {given!r}, which is not a file")
        return Path(given)
    candidates = [cache_folder() / name for name in VGG16_FILES]
    candidates.append(Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILES[-1])
    return next((path for path in candidates if path.is_file()), None)


def read_weights(path: str | Path) -> tuple[dict, str]:
    """Read a state dict (.safetensors, or .pth without running code) and the file's sha256.

    A name with torch.hub's hash suffix (``vgg16-397923af.pth``) is held to it.

    Raises:
        CheckpointError: unreadable, no state dict, or the hash differs.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    sha256 = digest.hexdigest()
    suffix = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if suffix and not sha256.startswith(suffix[1]):
        raise CheckpointError(
            f"{path} is damaged: its sha256 starts with {sha256[:8]}, its name says {suffix[1]}; download it again"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path), sha256
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types on damage; a refused pickle is an UnpicklingError of several lines
        raise CheckpointError(f"cannot read {path}: not a plain state dict ({type(error).__name__})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no state dict (names to tensors)")
    return weights, sha256


def load_trunk(
    trunk="auto", layers=None, pre_relu: bool = False, normalize: bool = True, device=None, dtype=torch.float32
) -> tuple[nn.Module, dict]:
    """A frozen feature network and a description of it for the result's settings.

    Args:
        trunk: "auto" (a local VGG-16 file if there is one, else the attribute network), "vgg16", "attributes", or a
            module with a ``features`` method.
        layers: what to tap: names such as "conv3_2" for VGG-16, positions for the others; None is the trunk's default
            (the paper's four layers; all maps).
        pre_relu, normalize: VGG-16's flags, see ``VGG16Trunk``; the other trunks have one way only.
        device, dtype: where and in which arithmetic it runs.

    Returns:
        (module: images [N, 3, R, R] in [-1, 1] -> list of maps, {"name", "sha256", "layers", ...}).

    Raises:
        UsageError: unknown trunk or layer, or a flag of another trunk. CheckpointError: weights missing or unreadable.
    """
    if isinstance(trunk, nn.Module):
        if not callable(getattr(trunk, "features", None)):
            raise UsageError(f"a trunk must have a method features(images); {type(trunk).__name__} has none")
        module, facts = FeatureTrunk(copy.deepcopy(trunk), layers), {"sha256": network_hash(trunk)}
    elif trunk in ("auto", "vgg16"):
        path = find_vgg16()
        if path is None:
            if trunk == "auto":
                return load_trunk("attributes", layers, pre_relu, normalize, device, dtype)
            raise CheckpointError(
                "no VGG-16 weights here: set FASTINV_VGG16 to torchvision's file, or put it into "
                f"{cache_folder() / VGG16_FILES[-1]}"
            )
        weights, sha256 = read_weights(path)
        try:
            module = VGG16Trunk(weights, layers or VGG16Trunk.default_layers, pre_relu, normalize)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
        facts = {"sha256": sha256, "file": str(path), "imagenet": sha256.startswith(VGG16_IMAGENET)}
        facts |= {"layers": list(module.layers), "pre_relu": pre_relu, "normalize": normalize}
    elif trunk == "attributes":
        network = load_attribute_network()
        module, facts = FeatureTrunk(network, layers, name="attributes"), {"sha256": network_hash(network)}
    else:
        raise UsageError(f"unknown trunk {trunk!r}; give auto, vgg16, attributes or a module with features(images)")
    if not isinstance(module, VGG16Trunk):
        if pre_relu or not normalize:
            raise UsageError(f"pre_relu and normalize are options of vgg16; the trunk here is {module.name}")
        facts["layers"] = "all" if layers is None else list(layers)
    return module.to(device=device, dtype=dtype), {"name": module.name, **facts}
