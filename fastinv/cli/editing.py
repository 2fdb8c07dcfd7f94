"""The commands that edit codes: edit, mix, interpolate and diffuse, see docs/editing.md."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Dtype, Seed, Steps, say
from fastinv.cli.edits import (
    EDIT,
    EDITS,
    STRIP,
    StripOfEdits,
    check_homes,
    check_input,
    check_once,
    check_place,
    facts_of,
    free_place,
    kind_of,
    open_generator,
    save_inversion,
    write,
)  # fmt: skip
from fastinv.cli.local_edits import Edit, Picture, pasted_aim, run_edit
from fastinv.errors import UsageError
from fastinv.files import shown

PER_ROW = 12  # pictures of an interpolation, at most

Codes = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT", help="Latent files, results, folders of results, or pictures to be inverted."),
]
Generator = Annotated[str, typer.Option(help="A bundled name (see `fastinv models`) or a file.")]
Method = Annotated[
    str | None,
    typer.Option("--method", "-m", help="For pictures; else psp where the generator has it, or image2stylegan."),
]
Crop = Annotated[str, typer.Option(help="Not square: center cuts, pad adds white bars.")]
Out = Annotated[Path, typer.Option(help="Folder for the results.")]
Force = Annotated[bool, typer.Option("--force", help="Take codes and directions of another generator, too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def edit(
    inputs: Codes,
    direction: Annotated[
        list[str], typer.Option("--direction", "-d", metavar="NAME|FILE[:NAME]", help="What to change; several: each.")
    ],
    strength: Annotated[
        list[float] | None,
        typer.Option("--strength", "-s", help="How much; several make a strip. Else from - to + what is typical."),
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Add the directions up instead.")] = False,
    mask: Annotated[Path | None, typer.Option(help="Picture: white is edited, black stays as it is.")] = None,
    soften: Annotated[
        float | None, typer.Option(metavar="PIXELS", help="Of the mask's edge; else a 64th of the picture.")
    ] = None,
    generator: Generator = "faces64",
    method: Method = None,
    crop: Crop = "center",
    out: Out = Path("edited"),
    force: Force = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Move pictures along directions, such as smile or age.

    Writes OUT/NAME/edits/DIRECTION/{strip.png, latent.safetensors, edit.json, pictures/STRENGTH.png} for each input and direction; the result of a picture that was inverted goes to OUT/NAME. `fastinv directions list` shows directions.

    Example: fastinv edit portrait.png --direction smile --strength -2 --strength 2
    """  # noqa: E501 - a paragraph is one line: the help breaks lines where these are broken
    from fastinv.data.pictures import load_mask
    from fastinv.editing.blend import check_blend
    from fastinv.editing.codes import check_generator, find_sources, invert_sources
    from fastinv.editing.direction import find_direction
    from fastinv.inversion.local_edits import default_blur

    if any(not math.isfinite(value) for value in strength or ()):
        raise UsageError("--strength must be a finite number")
    if soften is not None and mask is None:
        raise UsageError("--soften is of the edge of a --mask: give one")
    G = open_generator(generator, device, crop, seed, out)
    found = [find_direction(text, G) for text in dict.fromkeys(direction)]
    for one in found:
        check_generator(one.generator_sha256, G, f"direction {one.name!r}", force)
    region = None
    if mask is not None:
        check_blend(G)
        soften = default_blur(G) if soften is None else soften
        if not 0 <= soften < G.resolution:
            raise UsageError(f"--soften must be from 0 to below {G.resolution} pixels, not {soften}")
        region = load_mask(mask, G.resolution, crop)[None]
    edits = [StripOfEdits(group, strength, mask) for group in ([found] if together else [[one] for one in found])]
    check_once([one.name for one in edits], "directions")
    sources = find_sources(dict.fromkeys(inputs), G, crop, force)
    check_once([source.name for source in sources], "inputs")
    check_homes(sources, G, method, out)
    for source in sources:
        for one in edits:
            check_place(out / source.name / EDITS / one.name, EDIT)
            check_input(source, out / source.name, out / source.name / EDITS / one.name / EDIT)

    shared = {"mask": None if mask is None else str(mask.resolve()), "soften": soften} | facts_of(G)
    for source in invert_sources(sources, G, method, seed, not quiet):
        save_inversion(source, out)
        for one in edits:
            folder = out / source.name / EDITS / one.name
            one.write(G, source, folder, region, soften, shared | {"method": source.made_by.get("method")})
            print(shown(folder / STRIP), flush=True)


def mix(
    content: Annotated[Path, typer.Argument(help="What keeps its other layers: a latent file, result or picture.")],
    styles: Annotated[list[Path], typer.Argument(metavar="STYLE", help="Where the layers come from.")],
    layers: Annotated[
        str, typer.Option("--layers", "-l", metavar="A-B,C", help="Counted from 0, ends included, e.g. 4-9.")
    ],
    strength: Annotated[float, typer.Option(help="1 replaces these layers, 0 leaves them.")] = 1.0,
    more: Annotated[list[Path] | None, typer.Option("--content", help="More contents, a row for each.")] = None,
    generator: Generator = "faces64",
    method: Method = None,
    crop: Crop = "center",
    out: Out = Path("edited"),
    force: Force = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Give pictures some layers of others: style mixing.

    Writes OUT/mix-NAMES/{strip.png, latent.safetensors, mix.json, pictures/ROW-COLUMN.png}; with several, contents are rows and styles are columns. docs/editing.md says what the layers of faces64 do.

    Example: fastinv mix anna.png ben.png --layers 4-9
    """  # noqa: E501
    import torch

    from fastinv.editing import mix as run
    from fastinv.editing.codes import find_sources, invert_sources, render
    from fastinv.editing.mix import layers_of

    if not math.isfinite(strength):
        raise UsageError(f"--strength must be a finite number, not {strength}")
    G = open_generator(generator, device, crop, seed, out)
    chosen = layers_of(layers, G.num_ws)
    inputs = [content, *(more or []), *styles]
    sources = [find_sources([path], G, crop, force) for path in inputs]
    count = sum(len(found) for found in sources[: 1 + len(more or [])])
    sources = invert_sources([source for found in sources for source in found], G, method, seed, not quiet)
    contents, others = sources[:count], sources[count:]
    w_plus = torch.cat([source.codes["w_plus"] for source in others])
    mixed = [run(G, source, w_plus, chosen, strength, source.noise) for source in contents]
    if len({(frozenset(codes), source.noise) for codes, source in zip(mixed, contents, strict=True)}) > 1:
        raise UsageError("the contents have codes of different spaces; mix them one by one")
    pictures = [render(G, codes, source.noise).cpu() for codes, source in zip(mixed, contents, strict=True)]
    codes = {name: torch.cat([one[name] for one in mixed]) for name in mixed[0]}
    facts = {"layers": list(chosen), "strength": strength, "method": method} | facts_of(G)
    files = {f"{row}-{column}": image for row, found in enumerate(pictures) for column, image in enumerate(found)}
    heads = [render(G, source.codes, source.noise)[0].cpu() for source in sources]
    label = f"layers {layers}" + (f", {strength:g}" if strength != 1 else "")
    if len(heads) == 2:
        rows = [[*heads, pictures[0][0]]], [[contents[0].name, others[0].name, label]]
    else:
        rows = (
            [[None, *heads[count:]]] + [[head, *found] for head, found in zip(heads, pictures, strict=False)],
            [["", *(source.name for source in others)]] + [[source.name] + [""] * len(others) for source in contents],
        )
    folder = free_place(out, "mix", inputs)
    write(folder, "mix.json", *rows, f"style mixing, {label}", files, codes, contents[0].noise, inputs, facts)
    print(shown(folder / STRIP), flush=True)


def interpolate(
    inputs: Codes,
    steps: Annotated[int, typer.Option(help="Pictures between two inputs.")] = 5,
    gif: Annotated[bool, typer.Option("--gif", help="Also animation.gif, which goes there and back.")] = False,
    w_only: Annotated[
        bool, typer.Option("--w-only", help="Only w_plus, not what else the codes hold, such as noise maps.")
    ] = False,
    generator: Generator = "faces64",
    method: Method = None,
    crop: Crop = "center",
    out: Out = Path("edited"),
    force: Force = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go from one picture to the next in equal steps, linearly in W+.

    Writes OUT/interpolate-NAMES/{strip.png, latent.safetensors, interpolate.json, pictures/NUMBER.png}.

    Example: fastinv interpolate anna.png ben.png --steps 5 --gif
    """
    from fastinv.editing.codes import find_sources, invert_sources, render
    from fastinv.editing.interpolate import left_out, path
    from fastinv.inversion.task import whole_number
    from fastinv.report.strip import animation

    whole_number("--steps", steps, least=0)
    G = open_generator(generator, device, crop, seed, out)
    sources = find_sources(inputs, G, crop, force)
    if len(sources) < 2:
        raise UsageError(f"an interpolation needs at least 2 inputs, not {len(sources)}")
    if len({source.noise for source in sources}) > 1:
        raise UsageError("some inputs were inverted with the generator's noise, others without; take those of one kind")
    sources = invert_sources(sources, G, method, seed, not quiet)
    codes = path(*(source.codes for source in sources), steps=steps, w_only=w_only)
    pairs = list(zip(sources, sources[1:], strict=False))
    missing = sorted({kind_of(name) for a, b in pairs for name in left_out(a, b, w_only)} - {"z"})
    if missing and not w_only:
        say(f"left out, so that the ends are not quite the inputs: {', '.join(missing)}")
    noise = sources[0].noise
    pictures = render(G, codes, noise).cpu()
    labels = [f"{step / (steps + 1):.2f}" for _ in pairs for step in range(steps + 1)] + [""]
    labels[:: steps + 1] = [source.name for source in sources]
    ends = [(first, first + steps + 2) for first in range(0, len(pictures) - 1, steps + 1)]  # of each pair
    parts = [slice(at, min(at + PER_ROW, end)) for first, end in ends for at in range(first, end, PER_ROW)]
    rows = [list(pictures[part]) for part in parts], [labels[part] for part in parts]
    files = {f"{number:03d}": image for number, image in enumerate(pictures)}
    folder = free_place(out, "interpolate", inputs)
    facts = {"steps": steps, "left_out": missing, "method": method} | facts_of(G)
    extra = (lambda where: animation(pictures, where / "animation.gif")) if gif else None
    write(folder, "interpolate.json", *rows, "", files, codes, noise, inputs, facts, extra)
    print(shown(folder / STRIP), flush=True)


def diffuse(
    target: Picture,
    context: Annotated[Path, typer.Argument(help="The picture that the part comes into.")],
    mask: Annotated[Path | None, typer.Option(help="White: the part of TARGET; black comes from CONTEXT.")] = None,
    center: Annotated[
        str | None, typer.Option(metavar="X,Y", help="Of a square part, in the generator's pixels; else of a face.")
    ] = None,
    size: Annotated[float | None, typer.Option(metavar="S", help="Side of that square; else of a face.")] = None,
    generator: Generator = "faces64",
    space: Annotated[str | None, typer.Option(help="w+ or w; without it w+.")] = None,
    steps: Steps = None,
    crop: Crop = "center",
    out: Out = Path("edited"),
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Of `fastinv methods idinvert`, e.g. domain_weight=2."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Diffuse a part of a picture, such as a face, into another: IDInvert's semantic diffusion.

    Writes OUT/diffuse-NAMES as `fastinv invert` does; comparison.png shows the pasted pictures beside the result.

    Example: fastinv diffuse anna.png ben.png --center 31,36 --size 28
    """
    from fastinv.editing.diffuse import diffuse as run

    if mask is not None and (center is not None or size is not None):
        raise UsageError("--mask says which part it is; leave out --center and --size, or --mask")
    part = mask if mask is not None else Square(_point(center), size)
    pictures = {"target": target, "context": context}
    work = Edit("diffuse", pictures, {"mask": part}, pasted_aim("target", "context"), {}, run, "idinvert")
    run_edit(work, generator, space, steps, crop, out, device, dtype, seed, set_, quiet, debug)


@dataclass(frozen=True)
class Square:
    """A mask of ``size`` pixels a side round ``center``; None is that of IDInvert's faces."""

    center: tuple[float, float] | None
    size: float | None

    def __call__(self, resolution: int):
        from fastinv.editing.blend import box
        from fastinv.editing.diffuse import FACE_CENTER, FACE_SIZE

        center = tuple(part * resolution for part in FACE_CENTER) if self.center is None else self.center
        return box(resolution, center, FACE_SIZE * resolution if self.size is None else self.size)

    def __str__(self) -> str:
        center = "the middle of a face" if self.center is None else "{:g},{:g}".format(*self.center)
        return f"square round {center}" + ("" if self.size is None else f", {self.size:g} pixels a side")


def _point(text: str | None) -> tuple[float, float] | None:
    """ "31,36" -> (31.0, 36.0)."""
    if text is None:
        return None
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--center wants X,Y, such as 31,36, not {text!r}") from error
    return x, y
