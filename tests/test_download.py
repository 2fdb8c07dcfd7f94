"""Downloads from a server that drops, lies, stalls and changes: the right file, or one clear error and no file."""

import hashlib
import http.server
import io
import os
import random
import resource
import shutil
import signal
import socket
import ssl
import struct
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, field, replace

import pytest

from fastinv.checkpoints import download, registry
from fastinv.checkpoints.download import fetch, fetch_on_terminal
from fastinv.checkpoints.registry import PublicModel, cache_path
from fastinv.errors import CheckpointError, UsageError

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(250_000)
PART = 100_000


@dataclass
class Answer:
    """How the server answers one request."""

    body: bytes = CONTENT
    status: int = 200
    etag: str | None = '"one"'
    ranges: bool = True  # takes Range
    if_range: bool = True  # looks at If-Range
    cut: int | None = None  # bytes after which the connection ends
    reset: bool = False  # ... with a reset
    stall: float = 0.0  # seconds of silence in the middle
    length: int | None = None  # Content-Length, if another than the true one
    framing: str = "length"  # or "chunked", or "close"
    kind: str = "application/octet-stream"
    headers: dict = field(default_factory=dict)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.close_connection = True
        with self.server.lock:
            self.server.requests.append(dict(self.headers))
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        body, status, headers = answer.body, answer.status, dict(answer.headers)
        wanted = self.headers.get("Range")
        same = not answer.if_range or self.headers.get("If-Range") in (answer.etag, headers.get("Last-Modified"))
        if status == 200 and wanted and answer.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            headers.setdefault("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        self.send_response(status)
        if answer.etag:
            headers["ETag"] = answer.etag
        if answer.framing == "length":
            headers["Content-Length"] = len(body) if answer.length is None else answer.length
        elif answer.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        for name, value in ({"Content-Type": answer.kind, "Connection": "close"} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        sent = body if answer.cut is None else body[: answer.cut]
        half = len(sent) // 2 if answer.stall else 0
        for piece in (sent[:half], sent[half:]):
            if piece and answer.framing == "chunked":
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            else:
                self.wfile.write(piece)
            self.wfile.flush()
            if piece is not sent and half:
                self.server.stop.wait(answer.stall)
                half = 0
        if answer.framing == "chunked" and answer.cut is None:
            self.wfile.write(b"0\r\n\r\n")
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # the client went away


@pytest.fixture(scope="module")
def running():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.lock, server.stop = threading.Lock(), threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()


@pytest.fixture
def server(running, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running.answers, running.requests = [Answer()], []
    return running


@pytest.fixture
def model(server):
    url = f"http://127.0.0.1:{server.server_address[1]}/x/weights.pkl"
    return PublicModel(
        "family/weights", "noise", 64, "Testers only", ("generator",), "https://page.example", "weights.pkl", url,
        len(CONTENT), hashlib.sha256(CONTENT).hexdigest(),
    )  # fmt: skip


@pytest.fixture
def get(tmp_path):
    """get(model, ...) fetches into tmp_path without waiting; get.waits are the seconds it would have waited."""

    def get(model, confirm=lambda model: True, **options):
        return fetch(model, confirm, cache=tmp_path, sleep=get.waits.append, **options)

    get.waits = []
    return get


def files(model, cache) -> list[str]:
    folder = cache_path(model, cache).parent
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock") if folder.exists() else []


def ranges(server) -> list[str | None]:
    return [request.get("Range") for request in server.requests]


def unknown(model, **changes) -> PublicModel:
    return replace(model, size_bytes=None, sha256=None, **changes)


def test_a_download(server, model, get, tmp_path):
    seen = []
    path = get(model, progress=lambda *numbers: seen.append(numbers))
    assert path == cache_path(model, tmp_path) and path.read_bytes() == CONTENT
    assert files(model, tmp_path) == ["weights.pkl", "weights.pkl.json"]
    assert seen == sorted(seen) and seen[-1] == (300_000, 300_000)
    assert registry.recorded_sha256(path) == model.sha256
    assert ranges(server) == [None] and server.requests[0]["User-Agent"].startswith("fastinv/") and get.waits == []


def test_a_copy_on_this_machine_needs_no_server_and_no_question(server, model, get):
    path = get(model)
    server.requests.clear()
    assert get(model, confirm=lambda model: pytest.fail("asked")) == path
    assert server.requests == []


def test_nothing_is_sent_before_the_licence_is_accepted(server, model, get, tmp_path):
    asked = []
    with pytest.raises(UsageError, match=r"family/weights was not downloaded: its licence.*\(Testers only\)"):
        get(model, confirm=lambda shown: asked.append(shown))
    assert asked == [model] and server.requests == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "answers, expected",
    [
        ([Answer(cut=PART)], [None, PART]),
        ([Answer(cut=PART), Answer(cut=PART), Answer(cut=50_000)], [None, PART, 2 * PART, 250_000]),
        ([Answer(cut=0)], [None, None]),
        ([Answer(cut=PART, ranges=False), Answer(ranges=False)], [None, PART]),
        ([Answer(cut=PART, framing="chunked"), Answer(framing="chunked")], [None, PART]),
        ([Answer(cut=PART, framing="close"), Answer(framing="close")], [None, PART]),
        ([Answer(cut=PART, length=400_000, framing="close"), Answer()], [None, PART]),
        ([Answer(status=500)], [None, None]),
        ([Answer(status=503), Answer(cut=PART), Answer(status=502), Answer(status=429)], [None, None, *[PART] * 3]),
        ([Answer(cut=PART, etag=None), Answer()], [None, None]),  # nothing tells whether it is the same file
        ([Answer(cut=PART, etag='W/"one"')], [None, None]),
        ([Answer(cut=PART, etag=None, headers={"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}),
          Answer(etag=None, headers={"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})], [None, PART]),
        ([Answer(cut=PART), Answer(headers={"Content-Range": "bytes 5-299999/300000"})], [None, PART, None]),
        ([Answer(cut=PART), Answer(headers={"Content-Range": "lines 5-7"})], [None, PART, None]),
        ([Answer(cut=PART), Answer(status=416)], [None, PART, None]),
    ],
)  # fmt: skip
def test_a_broken_connection_is_taken_up_again(answers, expected, server, model, get, tmp_path):
    server.answers = [*answers, Answer()]
    assert get(model).read_bytes() == CONTENT
    assert ranges(server) == [start and f"bytes={start}-" for start in expected]
    assert files(model, tmp_path) == ["weights.pkl", "weights.pkl.json"]
    assert len(get.waits) == len(expected) - 1


def test_a_reset_is_a_broken_connection(server, model, get):
    server.answers = [Answer(cut=PART, reset=True), Answer(cut=0, reset=True), Answer()]
    assert get(model).read_bytes() == CONTENT  # how much arrived before the reset is the system's business


def test_silence_is_a_broken_connection(server, model, get, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.answers = [Answer(stall=60), Answer()]
    assert get(model).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=150000-"]
    server.answers = [Answer(cut=2, stall=60)]
    with pytest.raises(CheckpointError, match=r"nothing came for 0\.1 s"):
        get(replace(model, name="family/silent"))


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_on_the_server_is_begun_again(if_range, server, model, get):
    server.answers = [Answer(cut=PART), Answer(OTHER, etag='"two"', if_range=if_range)]
    assert get(unknown(model)).read_bytes() == OTHER
    assert server.requests[1]["If-Range"] == '"one"'


def test_a_part_longer_than_the_file_is_begun_again(server, model, get):
    server.answers = [Answer(cut=270_000), Answer(OTHER)]
    assert get(unknown(model)).read_bytes() == OTHER
    assert ranges(server) == [None, "bytes=270000-", None]


def test_a_part_of_another_link_is_begun_again(server, model, get):
    server.answers = [Answer(OTHER, cut=PART), Answer(status=404)]
    with pytest.raises(CheckpointError, match="404"):
        get(unknown(model))
    server.answers = [Answer()]
    assert get(replace(model, url=model.url + "?new")).read_bytes() == CONTENT
    assert ranges(server)[-1] is None


def test_waits_grow_and_end(server, model, get, tmp_path):
    server.answers = [Answer(status=500)]
    with pytest.raises(CheckpointError, match=r"family/weights from http://\S+: the server answers 500 Internal"):
        get(model)
    assert get.waits == [1, 2, 4, 8] and len(server.requests) == 5 and files(model, tmp_path) == []


@pytest.mark.parametrize(
    "answer, message",
    [
        (Answer(cut=PART, ranges=False), "ended after 100,000 of 300,000 bytes; what came is kept"),
        (Answer(length=300_010), "offers 300,010 bytes, but family/weights has 300,000"),
        (Answer(length=299_990), "offers 299,990 bytes, but"),
        (Answer(OTHER), "offers 250,000 bytes, but"),
        (Answer(CONTENT + b"x", framing="close"), "sends more than the 300,000 bytes"),
        (Answer(CONTENT + b"x", framing="chunked"), "sends more than the 300,000 bytes"),
        (Answer(CONTENT[:-1], framing="chunked"), "299,999 bytes instead of 300,000; nothing of it was kept"),
        (Answer(CONTENT[:-1] + b"?"), f"instead of {hashlib.sha256(CONTENT).hexdigest()}; nothing of it was kept"),
        (Answer(status=404), "answers 404 Not Found; look at https://page.example"),
        (Answer(status=403), "answers 403 Forbidden"),
        (Answer(status=204, length=0), "answers 204"),
        (Answer(kind="text/html; charset=utf-8"), r"sends a web page \(text/html\)"),
        (Answer(headers={"Content-Encoding": "gzip"}), "compressed"),
        (Answer(status=302, headers={"Location": "ftp://127.0.0.1/weights.pkl"}), "not an https link; not followed"),
        (Answer(status=302, headers={"Location": "file:///etc/passwd"}), "302.*not allowed"),
        (Answer(status=302, headers={"Location": "http://192.0.2.1/weights.pkl"}), "not an https link; not followed"),
        (Answer(status=302, headers={"Location": "weights.pkl"}), "302.*infinite loop"),
    ],
)  # fmt: skip
def test_one_clear_error_and_no_file(answer, message, server, model, get, tmp_path):
    server.answers = [answer]
    with pytest.raises(CheckpointError, match=message) as caught:
        get(model)
    assert "\n" not in str(caught.value) and model.url in str(caught.value)
    kept = ["weights.pkl.part", "weights.pkl.part.json"] if "is kept" in message else []
    assert files(model, tmp_path) == kept
    server.answers = [Answer()]  # the next try is not spoilt by this one
    assert get(model).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "answer, message",
    [
        (Answer(length=300_010, ranges=False), "ended after 300,000 of 300,010 bytes"),
        (Answer(framing="close"), "does not say how long"),
        (Answer(length=9 * 10**9), "offers 9,000,000,000 bytes; more than 8,000,000,000 are not taken"),
        (Answer(b"\n <!DOCTYPE html><title>Quota exceeded</title>"), "it is a web page; nothing of it was kept"),
        (Answer(b"<?xml version='1.0'?><Error/>", framing="chunked"), "it is a web page"),
        (Answer(cut=PART, framing="chunked", ranges=False), "the connection ended early"),
    ],
)
def test_errors_where_nothing_is_known_of_the_file(answer, message, server, model, get, tmp_path):
    server.answers = [answer]
    with pytest.raises(CheckpointError, match=message):
        get(unknown(model))
    assert not cache_path(model, tmp_path).exists()


def test_a_file_without_end_is_cut_off(server, model, get, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LIMIT", 200_000)
    server.answers = [Answer(framing="chunked")]
    with pytest.raises(CheckpointError, match="sends more than the 200,000 bytes"):
        get(unknown(model))
    assert files(model, tmp_path) == []


def test_a_redirect_is_followed_and_taken_up_again(server, model, get):
    redirect = Answer(b"", status=302, etag=None, headers={"Location": "/elsewhere"})
    server.answers = [redirect, Answer(cut=PART), redirect, Answer()]
    assert get(model).read_bytes() == CONTENT
    assert ranges(server) == [None, None, "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize("url", ["http://example.org/w", "ftp://127.0.0.1/w", "file:///etc/passwd", "w", "data:,x"])
def test_only_https(url, model, get, tmp_path):
    with pytest.raises(UsageError, match="is not an https link"):
        get(replace(model, url=url), confirm=lambda model: pytest.fail("asked"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_link(model, get, tmp_path):
    by_hand = unknown(model, url=None)
    with pytest.raises(CheckpointError, match="cannot be fetched: .*browser from https://page.example") as caught:
        get(by_hand, confirm=lambda model: pytest.fail("asked"))
    path = cache_path(by_hand, tmp_path)
    assert str(path) in str(caught.value)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert get(by_hand, confirm=lambda model: pytest.fail("asked")) == path
    path.write_bytes(OTHER)
    with pytest.raises(CheckpointError, match="is damaged, or another file"):
        get(by_hand)


def test_nobody_answers(model, get, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/w.pkl"
        with pytest.raises(CheckpointError, match=f"cannot download family/weights from {url}: Connection refused"):
            get(replace(model, url=url))
    assert files(model, tmp_path) == []


def test_a_wrong_certificate_is_not_tried_again(model, get, monkeypatch):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"

    def refuse(self, request, timeout):
        raise urllib.request.URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(CheckpointError, match=r"certificate is not valid here \(self-signed certificate\)"):
        get(replace(model, url="https://example.org/w.pkl"))
    assert get.waits == []


def test_a_damaged_copy_is_replaced(server, model, get):
    path = get(model)
    path.write_bytes(OTHER)
    assert get(model).read_bytes() == CONTENT and len(server.requests) == 2
    path = get(unknown(model, name="family/unknown"))
    path.write_bytes(OTHER)  # not what was recorded at the first download
    server.requests.clear()
    assert get(unknown(model, name="family/unknown")).read_bytes() == CONTENT and len(server.requests) == 1


def test_ctrl_c_leaves_a_part_that_is_continued(server, model, get, tmp_path):
    def interrupt(done, total):
        if done > PART:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(model, progress=interrupt)
    assert files(model, tmp_path) == ["weights.pkl.part", "weights.pkl.part.json"]
    here = (cache_path(model, tmp_path).parent / "weights.pkl.part").stat().st_size
    assert PART < here < len(CONTENT)
    assert get(model).read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={here}-"]


def in_a_process(function) -> int:
    """Run it in a copy of this process; returns the process id. Its exit status is 0 if the function returns."""
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def test_a_killed_process_leaves_a_part_that_is_continued(server, model, get, tmp_path):
    server.answers = [Answer(stall=60), Answer()]
    child = in_a_process(lambda: get(model))
    part = cache_path(model, tmp_path).with_name("weights.pkl.part")
    deadline = time.monotonic() + 10
    while not (part.exists() and part.stat().st_size == 150_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert get(model).read_bytes() == CONTENT  # its lock is gone with it
    assert ranges(server) == [None, "bytes=150000-"]


def test_processes_wait_for_one_another(server, model, get, tmp_path):
    server.answers = [Answer(stall=0.4)]
    children = [in_a_process(lambda: get(model)) for _ in range(3)]
    seen = []
    assert get(model, progress=lambda done, total: seen.append((done, total))).read_bytes() == CONTENT
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(server.requests) == 1
    assert seen and all(done <= total == 300_000 for done, total in seen)  # also while another one downloads
    assert files(model, tmp_path) == ["weights.pkl", "weights.pkl.json"]


def test_a_full_disk_is_noticed_before_and_while_writing(server, model, get, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        with pytest.raises(UsageError, match="300,000 bytes are to come, 1,000 are free; .*FASTINV_CACHE"):
            get(model)
    assert files(model, tmp_path) == []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PART, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot write \S+/weights.pkl.part: File too large"):
            get(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not cache_path(model, tmp_path).exists()
    assert get(model).read_bytes() == CONTENT  # continued


def test_a_folder_that_cannot_be_written(server, model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write .*Not a directory; free space or rights, or set FASTINV_CACHE"):
        fetch(model, lambda model: True, cache=tmp_path / "file")
    assert server.requests == []


def test_the_cache_folder_is_the_default(server, model, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTINV_CACHE", str(tmp_path / "here"))
    assert fetch(model, lambda model: True) == tmp_path / "here/checkpoints/family/weights/weights.pkl"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("typed, accepted", [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_the_licence_is_asked_for(typed, accepted, server, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    if accepted:
        assert fetch_on_terminal(model, False, tmp_path).read_bytes() == CONTENT
    else:
        with pytest.raises(UsageError, match="its licence was not accepted"):
            fetch_on_terminal(model, False, tmp_path)
    assert len(server.requests) == accepted
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("Download it under this licence?") == 1


def test_without_a_terminal_the_licence_must_be_accepted_beforehand(server, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UsageError, match="--yes accepts its licence .Testers only"):
        fetch_on_terminal(model, False, tmp_path)
    assert server.requests == []
    assert fetch_on_terminal(model, True, tmp_path).read_bytes() == CONTENT
    assert fetch_on_terminal(model, False, tmp_path).read_bytes() == CONTENT  # here already: nothing to accept
