"""Inversion methods side by side: distortion, perception, editability and time of each on the same pictures.

``measure`` measures one entry, such as a method with its options, ``run`` several into a folder, where it goes on if it
was stopped. Codes are rendered again by the generator itself in float32, whatever the arithmetic of the search.
"""

import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

import fastinv
from fastinv.checkpoints import network_hash
from fastinv.data.faces import NAMES
from fastinv.errors import UsageError
from fastinv.evaluation import evaluate
from fastinv.evaluation.editability import (
    away,
    edit_directions,
    edit_scores,
    editing_consistency,
    principal_coordinates,
)
from fastinv.evaluation.measures import STRENGTH, rendered
from fastinv.evaluation.metrics import attribute_errors
from fastinv.files import load_tensors, save_tensors, shown, write_text
from fastinv.inversion import METHODS, PRESETS, apply_preset, invert, plain
from fastinv.inversion.task import configure
from fastinv.latents import mean_latent
from fastinv.losses import psnr
from fastinv.models.attributes import load_attribute_network

# Column of the table -> metric of ``evaluate``; those of the attribute network are for the procedural faces.
COLUMNS = {
    "mse": "mse", "psnr": "psnr", "ssim": "ssim", "ms-ssim": "ms-ssim", "lpips": "lpips", "fid": "fid", "swd": "swd",
}  # fmt: skip
FACE_COLUMNS = {"features": "features", "identity": "identity-attributes", "frechet": "frechet-attributes"}
# Of the table: distortion, perception, attributes, editability, cost; those that no row has are left out.
ORDER = (
    "row", "mse", "psnr", "ssim", "ms-ssim", "lpips", "features", "identity", "attributes", "swd", "fid", "frechet",
    "moved", "leaked", "edited", "lec", "edit-consistency", "seconds", "steps", "dtype",
)  # fmt: skip
PERCENT = ("edited",)
KIND = "edit directions"  # of a file


@dataclass(frozen=True)
class Entry:
    """A row to measure.

    Attributes:
        name: of the row, as it was written.
        arguments: for ``invert``.
    """

    name: str
    arguments: dict


@dataclass
class Pictures:
    """What all rows are measured on.

    Attributes:
        images: [N, 3, R, R] in [-1, 1].
        attributes: the truth, {name: [N]} of ``faces.NAMES``; None where nobody knows, and then nothing that the
            attribute network reads is measured.
        source: for people and for the settings: what they are.
        directions: by the generator's hash; found once.
        folder: where they are kept from one run to the next, since those of attributes take thousands of renders.
    """

    images: torch.Tensor
    attributes: dict[str, torch.Tensor] | None
    source: str = ""
    directions: dict[str, torch.Tensor] = field(default_factory=dict)
    folder: Path | None = None

    @functools.cached_property
    def network(self):
        """The attribute network."""
        return load_attribute_network(device=self.images.device)

    def directions_of(self, G) -> torch.Tensor:
        """[K, w_dim] to edit codes of G along: of attributes, or principal components where those are not known."""
        key = network_hash(G)
        if key not in self.directions:
            network = None if self.attributes is None else self.network
            facts = {"generator": key, "network": network and network_hash(network), "fastinv": fastinv.__version__}
            path = None if self.folder is None else self.folder / "directions.safetensors"
            found = None if path is None else _kept_directions(path, facts)
            if found is None:
                found = edit_directions(G, network)
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_tensors(path, {"directions": found}, KIND, facts)
            self.directions[key] = found.to(G.w_avg)
        return self.directions[key]


def _kept_directions(path: Path, facts: dict) -> torch.Tensor | None:
    """The directions of a file, if they are of these facts."""
    if not path.is_file():
        return None
    tensors, found = load_tensors(path, KIND)
    return tensors["directions"] if found == facts else None


def read_entries(text: str) -> list[Entry]:
    """Entries of ``--methods``: names of methods or presets separated by commas, each with options behind a colon, as
    ``psp,image2stylegan:space=w,steps=100,fast``: what holds "=" but no name of its own belongs to the one before.

    Raises:
        UsageError: an unknown method, option or value, or two equal entries.
    """
    entries: list[tuple[str, list[str]]] = []
    for part in filter(None, (part.strip() for part in re.split(r",(?![^\[]*\])", text))):
        name, colon, option = part.partition(":")
        if not colon and "=" in part:
            if not entries:
                raise UsageError(f"--methods: {part!r} is an option of nothing; write METHOD:{part}")
            entries[-1][1].append(part)
        else:
            entries.append((name, [option] if option else []))
    if not entries:
        raise UsageError("--methods names no method; give for example psp,e4e,image2stylegan:space=w")
    found = []
    for name, options in entries:
        arguments = {"preset" if name in PRESETS else "method": name}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals or not key:
                raise UsageError(f"--methods: {name} has {option!r}; write OPTION=VALUE")
            arguments[key] = _value(value)
        check_arguments(arguments)
        found.append(Entry(":".join([name, ",".join(options)] if options else [name]), arguments))
    names = [entry.name for entry in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"--methods names {twice[0]} twice")
    return found


def check_arguments(arguments: dict) -> None:
    """A UsageError unless ``invert`` would take these arguments."""
    options = dict(arguments)
    options.pop("init", None)
    given = (options.pop(name, None) for name in ("preset", "method", "steps", "dtype"))
    method, steps, _, rest = apply_preset(*given, {name: value for name, value in options.items() if name != "space"})
    configure(METHODS, method, options.get("space"), steps, rest)


def measure(
    name: str,
    arguments: dict,
    G,
    pictures: Pictures,
    *,
    batch: int = 10,
    dtype: str | None = None,
    seed: int = 0,
    consistency: bool = True,
    metrics: Sequence[str] | None = None,
) -> dict:
    """One row of the table.

    Args:
        name: of the row.
        arguments: for ``invert``; they go before the next ones.
        G: the generator.
        pictures: what is inverted.
        batch: pictures inverted together.
        dtype: arithmetic of the search; None is the method's own.
        seed: of the inversions.
        consistency: whether to measure LEC and edit consistency, which takes a second inversion.
        metrics: columns of pictures to measure, of ``COLUMNS`` and ``FACE_COLUMNS``; None is all that can be.

    Returns:
        JSON: "row"; a mean for each column; "seconds", CPU time per picture of the inversion, with everything; "steps",
        mean updates; "dtype", "space", "options"; "each psnr" of the pictures; "missing", column -> why it is absent.
        Edits are by 1.5 standard deviations of an attribute, see ``edit_scores``, LEC see ``editing_consistency``.
    """
    options = {"seed": seed} | ({} if dtype is None else {"dtype": dtype}) | arguments

    def find(part: torch.Tensor):
        return invert(G, part, progress=False, **options)

    started = time.process_time()
    results = [find(part) for part in pictures.images.split(batch)]
    seconds = (time.process_time() - started) / len(pictures.images)
    found = torch.cat([result.render(G) for result in results]).float().to(pictures.images)
    steps = [count for result in results for count in result.metrics["steps"]]
    settings = results[0].settings
    row = {
        "row": name, **quality(found, pictures, metrics, seed), "seconds": seconds, "steps": sum(steps) / len(steps),
        "dtype": settings["dtype"], "space": settings["space"], "options": settings["options"],
        "each psnr": psnr(found, pictures.images).tolist(),
    }  # fmt: skip
    if settings["space"] == "s":  # its codes are no w
        return row
    if pictures.attributes is not None:
        row |= edits([(functools.partial(rendered, G, part), part.w_plus) for part in results], G, pictures)
    if consistency:
        row |= consistencies(G, results, pictures, find)
    return row


@torch.no_grad()
def quality(found: torch.Tensor, pictures: Pictures, metrics: Sequence[str] | None = None, seed: int = 0) -> dict:
    """Distortion and perception of reconstructions [N, 3, R, R], and how far their attributes are from the truth."""
    columns = _columns(pictures)
    columns = {name: metric for name, metric in columns.items() if metrics is None or name in metrics}
    found = found.clamp(-1, 1)
    report = evaluate(pictures.images, found, list(columns.values()), seed=seed)
    rows = {name: report.row(metric) for name, metric in columns.items()}
    measured = {name: row.value for name, row in rows.items() if row.missing is None}
    if pictures.attributes is not None:
        errors = attribute_errors(pictures.network, found, pictures.attributes)
        measured["attributes"] = float(errors.mean())
        measured["each attribute"] = dict(zip(NAMES, errors.mean(0).tolist(), strict=True))
    missing = {name: row.missing for name, row in rows.items() if row.missing is not None}
    return measured | ({"missing": missing} if missing else {})


def measured_with(pictures: Pictures) -> dict[str, dict | None]:
    """Settings of each column of pictures: network, sha256, resolution, range ...; None where it cannot be measured."""
    columns, two = _columns(pictures), pictures.images[:1].expand(2, -1, -1, -1)
    report = evaluate(two, two, list(columns.values()))
    left_out = ("note", "n of b", "seed")
    rows = {name: report.row(metric) for name, metric in columns.items()}
    return {
        name: {key: value for key, value in row.settings.items() if key not in left_out}
        if row.missing is None
        else None
        for name, row in rows.items()
    }


def _columns(pictures: Pictures) -> dict[str, str]:
    return COLUMNS | (FACE_COLUMNS if pictures.attributes is not None else {})


def edits(parts: list[tuple[Callable, torch.Tensor]], G, pictures: Pictures) -> dict:
    """Means of the edit scores of (render, codes)."""
    directions = pictures.directions_of(G)
    scores = [edit_scores(render, codes, directions, pictures.network, STRENGTH) for render, codes in parts]
    scores = {name: torch.cat([part[name] for part in scores]).double() for name in scores[0]}
    each = {name: dict(zip(NAMES, value.mean(0).tolist(), strict=True)) for name, value in scores.items()}
    means = {name: float(value.mean()) for name, value in scores.items()}
    return {"moved": means["moved"], "leaked": means["leaked"], "edited": means["done"], "each edit": each}


def consistencies(G, results: list, pictures: Pictures, find: Callable) -> dict:
    """Means of latent editing consistency and edit consistency, by an edit of each picture along one direction, another
    one from picture to picture.
    """
    directions, values, first = pictures.directions_of(G), [], 0
    for result in results:
        render = functools.partial(rendered, G, result)
        if pictures.attributes is None:
            read = principal_coordinates(result.w_plus.to(G.w_avg), mean_latent(G), directions)
        else:
            read = pictures.network.standardised(result.render(G))
        changes = away(read, directions, STRENGTH, first)
        values.append(editing_consistency(
            lambda images: find(images.clamp(-1, 1)).w_plus, render, result.w_plus, changes, G
        ))  # fmt: skip
        first += len(result)
    latent, apart = (float(torch.cat([part[name] for part in values]).mean()) for name in ("latent", "pictures"))
    return {"lec": latent, "edit-consistency": apart}


def run(
    entries: Sequence[Entry],
    G,
    pictures: Pictures,
    out: str | Path,
    *,
    batch: int = 10,
    dtype: str | None = None,
    seed: int = 0,
    consistency: bool = True,
    facts: dict | None = None,
    overwrite: bool = False,
    tell: Callable[[str, dict, bool], None] = lambda name, row, kept: None,
) -> list[dict]:
    """The rows of entries, each left in OUT/rows/<entry>.json; one that is there with the same settings is kept,
    one of others is replaced.

    Args:
        entries, G, pictures, batch, dtype, seed, consistency: see ``measure``.
        out: the folder.
        facts: about the machine and the command, for the rows.
        overwrite: measure all of them again.
        tell: called with each row, and whether it was there.

    Raises:
        UsageError: a file there is no row, or one cannot be written.
    """
    rows, digest, metrics = [], _sha256(pictures.images), measured_with(pictures)
    pictures = replace(pictures, folder=Path(out) / "rows")
    for entry in entries:
        settings = {
            "generator": network_hash(G), "pictures": digest, "source": pictures.source, "count": len(pictures.images),
            "batch": batch, "dtype": dtype, "seed": seed, "arguments": plain(entry.arguments),
            "consistency": consistency, "metrics": metrics,
            "versions": {"fastinv": fastinv.__version__, "torch": torch.__version__},
        }  # fmt: skip
        path = Path(out) / "rows" / f"{re.sub(r'[^A-Za-z0-9.+=_-]+', '_', entry.name)}.json"
        row = None if overwrite else _kept(path, settings)
        kept = row is not None
        if not kept:
            row = measure(
                entry.name, entry.arguments, G, pictures, batch=batch, dtype=dtype, seed=seed, consistency=consistency
            )
            row |= {"settings": settings, "facts": facts or {}}
            write_text(path, json.dumps(row, indent=1) + "\n")
        tell(entry.name, row, kept)
        rows.append(row)
    return rows


def _kept(path: Path, settings: dict) -> dict | None:
    """The row that is there, if it has these settings."""
    try:
        row = json.loads(path.read_text())
        return row if row["settings"] == json.loads(json.dumps(settings)) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{shown(path)} is no row of ours ({error}); move it away, or use another --out") from error


def _sha256(images: torch.Tensor) -> str:
    return hashlib.sha256(images.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()


def _value(text: str):
    """An option's value: JSON, else text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return tuple(value) if isinstance(value, list) else value
