"""The table of methods as Markdown, CSV, JSON and a plot."""

import csv
import io
import json
from pathlib import Path

from fastinv.errors import UsageError
from fastinv.evaluation.methods import ORDER, PERCENT
from fastinv.evaluation.result import short
from fastinv.files import atomic_file, write_text

TITLES = {
    "mse": "mean squared error, range [-1, 1]", "psnr": "PSNR in dB", "ssim": "SSIM", "ms-ssim": "MS-SSIM",
    "lpips": "LPIPS (VGG-16)", "features": "feature distance of the attribute network",
    "identity": "cosine of the attribute network's embeddings", "attributes": "attribute error in deviations",
    "swd": "sliced Wasserstein distance x 1000", "fid": "FID, biased upwards for few pictures",
    "frechet": "Fréchet distance of the attribute network's embeddings, biased upwards for few pictures",
    "moved": "share of an asked change that is made", "leaked": "change of other attributes in deviations",
    "edited": "edits that succeed", "lec": "latent editing consistency, 0 is perfect",
    "edit-consistency": "MSE after an edit and back", "seconds": "CPU seconds a picture", "steps": "updates",
}  # fmt: skip
HIGHER = ("psnr", "ssim", "ms-ssim", "identity", "edited")


def columns(rows: list[dict]) -> list[str]:
    """The columns that some row has, in their order."""
    return [name for name in ORDER if any(row.get(name) is not None for row in rows)]


def markdown(rows: list[dict]) -> str:
    """A Markdown table of rows."""
    names = columns(rows)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(name, row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def page(rows: list[dict], source: str, command: str) -> str:
    """The table with what it was measured on, what the columns are and what is missing."""
    settings, facts = rows[0].get("settings", {}), rows[0].get("facts", {})
    where = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "command")
    about = [
        f"{settings.get('count')} pictures ({source}), batch {settings.get('batch')}, {where}",
        "",
        f"    {command}",
    ]
    metrics = settings.get("metrics", {})
    legend = [f"- `{name}`: {TITLES[name]}{_with(metrics.get(name))}" for name in columns(rows) if name in TITLES]
    missing = {name: why for row in rows for name, why in row.get("missing", {}).items()}
    absent = [f"- `{name}`: {why}" for name, why in missing.items()]
    parts = ["# Methods side by side", "", *about, "", markdown(rows), *legend]
    return "\n".join(parts + (["", "Not measured:", "", *absent] if absent else [])) + "\n"


def _with(settings: dict | None) -> str:
    """What a column was measured with, in brackets."""
    return f" ({short(settings)})" if settings else ""


def comma_separated(rows: list[dict]) -> str:
    """The table as CSV, with all digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def save(rows: list[dict], out: str | Path, source: str, command: str, plotted: bool = True) -> list[Path]:
    """Write methods.{json,csv,md} and, with ``plotted``, methods.png into a folder; returns the paths.

    Raises:
        UsageError: they cannot be written, or matplotlib is missing.
    """
    out = Path(out)
    paths = [out / f"methods.{ending}" for ending in ("json", "csv", "md")]
    write_text(paths[0], json.dumps({"source": source, "command": command, "rows": rows}, indent=1) + "\n")
    write_text(paths[1], comma_separated(rows))
    write_text(paths[2], page(rows, source, command))
    if plotted:
        paths.append(out / "methods.png")
        plot(rows, paths[-1])
    return paths


def check_plot() -> None:
    """A UsageError unless matplotlib is here."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "the plot needs matplotlib: pip install 'fastinv[plot]', or leave it out with --no-plot"
        ) from error


def plot(rows: list[dict], path: str | Path) -> None:
    """PSNR against time (logarithmic), edits that succeed, LEC and SWD, each in a panel, a point for each row; panels
    that fewer than two rows have a number for are left out.

    Raises:
        UsageError: matplotlib is missing, or the picture cannot be written.
    """
    check_plot()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = [name for name in ("edited", "lec", "swd") if sum(row.get(name) is not None for row in rows) > 1]
    panels = [("seconds", "log"), *((name, "linear") for name in known)]
    wide, high = min(2, len(panels)), -(-len(panels) // 2)
    figure = Figure(figsize=(4.8 * wide, 3.8 * high + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(high, wide, sharey=True, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    colours = [f"C{index % 10}" for index in range(len(rows))]
    markers = "osD^vP*Xph"
    for (name, scale), axis in zip(panels, axes):
        for index, row in enumerate(rows):
            if row.get(name) is None:
                continue
            value = row[name] * (100 if name in PERCENT else 1)
            marker = markers[index % len(markers)]
            axis.scatter(value, row["psnr"], s=70, color=colours[index], marker=marker, label=row["row"], zorder=3)
        axis.set_xscale(scale)
        unit = ", %" if name in PERCENT else ""
        axis.set_xlabel(f"{TITLES[name]}{unit}\n({'higher' if name in HIGHER else 'lower'} is better)")
        axis.grid(alpha=0.3)
        axis.margins(0.12)
    for axis in axes[::wide]:
        axis.set_ylabel("PSNR in dB (higher is better)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(rows)), frameon=False)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _cell(name: str, value) -> str:
    if value is None:
        return ""
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    if name == "identity":
        return f"{value:.4f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
