"""A folder of results that may be killed at any moment, continued, added to, and shared by several processes.

    <out>/manifest.json        the settings of all results, and the batches of pictures with what became of each
    <out>/<folder>/            the result of a picture; complete when it holds a result.json
    <out>/.fastinv/            while there is work left: a lock for the manifest, and for each batch
    <out>/.fastinv/<number>/   lock, state/ of the optimisation, results/, and record.json once they are all there

A batch is computed by whoever holds its lock, which the kernel releases when a process dies. It stays what it was when
it was first written, because its composition may decide the last bits. Its results are complete when record.json is
there; putting them into the pictures' folders can be repeated until the manifest says that they are.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fastinv.checkpoints.load import file_sha256
from fastinv.errors import UsageError
from fastinv.files import atomic_file, remove_leftovers, shown
from fastinv.inversion.frames import ANIMATION, FRAMES
from fastinv.inversion.locks import LOCK, clear, locked
from fastinv.inversion.manifest import DONE, FAILED, MANIFEST, PENDING, Batch, Manifest, Picture, difference
from fastinv.inversion.result import LATENT, RESULT

WORK = ".fastinv"  # in the folder of results
RECORD, RESULTS, STATE = "record.json", "results", "state"  # in the working folder of a batch


class Run:
    """The folder ``out``. ``plan`` says what is to be done, ``batches`` hands it out, ``finish`` takes it back.

    Args:
        out: the folder; it is made when it is needed.
        waiting: called with a line of text when another process has to be waited for.
    """

    def __init__(self, out: str | Path, waiting: Callable[[str], None] = lambda line: None):
        self.out, self.work, self.waiting = Path(out), Path(out) / WORK, waiting
        self.settings: dict = {}

    def plan(
        self,
        settings: dict,
        pictures: list[Picture],
        size: int,
        command: str,
        overwrite: bool = False,
        choose_dtype: Callable[[], tuple[str, str]] | None = None,
    ) -> Manifest:
        """Write down what is to be done; pictures that are finished, or part of a batch under way, are left alone.

        Args:
            settings: of all results. "threads", and "dtype" where it is "auto", become those of the manifest.
            pictures: with path, sha256, companions; each path once.
            size: pictures of a new batch, at most.
            command: for new batches.
            overwrite: do the finished ones again, and take other settings than the manifest's: it then forgets the
                pictures that were made with those (their results stay).
            choose_dtype: gives (dtype, why) where it is "auto" and no manifest says it.

        Returns:
            The manifest; its settings are the ones to work with.

        Raises:
            UsageError: other settings than the manifest's, or a file that cannot be read or written.
        """
        settings = json.loads(json.dumps(settings))
        with self._locked_manifest():
            remove_leftovers(self.out)
            manifest = Manifest.read(self.out)
            if manifest is not None:
                other = difference(manifest.settings, manifest.agreed(settings))
                if other and not overwrite and not self._untouched(manifest):
                    raise UsageError(
                        f"{shown(self.out)} holds results with {other}; use another --out, or --overwrite to replace "
                        "the results of these pictures"
                    )
                if other:
                    manifest = Manifest(settings, next=manifest.next)
            else:
                manifest = Manifest(settings)
            if manifest.settings.get("dtype") == "auto":
                manifest.settings["dtype"], manifest.why_dtype = choose_dtype()
            self._add(manifest, pictures, size, command, overwrite)
            manifest.write(self.out)
            self.settings = manifest.settings
            self._tidy(manifest)
        return manifest

    def batches(self, paths: list[str]) -> Iterator[tuple[Batch, Path]]:
        """The batches that are left and hold some of these pictures, each with a folder to work in.

        A batch is locked until the next one is asked for; before that, ``finish`` or ``split`` must have been called
        with it. When all that is left is in the hands of other processes, this waits, and takes over what they leave.

        Raises:
            UsageError: another command has changed the settings meanwhile.
        """
        while numbers := self._pending(paths):
            for number in numbers:
                with locked(self._folder(number) / LOCK, wait=False) as mine:
                    if not mine:
                        continue
                    batch = self._batch(number)
                    if batch is None:  # another process was quicker
                        clear(self._folder(number))
                    elif (self._folder(number) / RECORD).exists():  # computed, by a process that died then
                        self._publish(number)
                    else:
                        yield batch, self._folder(number)
                        if self._batch(number) is not None:
                            raise RuntimeError(f"batch {number} was neither finished nor split")
                    break
            else:
                self.waiting(f"waiting for another process that works on {shown(self.out)}")
                with locked(self._folder(numbers[0]) / LOCK, wait=True):
                    pass

    def finish(self, batch: Batch, failures: dict[str, str]) -> None:
        """The results of a batch are in results/<picture's folder> of its folder; path -> reason for those that failed.

        Raises:
            UsageError: they cannot be written.
        """
        folder = self._folder(batch.number)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / RECORD) as temporary:
            temporary.write_text(json.dumps({"failed": failures}))
        self._publish(batch.number)

    def split(self, batch: Batch) -> None:
        """Two batches of half the size in the place of one."""
        with self._locked_manifest():
            manifest = Manifest.read(self.out)
            for at, one in enumerate(manifest.batches if manifest else []):
                if one.number == batch.number:
                    del manifest.batches[at]
                    half = (len(one.pictures) + 1) // 2
                    manifest.add(one.pictures[half:], one.command, at)
                    manifest.add(one.pictures[:half], one.command, at)
                    manifest.write(self.out)
                    break
            clear(self._folder(batch.number))

    def close(self) -> Manifest:
        """Remove what is no longer needed; returns the manifest."""
        with self._locked_manifest():
            manifest = Manifest.read(self.out)
            self._tidy(manifest)
        return manifest

    @contextlib.contextmanager
    def _locked_manifest(self) -> Iterator[None]:
        """Nobody else changes the manifest meanwhile; the working folder goes when nothing else is left in it."""
        with locked(self.work / LOCK, wait=True):
            try:
                yield
            finally:
                if os.listdir(self.work) == [LOCK]:
                    clear(self.work)

    def _folder(self, number: int) -> Path:
        return self.work / str(number)

    def _batch(self, number: int) -> Batch | None:
        """A batch as it stands in the manifest, if it is to be done."""
        manifest = Manifest.read(self.out)
        return next((one for one in manifest.batches if one.number == number and one.pending()), None)

    def _pending(self, paths: list[str]) -> list[int]:
        manifest, paths = Manifest.read(self.out), set(paths)
        if manifest is None or manifest.settings != self.settings:
            raise UsageError(f"another command has changed the settings of {shown(self.out)}; use another --out")
        return [
            batch.number
            for batch in manifest.batches
            if batch.pending() and any(picture.path in paths for picture in batch.pictures)
        ]

    def _add(self, manifest: Manifest, pictures: list[Picture], size: int, command: str, overwrite: bool) -> None:
        """New batches for what is new, changed, failed before, lost or to be overwritten."""
        given = {picture.path: picture for picture in pictures}
        again = {}
        for batch in manifest.batches:
            if batch.pending() and any(picture.path in given for picture in batch.pictures):
                now = [given.get(picture.path) or _as_it_is_now(picture) for picture in batch.pictures]
                if all(new is not None and old.same_as(new) for old, new in zip(batch.pictures, now)):
                    continue  # it goes on
                again |= {
                    new.path: dataclasses.replace(new, folder=old.folder)
                    for old, new in zip(batch.pictures, now)
                    if new
                }
                batch.pictures = []
                continue
            for picture in list(batch.pictures):
                new = given.get(picture.path)
                if new is None or picture.state == PENDING:
                    continue
                there = (self.out / picture.folder / RESULT).is_file()
                if overwrite or picture.state == FAILED or not there or not picture.same_as(new):
                    again[picture.path] = dataclasses.replace(new, folder=picture.folder)
                    batch.pictures.remove(picture)
        manifest.batches = [batch for batch in manifest.batches if batch.pictures]
        known = {picture.path for picture in manifest.pictures()}
        todo = [again.pop(path, new) for path, new in given.items() if path not in known] + list(again.values())
        taken = {picture.folder: picture.path for picture in [*manifest.pictures(), *todo] if picture.folder}
        for picture in todo:
            if not picture.folder:
                picture.folder = self._folder_name(picture.path, taken)
                taken[picture.folder] = picture.path
        for first in range(0, len(todo), size):
            manifest.add(todo[first : first + size], command)

    def _folder_name(self, path: str, taken: dict[str, str]) -> str:
        """The picture's stem; with a number where another picture, now or earlier, has that name."""
        stem = Path(path).stem
        stem = stem if stem.strip(".") else "picture"  # "...png" has the stem ".."
        names = {name.casefold() for name in [*taken, MANIFEST, WORK]}  # one folder on some file systems
        number, name = 1, stem
        while name.casefold() in names or _holds_other(self.out / name, path):
            number += 1
            name = f"{stem}-{number}"
        return name

    def _publish(self, number: int) -> None:
        """Put the results of a batch into the pictures' folders, note it in the manifest, remove the working folder."""
        folder = self._folder(number)
        with self._locked_manifest():
            manifest = Manifest.read(self.out)
            batch = next((one for one in manifest.batches if one.number == number), None)
            if batch is not None:  # else another command has put its pictures into another batch
                failures = json.loads((folder / RECORD).read_text())["failed"]
                for picture in batch.pictures:
                    picture.state, picture.reason = DONE, ""
                    try:
                        if picture.path in failures:
                            raise UsageError(failures[picture.path])
                        _put(folder / RESULTS / picture.folder, self.out / picture.folder)
                    except (OSError, UsageError) as error:
                        picture.state, picture.reason = FAILED, str(error)
                manifest.write(self.out)
            clear(folder)

    def _untouched(self, manifest: Manifest) -> bool:
        """Whether nothing has been done with this manifest: no picture, no saved state, no process at work."""
        for batch in manifest.batches:
            folder = self._folder(batch.number)
            if any(picture.state == DONE for picture in batch.pictures) or (folder / STATE).exists():
                return False
            if folder.exists():
                with locked(folder / LOCK, wait=False) as mine:
                    if not mine or (folder / RECORD).exists():
                        return False
        return True

    def _tidy(self, manifest: Manifest) -> None:
        """Remove the working folders of batches that are no more, unless a process is at work there."""
        pending = {str(batch.number) for batch in manifest.batches if batch.pending()}
        for folder in self.work.iterdir():
            if folder.is_dir() and folder.name not in pending:
                with locked(folder / LOCK, wait=False) as mine:
                    if mine:
                        clear(folder)


def _as_it_is_now(picture: Picture) -> Picture | None:
    """A picture with the file's present content; None if it cannot be read."""
    try:
        return Picture(picture.path, file_sha256(picture.path), companions=picture.companions)
    except OSError:
        return None


def _holds_other(folder: Path, picture: str) -> bool:
    """Whether the folder is the result of another picture, or no folder."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    try:
        return json.loads((folder / RESULT).read_text())["settings"]["picture"] != picture
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no complete result


def _put(source: Path, target: Path) -> None:
    """Make the files of ``source`` those of ``target``; others stay. Done again, it gives the same."""
    target.mkdir(parents=True, exist_ok=True)
    (target / RESULT).unlink(missing_ok=True)  # incomplete from here on, complete with the last file
    for folder in (source, source / FRAMES, target):
        remove_leftovers(folder)
    shutil.rmtree(target / FRAMES, ignore_errors=True)
    (target / ANIMATION).unlink(missing_ok=True)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda name: (name != Path(LATENT), name == Path(RESULT), name)):
        (target / name).parent.mkdir(exist_ok=True)
        with atomic_file(target / name) as temporary:
            try:
                os.link(source / name, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(source / name, temporary)
