"""The commands that invert pictures: invert, methods and demo."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Dtype, Seed, Steps, command, say
from fastinv.errors import CheckpointError, PictureError, UsageError
from fastinv.files import check_writable, shown

# Named here for the help, which must not wait for torch; the tests compare them with METHODS and PRESETS.
METHOD_NAMES = (
    "projector, image2stylegan, image2stylegan++, stylegan-encoder, idinvert, pti, p-norm, psp, e4e, idinvert-encoder, "
    "alae"
)
PRESET_NAMES = "fast, balanced, best"


def invert(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files: PNG, JPEG, WebP, BMP, GIF or TIFF.")],
    generator: Annotated[
        str | None,
        typer.Option(help="A bundled name (see `fastinv models`) or a file; without it faces64, for alae its own."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", help=f"{METHOD_NAMES}; see `fastinv methods`. Else image2stylegan."),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Latent space; without it the method's own.")] = None,
    preset: Annotated[str | None, typer.Option(help=f"Method and options by quality and time: {PRESET_NAMES}.")] = None,
    steps: Steps = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|ENCODER",
            help="Start from: a latent file, a result, a folder with one of them for each picture (by its stem), or an "
            "encoder, by name or file.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Picture of what counts: white is fitted, black ignored; or a folder with one for each picture."
        ),
    ] = None,
    crop: Annotated[str, typer.Option(help="Not square: center cuts, pad adds white bars.")] = "center",
    out: Annotated[Path, typer.Option(help="Folder for the results, one folder per picture in it.")] = Path("inverted"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do finished pictures again, with other settings, too.")
    ] = False,
    every: Annotated[int | None, typer.Option(metavar="N", help="Keep the picture of every N-th step.")] = None,
    video: Annotated[str | None, typer.Option(help="gif: an animation of those (of about 50 without --every).")] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Pictures optimised together.")] = 8,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the method, e.g. learning_rate=0.02."),
    ] = None,
    checkpoint_seconds: Annotated[float, typer.Option(help="Between two saves of the work under way.")] = 30.0,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object per event, and no other lines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Find the latent codes of pictures.

    Writes OUT/NAME/{latent.safetensors, reconstruction.png, comparison.png, result.json} for each picture, with --every frames/00010.png and so on, with --video progress.gif.

    OUT/manifest.json holds the settings and what became of each picture. The same command again goes on where a killed one was, to the same bits, and does what failed or changed; finished pictures stay. Pictures can be added, and several processes can share one OUT.

    Example: fastinv invert portrait.jpg --steps 500 --out results
    """  # noqa: E501 - a paragraph is one line: the help breaks lines where these are broken
    import torch

    from fastinv.checkpoints import load_generator
    from fastinv.cli.batches import Log, Work, invert_batch, tell_result
    from fastinv.data.pictures import CROPS, load_mask
    from fastinv.devices import named_device, named_dtype
    from fastinv.inversion import METHODS, InversionResult, apply_preset
    from fastinv.inversion.frames import STANDARD
    from fastinv.inversion.manifest import DONE
    from fastinv.inversion.runs import Run
    from fastinv.inversion.task import configure, whole_number

    started = time.monotonic()
    method, steps, dtype, options = apply_preset(preset, method, steps, dtype, options_of(set_ or []))
    dtype = dtype or "float32"
    configured, space = configure(METHODS, method, space, steps, options)
    whole_number("--seed", seed, least=0)
    whole_number("--batch", batch, least=1)
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
    if every is not None:
        whole_number("--every", every, least=1)
    if video not in (None, "gif"):
        raise UsageError(f"--video can be gif, not {video!r}")
    if video and every is None:
        every = max(1, configured.steps // STANDARD)
    if not checkpoint_seconds >= 0:
        raise UsageError(f"--checkpoint-seconds must be at least 0, not {checkpoint_seconds}")
    where, kind = named_device(device), None if dtype == "auto" else named_dtype(dtype)
    check_writable(out)

    log = Log(json_)
    readable, failed = _readable(pictures, mask, init, log)
    if not readable:
        raise typer.Exit(2)
    # Only the feature maps are in a short format; weights, latents and sums never are.
    name = configured.generator if generator is None else generator
    G = load_generator(name, device=where, dtype=kind if dtype == "float64" else None)
    configured = configured.fitted(G, mask is not None, init is not None)
    if "encoder" in vars(configured):
        options["encoder"] = configured.encoder  # read once for all batches
    if mask is not None and not mask.is_dir():
        load_mask(mask, G.resolution, crop)  # an error now rather than after the first batch
    start, start_fact = _start(init, G)
    settings = _all_settings(G, configured, space, seed, dtype, where, crop, mask, start_fact, every, video)

    run = Run(out, waiting=say)
    names = {picture.path: path for path, picture in readable.items()}
    manifest = run.plan(
        settings, list(readable.values()), batch, command(), overwrite,
        lambda: _fastest_dtype(G, list(readable)[:batch], crop, configured.steps, quiet),
    )  # fmt: skip
    torch.set_num_threads(run.settings["threads"])
    facts = {"preset": preset}
    if dtype == "auto":
        facts["why_dtype"] = "auto: chosen once for all pictures; manifest.json says why"
    arguments = {"method": method, "space": space, "steps": steps, "seed": seed, "dtype": run.settings["dtype"]}
    work = Work(
        G,
        arguments | options,
        crop,
        mask,
        start,
        every,
        video is not None,
        checkpoint_seconds,
        quiet,
        facts,
        names,
        log,
    )
    before = sum(picture.state == DONE and picture.path in names for picture in manifest.pictures())
    log.event("start", out=str(out), pictures=len(names) + failed, finished=before, settings=run.settings)
    mine = set()
    for one, folder in run.batches(list(names)):
        invert_batch(work, run, one, folder)
        mine |= {picture.path for picture in one.pictures}

    done = 0
    for picture in run.close().pictures():
        if picture.path in names and picture.state == DONE:
            done += 1
            if picture.path not in mine:
                folder = out / picture.folder
                tell_result(log, picture.path, folder, InversionResult.load(folder), None)
        elif picture.path in names:
            failed += 1
            if picture.path not in mine:
                log.failed(picture.path, picture.reason)
    log.event("end", done=done, failed=failed, seconds=round(time.monotonic() - started, 3))
    if failed:
        say(f"{failed} of {done + failed} pictures failed")
        raise typer.Exit(1 if done else 2)


def methods(
    name: Annotated[str | None, typer.Argument(help="List the options of this one.")] = None,
    debug: Debug = False,
) -> None:
    """List the inversion methods, or the options of one.

    Example: fastinv methods pti
    """
    from fastinv.inversion import METHODS
    from fastinv.inversion.feed_forward import FEED_FORWARD

    if name is None:
        rows = [
            (
                method.name,
                ", ".join(method.spaces),
                _summary(method if method in FEED_FORWARD else sys.modules[method.__module__]),
            )
            for method in METHODS.values()
        ]
        _table(("method", "spaces, its own first", "what"), rows)
        return
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    fields = dataclasses.fields(METHODS[name])
    _table(
        ("option", "default", "what"),
        [(field.name, _shown_default(field.default), field.metadata.get("help", "")) for field in fields],
    )


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("fastinv-demo"),
    steps: Steps = None,
    device: Device = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Invert a rendered face and a real photograph with the embedded generator."""
    import torch

    from fastinv.checkpoints import load_generator
    from fastinv.cli.batches import save, shown_metrics
    from fastinv.data import faces
    from fastinv.data.pictures import load_picture
    from fastinv.devices import named_device
    from fastinv.inversion import METHODS
    from fastinv.inversion import invert as run
    from fastinv.inversion.task import configure, whole_number
    from fastinv.report import comparison

    # The photograph is far from what the generator draws: larger and more steps than the default get nearer to it.
    options = {"learning_rate": 0.15, "steps": 600 if steps is None else steps}
    configure(METHODS, "image2stylegan", "w+", options["steps"], {"learning_rate": options["learning_rate"]})
    whole_number("--seed", seed, least=0)
    where = named_device(device)
    check_writable(out)
    G = load_generator("faces64", device=where)
    render = faces.sample(1, seed=seed, split="heldout", resolution=G.resolution)[0][0]
    photograph = load_picture(Path(faces.__file__).parent / "astronaut.png", G.resolution)
    targets = {"render": render, "astronaut": photograph}
    titles = ["a render that the generator has never seen", "a real photograph (NASA, public domain)"]
    both = run(G, torch.stack(list(targets.values())), seed=seed, **options)
    results = [both[row] for row in range(len(targets))]
    for (name, target), result, title in zip(targets.items(), results, titles, strict=True):
        save(result, target, out / name, title)
    metrics = [shown_metrics(result) for result in results]
    comparison(torch.stack(list(targets.values())), both.images, metrics, out / "comparison.png", titles)
    print(out / "comparison.png")
    for name in targets:
        for file in ("latent.safetensors", "reconstruction.png", "comparison.png", "result.json"):
            print(out / name / file)


def options_of(pairs: list[str]) -> dict:
    """``["steps=9", "start=random"]`` -> {"steps": 9, "start": "random"}; values are JSON, else text."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set wants OPTION=VALUE, not {pair!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def _readable(pictures: list[Path], mask: Path | None, init: str | None, log) -> tuple[dict, int]:
    """(path -> picture with its hashes, number of those that cannot be read, which are told)."""
    from fastinv.checkpoints.load import file_sha256
    from fastinv.cli.batches import mask_of, start_file
    from fastinv.data.pictures import check_picture
    from fastinv.inversion.manifest import Picture
    from fastinv.inversion.result import RESULT

    readable, failed = {}, 0
    several_starts = init is not None and Path(init).is_dir() and not (Path(init) / RESULT).is_file()
    seen = set()
    for path in pictures:
        absolute = str(path.resolve())
        if absolute in seen:  # a picture named twice is inverted once
            continue
        seen.add(absolute)
        try:
            check_picture(path)
            companions = {}
            if mask is not None and mask.is_dir():
                companions["mask"] = file_sha256(mask_of(mask, path))
            if several_starts:
                companions["init"] = file_sha256(start_file(Path(init), path))
            readable[path] = Picture(absolute, file_sha256(path), companions=companions)
        except PictureError as error:
            log.failed(absolute, str(error))
            failed += 1
    return readable, failed


def _start(init: str | None, G) -> tuple[object, object]:
    """(what `invert` starts from, what the settings say of it) for --init; a folder with many starts stays a path."""
    import torch

    from fastinv.checkpoints import network_hash
    from fastinv.checkpoints.load import file_sha256
    from fastinv.cli.batches import as_result
    from fastinv.inversion import InversionResult
    from fastinv.inversion.objective import find_encoder
    from fastinv.inversion.result import LATENT, RESULT
    from fastinv.inversion.start import start_codes
    from fastinv.latents import load_codes

    if init is None:
        return None, None
    path = Path(init)
    if path.is_dir() and not (path / RESULT).is_file():
        return path, "folder"
    if path.is_dir():
        start, fact = InversionResult.load(path), {"result": file_sha256(path / LATENT)}
    else:
        try:
            start, fact = as_result(load_codes(path)), {"codes": file_sha256(path)}
        except (FileNotFoundError, CheckpointError):  # no latent file: then an encoder, or its error
            encoder = find_encoder(init, G)
            return encoder, {"encoder": network_hash(encoder)}
    if len(start) != 1:
        raise UsageError(f"--init {shown(path)} holds codes of {len(start)} pictures; give those of one, for all")
    start_codes(start, G, torch.zeros(1, 3, G.resolution, G.resolution))  # an error now rather than after the plan
    return start, fact


def _all_settings(G, configured, space, seed, dtype, where, crop, mask, start, every, video) -> dict:
    """What the manifest says of all results, as JSON can hold it."""
    import torch

    import fastinv
    from fastinv.checkpoints import network_hash
    from fastinv.checkpoints.load import file_sha256
    from fastinv.inversion import plain

    what = None if mask is None else "folder" if mask.is_dir() else file_sha256(mask)
    options = plain(vars(configured))
    files = {value for value in options.values() if isinstance(value, str) and Path(value).is_file()}
    return {
        "generator": network_hash(G), "method": configured.name, "space": space, "options": options, "seed": seed,
        "dtype": dtype, "device": where.type, "crop": crop, "mask": what, "init": start, "every": every, "video": video,
        "files": {name: file_sha256(name) for name in sorted(files)},  # encoders and such, which options name
        "versions": {"fastinv": fastinv.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _fastest_dtype(G, pictures: list[Path], crop: str, steps: int, quiet: bool) -> tuple[str, str]:
    """(dtype, why) for "auto", timed on some of the pictures if there are steps."""
    import torch

    from fastinv.data.pictures import load_picture
    from fastinv.inversion.loop import frozen
    from fastinv.inversion.precision import prepare

    targets = []
    for path in pictures:
        try:
            targets.append(load_picture(path, G.resolution, crop))
        except PictureError:  # told later
            targets.append(torch.zeros(3, G.resolution, G.resolution))
    with frozen(G):
        facts = prepare(G, "auto", torch.stack(targets).to(G.w_avg.device), steps)[1]
    if not quiet:
        say(f"dtype {facts['dtype']} ({facts['why_dtype']})")
    return facts["dtype"], facts["why_dtype"]


def _summary(documented) -> str:
    """The first line of a docstring, of a module or of a class."""
    return documented.__doc__.strip().splitlines()[0].rstrip(".")


def _shown_default(value) -> str:
    """A default as --set takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table: drawn on a terminal; plain lines in columns elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*titles)
        for row in rows:
            table.add_row(*(cell.replace("[", "\\[") for cell in row))
        Console().print(table)
        return
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
