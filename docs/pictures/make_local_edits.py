"""Make the pictures of docs/local-editing.md: python docs/pictures/make_local_edits.py [TASK ...]

About a minute for each task on one core. Portraits are procedural (fastinv.data.faces), the generator is the embedded
one, and every picture is what the functions of fastinv.inversion.local_edits give.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional

import fastinv
from fastinv.data import faces
from fastinv.data.pictures import save_picture, to_pillow
from fastinv.inversion import local_edits
from fastinv.losses import psnr

FOLDER = Path(__file__).parent
SIDE, GAP, LINE = 160, 8, 20  # of the tiles, between them, and of their titles, in pixels
# Along the principal axes of W, as in the presets, few steps are enough.
OPTIONS = {"steps": 150, "learning_rate": 0.4, "precondition": 0.5, "beta1": 0.6, "ramp_down": 0.5, "progress": False}


def portrait(**attributes) -> torch.Tensor:
    """A face [1, 3, 64, 64] in the middle of all ranges, with these attributes."""
    values = {name: (attribute.low + attribute.high) / 2 for name, attribute in faces.ATTRIBUTES.items()}
    values |= {"glasses": 0, "beard": 0, "hair_grey": 0, "eye_open": 0.8, "smile": 0.5} | attributes
    return faces.render({name: torch.tensor([float(value)]) for name, value in values.items()})


def box(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., top:bottom, left:right] = 1
    return mask


def hair_of(**attributes) -> torch.Tensor:
    """1 where a portrait has hair, and one pixel beyond."""
    return differing(*(portrait(**attributes | {"hair_hue": hue}) for hue in (0.0, 1.0)))


def differing(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """1 where pictures differ, and one pixel beyond."""
    return functional.max_pool2d(((first - second).abs().amax(1, keepdim=True) > 0.1).float(), 3, 1, 1)


def sheet(name: str, tiles: dict[str, torch.Tensor]) -> None:
    """Pictures [1, 3, 64, 64] or masks [1, 1, 64, 64] side by side, with titles above them."""
    paper = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE + LINE), "white")
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(13)
    for index, (title, tile) in enumerate(tiles.items()):
        picture = to_pillow(tile[0] * 2 - 1 if tile.shape[1] == 1 else tile[0].clamp(-1, 1))
        paper.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (index * (SIDE + GAP), LINE))
        draw.rectangle((index * (SIDE + GAP), LINE, index * (SIDE + GAP) + SIDE - 1, LINE + SIDE - 1), outline="grey")
        draw.text((index * (SIDE + GAP), 0), title, "black", font)
    save_picture(paper, FOLDER / f"{name}.png")
    print(FOLDER / f"{name}.png", flush=True)


def reconstruct(G) -> None:
    image = faces.sample(1, seed=0, split="heldout")[0]
    code = local_edits.reconstruct(G, image, space="w+", **OPTIONS).images
    both = local_edits.reconstruct(G, image, **OPTIONS).images
    titles = [
        f"{title}, {float(psnr(found, image)):.1f} dB" for title, found in {"code": code, "+ noise": both}.items()
    ]
    errors = [((found - image).abs() * 8 - 1) for found in (code, both)]
    tiles = {"picture": image, titles[0]: code, "error x 8": errors[0], titles[1]: both, "error x 8 ": errors[1]}
    sheet("reconstruct", tiles)


def inpaint(G) -> None:
    images = faces.sample(2, seed=3, split="heldout")[0][:1]
    known = 1 - box(36, 52, 16, 48)
    found = local_edits.inpaint(G, images * known, known, **OPTIONS).images
    sheet("inpaint", {"picture": images * known, "mask": known, "result": found, "truth": images})


def crossover(G) -> None:
    first = portrait(hair_hue=0.9, glasses=1, hair_length=0.3, smile=0.7, shirt=0.1)
    second = portrait(hair_hue=0.1, hair_length=0.3, smile=-0.6, shirt=0.9)
    mask = box(0, 36, 0, 64)
    found = local_edits.crossover(G, first, second, mask, **OPTIONS).images
    sheet("crossover", {"first": first, "second": second, "mask": mask, "result": found})


def scribble(G) -> None:
    attributes = {"smile": -0.5, "skin_tone": 0.2, "bg_hue": 0.7, "hair_length": 0.4}
    image = portrait(hair_hue=0.1, **attributes)
    mask = hair_of(**attributes)
    painted = -functional.max_pool2d(-mask, 3, 1, 1)
    yellow = torch.tensor([0.84, 0.49, -0.22]).view(1, 3, 1, 1)
    scribbled = torch.where(painted > 0, yellow, image)
    found = local_edits.scribble(G, image, scribbled, mask, **OPTIONS).images
    sheet("scribble", {"picture": image, "scribbled": scribbled, "mask": mask, "result": found})


def style_transfer(G) -> None:
    of_content = {"bg_hue": 0.2, "shirt": 0.0, "yaw": 0.2}
    of_style = {"bg_hue": 0.8, "shirt": 0.7, "skin_tone": 0.2, "hair_length": 0.6, "yaw": -0.2}
    content, style = portrait(hair_hue=0.1, **of_content), portrait(hair_hue=0.75, **of_style)
    mask, style_mask = hair_of(**of_content), hair_of(**of_style)
    found = local_edits.style_transfer(G, content, style, mask, second_style_mask=style_mask, **OPTIONS).images
    sheet(
        "style-transfer", {"content": content, "mask": mask, "style": style, "style mask": style_mask, "result": found}
    )


def activation_transfer(G) -> None:
    target = portrait(hair_hue=0.1, bg_hue=0.2, smile=0.6, yaw=-0.3)
    of_source = {"hair_hue": 0.8, "bg_hue": 0.8, "smile": -0.5, "yaw": -0.3}
    source = portrait(glasses=1, **of_source)
    mask = differing(source, portrait(glasses=0, **of_source))
    found = local_edits.activation_transfer(G, target, source, mask, at=32, **OPTIONS).images
    sheet("activation-transfer", {"target": target, "source": source, "mask": mask, "result": found})


def main() -> None:
    G = fastinv.load_generator("faces64")
    tasks = [reconstruct, inpaint, crossover, scribble, style_transfer, activation_transfer]
    for task in tasks:
        if len(sys.argv) == 1 or task.__name__ in sys.argv[1:]:
            task(G)


if __name__ == "__main__":
    main()
