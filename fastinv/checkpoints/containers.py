"""From a file of any kind to plain data: which container it is, and what it holds. Nothing of the file is run.

Containers: plain pickles, torch.save's zip files and the streams that it wrote before, safetensors. Everything else is
refused with a line that says what it looks like.
"""

import contextlib
import dataclasses
import functools
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastinv.checkpoints.pickles import Limits, Record, finished, read_pickle
from fastinv.checkpoints.tensors import LEGACY_MAGIC, Storage, described_storage, names, read_legacy
from fastinv.errors import CheckpointError
from fastinv.files import KEY, our_facts, read_safetensors, shown

# What the libraries beneath may raise on damaged data. Each becomes a CheckpointError that names the file.
DAMAGE = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError, RuntimeError,
    EOFError, NotImplementedError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    b"\x1f\x8b": "is compressed with gzip; unpack it first",
    b"BZh": "is compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "is compressed with xz; unpack it first",
    b"7z\xbc\xaf": "is a 7-Zip archive; unpack it first",
    b"Rar!": "is a RAR archive; unpack it first",
    b"\x89HDF": "is an HDF5 file (Keras, perhaps), which is not read",
    b"\x93NUMPY": "is a NumPy array, not a network",
    b"\x89PNG": "is a picture, not a network",
    b"\xff\xd8\xff": "is a picture, not a network",
    b"%PDF": "is a PDF, not a network",
}


@dataclass(frozen=True)
class Contents:
    """A file's data: ``value`` is plain (dict, list, text, numbers, `Record`, tensors, which are views of the file).

    ``release()`` gives back the memory of the parts of the file that were looked at; they are read again when needed.
    """

    value: object
    container: str
    size: int
    release: Callable[[], None] = lambda: None


def read_file(path: str | os.PathLike) -> Contents:
    """Read a checkpoint of any kind, by memory map.

    Args:
        path: a file. It must not be changed or cut while its tensors are in use.

    Returns:
        its contents; tensors are to be copied, not written to: what is written is lost with ``release``.

    Raises:
        CheckpointError: it cannot be read, is no checkpoint, is damaged, or holds what a checkpoint has no need for.
    """
    name = shown(path)
    try:
        if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
            raise CheckpointError(f"{name} is not an ordinary file")  # to open a pipe would wait for its other end
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise CheckpointError(f"{name} is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise CheckpointError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"cannot read {name}: {error}") from error
    # The length of the header, the header; a pickle may have that byte there by chance.
    if data[8:9] == b"{" and (data[:1] != b"\x80" or int.from_bytes(data[:8], "little") <= size - 8):
        with named(name, f"cannot read {name}: ", f"cannot read {name}: it is damaged"):
            return Contents(_safetensors(path), "safetensors", size)
    contents = read_data(data, name)
    # The map is private, and nothing in it was written: pages that are dropped come back from the file.
    drop = functools.partial(data.madvise, mmap.MADV_DONTNEED) if hasattr(mmap, "MADV_DONTNEED") else contents.release
    return dataclasses.replace(contents, release=drop)


def read_data(data, name: str) -> Contents:
    """The same for bytes in memory, a mmap or bytearray, but no safetensors; the errors call it ``name``."""
    view = memoryview(data)
    limits = Limits(copied_bytes=2 * len(view) + 2**20)
    start = bytes(view[:64])
    with named(name, f"cannot read {name}: ", f"cannot read {name}: it is damaged"):
        if start[:4] == b"PK\x03\x04":
            value, container = _zip(view, limits), "torch zip"
        elif start.startswith(LEGACY_START):
            value, container = _legacy(view, limits), "torch stream"
        elif start[:1] == b"\x80" and b"\x02" <= start[1:2] <= b"\x05":
            value, end = read_pickle(view, names(limits), limits)
            if end != len(view):
                raise CheckpointError(f"it goes on for {len(view) - end} bytes where it should end")
            container = "pickle"
        else:
            raise CheckpointError(f"{name} {_what_it_looks_like(start)}")
        return Contents(finished(value, len(view)), container, len(view))


@contextlib.contextmanager
def named(name: str, refused: str, damaged: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a CheckpointError of one line that names the file.

    Args:
        name: what the line calls the file; a CheckpointError that has it already is taken as it is.
        refused: what other CheckpointErrors are preceded with.
        damaged: what stands before the reason when a library beneath fails on the data.
    """
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        complete = text.startswith((name, f"cannot read {name}"))
        raise CheckpointError(one_line(text if complete else f"{refused}{text}")) from error
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(one_line(f"{damaged} ({type(error).__name__}: {reason})")) from error


def one_line(text: str) -> str:
    """Text that may hold names out of a file, fit for a terminal: what cannot be printed is escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _what_it_looks_like(start: bytes) -> str:
    for begin, what in STARTS.items():
        if start.startswith(begin):
            return what
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a network: the download failed; get it again in a browser"
    return f"is no checkpoint that is known: it begins with {start[:12]!r}"


def _safetensors(path: str | os.PathLike):
    """A file of ours as Record("fastinv", kind, facts and "tensors"), of others as name -> tensor."""
    tensors, metadata = read_safetensors(path)
    if KEY not in metadata:
        return tensors
    kind, facts = our_facts(path, metadata)
    return Record("fastinv", kind, facts | {"tensors": tensors})


def _legacy(view: memoryview, limits: Limits):
    value, end = read_legacy(view, 0, limits, names(limits))
    if end != len(view):
        raise CheckpointError(f"it goes on for {len(view) - end} bytes where it should end")
    return value


def _zip(view: memoryview, limits: Limits):
    """torch.save's zip: <root>/data.pkl, and every storage, uncompressed, as <root>/data/<key>."""
    try:
        archive = zipfile.ZipFile(_File(view))
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"it is cut off or damaged ({error})") from error
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise CheckpointError(f"it holds {info.filename[:100]!r} twice")
        members[info.filename] = info
    roots = [filename.removesuffix("/data.pkl") for filename in members if filename.endswith("/data.pkl")]
    if len(roots) != 1:
        arrays = any(filename.endswith(".npy") for filename in members)
        raise CheckpointError("it holds NumPy arrays, not a network" if arrays else "it is a zip file, but not torch's")
    root = roots[0]
    if f"{root}/constants.pkl" in members or any(filename.startswith(f"{root}/code/") for filename in members):
        raise CheckpointError("it is a TorchScript archive, which holds a program; save the state_dict instead")

    def member(filename: str) -> memoryview:
        info = members.get(filename)
        if info is None:
            raise CheckpointError(f"it is damaged: {filename[:100]!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise CheckpointError(f"{filename[:100]!r} is compressed, which torch never does; it is not read")
        header = view[info.header_offset : info.header_offset + 30]
        if len(header) < 30 or bytes(header[:4]) != b"PK\x03\x04":
            raise CheckpointError(f"it is damaged: {filename[:100]!r} is not where it should be")
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        if begin + info.file_size > len(view):
            raise CheckpointError(f"it is cut off in {filename[:100]!r}")
        return view[begin : begin + info.file_size]

    if f"{root}/byteorder" in members and bytes(member(f"{root}/byteorder")) != b"little":
        raise CheckpointError("its numbers are big-endian, which is not read")

    def storage(identifier) -> Storage:
        dtype, key, count = described_storage(identifier)
        found = member(f"{root}/data/{key}")
        if len(found) != count * dtype.itemsize:
            raise CheckpointError(f"storage {key[:50]!r} has {len(found)} bytes, not {count * dtype.itemsize}")
        return Storage(dtype, count, found)

    pickle = member(f"{root}/data.pkl")
    value, end = read_pickle(pickle, names(limits), limits, persistent=storage)
    if end != len(pickle):
        raise CheckpointError(f"its pickle goes on for {len(pickle) - end} bytes where it should end")
    return value


class _File:
    """A memoryview as the file that zipfile wants, without a copy of it."""

    def __init__(self, view: memoryview):
        self.view, self.position = view, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = max(0, offset + (0, self.position, len(self.view))[whence])
        return self.position

    def read(self, count: int = -1) -> bytes:
        end = len(self.view) if count < 0 else min(self.position + count, len(self.view))
        found = bytes(self.view[self.position : end])
        self.position = max(self.position, end)
        return found
