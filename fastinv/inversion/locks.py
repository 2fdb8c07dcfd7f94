"""Locks between processes: files that a process holds, and that the kernel releases when it dies."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fastinv.errors import UsageError
from fastinv.files import shown

LOCK = "lock"  # name of the file in the folder that it is for


def clear(folder: Path) -> None:
    """Remove a folder whose lock is held; the lock goes last, so that nobody gets one in a folder half removed."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / LOCK).unlink()
        folder.rmdir()


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on a file, made if need be; yields False where another one holds it and ``wait`` is false.

    Raises:
        UsageError: it cannot be made or locked.
    """
    file = _lock(path, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            file.close()


def _lock(path: Path, wait: bool):
    """An open file with the lock, or None."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a")  # noqa: SIM115 - it is open as long as the lock is held
        except FileNotFoundError:  # the folder was removed in between
            continue
        except OSError as error:
            raise UsageError(f"cannot write {shown(path)}: {error.strerror}; choose another --out") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:  # whoever held it has removed it
            pass
        except OSError as error:
            file.close()
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise UsageError(f"cannot lock {shown(path)}: {error.strerror}; choose another --out") from error
        except BaseException:
            file.close()
            raise
        file.close()
