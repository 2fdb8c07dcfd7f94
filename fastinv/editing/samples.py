"""Codes with scores: what directions are learned from."""

import csv
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastinv.data.faces import NAMES
from fastinv.editing.apply import edit
from fastinv.editing.direction import Direction
from fastinv.errors import UsageError
from fastinv.files import shown
from fastinv.latents import expand, mapped_samples

BATCH = 250  # pictures rendered at a time
PICTURE = "picture"  # column of a table of scores
LARGEST = 1 << 30  # bytes of an array
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Samples:
    """Codes and how much their pictures have of each attribute.

    Attributes:
        w: [N, w_dim], float64.
        scores: [N, K], float64, in standard deviations: of the attribute where an attribute network read them, else of
            these samples.
        names: of the K attributes.
    """

    w: torch.Tensor
    scores: torch.Tensor
    names: tuple[str, ...]

    def of(self, attribute: str) -> torch.Tensor:
        """[N], the scores of one attribute.

        Raises:
            UsageError: there is none of this name.
        """
        if attribute not in self.names:
            raise UsageError(f"there are no scores of {attribute!r}; there are {', '.join(self.names)}")
        return self.scores[:, self.names.index(attribute)]


@torch.no_grad()
def read_samples(
    G, network, samples: int = 4000, seed: int = 0, names: tuple[str, ...] = NAMES, progress: Progress | None = None
) -> Samples:
    """Random codes, and the attributes that a network reads from their pictures.

    Args:
        G: the generator.
        network: with ``standardised(pictures [N, 3, R, R]) -> [N, attributes]``: mean 0 and deviation 1 over its data.
        samples: how many.
        seed: of the codes.
        names: of the network's attributes.
        progress: called with ("samples", done, all).
    """
    w = mapped_samples(G, samples, seed)
    render, read = renderer(G), []
    for part in w.to(G.w_avg.dtype).split(BATCH):
        read.append(network.standardised(render(expand(part, G.num_ws))).double())
        if progress is not None:
            progress("samples", min(len(read) * BATCH, samples), samples)
    return Samples(w, torch.cat(read), names)


def renderer(G) -> Callable[[torch.Tensor], torch.Tensor]:
    """w_plus -> pictures, by the frozen generator where there is one, which is quicker."""
    return (G.prepare() if hasattr(G, "prepare") else G).synthesis


def given_samples(path: str | Path, G, seed: int = 0) -> Samples:
    """Codes and scores of the user's own.

    Args:
        path: a table (.csv) with a column "picture", the number of a sample or its file's name ("00012.png"), and one
            column of numbers for each attribute; samples are those of ``mapped_samples(G, ..., seed)``, which
            ``fastinv directions sample`` draws. Or an .npz with "w" [N, w_dim] and one array [N] for each attribute.
        G: the generator.
        seed: of the samples of a table.

    Raises:
        UsageError: no such file, or something in it that cannot be; it says what.
    """
    path = Path(path)
    try:
        scores = _of_archive(path) if path.suffix == ".npz" else _of_table(path)
        w = scores.pop("w", None)
        if w is None:
            numbers = scores.pop(PICTURE)
            w = mapped_samples(G, int(numbers.max()) + 1, seed)[numbers.long()]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, csv.Error, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the scores in {shown(path)}: {reason}") from error
    if w.ndim != 2 or w.shape[1] != G.w_dim:
        raise UsageError(f"{shown(path)}: w must be [N, {G.w_dim}] for this generator, not {list(w.shape)}")
    for name, values in scores.items():
        if values.shape != (len(w),) or not values.isfinite().all():
            raise UsageError(f"{shown(path)}: the scores of {name!r} are not {len(w)} finite numbers")
        if values.min() == values.max():
            raise UsageError(f"{shown(path)}: all scores of {name!r} are equal; they say nothing")
    if not scores:
        raise UsageError(f"{shown(path)} has no scores: one column or array for each attribute")
    table = torch.stack(list(scores.values()), 1)
    std, mean = torch.std_mean(table, 0, correction=0)
    return Samples(w, (table - mean) / std, tuple(scores))


def _of_table(path: Path) -> dict[str, torch.Tensor]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file))
    if not table or PICTURE not in table[0]:
        raise UsageError(f"{shown(path)} has no rows, or no column {PICTURE!r}")
    columns: dict[str, list[float]] = {name: [] for name in table[0] if name is not None}
    for line, row in enumerate(table, 2):
        for name in columns:
            text = row[name] if name != PICTURE else Path(row[name] or "").stem
            try:
                columns[name].append(float(text if name != PICTURE else int(text)))
            except (TypeError, ValueError) as error:
                raise UsageError(f"{shown(path)}, line {line}: {name} is {text!r}, not a number") from error
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    if found[PICTURE].min() < 0 or found[PICTURE].max() >= 10_000_000:
        raise UsageError(f"{shown(path)}: pictures are numbered from 0 to 9,999,999")
    return found


def _of_archive(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive:
        sizes = [info.file_size for info in archive.infolist()]
    if sum(sizes) > LARGEST:
        raise UsageError(f"{shown(path)} unfolds into {sum(sizes)} bytes, more than scores need")
    with np.load(path, allow_pickle=False) as arrays:
        if "w" not in arrays:
            raise UsageError(f"{shown(path)} has no array 'w' [N, w_dim]")
        return {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float64)) for name in arrays}


# ---- what a direction does


@torch.no_grad()
def effects(G, direction: Direction, network, w_plus: torch.Tensor, step: float = 0.5) -> torch.Tensor:
    """How much each attribute changes for a strength of 1, on average: [attributes], in standard deviations.

    Half the difference between strengths of ``step`` and ``-step``, over ``step``, mean over the codes w_plus [N,
    num_ws, w_dim].
    """
    render, read = G.prepare() if hasattr(G, "prepare") else G, []
    for sign in (1, -1):
        codes = edit(G, {"w_plus": w_plus}, direction, sign * step)
        code = codes.get("styles", codes["w_plus"])
        pictures = [render.synthesis(part) for part in code.split(BATCH)]
        read.append(torch.cat([network.standardised(part) for part in pictures]).double())
    return (read[0] - read[1]).mean(0) / (2 * step)


def scaled(direction: Direction, G, network, attribute: int, w_plus: torch.Tensor, rounds: int = 2) -> Direction:
    """The direction with such a length that a strength of 1 adds one standard deviation of an attribute, on average.

    Args:
        attribute: its index among the network's.
        w_plus: [N, num_ws, w_dim], codes on which that is measured, by strengths of a half; ``rounds`` times, since the
            answer is not quite linear. The length changes by a factor of 10 at most in each.

    Returns:
        A direction with ``facts["effect"]``: what was measured in the last round before its correction. It points to
        more of the attribute. Where a strength of 1 changes less than a thousandth it stays as it was.
    """
    for _ in range(rounds):
        effect = float(effects(G, direction, network, w_plus)[attribute])
        if abs(effect) < 1e-3:
            break
        factor = math.copysign(min(10.0, max(0.1, 1 / abs(effect))), effect)
        direction = replace(direction, vector=direction.vector * factor)
    return direction
