"""Fetching a public checkpoint, on request only: whole and checked, or one clear error.

HTTP ranges and conditional requests: RFC 9110 sections 13 and 14.
"""

import contextlib
import errno
import fcntl
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fastinv import __version__
from fastinv.checkpoints.registry import PublicModel, by_hand, cache_path, cached, checked_sha256, record_sha256
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import shown

LIMIT = 8 * 10**9  # bytes of a file whose size is not known
TIMEOUT = 30.0  # seconds without a byte
RETRIES = 5  # failures in a row that bring nothing new worth mentioning
WORTH = 1 << 15  # bytes; a server that sends one byte a try would keep us for years
BLOCK = 1 << 18
LOCAL = ("localhost", "127.0.0.1", "::1")

Progress = Callable[[int, int | None], None]


class _Dropped(Exception):
    """The connection failed, not the file: worth another try."""


def fetch(
    model: PublicModel,
    confirm: Callable[[PublicModel], bool],
    cache: str | Path | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The model's file on this machine, downloaded if it is not there yet.

    A verified copy in the cache folder is used without network. Otherwise ``confirm`` is asked once, before anything is
    sent. A download that was interrupted (also by Ctrl-C) goes on where it stopped, if the server still has the same
    file. Only a file of the right size and sha256 appears under its name; where the sha256 is not known it is recorded
    and later uses are held to it. Processes that fetch the same model wait for one another.

    Args:
        model: from ``registry.public_model``.
        confirm: shown the model (its ``licence`` above all), says whether to download. Show people ``listing.facts``.
        cache: the cache folder; None is ``registry.cache_folder()``.
        progress: called with (bytes here, bytes in all or None) while bytes come.
        sleep: waits the given seconds between two tries.

    Raises:
        UsageError: not confirmed, a link that is not https, or the file cannot be written.
        CheckpointError: there is no plain link, the server cannot be reached or refuses, or what it sends is not the
            file. Of a file that is not the right one nothing is kept.
    """
    path = cache_path(model, cache)
    try:
        if cached(model, cache):
            return path
    except CheckpointError:  # damaged: replaced below
        if model.url is None:
            raise
    if model.url is None:
        raise CheckpointError(f"{model.name} cannot be fetched: {by_hand(model, cache)}")
    if not _allowed(model.url, local=True):
        raise UsageError(f"{shown(model.url)} is not an https link; checkpoints are fetched over https only")
    if not confirm(model):
        raise UsageError(f"{model.name} was not downloaded: its licence was not accepted ({model.licence})")

    part = path.with_name(path.name + ".part")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(".lock").open("a")
    with lock:
        _lock(lock, lambda: progress and progress(_size(part), model.size_bytes))
        with contextlib.suppress(CheckpointError):
            if cached(model, cache):  # another process was quicker
                return path
        _download(model, part, progress, sleep)
        sha256 = _accepted(model, part)
        with _writing(path):
            os.replace(part, path)
            record_sha256(path, sha256)
        _forget(part)
    return path


def fetch_on_terminal(model: PublicModel, accepted: bool, cache: str | Path | None = None) -> Path:
    """``fetch`` for the command line, after the model's facts were shown: a question and a bar on standard error.

    Args:
        model: from ``registry.public_model``.
        accepted: the licence is accepted already; nothing is asked.
        cache: as for ``fetch``.

    Raises:
        UsageError, CheckpointError: as ``fetch``; also if there is nobody to ask.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar
    from rich.prompt import Confirm

    console = Console(stderr=True)
    columns = ["{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(model.name, total=model.size_bytes)

    def confirm(model: PublicModel) -> bool:
        if not accepted and not sys.stdin.isatty():
            raise UsageError(f"{model.name} was not downloaded: --yes accepts its licence ({model.licence})")
        if not accepted and not Confirm.ask("Download it under this licence?", console=console, default=False):
            return False
        bar.start()
        return True

    try:
        return fetch(model, confirm, cache, lambda done, total: bar.update(task, completed=done, total=total))
    finally:
        bar.stop()


def _download(model: PublicModel, part: Path, progress: Progress | None, sleep: Callable[[float], None]) -> None:
    """Transfer until everything is here, again and again while that brings something new."""
    furthest, failures = _size(part), 0
    while True:
        try:
            return _transfer(model, part, progress)
        except _Dropped as error:
            size = _size(part)
            failures = 0 if size >= furthest + WORTH else failures + 1
            furthest = max(furthest, size)
            if failures == RETRIES:
                kept = "; what came is kept, the same command goes on from there" if size else ""
                raise CheckpointError(f"cannot download {model.name} from {model.url}: {error}{kept}") from error
            sleep(min(0.5 * 2**failures, 30.0))


def _transfer(model: PublicModel, part: Path, progress: Progress | None) -> None:
    """One request; its bytes go to the end of ``part`` if the server still has the file that ``part`` began."""
    start, validator = _begun(part, model.url)
    headers = {"User-Agent": f"fastinv/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with _open(model, urllib.request.Request(model.url, headers=headers), part) as response:
        start, total = _offered(model, response, part, start, validator)
        limit = LIMIT if model.size_bytes is None else model.size_bytes
        with _writing(part), part.open("ab" if start else "wb") as file:
            _note(part, model.url, _validator(response) or (validator if start else None))
            position = start
            while block := _received(response):
                position += len(block)
                if position > limit:
                    _forget(part)
                    raise CheckpointError(f"{model.url} sends more than the {limit:,} bytes of {model.name}")
                file.write(block)
                if progress:
                    progress(position, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and position < total:
        raise _Dropped(f"the connection ended after {position:,} of {total:,} bytes")


def _open(model: PublicModel, request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    """The server's answer, if it is one with bytes of a file."""
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = shown(f"the server answers {error.code} {error.reason}")
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and request.has_header("Range"):
            _forget(part)  # longer than the file that is there now
            raise _Dropped(answer) from error
        if error.code >= 500 or error.code in (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS):
            raise _Dropped(answer) from error
        raise CheckpointError(
            f"cannot download {model.name} from {model.url}: {answer}; look at {model.page} for where it is now"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise CheckpointError(
                f"cannot download {model.name} from {model.url}: the server's certificate is not valid here "
                f"({reason.verify_message})"
            ) from error
        raise _Dropped(_why(reason)) from error


def _offered(model, response, part: Path, start: int, validator: str | None) -> tuple[int, int | None]:
    """(first byte that comes, size of the whole file or None); refused before a byte is written if it cannot be it."""
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise CheckpointError(f"{model.url} sends a web page ({kind}) instead of {model.name}; look at {model.page}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise CheckpointError(f"{model.url} sends compressed data, which was not asked for")
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if response.status == http.client.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != start or _validator(response) not in (None, validator):
            _forget(part)
            raise _Dropped("the file on the server has changed")
        total = int(match[2])
    elif response.status == http.client.OK:
        start = 0
    else:
        raise CheckpointError(f"{model.url} answers {response.status} instead of sending {model.name}")
    if total is None and response.headers.get("Transfer-Encoding") is None:
        if model.size_bytes is None and model.sha256 is None:
            raise CheckpointError(f"{model.url} does not say how long {model.name} is: its end could be missing")
        total = model.size_bytes
    if total is not None:
        if model.size_bytes not in (None, total):
            raise CheckpointError(
                f"{model.url} offers {total:,} bytes, but {model.name} has {model.size_bytes:,}: it is another file"
            )
        if total > LIMIT:
            raise CheckpointError(f"{model.url} offers {total:,} bytes; more than {LIMIT:,} are not taken")
        with _writing(part):
            free = shutil.disk_usage(part.parent).free
            if free < total - start:
                raise OSError(errno.ENOSPC, f"{total - start:,} bytes are to come, {free:,} are free")
    return start, total


def _accepted(model: PublicModel, part: Path) -> str:
    """The sha256 of a complete download; if it is not the file, nothing stays of it."""
    try:
        with _writing(part):
            with part.open("rb") as file:
                start = file.read(512).lstrip().lower()
            if start.startswith((b"<!doctype", b"<html", b"<?xml")):
                raise CheckpointError("it is a web page")
            return checked_sha256(part, model, model.sha256)
    except CheckpointError as error:
        _forget(part)
        raise CheckpointError(
            f"what {model.url} sent is not {model.name}: {error}; nothing of it was kept, look at {model.page}"
        ) from error


def _received(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(_why(error)) from error


def _why(error) -> str:
    """A connection's failure in words."""
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT:g} s"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _allowed(url: str, local: bool) -> bool:
    """Only https; with ``local`` also http from a server on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (local and parts.scheme == "http" and parts.hostname in LOCAL)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not _allowed(url, local=urlsplit(request.full_url).hostname in LOCAL):
            raise CheckpointError(f"{request.full_url} leads to {shown(url)}, which is not an https link; not followed")
        return super().redirect_request(request, file, code, message, headers, url)


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What tells this version of the file from others: a strong ETag, else the date of its last change."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _begun(part: Path, url: str) -> tuple[int, str | None]:
    """(bytes that are here, their validator), (0, None) where they cannot be continued."""
    try:
        note = json.loads(_notes(part).read_text())
        if note["url"] == url and note["validator"]:
            return _size(part), note["validator"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, None


def _note(part: Path, url: str, validator: str | None) -> None:
    _notes(part).write_text(json.dumps({"url": url, "validator": validator}) + "\n")


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    for path in (part, _notes(part)):
        path.unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """An OSError of the block is about the disk: one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {shown(path)}: {error.strerror or error}; free space or rights, or set FASTINV_CACHE to "
            "another folder"
        ) from error


def _lock(file, waiting: Callable[[], object]) -> None:
    """Wait until no other process holds the file. The system lets go of the lock of a process that dies."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            time.sleep(0.2)
        except OSError as error:
            raise UsageError(
                f"cannot lock {shown(file.name)}: {error.strerror}; set FASTINV_CACHE to a folder on a local disk"
            ) from error
