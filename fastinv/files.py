"""Files of ours: written whole or not at all, and safetensors whose bytes depend on their content alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fastinv.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

KEY = "fastinv"  # of the metadata


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; what was written there takes `path`'s place at the end, or is removed.

    Raises:
        UsageError: it cannot be written (an OSError of the block or of the replacing).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes its place at the end, with all that is in it, or is removed.

    Raises:
        UsageError: it cannot be written (an OSError of the block or of the replacing).
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name[:64]}.") as outer:
            temporary = Path(outer) / "new"
            temporary.mkdir()
            yield temporary
            if folder.exists():
                os.rename(folder, Path(outer) / "old")
            os.rename(temporary, folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or error
    return UsageError(f"cannot write {shown(path)}: {reason}; check the folder, its rights and free space")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all, with the folders above it.

    Raises:
        UsageError: it cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {shown(path.parent)}: {error.strerror}; choose another --out") from error
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what `atomic_file` left in a folder when its process was killed; nobody may be writing there meanwhile."""
    for path in Path(folder).glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
            path.unlink(missing_ok=True)


def shown(path: str | os.PathLike) -> str:
    """The path as text for a one-line message (odd characters escaped)."""
    text = os.fspath(path)
    return text if isinstance(text, str) and text.isprintable() and text else ascii(text)


def check_writable(folder: str | os.PathLike) -> None:
    """A UsageError unless files can be written to ``folder``, made if need be; leaves nothing behind."""
    folder = Path(folder)
    nearest = next(path for path in [folder, *folder.absolute().parents] if os.path.lexists(path))
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".fastinv-"):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {shown(folder)}: {error.strerror}; choose another --out") from error


def save_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor], kind: str, facts: dict) -> None:
    """Write tensors as safetensors; complete or not at all.

    Args:
        path: where to; the folder must exist.
        tensors: name -> tensor, on any device.
        kind: what the file is, e.g. "generator"; ``load_tensors`` asks for it.
        facts: JSON-serialisable; with the kind they become one entry of the metadata, because safetensors writes
            several in an order that changes from run to run.

    Raises:
        UsageError: it cannot be written.
    """
    from safetensors.torch import save

    content = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {KEY: json.dumps({"kind": kind, **facts}, sort_keys=True)},
    )
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata as it stands.

    Raises:
        CheckpointError: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    name = shown(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"cannot read {name}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {name}: {error}") from error


def our_facts(path: str | os.PathLike, metadata: dict[str, str]) -> tuple[str, dict]:
    """(kind, facts) that `save_tensors` put into the metadata of a file.

    Raises:
        CheckpointError: they are not there or not readable.
    """
    try:
        facts = json.loads(metadata[KEY])
        kind = facts.pop("kind")
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{shown(path)} was not written by fastinv") from error
    if not isinstance(kind, str):
        raise CheckpointError(f"{shown(path)} was not written by fastinv")
    return kind, facts


def load_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Read what ``save_tensors`` wrote: (name -> tensor on the CPU, facts). Nothing in the file is executed.

    Raises:
        CheckpointError: missing, damaged, not ours, or of another kind.
    """
    tensors, metadata = read_safetensors(path)
    try:
        found, facts = our_facts(path, metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{shown(path)} is not a {kind}: it was not written by fastinv") from error
    if found != kind:
        raise CheckpointError(f"{shown(path)} holds a {found}, not a {kind}")
    return tensors, facts
