"""All inversion methods side by side on held-out renders: distortion, perceptual distance, attributes, time.

    python benchmarks/inversion.py [--rows NAME,...] [--count 50] [--out benchmarks/results/inversion]
    python benchmarks/inversion.py --table

Each row is a method with its defaults (or what ``ROWS`` says) on the embedded generator, on the same ``count`` held-out
portraits, pictures in batches of ``--batch``. Rows are measured one by one, each leaving OUT/<row>.json, so that a run
can be split; ``--table`` makes OUT/table.md of those that are there.

Codes are rendered again by the generator itself in float32, whatever the arithmetic of the search, and measured on the
clamped picture: mse and psnr (range 2), ssim, ``features`` (mean squared difference of the attribute network's feature
maps, the perceptual distance here, which most methods minimise) and ``attributes``: |read from the reconstruction -
true| / standard deviation, mean of the 16 attributes, as the attribute network reads them. Read from the targets
themselves that is the row ``targets``. ``seconds`` are CPU time per picture on one thread (OMP_NUM_THREADS=1), with
everything; ``steps`` the updates.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, write

import fastinv
from fastinv.data import faces
from fastinv.losses import PerceptualLoss, load_trunk, mse, psnr, ssim
from fastinv.models.attributes import load_attribute_network

OUT = ROOT / "benchmarks" / "results" / "inversion"
ROWS: dict[str, dict] = {
    "image2stylegan z": {"space": "z"},
    "image2stylegan w": {"space": "w"},
    "image2stylegan w+": {"space": "w+"},
    "image2stylegan s": {"space": "s"},
    "image2stylegan w+noise": {"space": "w+noise"},
    "image2stylegan f+w+": {"space": "f+w+"},
    "image2stylegan++": {"method": "image2stylegan++"},
    "projector": {"method": "projector"},
    "p-norm": {"method": "p-norm"},
    "stylegan-encoder": {"method": "stylegan-encoder"},
    "idinvert": {"method": "idinvert"},
    "pti": {"method": "pti"},
    "preset fast": {"preset": "fast"},
    "preset balanced": {"preset": "balanced"},
    "preset best": {"preset": "best"},
}


class Judge:
    """Measures reconstructions of the same pictures again and again."""

    def __init__(self, images: torch.Tensor, attributes: dict[str, torch.Tensor]):
        self.images, self.attributes = images, attributes
        self.network = load_attribute_network()
        self.features = PerceptualLoss(images, load_trunk("attributes")[0])

    @torch.no_grad()
    def __call__(self, found: torch.Tensor) -> dict[str, float]:
        """Means over the pictures; found [N, 3, R, R]."""
        found = found.clamp(-1, 1)
        predicted = self.network(found)
        stds = dict(zip(faces.NAMES, self.network.stds, strict=True))
        errors = [(predicted[name] - self.attributes[name]).abs().mean() / stds[name] for name in faces.NAMES]
        return {
            "mse": float(mse(found, self.images).mean()), "psnr": float(psnr(found, self.images).mean()),
            "ssim": float(ssim(found, self.images).mean()), "features": float(self.features(found).mean()),
            "attributes": float(torch.stack(errors).mean()),
        }  # fmt: skip


def measure(row: str, G, images: torch.Tensor, judge: Judge, batch: int, dtype: str, encoder) -> dict:
    """One row of the table."""
    if row == "targets":
        return {"row": row, **judge(images), "seconds": 0.0, "steps": 0.0}
    arguments = {"dtype": dtype, "progress": False, **ROWS[row]}
    if arguments.get("method") in ("idinvert", "stylegan-encoder") and encoder:
        arguments["init" if arguments["method"] == "stylegan-encoder" else "encoder"] = encoder
    started = time.process_time()
    results = [fastinv.invert(G, part, **arguments) for part in images.split(batch)]
    seconds = (time.process_time() - started) / len(images)
    found = torch.cat([result.render(G) for result in results])
    steps = [count for result in results for count in result.metrics["steps"]]
    settings = results[0].settings
    return {
        "row": row, **judge(found), "seconds": seconds, "steps": sum(steps) / len(steps),
        "dtype": settings["dtype"], "space": settings["space"], "options": settings["options"],
        "each psnr": psnr(found, images).tolist(),
    }  # fmt: skip


def table(folder: Path) -> str:
    """Markdown of all rows there."""
    columns = ("row", "mse", "psnr", "ssim", "features", "attributes", "seconds", "steps", "dtype")
    order = ["targets", *ROWS]
    found = {path: json.loads(path.read_text()) for path in folder.glob("*.json")}
    rows = [part for part in found.values() if part.get("row") in order]
    rows.sort(key=lambda part: order.index(part["row"]))
    return markdown([{name: row.get(name, "") for name in columns} for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(["targets", *ROWS]), help="rows to measure, separated by commas")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--dtype", default="auto", help="arithmetic of the search")
    parser.add_argument("--encoder", help="name or file of the encoder for idinvert and stylegan-encoder")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="only make the table of what was measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        G = fastinv.load_generator("faces64")
        images, attributes = faces.sample(options.count, seed=0, split="heldout", resolution=G.resolution)
        judge = Judge(images, attributes)
        for row in options.rows.split(","):
            if row not in ("targets", *ROWS):
                parser.error(f"no row is called {row!r}; the rows are {', '.join(ROWS)}")
            result = measure(row, G, images, judge, options.batch, options.dtype, options.encoder)
            result |= {"count": options.count, "facts": facts(torch.device("cpu"))}
            write(options.out / f"{row.replace(' ', '_')}.json", result)
            print({name: value for name, value in result.items() if isinstance(value, (str, float))}, flush=True)
    page = table(options.out)
    (options.out / "table.md").write_text(f"# benchmarks/inversion.py\n\n{page}\n")
    print(page)


if __name__ == "__main__":
    main()
