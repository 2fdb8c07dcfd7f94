"""Time to quality: how soon other settings reach the loss that ``image2stylegan`` has after its 300 steps.

    python benchmarks/time_to_quality.py [--count 50] [--settings fast,learning_rate=0.15;steps=100 ...] [--out FILE]

Held-out portraits, the embedded generator, W+, one picture after the other in turns: each picture is inverted by the
baseline (``image2stylegan`` with its defaults) and by every candidate right after it, so that what disturbs the machine
hits all alike. Whatever the search computes in and minimises, the codes found are rendered by the generator in float32
and measured with the baseline's loss. Columns: ``reached``, pictures whose loss is at most the baseline's; ``time``,
median of the candidate's CPU time on one thread over the baseline's for the same picture, with all that it does;
``loss``, mean final loss over the baseline's. A candidate is a preset's name, or options of ``invert`` joined by ";".
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, write

import fastinv
from fastinv.data import faces
from fastinv.inversion import PRESETS
from fastinv.losses import PerceptualLoss, PixelLoss, load_trunk

OUT = ROOT / "benchmarks" / "results" / "inversion" / "time_to_quality.json"


def arguments(setting: str) -> dict:
    """ "fast" -> {"preset": "fast"}, "steps=100;dtype=bfloat16" -> {"steps": 100, "dtype": "bfloat16"}."""
    if setting in PRESETS:
        return {"preset": setting}
    pairs = (part.split("=") for part in setting.split(";"))
    return {name: json.loads(value) if value[0] in "0123456789-." else value for name, value in pairs}


def run(settings: list[str], count: int, seed: int, batch: int) -> dict:
    G = fastinv.load_generator("faces64")
    images, _ = faces.sample(count, seed=seed, split="heldout", resolution=G.resolution)
    trunk, _ = load_trunk("attributes")
    runs = {"baseline": {}} | {setting: arguments(setting) for setting in settings}
    losses, seconds = {name: [] for name in runs}, {name: [] for name in runs}
    fastinv.invert(G, images[:1], steps=3, progress=False)  # imports, first allocations
    for target in images.split(batch):
        pixel, features = PixelLoss(target), PerceptualLoss(target, trunk)
        for name, options in runs.items():
            started = time.process_time()
            result = fastinv.invert(G, target, progress=False, **options)
            seconds[name].append((time.process_time() - started) / len(target))
            with torch.no_grad():
                found = result.render(G)
                losses[name] += (pixel(found) + features(found)).tolist()
    rows = []
    for name in runs:
        pairs = list(zip(losses[name], losses["baseline"], strict=True))
        ratios = [own / other for own, other in zip(seconds[name], seconds["baseline"], strict=True)]
        rows.append(
            {"setting": name, "reached": sum(own <= other for own, other in pairs), "time": statistics.median(ratios),
             "loss": statistics.mean(own for own, _ in pairs) / statistics.mean(other for _, other in pairs),
             "seconds": statistics.median(seconds[name])}
        )  # fmt: skip
    return {"rows": rows, "count": count, "batch": batch, "table": markdown(rows), "facts": facts(torch.device("cpu"))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=",".join(PRESETS), help="candidates, separated by commas")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1, help="pictures at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out portraits")
    parser.add_argument("--out", type=Path, help=f"JSON file of the result, e.g. {OUT.relative_to(ROOT)}")
    options = parser.parse_args()
    result = run(options.settings.split(","), options.count, options.seed, options.batch)
    if options.out:
        write(options.out, result)
    print(result["table"])
