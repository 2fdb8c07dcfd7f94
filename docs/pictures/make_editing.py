"""Make the pictures and numbers of docs/editing.md: python docs/pictures/make_editing.py [edit|mask|masks|layers|...]

About two minutes on one core, most of it for diffuse. Portraits are procedural and held out (fastinv.data.faces), the
generator, its encoders and directions are the bundled ones.
"""

import sys
from pathlib import Path

import torch

import fastinv
from fastinv.data import faces
from fastinv.editing.blend import blend, box
from fastinv.editing.codes import codes_of, render
from fastinv.editing.diffuse import FACE_CENTER, FACE_SIZE
from fastinv.editing.direction import find_direction
from fastinv.editing.regression import attribute_directions
from fastinv.inversion.local_edits import pasted
from fastinv.losses import psnr
from fastinv.report.strip import strip

FOLDER = Path(__file__).parent


def portraits(count: int, seed: int) -> torch.Tensor:
    return faces.sample(count, seed=seed, split="heldout")[0]


def inverted(G, images: torch.Tensor) -> torch.Tensor:
    return fastinv.invert(G, images, "psp", progress=False).w_plus


def sheet(name: str, *arguments) -> None:
    strip(*arguments, path=FOLDER / f"{name}.png")
    print(FOLDER / f"{name}.png", flush=True)


def edit(G) -> None:
    image = portraits(6, seed=5)[4]
    codes = codes_of(inverted(G, image[None]))
    rows, labels = [], []
    for name in ("smile", "yaw", "hair_hue"):
        direction = find_direction(name, G)
        strengths = [direction.strength * part for part in (-1, -0.5, 0, 0.5, 1)]
        rows.append([image, *render(G, fastinv.edit(G, codes, direction, strengths))])
        labels.append([name, *(f"{strength:+g}" if strength else "0" for strength in strengths)])
    sheet("edit", rows, labels)


def mask(G) -> None:
    rows = []
    for index, name, strength, at, size in ((3, "hair_hue", -2, (32, 12), 44), (4, "smile", 2, (32, 44), 26)):
        image = portraits(6, seed=5)[index]
        codes = codes_of(inverted(G, image[None]))
        made = fastinv.edit(G, codes, find_direction(name, G), strength)
        region = box(64, at, size)
        local = blend(G, codes, made, region, soften=1)[0]
        before, full = render(G, codes)[0], render(G, made)[0]
        change = (local - before).abs() * 4 - 1
        rows.append([before, full, region[None] * 2 - 1, local, change])
    sheet("edit-mask", rows, [["before", "edited", "mask", "under the mask", "change x 4"]] * len(rows))


def masks(G) -> None:
    """How much of an edit and of its side effects is left under a mask, with directions by regression."""
    network = fastinv.load_attribute_network()
    directions = attribute_directions(G, network)
    w = inverted(G, portraits(8, seed=2))
    for name, strength, at, size in (
        ("smile", 2.5, (32, 44), 26), ("smile", -2.5, (32, 44), 26), ("glasses", 3, (32, 29), 34),
        ("beard", 2.5, (32, 46), 30), ("eye_open", -3, (32, 29), 34), ("hair_hue", 3, (32, 14), 40),
    ):  # fmt: skip
        index = faces.NAMES.index(name)
        made = w + strength * directions[index]
        shown = render(G, codes_of(w)), render(G, codes_of(made)), blend(G, w, made, box(64, at, size), soften=1)
        before, full, local = (network.standardised(images.clamp(-1, 1)) for images in shown)
        others = [other for other in range(len(faces.NAMES)) if other != index]
        asked = (local - before)[:, index].mean() / (full - before)[:, index].mean()
        beside = (local - before)[:, others].abs().mean() / (full - before)[:, others].abs().mean()
        print(f"{name} {strength:+g}: {asked:.2f} of the edit, {beside:.2f} of what it does besides")


def layers(G) -> None:
    """How far attributes move from the content's to the style's, with some layers of it: 0 not, 1 all the way."""
    network = fastinv.load_attribute_network()
    w = inverted(G, portraits(80, seed=1))
    content, style = w[:40], w[40:]

    def read(w_plus):
        return network.standardised(G.synthesis(w_plus).clamp(-1, 1))

    start, end = read(content), read(style)
    parts = ["0-3", "4-5", "6-9", "4-9"]
    moved = []
    for part in parts:
        way = read(fastinv.mix(G, content, style, part)["w_plus"]) - start
        moved.append((way * (end - start)).sum(0) / (end - start).square().sum(0))
    print("| attribute |", " | ".join(f"`--layers {part}`" for part in parts), "|")
    print("|---|" + "--:|" * len(parts))
    for index, name in enumerate(faces.NAMES):
        print(f"| {name} |", " | ".join(f"{one[index]:.2f}" for one in moved), "|")


def mix(G) -> None:
    images = portraits(6, seed=5)
    w = inverted(G, images)
    contents, styles = w[[4, 1]], w[[3, 0, 2]]
    heads = [render(G, codes_of(part)) for part in (contents, styles)]
    rows, labels = [[None, *heads[1]]], [["", *"ABC"]]
    for content, head in zip(contents, heads[0], strict=True):
        for part in ("4-9", "6-9"):
            rows.append([head, *render(G, fastinv.mix(G, content, styles, part))])
            labels.append(["content", *[f"layers {part}"] * 3])
    sheet("mix", rows, labels)


def interpolate(G) -> None:
    a, b = inverted(G, portraits(6, seed=5)[[0, 4]])
    made = render(G, fastinv.interpolate(a, b, steps=5))
    sheet("interpolate", [list(made)], [["A", *(f"{step}/6" for step in range(1, 6)), "B"]])


def diffuse(G) -> None:
    images = portraits(12, seed=5)
    target, context = images[[0, 1, 4]], images[[6, 7, 10]]
    region = box(64, tuple(64 * part for part in FACE_CENTER), 64 * FACE_SIZE).expand(3, 1, -1, -1)
    composite = pasted(target, context, region, 0.0)
    start = fastinv.diffuse(G, target, context, region, steps=0, progress=False)
    made = fastinv.diffuse(G, target, context, region, progress=False)
    near = fastinv.diffuse(G, target, context, region, progress=False, domain_weight=2.0, learning_rate=0.03)
    for name, result in (("start", start), ("result", made), ("with domain_weight=2, learning_rate=0.03", near)):
        inside = psnr(result.images, target, region).mean()
        print(f"{name}: {inside:.1f} dB to the target inside, {psnr(result.images, context, 1 - region).mean():.1f} dB "
              "to the context outside")  # fmt: skip
    tiles = [target, context, composite, start.images, made.images, near.images]
    labels = ["target", "context", "pasted", "E(pasted)", "diffused", "near the domain"]
    sheet("diffuse", [list(row) for row in zip(*tiles, strict=True)], [labels] * 3)


def main() -> None:
    G = fastinv.load_generator("faces64")
    with torch.no_grad():
        for part in (edit, mask, masks, layers, mix, interpolate):
            if len(sys.argv) == 1 or part.__name__ in sys.argv[1:]:
                part(G)
    if len(sys.argv) == 1 or "diffuse" in sys.argv[1:]:
        diffuse(G)


if __name__ == "__main__":
    main()
