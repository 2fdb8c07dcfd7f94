"""The commands for checkpoints: models and convert."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Progress
from fastinv.errors import UsageError
from fastinv.files import shown


def models(
    name: Annotated[str | None, typer.Argument(help="Say more about this one.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch it into the cache folder.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept its licence without being asked.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON list: an object for each model.")] = False,
    debug: Debug = False,
) -> None:
    """List the checkpoints that come with the package and well-known public ones; fetch one.

    Nothing is fetched unless --download says so, and its licence is shown first.

    Example: fastinv models stylegan2-ada/ffhq --download
    """
    from fastinv.checkpoints import listing, registry

    if download and name is None:
        raise UsageError("--download needs the name of a model; `fastinv models` lists them")
    if download and json_:
        raise UsageError("--json is for lists: leave it out of the command with --download")
    if json_:
        print(json.dumps(listing.records(name), indent=1))
        return
    print(listing.overview() if name is None else listing.facts(name), flush=True)
    if download and name not in registry.BUNDLED:
        from fastinv.checkpoints.download import fetch_on_terminal

        print(shown(fetch_on_terminal(registry.public_model(name), accepted=yes)))


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A checkpoint of any family, or a name of `models`.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: .safetensors, or .pt for other code.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="fastinv, rosinality or ada (a plain state dict); else by OUT's end.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Only the generator, encoder or discriminator; else all that IN holds.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="To store in: float32; for .safetensors float16, bfloat16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint; nothing in it is run.

    Reads StyleGAN2-ADA and PTI, TensorFlow StyleGAN and StyleGAN2, rosinality, pSp, e4e, ReStyle, genforce, IDInvert, ALAE and our own files. Sizes are seen in the file; no option describes the network.

    What was written is read back and compared: its tensors, and its outputs on random inputs. OUT is made only if they agree. Where IN holds several networks, each gets a file of its own, OUT with .generator, .encoder or .discriminator before its end; a .pt of rosinality's has generator and discriminator.

    Example: fastinv convert ffhq.pkl ffhq.safetensors
    """  # noqa: E501 - a paragraph is one line: the help breaks lines where these are broken
    from fastinv.checkpoints.convert import convert as run
    from fastinv.devices import named_dtype

    with Progress(hidden=quiet) as progress:
        written = run(source, target, format_, network, named_dtype(dtype), overwrite, progress)
    for one in written:
        print(
            f"{shown(one.path)}  {one.kind}  self-check: largest difference {one.difference:.3g} of {one.largest:.3g}"
            f"  sha256 {one.sha256}"
        )
        for note in one.notes:
            print(f"  {note}")
