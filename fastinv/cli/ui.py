"""The command that serves the local web page."""

from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device
from fastinv.errors import UsageError


def ui(
    generator: Annotated[str, typer.Option(help="A bundled name (see `fastinv models`) or a file.")] = "faces64",
    directions: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="What the sliders do; without it those that come with the generator."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="0 is any free one; without it the first free one from 7860.")
    ] = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Open a web page of this machine to invert and edit pictures: drop, watch, move sliders, mix, download.

    It can be reached from this machine only, and loads nothing from anywhere. Ctrl-C ends it.

    Example: fastinv ui --port 7860
    """
    if port is not None and not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, not {port}")

    def studio():
        from fastinv.checkpoints import load_generator
        from fastinv.devices import named_device
        from fastinv.editing.direction import bundled, find_directions
        from fastinv.ui.studio import Studio

        G = load_generator(generator, device=named_device(device))
        name = directions or (generator if generator in bundled() else None)
        return Studio(G, find_directions(name, G) if name else {})

    from fastinv.ui.server import serve

    print("fastinv: starting ...", flush=True)
    serve(studio, port, lambda address: print(f"{address}   (Ctrl-C ends it)", flush=True))
