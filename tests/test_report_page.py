"""The page of results: what it shows, what it does with damage, and how it behaves in a real browser."""

import base64
import io
import json
import os
import re
import time
from html import unescape

import numpy as np
import pytest
import torch
from browser import PHONE, broken_pictures, chromium, open_page, overflow  # noqa: F401
from PIL import Image

from fastinv.cli import main
from fastinv.cli.batches import save
from fastinv.data.pictures import to_pillow
from fastinv.errors import UsageError
from fastinv.inversion import InversionResult
from fastinv.inversion.manifest import DONE, FAILED, Batch, Manifest, Picture
from fastinv.report import comparison, report
from fastinv.report.comparison import AMPLIFICATION, target_in
from fastinv.report.page import DAMAGED, PLOT, POINTS, curve

HOSTILE = "<img src=x onerror=alert(1)>.png"
PSNR = {"a.png": 31.5, "b.png": 9.25, HOSTILE: 100.0}
FAILURE = 'the loss is "not finite" after 7 steps'


def one_result(psnr=30.0, size=64, count=1, seed=0):
    """(targets, result) of random pictures."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 3, size, size, generator=random) * 2 - 1
    images = (targets + 0.2 * torch.randn(targets.shape, generator=random)).clamp(-1, 1)
    total = torch.logspace(0, -2, 11, dtype=torch.float64)[:, None].expand(11, count)
    losses = {"total": total, "pixel": total / 4}
    metrics = {
        "psnr": [psnr] * count,
        "mse": [0.01] * count,
        "loss_perceptual": [0.25] * count,
        "best_step": [9] * count,
    }
    settings = {"method": "image2stylegan", "options": {"steps": 10, "note": "</script><b>"}, "trunk": {"name": "none"}}
    return targets, InversionResult(torch.zeros(count, 4, 8), images, losses, metrics, settings)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three results with a manifest, one of them with two edits; a failed picture, and one that waits."""
    out = tmp_path_factory.mktemp("page") / "results"
    pictures = []
    for number, (name, psnr) in enumerate(PSNR.items()):
        targets, result = one_result(psnr, seed=number)
        result.settings["picture"] = f"/photos/{name}"
        save(result, targets[0], out / f"r{number}", name)
        pictures.append(Picture(f"/photos/{name}", "0", f"r{number}", state=DONE))
    for edit, strengths in (("smile", [-1, 0, 1.5]), ("glasses", [2])):
        folder = out / "r0/edits" / edit
        folder.mkdir(parents=True)
        Image.new("RGB", (64 * len(strengths), 64), "teal").save(folder / "strip.png")
        (folder / "edit.json").write_text(json.dumps({"direction": edit, "strengths": strengths}))
    (out / "r0/edits/smile/pictures").mkdir()
    for name, blue in (("-1", 10), ("0", 20), ("+1.5", 30)):
        Image.new("RGB", (64, 64), (0, 0, blue)).save(out / f"r0/edits/smile/pictures/{name}.png")
    pictures += [
        Picture("/photos/lost.png", "0", "lost", state=FAILED, reason=FAILURE),
        Picture("/photos/next.png", "0"),
    ]
    Manifest({}, batches=[Batch(0, "fastinv invert", pictures)]).write(out)
    return out


@pytest.fixture(scope="module")
def page_file(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "report.html"
    report(results, path, title="Title & <more>")
    return path


def pictures_of(text):
    """{alternative text: Pillow image} of a page."""
    found = re.findall(r'<img[^>]*? src="data:image/\w+;base64,([^"]*)"[^>]*? alt="([^"]*)"', text)
    return {unescape(alt): Image.open(io.BytesIO(base64.b64decode(data))) for data, alt in found}


def test_the_pictures_are_those_of_the_results(page_file):
    shown = pictures_of(page_file.read_text())
    assert len(shown) == 3 * len(PSNR) + 4
    for number, name in enumerate(PSNR):
        targets, result = one_result(seed=number)
        target, made = (np.asarray(to_pillow(image[0])).astype(int) for image in (targets, result.images))
        assert np.array_equal(np.asarray(shown[f"target of {name}"]), target)
        assert np.array_equal(np.asarray(shown[f"reconstruction of {name}"]), made)
        difference = np.minimum(255, abs(target - made) * AMPLIFICATION)
        assert np.array_equal(np.asarray(shown[f"difference x {AMPLIFICATION} of {name}"]), difference)
    edits = [shown[f"smile {strength} of a.png"].getpixel((9, 9)) for strength in ("-1", "0", "+1.5")]
    assert edits == [(0, 0, 10), (0, 0, 20), (0, 0, 30)]
    assert shown["glasses glasses of a.png"].size == (64, 64)  # without pictures of its own: the strip


def test_the_text_says_all_and_is_escaped(page_file):
    text = page_file.read_text()
    assert "<img src=x" not in text and "</script><b>" not in text and "<title>Title &amp; &lt;more&gt;</title>" in text
    for part in (
        "9.25",
        "100.00",
        "perceptual loss",
        FAILURE.replace('"', "&#34;"),
        "mean PSNR",
        "46.92 dB",
        "pending",
    ):
        assert part in text, part
    assert text.count("image2stylegan") == 1, "settings that all share are said once"
    assert text.count("/photos/a.png") == 1, "and others with their picture"


def test_the_page_refers_to_nothing_outside(page_file):
    text = page_file.read_text()
    assert not re.search(r"""(src|href|url\(|action|data)\s*=?\s*["'(]?\s*(https?:|//|file:)""", text)
    assert "default-src 'none'; img-src data:; script-src 'sha256-" in text


def test_the_same_results_give_the_same_bytes(results, page_file, tmp_path):
    report(results, tmp_path / "again.html", title="Title & <more>")
    assert (tmp_path / "again.html").read_bytes() == page_file.read_bytes()


@pytest.mark.parametrize("size", [16, 64, 128, 256, 320])
@pytest.mark.parametrize("names", [None, ["x", "y"]])
def test_a_target_comes_back_from_its_comparison(size, names):
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 5, 5) * 2 - 1, size, mode="bicubic").clamp(-1, 1)
    sheet = comparison(smooth, torch.zeros_like(smooth), [{}, {}], names=names)
    for row in range(2):
        back = np.asarray(target_in(sheet, size, size, row)).astype(int)
        wrong = abs(back - np.asarray(to_pillow(smooth[row])).astype(int))
        factor = -(-320 // size)
        assert wrong.max() == 0 if factor % 2 else wrong.mean() < 2
    assert target_in(sheet, size, size, 2) is None
    assert target_in(sheet.crop((0, 0, sheet.width - 1, sheet.height)), size, size) is None


def test_damage_costs_no_other_picture(tmp_path):
    def damage(name, break_it):
        targets, result = one_result()
        save(result, targets[0], tmp_path / name, name)
        break_it(tmp_path / name)

    def rewrite(part, value):
        def change(folder):
            document = json.loads((folder / "result.json").read_text())
            (folder / "result.json").write_text(json.dumps(document | {part: value}))

        return change

    damage("good", lambda folder: None)
    damage("cut", lambda folder: (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:99]))
    damage("deep", lambda folder: (folder / "result.json").write_text("[" * 100_000))
    damage("code", lambda folder: (folder / "latent.safetensors").write_bytes(b"\0" * 300))
    damage("no picture", lambda folder: (folder / "reconstruction.png").unlink())
    damage("short picture", lambda folder: (folder / "reconstruction.png").write_bytes(b"\x89PNG"))
    damage("metrics", rewrite("metrics", {"psnr": []}))
    damage("losses", rewrite("losses", {"total": [1, 2]}))
    damage("settings", rewrite("settings", 5))
    damage("odd values", rewrite("metrics", {"psnr": [None], "mse": ["x"], "new": [{"a": 1}]}))
    damage("sheet", lambda folder: (folder / "comparison.png").write_bytes(b"no picture"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "manifest.json").write_text("{")
    entries = {entry.name: entry for entry in report(tmp_path, tmp_path / "report.html")}
    states = {name: entry.state for name, entry in entries.items()}
    fine = {"good": DONE, "odd values": DONE}
    assert states == {name: DAMAGED for name in states} | fine and len(states) == 11
    assert all(entries[name].reason for name in states if name not in fine)
    text = (tmp_path / "report.html").read_text()
    assert "manifest.json is no manifest" in text
    assert len(pictures_of(text)) == 3 * len(fine)


def test_results_of_python_and_edits_alone(tmp_path):
    _, result = one_result(count=2)
    result.save(tmp_path / "batch")
    Image.new("RGB", (640, 128)).save(tmp_path / "only.png")
    (tmp_path / "mix").mkdir()
    Image.new("RGB", (640, 128)).save(tmp_path / "mix/strip.png")
    (tmp_path / "edited/edits/age").mkdir(parents=True)
    Image.new("RGB", (640, 128)).save(tmp_path / "edited/edits/age/strip.png")
    entries = report(tmp_path, tmp_path / "report.html")
    assert [entry.name for entry in entries] == ["batch, 1 of 2", "batch, 2 of 2", "edited", "mix"]
    shown = pictures_of((tmp_path / "report.html").read_text())
    assert list(shown) == [f"reconstruction of batch, {row} of 2" for row in (1, 2)] + [
        "age age of edited",
        " mix of mix",
    ]
    assert np.array_equal(np.asarray(shown["reconstruction of batch, 2 of 2"]), np.asarray(to_pillow(result.images[1])))
    alone = report(tmp_path / "batch", tmp_path / "alone.html")  # one result, by its own folder
    assert [entry.name for entry in alone] == ["batch, 1 of 2", "batch, 2 of 2"]


def test_names_that_are_no_text_cost_no_page(tmp_path):
    odd = os.fsdecode(b"a\xff")  # a file name need not be UTF-8
    targets, result = one_result()
    result.settings["picture"] = f"/photos/{odd}.png"
    save(result, targets[0], tmp_path / "a", odd)
    (tmp_path / odd).mkdir()
    with open(os.path.join(os.fspath(tmp_path), odd, "strip.png"), "wb") as file:
        Image.new("RGB", (64, 64)).save(file, "PNG")
    report(tmp_path, tmp_path / "report.html", title=odd)
    assert r"/photos/a\udcff.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_large_pictures_and_many(tmp_path):
    targets, result = one_result(size=300)
    for number in range(3):
        save(result, targets[0], tmp_path / f"r{number}", "x")
    report(tmp_path, tmp_path / "report.html", size=150, limit=2)
    text = (tmp_path / "report.html").read_text()
    shown = pictures_of(text)
    assert len(shown) == 6 and "The first 2 of 3" in text
    assert {(picture.size, picture.format) for picture in shown.values()} == {((150, 150), "JPEG")}
    report(tmp_path, tmp_path / "report.html", limit=0)
    assert not pictures_of((tmp_path / "report.html").read_text())


def test_what_is_refused(tmp_path, results):
    for arguments, message in (
        ((tmp_path / "none", tmp_path / "x.html"), "no folder"),
        ((tmp_path, tmp_path / "x.html"), "no results in"),
        ((results, tmp_path / "x.html", None, 8), "size must be a whole number of at least 16, not 8"),
        ((results, tmp_path / "x.html", None, 64, -1), "limit must"),
        ((results, tmp_path / "no" / "x.html"), "cannot write"),
    ):
        with pytest.raises(UsageError, match=message):
            report(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_curves():
    width, height = PLOT
    drawn = curve({"total": [1.0, 0.1, 0.01], "noise": [0.1, None, 0.1]}, ["total", "noise"])
    first, second = drawn["lines"]
    assert first["path"] == f"M0.0,0.0L{width / 2:.1f},{height / 2:.1f}L{width:.1f},{height:.1f}"
    assert second["path"] == f"M0.0,{height / 2:.1f}M{width:.1f},{height / 2:.1f}", "a gap"
    assert [(mark["text"], mark["y"]) for mark in drawn["marks"]] == [("0.01", height), ("0.1", height / 2), ("1", 0)]
    assert drawn["text"] == "loss from 1 to 0.01 in 2 steps"
    assert curve({"total": [1.0]}, ["total"]) is None and curve({}, ["total"]) is None
    assert curve({"total": [0.0, -1.0, None]}, ["total"]) is None
    assert curve({"total": [1e308, 1e308, 5e-324, 5e-324, "x"]}, ["total"]) is None
    assert curve({"total": [2.0, 2.0]}, ["total"])["lines"][0]["path"].count(f",{height / 2:.1f}") == 2
    long = curve({"total": [1 / (step + 1) for step in range(5001)]}, ["total"])["lines"][0]["path"]
    assert long.count("L") <= POINTS and long.count("M") == 1 and f"L{width:.1f}," in long


def test_the_command(results, tmp_path, capsys):
    (tmp_path / "r").mkdir()
    targets, result = one_result()
    save(result, targets[0], tmp_path / "r/one", "one")
    (tmp_path / "r/bad").mkdir()
    (tmp_path / "r/bad/result.json").write_text("")
    assert main(["report", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path}/r/report.html") and said.err.startswith("fastinv: bad: cannot be read")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == 2
    assert "no results in" in capsys.readouterr().err


# In the browser ------------------------------------------------------------------------------------------------------


def column(page, number):
    return page.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def test_the_page_in_a_browser(page_file, open_page):  # noqa: F811
    page, seen = open_page(page_file.as_uri())
    assert page.locator("img").count() == 3 * len(PSNR) + 4 and broken_pictures(page) == []
    assert page.locator(".plot svg[role=img]").count() == len(PSNR)
    assert overflow(page) == 0
    assert seen.problems == [] and seen.requests == [page_file.as_uri()]

    headings = page.locator("thead th").all_inner_texts()
    assert headings[:4] == ["picture", "state", "PSNR (dB)", "MSE"]
    names = list(PSNR)
    page.get_by_role("button", name="PSNR").click()
    assert column(page, 1) == [names[1], names[0], names[2], "lost.png", "next.png"]
    assert page.locator("thead th").nth(2).get_attribute("aria-sort") == "ascending"
    assert page.locator(".card h3").all_inner_texts() == [names[1], names[0], names[2]]  # the pictures go with it
    page.get_by_role("button", name="PSNR").click()
    assert column(page, 1) == [names[2], names[0], names[1], "lost.png", "next.png"]  # without a number: at the end

    page.get_by_role("button", name="PSNR").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert column(page, 1) == sorted(column(page, 1), key=str.lower) and column(page, 1)[0] == HOSTILE
    page.keyboard.press("Space")
    assert column(page, 1)[-1] == HOSTILE
    states = [page.locator("thead th").nth(number).get_attribute("aria-sort") for number in range(3)]
    assert states == ["descending", "none", "none"]

    page.get_by_role("link", name="b.png").click()
    assert page.locator(".card:target h3").inner_text() == "b.png"
    assert seen.problems == [] and seen.requests == [page_file.as_uri()]


def test_the_policy_holds(page_file, open_page):  # noqa: F811
    page, seen = open_page(page_file.as_uri())
    page.evaluate(
        """() => {
            const picture = document.createElement("img");
            picture.src = "https://example.com/x.png";
            document.body.append(picture);
            const script = document.createElement("script");
            script.textContent = "window.hacked = true";
            document.body.append(script);
        }"""
    )
    until = time.monotonic() + 30
    while len(seen.problems) < 2 and time.monotonic() < until:
        page.wait_for_timeout(50)
    assert page.evaluate("window.hacked") is None
    assert len(seen.problems) == 2 and all("Content Security Policy" in problem for problem in seen.problems)
    assert seen.requests == [page_file.as_uri()]


def test_the_page_on_a_phone_and_in_the_dark(page_file, open_page):  # noqa: F811
    page, seen = open_page(page_file.as_uri(), PHONE, has_touch=True, is_mobile=True, color_scheme="dark")
    assert page.evaluate("window.innerWidth") == PHONE[0] and overflow(page) == 0
    for summary in page.locator("summary").all():  # with everything unfolded, too
        summary.click()
    assert overflow(page) == 0 and seen.problems == []
    page.get_by_role("button", name="MSE").tap()
    assert page.locator("thead th").nth(3).get_attribute("aria-sort") == "ascending"
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert sum(map(int, re.findall(r"\d+", dark))) < 150 and sum(map(int, re.findall(r"\d+", light))) > 700
    assert page.evaluate("getComputedStyle(document.images[0]).imageRendering") == "pixelated"
