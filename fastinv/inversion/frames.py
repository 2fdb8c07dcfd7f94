"""Pictures of an inversion on its way: every so manieth step as a PNG file, all of them as an animation."""

from pathlib import Path

import torch
from PIL import Image

from fastinv.data.pictures import save_picture
from fastinv.errors import UsageError
from fastinv.files import atomic_file, shown

FRAMES, ANIMATION = "frames", "progress.gif"  # beside a picture's other results
STANDARD = 50  # frames of an animation where nobody says how many
SHOWN, LAST = 80, 2000  # milliseconds for a frame, and for the final picture


class Frames:
    """Writes ``<folder>/frames/<step>.png`` for each picture; call it as the ``callback`` of ``invert``.

    A frame is written before the state of its step is saved, so after an interruption none is missing.

    Args:
        folders: one for each picture.
        every: steps between two frames; the first one shows the start.
    """

    def __init__(self, folders: list[Path], every: int):
        self.folders, self.every = [folder / FRAMES for folder in folders], every

    def __call__(self, step: int, losses: dict[str, torch.Tensor], images: torch.Tensor) -> None:
        """After ``step`` updates: pictures [N, 3, R, R]; those that are not finite have left, and get no frame."""
        if step % self.every:
            return
        there = images.isfinite().flatten(1).all(1).tolist()
        for folder, image, is_there in zip(self.folders, images, there, strict=True):
            if is_there:
                folder.mkdir(parents=True, exist_ok=True)
                save_picture(image, folder / f"{step:05d}.png")


def animate(folder: str | Path, final: str | Path) -> Path:
    """Write ``<folder>/progress.gif`` of the frames in order and then, for two seconds, the final picture.

    Smaller frames, of a stage at a low resolution, are enlarged. Returns the file.

    Raises:
        UsageError: there are no frames, or it cannot be written.
    """
    paths = sorted((Path(folder) / FRAMES).glob("*.png"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise UsageError(f"no frames in {shown(Path(folder) / FRAMES)} to make an animation of")
    with Image.open(final) as picture:
        size = picture.size

    def read(path: Path | str) -> Image.Image:
        with Image.open(path) as frame:
            frame = frame.convert("RGB")
            return frame if frame.size == size else frame.resize(size, Image.Resampling.NEAREST)

    with atomic_file(Path(folder) / ANIMATION) as temporary:
        read(paths[0]).save(
            temporary, format="GIF", save_all=True, append_images=(read(path) for path in [*paths[1:], final]),
            duration=[SHOWN] * len(paths) + [LAST], loop=0,
        )  # fmt: skip
    return Path(folder) / ANIMATION
