"""What `fastinv evaluate` compares: two files, two folders, or a folder of results with what was inverted.

Pictures are read when they are looked at, a batch at a time.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from fastinv.checkpoints.load import file_sha256
from fastinv.data.pictures import check_picture, load_picture
from fastinv.editing.codes import check_generator
from fastinv.errors import CheckpointError, PictureError, UsageError
from fastinv.files import shown
from fastinv.inversion import InversionResult
from fastinv.inversion.manifest import DONE, MANIFEST, Manifest
from fastinv.inversion.result import PICTURE, RESULT
from fastinv.training.sources import picture_files


class Lazy:
    """Pictures that are made when they are asked for: ``lazy[first:end]`` is [N, 3, R, R]."""

    def __init__(self, makers: list[Callable[[], torch.Tensor]], device=None):
        self.makers, self.device = makers, device

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return torch.stack([make() for make in self.makers[part]]).to(self.device)


@dataclass
class Compared:
    """Two sets of pictures.

    Attributes:
        a, b: the sets; the first ``pairs`` of both belong together.
        pairs: how many.
        names: of the pairs.
        left_out: why some of what was there is not compared, a line each.
        failed: those among ``left_out`` that should have been there: files that cannot be read, or are gone.
        codes: the results of the pairs, where there are some.
        resolution: of all pictures.
    """

    a: Lazy
    b: Lazy
    pairs: int
    names: list[str]
    left_out: list[str] = field(default_factory=list)
    failed: int = 0
    codes: list[InversionResult] = field(default_factory=list)
    resolution: int = 0


def two_files(a: Path, b: Path, resolution: int | None = None, device=None) -> Compared:
    """Two pictures as a pair; PictureError for one that cannot be read."""
    resolution = resolution or smallest_side([a, b])
    lazy = (_files([path], resolution, device) for path in (a, b))
    return Compared(*lazy, 1, [a.stem], resolution=resolution)


def two_folders(a: Path, b: Path, resolution: int | None = None, device=None) -> Compared:
    """Pictures of two folders (and the folders in them), paired by path without the ending.

    Args:
        resolution: to bring them to; None is the smallest side of all of them.

    Raises:
        UsageError: no folder, no picture in one, or two of the same name with different endings.
    """
    left_out, sets = [], []
    for folder in (a, b):
        found: dict[str, Path] = {}
        for path in picture_files(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UsageError(f"{shown(found[name])} and {shown(path)} have the same name; move one of them away")
            try:
                check_picture(path)
                found[name] = path
            except PictureError as error:
                left_out.append(str(error))
        if not found:
            raise UsageError(f"no picture in {shown(folder)} can be read; the first: {left_out[0]}")
        sets.append(found)
    failed = len(left_out)
    both = [name for name in sets[0] if name in sets[1]]
    order = []
    for found, other, folder in ((sets[0], sets[1], b), (sets[1], sets[0], a)):
        alone = [name for name in found if name not in other]
        left_out += [f"{shown(found[name])}: no picture of this name in {shown(folder)}" for name in alone]
        order.append([found[name] for name in both + alone])
    resolution = resolution or smallest_side(order[0] + order[1])
    lazy = (_files(files, resolution, device) for files in order)
    return Compared(*lazy, len(both), both, left_out, failed, resolution=resolution)


def results(
    folder: Path, G=None, resolution: int | None = None, device=None, force: bool = False, with_codes: bool = True
) -> Compared:
    """The reconstructions in a folder of `fastinv invert`, and the pictures that they are of.

    Args:
        folder: that folder, or that of one picture in it.
        G: render the codes again; None takes reconstruction.png, which is rounded to 8 bits.
        resolution: None is that of the results.
        force: accept codes for another generator than G.
        with_codes: whether the codes are wanted, which takes G.

    Raises:
        UsageError: no results there, none whose picture is at hand, or results of several resolutions.
    """
    found, left_out = _targets(folder)
    failed = len(left_out)
    makers, names, codes, sides = ([], []), [], [], set()
    for name, (home, target, crop) in found.items():
        try:
            check_picture(target)
            result = InversionResult.load(home)
        except (PictureError, UsageError, CheckpointError) as error:
            left_out.append(str(error))
            failed += 1
            continue
        if G is not None:
            check_generator((result.settings.get("generator") or {}).get("sha256"), G, shown(home), force)
        sides.add(G.resolution if G is not None else result.images.shape[-1])
        names.append(name)
        codes.append(dataclasses.replace(result, images=torch.empty(0), losses={}) if G is not None else None)
        makers[0].append((target, crop))
        makers[1].append(home)
    if not names:
        raise UsageError(f"nothing to compare in {shown(folder)}: {left_out[0] if left_out else 'no result is done'}")
    if len(sides) > 1:
        raise UsageError(f"the results in {shown(folder)} have sides of {sorted(sides)} pixels; give one at a time")
    own = sides.pop()
    resolution = resolution or own
    a = Lazy([lambda p=path, c=crop: load_picture(p, resolution, c) for path, crop in makers[0]], device)
    if G is None or resolution != own:
        b = _files([home / PICTURE for home in makers[1]], resolution, device)
        if G is not None:
            raise UsageError(f"codes are rendered at {own} pixels; leave out --resolution {resolution}, or --generator")
    else:
        b = Lazy([lambda r=result: r.render(G)[0].float().cpu() for result in codes], device)
    return Compared(
        a, b, len(names), names, left_out, failed, codes if G is not None and with_codes else [], resolution
    )


def _targets(folder: Path) -> tuple[dict[str, tuple[Path, Path, str]], list[str]]:
    """({name: (folder of the result, its picture, crop)}, a line for each one that cannot be compared)."""
    found, gone = {}, []
    if (folder / RESULT).is_file():
        homes = {folder.resolve().name: (folder, None)}
    elif (folder / MANIFEST).is_file():
        homes = {}
        for picture in Manifest.read(folder).pictures():
            if picture.state == DONE:
                homes[picture.folder] = folder / picture.folder, picture.sha256
            else:
                why = picture.reason or "it has not been inverted yet: run its `fastinv invert` again"
                gone.append(why if picture.path in why else f"{shown(picture.path)}: {why}")
    else:
        homes = {path.parent.name: (path.parent, None) for path in sorted(folder.glob(f"*/{RESULT}"))}
        if not homes:
            raise UsageError(
                f"no results of `fastinv invert` in {shown(folder)}: there is no {MANIFEST} and no {RESULT}; to "
                "compare two folders of pictures give both"
            )
    for name, (home, sha256) in homes.items():
        try:
            settings = json.loads((home / RESULT).read_text())["settings"]
            target, crop = settings.get("picture"), settings.get("crop") or "center"
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            gone.append(f"{shown(home)}: {RESULT} cannot be read ({error})")
            continue
        if not target:
            gone.append(f"{shown(home)}: its {RESULT} does not say which picture was inverted")
        elif not Path(target).is_file():
            gone.append(f"{shown(home)}: the picture {shown(target)} is not there any more")
        elif sha256 is not None and file_sha256(target) != sha256:
            gone.append(f"{shown(home)}: the picture {shown(target)} has changed since it was inverted")
        else:
            found[name] = home, Path(target), crop
    return found, gone


def smallest_side(paths: list[Path]) -> int:
    """The smallest side, in pixels, of picture files."""
    sides = []
    for path in paths:
        check_picture(path)
        with Image.open(path) as picture:
            sides.append(min(picture.size))
    return min(sides)


def _files(paths: list[Path], resolution: int, device) -> Lazy:
    return Lazy([lambda p=path: load_picture(p, resolution) for path in paths], device)
