"""Pictures, numbers and curves as HTML. Pictures are within it, as data: nothing is left in files."""

import base64
import html
import io
from collections.abc import Sequence

import torch

from fastinv.data.pictures import to_pillow
from fastinv.ui.studio import Progress

CRISP = 256  # below this resolution pixels are shown as squares
LARGEST = 512  # pixels of a picture that is only looked at
WIDTH, HEIGHT = 320, 84  # of the curve


def png(picture: torch.Tensor) -> bytes:
    """A picture [3, R, R] as a PNG file."""
    file = io.BytesIO()
    to_pillow(picture).save(file, "PNG")
    return file.getvalue()


def address(content: bytes, kind: str) -> str:
    """Content as an address that holds it."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


def picture(image: torch.Tensor | None, alt: str, hint: str = "") -> str:
    """A picture [3, R, R] as large as there is room, or a frame with a hint where there is none yet."""
    if image is None:
        return f'<div class="fi-picture fi-empty"><span>{html.escape(hint)}</span></div>'
    shown = image
    if image.shape[-1] > LARGEST:
        shown = torch.nn.functional.interpolate(image[None], LARGEST, mode="area")[0]
    crisp = " fi-crisp" if image.shape[-1] < CRISP else ""
    return (
        f'<div class="fi-picture{crisp}"><img src="{address(png(shown), "image/png")}" alt="{html.escape(alt)}" '
        f'width="{image.shape[-1]}" height="{image.shape[-1]}"></div>'
    )


def numbers(values: dict[str, str]) -> str:
    """Names and values side by side."""
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>" for name, text in values.items()
    )
    return f'<dl class="fi-numbers">{cells}</dl>'


def status(text: str, kind: str = "") -> str:
    """A line that says what is going on; read out by screen readers. ``kind`` "error" is for what went wrong."""
    return f'<p class="fi-status {kind and "fi-" + kind}" role="status">{html.escape(text)}</p>'


def curve(values: Sequence[float], steps: int) -> str:
    """PSNR (dB) over the steps, as a line; nothing where there is no more than a point."""
    if len(values) < 2 or steps < 1:
        return ""
    low, high = min(values), max(values)
    room = max(high - low, 1e-6)
    stride = max(1, len(values) // WIDTH)
    at = sorted({*range(0, len(values), stride), len(values) - 1})
    points = " ".join(
        f"{index / steps * WIDTH:.1f},{4 + (HEIGHT - 8) * (high - values[index]) / room:.1f}" for index in at
    )
    x, y = points.rsplit(" ", 1)[-1].split(",")
    return (
        f'<figure class="fi-curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="PSNR over the steps, from {low:.1f} to {high:.1f} dB">'
        f'<polyline points="{points}"/><line x1="{x}" y1="{y}" x2="{x}" y2="{HEIGHT}"/></svg>'
        f"<figcaption><span>PSNR {low:.1f} to {high:.1f} dB</span><span>{steps} steps</span></figcaption></figure>"
    )


def live(progress: Progress | None, note: str, kind: str = "") -> str:
    """The middle of the page: the reconstruction so far, its numbers and its curve."""
    image = None if progress is None else progress.picture
    parts = [picture(image, "Reconstruction", "The reconstruction appears here, step by step")]
    if progress is None:
        parts += [status(note, kind), numbers({"Step": "–", "PSNR": "–", "Loss": "–"})]
    else:
        step = f"{progress.step} of {progress.steps}" if progress.steps else "–"
        values = {"Step": step, "PSNR": f"{progress.psnr:.2f} dB", "Loss": f"{progress.loss:.4f}"}
        parts += [status(note, kind), numbers(values), curve(progress.curve, progress.steps)]
    return "".join(parts)


def result(image: torch.Tensor | None, latent: bytes = b"") -> str:
    """The right of the page: the edited picture, with links that download it and its code."""
    if image is None:
        return picture(None, "", "Invert a picture first, then edit it here") + downloads(None, None)
    return picture(image, "Edited picture") + downloads(address(png(image), "image/png"), latent)


def downloads(image: str | None, latent: bytes | None) -> str:
    """Two links that look like buttons; without content they are there, but do nothing."""
    links = []
    for file, kind, text in (("picture.png", image, "Picture"), ("latent.safetensors", latent, "Latent")):
        if kind is None:
            links.append(f'<span class="fi-button" aria-disabled="true">{text}</span>')
            continue
        target = kind if isinstance(kind, str) else address(kind, "application/octet-stream")
        links.append(f'<a class="fi-button" href="{target}" download="{file}">{text} <small>{file}</small></a>')
    return f'<div class="fi-downloads">{"".join(links)}</div>'
