"""The page without a browser: the queue, the guard, what a tab does, and the server as a program talks to it."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastinv.checkpoints import load_generator, network_hash
from fastinv.cli import main
from fastinv.editing.apply import edit
from fastinv.editing.direction import Direction
from fastinv.editing.mix import mix
from fastinv.errors import PictureError, UsageError
from fastinv.files import load_tensors
from fastinv.latents import KIND, load_codes
from fastinv.ui import markup, server
from fastinv.ui.guard import Guard, elsewhere, local, refusal
from fastinv.ui.jobs import Queue
from fastinv.ui.studio import Studio, Tabs, choices, layer_ranges

ROOT = Path(__file__).parent.parent
# Runs the command line; whatever it wants from another machine is refused, and told on standard error.
OFFLINE = """
import ipaddress, signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a script ignores Ctrl-C
def watched(original):
    def run(self, address):
        if self.family != socket.AF_UNIX and not ipaddress.ip_address(address[0]).is_loopback:
            print("NETWORK", address, file=sys.stderr, flush=True)
            raise OSError("no network in this test")
        return original(self, address)
    return run
def looked_up(host, *rest, original=socket.getaddrinfo, **options):
    if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", b"localhost", b"127.0.0.1"):
        print("NETWORK", host, file=sys.stderr, flush=True)
        raise OSError("no network in this test")
    return original(host, *rest, **options)
socket.socket.connect, socket.socket.connect_ex = watched(socket.socket.connect), watched(socket.socket.connect_ex)
socket.getaddrinfo = looked_up
from fastinv.cli import main
sys.exit(main())
"""


@contextmanager
def running_page(folder: Path, *arguments):
    """`fastinv ui` in a process of its own, with temporary files in a folder: (address, process)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTINV_")}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}
    command = [sys.executable, "-c", OFFLINE, "ui", "--port", "0", *arguments]
    with open(folder / "stderr.txt", "w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        said = [process.stdout.readline() for _ in range(2)]
        found = re.match(r"(http://127\.0\.0\.1:\d+) ", said[1])
        assert found, said + [(folder / "stderr.txt").read_text()]
        yield found[1], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ended(process, folder: Path, number=signal.SIGINT) -> int:
    """The exit status after a signal; nothing is left in the folder but what the process said."""
    process.send_signal(number)
    status = process.wait(60)
    left = [path.name for path in folder.iterdir() if path.name.startswith("fastinv-ui-")]
    assert left == []
    return status


# ---- the queue


@pytest.fixture
def queue():
    made = Queue()
    yield made
    made.close()


def test_jobs_run_one_after_the_other(queue):
    running, order, go = [], [], threading.Event()

    def work(number):
        def run(job):
            running.append(number)
            assert running == [number]
            go.wait(10)
            order.append(number)
            running.remove(number)
            return number * 10

        return run

    jobs = [queue.submit(work(number)) for number in range(3)]
    while jobs[0].state == "waiting":
        time.sleep(0.001)
    assert [job.place for job in jobs] == [0, 1, 2]
    go.set()
    assert all(job.wait(10) for job in jobs)
    assert order == [0, 1, 2] and [job.result for job in jobs] == [0, 10, 20]
    assert {job.state for job in jobs} == {"done"} and [job.place for job in jobs] == [0, 0, 0]


def steps(job):
    """Work without an end, until it is cancelled."""
    job.latest = 0
    while not job.cancelled:
        job.latest += 1
        time.sleep(0.001)
    return "the best so far"


def test_a_cancelled_job_frees_the_queue(queue):
    first, second, third = queue.submit(steps), queue.submit(steps), queue.submit(lambda job: "third")
    while not first.latest:
        time.sleep(0.001)
    second.cancel()  # it never runs
    assert second.ended and (second.state, second.result, second.latest) == ("cancelled", None, None)
    assert third.place == 1
    first.cancel()
    assert first.wait(5) and (first.state, first.result) == ("cancelled", "the best so far")
    assert third.wait(5) and third.result == "third"
    third.cancel()  # too late
    assert third.state == "done"


def test_a_failing_job_says_why_and_does_not_stop_the_next(queue, caplog):
    def fail(error):
        def work(job):
            raise error

        return work

    clear = queue.submit(fail(UsageError("steps must be 1")))
    odd = queue.submit(fail(ZeroDivisionError("by zero\nmore")))
    memory = queue.submit(fail(RuntimeError("cannot allocate memory: 9 bytes")))
    after = queue.submit(lambda job: 5)
    assert after.wait(5) and after.result == 5
    assert (clear.state, clear.error) == ("failed", "steps must be 1")
    assert odd.error == "unexpected ZeroDivisionError: by zero; please report it"
    assert memory.error.startswith("out of memory")
    assert "by zero" in caplog.text and "steps must be 1" not in caplog.text


def test_a_full_and_a_closed_queue_refuse():
    queue = Queue(longest=3)
    jobs = [queue.submit(steps)]
    while not jobs[0].latest:
        time.sleep(0.001)
    jobs += [queue.submit(steps) for _ in range(3)]
    with pytest.raises(UsageError, match="3 pictures are waiting already"):
        queue.submit(steps)
    queue.close()
    assert [job.state for job in jobs] == ["cancelled"] * 4
    with pytest.raises(UsageError, match="stopping"):
        queue.submit(steps)


# ---- the guard


@pytest.mark.parametrize(
    "host, welcome",
    [
        ("127.0.0.1:7860", True), ("localhost:7860", True), ("LOCALHOST:7860", True), ("[::1]:7860", True),
        ("127.0.0.1", True), ("localhost:9", True),  # the other end of a tunnel
        ("evil.example", False), ("evil.example:7860", False), ("127.0.0.1.evil.example:7860", False),
        ("localhost.evil.example", False), ("127.0.0.1@evil.example", False), ("evil@127.0.0.1", False),
        ("127.0.0.2:7860", False), ("0.0.0.0:7860", False), ("127.0.0.1:port", False), ("127.0.0.1:99999", False),
        ("127.0.0.1/evil.example", False), ("127.0.0.1?", False), ("", False), ("[::1", False), ("lo\xe7al", False),
    ],
)  # fmt: skip
def test_hosts(host, welcome):
    assert local(host.encode("latin1")) is welcome


HERE, OTHER = b"http://127.0.0.1:7860", b"http://evil.example"


@pytest.mark.parametrize(
    "method, headers, welcome",
    [
        ("GET", {}, True),
        ("GET", {b"sec-fetch-site": b"same-origin"}, True),
        ("GET", {b"sec-fetch-site": b"none"}, True),  # typed, or a bookmark
        ("GET", {b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"navigate"}, True),  # a link
        ("GET", {b"sec-fetch-site": b"cross-site", b"sec-fetch-mode": b"no-cors"}, False),  # an <img> elsewhere
        ("GET", {b"sec-fetch-site": b"same-site", b"sec-fetch-mode": b"cors"}, False),  # another port
        ("GET", {b"origin": OTHER}, False),
        ("POST", {b"origin": HERE}, True),
        ("POST", {b"origin": OTHER}, False),
        ("POST", {b"origin": b"http://127.0.0.1:3000"}, False),
        ("POST", {b"origin": b"https://127.0.0.1:7860"}, False),
        ("POST", {b"origin": b"null"}, False),
        ("POST", {}, False),
        ("POST", {b"origin": HERE, b"sec-fetch-site": b"cross-site"}, False),
        ("DELETE", {}, False),
        (None, {b"origin": HERE}, True),
        (None, {b"origin": OTHER}, False),
        (None, {}, False),
        ("GET", {b"host": b"evil.example"}, False),
        ("POST", {b"host": b"evil.example", b"origin": b"http://evil.example"}, False),  # a name that points here
    ],
)
def test_requests_of_other_pages_are_refused(method, headers, welcome):
    headers = {name: [value] for name, value in ({b"host": b"127.0.0.1:7860"} | headers).items()}
    assert (refusal(method, headers) is None) is welcome
    assert refusal(method, headers | {b"host": headers[b"host"] * 2}) is not None


def asked(app, method="GET", headers=(), chunks=(b"",), kind="http", path="/"):
    """What an ASGI application answers: (status, headers, body)."""
    scope = {"type": kind, "method": method, "path": path, "headers": [(b"host", b"localhost:1"), *headers]}
    if kind == "websocket":
        del scope["method"]
    body = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    body[-1]["more_body"] = False
    messages, sent = iter(body), []

    async def receive():
        return {"type": "websocket.connect"} if kind == "websocket" else next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(app({**scope}, receive, send))
    if kind == "websocket":
        return sent
    found = dict(sent[0]["headers"])
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


async def echo(scope, receive, send):
    """Reads all of a body, then says how long it was."""
    if scope["type"] == "websocket":
        return await send({"type": "websocket.accept"})
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the other end has gone")
        length, more = length + len(message["body"]), message["more_body"]
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"X-Frame-Options", b"ALLOW"), (b"a", b"b")]}
    )
    await send({"type": "http.response.body", "body": str(length).encode()})


def test_bodies_end_at_the_limit():
    app, own = Guard(echo, body_limit=100), [(b"origin", b"http://localhost:1")]
    assert asked(app, "POST", own, [b"x" * 60, b"x" * 40])[::2] == (200, b"100")
    assert asked(app, "POST", own, [b"x" * 60, b"x" * 41])[0] == 413
    assert asked(app, "POST", [*own, (b"content-length", b"101")])[0] == 413
    for length in (b"-1", b"many", b""):
        assert asked(app, "POST", [*own, (b"content-length", length)])[0] == 413
    with pytest.raises(ConnectionError):  # the application's own errors come through

        async def gone(scope, receive, send):
            raise ConnectionError

        asked(Guard(gone, 100))


def test_the_server_asks_no_other_host():
    for path in ("file=https://example.com/a.png", "file=http://a", "file/https://a", "proxy=https://a", "proxy=/a"):
        assert elsewhere("/gradio_api/" + path), path
    for path in ("/", "/config", "/gradio_api/file=/tmp/a/b.png", "/gradio_api/queue/join", "/assets/file=x.js"):
        assert elsewhere(path) is None, path
    assert asked(Guard(echo), path="/gradio_api/file=https://example.com/")[0] == 403


def test_answers_keep_the_page_to_itself():
    status, headers, _ = asked(Guard(echo))
    assert status == 200 and headers[b"a"] == b"b"
    assert headers[b"x-frame-options"] == b"DENY" and b"X-Frame-Options" not in headers
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
    status, headers, body = asked(Guard(echo), "POST")
    assert (status, headers[b"x-frame-options"]) == (403, b"DENY") and b"Origin" in body
    assert asked(Guard(echo), headers=[(b"origin", OTHER)], kind="websocket")[0]["type"] == "websocket.close"
    own = [(b"origin", b"http://localhost:1")]
    assert asked(Guard(echo), headers=own, kind="websocket")[0]["type"] == "websocket.accept"


# ---- what a tab does


@pytest.fixture(scope="module")
def studio(generator_file):
    G = load_generator(generator_file)
    random = torch.Generator().manual_seed(0)
    directions = {
        name: Direction(name, "w", torch.randn(8, generator=random), strength=2.0) for name in ("smile", "tail length")
    }
    made = Studio(G, directions)
    yield made
    made.close()


@pytest.fixture(scope="module")
def target(studio):
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    return studio.picture({"w_plus": studio.G.mapping(z)}).clamp(-1, 1)


@pytest.fixture(scope="module")
def inverted(studio, target):
    job = studio.invert(target, studio.quick, 12)
    assert job.wait(60) and job.state == "done", job.error
    return job.result


def test_an_inversion_shows_how_it_goes(studio, target, inverted):
    last = inverted.progress
    assert (last.step, last.steps, len(last.curve)) == (12, 12, 13)
    assert last.psnr > last.curve[0] and last.psnr == pytest.approx(max(last.curve), abs=0.5)
    torch.testing.assert_close(last.picture, studio.picture(inverted.codes), atol=0, rtol=0)
    assert replace(last) != last  # another one is news, whatever it holds
    mse = (last.picture.clamp(-1, 1) - target).square().mean().item()
    assert last.psnr == pytest.approx(10 * np.log10(4 / mse), abs=0.01)


def test_a_cancelled_inversion_keeps_the_best_so_far(studio, target):
    job = studio.invert(target, studio.quick, 5000)
    while job.latest is None:
        time.sleep(0.001)
    job.cancel()
    step = job.latest.step
    assert job.wait(10) and job.state == "cancelled"
    assert step <= job.latest.step < 5000 and job.result.settings["stopped"]
    assert studio.picture(job.result.codes).shape == target.shape


@pytest.mark.parametrize("number", [0, -1, 1.5, 5001, float("nan"), float("inf")])
def test_odd_steps_are_refused(studio, target, number):
    with pytest.raises(UsageError, match="steps must be a whole number from 1 to 5000"):
        studio.invert(target, studio.quick, number)


def test_edits_are_those_of_the_library(studio, inverted):
    codes, other = inverted.codes, {"w_plus": inverted.codes["w_plus"].flip(1)}
    same = studio.edit(codes, {"smile": 0.0}, other, ["coarse"], 0.0)
    assert torch.equal(same["w_plus"], codes["w_plus"])
    made = studio.edit(codes, {"smile": 1.5, "tail length": -1.0}, other, ["coarse"], 0.25)
    by_hand = mix(studio.G, codes, other, "0-3", 0.25)
    for name, strength in (("smile", 1.5), ("tail length", -1.0)):
        by_hand = edit(studio.G, by_hand, studio.directions[name], strength)
    assert torch.equal(made["w_plus"], by_hand["w_plus"]) and not torch.equal(made["w_plus"], codes["w_plus"])
    for bad in ({"strengths": {"nonesuch": 1.0}}, {"strengths": {}, "other": other, "layers": ["nonesuch"]}):
        with pytest.raises(UsageError, match="nonesuch"):
            studio.edit(codes, **bad)
    with pytest.raises(UsageError, match="finite"):
        studio.edit(codes, {"smile": float("nan")})


def test_the_latent_file_says_what_was_done(studio, inverted, tmp_path):
    path = tmp_path / "latent.safetensors"
    path.write_bytes(studio.latent_file(inverted.codes, inverted.settings, {"directions": {"smile": 1.5}}))
    assert torch.equal(load_codes(path)["w_plus"], inverted.codes["w_plus"])
    facts = load_tensors(path, KIND)[1]
    assert facts["generator_sha256"] == network_hash(studio.G)
    assert facts["edits"] == {"directions": {"smile": 1.5}} and facts["preset"] == "fast"


def test_a_direction_of_another_generator_is_refused(studio):
    other = replace(studio.directions["smile"], generator_sha256="0" * 64)
    with pytest.raises(UsageError, match="is for the generator 0000"):
        Studio(studio.G, {"smile": other})


def test_tabs_are_apart_and_stop_what_runs_for_them(studio, target):
    tabs = Tabs(most=2)
    with pytest.raises(UsageError, match="no picture yet"):
        tabs["a"].begin(studio, studio.quick, 5)
    tabs["a"].load(target)
    tabs["b"].load(-target)
    assert torch.equal(tabs["a"].target, target) and torch.equal(tabs["b"].target, -target)
    first = tabs["a"].begin(studio, studio.quick, 5000)
    with pytest.raises(UsageError, match="already"):
        tabs["a"].begin(studio, studio.quick, 5)
    second = tabs["b"].begin(studio, studio.quick, 5000)
    tabs["a"].load(target)  # another picture: what runs is for nothing
    assert first.wait(10) and tabs["a"].inverted is None
    assert not tabs["a"].end(first)
    assert tabs["a"].inverted is None  # it was of the picture before
    third = tabs["a"].begin(studio, studio.quick, 3)
    tabs.close("b")
    assert second.wait(10) and third.wait(20)
    assert tabs["a"].end(third)
    assert tabs["a"].inverted is third.result
    tabs["c"].load(target)
    tabs["d"].load(target)
    assert len(tabs) == 2 and tabs["a"].target is None
    tabs.close("nonesuch")


def test_pictures_that_cannot_be_read_are_told_by_their_own_name(studio, tmp_path):
    (tmp_path / "my cat.png").write_bytes(b"nothing")
    with pytest.raises(PictureError, match="^my cat.png: not a picture"):
        studio.read(tmp_path / "my cat.png")
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    assert studio.read(tmp_path / "red.png").shape == (3, 16, 16)


def test_choices_and_layers():
    faces64 = choices(load_generator("faces64"))
    assert list(faces64) == ["at once", "balanced", "best"]
    assert faces64["at once"].arguments == {"method": "psp"} and not faces64["at once"].steps
    assert layer_ranges(10) == {"coarse": (0, 4), "middle": (4, 8), "fine": (8, 10)}
    assert layer_ranges(18) == {"coarse": (0, 4), "middle": (4, 8), "fine": (8, 18)}
    assert layer_ranges(6) == {"coarse": (0, 4), "middle": (4, 6)}


# ---- what it looks like


def test_pictures_are_within_the_page(inverted):
    picture = inverted.progress.picture
    text = markup.result(picture, b"latent")
    png = base64.b64decode(re.search(r'src="data:image/png;base64,([^"]+)"', text)[1])
    assert (
        np.abs(
            np.asarray(Image.open(io.BytesIO(png))) - (picture.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        ).max()
        <= 0.51
    )
    assert 'download="latent.safetensors"' in text and base64.b64encode(b"latent").decode() in text
    assert "fi-crisp" in text and "fi-crisp" not in markup.picture(torch.zeros(3, 512, 512), "")
    large = base64.b64decode(re.search(r"base64,([^\"]+)", markup.picture(torch.zeros(3, 1024, 1024), ""))[1])
    assert Image.open(io.BytesIO(large)).size == (512, 512)
    assert "download=" not in markup.result(None) and "aria-disabled" not in text


def test_what_others_say_stays_text():
    assert markup.status("<img src=x onerror=alert(1)>", "error").count("<") == 2
    assert "<script" not in markup.picture(torch.zeros(3, 4, 4), '"><script>')
    assert "<b>" not in markup.numbers({"<b>": "<b>"}) + markup.picture(None, "", "<b>")


def test_a_curve_shows_values_over_steps(inverted):
    points = re.search(r'points="([^"]+)"', markup.curve([10.0, 20.0, 15.0], 4))[1]
    x, y = zip(*([float(number) for number in point.split(",")] for point in points.split()))
    assert x == (0, 80, 160) and y[0] > y[2] > y[1] and y[2] == pytest.approx((y[0] + y[1]) / 2)
    assert markup.curve([10.0], 4) == "" and markup.curve([1.0, 1.0], 1)
    assert len(re.search(r'points="([^"]+)"', markup.curve(range(5000), 5000))[1].split()) <= 400
    assert f"{inverted.progress.psnr:.2f} dB" in markup.live(inverted.progress, "Done")


# ---- the command


def test_the_help_is_light(run_python):
    code = (
        "import sys; from fastinv.cli import main; main(['ui', '--help'])\n"
        "print([name for name in ('torch', 'gradio', 'numpy') if name in sys.modules])"
    )
    result = run_python(code)
    assert "--port" in result.stdout and result.stdout.endswith("[]\n"), result.stderr


def test_wrong_usage_is_one_line(capsys, monkeypatch):
    assert main(["ui", "--port", "65536"]) == 2
    assert "--port must be from 0 to 65535, not 65536" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot use port {number}: Address already in use"):
            server.listen(number)
    monkeypatch.setitem(sys.modules, "gradio", None)
    before = dict(os.environ)
    assert main(["ui", "--port", "0"]) == 2
    assert "pip install 'fastinv[ui]'" in capsys.readouterr().err
    assert dict(os.environ) == before


def test_the_next_free_port_is_taken():
    with server.listen(None) as first, server.listen(None) as second:
        numbers = [opened.getsockname() for opened in (first, second)]
    assert {host for host, _ in numbers} == {"127.0.0.1"}
    assert server.FIRST <= numbers[0][1] < numbers[1][1] < server.FIRST + server.PORTS


class Client:
    """A program that talks to the page as its own scripts do."""

    def __init__(self, address: str):
        self.address, self.session = address, "a-test"
        self.config = json.loads(self.get("/config")[1])

    def get(self, path: str, **headers):
        return self.send("GET", path, None, **headers)

    def send(self, method: str, path: str, body: bytes | None, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, body: bytes, kind="application/json", **headers):
        return self.send("POST", path, body, **{"Origin": self.address, "Content_Type": kind} | headers)

    def call(self, event: int, trigger: int, data: list) -> None:
        """Have an event of the page happen, and wait for the end of it."""
        body = {"data": data, "fn_index": event, "session_hash": self.session, "trigger_id": trigger, "event_data": {}}
        status, said = self.post("/gradio_api/queue/join", json.dumps(body).encode())
        assert status == 200, said
        status, stream = self.get(f"/gradio_api/queue/data?session_hash={self.session}")
        assert status == 200 and b"process_completed" in stream


@pytest.mark.slow
def test_the_server_reads_and_serves_nothing_else(generator_file, tmp_path):
    pytest.importorskip("gradio")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 20)).save(secret)
    with running_page(tmp_path, "--generator", str(generator_file)) as (address, process):
        client = Client(address)
        # its own pictures can be read, and nothing else: GRADIO_ALLOWED_PATHS of whoever started it does not count
        gallery = next(c for c in client.config["components"] if c["props"].get("elem_id") == "picture-examples")
        own = gallery["props"]["value"][0]["image"]["path"]
        assert client.get(f"/gradio_api/file={own}")[0] == 200
        for path in ("/etc/passwd", ROOT / "README.md", "README.md", secret, f"{Path(own).parent}/../../../secret.png"):
            status, body = client.get(f"/gradio_api/file={path}")
            assert status in (403, 404), (path, status)
        for path in ("/gradio_api/proxy=https://a.example/", "/monitoring", "/openapi.json", "/docs"):
            assert client.get(path)[0] >= 400, path
        assert client.get("/gradio_api/file=https://a.example/b.png") == (403, b"fastinv: other hosts are not asked\n")

        # who asks
        assert client.get("/", Host="evil.example")[0] == 403
        assert client.get("/", Origin="http://evil.example")[0] == 403
        assert client.post("/gradio_api/queue/join", b"{}", Origin=None)[0] == 403
        assert client.post("/gradio_api/queue/join", b"{}", Origin="http://evil.example")[0] == 403
        assert client.post("/gradio_api/upload", b"", Content_Length=str(21 * 2**20))[0] == 413

        # a file that was not uploaded is not taken, whatever a program names as the input of whatever event
        events = client.config["dependencies"]
        for number, event in enumerate(events):
            path = (str(secret), "/etc/passwd", "README.md")[number % 3]
            data = {"path": path, "meta": {"_type": "gradio.FileData"}}
            client.call(event["id"], event["targets"][0][0], [data] * len(event["inputs"]))
        assert len(events) > 8
        served = [path.name for path in Path(own).parents[1].rglob("*") if path.is_file()]
        assert served and not {"secret.png", "passwd", "README.md"} & set(served)
        assert secret.exists()

        assert "NETWORK" not in (tmp_path / "stderr.txt").read_text()
        assert ended(process, tmp_path) == 130
    assert (tmp_path / "stderr.txt").read_text().splitlines()[-1] == "fastinv: interrupted"
