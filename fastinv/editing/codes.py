"""Codes to edit: where they come from, what belongs to them, and their pictures.

Codes are the flat dict that ``fastinv.latents.load_codes`` returns: {"w_plus": [N, num_ws, w_dim], ...} and possibly
"styles", "features" and "picture", "z", "noise.<layer>" and "weights.<parameter>" (``fastinv.inversion.spaces`` and
``.weights`` say what they are), N rows each.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fastinv.checkpoints import network_hash
from fastinv.data.pictures import load_picture
from fastinv.errors import CheckpointError, PictureError, UsageError
from fastinv.files import load_tensors, shown
from fastinv.inversion import InversionResult, invert
from fastinv.inversion.objective import own_encoder
from fastinv.inversion.result import LATENT, RESULT
from fastinv.inversion.spaces import nested
from fastinv.inversion.weights import render
from fastinv.latents import KIND, load_codes

__all__ = [
    "Source", "check_generator", "codes_of", "default_method", "edited", "find_sources", "invert_sources",
    "open_sources", "render", "rows",
]  # fmt: skip

AT_ONCE = 8  # pictures inverted together
ENCODER = "psp"  # the method for pictures, where one of its encoders comes with the generator
OPTIMISER = "image2stylegan"  # that for pictures where there is none


@dataclass(frozen=True)
class Source:
    """The codes of one picture.

    Attributes:
        name: for people and for the folder of what is made of it.
        codes: {"w_plus": [1, num_ws, w_dim], ...}; {} of a picture that is still to be inverted.
        picture: what was inverted, [3, R, R] in [-1, 1]; None where that is not at hand.
        noise: mode of the noise maps that the codes do not hold.
        generator_sha256: of the generator that the codes are for, see ``network_hash``; None if nobody knows.
        made_by: the settings or facts of its file (JSON).
        path: where it was read from: a latent file, the folder of a result, or a picture.
        result: the inversion, where it was made here.
    """

    name: str
    codes: dict[str, torch.Tensor]
    picture: torch.Tensor | None = None
    noise: str = "const"
    generator_sha256: str | None = None
    made_by: dict = field(default_factory=dict)
    path: Path | None = None
    result: InversionResult | None = None


def codes_of(given, G=None) -> dict[str, torch.Tensor]:
    """Codes as a dict, of whatever the editing functions take.

    Args:
        given: such a dict; w_plus [N, num_ws, w_dim] or [num_ws, w_dim]; an InversionResult; or a Source.
        G: the generator that they have to fit; None checks only what they are.

    Raises:
        UsageError: something else, values that are not finite, or codes for a generator of another kind.
    """
    if isinstance(given, InversionResult):
        codes = {"w_plus": given.w_plus, **given.codes}
    elif isinstance(given, Source):
        codes = given.codes
    elif isinstance(given, torch.Tensor):
        codes = {"w_plus": given.unsqueeze(0) if given.ndim == 2 else given}
    elif isinstance(given, dict) and isinstance(given.get("w_plus"), torch.Tensor):
        codes = dict(given)
    else:
        raise UsageError(
            f"codes must be w_plus [N, num_ws, w_dim], a dict with it, an InversionResult or a Source, "
            f"not {type(given).__name__}"
        )
    w_plus = codes["w_plus"]
    if w_plus.ndim != 3 or (G is not None and tuple(w_plus.shape[1:]) != (G.num_ws, G.w_dim)):
        wanted = "[N, num_ws, w_dim]" if G is None else f"[N, {G.num_ws}, {G.w_dim}]"
        raise UsageError(f"w_plus must have shape {wanted}, not {list(w_plus.shape)}: is it for another generator?")
    for name, value in codes.items():
        if len(value) != len(w_plus):
            raise UsageError(f"codes of {len(w_plus)} pictures hold {name!r} of {len(value)}")
        if not value.isfinite().all():
            raise UsageError(f"{name!r} of the codes is not finite (NaN or infinity)")
    return codes


def rows(codes: dict[str, torch.Tensor], index: int | slice) -> dict[str, torch.Tensor]:
    """The codes of one picture, or of some of them."""
    picked = slice(index, index + 1 or None) if isinstance(index, int) else index
    return {name: value[picked] for name, value in codes.items()}


@torch.no_grad()
def edited(G, codes: dict[str, torch.Tensor], w_plus: torch.Tensor, noise: str = "const") -> dict[str, torch.Tensor]:
    """The codes with another w_plus, and all else that is in them made to fit it.

    Style channels s (space S) move as the affine maps A say, ``s + A(new) - A(old)``; so do features F (space F+W+,
    with their picture), ``F + F(new) - F(old)``: what was found beyond W+ stays. z is dropped. Noise maps and tuned
    weights stay as they are.

    Args:
        G: the generator.
        codes: of N pictures.
        w_plus: [N, num_ws, w_dim], or [K, num_ws, w_dim] of one picture (N = 1), for K variants of it.
        noise: mode of the noise maps that the codes do not hold.

    Raises:
        UsageError: another shape or number.
    """
    codes, count = codes_of(codes, G), len(w_plus)
    if len(codes["w_plus"]) not in (1, count):
        raise UsageError(f"codes of {len(codes['w_plus'])} pictures cannot have {count} rows of w_plus; give as many")
    found = {name: value.expand(count, *value.shape[1:]) for name, value in codes.items() if name != "z"}
    old, new = (w.to(G.w_avg) for w in (found["w_plus"], w_plus))
    found["w_plus"] = w_plus.to(found["w_plus"])
    if "styles" in found:
        found["styles"] = found["styles"] + (G.styles(new) - G.styles(old)).to(found["styles"])
    if "features" in found:
        resolution = found["features"].shape[-1]
        maps = {layer: value.to(G.w_avg) for layer, value in nested(found).get("noise", {}).items()}
        before, after = (G.features(w, resolution, maps or noise) for w in (old, new))
        for name, was, now in zip(("features", "picture"), before, after, strict=True):
            found[name] = found[name] + (now - was).to(found[name])
    return found


def check_generator(sha256: str | None, G, what: str, force: bool = False) -> None:
    """A UsageError where something is for another generator than G.

    Args:
        sha256: of the generator that it is for, see ``network_hash``; None, which is accepted, where that is not known.
        G: the generator.
        what: what is for it, for the message, such as "anna.safetensors".
        force: accept any.
    """
    if sha256 is None or force:
        return
    own = network_hash(G)
    if sha256 != own:
        raise UsageError(
            f"{what} is for the generator {sha256[:16]}..., not for this one, {own[:16]}...; give the right "
            "--generator, or --force to use it all the same"
        )


def open_sources(
    inputs: Sequence[str | Path],
    G,
    method: str | None = None,
    crop: str = "center",
    force: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> list[Source]:
    """The codes of files, folders and pictures: ``find_sources``, then ``invert_sources``, which say the rest."""
    return invert_sources(find_sources(inputs, G, crop, force), G, method, seed, progress)


def find_sources(inputs: Sequence[str | Path], G, crop: str = "center", force: bool = False) -> list[Source]:
    """What the inputs are; pictures have no codes yet.

    Args:
        inputs: each a latent file (one Source for each of its codes), the folder of a result, a folder with such
            folders (as ``fastinv invert`` writes it), or a picture file.
        G: the generator.
        crop: of pictures that are not square, see ``load_picture``.
        force: accept codes for another generator, as long as their shape is right.

    Raises:
        UsageError: no such file, or codes of another generator. CheckpointError: a damaged latent file. PictureError:
            a file that is neither.
    """
    found: list[Source] = []
    for given in map(Path, inputs):
        if given.is_dir():
            found += [source for folder in _results_in(given) for source in _of_result(folder, G)]
        elif given.suffix == ".safetensors":
            beside = given.name == LATENT and (given.parent / RESULT).is_file()
            found += _of_result(given.parent, G) if beside else _of_latent(given)
        else:
            picture = load_picture(given, G.resolution, crop)
            found.append(Source(given.stem, {}, picture, made_by={"crop": crop}, path=given))
    checked = set()  # hashing a large generator takes a while, and many codes are of the same one
    for source in found:
        if source.codes:
            what = shown(source.path)
            if source.generator_sha256 not in checked:
                check_generator(source.generator_sha256, G, what, force)
                checked.add(source.generator_sha256)
            try:
                codes_of(source, G)
            except UsageError as error:
                raise UsageError(f"{what}: {error}") from error
    return found


def invert_sources(
    sources: Sequence[Source], G, method: str | None = None, seed: int = 0, progress: bool = False
) -> list[Source]:
    """The same, with the codes of pictures.

    Args:
        sources: of ``find_sources``.
        G: the generator.
        method: of ``fastinv.invert``, with its default options; None is ``default_method(G)``.
        seed: of the inversions.
        progress: show that of the inversions.

    Raises:
        UsageError: the method does not work with the generator.
    """
    found = list(sources)
    todo = [index for index, source in enumerate(found) if not source.codes]
    if todo and method is None:
        method = default_method(G)
    for first in range(0, len(todo), AT_ONCE):
        part = todo[first : first + AT_ONCE]
        images = torch.stack([found[index].picture for index in part])
        results = invert(G, images, method, seed=seed, progress=progress)
        for row, index in enumerate(part):
            source = found[index]
            settings = results.settings | {"picture": str(source.path.resolve())} | source.made_by
            result = replace(results[row], settings=settings)
            found[index] = replace(
                source, codes=codes_of(result), noise=result.noise, made_by=settings, result=result,
                generator_sha256=settings["generator"]["sha256"],
            )  # fmt: skip
    return found


def default_method(G) -> str:
    """The method that inverts pictures: psp where such an encoder comes with the generator, else image2stylegan."""
    return ENCODER if own_encoder(G, ENCODER) else OPTIMISER


def _results_in(folder: Path) -> list[Path]:
    """The folder itself, or the folders in it, that hold a result; a UsageError if there is none."""
    if (folder / RESULT).is_file():
        return [folder]
    found = [path.parent for path in sorted(folder.glob(f"*/{RESULT}"))]
    if not found:
        raise UsageError(f"no inversion result in {shown(folder)} or the folders in it: there is no {RESULT}")
    return found


def _of_result(folder: Path, G) -> list[Source]:
    result = InversionResult.load(folder)
    settings, codes = result.settings, codes_of(result)
    sha256 = (settings.get("generator") or {}).get("sha256")
    name = folder.resolve().name
    picture = None
    if len(result) == 1 and settings.get("picture"):
        try:  # the file may have been moved since
            picture = load_picture(settings["picture"], G.resolution, settings.get("crop") or "center")
        except (PictureError, UsageError):
            pass
    return [
        Source(label, rows(codes, row), picture, result.noise, sha256, settings, folder)
        for row, label in enumerate(_names(name, len(result)))
    ]


def _of_latent(path: Path) -> list[Source]:
    try:
        codes = load_codes(path)
    except FileNotFoundError as error:
        raise UsageError(f"{shown(path)}: no such file") from error
    _, facts = load_tensors(path, KIND)
    sha256 = facts.get("generator_sha256") or facts.get("generator")
    sha256 = sha256 if isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) else None
    noise = "none" if facts.get("noise") == "none" else "const"
    try:
        codes = codes_of(codes)
    except UsageError as error:
        raise CheckpointError(f"{shown(path)}: {error}") from error
    count = len(codes["w_plus"])
    if not count:
        raise UsageError(f"{shown(path)} holds no codes: its w_plus is {list(codes['w_plus'].shape)}")
    return [
        Source(name, rows(codes, row), None, noise, sha256, facts, path)
        for row, name in enumerate(_names(_stem(path), count))
    ]


def _stem(path: Path) -> str:
    """A name for the codes of a file: that of its folder, where the file is called as all of them are."""
    return path.resolve().parent.name if path.name == LATENT else path.stem


def _names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}-{row}" for row in range(count)]
