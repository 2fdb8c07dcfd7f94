"""The commands that measure: evaluate and benchmark-methods."""

import json
import platform
from pathlib import Path
from typing import Annotated

import typer

from fastinv.cli.common import Debug, Device, Progress, Seed, command, say
from fastinv.errors import UsageError
from fastinv.files import check_writable, shown

# Named here for the help, which must not wait for torch; the tests compare them with MEASURES.
METRIC_NAMES = (
    "mse, psnr, ssim, ms-ssim, lpips, features, identity, identity-attributes, attributes, fid, frechet-attributes, "
    "swd, edits, lec"
)
FACES = "faces"


def evaluate(
    a: Annotated[Path, typer.Argument(help="Target pictures: a folder or a file; or results of `fastinv invert`.")],
    b: Annotated[Path | None, typer.Argument(help="What is compared with them: a folder or a file.")] = None,
    metrics: Annotated[str | None, typer.Option(help=f"Separated by commas: {METRIC_NAMES}. Else all.")] = None,
    crop: Annotated[
        str, typer.Option(metavar="none|face|L,T,R,B", help="The part to measure: all, the face, or fractions.")
    ] = "none",
    resolution: Annotated[
        int | None,
        typer.Option(metavar="N", help="Bring pictures to N pixels; else the smallest, or the results' own."),
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="Render codes again, not reconstruction.png; for edits and lec. Name or file.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="For lec, by name or file; else the generator's own, where it has one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write evaluation.json, evaluation.csv and pictures.csv there.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures looked at together.")] = 32,
    force: Annotated[bool, typer.Option("--force", help="Accept codes of another generator.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Measure how far pictures are from others: distortion, perception, identity, editability.

    Two folders are paired by the names of their files; the distances of sets (fid, frechet-attributes, swd) take the unpaired ones, too. With one folder, that of `fastinv invert`, its reconstructions are compared with what was inverted.

    Every number comes with its settings. What needs weights that are not here says which file to put where.

    Example: fastinv evaluate originals reconstructions --metrics psnr,ssim,swd
    """  # noqa: E501 - a paragraph is one line: the help breaks lines where these are broken
    from fastinv.checkpoints import load_generator
    from fastinv.devices import named_device
    from fastinv.evaluation import MEASURES
    from fastinv.evaluation import evaluate as run
    from fastinv.evaluation.pictures import results, two_files, two_folders
    from fastinv.inversion.task import whole_number

    names = list(MEASURES) if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        raise UsageError(f"--metrics: {(unknown or [''])[0]!r} is no metric; there are {', '.join(MEASURES)}")
    whole_number("--batch", batch, least=1)
    whole_number("--seed", seed, least=0)
    if resolution is not None:
        whole_number("--resolution", resolution, least=1)
    part = _crop(crop)
    where = named_device(device)
    for path in (a, b):
        if path is not None and not path.exists():
            raise UsageError(f"{shown(path)}: no such file or folder")
    if out is not None:
        check_writable(out)
    G = None if generator is None else load_generator(generator, device=where)
    if b is None:
        compared = results(a, G, resolution, where, force)
    elif a.is_dir() and b.is_dir():
        compared = two_folders(a, b, resolution, where)
    elif a.is_dir() or b.is_dir():
        raise UsageError(f"{shown(a)} and {shown(b)} must be two folders or two pictures")
    else:
        compared = two_files(a, b, resolution, where)
    for line in compared.left_out:
        say(line)
    if G is not None and encoder is None and "lec" in names:
        encoder = _own_encoder(G, compared.codes)
    with Progress(json_) as progress:
        found = run(
            compared.a, compared.b, names, crop=part, pairs=compared.pairs, G=G, encoder=encoder, codes=compared.codes,
            names=compared.names, batch=batch, seed=seed, progress=progress,
        )  # fmt: skip
    found.settings.update({"a": str(a), "b": None if b is None else str(b), "command": command()})
    found.settings["left_out"] = compared.left_out
    if json_:
        print(json.dumps(found.as_json(), allow_nan=False))
    else:
        print(f"{compared.pairs} pairs of {len(compared.a)} and {len(compared.b)} pictures; {found.table()}")
    if out is not None:
        for path in found.save(out):
            if not json_:
                print(shown(path))
    if compared.failed:
        say(f"{compared.failed} pictures could not be compared")
        raise typer.Exit(1)


def benchmark_methods(
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "-m",
            metavar="NAME[:OPTION=VALUE,...],...",
            help="Methods and presets (see `fastinv methods`), e.g. psp,e4e,image2stylegan:space=w,steps=100,fast",
        ),
    ],
    generator: Annotated[str, typer.Option(help="A bundled name or a file.")] = "faces64",
    data: Annotated[str, typer.Option(metavar="DIR|faces", help="Pictures; faces are held-out renders.")] = FACES,
    count: Annotated[int, typer.Option(help="The first so many pictures.")] = 20,
    out: Annotated[Path, typer.Option(help="Folder for the table and its rows.")] = Path("methods"),
    batch: Annotated[int, typer.Option(help="Pictures inverted together.")] = 10,
    dtype: Annotated[
        str | None, typer.Option(help="Arithmetic of the searches; else the method's own: float32, or the preset's.")
    ] = None,
    consistency: Annotated[
        bool, typer.Option("--lec/--no-lec", help="Measure lec, which takes a second inversion of each picture.")
    ] = True,
    plotted: Annotated[bool, typer.Option("--plot/--no-plot", help="Draw methods.png, which takes matplotlib.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure rows that are there again.")] = False,
    device: Device = "auto",
    seed: Seed = 0,
    debug: Debug = False,
) -> None:
    """Measure inversion methods side by side: distortion, perception, editability, time.

    Writes OUT/methods.md, .csv, .json and .png, and OUT/rows with one file for each method: the same command again goes on where a killed one was, and with more methods it adds theirs.

    What needs known attributes (attributes, moved, leaked, edited and what the attribute network sees) is measured for --data faces only; pictures of a folder are edited along principal components of W for lec.

    Example: fastinv benchmark-methods --methods psp,e4e,image2stylegan:space=w,steps=100,fast --count 20 --out methods
    """  # noqa: E501 - a paragraph is one line: the help breaks lines where these are broken
    import torch

    from fastinv.checkpoints import load_generator
    from fastinv.devices import named_device, named_dtype
    from fastinv.evaluation import tables
    from fastinv.evaluation.methods import read_entries, run
    from fastinv.inversion.task import whole_number

    entries = read_entries(methods)
    whole_number("--count", count, least=1)
    whole_number("--batch", batch, least=1)
    whole_number("--seed", seed, least=0)
    if dtype not in (None, "auto"):
        named_dtype(dtype)
    if plotted:
        tables.check_plot()
    check_writable(out)
    where = named_device(device)
    G = load_generator(generator, device=where)
    pictures = _pictures(data, count, G, where)
    facts = {
        "cpu" if where.type == "cpu" else "gpu": _machine(where), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip

    def tell(name: str, row: dict, kept: bool) -> None:
        print(
            f"{name}  PSNR {row['psnr']:.2f} dB  {row['seconds']:.3g} s" + ("  (was there)" if kept else ""), flush=True
        )

    rows = run(
        entries, G, pictures, out, batch=batch, dtype=dtype, seed=seed, consistency=consistency, facts=facts,
        overwrite=overwrite, tell=tell,
    )  # fmt: skip
    paths = tables.save(rows, out, pictures.source, command(), plotted)
    print("\n" + tables.markdown(rows))
    for path in paths:
        print(shown(path))


def _crop(text: str):
    """What ``evaluate`` takes as crop, of the option's text."""
    from fastinv.evaluation import crop_box

    if "," not in text:
        crop_box(text)
        return text
    try:
        box = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--crop: {text!r} must be four numbers between 0 and 1: left, top, right, bottom") from error
    return crop_box(box)


def _own_encoder(G, codes: list) -> str | None:
    """The bundled encoder that the codes come from, else the pSp one of the generator, if there is one."""
    from fastinv.inversion.feed_forward import FEED_FORWARD
    from fastinv.inversion.objective import own_encoder

    method = codes[0].settings.get("method") if codes else None
    return own_encoder(G, method if method in {one.name for one in FEED_FORWARD} else "psp")


def _pictures(data: str, count: int, G, device):
    """The pictures that methods are measured on."""
    import torch

    from fastinv.data import faces
    from fastinv.data.pictures import load_picture
    from fastinv.evaluation.methods import Pictures
    from fastinv.training.sources import picture_files

    if data == FACES:
        images, attributes = faces.sample(count, seed=0, split="heldout", resolution=G.resolution)
        attributes = {name: value.to(device) for name, value in attributes.items()}
        return Pictures(images.to(device), attributes, "held-out renders of the procedural faces, seed 0")
    files = picture_files(data)[:count]
    if len(files) < count:
        say(f"{shown(data)} holds {len(files)} pictures, not {count}")
    images = torch.stack([load_picture(path, G.resolution) for path in files])
    return Pictures(images.to(device), None, f"the first {len(files)} of {Path(data).name}")


def _machine(device) -> str:
    """Name of the processor."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
