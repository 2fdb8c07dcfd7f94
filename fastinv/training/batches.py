"""Batches of pictures for the encoder trainers: the procedural faces, rendered on the fly, or a folder.

Which pictures are in the batch of a step depends on the seed and the number of the step alone, so that a continued run
sees what an undisturbed one would have seen. Several processes share a batch: each gets its rows of it.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from fastinv.data import faces
from fastinv.data.pictures import load_picture
from fastinv.errors import PictureError, UsageError
from fastinv.files import shown
from fastinv.training.sources import picture_files

# Between two seeds: so many steps, or passes over a folder, later their pictures would be the same. (Not a power of
# two: torch's generator looks at the lower 32 bits of its seed.)
SEED_STRIDE = 1_000_003
HELDOUT_SEED = 1_000_000  # of the renders that choose the best checkpoint: not those that a report measures on
HELDOUT_SHARE = 20  # one picture in so many of a folder is held out


def open_batches(data: str, resolution: int, batch: int, seed: int, mirror: bool, workers: int, device):
    """``FaceBatches`` for the word faces, else ``FolderBatches``; arguments as there."""
    if data == "faces":
        return FaceBatches(resolution, batch, seed, device)
    return FolderBatches(data, resolution, batch, seed, mirror, workers, device)


def rows_of(batch: int, process: int, processes: int) -> slice:
    """The rows of a batch that belong to a process; UsageError where they cannot be shared equally."""
    if batch % processes:
        raise UsageError(f"--batch {batch} cannot be shared by {processes} processes; give a multiple of {processes}")
    share = batch // processes
    return slice(process * share, (process + 1) * share)


class FaceBatches:
    """Endless train-split portraits.

    Args:
        resolution: side of the renders in pixels.
        batch: portraits per step, over all processes.
        seed: of the faces.
        device: where they are rendered.
        draw: (attributes, resolution) -> what is drawn of them [n, C, R, R], instead of the portraits alone.
    """

    def __init__(
        self,
        resolution: int,
        batch: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        draw: Callable = faces.render,
    ):
        self.resolution, self.count, self.seed, self.device, self.draw = resolution, batch, seed, device, draw

    def stream(self, step: int, process: int = 0, processes: int = 1) -> Iterator[torch.Tensor]:
        """Pictures [rows, 3, R, R] in [-1, 1] of one step after another, from ``step`` on, without end."""
        rows = rows_of(self.count, process, processes)
        while True:
            attributes = faces.sample_attributes(self.count, self.seed * SEED_STRIDE + step)
            yield self._render(attributes, rows)
            step += 1

    def heldout(self, count: int) -> torch.Tensor:
        """The first ``count`` pictures [count, 3, R, R] of the held-out set."""
        return self._render(faces.sample_attributes(count, HELDOUT_SEED, "heldout"), slice(None))

    def _render(self, attributes: dict, rows: slice) -> torch.Tensor:
        part = {name: value[rows].to(self.device) for name, value in attributes.items()}
        return self.draw(part, self.resolution)


class FolderBatches:
    """The pictures of a folder and its subfolders in random order, centre-cropped; some are held out.

    Files that cannot be read are named once on standard error; the next readable one takes their place.

    Args:
        folder: at least one readable picture.
        resolution: side in pixels.
        batch: pictures per step, over all processes.
        seed: of the order.
        mirror: flip half of them horizontally.
        workers: processes that read files beside the training; 0 reads between the steps.
        device: where batches are put.
        load: (path, resolution) -> what is read of a file [C, R, R], instead of the picture alone; PictureError leaves
            it out.

    Raises:
        UsageError: no folder, or no readable picture in it.
    """

    def __init__(
        self,
        folder: str | Path,
        resolution: int,
        batch: int,
        seed: int = 0,
        mirror: bool = False,
        workers: int = 0,
        device: torch.device | str = "cpu",
        load: Callable = load_picture,
    ):
        folder, paths = Path(folder), picture_files(folder)
        # Held out by name, so that a picture stays on its side when others come and go.
        paths.sort(key=lambda path: zlib.crc32(path.relative_to(folder).as_posix().encode()))
        cut = -(-len(paths) // HELDOUT_SHARE) if len(paths) > 1 else 0
        self.heldout_paths, self.paths = paths[:cut] or paths, paths[cut:]
        self.resolution, self.count, self.seed, self.mirror = resolution, batch, seed, mirror
        self.workers, self.device, self.load = workers, device, load
        self._named: set[str] = set()
        if not _first_readable(self.paths, resolution, load, self._name):
            raise UsageError(f"none of the {len(self.paths)} pictures in {shown(folder)} can be read")

    def stream(self, step: int, process: int = 0, processes: int = 1) -> Iterator[torch.Tensor]:
        """Pictures [rows, 3, R, R] in [-1, 1] of one step after another, from ``step`` on, without end."""
        rows = rows_of(self.count, process, processes)
        loader = DataLoader(
            _Pictures(self.paths, self.resolution, self.load),
            batch_sampler=_Order(len(self.paths), self.count, self.seed, self.mirror, step, rows),
            num_workers=self.workers,
            collate_fn=_collate,
        )
        for images, problems in loader:
            for problem in problems:
                self._name(problem)
            yield images.to(self.device)

    def heldout(self, count: int) -> torch.Tensor:
        """Up to ``count`` pictures [n, 3, R, R] that are never trained on (of a folder with one picture, that one)."""
        found = []
        for path in self.heldout_paths:
            if len(found) < count:
                try:
                    found.append(self.load(path, self.resolution))
                except PictureError as error:
                    self._name(str(error))
        if not found:
            raise UsageError(f"none of the {len(self.heldout_paths)} held-out pictures can be read")
        return torch.stack(found).to(self.device)

    def _name(self, problem: str) -> None:
        if problem not in self._named:
            self._named.add(problem)
            print(f"left out: {problem}", file=sys.stderr, flush=True)


def _first_readable(paths: list[Path], resolution: int, load: Callable, name: Callable) -> bool:
    for path in paths:
        try:
            load(path, resolution)
            return True
        except PictureError as error:
            name(str(error))
    return False


class _Order:
    """Batch sampler: (index, mirrored) of the rows of every batch. Each pass over the pictures has an order of its own,
    drawn from the seed and the number of the pass; a batch may reach into the next pass.
    """

    def __init__(self, pictures: int, batch: int, seed: int, mirror: bool, step: int, rows: slice):
        self.pictures, self.batch, self.seed, self.mirror, self.step, self.rows = (
            pictures, batch, seed, mirror, step, rows,
        )  # fmt: skip

    def __iter__(self):
        number, order = -1, None
        for step in _count_from(self.step):
            chosen = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                passes, place = divmod(position, self.pictures)
                if passes != number:
                    random = torch.Generator().manual_seed(self.seed * SEED_STRIDE + passes)
                    order, number = torch.randperm(self.pictures, generator=random), passes
                    flips = torch.rand(self.pictures, generator=random) < 0.5
                chosen.append((int(order[place]), self.mirror and bool(flips[place])))
            yield chosen[self.rows]


def _count_from(step: int) -> Iterator[int]:
    while True:
        yield step
        step += 1


class _Pictures(Dataset):
    """(index, mirrored) -> (picture, lines about files that could not be read)."""

    def __init__(self, paths: list[Path], resolution: int, load: Callable):
        self.paths, self.resolution, self.load = paths, resolution, load

    def __getitem__(self, place: tuple[int, bool]) -> tuple[torch.Tensor, list[str]]:
        index, mirrored = place
        problems = []
        for offset in range(len(self.paths)):
            try:
                picture = self.load(self.paths[(index + offset) % len(self.paths)], self.resolution)
                return (picture.flip(2) if mirrored else picture), problems
            except PictureError as error:
                problems.append(str(error))
        raise UsageError("none of the pictures can be read any more")


def _collate(items: list) -> tuple[torch.Tensor, list[str]]:
    return torch.stack([picture for picture, _ in items]), [line for _, problems in items for line in problems]
