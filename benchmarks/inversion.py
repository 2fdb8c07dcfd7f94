"""All inversion methods side by side on held-out renders: distortion, perceptual distance, attributes, edits, time.

    python benchmarks/inversion.py [--rows NAME,...] [--count 50] [--out benchmarks/results/inversion]
    python benchmarks/inversion.py --table

Each row is a method with its defaults (or what ``ROWS`` says) on the embedded generator, on the same ``count`` held-out
portraits, pictures in batches of ``--batch``. Rows are measured one by one, each leaving OUT/<row>.json, so that a run
can be split; ``--table`` makes OUT/table.md of those that are there. ``alae`` has a generator of its own.

Codes are rendered again by the generator itself in float32, whatever the arithmetic of the search, and measured on the
clamped picture: mse and psnr (range 2), ssim, ``features`` (mean squared difference of the attribute network's feature
maps, the perceptual distance here, which most methods minimise), ``identity`` (cosine of that network's embeddings) and
``attributes``: |read from the reconstruction - true| / standard deviation, mean of the 16 attributes, as the attribute
network reads them. Read from the targets themselves that is the row ``targets``.

Every code is edited along 16 directions, one for each attribute, by 1.5 of its standard deviations (see
``fastinv.evaluation.edit_scores``): ``moved`` is the share of the change that was asked for, ``leaked`` the mean change
of the other attributes in their deviations, ``edited`` the share of edits that moved at least 0.5 and leaked at most
0.25. Row ``mapped codes``: those numbers for codes from the mapping network, of its own pictures.
``lec`` (with --lec, which takes a second inversion): latent editing consistency, 0 is perfect.

``seconds`` are CPU time per picture on one thread (OMP_NUM_THREADS=1), with everything; ``steps`` the updates.
"""

import argparse
import json
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, write

import fastinv
from fastinv.data import faces
from fastinv.evaluation.methods import Pictures, edits, measure, quality
from fastinv.latents import expand, mapped_samples

OUT = ROOT / "benchmarks" / "results" / "inversion"
COLUMNS = ("mse", "psnr", "ssim", "features", "identity")
ROWS: dict[str, dict] = {
    "image2stylegan z": {"space": "z"},
    "image2stylegan w": {"space": "w"},
    "image2stylegan w+": {"space": "w+"},
    "image2stylegan w+ 100 steps": {"space": "w+", "steps": 100},  # as near as idinvert
    "image2stylegan s": {"space": "s"},
    "image2stylegan w+noise": {"space": "w+noise"},
    "image2stylegan f+w+": {"space": "f+w+"},
    "image2stylegan++": {"method": "image2stylegan++"},
    "projector": {"method": "projector"},
    "p-norm": {"method": "p-norm"},
    "stylegan-encoder": {"method": "stylegan-encoder", "init": "faces64-psp"},
    "idinvert": {"method": "idinvert"},
    "pti": {"method": "pti"},
    "preset fast": {"preset": "fast"},
    "preset balanced": {"preset": "balanced"},
    "preset best": {"preset": "best"},
    "psp": {"method": "psp"},
    "e4e": {"method": "e4e"},
    "idinvert-encoder": {"method": "idinvert-encoder"},
    "alae": {"method": "alae"},
}
REFERENCES = ("targets", "mapped codes")  # rows that are no method
GENERATORS = {"alae": "faces64-alae"}  # of the rows whose generator is not faces64


def row_of(row: str, pictures: Pictures, batch: int, dtype: str, consistency: bool) -> dict:
    """One row of the table."""
    if row == "targets":
        return {"row": row, **quality(pictures.images, pictures, COLUMNS), "seconds": 0.0, "steps": 0.0}
    G = fastinv.load_generator(GENERATORS.get(row, "faces64"))
    if row == "mapped codes":
        codes = expand(mapped_samples(G, len(pictures.images), seed=1).float(), G.num_ws)
        return {"row": row, **edits([(G.synthesis, codes)], G, pictures)}
    return measure(row, ROWS[row], G, pictures, batch=batch, dtype=dtype, consistency=consistency, metrics=COLUMNS)


def table(folder: Path) -> str:
    """Markdown of all rows there."""
    columns = (
        "row", "mse", "psnr", "ssim", "features", "identity", "attributes", "moved", "leaked", "edited", "lec",
        "seconds", "steps", "dtype",
    )  # fmt: skip
    order = [*REFERENCES, *ROWS]
    found = {path: json.loads(path.read_text()) for path in folder.glob("*.json")}
    rows = [part for part in found.values() if part.get("row") in order]
    rows.sort(key=lambda part: order.index(part["row"]))
    return markdown([{name: row.get(name, "") for name in columns} for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join([*REFERENCES, *ROWS]), help="rows to measure, separated by commas")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--dtype", default="auto", help="arithmetic of the search")
    parser.add_argument("--lec", action="store_true", help="also the latent editing consistency")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="only make the table of what was measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        images, attributes = faces.sample(options.count, seed=0, split="heldout")
        pictures = Pictures(images, attributes)
        for row in options.rows.split(","):
            if row not in (*REFERENCES, *ROWS):
                parser.error(f"no row is called {row!r}; the rows are {', '.join(ROWS)}")
            result = row_of(row, pictures, options.batch, options.dtype, options.lec)
            result |= {"count": options.count, "facts": facts(torch.device("cpu"))}
            write(options.out / f"{row.replace(' ', '_')}.json", result)
            print({name: value for name, value in result.items() if isinstance(value, (str, float))}, flush=True)
    page = table(options.out)
    (options.out / "table.md").write_text(f"# benchmarks/inversion.py\n\n{page}\n")
    print(page)


if __name__ == "__main__":
    main()
