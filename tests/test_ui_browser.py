"""The page in a real browser: a picture goes in, converges before one's eyes, is cancelled, edited, mixed, downloaded.

`python tests/test_ui_browser.py` takes the screenshots of docs/pictures anew.
"""

import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from browser import DESKTOP, PHONE, browser_page, chromium, open_page, overflow, running_chromium  # noqa: F401
from test_ui import ended, running_page

from fastinv.checkpoints import load_generator
from fastinv.data import faces
from fastinv.data.pictures import save_picture
from fastinv.files import load_tensors
from fastinv.inversion.weights import render
from fastinv.latents import KIND, load_codes

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SECONDS = 120_000  # milliseconds: this machine may be busy
SOURCE = "() => document.querySelector('#result img')?.getAttribute('src') ?? ''"


@pytest.fixture(scope="module")
def page_at(tmp_path_factory, chromium):  # noqa: F811
    """The address of a page with faces64; at the end, what its server said and left."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("served")
    with running_page(folder) as (address, process):
        yield address
        assert ended(process, folder) == 130
    said = (folder / "stderr.txt").read_text().splitlines()
    assert said == ["fastinv: interrupted"]


@pytest.fixture
def opened(page_at, open_page):  # noqa: F811
    """opened(size) -> page; its console is quiet and it asks nobody else, looked at when the test is over."""
    everything = []

    def open_one(size=DESKTOP, **context):
        page, seen = open_page(page_at, size, allowed=lambda url: url.startswith(page_at + "/"), **context)
        page.set_default_timeout(SECONDS)
        page.wait_for_selector("#start")
        everything.append(seen)
        return page

    yield open_one
    for seen in everything:
        # a warning of Gradio's own scripts, at every upload
        assert seen.refused == [] and set(seen.problems) <= {"Method not implemented."}
        assert all(url.startswith(page_at) for url in seen.requests)


@pytest.fixture(scope="module")
def render_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("render") / "render.png"
    save_picture(faces.sample(1, seed=5, split="heldout")[0][0], path)
    return path


def said(page) -> str:
    return page.locator("#live [role=status]").inner_text()


def wait_for(page, text: str) -> None:
    page.wait_for_function(f"() => document.querySelector('#live [role=status]').innerText.includes({text!r})")


def drop(page, path: Path, name: str = "picture") -> None:
    page.locator(f"#{name}-file input[type=file]").set_input_files(path)


def result(page, changed_from: str = "") -> str:
    """The address of the edited picture, once it is another one than before."""
    page.wait_for_function(f"before => ({SOURCE})() !== before", arg=changed_from)
    return page.evaluate(SOURCE)


def downloaded(page, name: str) -> Path:
    with page.expect_download() as download:
        page.locator(f"#result a[download='{name}']").click()
    assert download.value.suggested_filename == name
    return Path(download.value.path())


@pytest.mark.slow
def test_from_a_picture_to_an_edited_one(opened, render_file, tmp_path):
    page = opened()
    drop(page, render_file)
    wait_for(page, "Ready")
    page.locator("#picture img").wait_for()
    page.locator("#steps input").fill("3000")
    page.locator("#start").click()

    # numbers and picture change while it runs
    seen, until = {}, time.monotonic() + SECONDS / 1000
    look = """() => [document.querySelector('#live dd').innerText,
        document.querySelector('#live img')?.getAttribute('src')]"""
    while len(set(seen.values()) - {None}) < 3 and time.monotonic() < until:
        step, picture = page.evaluate(look)
        seen[step] = picture
        page.wait_for_timeout(50)
    assert len(set(seen.values()) - {None}) >= 3, list(seen)
    assert page.locator("#start").is_disabled()
    page.locator("#cancel").click()
    wait_for(page, "Cancelled: the best so far is kept")
    step = int(page.locator("#live dd").first.inner_text().split()[0])
    assert 0 < step < 3000
    before = result(page)

    # to the end
    page.locator("#steps input").fill("30")
    page.locator("#start").click()
    wait_for(page, "Done in")
    assert page.locator("#live dd").first.inner_text() == "30 of 30"
    assert float(page.locator("#live dd").nth(1).inner_text().split()[0]) > 25
    assert page.locator("#live polyline").count() == 1
    plain = result(page, before)

    # a slider, by the keyboard
    page.get_by_role("tab", name="Face").click()
    slider = page.locator("#edit-smile input[type=range]")
    began = time.monotonic()
    slider.press("ArrowRight")
    right = result(page, plain)
    assert time.monotonic() - began < 20  # well under a second, unless the machine is busy
    slider.press("End")
    smiling = result(page, right)
    page.locator("#reset").click()
    page.wait_for_function(f"plain => ({SOURCE})() === plain", arg=plain)  # exactly as before
    slider.press("End")
    page.wait_for_function(f"smiling => ({SOURCE})() === smiling", arg=smiling)

    # another picture to mix with
    page.get_by_role("tab", name="Mix").click()
    page.locator("#other-examples button").nth(1).click()
    mixed = result(page, smiling)
    assert "Mixing with this picture" in page.locator("#other-message").inner_text()
    page.get_by_label("Coarse").check()
    page.wait_for_function(f"before => ({SOURCE})() !== before", arg=mixed)

    # what is downloaded is what is seen
    page.wait_for_timeout(1500)
    picture = Image.open(downloaded(page, "picture.png"))
    path = downloaded(page, "latent.safetensors")
    codes = load_codes(path)
    G = load_generator("faces64")
    pixels = (np.asarray(picture).astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)
    assert picture.size == (64, 64) and codes["w_plus"].shape == (1, G.num_ws, G.w_dim)
    again = render(G, codes)[0].clamp(-1, 1).numpy()
    assert np.abs(again - pixels).max() < 2 / 255
    edits = load_tensors(path, KIND)[1]["edits"]
    assert list(edits["directions"]) == ["smile"] and edits["mix"]["layers"] == ["coarse", "middle"]


@pytest.mark.slow
def test_tabs_wait_for_each_other_and_know_their_own_pictures(opened, render_file):
    first, second = opened(), opened(PHONE)
    assert overflow(second) <= 0
    for page in (first, second):
        drop(page, render_file)
        wait_for(page, "Ready")
        page.locator("#steps input").fill("3000")
    first.locator("#start").click()
    wait_for(first, "Converging")
    second.locator("#start").click()
    wait_for(second, "Waiting: 1 before this one")
    first.locator("#cancel").click()
    wait_for(first, "Cancelled")
    wait_for(second, "Converging")
    second.close()  # what ran for it has to make room
    first.locator("#how label").first.click()
    first.locator("#start").click()
    wait_for(first, "Done in")
    assert first.locator("#live dd").first.inner_text() == "–"


@pytest.mark.slow
def test_what_is_no_picture_is_told_in_a_line(opened, render_file, tmp_path):
    page = opened()
    damaged, text = tmp_path / "cut.png", tmp_path / "text.png"
    damaged.write_bytes(render_file.read_bytes()[:900])
    text.write_text("no picture")
    page.locator("#start").click()
    wait_for(page, "There is no picture yet")
    for path, reason in ((text, "not a picture"), (damaged, "damaged or truncated")):
        drop(page, path)
        message = page.locator("#message [role=status]")
        page.wait_for_function(f"() => document.querySelector('#message').innerText.includes({path.name + ':'!r})")
        assert reason in message.inner_text()
    drop(page, render_file)
    wait_for(page, "Ready")
    assert page.locator("#message").inner_text().strip() == ""
    page.locator("#start").click()
    wait_for(page, "Converging")
    drop(page, damaged)  # which ends the work on the one before
    wait_for(page, "Choose a picture")
    page.locator("#start:not([disabled])").wait_for()  # that work has ended, and says nothing of it any more
    assert "Choose a picture" in said(page)


def take_screenshots() -> None:
    """docs/pictures/ui.png and ui-phone.png: an inverted and edited render."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_page(Path(name)) as (address, _),
        running_chromium() as browser,
    ):
        for size, file, tab in ((DESKTOP, "ui.png", "Face"), (PHONE, "ui-phone.png", "Mix")):
            own = {"allowed": lambda url: url.startswith(address + "/"), "device_scale_factor": 1}
            with browser_page(browser, address, size, **own) as (page, seen):
                page.set_default_timeout(SECONDS)
                page.locator("#picture-examples button").first.click()
                wait_for(page, "Ready")
                page.locator("#start").click()
                wait_for(page, "Done in")
                page.get_by_role("tab", name="Face").click()
                before = result(page)
                page.locator("#edit-smile input[type=range]").fill("1.5")
                before = result(page, before)
                if tab == "Mix":
                    page.get_by_role("tab", name="Mix").click()
                    page.locator("#other-examples button").nth(1).click()
                    result(page, before)
                page.mouse.move(0, 0)
                page.wait_for_timeout(1000)
                sheet = Image.open(io.BytesIO(page.screenshot(full_page=True)))
                sheet.convert("RGB").save(PICTURES / file, optimize=True)
                print(PICTURES / file, seen.problems, seen.refused)


if __name__ == "__main__":
    torch.set_num_threads(1)
    take_screenshots()
