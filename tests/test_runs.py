"""Folders of results: killed at any moment, continued, added to, shared by processes."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastinv
from fastinv.checkpoints import save_network
from fastinv.cli import main
from fastinv.errors import UsageError
from fastinv.files import save_tensors
from fastinv.inversion import invert
from fastinv.inversion.checkpoint import Checkpoints
from fastinv.inversion.locks import LOCK, locked
from fastinv.inversion.manifest import DONE, FAILED, MANIFEST, PENDING, Manifest, Picture, difference
from fastinv.inversion.runs import RESULTS, STATE, WORK, Run
from fastinv.models.stylegan2 import Generator

ROOT = Path(__file__).parent.parent
SETTINGS = {"method": "m", "options": {"steps": 3, "rate": 0.1}, "dtype": "float32", "threads": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------ the folder, with work that only writes what it was given


def pictures(folder: Path, names: str, content: str = "") -> list[Picture]:
    """Files <name>.png, and what a command says of them."""
    made = []
    for name in names:
        path = folder / f"{name}.png"
        if content or not path.exists():
            path.write_text(f"picture {name} {content}")
        made.append(Picture(str(path), fastinv.checkpoints.load.file_sha256(path)))
    return made


def compute(run: Run, batch, where: Path, bad: str = "") -> list[str]:
    """Work on a batch; the names of its pictures."""
    failures = {}
    for picture in batch.pictures:
        if Path(picture.path).stem in bad:
            failures[picture.path] = "it is bad"
            continue
        home = where / RESULTS / picture.folder
        home.mkdir(parents=True, exist_ok=True)
        save_tensors(home / "latent.safetensors", {"w_plus": torch.zeros(1, 2, 3)}, "latent code", {})
        content = {"content": Path(picture.path).read_text(), "settings": {"picture": picture.path}}
        (home / "result.json").write_text(json.dumps(content))
    run.finish(batch, failures)
    return [Path(picture.path).stem for picture in batch.pictures]


def work(folder: Path, names: str, size=2, bad="", content="", **options) -> list[list[str]]:
    """A whole command; the batches that it computed."""
    run = Run(folder / "out")
    given = pictures(folder, names, content)
    run.plan(options.pop("settings", SETTINGS), given, size, "command", **options)
    done = [compute(run, batch, where, bad) for batch, where in run.batches([picture.path for picture in given])]
    run.close()
    return ["".join(one) for one in done]


def states(folder: Path) -> dict[str, str]:
    return {Path(one.path).stem: one.state for one in Manifest.read(folder / "out").pictures()}


def content(folder: Path, name: str) -> str:
    return json.loads((folder / "out" / name / "result.json").read_text())["content"]


def test_finished_pictures_are_not_done_again(folder):
    assert work(folder, "abc") == ["ab", "c"]
    assert work(folder, "abc") == [] and work(folder, "ca") == []
    assert work(folder, "adbe", size=3) == ["de"]  # new ones are added
    assert states(folder) == dict.fromkeys("abcde", DONE)
    assert [len(batch.pictures) for batch in Manifest.read(folder / "out").batches] == [2, 1, 2]
    assert not (folder / "out" / WORK).exists()


def test_what_is_done_again(folder):
    work(folder, "abcd")
    pictures(folder, "a", "anew")  # its content has changed
    shutil.rmtree(folder / "out/b")  # its result is gone
    assert work(folder, "abcd") == ["ab"]
    assert content(folder, "a") == "picture a anew"
    assert work(folder, "cd", overwrite=True) == ["cd"]
    assert work(folder, "abcd") == []
    assert sorted(batch.number for batch in Manifest.read(folder / "out").batches) == [2, 3]


def test_failed_pictures_are_noted_and_tried_again(folder):
    assert work(folder, "abc", size=3, bad="b") == ["abc"]
    assert states(folder) == {"a": DONE, "b": FAILED, "c": DONE}
    (failed,) = [one for one in Manifest.read(folder / "out").pictures() if one.state == FAILED]
    assert failed.reason == "it is bad" and not (folder / "out/b").exists()
    assert work(folder, "abc") == ["b"]
    assert states(folder) == dict.fromkeys("abc", DONE)
    assert all(one.reason == "" for one in Manifest.read(folder / "out").pictures())


def test_other_settings_are_refused(folder):
    work(folder, "ab")
    other = {**SETTINGS, "options": {"steps": 3, "rate": 0.2}}
    with pytest.raises(UsageError, match=r"rate 0.1, not 0.2; use another --out, or --overwrite"):
        work(folder, "ab", settings=other)
    assert work(folder, "b", settings=other, overwrite=True) == ["b"]
    assert states(folder) == {"b": DONE}  # the manifest is that of the new settings ...
    assert content(folder, "a") == "picture a "  # ... but nothing is removed
    assert work(folder, "ab", settings=other) == ["a"]
    with pytest.raises(UsageError, match="rate 0.2, not 0.1"):
        work(folder, "ab")


def test_settings_that_have_made_nothing_do_not_stand_in_the_way(folder):
    other = {**SETTINGS, "method": "n"}
    assert work(folder, "ab", bad="ab") == ["ab"]
    assert work(folder, "ab", settings=other, bad="b") == ["ab"]
    with pytest.raises(UsageError, match='method "n", not "m"'):
        work(folder, "ab")


@pytest.mark.parametrize("sign", ["state", "lock"])
def test_settings_of_work_under_way_are_kept(folder, sign):
    run = Run(folder / "out")
    run.plan(SETTINGS, pictures(folder, "ab"), 2, "command")
    where = folder / "out" / WORK / "0"
    (where / (STATE if sign == "state" else "")).mkdir(parents=True)
    with locked(where / LOCK, wait=False) if sign == "lock" else locked(folder / "none", wait=False):
        with pytest.raises(UsageError, match="method"):
            work(folder, "ab", settings={**SETTINGS, "method": "n"})
    assert work(folder, "ab") == ["ab"]


def test_dtype_and_threads_are_decided_once(folder):
    auto = {**SETTINGS, "dtype": "auto"}
    work(folder, "a", settings=auto, choose_dtype=lambda: ("bfloat16", "it is fast"))
    manifest = Manifest.read(folder / "out")
    assert (manifest.settings["dtype"], manifest.why_dtype) == ("bfloat16", "it is fast")
    run = Run(folder / "out")
    run.plan({**auto, "threads": 7}, pictures(folder, "a"), 2, "command", choose_dtype=pytest.fail)
    assert run.settings["threads"] == 2 and run.settings["dtype"] == "bfloat16"
    work(folder, "ab", settings={**SETTINGS, "dtype": "bfloat16"})
    with pytest.raises(UsageError, match='dtype "bfloat16", not "float32"'):
        work(folder, "ab")


def test_the_first_difference_is_named():
    assert difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}) == ""
    assert difference({"a": 1, "versions": {"torch": "2"}}, {"a": 1, "versions": {"torch": "3"}}) == (
        'versions: torch "2", not "3"'
    )
    assert difference({"options": {"layers": None}}, {"options": {"layers": list(range(50))}}).endswith("...")
    assert difference({}, {"new": 1}) == "new null, not 1"


def test_a_batch_under_way_stays_what_it_is(folder):
    run = Run(folder / "out")
    run.plan(SETTINGS, pictures(folder, "abc"), 3, "command")
    assert work(folder, "cx", size=1) == ["abc", "x"]  # c is part of it, so it is done whole
    assert states(folder) == dict.fromkeys("abcx", DONE)


def test_a_batch_under_way_whose_pictures_changed_is_dropped(folder):
    run = Run(folder / "out")
    run.plan(SETTINGS, pictures(folder, "abc"), 3, "command")
    pictures(folder, "b", "anew")
    (folder / "c.png").unlink()
    assert work(folder, "a", size=1) == ["a"]
    assert states(folder) == {"a": DONE, "b": PENDING}  # b waits for a command that names it; c is no more
    assert work(folder, "b") == ["b"] and content(folder, "b") == "picture b anew"


def test_a_result_for_a_dropped_batch_is_dropped_too(folder):
    slow = Run(folder / "out")
    given = pictures(folder, "ab")
    slow.plan(SETTINGS, given, 2, "command")
    for batch, _ in slow.batches([given[0].path]):
        pictures(folder, "a", "anew")
        other = Run(folder / "out")
        other.plan(SETTINGS, pictures(folder, "ab"), 2, "command")
        slow.finish(batch, {})
        break
    assert states(folder) == dict.fromkeys("ab", PENDING)
    assert work(folder, "ab") == ["ab"] and content(folder, "a") == "picture a anew"


def test_halves(folder):
    run = Run(folder / "out")
    given = pictures(folder, "abcdex")
    run.plan(SETTINGS, given, 5, "command")
    done = []
    for batch, where in run.batches([picture.path for picture in given]):
        if len(batch.pictures) > 2:
            (where / STATE).mkdir()
            run.split(batch)
            assert not (where / STATE).exists()
        else:
            done.append("".join(compute(run, batch, where)))
    assert done == ["ab", "c", "de", "x"]
    assert run.close().next == 6 and states(folder) == dict.fromkeys("abcdex", DONE)


def test_work_that_was_not_handed_back_is_an_error(folder):
    run = Run(folder / "out")
    given = pictures(folder, "a")
    run.plan(SETTINGS, given, 5, "command")
    with pytest.raises(RuntimeError, match="neither finished nor split"):
        for _ in run.batches([given[0].path]):
            pass


def test_two_share_a_folder(folder):
    """The second takes what the first does not hold, then waits for that, and takes it over."""
    given, said = pictures(folder, "abc"), []
    first, second = Run(folder / "out"), Run(folder / "out", waiting=said.append)
    paths = [picture.path for picture in given]
    first.plan(SETTINGS, given, 1, "command")
    second.plan(SETTINGS, given, 1, "command")
    held = first.batches(paths)
    assert next(held)[0].number == 0
    others = second.batches(paths)
    done = []
    for batch, where in others:
        done += compute(second, batch, where)
        if len(done) == 2:
            break
    assert done == ["b", "c"] and not said
    with locked(folder / "out" / WORK / "0" / LOCK, wait=False) as mine:
        assert not mine
    second.waiting = lambda line: (said.append(line), held.close())  # as if it died
    for batch, where in others:
        done += compute(second, batch, where)
    assert done == ["b", "c", "a"] and len(said) == 1 and "waiting for another process" in said[0]
    second.close()
    assert states(folder) == dict.fromkeys("abc", DONE) and not (folder / "out" / WORK).exists()


def test_settings_that_change_under_a_process_stop_it(folder):
    run = Run(folder / "out")
    given = pictures(folder, "ab")
    run.plan(SETTINGS, given, 1, "command")
    batches = run.batches([picture.path for picture in given])
    compute(run, *next(batches))
    Run(folder / "out").plan({**SETTINGS, "method": "n"}, given, 1, "command", overwrite=True)
    with pytest.raises(UsageError, match="another command has changed the settings"):
        next(batches)


def test_folder_names(folder):
    run = Run(folder / "out")
    (folder / "out/taken").mkdir(parents=True)
    (folder / "out/taken/result.json").write_text('{"settings": {"picture": "/another.png"}}')
    (folder / "out/file").touch()
    names = [
        "/a/X.png",
        "/b/x.png",
        "/c/taken.png",
        "/d/file.png",
        "/e/manifest.json.png",
        "/f/.fastinv.png",
        "/g/...png",
    ]
    given = [Picture(name, "0") for name in names]
    run.plan(SETTINGS, given, 9, "command")
    assert [picture.folder for picture in Manifest.read(folder / "out").pictures()] == [
        "X", "x-2", "taken-2", "file-2", "manifest.json-2", ".fastinv-2", "picture",
    ]  # fmt: skip


def test_other_files_stay_and_old_frames_go(folder):
    work(folder, "a")
    home = folder / "out/a"
    (home / "mine.txt").write_text("keep me")
    (home / "frames").mkdir()
    (home / "frames/00000.png").touch()
    (home / "progress.gif").touch()
    work(folder, "a", overwrite=True)
    assert sorted(path.name for path in home.iterdir()) == ["latent.safetensors", "mine.txt", "result.json"]


def test_a_manifest_that_is_none(folder):
    (folder / "out").mkdir()
    for text in ("", "{}", "[]", '{"format": 99}', '{"format": 1, "settings": {}, "batches": [{"wrong": 1}]}'):
        (folder / "out" / MANIFEST).write_text(text)
        with pytest.raises(UsageError, match="no manifest of ours"):
            work(folder, "a")


# --------------------------------------------------------------------------------------------------------- inversions

STEPS = 40


@pytest.fixture(scope="session")
def here(tmp_path_factory) -> Path:
    """A folder with a small generator, 16 x 16, and twenty pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    save_network(Generator(16, 8, 8, channels={4: 4, 8: 4, 16: 4}), folder / "tiny.safetensors")
    for number in range(20):
        values = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"p{number:02d}.png")
    return folder


def invert_command(here: Path, count: int, *more, steps=STEPS) -> list[str]:
    paths = [here / f"p{number:02d}.png" for number in range(count)]
    arguments = ["invert", *paths, "--generator", here / "tiny.safetensors", "--set", "perceptual_weight=0", "--quiet"]
    return [str(one) for one in [*arguments, "--steps", steps, "--checkpoint-seconds", 0, "--out", "out", *more]]


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def jobs():
    """jobs({"folder": ..., "arguments": ..., "after": ..., "at": ...}, ...): see killed_commands.py."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/killed_commands.py"],
        env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def run(*jobs) -> list[int]:
        for job in jobs:
            job["folder"] = str(job["folder"])
            Path(job["folder"]).mkdir(exist_ok=True)
        server.stdin.write(json.dumps(jobs) + "\n")
        server.stdin.flush()
        return json.loads(server.stdout.readline())

    assert run() == []  # it has started
    yield run
    server.stdin.close()
    server.wait()


def undisturbed(jobs, folder: Path, arguments: list[str]) -> tuple[dict[str, bytes], float]:
    """Files of a run in a folder of its own, and the seconds that it took."""
    started = time.monotonic()
    assert jobs({"folder": folder, "arguments": arguments}) == [0], (folder / "job0.err").read_text()
    return all_files(folder / "out"), time.monotonic() - started


def finished(out: Path) -> dict[str, tuple]:
    """What must not change any more: folder -> which file its result.json is."""
    manifest = Manifest.read(out)
    facts = {}
    for picture in manifest.pictures() if manifest else []:
        if picture.state == DONE:
            there = os.stat(out / picture.folder / "result.json")
            facts[picture.folder] = there.st_ino, there.st_mtime_ns
    return facts


def killed_at_random(
    jobs, folder: Path, arguments: list[str], whole: dict, kills: int, seconds: float, seed: int
) -> None:
    """Kill a command at its work so many times; what it ends with must be ``whole``, which takes so many seconds."""
    started = time.monotonic()
    assert jobs({"folder": folder, "arguments": arguments}) == [0]
    overhead = time.monotonic() - started  # nothing was left to do
    longest = overhead + 2 * (seconds - overhead) / kills
    dice, met, runs = random.Random(seed), 0, 0
    while met < kills:  # where chance or the machine lets it end too soon, it is run in another folder
        runs += 1
        assert runs < 10
        where, kept, status = folder.parent / f"killed-{runs}", {}, [-9]
        while met < kills and status == [-9]:
            status = jobs({"folder": where, "arguments": arguments, "after": dice.uniform(0.0, longest)})
            met += status == [-9]
            now = finished(where / "out")
            assert kept.items() <= now.items()  # nothing that was finished is lost, or computed again
            kept = now
        if status == [-9]:
            assert jobs({"folder": where, "arguments": arguments}) == [0], (where / "job0.err").read_text()
        assert kept.items() <= finished(where / "out").items()
        assert all_files(where / "out") == whole


def test_killed_at_random_moments(here, jobs, tmp_path):
    arguments = invert_command(here, 4, "--batch", 2, "--every", 10, "--video", "gif", "--json")
    whole, seconds = undisturbed(jobs, tmp_path / "whole", arguments)
    names = {"latent.safetensors", "reconstruction.png", "comparison.png", "result.json", "progress.gif"}
    frames = {f"frames/{step:05d}.png" for step in range(0, STEPS + 1, 10)}
    assert set(whole) == {MANIFEST, *(f"p0{number}/{name}" for number in range(4) for name in names | frames)}
    killed_at_random(jobs, tmp_path / "whole", arguments, whole, 6, seconds, seed=1)


def killed_at(jobs, folder: Path, arguments: list[str], at: int) -> dict[str, bytes]:
    """Files of a run that was killed before one of its file operations, and continued."""
    assert jobs({"folder": folder, "arguments": arguments, "at": at}) == [-9]
    kept = finished(folder / "out")
    assert jobs({"folder": folder, "arguments": arguments}) == [0], (folder / "job0.err").read_text()
    assert kept.items() <= finished(folder / "out").items()
    return all_files(folder / "out")


def test_killed_before_file_operations(here, jobs, tmp_path):
    arguments = invert_command(here, 2, "--batch", 1, "--every", 5, "--video", "gif", steps=10)
    whole, _ = undisturbed(jobs, tmp_path / "whole", arguments)
    operations = int((tmp_path / "whole/job0.count").read_text())
    assert operations > 50
    for at in random.Random(2).sample(range(operations), 4):
        assert killed_at(jobs, tmp_path / str(at), arguments, at) == whole, at


@pytest.mark.slow
def test_killed_before_every_file_operation(here, jobs, tmp_path):
    arguments = invert_command(here, 1, "--every", 10, "--video", "gif", steps=10)
    whole, _ = undisturbed(jobs, tmp_path / "whole", arguments)
    for at in range(int((tmp_path / "whole/job0.count").read_text())):
        assert killed_at(jobs, tmp_path / str(at), arguments, at) == whole, at


@pytest.mark.slow
def test_fifty_kills_of_twenty_pictures(here, jobs, tmp_path):
    arguments = invert_command(here, 20, "--batch", 4, "--every", 50, steps=400)
    whole, seconds = undisturbed(jobs, tmp_path / "whole", arguments)
    assert len(whole) == 1 + 20 * (4 + 9)
    killed_at_random(jobs, tmp_path / "whole", arguments, whole, 50, seconds, seed=3)


def log(folder: Path, job: int) -> list[dict]:
    return [json.loads(line) for line in (folder / f"job{job}.out").read_text().splitlines()]


def test_two_processes_on_one_folder(here, jobs, tmp_path):
    arguments = invert_command(here, 4, "--batch", 1, "--json", steps=60)
    whole, seconds = undisturbed(jobs, tmp_path / "whole", arguments)
    both = {"folder": tmp_path / "both", "arguments": arguments}
    assert jobs(dict(both), dict(both)) == [0, 0]
    assert all_files(tmp_path / "both/out") == whole
    own = []
    for job in (0, 1):
        events = log(tmp_path / "both", job)
        own.append({one["folder"] for one in events if one["event"] == "picture" and one["seconds"] is not None})
        assert {one["folder"] for one in events if one["event"] == "picture"} == {f"out/p0{n}" for n in range(4)}
        assert events[-1]["event"] == "end" and events[-1]["done"] == 4
    assert own[0] | own[1] == {f"out/p0{number}" for number in range(4)} and not own[0] & own[1]
    assert own[0] and own[1]
    one = {"folder": tmp_path / "one", "arguments": arguments}
    statuses = jobs({**one, "after": 0.3 * seconds}, dict(one))  # the other takes over what the killed one held
    assert statuses == [-9, 0]
    assert all_files(tmp_path / "one/out") == whole


def run_here(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    return main([str(one) for one in arguments]), *capsys.readouterr()


def test_out_of_memory_halves_the_batch(here, folder, capsys, monkeypatch):
    sizes, poison = [], []

    def hungry(G, images, **options):
        sizes.append(len(images))
        if len(images) > 2 or any(torch.equal(image, bad) for image in images for bad in poison):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 TiB")
        return invert(G, images, **options)

    monkeypatch.setattr("fastinv.inversion.invert", hungry)
    status, out, err = run_here(capsys, *invert_command(here, 5, steps=3))
    assert status == 0 and len(out.splitlines()) == 5
    assert sizes == [5, 3, 2, 1, 2]
    assert err.splitlines() == [
        "fastinv: out of memory with 5 pictures at a time; trying 3",
        "fastinv: out of memory with 3 pictures at a time; trying 2",
    ]
    assert not (folder / "out" / WORK).exists()

    poison.append(fastinv.data.pictures.load_picture(here / "p01.png", 16))
    status, out, err = run_here(capsys, *invert_command(here, 3, "--overwrite", steps=3))
    assert status == 1 and len(out.splitlines()) == 2
    assert "p01.png: out of memory even with one picture at a time; use --dtype bfloat16" in err
    (failed,) = [one for one in Manifest.read(folder / "out").pictures() if one.state == FAILED]
    assert failed.path.endswith("p01.png") and "out of memory" in failed.reason


def test_a_picture_whose_loss_is_not_finite_fails_alone(here, folder, capsys, monkeypatch):
    bad = fastinv.data.pictures.load_picture(here / "p01.png", 16)

    class Poisoned(fastinv.losses.PixelLoss):
        def __init__(self, target, mask=None):
            factor = torch.tensor([torch.nan if torch.equal(one, bad) else 1.0 for one in target])
            super().__init__(target * factor[:, None, None, None], mask)

    monkeypatch.setitem(sys.modules["fastinv.inversion.objective"].PIXEL_LOSSES, "mse", Poisoned)
    status, out, err = run_here(capsys, *invert_command(here, 3, steps=12))
    assert status == 1 and [line.split()[0] for line in out.splitlines()] == ["out/p00", "out/p02"]
    assert "p01.png: the loss is not finite after 0 steps" in err and "1 of 3 pictures failed" in err
    (failed,) = [one for one in Manifest.read(folder / "out").pictures() if one.state == FAILED]
    assert "not finite" in failed.reason
    monkeypatch.undo()
    os.chdir(folder)
    status, out, err = run_here(capsys, *invert_command(here, 3, steps=12))
    assert status == 0 and not err
    assert ["(was there)" in line for line in out.splitlines()] == [False, True, True]


def test_changed_settings_and_changed_pictures(here, folder, capsys):
    shutil.copytree(here, folder / "mine")
    mine = folder / "mine"
    assert run_here(capsys, *invert_command(mine, 2, steps=3))[0] == 0
    before = all_files(folder / "out")
    status, out, err = run_here(capsys, *invert_command(mine, 2, steps=4))
    assert (status, out) == (2, "") and "out holds results with steps 3, not 4; use another --out" in err
    for more, says in (
        (["--seed", 1], "seed 0, not 1"), (["--set", "learning_rate=0.1"], "learning_rate 0.05, not 0.1"),
        (["--crop", "pad"], "crop"), (["--mask", mine / "p05.png"], "mask null, not"), (["--space", "w"], "space"),
        (["--dtype", "bfloat16"], "dtype"), (["--every", 2], "every null, not 2"),
    ):  # fmt: skip
        status, out, err = run_here(capsys, *invert_command(mine, 2, *more, steps=3))
        assert (status, out) == (2, "") and says in err, err
    assert all_files(folder / "out") == before
    shutil.copy(mine / "p07.png", mine / "p01.png")
    status, out, err = run_here(capsys, *invert_command(mine, 2, steps=3))
    assert status == 0 and sorted(line.endswith("(was there)") for line in out.splitlines()) == [False, True]
    after = all_files(folder / "out")
    assert after["p00/result.json"] == before["p00/result.json"]
    assert after["p01/latent.safetensors"] != before["p01/latent.safetensors"]


def memory() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_two_thousand_steps_leave_memory_flat(tmp_path):
    torch.manual_seed(0)
    G = Generator(8, 8, 8, channels={4: 4, 8: 4})
    seen = {}

    def callback(step, losses, images):
        if step % 250 == 0:
            seen[step] = memory()

    target = torch.rand(1, 3, 8, 8) * 2 - 1
    checkpoints = Checkpoints(tmp_path, 0.1)
    invert(G, target, steps=2000, perceptual_weight=0, progress=False, callback=callback, checkpoints=checkpoints)
    assert max(seen.values()) - seen[250] < 4 * 2**20, seen
