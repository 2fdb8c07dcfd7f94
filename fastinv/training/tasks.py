"""Picture-to-picture tasks of pSp (Richardson et al. 2021, arXiv 2008.00951, section 4): what an encoder sees, the
source, and what the picture of its code is compared with, the target.

| task | source | target |
|---|---|---|
| invert | a picture | the same |
| frontalize | a face | the same person from the front; of a folder's pictures the same, each mirrored by chance |
| sketch | a line drawing | the picture |
| segment | a map of labels | the picture |
| super-resolution | a picture reduced by a factor and enlarged again | the picture |
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastinv.checkpoints.load import resolve
from fastinv.data import faces
from fastinv.data.parts import label_colours
from fastinv.data.pictures import load_labels, load_picture
from fastinv.errors import CheckpointError, PictureError, UsageError
from fastinv.files import our_facts, shown
from fastinv.training.batches import SEED_STRIDE, FaceBatches, FolderBatches, rows_of
from fastinv.training.sources import picture_files

FACTORS = (1, 2, 4, 8, 16)  # of super-resolution
LEAST = 4  # pixels of a reduced picture's side
CHANCES = 2  # random numbers for each picture
HELDOUT_CHANCES = 17  # seed of those of the held-out pictures


@dataclass(frozen=True)
class Pair:
    """Sources [N, input_nc, R, R] and their targets [N, 3, R, R]."""

    source: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: slice) -> "Pair":
        return Pair(self.source[rows], self.target[rows])

    def split(self, size: int) -> "list[Pair]":
        """In parts of ``size`` pictures, as ``Tensor.split``."""
        return [self[first : first + size] for first in range(0, len(self), size)]


def as_pair(images: Tensor | Pair) -> Pair:
    """Plain pictures are source and target in one."""
    return images if isinstance(images, Pair) else Pair(images, images)


class Task:
    """Inversion, and what other tasks have in common.

    A pair starts as one tensor [3 + C, R, R], the picture and whatever else belongs to it: ``draw`` and ``load`` make
    them, ``pair`` makes sources and targets of a batch of them. Cropping and mirroring is of all channels alike.

    Args:
        source: folder with the source of each picture of ``data``, by the same name but for its ending.
        data: the folder of the pictures, or the word faces.

    Attributes:
        weights: the paper's loss weights, where they differ from those of inversion: {option: weight}.
        input_nc: channels of a source.
        two_files: whether a folder of pictures needs another one of sources.
        random: whether ``pair`` uses its random numbers.
        known_codes: whether a generated picture's code is the right one for its source.
    """

    name = "invert"
    weights: dict[str, float] = {}
    input_nc = 3
    two_files = random = False
    known_codes = True

    def __init__(self, data: str = "faces", source: str = ""):
        if data == "faces" and source:
            raise UsageError("--source is for a folder of pictures; the sources of --data faces are drawn")
        if source and not self.two_files:
            raise UsageError(f"--source is for the tasks sketch and segment; {self.name} needs the pictures alone")
        if self.two_files and data != "faces" and not source:
            raise UsageError(f"--task {self.name} needs --source DIR, with the source of each picture in {shown(data)}")
        self.folder = Path(data)
        self.sources = _by_stem(source) if source else {}
        self.source_folder = source

    def facts(self) -> dict:
        """What the encoder's file says of it; `task_of` reads it."""
        return {"name": self.name}

    def draw(self, attributes: dict[str, Tensor], resolution: int) -> Tensor:
        """Portraits of these attributes {name: [N]} as ``pair`` takes them, [N, 3 + C, R, R]."""
        return faces.render(attributes, resolution)

    def load(self, path: Path, resolution: int) -> Tensor:
        """A picture of the folder as ``pair`` takes it, [3 + C, R, R]; PictureError where its source is missing."""
        picture = load_picture(path, resolution)
        return torch.cat([picture, self.load_source(self.source_of(path), resolution)]) if self.two_files else picture

    def load_source(self, path: Path, resolution: int, crop: str = "center") -> Tensor:
        """A file with a source, [C, R, R]; errors as for `load_picture`."""
        return load_picture(path, resolution, crop)

    def source_of(self, path: Path) -> Path:
        """The source file of a picture."""
        stem = _stem(path, self.folder)
        found = self.sources.get(stem, [])
        if len(found) != 1:
            problem = f"there are {len(found)} of them" if found else "no such file"
            where = shown(Path(self.source_folder) / stem)
            raise PictureError(f"{shown(path)}: its source {where}.* is not clear: {problem}")
        return found[0]

    def unused(self) -> list[str]:
        """A line for every source file that no picture of the folder has the name of."""
        names = {_stem(path, self.folder) for path in picture_files(self.folder)} if self.sources else set()
        unused = [path for stem, paths in self.sources.items() if stem not in names for path in paths]
        return [f"{shown(path)}: no picture in {shown(self.folder)} has its name" for path in unused]

    def pair(self, images: Tensor, chances: Tensor) -> Pair:
        """Sources and targets of [N, 3 + C, R, R]; ``chances`` [N, CHANCES] are random numbers in [0, 1)."""
        return Pair(self.encoded(images[:, 3:]), images[:, :3]) if self.two_files else Pair(images, images)

    def encoded(self, source: Tensor) -> Tensor:
        """What `load_source` gave [N, C, R, R], as the encoder takes it [N, input_nc, R, R]."""
        return source

    def shown(self, source: Tensor) -> Tensor:
        """Sources [N, input_nc, R, R] to look at: [N, 3, R, R] in [-1, 1]."""
        return source


class Frontalize(Task):
    """Turn the head to the viewer."""

    name = "frontalize"
    weights = {
        "pixel": 0.001, "perceptual": 0.08, "identity": 1.0, "crop_pixel": 0.01, "crop_perceptual": 0.8,
        "w_norm": 0.005,
    }  # fmt: skip
    random = True
    known_codes = False

    def draw(self, attributes, resolution):
        seen = faces.render(attributes, resolution)
        return torch.cat([faces.render(faces.frontal(attributes), resolution), seen], 1)

    def pair(self, images, chances):
        """Of pictures without a target, each of source and target is mirrored with probability 1/2: the code that is
        right for both is that of a face from the front, which is what the paper trains with.
        """
        if images.shape[1] > 3:
            return Pair(images[:, 3:], images[:, :3])
        mirrored, flipped = images.flip(3), (chances < 0.5).view(-1, CHANCES, 1, 1, 1)
        return Pair(*(torch.where(flipped[:, index], mirrored, images) for index in range(2)))


class Sketch(Task):
    """A line drawing, dark on white, becomes a picture."""

    name = "sketch"
    weights = {"identity": 0.0, "w_norm": 0.005}
    input_nc = 1
    two_files = True
    known_codes = False

    def draw(self, attributes, resolution):
        return torch.cat([faces.render(attributes, resolution), faces.sketch(attributes, resolution)], 1)

    def load_source(self, path, resolution, crop="center"):
        return load_picture(path, resolution, crop).mean(0, keepdim=True)

    def shown(self, source):
        return source.expand(-1, 3, -1, -1)


class Segment(Task):
    """A map of labels becomes a picture; the encoder sees one-hot maps, a channel for each label.

    Args:
        labels: their names; of `faces` those of its parts.
    """

    name = "segment"
    weights = {"identity": 0.0, "w_norm": 0.005}
    two_files = True
    known_codes = False

    def __init__(self, data="faces", source="", labels: tuple[str, ...] = faces.PARTS):
        super().__init__(data, source)
        self.labels, self.input_nc = tuple(labels), len(labels)

    def facts(self):
        return super().facts() | {"labels": list(self.labels)}

    def draw(self, attributes, resolution):
        parts = faces.parts(attributes, resolution).unsqueeze(1).float()
        return torch.cat([faces.render(attributes, resolution), parts], 1)

    def load_source(self, path, resolution, crop="center"):
        return load_labels(path, resolution, self.input_nc, crop).unsqueeze(0).float()

    def encoded(self, source):
        return F.one_hot(source[:, 0].long(), self.input_nc).movedim(3, 1).float()

    def shown(self, source):
        return label_colours(self.input_nc).to(source)[source.argmax(1)].movedim(3, 1)


class SuperResolution(Task):
    """A picture from a small or blurred one. The source is an area average by a random factor, enlarged bicubically."""

    name = "super-resolution"
    weights = {"w_norm": 0.005}
    random = True

    def facts(self):
        return super().facts() | {"factors": list(FACTORS)}

    def pair(self, images, chances):
        factors = [factor for factor in FACTORS if images.shape[-1] // factor >= LEAST]
        chosen = (chances[:, 0] * len(factors)).long()
        source = images.clone()
        for index, factor in enumerate(factors):
            rows = chosen == index
            source[rows] = reduced(images[rows], factor)
        return Pair(source, images)


TASKS: dict[str, type[Task]] = {task.name: task for task in (Task, Frontalize, Sketch, Segment, SuperResolution)}


def reduced(images: Tensor, factor: int) -> Tensor:
    """Pictures [N, 3, R, R] averaged over squares of ``factor`` pixels and enlarged bicubically to their size again.

    Raises:
        UsageError: not a whole number that leaves at least a pixel.
    """
    size = images.shape[-1]
    if not isinstance(factor, int) or not 1 <= factor <= size:
        raise UsageError(f"a factor must be a whole number from 1 to the picture's side of {size}, not {factor!r}")
    if factor == 1 or not len(images):
        return images
    small = F.interpolate(images, size=(size // factor,) * 2, mode="area")
    return F.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp(-1, 1)


# Batches --------------------------------------------------------------------------------------------------------------


def make_task(name: str, data: str = "faces", source: str = "", labels: int = 0) -> Task:
    """A task with the files that it needs, from a trainer's options.

    Args:
        name: a key of ``TASKS``.
        data: the word faces or a folder.
        source: the folder of sources, for sketch and segment on a folder.
        labels: how many there are in its label maps.

    Raises:
        UsageError: unknown name, or an option that is missing or not for this task.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    if labels and (name != "segment" or data == "faces"):
        raise UsageError("--labels is for --task segment on a folder")
    if name != "segment" or data == "faces":
        return TASKS[name](data, source)
    if not 2 <= labels <= 256:
        raise UsageError(f"--task segment on a folder needs --labels N, 2 to 256 different values, not {labels}")
    return Segment(data, source, tuple(map(str, range(labels))))


class TaskBatches:
    """Endless pairs of a task. Which ones are in a step depends on the seed and the step's number alone.

    Args:
        task: what is asked for.
        resolution, batch, seed, mirror, workers, device: see `fastinv.training.batches.FolderBatches`.
        data: the word faces or a folder.
    """

    def __init__(
        self, task: Task, data: str, resolution: int, batch: int, seed: int, mirror: bool, workers: int, device
    ):
        self.task, self.count, self.seed = task, batch, seed
        if data == "faces":
            self.batches = FaceBatches(resolution, batch, seed, device, draw=task.draw)
        else:
            self.batches = FolderBatches(data, resolution, batch, seed, mirror, workers, device, load=task.load)
            for line in task.unused():
                print(f"left out: {line}", file=sys.stderr, flush=True)

    def stream(self, step: int, process: int = 0, processes: int = 1):
        """Pairs of one step after another, this process's rows of them, from ``step`` on, without end."""
        rows = rows_of(self.count, process, processes)
        for images in self.batches.stream(step, process, processes):
            # Not the numbers that the step itself draws, whose seed this would be without the sign.
            random = torch.Generator().manual_seed(-1 - (self.seed * SEED_STRIDE + step))
            chances = torch.rand(self.count, CHANCES, generator=random)[rows]
            yield self.task.pair(images, chances.to(images.device))
            step += 1

    def heldout(self, count: int) -> Pair:
        """Up to ``count`` pairs that are never trained on."""
        images = self.batches.heldout(count)
        random = torch.Generator().manual_seed(HELDOUT_CHANCES)
        return self.task.pair(images, torch.rand(len(images), CHANCES, generator=random).to(images.device))


def _by_stem(folder: str) -> dict[str, list[Path]]:
    """{stem: the files that have it}."""
    found: dict[str, list[Path]] = {}
    for path in picture_files(folder):
        found.setdefault(_stem(path, folder), []).append(path)
    return found


def _stem(path: Path, folder: str | Path) -> str:
    """Where a file lies in a folder, without its ending."""
    return path.relative_to(folder).with_suffix("").as_posix()


# Files of encoders ----------------------------------------------------------------------------------------------------


def task_of(name_or_path: str | Path, encoder) -> Task:
    """The task that an encoder was trained for, as its file says; for other files by its channels: 3 (6 with ReStyle)
    is inversion, 1 a sketch, any other number that of labels.

    Args:
        name_or_path: of the encoder, as `load_encoder` takes it.
        encoder: what `load_encoder` gave.

    Raises:
        CheckpointError: the file names a task that is not known here.
    """
    path = resolve(name_or_path, "encoder")
    facts = _training_facts(path).get("task")
    if facts is None:
        if encoder.input_nc in (3, 6):
            return Task()
        return Sketch() if encoder.input_nc == 1 else Segment(labels=tuple(map(str, range(encoder.input_nc))))
    name = facts.get("name") if isinstance(facts, dict) else None
    task = TASKS.get(name) if isinstance(name, str) else None
    if task is None:
        raise CheckpointError(f"{shown(path)} is for the task {str(name)[:40]!r}; known are {', '.join(TASKS)}")
    if task is not Segment:
        return task()
    labels = facts.get("labels")
    if not isinstance(labels, list) or len(labels) != encoder.input_nc:
        raise CheckpointError(f"{shown(path)} does not name its {encoder.input_nc} labels")
    return Segment(labels=tuple(map(str, labels)))


def _training_facts(path: Path) -> dict:
    """What a file of ours says of its training; nothing of it for other files."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = our_facts(path, file.metadata() or {})[1].get("training")
    except (SafetensorError, CheckpointError, OSError):
        return {}
    return facts if isinstance(facts, dict) else {}
