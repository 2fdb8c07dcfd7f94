"""docs/methods: a page for every method; its numbers are those that were measured, its defaults those of the code."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from fastinv.cli.inversion import _shown_default
from fastinv.inversion import METHODS

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs/methods"
RESULTS = [ROOT / "benchmarks/results" / name for name in ("inversion", "encoders")]
METHOD_PAGES = sorted(METHODS)

# column of a page -> (entry of a result, how it is printed)
COLUMNS = {
    "PSNR (dB)": ("psnr", "{:.1f}"),
    "SSIM": ("ssim", "{:.3f}"),
    "features": ("features", "{:.3g}"),
    "attributes": ("attributes", "{:.3g}"),
    "edited": ("edited", "{:.1%}"),
    "lec": ("lec", "{:.3g}"),
    "seconds": ("seconds", "{:.3g}"),
    "steps": ("steps", "{:.0f}"),
}


def tables(page: str, first: str) -> list[dict[str, str]]:
    """The rows of all tables of a page whose first column has this name."""
    found, head = [], None
    for line in (PAGES / page).read_text().splitlines() + [""]:
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            head = None
        elif head is None:
            head = cells
        elif head[0] == first and not set(line) <= set("|-:"):
            found.append(dict(zip(head, cells, strict=True)))
    return found


def measured(row: str) -> dict:
    """What was measured of a row of the benchmark; that of a method is its default's."""
    names = [f"{row.replace(' ', '_')}{suffix}.json" for suffix in ("", "_w+")]
    path = next(path for name in names for folder in RESULTS if (path := folder / name).exists())
    return json.loads(path.read_text())


def check_numbers(row: dict[str, str], name: str, columns) -> None:
    result = measured(name)
    for column in columns:
        key, form = COLUMNS[column]
        expected = form.format(result[key]).replace("%", " %") if key in result else ""
        assert row[column] == expected, f"{name}, {column}"


def test_there_is_a_page_for_every_method():
    assert {path.stem for path in PAGES.glob("*.md")} == {"README", *METHOD_PAGES}


def test_the_index_has_every_page_and_its_numbers():
    rows = {re.fullmatch(r"\[`(.*)`\]\(\1\.md\)", row["method"])[1]: row for row in tables("README.md", "method")}
    assert sorted(rows) == METHOD_PAGES
    for name, row in rows.items():
        check_numbers(row, name, ("PSNR (dB)", "seconds"))


@pytest.mark.parametrize("method", METHOD_PAGES)
def test_numbers_are_those_that_were_measured(method):
    rows = tables(f"{method}.md", "row")
    assert rows[0]["row"].split()[0] == method
    for row in rows:
        assert {"PSNR (dB)", "seconds"} <= set(row)
        check_numbers(row, row["row"], set(row) - {"row"})
        count = measured(row["row"])["count"]
        assert f"Means of {count} held-out" in (PAGES / f"{method}.md").read_text()


@pytest.mark.parametrize("method", METHOD_PAGES)
def test_options_and_defaults_are_those_of_the_method(method):
    defaults = {field.name: _shown_default(field.default) for field in dataclasses.fields(METHODS[method])}
    rows = tables(f"{method}.md", "option")
    assert rows
    for row in rows:
        name = row["option"].strip("`")
        assert row["default"].strip("`") == defaults[name], name


@pytest.mark.parametrize("method", METHOD_PAGES)
def test_a_page_has_its_command_and_its_picture(method):
    text = (PAGES / f"{method}.md").read_text()
    assert re.search(rf"^ {{4}}fastinv invert portrait\.png --method {re.escape(method)} ", text, re.MULTILINE)
    picture = f"../pictures/method-{method}.png"
    assert f"]({picture})" in text
    with Image.open(PAGES / picture) as image:
        assert image.width == 768  # of three pictures side by side
