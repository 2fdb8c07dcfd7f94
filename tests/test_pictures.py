"""Pictures: every kind of file is read right, or refused with one clear line; nothing half-written stays behind."""

import io
import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fastinv.data import pictures
from fastinv.data.pictures import check_picture, load_mask, load_picture, save_picture, to_pillow
from fastinv.errors import FastinvError, PictureError, UsageError
from fastinv.files import shown


def scene(width: int = 96, height: int = 96) -> Image.Image:
    """Smooth, no symmetry: every flip, turn and shift shows."""
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / (width - 1), y / (height - 1)
    rgb = np.stack([255 * x, 255 * y, 127 + 100 * np.sin(5 * x + 3 * y * y)], -1)
    return Image.fromarray(rgb.round().astype(np.uint8))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in 8-bit levels."""
    return round(((a - b).abs().max() * 127.5).item(), 3)


@pytest.fixture
def reference(tmp_path):
    scene().save(tmp_path / "reference.png")
    return load_picture(tmp_path / "reference.png", 32)


# ------------------------------------------------------------------------------------------------------------ supported


def test_values_and_layout(tmp_path):
    image = Image.new("RGB", (8, 8), (255, 0, 51))
    image.save(tmp_path / "a.png")
    loaded = load_picture(tmp_path / "a.png", 8)
    assert loaded.shape == (3, 8, 8) and loaded.dtype == torch.float32 and loaded.is_contiguous()
    assert loaded[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, -0.6], abs=1e-6)


@pytest.mark.parametrize(
    ("suffix", "options", "levels"),
    [
        ("png", {}, 0),
        ("bmp", {}, 0),
        ("tiff", {}, 0),
        ("webp", {"lossless": True}, 0),
        ("webp", {"quality": 95}, 16),
        ("jpg", {"quality": 95}, 12),
        ("jpg", {"quality": 95, "progressive": True}, 12),
        ("gif", {}, 40),
    ],
)
def test_formats(tmp_path, reference, suffix, options, levels):
    path = tmp_path / f"picture.{suffix}"
    scene().save(path, **options)
    assert difference(load_picture(path, 32), reference) <= levels


def test_the_suffix_does_not_matter(tmp_path, reference):
    scene().save(tmp_path / "picture.jpg", format="PNG")
    assert difference(load_picture(tmp_path / "picture.jpg", 32), reference) == 0


def test_grey_equals_its_rgb_version(tmp_path):
    grey = scene().convert("L")
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    assert difference(load_picture(tmp_path / "grey.png", 32), load_picture(tmp_path / "rgb.png", 32)) == 0


def test_black_and_white(tmp_path):
    scene().convert("1").save(tmp_path / "one.png")
    scene().convert("1").convert("RGB").save(tmp_path / "rgb.png")
    assert difference(load_picture(tmp_path / "one.png", 32), load_picture(tmp_path / "rgb.png", 32)) == 0


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 64).round().astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(tmp_path / f"deep.{suffix}")
    loaded = load_picture(tmp_path / f"deep.{suffix}", 64)
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535 * 2 - 1)
    assert difference(loaded, expected.expand(3, -1, -1)) <= 0.51
    assert loaded.min() == -1 and loaded.max() == 1


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(rgb: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour(tmp_path):
    rgb = np.asarray(scene()).astype(np.uint16)
    (tmp_path / "deep.png").write_bytes(png16(rgb * 257))
    scene().save(tmp_path / "flat.png")
    assert difference(load_picture(tmp_path / "deep.png", 32), load_picture(tmp_path / "flat.png", 32)) == 0


def test_cmyk(tmp_path, reference):
    scene().convert("CMYK").save(tmp_path / "cmyk.tiff")
    assert difference(load_picture(tmp_path / "cmyk.tiff", 32), reference) <= 2
    scene().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert difference(load_picture(tmp_path / "cmyk.jpg", 32), reference) <= 16


def test_palette(tmp_path):
    palette = scene().quantize(64)
    palette.save(tmp_path / "palette.png")
    palette.convert("RGB").save(tmp_path / "rgb.png")
    assert difference(load_picture(tmp_path / "palette.png", 32), load_picture(tmp_path / "rgb.png", 32)) == 0


def test_alpha_is_composited_on_white(tmp_path):
    image = scene().convert("RGBA")
    alpha = np.full((96, 96), 255, np.uint8)
    alpha[:, :48] = 0
    image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "alpha.png")
    image.save(tmp_path / "alpha.webp", lossless=True)
    loaded = load_picture(tmp_path / "alpha.png", 32)
    assert (loaded[:, :, :12] == 1).all()
    scene().save(tmp_path / "opaque.png")
    assert difference(loaded[:, :, 20:], load_picture(tmp_path / "opaque.png", 32)[:, :, 20:]) <= 1
    assert difference(load_picture(tmp_path / "alpha.webp", 32), loaded) <= 1


def test_hidden_colours_do_not_bleed(tmp_path):
    values = np.zeros((64, 64, 4), np.uint8)  # black and transparent, but for a white opaque half
    values[:, 32:] = 255
    Image.fromarray(values).save(tmp_path / "alpha.png")
    assert (load_picture(tmp_path / "alpha.png", 16) == 1).all()


def test_half_transparent_and_grey_alpha(tmp_path):
    Image.new("LA", (32, 32), (0, 128)).save(tmp_path / "la.png")
    assert difference(load_picture(tmp_path / "la.png", 16), torch.full((3, 16, 16), 127 / 127.5 - 1)) <= 1


def test_transparent_palette_and_colour_key(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 16, 32))
    image.save(tmp_path / "key.gif", transparency=0)
    image.save(tmp_path / "key.png", transparency=0)
    for name in ("key.gif", "key.png"):
        loaded = load_picture(tmp_path / name, 32)
        assert loaded[:, 0, 0].tolist() == [1, 1, 1] and loaded[:, 0, 31].tolist() == [-1, -1, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(96, 96), (97, 64), (61, 90)])
def test_exif_orientation(tmp_path, orientation, width, height):
    upright = scene(width, height)
    # What a camera stores so that the viewer's turn (by the EXIF table) gives `upright`.
    store = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.rotate(-90, expand=True),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "upright.png")
    for suffix in ("png", "tiff"):
        store[orientation](upright).save(tmp_path / f"turned.{suffix}", exif=exif)
        for crop in pictures.CROPS:
            turned = load_picture(tmp_path / f"turned.{suffix}", 31, crop)
            assert difference(turned, load_picture(tmp_path / "upright.png", 31, crop)) <= 1


def test_damaged_exif_is_ignored(tmp_path, reference):
    scene().save(tmp_path / "a.png", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xffgarbage")
    assert difference(load_picture(tmp_path / "a.png", 32), reference) == 0


def test_centre_crop(tmp_path):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste(scene(100, 100), (100, 0))
    wide.save(tmp_path / "wide.png")
    scene(100, 100).save(tmp_path / "square.png")
    assert difference(load_picture(tmp_path / "wide.png", 50), load_picture(tmp_path / "square.png", 50)) == 0


def test_pad(tmp_path):
    Image.new("RGB", (300, 100), "black").save(tmp_path / "wide.png")
    loaded = load_picture(tmp_path / "wide.png", 60, crop="pad")
    assert (loaded[:, :20] == 1).all() and (loaded[:, 20:40] == -1).all() and (loaded[:, 40:] == 1).all()


def test_downsampling_does_not_alias(tmp_path):
    checker = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checker).save(tmp_path / "checker.png")
    assert load_picture(tmp_path / "checker.png", 32).abs().max() < 0.02


def test_enlarging_is_allowed_and_noted(tmp_path, caplog):
    scene(20, 30).save(tmp_path / "small.png")
    assert load_picture(tmp_path / "small.png", 64).shape == (3, 64, 64)
    assert "20 pixels enlarged to 64" in caplog.text
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    assert load_picture(tmp_path / "dot.png", 8)[:, 3, 3].tolist() == [1, -1, -1]


@pytest.mark.parametrize(("width", "height"), [(4000, 1), (1, 4000), (4000, 3)])
@pytest.mark.parametrize("crop", pictures.CROPS)
def test_extreme_shapes(tmp_path, width, height, crop):
    Image.new("RGB", (width, height), "blue").save(tmp_path / "thin.png")
    assert load_picture(tmp_path / "thin.png", 16, crop).shape == (3, 16, 16)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    for name in ("a.gif", "a.webp", "a.png", "a.tiff"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert load_picture(tmp_path / name, 16)[:, 8, 8].tolist() == [1, -1, -1]


def test_icc_profile_is_converted_and_a_broken_one_ignored(tmp_path, reference):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # not a profile for RGB pictures
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"garbage", lab, srgb):
        scene().save(tmp_path / "a.png", icc_profile=profile)
        assert difference(load_picture(tmp_path / "a.png", 32), reference) <= 1
    # A profile whose red and blue primaries are exchanged must exchange the colours.
    swapped = bytearray(srgb)
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    description = swapped.index("sRGB".encode("utf-16-be"))
    swapped[description : description + 8] = "Test".encode("utf-16-be")
    scene().save(tmp_path / "swapped.png", icc_profile=bytes(swapped))
    assert difference(load_picture(tmp_path / "swapped.png", 32), reference.flip(0)) <= 3


def test_large_jpeg_is_decoded_small(tmp_path, reference, monkeypatch):
    scene(1600, 1600).save(tmp_path / "large.jpg", quality=95)
    sizes = []
    real = pictures._resized
    monkeypatch.setattr(pictures, "_resized", lambda picture, *rest: sizes.append(picture.size) or real(picture, *rest))
    assert difference(load_picture(tmp_path / "large.jpg", 32), reference) <= 10
    assert sizes == [(200, 200)]


def test_100_megapixels(tmp_path):
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "large.png")
    assert (load_picture(tmp_path / "large.png", 16) == 1).all()


def test_masks(tmp_path):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "mask.png")
    loaded = load_mask(tmp_path / "mask.png", 64)
    assert loaded.shape == (1, 64, 64) and (loaded[..., :32] == 0).all() and (loaded[..., 32:] == 1).all()
    Image.new("L", (64, 64), 0).save(tmp_path / "black.png")
    with pytest.raises(PictureError, match="black everywhere"):
        load_mask(tmp_path / "black.png", 64)


# -------------------------------------------------------------------------------------------------------------- refused


def refused(path, says: str, check: bool = True) -> None:
    for read in [lambda: load_picture(path, 16)] + ([lambda: check_picture(path)] if check else []):
        with pytest.raises(PictureError) as caught:
            read()
        message = str(caught.value)
        assert says in message and "\n" not in message and len(message) < 400
        assert shown(path) in message


def test_refused_files(tmp_path):
    refused(tmp_path / "missing.png", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty (0 bytes)")
    (tmp_path / "text.png").write_text("hello, I am not a picture")
    refused(tmp_path / "text.png", "not a picture")
    (tmp_path / "zeros.png").write_bytes(bytes(1000))
    refused(tmp_path / "zeros.png", "not a picture")
    (tmp_path / "two\nlines.png").touch()
    refused(tmp_path / "two\nlines.png", "empty (0 bytes)")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    refused(tmp_path / "link.png", "no such file")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")
    refused("", "no such file")
    refused("a\0b.png", "null byte")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.9])
def test_truncated(tmp_path, suffix, keep):
    whole = io.BytesIO()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (96, 96, 3), dtype=np.uint8))
    noise.save(whole, format={"jpg": "JPEG", "tiff": "TIFF"}.get(suffix, suffix.upper()))
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * keep)])
    with pytest.raises(PictureError) as caught:
        load_picture(path, 16)
    assert "damaged or truncated" in str(caught.value) or "not a picture" in str(caught.value)


def test_random_damage_gives_a_picture_or_a_clear_line(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for suffix in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        whole = io.BytesIO()
        scene(40, 40).save(whole, format=suffix)
        for _ in range(60):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            where = rng.integers(0, min(len(data), 200 if rng.random() < 0.5 else len(data)), 4)
            data[where] = rng.integers(0, 256, 4)
            path.write_bytes(data.tobytes())
            try:
                assert load_picture(path, 16).isfinite().all()
            except PictureError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize(("width", "height"), [(12_300, 12_200), (40_000, 40_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs(tmp_path, width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    (tmp_path / "bomb.png").write_bytes(data)
    refused(tmp_path / "bomb.png", "more than 150 million pixels")


def test_modes_without_defined_white(tmp_path):
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "a.tiff")
    refused(tmp_path / "a.tiff", "no defined white", check=False)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "b.tiff")
    refused(tmp_path / "b.tiff", "mode F", check=False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").chmod(0)
    refused(tmp_path / "a.png", "no permission")


def test_bad_arguments(tmp_path):
    scene().save(tmp_path / "a.png")
    for resolution in (0, -1, 1.5, "64"):
        with pytest.raises(UsageError, match="resolution"):
            load_picture(tmp_path / "a.png", resolution)
    with pytest.raises(UsageError, match="crop"):
        load_picture(tmp_path / "a.png", 16, crop="left")


# --------------------------------------------------------------------------------------------------------------- saving


def test_save_and_load_again(tmp_path):
    image = torch.linspace(-1.2, 1.2, 3 * 16 * 16).reshape(3, 16, 16)
    save_picture(image, tmp_path / "a.png")
    assert difference(load_picture(tmp_path / "a.png", 16), image.clamp(-1, 1)) <= 0.51
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o666 & ~umask


def test_saving_replaces_and_never_leaves_half(tmp_path, monkeypatch):
    save_picture(torch.zeros(3, 8, 8), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def fail(self, file, format):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        save_picture(torch.ones(3, 8, 8), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(UsageError, match="not finite"):
        save_picture(torch.full((3, 8, 8), float("nan")), tmp_path / "a.png")
    with pytest.raises(UsageError, match="shape"):
        to_pillow(torch.zeros(1, 3, 8, 8))
    with pytest.raises(FastinvError, match="PNG"):
        save_picture(torch.zeros(3, 8, 8), tmp_path / "a.jpg")
    with pytest.raises(FastinvError, match="cannot write"):
        save_picture(torch.zeros(3, 8, 8), tmp_path / "none" / "a.png")
    assert not list(tmp_path.iterdir())
