"""The command that makes a page of results."""

from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, say
from fastinv.files import shown


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS_DIR", help="The --out of `fastinv invert`.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; without it report.html in the folder of results.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the page; without it the folder's name.")] = None,
    size: Annotated[int, typer.Option(metavar="PIXELS", help="Larger pictures are scaled down to this side.")] = 256,
    limit: Annotated[int, typer.Option(metavar="N", help="Show pictures of so many; numbers of all.")] = 500,
    debug: Debug = False,
) -> None:
    """Make one HTML page of a folder of results: pictures, edits, metrics, loss curves, settings, failures.

    The page is one file that needs no network. A result that cannot be read is a row that says why.

    Example: fastinv report results --out report.html
    """
    from fastinv.report.page import DAMAGED
    from fastinv.report.page import report as run

    out = results / "report.html" if out is None else out
    entries = run(results, out, title, size, limit)
    damaged = [entry for entry in entries if entry.state == DAMAGED]
    for entry in damaged:
        say(f"{entry.name}: {entry.reason}")
    print(f"{shown(out)}  {out.stat().st_size / 1e6:.1f} MB, {len(entries)} pictures", flush=True)
