"""manifest.json: what a folder of results holds, and what is still to be done in it."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from fastinv.errors import UsageError
from fastinv.files import atomic_file, shown

MANIFEST = "manifest.json"
FORMAT = 1
PENDING, DONE, FAILED = "pending", "done", "failed"
ADOPTED = {"threads": None, "dtype": "auto"}  # settings that are the manifest's, always or where this is asked for


@dataclass
class Picture:
    """A picture of a run.

    Attributes:
        path: absolute, of its file.
        sha256: of the file's content.
        folder: name of its result's folder in ``out``.
        companions: sha256 of what belongs to this picture alone, such as its mask.
        state: "pending", "done" or "failed".
        reason: why it failed.
    """

    path: str
    sha256: str
    folder: str = ""
    companions: dict[str, str] = field(default_factory=dict)
    state: str = PENDING
    reason: str = ""

    def same_as(self, other: "Picture") -> bool:
        """Whether its content is the other's."""
        return (self.sha256, self.companions) == (other.sha256, other.companions)


@dataclass
class Batch:
    """Pictures that are inverted together, and the command that asked for it."""

    number: int
    command: str
    pictures: list[Picture]

    def pending(self) -> bool:
        return any(picture.state == PENDING for picture in self.pictures)


@dataclass
class Manifest:
    """What manifest.json holds.

    Attributes:
        settings: of all results, as JSON can hold them.
        why_dtype: why this dtype, where it was "auto"; it is said here, with times, and not in the results.
        next: number of the next batch.
        batches: all of them.
    """

    settings: dict
    why_dtype: str = ""
    next: int = 0
    batches: list[Batch] = field(default_factory=list)

    def add(self, pictures: list[Picture], command: str, at: int | None = None) -> None:
        """A new batch, at the end or at a position."""
        self.batches.insert(len(self.batches) if at is None else at, Batch(self.next, command, pictures))
        self.next += 1

    def pictures(self) -> list[Picture]:
        """Of all batches."""
        return [picture for batch in self.batches for picture in batch.pictures]

    def agreed(self, settings: dict) -> dict:
        """Settings with those that are always the manifest's: "threads", and "dtype" in the place of "auto"."""
        return settings | {
            name: self.settings[name]
            for name, wish in ADOPTED.items()
            if name in self.settings and name in settings and wish in (None, settings[name])
        }

    @classmethod
    def read(cls, out: Path) -> "Manifest | None":
        """That of a folder, as it stands; None if there is none.

        Raises:
            UsageError: it cannot be read.
        """
        path = out / MANIFEST
        try:
            document = json.loads(path.read_text())
            if document.pop("format") != FORMAT:
                raise ValueError("it has another format")
            batches = [
                Batch(**{**batch, "pictures": [Picture(**picture) for picture in batch["pictures"]]})
                for batch in document.pop("batches")
            ]
            return cls(batches=batches, **document)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{shown(path)} is no manifest of ours ({error}); move it away, or use another --out"
            ) from error

    def write(self, out: Path) -> None:
        """Into a folder, atomically.

        Raises:
            UsageError: it cannot be written.
        """
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        with atomic_file(out / MANIFEST) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")


def difference(old: dict, new: dict, prefix: str = "") -> str:
    """The first setting that differs, as "learning_rate 0.1, not 0.2"; "" if none does."""
    for name in [*old, *(name for name in new if name not in old)]:
        before, now = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            inner = difference(before, now, "" if name == "options" else f"{name}: ")
            if inner:
                return inner
        elif before != now:
            return f"{prefix}{name} {_short(before)}, not {_short(now)}"
    return ""


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
