"""The commands for edit directions, see docs/directions.md."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Progress, Seed, command
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import check_writable, shown

app = typer.Typer(help="Find, list and show directions for `fastinv edit`.", no_args_is_help=True)

# Options that belong to some methods only, and to which.
OPTIONS = {
    "--count": ("sefa", "ganspace"),
    "--scores": ("interfacegan", "regression", "stylespace"),
    "--attribute": ("interfacegan", "regression", "stylespace"),
    "--samples": ("ganspace", "interfacegan", "regression", "stylespace"),
    "--share": ("interfacegan", "stylespace"),
    "--keep": ("interfacegan",),
    "--channels": ("stylespace",),
    "--region": ("stylespace",),
}
METHODS = ("sefa", "ganspace", "interfacegan", "regression", "stylespace")
SAMPLES = {"ganspace": 20_000}
LEARNED = 4000  # samples that attributes are read from
SHOWN, DESCRIBED = 4, 16  # random pictures of a strip; and those on which components are described
TRUNCATION = 0.7  # of random pictures in a strip

Generator = Annotated[str, typer.Option(help="A bundled name (see `fastinv models`) or a file.")]
Layers = Annotated[str | None, typer.Option("--layers", metavar="A-B", help="Act on these only, from 0, B included.")]


@app.command()
def find(
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")],
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    generator: Generator = "faces64",
    layers: Layers = None,
    count: Annotated[int | None, typer.Option(help="sefa, ganspace: number of directions; else 10.")] = None,
    scores: Annotated[
        str | None,
        typer.Option(metavar="faces|FILE", help="Of attributes: read by our network of faces, or yours (.csv, .npz)."),
    ] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    samples: Annotated[int | None, typer.Option(help="Random codes to look at; else 4000, ganspace 20000.")] = None,
    share: Annotated[
        float | None, typer.Option(help="interfacegan, stylespace: part of the codes at an end; else 0.02.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|all", help="interfacegan: attribute that has to stay (conditional directions)."),
    ] = None,
    channels: Annotated[int | None, typer.Option(help="stylespace: channels of a direction; else 1.")] = None,
    region: Annotated[
        Path | None, typer.Option(help="stylespace: picture, white where the channels have to act.")
    ] = None,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Find directions of a generator and write them to one file.

    sefa and ganspace need nothing else and give directions without a name; the others learn from scores of attributes.

    Example: fastinv directions find --method interfacegan --keep all --out faces.safetensors
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    given = {
        "--count": count, "--scores": scores, "--attribute": attribute, "--samples": samples, "--share": share,
        "--keep": keep, "--channels": channels, "--region": region,
    }  # fmt: skip
    for option, value in given.items():
        if value not in (None, []) and method not in OPTIONS[option]:
            raise UsageError(f"{option} is for {' and '.join(OPTIONS[option])}, not for {method}")
    if samples is not None and scores not in (None, "faces"):
        raise UsageError(f"--samples is for scores that are read here; {scores} has those that it has: leave one out")
    if share is not None and not 0 < share <= 0.5:
        raise UsageError(f"--share must be above 0 and at most 0.5, not {share}")
    if out.suffix != ".safetensors":
        raise UsageError(f"--out must be a .safetensors file, not {shown(out)}")
    check_writable(out.parent)

    from fastinv.editing.direction import load_directions, save_directions

    if out.exists():
        try:
            load_directions(out)
        except CheckpointError as error:
            raise UsageError(f"{shown(out)} is there, and no file of directions; choose another --out") from error

    with Progress(hidden=quiet) as progress:
        found = _found(method, generator, layers, given, device, seed, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_directions(out, found, {"command": command()})
    _print_table(found)
    print(shown(out), flush=True)


def _found(method, generator, layers, given, device, seed, progress):
    from fastinv.checkpoints import load_generator
    from fastinv.data.pictures import load_mask
    from fastinv.devices import named_device
    from fastinv.editing.ganspace import ganspace
    from fastinv.editing.interfacegan import SHARE, interfacegan
    from fastinv.editing.regression import regression
    from fastinv.editing.sefa import sefa
    from fastinv.editing.stylespace import stylespace

    G = load_generator(generator, device=named_device(device))
    span = _span(layers, G)
    number = given["--samples"] or SAMPLES.get(method, LEARNED)
    if number < 2:
        raise UsageError(f"--samples must be at least 2, not {number}")
    if method in ("sefa", "ganspace"):
        count = 10 if given["--count"] is None else given["--count"]
        found = sefa(G, count, span) if method == "sefa" else ganspace(G, count, span, number, seed)
        return _described(G, found, progress) if _of_faces(G) else found
    held = given["--keep"] or []
    asked = [*(given["--attribute"] or []), *([] if held == ["all"] else held)]
    learned = _scored(G, given["--scores"], asked, number, seed, progress)
    chosen = given["--attribute"] or list(learned.names)
    share = SHARE if given["--share"] is None else given["--share"]
    if method == "regression":
        return [direction for direction in regression(G, learned, span) if direction.name in chosen]
    if method == "interfacegan":
        held = list(learned.names) if held == ["all"] else held
        return interfacegan(G, learned, chosen, held, share, seed, span)
    region = None if given["--region"] is None else load_mask(given["--region"], G.resolution)[0]
    channels = 1 if given["--channels"] is None else given["--channels"]
    found = stylespace(G, learned, chosen, channels, share, region)
    return [replace(direction, layers=span) for direction in found]


def _span(layers: str | None, G) -> tuple[int, int]:
    from fastinv.editing.mix import layers_of

    numbers = range(G.num_ws) if layers is None else layers_of(layers, G.num_ws)
    first, end = numbers[0], numbers[-1] + 1
    if len(numbers) != end - first:
        raise UsageError(f"--layers must be one range, such as 4-{G.num_ws - 1}, not {layers}")
    return first, end


def _of_faces(G) -> bool:
    """Whether G makes the portraits that the shipped attribute network reads."""
    from fastinv.checkpoints import load_generator, network_hash
    from fastinv.checkpoints.registry import DEFAULT

    return network_hash(G) == network_hash(load_generator(DEFAULT))


def _scored(G, scores: str | None, asked: list[str], number: int, seed: int, progress):
    """Samples that have the attributes asked for, which is checked before much is done."""
    from fastinv.editing.samples import NAMES, given_samples, read_samples
    from fastinv.models.attributes import load_attribute_network

    if scores is None and not _of_faces(G):
        raise UsageError(
            "whose attributes? give --scores FILE (`fastinv directions sample` draws pictures to score), or --scores "
            "faces for a generator of our procedural portraits"
        )
    found = given_samples(scores, G, seed) if scores not in (None, "faces") else None
    names = NAMES if found is None else found.names
    for name in asked:
        if name not in names:
            raise UsageError(f"there are no scores of {name!r}; there are {', '.join(names)}")
    if found is not None:
        return found
    return read_samples(G, load_attribute_network(device=G.w_avg.device), number, seed, progress=progress)


def _described(G, directions: list, progress) -> list:
    """Each with the three attributes that a strength of 1 changes most, in their standard deviations."""
    from fastinv.editing.samples import NAMES, effects
    from fastinv.latents import expand, mapped_samples
    from fastinv.models.attributes import load_attribute_network

    network, found = load_attribute_network(device=G.w_avg.device), []
    w_plus = expand(mapped_samples(G, DESCRIBED, seed=1).to(G.w_avg), G.num_ws)
    for done, direction in enumerate(directions):
        progress("directions", done, len(directions))
        changes = effects(G, direction, network, w_plus)
        most = changes.abs().argsort(descending=True)[:3].tolist()
        about = {NAMES[index]: round(float(changes[index]), 3) for index in most}
        found.append(replace(direction, facts=direction.facts | {"changes": about}))
    return found


@app.command("list")
def list_(
    sets: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FILE]...", help="Else those that come with the package.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
    debug: Debug = False,
) -> None:
    """List directions: those that come with the package, or those in files of ours or in public formats."""
    import json

    from fastinv.editing.direction import ABOUT, bundled, find_directions

    directions = {name: list(find_directions(name).values()) for name in sets or bundled()}
    if json_:
        rows = [
            {"set": name, **{key: getattr(one, key) for key in ABOUT}}
            for name in directions
            for one in directions[name]
        ]
        print(json.dumps(rows, indent=1))
        return
    for place, (name, found) in enumerate(directions.items()):
        if len(directions) > 1:
            print(("\n" if place else "") + shown(name))
        _print_table(found)


def _print_table(directions: list) -> None:
    rows = [("NAME", "SPACE", "LAYERS", "STRENGTH", "SOURCE", "")]
    for one in directions:
        first, end = one.layers
        layers = "all" if (first, end) == (0, None) else f"{first}-{'' if end is None else end - 1}"
        rows.append((one.name, one.space, layers, f"{one.strength:g}", one.source, _about(one.facts)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join([cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)] + [row[5]]).rstrip())


def _about(facts: dict) -> str:
    """What is worth a glance: what a component changes, how well a boundary separates, which channels."""
    words = []
    if isinstance(facts.get("changes"), dict):
        words.append(", ".join(f"{name} {change:+.2g}" for name, change in _largest_first(facts["changes"])))
    if isinstance(facts.get("accuracy"), dict) and "validation" in facts["accuracy"]:
        words.append(f"validation {100 * facts['accuracy']['validation']:.3g} %")
    if facts.get("conditions"):
        words.append(f"keeps {len(facts['conditions'])} others")
    if isinstance(facts.get("channels"), list):
        words.append(", ".join(f"{one['layer']}[{one['channel']}]" for one in facts["channels"][:3]))
    return "; ".join(words)


def _largest_first(changes: dict) -> list:
    numbers = [(name, value) for name, value in changes.items() if isinstance(value, int | float)]
    return sorted(numbers, key=lambda part: -abs(part[1]))


@app.command()
def show(
    direction: Annotated[str, typer.Argument(metavar="NAME|FILE[:NAME]", help="A direction, as in `fastinv edit`.")],
    out: Annotated[Path, typer.Option(help="Picture to write.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="FILE", help="A latent file, result or picture; else random portraits."),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option("--strength", "-s", help="May be repeated; else from - to + what is typical.")
    ] = None,
    count: Annotated[int, typer.Option(help="Random pictures.")] = SHOWN,
    generator: Generator = "faces64",
    layers: Layers = None,
    force: Annotated[bool, typer.Option("--force", help="Take a direction of another generator, too.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Draw what a direction does: a row for each picture, a column for each strength.

    Example: fastinv directions show smile --out smile.png
    """
    import torch

    from fastinv.checkpoints import load_generator
    from fastinv.devices import named_device
    from fastinv.editing.apply import edit
    from fastinv.editing.codes import Source, open_sources, render
    from fastinv.editing.direction import find_direction
    from fastinv.latents import expand, mapped_samples, mean_latent, truncate
    from fastinv.report.strip import strip

    if count < 1:
        raise UsageError(f"--count must be at least 1, not {count}")
    check_writable(out.parent)
    G = load_generator(generator, device=named_device(device))
    found = find_direction(direction, G)
    if layers is not None:
        found = replace(found, layers=_span(layers, G))
    strengths = strength or [found.strength * part for part in (-1, -0.5, 0, 0.5, 1)]
    if inputs:
        sources = open_sources([Path(path) for path in inputs], G, force=force, seed=seed)
    else:
        w = truncate(mapped_samples(G, count, seed).to(G.w_avg), mean_latent(G), TRUNCATION)
        sources = [Source(str(row), {"w_plus": code[None]}) for row, code in enumerate(expand(w, G.num_ws))]
    rows = []
    for source in sources:
        codes = edit(G, source.codes, found, strengths, force, source.noise)
        rows.append(list(render(G, codes, source.noise).to("cpu", torch.float32)))
    labels = [[f"{value:+g}" if value else "0" for value in strengths] for _ in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    strip(rows, labels, f"{found.name} ({found.source}, {found.space})", out)
    print(shown(out), flush=True)


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Folder for the pictures 00000.png ... and the table scores.csv.")],
    count: Annotated[int, typer.Option(help="Pictures.")] = 1000,
    generator: Generator = "faces64",
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Draw random pictures to be scored: by you, or by a classifier of yours.

    Add a column for each attribute to scores.csv, with a number for each picture (rows may be left out), and give it to `fastinv directions find --scores`, with the same --seed.
    """  # noqa: E501 - a paragraph is one line: the help breaks lines where these are broken
    import torch

    from fastinv.checkpoints import load_generator
    from fastinv.data.pictures import save_picture
    from fastinv.devices import named_device
    from fastinv.editing.samples import PICTURE, renderer
    from fastinv.files import atomic_file
    from fastinv.latents import expand, mapped_samples

    if count < 1:
        raise UsageError(f"--count must be at least 1, not {count}")
    table = out / "scores.csv"
    if table.exists():
        raise UsageError(f"{shown(table)} is there already, perhaps with your scores; choose another --out")
    check_writable(out)
    names = [f"{index:05d}.png" for index in range(count)]
    there = next((out / name for name in names if (out / name).exists()), None)
    if there is not None:
        raise UsageError(f"{shown(there)} is there already; choose another --out")
    G = load_generator(generator, device=named_device(device))
    out.mkdir(parents=True, exist_ok=True)
    synthesis = renderer(G)
    with Progress(hidden=quiet) as progress, torch.no_grad():
        done = 0
        for part in mapped_samples(G, count, seed).to(G.w_avg).split(32):
            for picture in synthesis(expand(part, G.num_ws)):
                save_picture(picture, out / names[done])
                done += 1
            progress("pictures", done, count)
    with atomic_file(table) as temporary:
        temporary.write_text("\n".join([PICTURE, *names]) + "\n")
    print(shown(table), flush=True)
