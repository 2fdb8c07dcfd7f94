"""The metrics of ``evaluate`` by name, each with the network that it needs and the settings that belong to its number.

Three kinds: of pairs of pictures (``Pair``), of two sets of pictures (``Set``), and of codes (``Code``), which are
edited. A metric that cannot be measured raises `Missing` when it is built, with what to do about it.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fastinv.checkpoints import BUNDLED, network_hash
from fastinv.editing.codes import codes_of, edited, render
from fastinv.errors import CheckpointError, FastinvError
from fastinv.evaluation.editability import (
    away,
    edit_directions,
    edit_scores,
    editing_consistency,
    principal_coordinates,
)
from fastinv.evaluation.frechet import frechet_distance
from fastinv.evaluation.metrics import attribute_change, identity_similarity, ms_ssim
from fastinv.evaluation.networks import load_arcface, load_inception
from fastinv.evaluation.sliced import DIRECTIONS, PATCH, PATCHES, SMALLEST, patch_distances, pyramid_patches
from fastinv.inversion.objective import bundled_hash, find_encoder
from fastinv.latents import mean_latent
from fastinv.losses import LPIPS, PerceptualLoss, load_lpips, load_trunk, mse, psnr, ssim
from fastinv.losses.lpips import SMALLEST as LPIPS_SMALLEST
from fastinv.losses.structure import WINDOW, scale_count
from fastinv.models.attributes import load_attribute_network

STRENGTH = 1.5  # of the edits, in standard deviations of the attribute
FACE = (32 / 256, 35 / 256, 220 / 256, 223 / 256)  # left, top, right, bottom: where a face is in an aligned picture
ATTRIBUTE_NOTE = "knows the procedural faces only"


class Missing(FastinvError):
    """A metric cannot be measured here; the message says what is missing and what to do."""


@dataclass
class Context:
    """What metrics are built from.

    Attributes:
        size: (height, width) of the pictures, after the crop.
        crop: what the settings call it.
        cropped: whether a part of the pictures was cut out.
        device: where it is measured.
        seed: of everything random.
        G, encoder: generator and encoder (a module, or a name or file), or None.
        codes: results of an inversion (each of one picture or more) with the codes of the pictures, or none.
        shared: networks that several metrics take.
    """

    size: tuple[int, int]
    crop: str = "none"
    cropped: bool = False
    device: Any = "cpu"
    seed: int = 0
    G: Any = None
    encoder: Any = None
    codes: list = field(default_factory=list)
    shared: dict = field(default_factory=dict)

    def settings(self, **more) -> dict:
        """Of a metric of pictures, with what is special about it."""
        height, width = self.size
        return {"resolution": f"{width}x{height}", "range": "[-1, 1]", "crop": self.crop, **more}

    def needs(self, name: str, least: int) -> None:
        """`Missing` unless the pictures are large enough."""
        if min(self.size) < least:
            raise Missing(f"{name} needs pictures of at least {least} pixels a side, not {min(self.size)}")

    def attribute_network(self):
        """The shipped attribute network, and what settings say of it."""
        if "attributes" not in self.shared:
            network = load_attribute_network(device=self.device)
            facts = {"network": "attribute network", "sha256": network_hash(network), "note": ATTRIBUTE_NOTE}
            self.shared["attributes"] = network, facts
        return self.shared["attributes"]


class Pair:
    """A metric of pairs of pictures; ``measure(a, b)``: two [N, 3, H, W] in [-1, 1] -> [N]."""

    better: ClassVar[str] = "lower"
    better_parts: ClassVar[dict[str, str]] = {}

    def __init__(self, context: Context):
        self.settings = context.settings()

    def measure(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class MSE(Pair):
    """Mean squared error, ``mean (a - b)^2``, of pictures in [-1, 1] (four times that of [0, 1])."""

    def measure(self, a, b):
        return mse(b.double(), a.double())


class PSNR(Pair):
    """Peak signal-to-noise ratio, ``10 log10(2^2 / MSE)`` dB, at most 100; the same number in any range."""

    better = "higher"

    def measure(self, a, b):
        return psnr(b.double(), a.double())


class SSIM(Pair):
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, deviation 1.5, mean over colours."""

    better = "higher"

    def __init__(self, context: Context):
        context.needs("ssim", WINDOW)
        self.settings = context.settings(window="Gaussian 11x11, sigma 1.5") | {"range": "[0, 1]"}

    def measure(self, a, b):
        return ssim(b.double(), a.double())


class MSSSIM(Pair):
    """Structural similarity over up to five scales (Wang, Simoncelli, Bovik 2003), as many as the window fits into."""

    better = "higher"

    def __init__(self, context: Context):
        context.needs("ms-ssim", WINDOW)
        self.settings = context.settings(scales=scale_count(min(context.size))) | {"range": "[0, 1]"}

    def measure(self, a, b):
        return ms_ssim(b.double(), a.double())


class LPIPSDistance(Pair):
    """LPIPS of VGG-16, version 0.1 (Zhang et al. 2018, arXiv 1801.03924)."""

    def __init__(self, context: Context):
        context.needs("lpips", LPIPS_SMALLEST)
        self.network, facts = load_lpips()
        self.settings = context.settings(
            network="LPIPS 0.1, VGG-16", file=facts["trunk"]["file"], sha256=facts["trunk"]["sha256"]
        )

    def measure(self, a, b):
        return LPIPS(a.float(), self.network)(b.float())


class Features(Pair):
    """``sum_j mean (F_j(a) - F_j(b))^2`` over the feature maps of the attribute network: a perceptual distance where
    VGG-16 is not at hand.
    """

    def __init__(self, context: Context):
        self.trunk, _ = load_trunk("attributes", device=context.device)
        self.settings = context.settings(**context.attribute_network()[1])

    def measure(self, a, b):
        return PerceptualLoss(a.float(), self.trunk)(b.float())


class Identity(Pair):
    """Identity similarity: cosine of ArcFace's embeddings of the face, as pSp's training has it."""

    better = "higher"

    def __init__(self, context: Context):
        self.network, facts = load_arcface(context.device)
        self.face = None if context.cropped else FACE
        crop = context.crop if self.face is None else "face"
        self.settings = context.settings(**facts) | {"crop": crop, "network input": "112x112, mean of pixels"}

    def measure(self, a, b):
        return identity_similarity(*(self.network(self._face(images.float())) for images in (a, b)))

    def _face(self, images):
        images = images if self.face is None else cut(images, self.face)
        return torch.nn.functional.adaptive_avg_pool2d(images, self.network.resolution)


class AttributeIdentity(Pair):
    """Cosine of the attribute network's embeddings: the substitute for procedural faces."""

    better = "higher"

    def __init__(self, context: Context):
        self.network, facts = context.attribute_network()
        self.settings = context.settings(**facts)

    def measure(self, a, b):
        return identity_similarity(self.network.embedding(b.float()), self.network.embedding(a.float()))


class Attributes(Pair):
    """Attribute preservation: mean distance of 16 attributes as the attribute network reads them, in deviations."""

    def __init__(self, context: Context):
        self.network, facts = context.attribute_network()
        self.settings = context.settings(**facts)

    def measure(self, a, b):
        return attribute_change(self.network.standardised(b.float()), self.network.standardised(a.float()))


class Set:
    """A metric of two sets: what ``look`` finds in batches of pictures is kept and ``distances`` compares it."""

    better: ClassVar[str] = "lower"

    def __init__(self, context: Context):
        self.settings = context.settings()

    def look(self, images: torch.Tensor, first: int) -> dict[Any, torch.Tensor]:
        """[N, 3, H, W] -> {key: features, N rows or a multiple of it}; first is the number of the first picture."""
        raise NotImplementedError

    def distances(self, a: dict, b: dict) -> dict[str, float]:
        """{"": the distance, ".more": a part of it}."""
        raise NotImplementedError


class FID(Set):
    """Fréchet inception distance (Heusel et al. 2017, arXiv 1706.08500), covariances unbiased."""

    def __init__(self, context: Context):
        self.network, facts = load_inception(context.device)
        self.settings = context.settings(**facts, resize="bilinear to 299x299, no anti-aliasing")

    def look(self, images, first):
        return {"": self.network(images.float()).cpu()}

    def distances(self, a, b):
        self.settings["note"] = few(a[""], b[""])
        return {"": frechet_distance(a[""], b[""])}


class AttributeFrechet(FID):
    """Fréchet distance of the attribute network's embeddings: the substitute for procedural faces."""

    def __init__(self, context: Context):
        network, facts = context.attribute_network()
        self.network, self.settings = network.embedding, context.settings(**facts)

    def distances(self, a, b):
        note = self.settings["note"]
        found = super().distances(a, b)
        self.settings["note"] = "; ".join(part for part in (note, self.settings["note"]) if part)
        return found


class SWD(Set):
    """Sliced Wasserstein distance of Laplacian pyramid patches (Karras et al. 2018), times 1000, mean of the levels."""

    def __init__(self, context: Context):
        context.needs("swd", SMALLEST)
        self.seed = context.seed
        self.settings = context.settings(
            patches=f"{PATCHES} of {PATCH}x{PATCH}", directions=DIRECTIONS, seed=context.seed, scale="x 1000"
        )

    def look(self, images, first):
        # A seed for each picture: its patches do not depend on which others are looked at with it.
        parts = [pyramid_patches(image[None].float(), self.seed + first + row) for row, image in enumerate(images)]
        return {level: torch.cat([part[level].cpu() for part in parts]) for level in parts[0]}

    def distances(self, a, b):
        levels = patch_distances(a, b, seed=self.seed)
        return {"": sum(levels.values()) / len(levels)} | {f".{level}": value for level, value in levels.items()}


class Code:
    """A metric of codes and their edits: ``measure(first, end, a)`` -> {"": [N], ".more": [N]} of these pictures."""

    better: ClassVar[str] = "lower"
    better_parts: ClassVar[dict[str, str]] = {}  # where it is another

    def __init__(self, context: Context):
        self.context, self.G = context, context.G
        self.faces = knows_faces(self.G)
        self.settings = {"generator": network_hash(self.G)[:12]}
        if "directions" not in context.shared:
            network = context.attribute_network()[0] if self.faces else None
            context.shared["directions"] = edit_directions(self.G, network)
        self.directions = context.shared["directions"]
        if self.faces:
            self.network, facts = context.attribute_network()
            self.settings |= {"edits": f"{STRENGTH} deviations of {len(self.directions)} attributes", **facts}
        else:
            self.settings["edits"] = f"{STRENGTH} deviations of {len(self.directions)} principal components of W"

    def parts(self, first: int, end: int):
        """(render, w_plus) of the results that make up these pictures."""
        for result in self.context.codes[first:end]:
            yield functools.partial(rendered, self.G, result), result.w_plus.to(self.G.w_avg)


class Edits(Code):
    """Editability of the codes: what was asked for changes, all else stays, see ``edit_scores``."""

    better, better_parts = "higher", {".leaked": "lower"}

    def __init__(self, context: Context):
        if context.G is None or not context.codes:
            raise Missing("needs codes and their generator: a results folder of `fastinv invert`, and --generator")
        if not knows_faces(context.G):
            raise Missing("the attribute network reads the procedural faces, and this generator does not draw them")
        super().__init__(context)

    def measure(self, first, end, a):
        scores = [edit_scores(*part, self.directions, self.network, STRENGTH) for part in self.parts(first, end)]
        scores = {name: torch.cat([part[name] for part in scores]).double().mean(1) for name in scores[0]}
        return {"": scores["done"], ".moved": scores["moved"], ".leaked": scores["leaked"]}


class LEC(Code):
    """Latent editing consistency of an encoder (Tov et al. 2021), and edit consistency, the same in pictures."""

    def __init__(self, context: Context):
        if context.G is None or context.encoder is None:
            raise Missing("needs a generator and an encoder for it: --generator, --encoder")
        super().__init__(context)
        if (self.G.resolution, self.G.resolution) != tuple(context.size) and not context.codes:
            raise Missing(f"the generator makes {self.G.resolution} pixels: leave out --crop and --resolution")
        self.encoder = find_encoder(context.encoder, self.G).to(self.G.w_avg)
        name = getattr(self.encoder, "origin", None) or type(self.encoder).__name__
        self.settings |= {"encoder": str(name), "start": "the codes" if context.codes else "the encoder's code"}

    def measure(self, first, end, a):
        if self.context.codes:
            parts = list(self.parts(first, end))
        else:
            parts = [(self.G.synthesis, self.encoder.encode(a.to(self.G.w_avg)))]
        found = []
        for draw, w_plus in parts:
            edits = away(self._read(draw, w_plus), self.directions, STRENGTH, first)
            found.append(editing_consistency(self._find, draw, w_plus, edits, self.G))
            first += len(w_plus)
        found = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        return {"": found["latent"], ".pictures": found["pictures"]}

    def _find(self, images):
        return self.encoder.encode(images.clamp(-1, 1))

    def _read(self, draw, w_plus):
        if self.faces:
            return self.network.standardised(draw(w_plus))
        return principal_coordinates(w_plus, mean_latent(self.G), self.directions)


MEASURES: dict[str, type] = {
    "mse": MSE, "psnr": PSNR, "ssim": SSIM, "ms-ssim": MSSSIM, "lpips": LPIPSDistance, "features": Features,
    "identity": Identity, "identity-attributes": AttributeIdentity, "attributes": Attributes,
    "fid": FID, "frechet-attributes": AttributeFrechet, "swd": SWD, "edits": Edits, "lec": LEC,
}  # fmt: skip


def build(name: str, context: Context):
    """A metric by its name; `Missing` if it cannot be measured here."""
    try:
        return MEASURES[name](context)
    except CheckpointError as error:
        raise Missing(str(error)) from error


def knows_faces(G) -> bool:
    """Whether G is a bundled generator of the procedural faces, whose pictures the attribute network can read."""
    sha256 = network_hash(G)
    return any(bundled_hash(model.name) == sha256 for model in BUNDLED.values() if "generator" in model.kinds)


def rendered(G, result, w_plus: torch.Tensor) -> torch.Tensor:
    """Pictures [N, 3, R, R] of other w_plus in the place of a result's, with its noise maps, features and weights."""
    return render(G, edited(G, codes_of(result), w_plus, result.noise), result.noise)


def few(a: torch.Tensor, b: torch.Tensor) -> str:
    """A note where a Fréchet distance is biased."""
    least = min(len(a), len(b))
    return "" if least > a.shape[1] else f"biased upwards: {least} pictures, {a.shape[1]} features"


def cut(images: torch.Tensor, box: tuple[float, float, float, float]) -> torch.Tensor:
    """The part of pictures [N, 3, H, W] in a box (left, top, right, bottom) of fractions of the sides."""
    height, width = images.shape[2:]
    left, top, right, bottom = (
        round(part * side) for part, side in zip(box, (width, height, width, height), strict=True)
    )
    return images[:, :, top : max(bottom, top + 1), left : max(right, left + 1)]
