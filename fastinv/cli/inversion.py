"""The commands that invert pictures: invert and demo."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Dtype, Seed, Steps, out_of_memory, say
from fastinv.errors import FastinvError, PictureError, UsageError
from fastinv.files import check_writable, shown


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
    photograph = load_picture(Path(faces.__file__).parent / "astronaut.png", G.resolution)
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
        if not out_of_memory(error):
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
