"""One self-contained HTML page of a folder of results: pictures, metrics, loss curves, settings, failures.

The page asks for nothing: pictures are data URIs, style and script stand in it, and its Content-Security-Policy allows
just these. The same folder gives the same bytes.
"""

import base64
import hashlib
import io
import json
import math
import os
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image, ImageChops
from safetensors import safe_open

from fastinv.errors import UsageError
from fastinv.files import atomic_file, shown
from fastinv.inversion.manifest import DONE, Manifest
from fastinv.inversion.result import LATENT, PICTURE, RESULT
from fastinv.report.comparison import AMPLIFICATION, target_in

COMPARISON = "comparison.png"
EDITS, STRIP, EDIT, TILES = "edits", "strip.png", "edit.json", "pictures"  # as `fastinv edit` writes them
SIZE, LIMIT = 256, 500  # pixels of a picture's longer side; pictures of which more than numbers is shown
PIXELATED = 128  # pictures up to this size are shown with hard pixels, and stored as PNG
DAMAGED = "damaged"
PLOT = (300, 96)  # width and height of a loss curve, in units of its view box; the width is stretched on the page
POINTS = 200  # of a line in it, at most
STRIP_SIZES = 5  # times `size` is the longer side of a picture that shows several things
DECADES = 4  # below the highest loss that a plot reaches down to, at most

LABELS = {
    "psnr": "PSNR (dB)", "mse": "MSE", "psnr_masked": "PSNR in mask (dB)", "mse_masked": "MSE in mask",
    "loss_total": "loss", "best_step": "best step",
}  # fmt: skip


@dataclass
class Tile:
    """A picture on the page: its label, its address (a data URI) and its own size in pixels."""

    label: str
    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return max(self.width, self.height) <= PIXELATED


@dataclass
class Strip:
    """An edit with a tile for each strength, or one picture that shows several things."""

    label: str
    tiles: list[Tile]


@dataclass
class Entry:
    """A row of the page.

    Attributes:
        name: of the picture, or of the folder.
        state: "done", "failed" or "pending" as in the manifest; "damaged"; "" for what is made of codes: no inversion.
        reason: why it is not done.
        metrics: name -> number or text.
        settings: name -> text, those of options with "options." before them.
        losses: term -> values after each step, None where there is none.
        tiles: target, reconstruction and difference.
        strips: edits and other pictures.
    """

    name: str
    state: str = DONE
    reason: str = ""
    metrics: dict = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    losses: dict[str, list] = field(default_factory=dict)
    tiles: list[Tile] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)


def report(
    results: str | os.PathLike, out: str | os.PathLike, title: str | None = None, size: int = SIZE, limit: int = LIMIT
) -> list[Entry]:
    """Write the HTML page of a folder of results, as `fastinv invert` or `InversionResult.save` leave it.

    A result that cannot be read is a row that says why. An inversion takes about 40 kB at 64x64, and 100 kB from
    256x256 on with the default `size`; 500 of them, 20 or 50 MB, open within two seconds. Edits add to that.

    Args:
        results: the folder of a run, or of one result. Its subfolders with results, edits or a strip count, in the
            order of the manifest, then by name.
        out: the file to write.
        title: of the page; without one, the folder's name.
        size: pictures with a longer side are scaled down to it, in pixels; strips to five times that.
        limit: pictures, loss curves and edits are shown of so many results, numbers of all.

    Returns:
        What is on the page.

    Raises:
        UsageError: nothing to show in that folder, a bad argument, or `out` cannot be written.
    """
    results, out = Path(results), Path(out)
    for name, value, least in (("size", size, 16), ("limit", limit, 0)):
        if not isinstance(value, int) or value < least:
            raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if not results.is_dir():
        raise UsageError(f"{shown(results)} is no folder; give the --out of `fastinv invert`")
    entries, note = _entries(results, size, limit)
    if not entries:
        raise UsageError(f"no results in {shown(results)}; give the --out of `fastinv invert`")
    page = _page(entries, title or f"Inversions in {shown(results.resolve().name)}", note, limit)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # file names need not be UTF-8
    return entries


# Reading ------------------------------------------------------------------------------------------------------------


def _entries(results: Path, size: int, limit: int) -> tuple[list[Entry], str]:
    """(rows, what is wrong with the manifest)."""
    if (results / RESULT).is_file():
        return _read(results, results.resolve().name, size, limit), ""
    entries, known, note = [], set(), ""
    try:
        manifest = Manifest.read(results)
    except UsageError as error:
        manifest, note = None, str(error)
    for picture in manifest.pictures() if manifest else []:
        known.add(picture.folder)
        name = shown(Path(picture.path).name)
        if picture.state == DONE:
            entries += _read(results / picture.folder, name, size, limit - len(entries))
        else:
            entries.append(Entry(name, picture.state, picture.reason))
    for folder in sorted(path for path in results.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name not in known and _has_something(folder):
            entries += _read(folder, shown(folder.name), size, limit - len(entries))
    return entries, note


def _has_something(folder: Path) -> bool:
    files = (RESULT, PICTURE, LATENT, STRIP)
    return any((folder / name).is_file() for name in files) or any(folder.glob(f"{EDITS}/*/{STRIP}"))


def _read(folder: Path, name: str, size: int, limit: int) -> list[Entry]:
    """The rows of a folder: one for each picture of its result, or one for whatever pictures it holds."""
    try:
        entries = _result(folder, name, size, limit) if (folder / RESULT).is_file() else []
        if not entries and not (folder / STRIP).is_file() and not any(folder.glob(f"{EDITS}/*/{STRIP}")):
            raise FileNotFoundError(f"{RESULT} is missing")
    except Exception as error:  # a damaged file raises many types, and must not cost the others their page
        reason = " ".join(str(error).split()) or type(error).__name__
        entries = [Entry(name, DAMAGED, f"cannot be read: {reason}; invert the picture again")]
    entries = entries or [Entry(name, "")]
    if limit > 0:
        try:
            entries[0].strips = _strips(folder, size)
        except Exception as error:
            entries[0].reason = entries[0].reason or f"its edits cannot be read: {error}"
    return entries


def _result(folder: Path, name: str, size: int, limit: int) -> list[Entry]:
    document = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    with safe_open(folder / LATENT, "np") as file:  # looks at the header and the length of the file
        count = file.get_slice("w_plus").get_shape()[0]
    settings = _flat(document["settings"])
    metrics, losses = document["metrics"], document["losses"]
    picture = _opened(folder / PICTURE)
    width, height = picture.width // count, picture.height
    sheet = _opened(folder / COMPARISON) if (folder / COMPARISON).is_file() else None
    entries = []
    for row in range(count):
        entry = Entry(
            name if count == 1 else f"{name}, {row + 1} of {count}",
            metrics={key: values[row] for key, values in metrics.items()},
            settings=settings,
            losses={term: [values[row] for values in rows] for term, rows in losses.items()},
        )
        if row < limit:
            made = picture.crop((row * width, 0, (row + 1) * width, height))
            target = sheet and target_in(sheet, width, height, row)
            shows = [("reconstruction", made)]
            if target:
                difference = ImageChops.difference(target, made).point(lambda value: min(255, value * AMPLIFICATION))
                what = "aim" if "pictures" in document["settings"] else "target"  # of a local edit, made of several
                shows = [(what, target), *shows, (f"difference x {AMPLIFICATION}", difference)]
            entry.tiles = [_tile(label, image, size) for label, image in shows]
        entries.append(entry)
    return entries


def _strips(folder: Path, size: int) -> list[Strip]:
    """Edits of a picture, and what commands such as `fastinv mix` made of several."""
    strips = [_edit(path.parent, size) for path in sorted(folder.glob(f"{EDITS}/*/{STRIP}"))]
    if (folder / STRIP).is_file():
        strips.append(Strip("", [_tile(folder.name, _opened(folder / STRIP), size * STRIP_SIZES)]))
    return strips


def _edit(folder: Path, size: int) -> Strip:
    """An edit: its pictures by strength or, where these are not there, its strip."""
    label = shown(folder.name)
    try:
        strengths = json.loads((folder / EDIT).read_text(encoding="utf-8"))["strengths"]
        names = [f"{value:+g}" if value else "0" for value in strengths]
        files = [folder / TILES / f"{name}.png" for name in names]
    except (OSError, ValueError, KeyError, TypeError):
        files = []
    if files and all(file.is_file() for file in files):
        return Strip(label, [_tile(name, _opened(file), size) for name, file in zip(names, files)])
    return Strip(label, [_tile(label, _opened(folder / STRIP), size * STRIP_SIZES)])


def _opened(path: Path) -> Image.Image:
    with Image.open(path, formats=("PNG",)) as picture:
        return picture.convert("RGB")


def _tile(label: str, image: Image.Image, size: int) -> Tile:
    """Small pictures as they are; larger ones as JPEG, scaled down where a side is longer than `size`."""
    if max(image.size) > size:
        shape = tuple(max(1, round(side * size / max(image.size))) for side in image.size)
        image = image.resize(shape, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if max(image.size) <= PIXELATED:
        kind = "png"
        image.save(file, "PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(file, "JPEG", quality=90, subsampling=0)
    uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Tile(label, uri, *image.size)


def _flat(settings: dict, prefix: str = "") -> dict[str, str]:
    """Nested settings as name -> text."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return flat


# Loss curves --------------------------------------------------------------------------------------------------------


def curve(losses: dict[str, list], terms: list[str]) -> dict | None:
    """The lines of a plot of losses, logarithmic, for the template; None where there are fewer than two values.

    Values that are missing or not positive leave gaps, those more than `DECADES` below the highest are left out; of
    more than `POINTS` steps, evenly spaced ones are drawn.
    """
    positive = {
        term: [
            (step, value)
            for step, value in enumerate(values)
            if isinstance(value, (int, float)) and 1e-300 < value < 1e300
        ]
        for term, values in losses.items()
    }
    total = positive.get("total", [])
    if len(total) < 2:
        return None
    steps = max(len(values) for values in losses.values()) - 1
    high = max(value for points in positive.values() for _, value in points)
    low = max(min(value for points in positive.values() for _, value in points), high / 10**DECADES)
    if low >= high:
        low, high = low / 2, high * 2
    width, height = PLOT

    def place(step: int, value: float) -> str:
        return f"{step / steps * width:.1f},{math.log(high / value) / math.log(high / low) * height:.1f}"

    every = -(-(steps + 1) // POINTS)
    lines = []
    for term, points in positive.items():
        drawn = [point for point in points if point[1] >= low and (point[0] % every == 0 or point == points[-1])]
        if len(drawn) < 2:
            continue
        path = ""
        for (before, _), (step, value) in zip([(-math.inf, 0.0), *drawn], drawn):
            path += ("L" if step - before <= every else "M") + place(step, value)
        lines.append({"index": terms.index(term), "path": path})
    lines.sort(key=lambda line: line["index"])  # the total, which is the first term and has a broad line, at the back
    decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    marks = [{"text": f"{value:g}", "y": float(place(0, value).split(",")[1])} for value in decades]
    text = f"loss from {total[0][1]:.3g} to {total[-1][1]:.3g} in {total[-1][0]} steps"
    return {"lines": lines, "marks": marks, "steps": steps, "text": text, "high": high, "low": low}


# The page -----------------------------------------------------------------------------------------------------------


def _page(entries: list[Entry], title: str, note: str, limit: int) -> str:
    done = [entry for entry in entries if entry.state == DONE]
    names = list(dict.fromkeys(name for entry in done for name in entry.metrics))
    columns = [
        {"name": name, "label": LABELS.get(name) or _spaced(name)}
        for name in names
        if any(entry.metrics.get(name) not in (None, "") for entry in done)
    ]
    terms = list(dict.fromkeys(["total", *(term for entry in done for term in entry.losses)]))
    common = {
        name: value
        for name, value in (done[0].settings if done else {}).items()
        if all(entry.settings.get(name) == value for entry in done)
    }
    cards = [
        {
            "entry": entry,
            "id": f"picture-{number}",
            "curve": curve(entry.losses, terms) if entry.tiles else None,
            "differing": {name: value for name, value in entry.settings.items() if name not in common},
        }
        for number, entry in enumerate(entries)
    ]
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    ).get_template("page.html")  # fmt: skip
    drawn = {line["index"] for card in cards if card["curve"] for line in card["curve"]["lines"]}
    page = template.render(
        title=title, note=note, limit=limit, cards=cards, columns=columns, common=common, facts=_facts(entries),
        legend=[{"index": index, "label": _spaced(terms[index])} for index in sorted(drawn)], plot=PLOT, number=_number,
        problems=[entry for entry in entries if entry.reason],
        with_states=any(entry.state not in (DONE, "") for entry in entries),
    )  # fmt: skip
    return _with_policy(page)


def _facts(entries: list[Entry]) -> list[tuple[str, str]]:
    """What the page says first: label and value."""
    states = [entry.state for entry in entries]
    facts = [("inverted", str(states.count(DONE)))]
    facts += [(state, str(states.count(state))) for state in ("failed", DAMAGED, "pending") if state in states]
    psnr = [entry.metrics.get("psnr") for entry in entries if entry.state == DONE]
    psnr = [value for value in psnr if isinstance(value, (int, float))]
    if psnr:
        facts.append(("mean PSNR", f"{statistics.fmean(psnr):.2f} dB"))
        if len(psnr) > 1:
            facts.append(("lowest to highest", f"{min(psnr):.2f} to {max(psnr):.2f} dB"))
    return facts


def _with_policy(page: str) -> str:
    """The page with a Content-Security-Policy that allows its own script and style, by their hashes, and data URIs."""
    hashes = {}
    for what in ("script", "style"):
        blocks = re.findall(rf"<{what}>(.*?)</{what}>", page, re.DOTALL)
        hashes[what] = " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" for block in blocks
        )
    policy = (
        f"default-src 'none'; img-src data:; script-src {hashes['script']}; style-src {hashes['style']}; "
        "base-uri 'none'; form-action 'none'"
    )
    return page.replace("CONTENT-SECURITY-POLICY", policy, 1)


def _spaced(name: str) -> str:
    """ "loss_ms_ssim" -> "ms ssim loss"."""
    name = f"{name[5:]} loss" if name.startswith("loss_") else name
    return name.replace("_", " ")


def _number(value, name: str = "") -> str:
    """A metric for people: decibels with two decimals, other fractions with three digits."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if name.startswith("psnr") else f"{value:.3g}"
