"""Make the pictures of docs/tutorial.md and docs/report.md: python docs/pictures/make_tutorial.py [FOLDER]

Runs what the tutorial says, in order, in FOLDER (or a temporary one), and copies what it gave; about five minutes on
one core. The reports are photographed in chromium, see tests/browser.py.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "tests"))

from browser import DESKTOP, PHONE, browser_page, running_chromium  # noqa: E402
from test_docs import run_step, steps  # noqa: E402

WIDEST = 1100  # pixels of a picture in the docs
COPIED = {
    "anna": "results/anna/comparison.png",
    "astronaut": "results/astronaut/comparison.png",
    "tuned": "tuned/astronaut/comparison.png",
    "smile": "results/anna/edits/smile/strip.png",
    "glasses": "results/anna/edits/glasses/strip.png",
    "hair-hue": "tuned/astronaut/edits/hair_hue/strip.png",
    "hair-length": "tuned/astronaut/edits/hair_length/strip.png",
    "mix": "results/mix-anna-ben/strip.png",
    "interpolate": "results/interpolate-anna-ben/strip.png",
}


def main(folder: Path) -> None:
    os.chdir(folder)
    names = {}
    for kind, text in steps("docs/tutorial.md"):
        print("$", text.splitlines()[0], flush=True)
        run_step(kind, text, names)
    for name, file in COPIED.items():
        picture = Image.open(file).convert("RGB")
        picture.thumbnail((WIDEST, WIDEST))
        save(picture, f"tutorial-{name}")
    photograph(Path("results/report.html"))


def photograph(page_file: Path) -> None:
    """The report on a desktop, in the dark and on a telephone."""
    url = page_file.resolve().as_uri()
    with running_chromium() as browser:
        for name, size, options in (
            ("tutorial-report", (DESKTOP[0], 1500), {}),
            ("report", (DESKTOP[0], 1000), {}),
            ("report-dark", (DESKTOP[0], 1000), {"color_scheme": "dark"}),
            ("report-phone", (PHONE[0], 1800), {"device_scale_factor": 2}),
        ):
            with browser_page(browser, url, size, **options) as (page, seen):
                if seen.problems:
                    raise SystemExit(f"{url}: {seen.problems}")
                page.screenshot(path=f"{name}.png")
            save(Image.open(f"{name}.png").convert("RGB"), name)


def save(picture: Image.Image, name: str) -> None:
    """As a PNG of 256 colours, which nobody sees and which is a third of the size."""
    picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        given = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        main(given)
