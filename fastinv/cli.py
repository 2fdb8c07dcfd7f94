"""The command line.

Exit status: 0 done; 1 some pictures failed, the others are done; 2 wrong usage or input; 70 an error of fastinv itself;
130 interrupted. Errors are one line on standard error; `--debug` shows the traceback as well.

Only light imports at the top: `fastinv --help` does not import torch.
"""

import json
import signal
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastinv.errors import FastinvError, PictureError, UsageError
from fastinv.files import check_writable, shown

app = typer.Typer(
    help="Turns a picture into a StyleGAN latent code and back, fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a network; `fastinv train generator --help` lists its options.", no_args_is_help=True)
app.add_typer(train, name="train")
_state = {"debug": False}


def say(message: str) -> None:
    """One line on standard error."""
    print("fastinv: " + " ".join(message.splitlines()), file=sys.stderr, flush=True)


def _set_debug(value: bool) -> bool:
    _state["debug"] = _state["debug"] or value
    return value


def _version(value: bool) -> None:
    if value:
        import fastinv

        print(f"fastinv {fastinv.__version__}")
        raise typer.Exit


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")]
Dtype = Annotated[
    str, typer.Option(help="Arithmetic: float32, float64, bfloat16, float16, or auto (the sooner to the same quality).")
]
Seed = Annotated[int, typer.Option(help="Of everything random; the same seed gives the same result.")]
Steps = Annotated[int | None, typer.Option(help="Optimisation steps; without it the method's default.")]


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


@app.command()
def invert(
    pictures: Annotated[list[Path], typer.Argument(help="Picture files: PNG, JPEG, WebP, BMP, GIF or TIFF.")],
    generator: Annotated[str, typer.Option(help="A bundled name (see `fastinv models`) or a file.")] = "faces64",
    method: Annotated[str, typer.Option(help="Inversion method.")] = "image2stylegan",
    space: Annotated[str, typer.Option(help="Latent space: w+ or w.")] = "w+",
    steps: Steps = None,
    mask: Annotated[Path | None, typer.Option(help="Picture of what counts: white is fitted, black ignored.")] = None,
    crop: Annotated[str, typer.Option(help="Not square: center cuts, pad adds white bars.")] = "center",
    out: Annotated[Path, typer.Option(help="Folder for the results, one folder per picture in it.")] = Path("inverted"),
    device: Device = "auto",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    batch: Annotated[int, typer.Option(help="Pictures optimised together.")] = 8,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="An option of the method, e.g. learning_rate=0.02."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Find the latent codes of pictures.

    Writes OUT/NAME/{latent.safetensors, reconstruction.png, comparison.png, result.json} for each picture.

    Example: fastinv invert portrait.jpg --steps 500 --out results
    """
    from fastinv.checkpoints import load_generator
    from fastinv.data.pictures import CROPS, check_picture, load_mask, load_picture
    from fastinv.devices import named_device, named_dtype
    from fastinv.inversion import METHODS
    from fastinv.inversion.task import configure, whole_number

    options = _options(set_ or [])
    configure(METHODS, method, space, steps, options)
    whole_number("--seed", seed, least=0)
    whole_number("--batch", batch, least=1)
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
    where, kind = named_device(device), None if dtype == "auto" else named_dtype(dtype)
    check_writable(out)

    failed = 0
    readable = []
    for path in dict.fromkeys(pictures):  # a picture named twice is inverted once
        try:
            check_picture(path)
            readable.append(path)
        except PictureError as error:
            say(str(error))
            failed += 1
    if not readable:
        raise typer.Exit(2)
    # Only the feature maps are in a short format; weights, latents and sums never are.
    G = load_generator(generator, device=where, dtype=kind if dtype == "float64" else None)
    masks = load_mask(mask, G.resolution, crop)[None] if mask else None
    names = dict(zip(readable, _names(readable, out), strict=True))

    done, arithmetic = 0, {}
    for start in range(0, len(readable), batch):
        targets = {}
        for path in readable[start : start + batch]:
            try:
                targets[path] = load_picture(path, G.resolution, crop)
            except PictureError as error:
                say(str(error))
                failed += 1
        if not targets:
            continue
        results = _invert_batch(
            G, list(targets.values()), [shown(path) for path in targets],
            method=method, space=space, steps=steps, masks=masks, seed=seed, progress=not quiet, dtype=dtype, **options,
        )  # fmt: skip
        if dtype == "auto":
            chosen = next((result.settings for result in results if result is not None), None)
            if chosen is not None:  # the same for all batches
                dtype, arithmetic = chosen["dtype"], {"why_dtype": chosen["why_dtype"]}
                if not quiet:
                    say(f"dtype {dtype} ({chosen['why_dtype']})")
        for (path, target), result in zip(targets.items(), results, strict=True):
            if result is None:
                failed += 1
                continue
            facts = {"picture": str(path.resolve()), "crop": crop, "mask": str(mask.resolve()) if mask else None}
            facts |= arithmetic
            try:
                _save(replace(result, settings=result.settings | facts), target, out / names[path], shown(path))
            except FastinvError as error:
                say(str(error))
                failed += 1
                continue
            done += 1
            print(f"{shown(out / names[path])}  PSNR {result.metrics['psnr'][0]:.2f} dB", flush=True)
    if failed:
        say(f"{failed} of {done + failed} pictures failed")
        raise typer.Exit(1 if done else 2)


@app.command()
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
    from fastinv.data import faces
    from fastinv.data.pictures import load_picture
    from fastinv.devices import named_device
    from fastinv.inversion import METHODS
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
    photograph = load_picture(Path(__file__).parent / "data" / "astronaut.png", G.resolution)
    targets = {"render": render, "astronaut": photograph}
    titles = ["a render that the generator has never seen", "a real photograph (NASA, public domain)"]
    results = _invert_batch(G, list(targets.values()), list(targets), seed=seed, **options)
    if None in results:
        raise typer.Exit(2)
    for (name, target), result, title in zip(targets.items(), results, titles, strict=True):
        _save(result, target, out / name, title)
    images = torch.cat([result.images for result in results])
    shown_metrics = [_shown_metrics(result) for result in results]
    comparison(torch.stack(list(targets.values())), images, shown_metrics, out / "comparison.png", titles)
    print(out / "comparison.png")
    for name in targets:
        for file in ("latent.safetensors", "reconstruction.png", "comparison.png", "result.json"):
            print(out / name / file)


@app.command()
def info(json: Annotated[bool, typer.Option("--json", help="The facts as JSON.")] = False) -> None:
    """Show versions, the compiled library, and which implementation each op takes and why."""
    from fastinv.info import main as run

    run(as_json=json)


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Say more about this one.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch it into the cache folder.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept its licence without being asked.")] = False,
    debug: Debug = False,
) -> None:
    """List the checkpoints that come with the package and well-known public ones; fetch one.

    Nothing is fetched unless --download says so, and its licence is shown first. The cache folder is FASTINV_CACHE.
    """
    from fastinv.checkpoints import registry

    if name is None:
        if download:
            raise UsageError("--download needs the name of a model; `fastinv models` lists them")
        print(registry.overview())
        return
    print(registry.facts(name), flush=True)
    if download and name not in registry.BUNDLED:
        from fastinv.checkpoints.download import fetch

        def agreed(model) -> bool:
            return yes or typer.confirm(f"Download {model.size} under this licence: {model.licence}?")

        with _Progress() as progress:
            path = fetch(registry.public_model(name), agreed, progress=lambda n, total: progress(name, n, total))
        print(shown(path))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A checkpoint of any family, or a name of `models`.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: .safetensors, or .pt for other code.")],
    format_: Annotated[
        str | None, typer.Option("--format", help="fastinv, rosinality or ada (a plain state dict); else by OUT's end.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Only the generator, encoder or discriminator; else all that IN holds.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="To store in, .safetensors only: float32, float16, bfloat16.")] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint, without running anything in it, and check the result on random inputs.

    Reads StyleGAN2-ADA .pkl, PTI, TensorFlow StyleGAN and StyleGAN2 .pkl, rosinality .pt, pSp, e4e, ReStyle .pt,
    genforce, IDInvert and ALAE .pth, and our safetensors. No option describes the network: sizes are seen in the file.

    Example: fastinv convert ffhq.pkl ffhq.safetensors
    """
    from fastinv.checkpoints.convert import convert as run
    from fastinv.devices import named_dtype

    kind = None if dtype == "float32" else named_dtype(dtype)
    with _Progress(hidden=quiet) as progress:
        written = run(source, target, format_, network, kind, overwrite, progress)
    for one in written:
        print(
            f"{shown(one.path)}  {one.kind}  self-check: largest difference {one.difference:.3g} of {one.largest:.3g}"
            f"  sha256 {one.sha256}",
            flush=True,
        )


class _Progress:
    """One bar on standard error for work that says (what, done, total); nothing where that is no terminal."""

    def __init__(self, hidden: bool = False):
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=hidden or not console.is_terminal)
        self.tasks: dict = {}

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done, total=total)


_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@train.command("generator", context_settings=_PASSED_ON, add_help_option=False)
def train_generator(context: typer.Context) -> None:
    """A StyleGAN2 generator, on the procedural faces or a folder of pictures."""
    from fastinv.training.generator import main as run

    run(context.args)


@train.command("attributes", context_settings=_PASSED_ON, add_help_option=False)
def train_attributes(context: typer.Context) -> None:
    """The network that reads the attributes of the procedural faces."""
    from fastinv.training.attributes import main as run

    run(context.args)


def _options(pairs: list[str]) -> dict:
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


def _names(pictures: list[Path], out: Path) -> list[str]:
    """A folder name per picture: its stem; with a number where another picture, now or earlier, has that name."""
    names: list[str] = []
    for path in pictures:
        number, name = 1, path.stem
        while name.casefold() in map(str.casefold, names) or _holds_other(out / name, path):
            number += 1
            name = f"{path.stem}-{number}"
        names.append(name)
    return names


def _holds_other(folder: Path, picture: Path) -> bool:
    """Whether the folder is the result of another picture, or no folder."""
    if not folder.is_dir():
        return folder.exists()
    try:
        return json.loads((folder / "result.json").read_text())["settings"]["picture"] != str(picture.resolve())
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no complete result


def _invert_batch(G, targets: list, titles: list[str], **arguments) -> list:
    """One result per picture, None (and a line on standard error) for those whose loss was not finite."""
    import torch

    from fastinv.inversion import NonFiniteLossError
    from fastinv.inversion import invert as run

    try:
        result, failed = run(G, torch.stack(targets), **arguments), {}
    except NonFiniteLossError as error:
        result, failed = error.result, error.failed
        for row, step in failed.items():
            say(f"{titles[row]}: the loss is not finite after {step} steps; lower learning_rate or use --dtype float32")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise UsageError(f"out of memory with {len(targets)} pictures at a time; use a smaller --batch") from error
    return [None if row in failed else result[row] for row in range(len(targets))]


def _save(result, target, folder: Path, title: str) -> None:
    """Write one picture's result with its comparison picture."""
    from fastinv.report import comparison

    sheet = comparison(target[None], result.images, [_shown_metrics(result)], names=[title])
    result.save(folder, {"comparison.png": sheet})


def _shown_metrics(result) -> dict[str, str]:
    """The metrics of a result of one picture as people read them."""
    metrics = {name: values[0] for name, values in result.metrics.items()}
    lines = {"PSNR": f"{metrics['psnr']:.2f} dB", "MSE": f"{metrics['mse']:.3g}"}
    if "psnr_masked" in metrics:
        lines["PSNR within the mask"] = f"{metrics['psnr_masked']:.2f} dB"
    if "loss_perceptual" in metrics:
        trunk = result.settings.get("trunk", {}).get("name", "")
        lines["perceptual loss"] = f"{metrics['loss_perceptual']:.3g}" + (f" ({trunk})" if trunk else "")
    return lines | {"steps": str(metrics["best_step"])}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (None: this process's arguments) and return the exit status."""
    import logging

    _state["debug"] = False
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what Pillow has to say is in our one line
    if arguments is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(arguments)


def _show_warning(message, category, *place) -> None:
    if category.__name__ == "CheckpointWarning":  # told by name: torch may not be imported here
        say(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *place[:2]))


def _run(arguments: list[str] | None) -> int:
    try:
        status = typer.main.get_command(app).main(arguments, prog_name="fastinv", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except FastinvError as error:
        status = 2
        say(str(error))
        _show_traceback()
    except Exception as error:
        if hasattr(error, "format_message"):  # of the option parser
            status = error.exit_code
            if message := error.format_message().rstrip("."):  # none where it has already shown the help
                say(f"{message}; `fastinv --help` lists commands and options")
        elif _out_of_memory(error):
            status = 2
            say("out of memory; use smaller batches, pictures or networks")
        else:
            status = 70
            first = (str(error).splitlines() or [""])[0]
            hint = "" if _state["debug"] else "; --debug shows where"
            say(f"unexpected {type(error).__name__}: {first}{hint}; please report it")
        _show_traceback()
    if status == 130:
        say("interrupted")
    return status if isinstance(status, int) else 0


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of a GPU (told by name: torch may not be imported here)."""
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_type or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def _show_traceback() -> None:
    if _state["debug"]:
        traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
