"""What an evaluation gives: a row for each metric, as a table, JSON or CSV."""

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from fastinv.errors import UsageError
from fastinv.files import write_text

SHARED = ("resolution", "range", "crop")  # settings that most rows have alike
FILES = ("evaluation.json", "evaluation.csv", "pictures.csv")


@dataclass(frozen=True)
class Row:
    """One metric.

    Attributes:
        metric: its name.
        value: the mean over the pictures, or the distance of the two sets; None where it could not be measured.
        std: standard deviation over the pictures (of the sample, N - 1); None of sets, and of one picture.
        each: the value of each picture, in their order; empty of sets.
        n: pictures that were measured, of the first set for a distance of sets.
        better: "lower" or "higher".
        settings: what it was measured with (JSON): network, file, sha256, resolution, range, crop ...
        missing: why there is no value, and what to do; None where there is one.
    """

    metric: str
    value: float | None = None
    std: float | None = None
    each: list[float] = field(default_factory=list)
    n: int = 0
    better: str = "lower"
    settings: dict = field(default_factory=dict)
    missing: str | None = None

    @classmethod
    def of(cls, metric: str, each: list[float], better: str, settings: dict) -> "Row":
        """From the values of the pictures."""
        mean = math.fsum(each) / len(each)
        std = math.sqrt(math.fsum((x - mean) ** 2 for x in each) / (len(each) - 1)) if len(each) > 1 else None
        return cls(metric, mean, std, each, len(each), better, settings)


@dataclass(frozen=True)
class Evaluation:
    """Rows of metrics, and what all of them share.

    Attributes:
        rows: in the order that was asked for.
        settings: pictures, pairs, resolution, crop, range, versions (JSON).
        names: of the pairs, as the per-picture values are ordered; empty where they have none.
    """

    rows: list[Row]
    settings: dict
    names: list[str] = field(default_factory=list)

    def row(self, metric: str) -> Row:
        """The row of a metric; UsageError if it was not asked for."""
        for row in self.rows:
            if row.metric == metric:
                return row
        raise UsageError(f"no row {metric!r}; there are {', '.join(row.metric for row in self.rows)}")

    def as_json(self) -> dict:
        """Everything; numbers that are not finite are None."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return _without_nan({"settings": self.settings, "names": self.names, "rows": rows})

    def table(self) -> str:
        """Lines of text: metric, mean, deviation, pictures and settings; then what is missing.

        What the settings of a row have in common with all others, resolution, range and crop, stands above them.
        """
        found = [row for row in self.rows if row.missing is None]
        shared = {}
        for name in SHARED:
            values = [row.settings[name] for row in found if name in row.settings]
            if values:
                shared[name] = max(values, key=values.count)
        cells = [("metric", "mean", "std", "n", "with")]
        for row in found:
            own = {name: value for name, value in row.settings.items() if shared.get(name) != value}
            cells.append((row.metric, _number(row.value), _number(row.std), str(row.n), short(own)))
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = [", ".join(f"{name} {value}" for name, value in shared.items()), ""] if shared else []
        lines += ["  ".join([*(c.ljust(w) for c, w in zip(line, widths)), line[4]]).rstrip() for line in cells]
        absent = [row for row in self.rows if row.missing is not None]
        lines += ["", "not measured:"] if absent else []
        wide = max((len(row.metric) for row in absent), default=0)
        return "\n".join([*lines, *(f"  {row.metric.ljust(wide)}  {row.missing}" for row in absent)])

    def save(self, folder: str | Path) -> list[Path]:
        """Write evaluation.json (everything), evaluation.csv (a line for each metric) and pictures.csv (a line for each
        picture) into a folder, which is made; returns the paths.

        Raises:
            UsageError: they cannot be written.
        """
        columns = ("metric", "value", "std", "n", "better", "settings", "missing")
        metrics = [columns]
        for row in self.rows:
            settings = json.dumps(row.settings, sort_keys=True)
            metrics.append((row.metric, row.value, row.std, row.n, row.better, settings, row.missing))
        known = [row for row in self.rows if row.each]
        pictures = [("picture", *(row.metric for row in known))]
        for index in range(max((row.n for row in known), default=0)):
            name = self.names[index] if self.names else index
            pictures.append((name, *(row.each[index] if index < row.n else None for row in known)))
        json_, csv_, each = (Path(folder) / name for name in FILES)
        write_text(json_, json.dumps(self.as_json(), indent=1, allow_nan=False) + "\n")
        write_text(csv_, _csv(metrics))
        write_text(each, _csv(pictures))
        return [json_, csv_, each]


def _csv(rows) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def short(settings: dict) -> str:
    """Settings on one line: hashes by their first digits, files by their names."""
    parts = []
    for name, value in settings.items():
        if name == "sha256":
            value = str(value)[:12]
        elif name == "file":
            value = Path(value).name
        parts.append(str(value) if name in ("network", "note") else f"{name} {value}")
    return ", ".join(parts)


def _without_nan(value):
    if isinstance(value, dict):
        return {str(name): _without_nan(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
