"""The models that come with the package, and well-known public checkpoints that fastinv can fetch or read.

Nothing is downloaded from here: ``find`` gives the copy on this machine, or says the one command that fetches it.
"""

import contextlib
import difflib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from fastinv.errors import CheckpointError
from fastinv.files import shown

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class BundledModel:
    """A generator shipped in the wheel with what belongs to it, or an encoder for such a generator.

    Attributes:
        name: what ``load_generator`` and the others take.
        description: what it is, for people.
        resolution: side of the (square) pictures in pixels.
        licence: of the weights.
        kinds: the networks it has: "generator", "discriminator", "encoder".
        of: the bundled generator that its encoder is for; None where that is its own.
        method: the inversion method that gives codes by its encoder alone; None without an encoder, or where that is
            for `fastinv translate`.
    """

    name: str
    description: str
    resolution: int
    licence: str
    kinds: tuple[str, ...]
    of: str | None = None
    method: str | None = None

    def file(self, kind: str) -> Path:
        """Path of the safetensors file of one of its kinds."""
        return WEIGHTS / f"{self.name}.{kind}.safetensors"

    @property
    def generator(self) -> str:
        """Name of the bundled generator that it has, or is for."""
        return self.of or self.name


_OURS, _FACES = "Apache-2.0", ("generator", "discriminator")
BUNDLED = {
    model.name: model
    for model in [
        BundledModel("faces64", "procedural faces, trained by `fastinv train generator`", 64, _OURS, _FACES),
        BundledModel("faces64-psp", "pSp encoder, by `fastinv train psp`", 64, _OURS, ("encoder",), "faces64", "psp"),
        BundledModel("faces64-e4e", "e4e encoder, by `fastinv train e4e`", 64, _OURS, ("encoder",), "faces64", "e4e"),
        BundledModel(
            "faces64-idinvert", "IDInvert encoder, by `fastinv train idinvert`", 64, _OURS, ("encoder",), "faces64",
            "idinvert-encoder",
        ),  # fmt: skip
        BundledModel(
            "faces64-alae", "ALAE, by `fastinv train alae`", 64, _OURS, ("generator", "encoder"), None, "alae"
        ),
        *(
            BundledModel(f"faces64-{task}", f"pSp encoder, {what}", 64, _OURS, ("encoder",), "faces64")
            for task, what in {
                "sketch": "sketches to portraits",
                "segment": "part maps to portraits",
                "frontalize": "portraits from the front",
                "super-resolution": "small portraits enlarged",
            }.items()
        ),
    ]
}
DEFAULT = "faces64"


@dataclass(frozen=True)
class PublicModel:
    """A checkpoint that others have published. None means "not known"; nothing here is guessed.

    Attributes:
        name: ``family/model``, unique.
        domain: what its pictures show.
        resolution: side of its (square) pictures in pixels.
        licence: of the weights, as its page states it.
        kinds: what can be loaded from it: "generator", "discriminator", "encoder".
        page: where its authors present it.
        file: name of the file in the cache folder.
        url: plain https link; None where the page has only links for a browser (Google Drive).
        size_bytes, sha256: of the file. Entered only if the page that serves ``url`` states them, or if two
            independent public pages agree.
    """

    name: str
    domain: str
    resolution: int
    licence: str
    kinds: tuple[str, ...]
    page: str
    file: str
    url: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def family(self) -> str:
        """The part of the name before the slash."""
        return self.name.split("/")[0]

    @property
    def size(self) -> str:
        """Its size for people."""
        return "size not known" if self.size_bytes is None else f"{self.size_bytes / 1e6:.0f} MB"


_NVIDIA = "Nvidia Source Code License-NC, non-commercial use only (https://nvlabs.github.io/stylegan2/license.html)"
_NVIDIA_ADA = (
    "Nvidia Source Code License, non-commercial use only (https://nvlabs.github.io/stylegan2-ada-pytorch/license.html)"
)
_CC_BY_NC = "CC BY-NC 4.0, non-commercial use only (https://creativecommons.org/licenses/by-nc/4.0/)"
_CODE_ONLY = "code {}; none stated for the weights"
_ON_NVIDIA = f"code MIT; none stated for the weights, which contain NVIDIA's StyleGAN2: {_NVIDIA}"
_ON_NVIDIA_ADA = f"code MIT; none stated for the weights, which contain NVIDIA's StyleGAN2-ADA: {_NVIDIA_ADA}"

_CDN = "https://nvlabs-fi-cdn.nvidia.com"
_ADA = f"{_CDN}/stylegan2-ada-pytorch/pretrained"
_TRANSFER = f"{_ADA}/transfer-learning-source-nets"
_E4E_MIRROR = "https://huggingface.co/public-data/e4e/resolve/fdd18714fc6b639487adbd901f16f67eb24ba786"
_ALAE = "https://alaeweights.s3.us-east-2.amazonaws.com"


def _family(family: str, licence: str, page: str, kinds: str, *rows: tuple) -> list[PublicModel]:
    """Rows are (name, domain, resolution, plain link or file name for a browser download, size, sha256)."""
    models = []
    for name, domain, resolution, source, *facts in rows:
        url = source if source.startswith("https:") else None
        file = source.rsplit("/", 1)[-1]
        models.append(
            PublicModel(f"{family}/{name}", domain, resolution, licence, tuple(kinds.split()), page, file, url, *facts)
        )
    return models


# fmt: off
_MODELS = [
    *_family(
        "stylegan2-ada", _NVIDIA_ADA, "https://github.com/NVlabs/stylegan2-ada-pytorch", "generator discriminator",
        ("ffhq", "faces (FFHQ)", 1024, f"{_ADA}/ffhq.pkl",
         381624121, "a205a346e86a9ddaae702e118097d014b7b8bd719491396a162cca438f2f524c"),
        ("metfaces", "faces in paintings (MetFaces)", 1024, f"{_ADA}/metfaces.pkl"),
        ("afhqcat", "cats (AFHQ)", 512, f"{_ADA}/afhqcat.pkl"),
        ("afhqdog", "dogs (AFHQ)", 512, f"{_ADA}/afhqdog.pkl"),
        ("afhqwild", "wild animals (AFHQ)", 512, f"{_ADA}/afhqwild.pkl"),
        ("cifar10", "CIFAR-10, ten classes", 32, f"{_ADA}/cifar10.pkl",
         None, "f8952c74e23da2186d147ad871c48780bd59500ee37c301201081ee8e0cb32f1"),
        ("brecahad", "breast cancer histopathology (BreCaHAD)", 512, f"{_ADA}/brecahad.pkl"),
        ("ffhq256", "faces (FFHQ, mirrored)", 256, f"{_TRANSFER}/ffhq-res256-mirror-paper256-noaug.pkl"),
        ("ffhq512", "faces (FFHQ, mirrored)", 512, f"{_TRANSFER}/ffhq-res512-mirror-stylegan2-noaug.pkl"),
        ("ffhq1024", "faces (FFHQ, mirrored)", 1024, f"{_TRANSFER}/ffhq-res1024-mirror-stylegan2-noaug.pkl"),
        ("ffhq140k-256", "faces (FFHQ, 140,000 pictures)", 256,
         f"{_ADA}/paper-fig7c-training-set-sweeps/ffhq140k-paper256-ada.pkl"),
        ("celebahq256", "faces (CelebA-HQ)", 256,
         f"{_TRANSFER}/celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl"),
        ("lsundog256", "dogs (LSUN)", 256, f"{_TRANSFER}/lsundog-res256-paper256-kimg100000-noaug.pkl"),
    ),
    *_family(
        "stylegan2", _NVIDIA, "https://github.com/NVlabs/stylegan2", "generator discriminator",
        ("ffhq", "faces (FFHQ)", 1024, f"{_CDN}/stylegan2/networks/stylegan2-ffhq-config-f.pkl",
         381673535, "adf127ea7bb8a7788c8bdeda3c9937f7310b669b09ecf799ca53a631ff46948d"),
        ("car", "cars (LSUN), 512 x 384 within the square", 512,
         f"{_CDN}/stylegan2/networks/stylegan2-car-config-f.pkl",
         364027523, "e1618eee2b3ce87c4a3849442f7850ef12a478556bff035c8e09ee7e23b3794c"),
        ("cat", "cats (LSUN)", 256, f"{_CDN}/stylegan2/networks/stylegan2-cat-config-f.pkl",
         357418027, "08940fd616cfaf6bc7b0286b5d1a0b3f70febb26e136d64716c8d3f5e9bd3883"),
        ("church", "churches (LSUN)", 256, f"{_CDN}/stylegan2/networks/stylegan2-church-config-f.pkl",
         357418027, "4090c5f83b44b83475c84864188aa39a0fb72694492302b7e6af36aad0d18104"),
        ("horse", "horses (LSUN)", 256, f"{_CDN}/stylegan2/networks/stylegan2-horse-config-f.pkl",
         357418027, "cbc73372c7d82d095913ca8b4b9f170560777175bd7c3b8a75dd55d70807f32b"),
    ),
    *_family(
        "stylegan", _CC_BY_NC, "https://github.com/NVlabs/stylegan", "generator",
        ("ffhq", "faces (FFHQ)", 1024, "karras2019stylegan-ffhq-1024x1024.pkl"),
        ("celebahq", "faces (CelebA-HQ)", 1024, "karras2019stylegan-celebahq-1024x1024.pkl"),
        ("bedroom", "bedrooms (LSUN)", 256, "karras2019stylegan-bedrooms-256x256.pkl"),
        ("car", "cars (LSUN), 512 x 384 within the square", 512, "karras2019stylegan-cars-512x384.pkl"),
        ("cat", "cats (LSUN)", 256, "karras2019stylegan-cats-256x256.pkl"),
    ),
    *_family(
        "rosinality", _CODE_ONLY.format("MIT"), "https://github.com/rosinality/stylegan2-pytorch", "generator",
        ("ffhq256", "faces (FFHQ)", 256, "550000.pt"),
    ),
    *_family(
        "rosinality", _ON_NVIDIA, "https://github.com/eladrich/pixel2style2pixel", "generator",
        ("ffhq1024", "faces (FFHQ), stylegan2/ffhq converted", 1024, "stylegan2-ffhq-config-f.pt"),
    ),
    *_family(
        "psp", _ON_NVIDIA, "https://github.com/eladrich/pixel2style2pixel", "encoder generator",
        ("ffhq", "inversion of faces (FFHQ)", 1024,
         "https://huggingface.co/trysem/pixel2style2pixel/resolve/main/psp_ffhq_encode.pt",
         1201489451, "f786ac5cf18fcdbc5c57c9f3f12cbedca69381fbdf5694dd132294e3133749d7"),
        ("frontalization", "turns faces to the front (FFHQ)", 1024, "psp_ffhq_frontalization.pt"),
        ("sketch", "faces from sketches (CelebA-HQ)", 1024, "psp_celebs_sketch_to_face.pt"),
        ("segmentation", "faces from segmentation maps (CelebAMask-HQ)", 1024, "psp_celebs_seg_to_face.pt"),
        ("super-resolution", "faces from small pictures (CelebA-HQ)", 1024, "psp_celebs_super_resolution.pt"),
        ("toonify", "cartoons from faces (FFHQ)", 1024, "psp_ffhq_toonify.pt"),
    ),
    *_family(
        "e4e", _ON_NVIDIA, "https://github.com/omertov/encoder4editing", "encoder generator",
        ("ffhq", "inversion of faces (FFHQ)", 1024, f"{_E4E_MIRROR}/e4e_ffhq_encode.pt",
         1201649680, "2ace1d9a8c05c10a399bcd500b8dda118f759ff1aac89dbdab7435f2136a0999"),
        ("cars", "inversion of cars", 512, f"{_E4E_MIRROR}/e4e_cars_encode.pt",
         1077493298, "f1743d4a9fe701643916062d7c40a4ec3d5daaa153de1ef941285d3ed3758330"),
        ("horse", "inversion of horses (LSUN)", 256, f"{_E4E_MIRROR}/e4e_horse_encode.pt",
         959033364, "bfcd7ac19571fab277d933d3133a1249d89f49ba948cfcc399ea271201f5c95f"),
        ("church", "inversion of churches (LSUN)", 256, f"{_E4E_MIRROR}/e4e_church_encode.pt",
         959033364, "590f00e84b6461ba05467f7b0c705972f0ed729f4e399d3e21bfdb1b781e1c93"),
    ),
    *_family(
        "restyle-psp", _ON_NVIDIA, "https://github.com/yuval-alaluf/restyle-encoder", "encoder generator",
        ("ffhq", "inversion of faces (FFHQ)", 1024, "restyle_psp_ffhq_encode.pt"),
        ("cars", "inversion of cars (Stanford Cars)", 512, "restyle_psp_cars_encode.pt"),
        ("church", "inversion of churches (LSUN)", 256, "restyle_psp_church_encode.pt"),
    ),
    *_family(
        "restyle-psp", _ON_NVIDIA_ADA, "https://github.com/yuval-alaluf/restyle-encoder", "encoder generator",
        ("afhqwild", "inversion of wild animals (AFHQ)", 512, "restyle_psp_afhq_wild_encode.pt"),
    ),
    *_family(
        "restyle-e4e", _ON_NVIDIA, "https://github.com/yuval-alaluf/restyle-encoder", "encoder generator",
        ("ffhq", "inversion of faces (FFHQ)", 1024, "restyle_e4e_ffhq_encode.pt"),
        ("cars", "inversion of cars (Stanford Cars)", 512, "restyle_e4e_cars_encode.pt"),
        ("church", "inversion of churches (LSUN)", 256, "restyle_e4e_church_encode.pt"),
        ("horse", "inversion of horses (LSUN)", 256, "restyle_e4e_horse_encode.pt"),
    ),
    *_family(
        "restyle-e4e", _ON_NVIDIA_ADA, "https://github.com/yuval-alaluf/restyle-encoder", "encoder generator",
        ("afhqwild", "inversion of wild animals (AFHQ)", 512, "restyle_e4e_afhq_wild_encode.pt"),
    ),
    *(
        model
        for kind in ("generator", "encoder")
        for model in _family(
            "idinvert", _CODE_ONLY.format("MIT"), "https://github.com/genforce/idinvert_pytorch", kind,
            (f"ffhq256-{kind}", "faces (FFHQ)", 256, f"styleganinv_ffhq256_{kind}.pth"),
            (f"tower256-{kind}", "towers (LSUN)", 256, f"styleganinv_tower256_{kind}.pth"),
            (f"bedroom256-{kind}", "bedrooms (LSUN)", 256, f"styleganinv_bedroom256_{kind}.pth"),
        )
    ),
    *_family(
        "alae", _CODE_ONLY.format("Apache-2.0"), "https://github.com/podgorskiy/ALAE", "encoder generator",
        ("ffhq", "faces (FFHQ)", 1024, f"{_ALAE}/ffhq/model_194.pth"),
        ("celebahq256", "faces (CelebA-HQ)", 256, f"{_ALAE}/celeba-hq256/model_262r.pth"),
        ("bedroom256", "bedrooms (LSUN)", 256, f"{_ALAE}/bedroom/model_final.pth"),
        ("celeba128", "faces (CelebA)", 128, f"{_ALAE}/celeba/model_final.pth"),
    ),
]
# fmt: on
PUBLIC = {model.name: model for model in _MODELS}


def public_model(name: str) -> PublicModel:
    """The public checkpoint of that name.

    Raises:
        CheckpointError: there is none; the nearest names are in the message.
    """
    if name in PUBLIC:
        return PUBLIC[name]
    near = difflib.get_close_matches(str(name)[:200], PUBLIC, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`fastinv models` lists them"
    raise CheckpointError(f"no public checkpoint is called {shown(str(name)[:200])!r}; {hint}")


def find(name: str, cache: str | Path | None = None) -> Path:
    """The verified copy of a public checkpoint on this machine; the network is never used.

    Args:
        name: e.g. "stylegan2-ada/ffhq".
        cache: the cache folder; None is ``cache_folder()``.

    Raises:
        CheckpointError: no such name, not on this machine (the message has the command that fetches it, or where to
            download it by hand), or damaged.
    """
    model = public_model(name)
    path = cached(model, cache)
    if path is None and model.url is None:
        raise CheckpointError(f"{name} is not on this machine; {by_hand(model, cache)}")
    if path is None:
        raise CheckpointError(
            f"{name} is not on this machine; `fastinv models {name} --download` fetches it ({model.size}; "
            f"licence: {model.licence})"
        )
    return path


def cache_folder() -> Path:
    """Where downloaded or user-given weights live: FASTINV_CACHE, or ``fastinv`` in the user's cache folder."""
    if given := os.environ.get("FASTINV_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastinv"


def cache_path(model: PublicModel, cache: str | Path | None = None) -> Path:
    """Where the model's file lies in the cache folder, or will lie."""
    return (cache_folder() if cache is None else Path(cache)) / "checkpoints" / model.name / model.file


def cached(model: PublicModel, cache: str | Path | None = None) -> Path | None:
    """The model's file in the cache folder, after its size and sha256 were checked; None if there is none.

    A file whose sha256 is not known is held to that of its first use, which is recorded beside it.

    Raises:
        CheckpointError: the file cannot be read, or is not what it should be.
    """
    path = cache_path(model, cache)
    try:
        if not path.is_file():
            return None
        recorded = recorded_sha256(path)
        try:
            sha256 = checked_sha256(path, model, model.sha256 or recorded)
        except CheckpointError as error:
            again = f"`fastinv models {model.name} --download` fetches it again"
            if model.url is None:
                again = f"delete it and {_record(path).name}, and download it again from {model.page}"
            raise CheckpointError(f"{shown(path)} is damaged, or another file: {error}; {again}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {shown(path)}: {error.strerror}") from error
    if sha256 != recorded:
        with contextlib.suppress(OSError):  # a cache folder may be shared and read-only
            record_sha256(path, sha256)
    return path


def checked_sha256(path: Path, model: PublicModel, expected: str | None) -> str:
    """The file's sha256, in hexadecimal digits.

    Raises:
        CheckpointError: its size is not the model's, or its sha256 not the expected one (None: nothing expected).
    """
    size = path.stat().st_size
    if model.size_bytes not in (None, size):
        raise CheckpointError(f"{size:,} bytes instead of {model.size_bytes:,}")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if expected not in (None, digest.hexdigest()):
        raise CheckpointError(f"its sha256 is {digest.hexdigest()} instead of {expected}")
    return digest.hexdigest()


def recorded_sha256(path: Path) -> str | None:
    """The sha256 that was recorded beside the file, None if none was."""
    try:
        sha256 = json.loads(_record(path).read_text())["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return sha256 if isinstance(sha256, str) else None


def record_sha256(path: Path, sha256: str) -> None:
    """Write the file's sha256 into a small JSON file beside it."""
    _record(path).write_text(json.dumps({"sha256": sha256}) + "\n")


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def by_hand(model: PublicModel, cache: str | Path | None = None) -> str:
    """How to get a model that has no plain link."""
    return (
        f"it has no link that a program may follow: download it in a browser from {model.page}, then give the file's "
        f"path instead of the name, or save it as {shown(cache_path(model, cache))}"
    )
