"""The command that makes pictures of pictures in one pass, for the tasks of docs/image-to-image.md."""

from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Seed, command, say
from fastinv.errors import PictureError, UsageError
from fastinv.files import check_writable, shown


def translate(
    pictures: Annotated[
        list[Path], typer.Argument(help="Pictures, sketches or label maps, as the encoder takes them.")
    ],
    encoder: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="The encoder; its file says what it was trained for.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for NAME.png and NAME.safetensors of each picture.")],
    generator: Annotated[str, typer.Option(help="What the encoder is for: a bundled name or a file.")] = "faces64",
    outputs: Annotated[int, typer.Option(metavar="N", help="Pictures of each, side by side: the first is plain.")] = 1,
    mix_from: Annotated[int, typer.Option(metavar="L", help="The others have random styles from this layer on.")] = 8,
    strength: Annotated[float, typer.Option(help="Of these styles: 0 leaves the code, 1 replaces its layers.")] = 1.0,
    factor: Annotated[
        int | None, typer.Option(metavar="K", help="Super-resolution: first shrink the picture by this factor.")
    ] = None,
    crop: Annotated[str, typer.Option(help="Not square: center cuts, pad adds bars.")] = "center",
    device: Device = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Turn sketches, label maps, small or turned faces into pictures, with one pass of an encoder.

    Writes OUT/NAME.png, with several outputs side by side, and OUT/NAME.safetensors, their codes.

    Example: fastinv translate drawing.png --encoder sketch.safetensors --out drawn --outputs 4 --mix-from 5
    """
    import torch

    from fastinv.checkpoints import load_encoder, load_generator, network_hash
    from fastinv.data.grid import grid
    from fastinv.data.pictures import CROPS, save_picture
    from fastinv.devices import named_device
    from fastinv.inversion.objective import find_encoder
    from fastinv.inversion.translate import translate as checked
    from fastinv.inversion.translate import variants
    from fastinv.latents import save_latent
    from fastinv.training.encoder_options import FULL_SIZE
    from fastinv.training.tasks import SuperResolution, reduced, task_of

    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
    where = named_device(device)
    targets = _files(pictures, out)
    check_writable(out)
    E = load_encoder(encoder, device=where)
    task = task_of(encoder, E)
    if factor is not None and not isinstance(task, SuperResolution):
        raise UsageError(f"--factor is for super-resolution; {encoder} was trained for {task.name}")
    G = load_generator(generator, device=where)
    size = min(G.resolution, FULL_SIZE)  # at which encoders are trained
    options = {"outputs": outputs, "mix_from": mix_from, "strength": strength, "seed": seed}
    checked(G, E, torch.zeros(1, task.input_nc, size, size), **options)  # bad options before any picture
    E = find_encoder(E, G).to(where)
    if factor is not None:
        reduced(torch.zeros(1, 3, size, size), factor)
    facts = {
        "task": task.facts(), "encoder": network_hash(E), "generator": network_hash(G), "factor": factor, "crop": crop,
        **options, "command": command(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path, target in targets.items():
        try:
            source = task.encoded(task.load_source(path, size, crop)[None])
        except PictureError as error:
            say(str(error))
            failed += 1
            continue
        if factor is not None:
            source = reduced(source, factor)
        made, codes = (values[0].cpu() for values in variants(G, E, source, **options))
        save_latent(target.with_suffix(".safetensors"), codes, facts | {"picture": str(path.resolve())})
        save_picture(grid(made, columns=outputs), target)
        print(shown(target), flush=True)
    if failed:
        say(f"{failed} of {len(targets)} pictures failed")
        raise typer.Exit(1 if failed < len(targets) else 2)


def _files(pictures: list[Path], out: Path) -> dict[Path, Path]:
    """{picture: file to write}; UsageError where two would be one, or a picture would be overwritten."""
    targets = {path: out / f"{path.stem}.png" for path in dict.fromkeys(pictures)}
    owners: dict[Path, Path] = {}
    for path, target in targets.items():
        if target in owners:
            raise UsageError(f"{shown(owners[target])} and {shown(path)} would both become {shown(target)}; rename one")
        owners[target] = path
        if target.resolve() in {picture.resolve() for picture in pictures}:
            raise UsageError(f"{shown(target)} is one of the pictures; choose another --out")
    return targets
