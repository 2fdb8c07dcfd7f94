"""How good a reconstruction or a set of pictures is, and how well its codes can be edited.

``evaluate`` is the one entry; the metrics stand in ``measures.MEASURES`` by name, the functions behind them in
``metrics``, ``sliced``, ``frechet`` and ``editability``.
"""

from collections.abc import Sequence

import torch

import fastinv
from fastinv.editing.regression import attribute_directions
from fastinv.errors import UsageError
from fastinv.evaluation.editability import (
    edit_scores,
    editing_consistency,
    latent_editing_consistency,
)
from fastinv.evaluation.frechet import frechet_distance
from fastinv.evaluation.measures import FACE, MEASURES, Context, Missing, Pair, Set, build, cut
from fastinv.evaluation.metrics import attribute_change, identity_similarity, ms_ssim
from fastinv.evaluation.result import Evaluation, Row
from fastinv.evaluation.sliced import sliced_wasserstein, swd

__all__ = [
    "MEASURES", "Evaluation", "Row", "attribute_change", "attribute_directions", "edit_scores", "editing_consistency",
    "evaluate", "frechet_distance", "identity_similarity", "latent_editing_consistency", "ms_ssim",
    "sliced_wasserstein", "swd",
]  # fmt: skip
RANGE_TOLERANCE = 1e-3  # pictures may exceed [-1, 1] by this much: resampling and rounding do


@torch.no_grad()
def evaluate(
    a,
    b,
    metrics: Sequence[str] | None = None,
    *,
    crop: str | tuple[float, float, float, float] = "none",
    pairs: int | None = None,
    G=None,
    encoder=None,
    codes: Sequence = (),
    names: Sequence[str] = (),
    batch: int = 32,
    seed: int = 0,
    progress=None,
) -> Evaluation:
    """Measure how far pictures b are from the pictures a, pair by pair and as two sets.

    Args:
        a: targets or real pictures, [N, 3, H, W] in [-1, 1]; or anything with a length and with slices that are such
            tensors, so that pictures need not be in memory together.
        b: what is measured, as a, of the same height and width. Values beyond [-1, 1] are clamped.
        metrics: names in ``MEASURES``; None is all of them.
        crop: the part that is measured: "none", "face" (where a face is in a picture aligned as FFHQ's: rows 35 to 223
            and columns 32 to 220 of 256), or (left, top, right, bottom) as fractions of the sides.
        pairs: so many pictures at the start of a and b belong together; None is all, which takes as many a as b.
        G: the generator of the codes, for "edits" and "lec".
        encoder: for "lec": a module, or its name or file.
        codes: results of ``invert`` of one picture each, whose codes are of the pairs in their order; or none.
        names: of the pairs, for the files that ``Evaluation.save`` writes.
        batch: pictures at a time.
        seed: of random patches and directions.
        progress: called with (what, pictures done, pictures) now and then; or None.

    Returns:
        ``Evaluation`` with a row for each metric (more for those of several numbers, as "swd.16"). A metric whose
        network is not on this machine has a row that says what is missing.

    Raises:
        UsageError: an unknown metric or crop, or pictures that do not fit each other.
    """
    wanted = list(dict.fromkeys(MEASURES if metrics is None else metrics))
    unknown = [name for name in wanted if name not in MEASURES]
    if unknown or not wanted:
        raise UsageError(f"no metric is called {(unknown or [''])[0]!r}; there are {', '.join(MEASURES)}")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, not {batch}")
    if not len(a) or not len(b):
        raise UsageError(f"there is nothing to evaluate: {len(a)} and {len(b)} pictures")
    if pairs is None and len(a) != len(b):
        raise UsageError(f"{len(a)} and {len(b)} pictures are no pairs; give as many, or pairs=0 to compare the sets")
    pairs = len(a) if pairs is None else pairs
    if not 0 <= pairs <= min(len(a), len(b)):
        raise UsageError(f"pairs must be 0 to {min(len(a), len(b))}, not {pairs}")
    if codes and len(codes) != pairs:
        raise UsageError(f"{len(codes)} codes for {pairs} pairs; give one for each, or none")
    box = crop_box(crop)
    first = _pictures(a, 0, 1, "a")
    context = Context(
        size=tuple(cut(first, box).shape[2:]), crop=_named(crop), cropped=box != WHOLE, device=first.device, seed=seed,
        G=G, encoder=encoder, codes=list(codes),
    )  # fmt: skip
    found, missing = _built(wanted, context, pairs, min(len(a), len(b)))
    values = _measured(found, a, b, pairs, box, batch, progress)
    rows = []
    for name in wanted:
        if name in missing:
            rows.append(Row(name, missing=missing[name]))
        elif isinstance(found[name], Set):
            rows += _rows_of_sets(name, found[name], values[name], len(a), len(b))
        else:
            for part, numbers in values[name].items():
                each = torch.cat(numbers).double().tolist()
                better = found[name].better_parts.get(part, found[name].better)
                rows.append(Row.of(name + part, each, better, found[name].settings))
    height, width = first.shape[2:]
    settings = {
        "pictures": [len(a), len(b)], "pairs": pairs, "resolution": [width, height], "crop": context.crop,
        "range": "[-1, 1]", "seed": seed, "versions": {"fastinv": fastinv.__version__, "torch": torch.__version__},
    }  # fmt: skip
    return Evaluation(rows, settings, list(names))


def _built(wanted: list[str], context: Context, pairs: int, smaller: int) -> tuple[dict, dict[str, str]]:
    """(metric by name, and why not by name); smaller is the number of pictures of the smaller set."""
    found, missing = {}, {}
    for name in wanted:
        try:
            measure = build(name, context)
            if isinstance(measure, Set) and smaller < 2:
                raise Missing("compares two sets of pictures, of two at least")
            if not isinstance(measure, Set) and not pairs:
                raise Missing("compares pairs of pictures, and no picture of one set belongs to one of the other")
            found[name] = measure
        except Missing as error:
            missing[name] = str(error)
    return found, missing


def _measured(found: dict, a, b, pairs: int, box, batch: int, progress) -> dict[str, dict]:
    """Metric -> {part: [N of each batch]}; of sets {(side, key): [features of each batch]}."""
    values = {name: {} for name in found}
    sets = [name for name, measure in found.items() if isinstance(measure, Set)]
    size = _pictures(a, 0, 1, "a").shape[2:]

    def look(side: int, at: int, end: int) -> torch.Tensor:
        images = _pictures((a, b)[side], at, end, "ab"[side])
        if images.shape[2:] != size:
            raise UsageError(f"all pictures must have one size; found {list(size)} and {list(images.shape[2:])}")
        images = cut(images, box)
        for name in sets:
            for key, features in found[name].look(images, at).items():
                values[name].setdefault((side, key), []).append(features)
        return images

    total, done = pairs + (len(a) + len(b) - 2 * pairs if sets else 0), 0
    for side, start, stop in ((0, 0, pairs), (0, pairs, len(a)), (1, pairs, len(b))):
        together = start < pairs
        for at in range(start, stop if together or sets else start, batch):
            end = min(at + batch, stop)
            x = look(side, at, end)
            if together:
                y = look(1, at, end)
                for name in found.keys() - set(sets):
                    measure = found[name]
                    new = {"": measure.measure(x, y)} if isinstance(measure, Pair) else measure.measure(at, end, x)
                    for part, numbers in new.items():
                        values[name].setdefault(part, []).append(numbers)
            done += end - at
            if progress is not None:
                progress("pictures", done, total)
    return values


def _rows_of_sets(name: str, measure: Set, features: dict, n: int, m: int) -> list[Row]:
    sides = [{key: torch.cat(parts) for (of, key), parts in features.items() if of == side} for side in (0, 1)]
    distances = measure.distances(*sides)
    settings = {**{key: value for key, value in measure.settings.items() if value != ""}, "n of b": m}
    return [Row(name + part, value, n=n, better=measure.better, settings=settings) for part, value in distances.items()]


WHOLE = (0.0, 0.0, 1.0, 1.0)


def crop_box(crop) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) as fractions of the sides; a UsageError for what is no crop."""
    if crop in ("none", None):
        return WHOLE
    if crop == "face":
        return FACE
    box = tuple(crop) if not isinstance(crop, str) else ()
    numbers = len(box) == 4 and all(isinstance(part, (int, float)) for part in box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UsageError(
            f"crop must be none, face, or four fractions left, top, right, bottom of the sides, not {crop!r}"
        )
    return tuple(float(part) for part in box)


def _named(crop) -> str:
    return crop if isinstance(crop, str) else " ".join(f"{part:g}" for part in crop_box(crop)) if crop else "none"


def _pictures(given, first: int, end: int, name: str) -> torch.Tensor:
    """Some of the pictures, checked and clamped."""
    images = given[first:end]
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or images.shape[1] != 3:
        what = list(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise UsageError(f"{name} must be pictures [N, 3, H, W] in [-1, 1], not {what}")
    if not images.is_floating_point():
        raise UsageError(f"{name} must be floating point in [-1, 1], not {images.dtype}; 8-bit: x.float() / 127.5 - 1")
    if not images.isfinite().all():
        raise UsageError(f"{name} holds values that are not finite (NaN or infinity)")
    if name == "a" and images.abs().max() > 1 + RANGE_TOLERANCE:
        low, high = images.min().item(), images.max().item()
        raise UsageError(f"a must lie in [-1, 1]; found {low:.4g} to {high:.4g} (from 0..255: x / 127.5 - 1)")
    return images.clamp(-1, 1)
