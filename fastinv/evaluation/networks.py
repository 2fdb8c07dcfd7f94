"""Networks of published metrics, whose weights are local files: Inception for FID, ArcFace for identity.

Nothing is downloaded. A file is looked for under the environment variable, in the cache folder (FASTINV_CACHE) and, for
Inception, where torch.hub puts it; a file whose name carries a hash is held to it, and the sha256 of what was read
stands in the result.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastinv.checkpoints.registry import cache_folder
from fastinv.errors import CheckpointError, UsageError
from fastinv.evaluation.inception import FIDInception
from fastinv.losses.trunks import read_weights
from fastinv.models.encoders.bodies import CHANNELS, UNITS, IRSEUnit


@dataclass(frozen=True)
class WeightFile:
    """Weights that a metric needs.

    Attributes:
        what: of what network.
        variable: environment variable that may name the file.
        names: of the file in the cache folder.
        source: where to get it.
        hub: whether torch.hub may have downloaded it.
    """

    what: str
    variable: str
    names: tuple[str, ...]
    source: str
    hub: bool = False

    def find(self) -> Path:
        """The file on this machine.

        Raises:
            CheckpointError: there is none; says where to get it and where to put it.
        """
        if given := os.environ.get(self.variable):
            if not Path(given).is_file():
                raise CheckpointError(f"{self.variable} names {given!r}, which is not a file")
            return Path(given)
        candidates = [cache_folder() / name for name in self.names]
        if self.hub:
            candidates += [Path(torch.hub.get_dir()) / "checkpoints" / name for name in self.names]
        for path in candidates:
            if path.is_file():
                return path
        raise CheckpointError(
            f"no weights of {self.what} here: get {self.names[0]} ({self.source}) and put it into {candidates[0]}, or "
            f"set {self.variable} to its path"
        )


INCEPTION = WeightFile(
    "the FID Inception network",
    "FASTINV_INCEPTION",
    ("pt_inception-2015-12-05-6726825d.pth",),
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    hub=True,
)
ARCFACE = WeightFile(
    "the face recognition network IR-SE50",
    "FASTINV_ARCFACE",
    ("model_ir_se50.pth",),
    "the auxiliary models at https://github.com/eladrich/pixel2style2pixel",
)


class ArcFace(nn.Module):
    """IR-SE50 of ArcFace (Deng et al. 2019, arXiv 1801.07698), tensors named as in ``model_ir_se50.pth``.

    Pictures [N, 3, 112, 112] in [-1, 1], a face filling them -> embeddings [N, width].

    Args:
        units, channels: residual units and feature maps of each stage, see ``BodyEncoder``.
        width: of the embedding.
    """

    resolution = 112

    def __init__(self, units=UNITS["ir_se"], channels=CHANNELS, width: int = 512):
        super().__init__()
        stem = channels[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
        )
        strides = [(stage, 2 if unit == 0 else 1) for stage, count in enumerate(units) for unit in range(count)]
        wide, body = stem, []
        for stage, stride in strides:
            body.append(IRSEUnit(wide, channels[stage], stride))
            wide = channels[stage]
        self.body = nn.Sequential(*body)
        linear = nn.Linear(wide * (self.resolution >> len(units)) ** 2, width)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(wide), nn.Dropout(), nn.Flatten(), linear, nn.BatchNorm1d(width)
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        size = [self.resolution, self.resolution]
        if list(images.shape[1:]) != [3, *size]:
            raise UsageError(f"ArcFace takes pictures [N, 3, 112, 112], not {list(images.shape)}")
        return self.output_layer(self.body(self.input_layer(images)))


def load_inception(device=None) -> tuple[FIDInception, dict]:
    """The network of the Fréchet inception distance and {"network", "file", "sha256"}.

    Raises:
        CheckpointError: its file is not here, damaged, or of another network.
    """
    return _load(INCEPTION, "Inception v3 (FID, 2015-12-05)", FIDInception(), device)


def load_arcface(device=None) -> tuple[ArcFace, dict]:
    """The network of identity similarity and {"network", "file", "sha256"}; errors as for ``load_inception``."""
    return _load(ARCFACE, "ArcFace IR-SE50", ArcFace(), device)


def _load(file: WeightFile, name: str, network: nn.Module, device) -> tuple[nn.Module, dict]:
    path = file.find()
    weights, sha256 = read_weights(path)
    fit(network, weights, path)
    return network.to(device).eval(), {"network": name, "file": str(path), "sha256": sha256}


def fit(network: nn.Module, weights: dict[str, Tensor], path) -> None:
    """Weights into a network; tensors that it does not have are left out.

    Raises:
        CheckpointError: one is missing, or has another shape.
    """
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        given = weights.get(name)
        if given is None or given.shape != value.shape:
            found = "is missing" if given is None else f"has shape {list(given.shape)}"
            raise CheckpointError(f"{path} is of another network: {name} {found}, expected {list(value.shape)}")
    network.load_state_dict({name: weights.get(name, value).to(value.dtype) for name, value in state.items()})
