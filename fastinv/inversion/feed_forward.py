"""Inversion without optimisation: an encoder gives a picture's code in one pass, ReStyle in a few.

The codes are only as near as the encoder was trained to make them. To go on from them, give the encoder to a method
that optimises: as ``init`` to any, as ``encoder`` to idinvert.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fastinv.checkpoints import BUNDLED, network_hash
from fastinv.checkpoints.registry import DEFAULT
from fastinv.errors import UsageError
from fastinv.inversion.loop import Trace, frozen
from fastinv.inversion.method import option
from fastinv.inversion.objective import own_encoder, read_encoder
from fastinv.inversion.spaces import synthesize
from fastinv.inversion.task import Task
from fastinv.losses import PixelLoss
from fastinv.models.encoders import (
    ALAEEncoder,
    Encoder4Editing,
    GradualStyleEncoder,
    IDInvertEncoder,
    ReStyleE4E,
    ReStylePSP,
    WEncoder,
    WPlusEncoder,
)
from fastinv.models.encoders.restyle import ReStyle

PIXELS_AT_ONCE = 2**23  # of the pictures that a GPU works on together: eight of 1024 x 1024
PASSES = 5  # of ReStyle, in the paper


@dataclass(frozen=True)
class FeedForward:
    """The code ``E(I)`` of an encoder E, its picture, and the mean squared error of that.

    In the place of ``Method`` for ``invert``: there is nothing to optimise, and so none of its options. The same bits
    need the same number of threads: torch's convolutions split sums over them.

    Attributes:
        name: in ``METHODS`` and on the command line.
        spaces: where the codes are.
        encoders: classes of E; what derives from another method's class is that method's.
        generator: bundled name of the generator that the command line takes where none is given.
    """

    name: ClassVar[str]
    spaces: ClassVar[tuple[str, ...]] = ("w+",)
    encoders: ClassVar[tuple[type, ...]]
    generator: ClassVar[str] = DEFAULT

    steps: int = option(0, "always 0: nothing is optimised")
    encoder: Any = option(None, "the encoder: a module, bundled name or file; None is the bundled one of the generator")

    def __post_init__(self):
        if self.steps != 0:
            raise UsageError(
                f"{self.name} takes an encoder's code as it is, without steps (0, not {self.steps}); to go on from it, "
                "optimise by another method with init (--init), or by stylegan-encoder or idinvert with encoder"
            )

    def check_space(self, space: str) -> None:
        """All of ``spaces`` work."""

    def fitted(self, G, masked: bool = False, started: bool = False) -> "FeedForward":
        """With the encoder itself, for a generator.

        Args:
            G: the generator.
            masked, started: whether ``invert`` has masks, and a start.

        Raises:
            UsageError: none that fits is known, it is one for another method, or there are masks or a start.
            CheckpointError: its file cannot be read.
        """
        if masked:
            raise UsageError(
                f"{self.name} reads the whole picture, without masks; methods that optimise take them, and an encoder "
                "as init (--init)"
            )
        if started:
            raise UsageError(
                f"{self.name} takes an encoder's code as it is; init is where an optimisation starts: leave it out, or "
                "take another method"
            )
        name = own_encoder(G, self.name) if self.encoder is None else self.encoder
        if name is None:
            others = [
                f"{model.name} is for the generator {model.generator}"
                for model in BUNDLED.values()
                if model.method == self.name
            ]
            raise UsageError(
                f"{self.name}: no encoder for this generator comes with fastinv; give encoder= (--set encoder=...), a "
                f"module, a name or a file (see `fastinv models`){''.join('; ' + other for other in others)}"
            )
        E = read_encoder(name, G)
        owner = _owner(E)
        if owner is None:
            known = ", ".join(one.__name__ for one in self.encoders)
            raise UsageError(
                f"{self.name} takes a {known}, not a {type(E).__name__}; with init=encoder and steps=0 any other "
                "method gives the codes of any encoder"
            )
        if owner.name != self.name:
            raise UsageError(f"{self.name} does not take a {type(E).__name__}: use the method {owner.name}")
        return dataclasses.replace(self, encoder=E)

    @torch.no_grad()
    def run(self, task: Task) -> tuple[Trace, dict[str, torch.Tensor]]:
        """Encode and measure; the trace of one evaluation, and the codes {"w_plus": [N, num_ws, w_dim]}."""
        target, E = task.target, self.encoder
        if (E.latent_avg.device, E.latent_avg.dtype) != (target.device, target.dtype):
            E = copy.deepcopy(E).to(target.device, target.dtype)
        task.facts["encoder"] = {"name": type(E).__name__, "sha256": network_hash(E)}
        # On a CPU picture by picture, each of one memory format: others in a batch then change no bit.
        at_once = 1 if target.device.type == "cpu" else max(1, PIXELS_AT_ONCE // task.G.resolution**2)
        parts, codes, images, losses = target.split(at_once), [], [], []
        if task.progress is not None:
            task.progress.begin(self.name, len(target))
        done = 0
        with frozen(E):
            for part in parts:
                part = part.contiguous()
                codes.append(self.encode(E, part, task.network))
                images.append(synthesize(task.network, {"w_plus": codes[-1]}).to(target.dtype))
                losses.append(PixelLoss(part)(images[-1]))
                done += len(part)
                if task.progress is not None:
                    task.progress.target = part
                    task.progress.update(done, losses[-1], images[-1])
        task.tables["pictures"], loss = torch.cat(images), torch.cat(losses)
        if task.callback is not None:
            task.callback(0, {"total": loss, "pixel": loss}, task.tables["pictures"])
        curve = loss[None].to("cpu", torch.float64)
        failed = dict.fromkeys((~curve[0].isfinite()).nonzero().flatten().tolist(), 0)
        best_step = torch.zeros(len(target), dtype=torch.long)
        w_plus = torch.cat(codes)
        trace = Trace({"w": w_plus}, {"total": curve, "pixel": curve}, best_step, 0, False, failed)
        return trace, {"w_plus": w_plus}

    def encode(self, E, images: torch.Tensor, network) -> torch.Tensor:
        """Codes [N, num_ws, w_dim] of pictures [N, 3, R, R]; network is the prepared generator."""
        return E.encode(images)

    def picture(self, task: Task, codes: dict[str, Any], resolution: int | None = None) -> torch.Tensor:
        """The pictures that ``run`` has made of its codes."""
        return task.tables["pictures"]


@dataclass(frozen=True)
class _WithReStyle(FeedForward):
    """Of methods whose encoders may be ReStyle's."""

    passes: int | None = option(None, "ReStyle encoders: so many looks at the picture and the last result; None is 5")

    def __post_init__(self):
        super().__post_init__()
        if self.passes is not None and self.passes < 1:
            raise UsageError(f"passes must be at least 1, not {self.passes}")

    def fitted(self, G, masked: bool = False, started: bool = False) -> "FeedForward":
        found = super().fitted(G, masked, started)
        if self.passes is not None and not isinstance(found.encoder, ReStyle):
            name = type(found.encoder).__name__
            raise UsageError(f"passes are for ReStyle encoders; a {name} has one: leave them out")
        return found

    def encode(self, E, images: torch.Tensor, network) -> torch.Tensor:
        if isinstance(E, ReStyle):
            return E.encode(images, network, PASSES if self.passes is None else self.passes)
        return super().encode(E, images, network)


@dataclass(frozen=True)
class PSP(_WithReStyle):
    """pSp (Richardson et al. 2021, arXiv 2008.00951): a code in W+ by an encoder alone; also ReStyle's and W encoders.

    ``E(I) = mean + heads(body(I))``; ReStyle (Alaluf et al. 2021, arXiv 2104.02699): ``w_(t+1) = w_t + E(I, G(w_t))``
    from the mean, ``passes`` times.
    """

    name: ClassVar[str] = "psp"
    encoders: ClassVar[tuple[type, ...]] = (GradualStyleEncoder, WEncoder, WPlusEncoder, ReStylePSP)


@dataclass(frozen=True)
class E4E(_WithReStyle):
    """e4e (Tov et al. 2021, arXiv 2102.02766): a code near W, for editing, by an encoder alone; also ReStyle's.

    ``E(I) = mean + w_0 + (0, d_1, ..., d_n)``, one vector for all style inputs and an offset for each but the first,
    which training keeps small. ReStyle as for ``PSP``.
    """

    name: ClassVar[str] = "e4e"
    encoders: ClassVar[tuple[type, ...]] = (Encoder4Editing, ReStyleE4E)


@dataclass(frozen=True)
class IDInvertPass(FeedForward):
    """IDInvert's encoder (Zhu et al. 2020, arXiv 2004.00049): a code in W+, without the optimisation of idinvert."""

    name: ClassVar[str] = "idinvert-encoder"
    encoders: ClassVar[tuple[type, ...]] = (IDInvertEncoder,)


@dataclass(frozen=True)
class ALAE(FeedForward):
    """ALAE (Pidhorskyi et al. 2020, arXiv 2004.04467): a code in W by an encoder that learned with its generator."""

    name: ClassVar[str] = "alae"
    spaces: ClassVar[tuple[str, ...]] = ("w",)  # one vector, for all style inputs
    encoders: ClassVar[tuple[type, ...]] = (ALAEEncoder,)
    generator: ClassVar[str] = "faces64-alae"


FEED_FORWARD = (PSP, E4E, IDInvertPass, ALAE)


def _owner(encoder: torch.nn.Module) -> type[FeedForward] | None:
    """The method that takes an encoder of this class, or else of the nearest one that it derives from."""
    for cls in type(encoder).__mro__:
        for method in FEED_FORWARD:
            if cls in method.encoders:
                return method
    return None
