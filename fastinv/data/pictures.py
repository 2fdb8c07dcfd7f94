"""Pictures in and out: files that Pillow reads <-> tensors [3, R, R] in [-1, 1].

What a file may be, and what is done with it:

* PNG, JPEG, WebP, BMP, GIF or TIFF; of an animation or a multi-page file the first frame.
* Grey, palette and CMYK become RGB. An embedded ICC profile is honoured: colours are converted to sRGB (a damaged or
  unsuitable profile is ignored).
* 16-bit grey is scaled to the full range, not clipped; of 16-bit RGB Pillow gives the upper 8 bits.
* Transparency is composited on white.
* The EXIF orientation is applied, so a phone picture stands upright.
* A picture that is not square is cut to its central square (``crop="center"``) or padded with white (``crop="pad"``).
* Scaling is antialiased Lanczos. A picture smaller than R is enlarged, with a logged note.
* Up to `MAX_PIXELS` pixels; larger ones are refused before they are decoded. JPEGs are decoded at reduced size, so that
  a large one needs little memory.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError

from fastinv.errors import PictureError, UsageError
from fastinv.files import atomic_file, shown

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
CROPS = ("center", "pad")
MAX_PIXELS = 150_000_000  # width * height; a transparent PNG of that size takes about 1.4 GB while it is decoded

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_logger = logging.getLogger("fastinv.pictures")


def load_picture(path: str | os.PathLike, resolution: int, crop: str = "center") -> torch.Tensor:
    """Read a picture file as a float32 tensor [3, resolution, resolution], sRGB, from -1 (black) to 1 (white).

    `crop`: "center" cuts the central square, "pad" keeps everything and pads with white.
    Raises PictureError, one line that names the file, what is wrong with it and what to do, and UsageError for a bad
    `resolution` or `crop`.
    """
    if not isinstance(resolution, int) or resolution < 1:
        raise UsageError(f"resolution must be a positive whole number of pixels, not {resolution!r}")
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
    with _picture(path) as picture:
        _draft(picture, resolution)
        picture.load()
        image = _resized(picture, resolution, crop, path)
        image = _on_white(image, picture.info.get("icc_profile"))
        # Cropping and scaling are symmetric, so turning the small picture equals turning the large one.
        turn = _UPRIGHT.get(_orientation(picture))
        image = image if turn is None else image.transpose(turn)
    if image.size != (resolution, resolution):
        square = Image.new("RGB", (resolution, resolution), "white")
        square.paste(image, ((resolution - image.width) // 2, (resolution - image.height) // 2))
        image = square
    values = np.asarray(image, dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1).contiguous()


def load_mask(path: str | os.PathLike, resolution: int, crop: str = "center") -> torch.Tensor:
    """Read a picture file as a mask, float32 [1, resolution, resolution]: 1 (white) counts, 0 (black) is ignored.

    Cropped and scaled exactly as `load_picture` does it, so draw it on the picture it belongs to. Greys are soft.
    """
    mask = (load_picture(path, resolution, crop).mean(0, keepdim=True) + 1) / 2
    if not mask.any():
        raise PictureError(f"{shown(path)}: the mask is black everywhere, no pixel counts; paint white what counts")
    return mask


def load_labels(path: str | os.PathLike, resolution: int, labels: int, crop: str = "center") -> torch.Tensor:
    """Read a label map, uint8 [resolution, resolution]: grey values or palette indices as they stand, 0 to labels - 1.

    Cropped as `load_picture` does it (padding has label 0), scaled to the nearest pixel.
    Raises PictureError, also for a file with colours, with lossy compression or with a value that is no label.
    """
    name = shown(path)
    with _picture(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16") or picture.format in ("JPEG", "MPO"):
            what = f"a {picture.format} of mode {picture.mode}"
            raise PictureError(
                f"{name}: {what} is no label map; give a grey or palette PNG whose pixels are the labels"
            )
        picture.load()
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() >= labels:
            odd = values.min() if values.min() < 0 else values.max()
            raise PictureError(f"{name}: holds the label {odd}; there are {labels}, from 0 to {labels - 1}")
        image = Image.fromarray(values.astype(np.uint8))
        turn = _UPRIGHT.get(_orientation(picture))
        image = image if turn is None else image.transpose(turn)
    side = max(image.size) if crop == "pad" else min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # Where the middle of each pixel of the square lies; a half is the pixel to the right, as in Pillow.
    centre = (np.arange(resolution) + 0.5) * side / resolution
    x, y = np.floor(left + centre).astype(int), np.floor(top + centre).astype(int)
    inside = ((y >= 0) & (y < image.height))[:, None] & ((x >= 0) & (x < image.width))[None]
    values = np.asarray(image)[y.clip(0, image.height - 1)][:, x.clip(0, image.width - 1)]
    return torch.from_numpy(np.where(inside, values, 0).astype(np.uint8))


def check_picture(path: str | os.PathLike) -> None:
    """Look at the file and its header only; raise PictureError where `load_picture` would for the same reason."""
    with _picture(path):
        pass


def to_pillow(image: torch.Tensor) -> Image.Image:
    """Tensor [3, H, W] or [1, H, W], nominally in [-1, 1] (clamped), to an 8-bit RGB Pillow image."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UsageError(f"a picture must have the shape [3, H, W] or [1, H, W], not {list(image.shape)}")
    image = image.detach().to("cpu", torch.float32)
    if not image.isfinite().all():
        raise UsageError("a picture holds values that are not finite (NaN or infinity); nothing to show")
    values = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def save_picture(image: torch.Tensor | Image.Image, path: str | os.PathLike) -> None:
    """Write a tensor [3, H, W] in [-1, 1] (clamped), or a Pillow image, as PNG; complete or not at all."""
    if Path(path).suffix.lower() != ".png":
        raise UsageError(f"pictures are saved as PNG: {shown(path)} should end in .png")
    image = to_pillow(image) if isinstance(image, torch.Tensor) else image
    with atomic_file(path) as temporary:
        image.save(temporary, format="PNG")


@contextlib.contextmanager
def _picture(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open a picture file, header checked; whatever goes wrong with it inside the block becomes a PictureError."""
    name = shown(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise PictureError(f"{name}: is a folder; name the pictures in it, for example {name.rstrip('/')}/*.png")
        if not stat.S_ISREG(mode):
            raise PictureError(f"{name}: is not a regular file; save the picture to a file first")
        with open(path, "rb") as file, warnings.catch_warnings():
            # Pillow warns about big pictures and odd metadata; our own limit and errors speak for it.
            warnings.simplefilter("ignore")
            if not file.read(1):
                raise PictureError(f"{name}: the file is empty (0 bytes); copy or download it again")
            file.seek(0)
            with Image.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield picture
    except (PictureError, UsageError):
        raise
    except FileNotFoundError:
        raise PictureError(f"{name}: no such file; check the path") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{name}: not a picture that can be read; convert it to PNG or JPEG (readable: {', '.join(FORMATS)})"
        ) from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{name}: too large, more than {MAX_PIXELS // 1_000_000} million pixels; scale it down first"
        ) from None
    except MemoryError:
        raise PictureError(f"{name}: not enough memory to decode it; scale it down first") from None
    except PermissionError:
        raise PictureError(f"{name}: no permission to read it; change its rights or copy it") from None
    except Exception as error:  # Pillow's decoders raise many types (OSError, SyntaxError, struct.error, ...) on damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(f"{name}: damaged or truncated picture ({reason}); copy or download it again") from error


def _draft(picture: Image.Image, resolution: int) -> None:
    """Let the JPEG decoder scale down by 2, 4 or 8 while at least twice the wanted resolution remains."""
    scale = 2 * resolution / min(picture.size)
    if picture.format in ("JPEG", "MPO") and scale < 1:
        picture.draft(None, (int(picture.width * scale), int(picture.height * scale)))


def _resized(picture: Image.Image, resolution: int, crop: str, path: str | os.PathLike) -> Image.Image:
    """Crop and scale a decoded picture; modes L, LA, RGB, RGBA and CMYK remain, others become one of them."""
    width, height = picture.size
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        # Cut first: Lanczos would look beyond the box. Half pixels at the rim remain where the sizes ask for them.
        x, y = int(left), int(top)
        if (width, height) != (side, side):
            picture = picture.crop((x, y, math.ceil(left + side), math.ceil(top + side)))
        box = (left - x, top - y, left - x + side, top - y + side)
        size = (resolution, resolution)
    else:
        side = max(width, height)
        box = (0, 0, width, height)
        size = (max(1, round(width * resolution / side)), max(1, round(height * resolution / side)))
    if side < resolution:
        _logger.warning("%s: %d pixels enlarged to %d, a larger picture is sharper", shown(path), side, resolution)

    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(f"{shown(path)}: 32-bit whole numbers have no defined white; convert it to 8 or 16 bits")
        small = Image.fromarray(values.astype(np.float32) / 257).resize(size, Image.Resampling.LANCZOS, box)
        return Image.fromarray(np.asarray(small).clip(0, 255).round().astype(np.uint8))
    if picture.mode in ("F", "LAB"):
        raise PictureError(f"{shown(path)}: mode {picture.mode} cannot be read; convert it to RGB of 8 or 16 bits")
    if picture.has_transparency_data:
        mode = "LA" if picture.mode in ("LA", "La") else "RGBA"
    elif picture.mode == "1":
        mode = "L"
    else:
        mode = picture.mode if picture.mode in ("L", "RGB", "CMYK") else "RGB"
    picture = picture if picture.mode == mode else picture.convert(mode)
    return picture.resize(size, Image.Resampling.LANCZOS, box)  # colours weighted with alpha where there is alpha


def _on_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours to sRGB, transparency composited on white: any mode of `_resized` to RGB."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    image = _to_srgb(image.convert(image.mode.rstrip("A")) if alpha else image, profile)
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode L, RGB or CMYK to RGB, through the embedded ICC profile if there is a usable one."""
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if ImageCms.getProfileDescription(source).strip().startswith("sRGB"):
                return image.convert("RGB")
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation 1 to 8; 1 (upright) where there is none or it cannot be read."""
    try:
        return picture.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata of a sound picture
        return 1
