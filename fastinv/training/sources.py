"""Where training pictures come from: the procedural faces, rendered on the fly, or a folder of pictures."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from fastinv.data import faces
from fastinv.data.pictures import load_picture
from fastinv.errors import UsageError
from fastinv.files import shown
from fastinv.models.layers import normalize_second_moment

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
EXPRESSION = ("eye_open", "gaze", "smile")  # small in the picture, large to a person


class FacesSource:
    """Endless train-split renders. Each face has a latent: the first coordinates of z say its attributes.

    z [z_dim], scaled to a mean square of one as the mapping network does, has nearly standard normal coordinates, so
    their normal distribution function gives the uniforms that the renderer's distribution is made of. The remaining
    coordinates are free. This pairs latents with pictures for the trainer's paired term.

    Args:
        resolution: side of the renders in pixels.
        z_dim: width of the latents, above the number of attributes.
        device: where the renders are made.
        details: attributes that ``batch`` marks the pixels of.
    """

    paired = True

    def __init__(self, resolution: int, z_dim: int, device: torch.device | str = "cpu", details=EXPRESSION):
        unknown = [name for name in details if name not in faces.NAMES]
        if unknown:
            raise UsageError(f"no attribute {unknown[0]!r}; details must be some of {', '.join(faces.NAMES)}")
        if z_dim < len(faces.NAMES) + 1:
            raise UsageError(f"faces need z_dim of at least {len(faces.NAMES) + 1}, not {z_dim}")
        self.resolution, self.z_dim, self.device, self.details = resolution, z_dim, device, tuple(details)

    def batch(
        self, count: int, resolution: int, details: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """``count`` new pairs; without ``details``, which take a second rendering, the last item is None.

        Returns:
            pictures [count, 3, resolution, resolution] in [-1, 1]; their z [count, z_dim]; and where their details
            are, [count, 1, resolution, resolution]: 1 where other values of the ``details`` attributes would change the
            picture, else 0.
        """
        z = torch.randn(count, self.z_dim).to(self.device)
        attributes = faces_attributes(z)
        images = faces.render(attributes, resolution=self.resolution)
        if not details:
            return shrink(images, resolution), z, None
        opposite = dict(attributes)
        for name in self.details:
            low, high = faces.ATTRIBUTES[name].low, faces.ATTRIBUTES[name].high
            opposite[name] = torch.where(attributes[name] > (low + high) / 2, low, high).to(images.dtype)
        change = (faces.render(opposite, resolution=self.resolution) - images).abs().amax(1, keepdim=True)
        return shrink(images, resolution), z, shrink((change > 0.1).to(images.dtype), resolution)


def faces_attributes(z: torch.Tensor) -> dict[str, torch.Tensor]:
    """The face attributes that latents z [N, z_dim] of a paired generator stand for: {name: [N]}."""
    normal = normalize_second_moment(z)[:, : len(faces.NAMES)]
    uniform = 0.5 * (1 + torch.erf(normal / math.sqrt(2)))
    # Snapped to the train split's lattice (see faces.sample_uniform): no held-out face is ever drawn.
    k = (uniform * 2**22).floor().clamp(0, 2**22 - 1)
    return faces.attributes_from_uniform((4 * k + 1) / 2**24)


def picture_files(folder: str | Path) -> list[Path]:
    """The picture files of a folder and its subfolders, in order of their names.

    Raises:
        UsageError: no folder, or no file in it has the name of a picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)} is not a folder of pictures; give a folder or the word faces")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise UsageError(f"no pictures in {shown(folder)} (looked for {', '.join(sorted(PICTURE_SUFFIXES))})")
    return paths


class FolderSource:
    """Random pictures of a folder (searched with its subfolders), centre-cropped, kept in memory as bytes.

    Args:
        folder: at least one readable picture; the first unreadable one is an error that names it.
        resolution: side in pixels.
        z_dim: width of the latents that ``batch`` draws.
        mirror: flip half of them horizontally.
        device: where the pictures are kept.
    """

    paired = False

    def __init__(self, folder: str | Path, resolution: int, z_dim: int, mirror: bool = False, device="cpu"):
        paths = picture_files(folder)
        pictures = [load_picture(path, resolution) for path in paths]
        self.images = torch.stack([((p + 1) * 127.5).round().clamp(0, 255).byte() for p in pictures]).to(device)
        self.z_dim, self.mirror, self.device = z_dim, mirror, device

    def batch(self, count: int, resolution: int, details: bool = False) -> tuple[torch.Tensor, torch.Tensor, None]:
        """``count`` random pictures [count, 3, resolution, resolution] in [-1, 1], unrelated latents, and None."""
        chosen = torch.randint(len(self.images), (count,)).to(self.device)
        images = self.images[chosen].float() / 127.5 - 1
        if self.mirror:
            flip = (torch.rand(count, 1, 1, 1) < 0.5).to(self.device)
            images = torch.where(flip, images.flip(3), images)
        return shrink(images, resolution), torch.randn(count, self.z_dim).to(self.device), None


def shrink(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Area average down to ``resolution``, a divisor of the present side."""
    factor = images.shape[-1] // resolution
    return F.avg_pool2d(images, factor) if factor > 1 else images
