"""Picture-to-picture encoders on held-out renders: distance to the target, attributes, identity, time, and a picture.

    python benchmarks/tasks.py ENCODER... [--count 200] [--mix-from 5] [--out benchmarks/results/tasks]
    python benchmarks/tasks.py --table

Each encoder's file says its task, see docs/image-to-image.md. Sources and targets are those of the first ``count``
held-out portraits; super-resolution has a row for each factor. OUT/<row>.json are left, and OUT/table.md of those that
are there. Beside each stands the mean latent's picture, the same for all sources.

psnr (range 2) and ssim are to the target, outputs clamped. ``attributes``, see benchmarks/inversion.py, are against
those of the target (frontal: yaw and pitch 0), ``shape`` the mean of those that lines can show; ``identity`` is the
cosine of the attribute network's embeddings of output and target. ``ms`` are of one picture, encoder and generator, one
at a time.

docs/pictures/task_<task>.png shows held-out portraits in columns: source, output, target, and three outputs with random
styles from layer ``--mix-from`` on. Super-resolution is shown at --shown-factor.
"""

import argparse
import json
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, seconds, write
from inversion import COLUMNS as METRICS
from torch.nn import functional

import fastinv
from fastinv.checkpoints import network_hash
from fastinv.data import faces
from fastinv.data.grid import grid
from fastinv.data.pictures import save_picture
from fastinv.evaluation.methods import Pictures, quality
from fastinv.latents import mean_latent
from fastinv.training.tasks import (
    CHANCES,
    FACTORS,
    LEAST,
    TASKS,
    Frontalize,
    Pair,
    SuperResolution,
    Task,
    reduced,
    task_of,
)

OUT = ROOT / "benchmarks" / "results" / "tasks"
PICTURES = ROOT / "docs" / "pictures"
SHOWN = 6  # portraits of a picture
BATCH = 50
SHAPE = (
    "yaw", "pitch", "smile", "eye_open", "gaze", "hair_length", "glasses", "beard", "face_width",
)  # fmt: skip
MEASURED = ("psnr", "ssim", "attributes", "shape", "identity")
COLUMNS = ("row", *MEASURED, "ms", *(f"{name} of the mean picture" for name in MEASURED[:4]), "shape of the target")


def pairs(task: Task, attributes: dict[str, torch.Tensor], resolution: int) -> dict[str, Pair]:
    """Row -> its sources and targets."""
    drawn = task.draw(attributes, resolution)
    if isinstance(task, SuperResolution):
        factors = [factor for factor in FACTORS if resolution // factor >= LEAST]
        return {f"{task.name} x{factor}": Pair(reduced(drawn, factor), drawn) for factor in factors}
    return {task.name: task.pair(drawn, torch.zeros(len(drawn), CHANCES))}


def measure(G, encoder, pair: Pair, attributes: dict[str, torch.Tensor]) -> dict:
    """The numbers of a row."""
    pictures = Pictures(pair.target, attributes)
    made = torch.cat([fastinv.translate(G, encoder, part.source)[0][:, 0] for part in pair.split(BATCH)])
    with torch.no_grad():
        mean = G.synthesis(mean_latent(G).expand(1, G.num_ws, -1), noise="const").expand_as(made)
        one = pair.source[:1]
        time = seconds(lambda: G.synthesis(encoder.encode(one), noise="const"), torch.device("cpu"))
    found = [quality(images, pictures, METRICS) for images in (made, mean, pair.target)]
    numbers, baseline, itself = ({**numbers, "shape": _shape(numbers)} for numbers in found)
    beside = {f"{name} of the mean picture": baseline[name] for name in MEASURED}
    return numbers | {"ms": 1000 * time} | beside | {"shape of the target": itself["shape"]}


def _shape(found: dict) -> float:
    return sum(found["each attribute"][name] for name in SHAPE) / len(SHAPE)


def picture(G, encoder, task: Task, pair: Pair, mix_from: int, path: Path) -> None:
    """The picture for the docs."""
    pair = pair[:SHOWN]
    made = fastinv.translate(G, encoder, pair.source, outputs=4, mix_from=mix_from)[0]
    rows = [task.shown(pair.source), made[:, 0], pair.target, *made[:, 1:].unbind(1)]
    sheet = grid(torch.cat([functional.interpolate(row, scale_factor=2.0) for row in rows]), columns=SHOWN, gap=4)
    save_picture(sheet, path)


def table(folder: Path) -> str:
    """Markdown of all rows there."""
    rows = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    rows.sort(key=lambda row: (list(TASKS).index(row["task"]["name"]), len(row["row"]), row["row"]))  # x16 after x8
    return markdown(rows, list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", metavar="ENCODER", help="name or file")
    parser.add_argument("--generator", default="faces64")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--mix-from", type=int, default=5)
    parser.add_argument("--shown-factor", type=int, default=8)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--table", action="store_true", help="only make the table of what was measured")
    options = parser.parse_args()
    if not options.encoders and not options.table:
        parser.error("give encoders, or --table")
    options.out.mkdir(parents=True, exist_ok=True)
    G = fastinv.load_generator(options.generator).requires_grad_(False)
    attributes = faces.sample_attributes(options.count, 0, "heldout")
    for name in [] if options.table else options.encoders:
        encoder = fastinv.load_encoder(name).requires_grad_(False)
        task = task_of(name, encoder)
        rows = pairs(task, attributes, G.resolution)
        truth = faces.frontal(attributes) if isinstance(task, Frontalize) else attributes
        for row, pair in rows.items():
            result = {"row": row, **measure(G, encoder, pair, truth)}
            print({key: round(value, 4) for key, value in result.items() if isinstance(value, float)}, flush=True)
            result |= {"task": task.facts(), "encoder": network_hash(encoder), "generator": network_hash(G)}
            result |= {"count": options.count, "facts": facts(torch.device("cpu"))}
            write(options.out / f"{row.replace(' ', '_')}.json", result)
        shown = f"{task.name} x{options.shown_factor}" if isinstance(task, SuperResolution) else task.name
        picture(G, encoder, task, rows[shown], options.mix_from, options.pictures / f"task_{task.name}.png")
    page = table(options.out)
    (options.out / "table.md").write_text(f"# benchmarks/tasks.py\n\n{page}\n")
    print(page)


if __name__ == "__main__":
    main()
