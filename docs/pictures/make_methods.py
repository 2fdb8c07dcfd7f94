"""Make the pictures of docs/methods: python docs/pictures/make_methods.py [METHOD ...]

Target, reconstruction and difference of the same three held-out portraits, by each method with its defaults. Several
minutes on one core, most of them for pti and projector.
"""

import sys
from pathlib import Path

import fastinv
from fastinv.data import faces
from fastinv.report import comparison

FOLDER = Path(__file__).parent
SHOWN = [0, 1, 4]  # of the portraits of benchmarks/inversion.py; with the first all methods have trouble
WITHOUT = ["alae"]  # the package has no trained one
OPTIONS = {"stylegan-encoder": {"init": "faces64-psp"}}  # as in the benchmark


def show(G, method: str) -> None:
    images = faces.sample(max(SHOWN) + 1, split="heldout")[0][SHOWN]
    result = fastinv.invert(G, images, method, progress=False, **OPTIONS.get(method, {}))
    path = FOLDER / f"method-{method}.png"
    comparison(images, result.images, [{"PSNR (dB)": value} for value in result.metrics["psnr"]], path)
    print(path, *(f"{value:.1f}" for value in result.metrics["psnr"]), flush=True)


def main() -> None:
    G = fastinv.load_generator("faces64")
    for method in sys.argv[1:] or [name for name in fastinv.METHODS if name not in WITHOUT]:
        show(G, method)


if __name__ == "__main__":
    main()
