"""The commands that edit a part of a picture: the tasks of Image2StyleGAN++, see docs/local-editing.md."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Dtype, Seed, Steps, command, free_folder, say
from fastinv.cli.inversion import options_of
from fastinv.errors import UsageError
from fastinv.files import check_writable, shown

Picture = Annotated[Path, typer.Argument(help="Picture file: PNG, JPEG, WebP, BMP, GIF or TIFF.")]


@dataclass(frozen=True)
class Edit:
    """What one command has to do.

    Attributes:
        task: what it is; the folder of the result is called after it and the pictures.
        pictures, masks: its arguments -> files; a mask may be a function of the resolution, too, that makes it [R, R].
        aim: (pictures, masks, blur) -> the picture that the result is shown beside.
        further: its other arguments.
        function: what does it; None is that called as the task in ``fastinv.inversion.local_edits``.
        method: the method of inversion that it uses.
    """

    task: str
    pictures: dict[str, Path]
    masks: dict[str, Path | Callable | None]
    aim: Callable
    further: dict = field(default_factory=dict)
    function: Callable | None = None
    method: str = "image2stylegan++"


def _shared(
    generator: Annotated[str, typer.Option(help="A bundled name (see `fastinv models`) or a file.")] = "faces64",
    space: Annotated[str | None, typer.Option(help="w+noise or w+; without it the task's own.")] = None,
    steps: Steps = None,
    crop: Annotated[str, typer.Option(help="Not square: center cuts, pad adds white bars.")] = "center",
    out: Annotated[Path, typer.Option(help="Folder for the results, one folder per edit in it.")] = Path("edited"),
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help="Of `fastinv methods image2stylegan++`, e.g. noise_steps=100."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> dict:
    return dict(locals())


def _command(edit: Callable[..., Edit]) -> Callable[..., None]:
    """The command with the arguments of ``edit``, which says what to do, and the options that all of them share."""
    own, shared = (inspect.signature(function).parameters for function in (edit, _shared))

    def run(**arguments) -> None:
        run_edit(edit(**{name: arguments.pop(name) for name in own}), **arguments)

    run.__name__, run.__doc__ = edit.__name__, edit.__doc__
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own.values(), *shared.values()]
    ]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@_command
def inpaint(
    picture: Picture,
    mask: Annotated[Path, typer.Option(help="White where the picture is known, black where it is missing.")],
) -> Edit:
    """Fill the missing part of a picture.

    Example: fastinv inpaint portrait.png --mask known.png
    """
    return Edit("inpaint", {"pictures": picture}, {"masks": mask}, lambda pictures, masks, blur: pictures["pictures"])


@_command
def crossover(
    first: Picture,
    second: Picture,
    mask: Annotated[Path, typer.Option(help="White takes the first picture, black the second.")],
) -> Edit:
    """Make one picture of parts of two.

    Example: fastinv crossover anna.png ben.png --mask left-half.png
    """
    return Edit("crossover", {"first": first, "second": second}, {"masks": mask}, pasted_aim("first", "second"))


@_command
def scribble(
    picture: Picture,
    scribbled: Annotated[Path, typer.Argument(help="The picture with something drawn on it.")],
    mask: Annotated[
        Path | None, typer.Option(help="White where it is to change, black where it stays; else near what was drawn.")
    ] = None,
) -> Edit:
    """Change a picture as a drawing on it says.

    Example: fastinv scribble portrait.png blond.png
    """
    files = {"pictures": picture, "scribbled": scribbled}
    return Edit("scribble", files, {"masks": mask}, lambda pictures, masks, blur: pictures["scribbled"])


@_command
def style_transfer(
    content: Picture,
    style: Picture,
    mask: Annotated[Path, typer.Option(help="White takes the style, black stays.")],
    style_mask: Annotated[
        Path | None, typer.Option(help="White: where in STYLE the style is; without it the same place.")
    ] = None,
) -> Edit:
    """Give a part of a picture the colours and texture of another.

    Example: fastinv style-transfer portrait.png other.png --mask hair.png
    """
    masks = {"masks": mask, "second_style_mask": style_mask}
    return Edit(
        "style_transfer", {"content": content, "style": style}, masks, lambda pictures, masks, blur: pictures["content"]
    )


@_command
def transfer(
    target: Picture,
    source: Picture,
    mask: Annotated[Path, typer.Option(help="White comes from SOURCE, black from TARGET.")],
    at: Annotated[int, typer.Option(help="Resolution of the block whose feature maps are copied, e.g. 32.")],
) -> Edit:
    """Give a picture a part of another, by a copy of feature maps in the generator.

    Example: fastinv transfer portrait.png other.png --mask eyes.png --at 32
    """
    files = {"target": target, "source": source}
    return Edit("activation_transfer", files, {"masks": mask}, pasted_aim("source", "target"), {"at": at})


COMMANDS = {
    "inpaint": inpaint, "crossover": crossover, "scribble": scribble, "style-transfer": style_transfer,
    "transfer": transfer,
}  # fmt: skip


def pasted_aim(inside: str, outside: str) -> Callable:
    """The aim of an edit: one of its pictures pasted into another, under its first mask."""

    def aim(pictures, masks, blur):
        from fastinv.inversion.local_edits import pasted

        return pasted(pictures[inside], pictures[outside], next(iter(masks.values())), blur)

    return aim


def run_edit(
    edit: Edit, generator: str, space: str | None, steps: int | None, crop: str, out: Path, device: str,
    dtype: str | None, seed: int, set_: list[str] | None, quiet: bool, debug: bool,
) -> None:  # fmt: skip
    """Do an edit and write OUT/NAME/{latent.safetensors, reconstruction.png, comparison.png, result.json}."""
    from fastinv.checkpoints import load_generator
    from fastinv.cli.batches import save
    from fastinv.data.pictures import CROPS, load_mask, load_picture
    from fastinv.devices import named_device, named_dtype
    from fastinv.inversion import METHODS, local_edits
    from fastinv.inversion.task import configure, whole_number

    options = options_of(set_ or [])
    configure(METHODS, edit.method, space, steps, options)
    whole_number("--seed", seed, least=0)
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
    dtype = dtype or "float32"
    where, kind = named_device(device), None if dtype == "auto" else named_dtype(dtype)
    check_writable(out)
    G = load_generator(generator, device=where, dtype=kind if dtype == "float64" else None)
    pictures = {name: load_picture(path, G.resolution, crop)[None] for name, path in edit.pictures.items()}
    given = {name: mask for name, mask in edit.masks.items() if mask is not None}
    masks = {
        name: load_mask(mask, G.resolution, crop)[None] if isinstance(mask, Path) else mask(G.resolution)[None, None]
        for name, mask in given.items()
    }
    options |= {"space": space} if space else {}
    options |= {"steps": steps, "seed": seed, "dtype": dtype, "progress": not quiet}
    do = edit.function or getattr(local_edits, edit.task)
    result = do(G, **pictures, **masks, **edit.further, **options)

    files = [str(path.resolve()) for path in edit.pictures.values()]
    settings = {name: value for name, value in result.settings.items() if name not in ("captured", "why_eager")}
    settings |= {"pictures": files, "crop": crop, "command": command(), "device": where.type}
    settings["masks"] = {name: str(mask.resolve() if isinstance(mask, Path) else mask) for name, mask in given.items()}
    name = "-".join([edit.task.replace("_", "-"), *(path.stem for path in edit.pictures.values())])
    folder = free_folder(out, name, lambda folder: _pictures_of(folder) == files)
    target = edit.aim(pictures, masks, settings["options"].get("mask_blur", 0.0))
    title = " + ".join(shown(path.name) for path in edit.pictures.values())
    save(replace(result, settings=settings), target[0], folder, title)
    if not quiet:
        say(f"{settings['task']['name']} took {settings['seconds']:.0f} s")
    print(f"{shown(folder)}  PSNR {result.metrics['psnr'][0]:.2f} dB", flush=True)


def _pictures_of(folder: Path) -> list[str] | None:
    """The pictures that a result in a folder was made of; None where there is none."""
    import json

    try:
        return json.loads((folder / "result.json").read_text())["settings"]["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
