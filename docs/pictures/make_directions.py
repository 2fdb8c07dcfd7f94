"""Make docs/pictures/directions.png: python docs/pictures/make_directions.py

A held-out portrait, found by the bundled pSp encoder, along every bundled direction, from -2 to 2 standard deviations.
"""

from pathlib import Path

from PIL import Image

import fastinv
from fastinv.data import faces
from fastinv.data.pictures import save_picture
from fastinv.editing import edit, find_directions
from fastinv.report.strip import strip

PORTRAIT, STRENGTHS = 24, (-2, -1, 0, 1, 2)

if __name__ == "__main__":
    G = fastinv.load_generator("faces64")
    images, _ = faces.sample(PORTRAIT + 1, seed=0, split="heldout")
    found = fastinv.invert(G, images[PORTRAIT:], method="psp", progress=False)
    tiles, labels = [], []
    for direction in find_directions("faces64", G).values():
        tiles.append(list(G.synthesis(edit(G, found, direction, STRENGTHS)["w_plus"])))
        labels.append([direction.name if strength == 0 else f"{strength:+d}" for strength in STRENGTHS])
    half = len(tiles) // 2
    sheets = [strip(tiles[part], labels[part]) for part in (slice(half), slice(half, None))]
    width, height = (side // 2 for side in sheets[0].size)
    page = Image.new("RGB", (2 * width, height))
    for place, sheet in enumerate(sheets):
        page.paste(sheet.resize((width, height)), (place * width, 0))
    save_picture(page, Path(__file__).parent / "directions.png")
