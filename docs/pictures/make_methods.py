"""Make the pictures of docs/methods: python docs/pictures/make_methods.py [METHOD ...]

Target, reconstruction and difference of the same three held-out portraits, by each method with its defaults. About
seven minutes on one core, most of them for pti and projector.
"""

import sys
from pathlib import Path

from PIL import Image

import fastinv
from fastinv.data import faces
from fastinv.data.pictures import save_picture
from fastinv.report import comparison

FOLDER = Path(__file__).parent
SHOWN = [0, 1, 4]  # of the portraits of benchmarks/inversion.py; the first is hard for all methods
OPTIONS = {"stylegan-encoder": {"init": "faces64-psp"}}  # as in the benchmark
SCALE = 0.75  # of what ``comparison`` draws, which keeps the files small


def show(method: str) -> None:
    G = fastinv.load_generator(getattr(fastinv.METHODS[method], "generator", "faces64"))
    images = faces.sample(max(SHOWN) + 1, split="heldout")[0][SHOWN]
    result = fastinv.invert(G, images, method, progress=False, **OPTIONS.get(method, {}))
    sheet = comparison(images, result.images, [{"PSNR (dB)": value} for value in result.metrics["psnr"]])
    size = round(sheet.width * SCALE), round(sheet.height * SCALE)
    save_picture(sheet.resize(size, Image.Resampling.LANCZOS), FOLDER / f"method-{method}.png")
    print(FOLDER / f"method-{method}.png", *(f"{value:.1f}" for value in result.metrics["psnr"]), flush=True)


def main() -> None:
    for method in sys.argv[1:] or fastinv.METHODS:
        show(method)


if __name__ == "__main__":
    main()
