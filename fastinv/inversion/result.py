"""What an inversion gives: codes, pictures, curves, metrics and settings, with saving and loading."""

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastinv.data.pictures import save_picture
from fastinv.errors import UsageError
from fastinv.files import shown
from fastinv.inversion.weights import has_weights, render, tuned_generator
from fastinv.latents import load_codes, save_latent

LATENT, PICTURE, RESULT = "latent.safetensors", "reconstruction.png", "result.json"


@dataclass(frozen=True)
class InversionResult:
    """Result of inverting N pictures. ``len(result)`` is N; ``result[i]`` and ``result[i:j]`` are results of a part.

    Attributes:
        w_plus: [N, num_ws, w_dim], the codes.
        images: [N, 3, R, R], their pictures, nominally in [-1, 1]. After ``load``: 8-bit, from the PNG.
        losses: weighted curves, "total" and one per term, float64 [evaluations, N]; row s after s updates.
        metrics: per picture (lists of N): psnr (dB, clamped pictures, range 2, at most 100), mse, loss_<term> and
            best_step of the kept code; with masks also psnr_masked and mse_masked, over the weighted pixels.
        settings: how it was made (JSON): method, options, seed, generator hash, trunk, versions, seconds ...
        codes: what else the pictures are made of, [N, ...] each: "z", "styles", "features" and "picture",
            "noise.<layer>", see ``fastinv.inversion.spaces``; and "weights.<parameter>", what pivotal tuning added.
    """

    w_plus: torch.Tensor
    images: torch.Tensor
    losses: dict[str, torch.Tensor]
    metrics: dict[str, list]
    settings: dict
    codes: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.w_plus)

    def __getitem__(self, index: int | slice) -> "InversionResult":
        picked = range(len(self))[index]  # an IndexError for an index out of range
        rows = list(picked) if isinstance(picked, range) else [picked]
        return InversionResult(
            self.w_plus[rows],
            self.images[rows],
            {name: curve[:, rows] for name, curve in self.losses.items()},
            {name: [values[row] for row in rows] for name, values in self.metrics.items()},
            self.settings,
            {name: value[rows] for name, value in self.codes.items()},
        )

    @property
    def noise(self) -> str:
        """Mode of the noise maps that the codes do not hold: "const", the generator's own, or "none"."""
        return "none" if self.settings.get("options", {}).get("noise") == "none" else "const"

    def render(self, G) -> torch.Tensor:
        """The pictures [N, 3, R, R] of the codes by the generator that they were found with (or another one like it).

        Noise maps that the codes do not hold are those that the inversion used.
        """
        return render(G, {"w_plus": self.w_plus, **self.codes}, self.noise)

    def generator(self, G, index: int = 0):
        """The generator that pivotal tuning made for a picture (method "pti"): a copy of G with the stored difference.

        Args:
            G: the generator of the inversion; it stays as it is.
            index: of the picture; negative ones count from the end.

        Returns:
            A generator like G, in float32 at least: a difference is too small for 16 bits. Codes near the picture's
            w_plus, such as edited ones, are what it is for.

        Raises:
            UsageError: the result holds no tuned weights, or G is not the generator that they are for. IndexError: no
                such picture.
        """
        if not has_weights(self.codes):
            raise UsageError('this result holds no tuned weights: they come from method "pti"; use G itself')
        return tuned_generator(G, self.codes, range(len(self))[index])

    def save(self, folder: str | Path, pictures: dict[str, Image.Image] | None = None) -> Path:
        """Write latent.safetensors, reconstruction.png (pictures side by side) and result.json.

        A new folder appears whole or not at all. In an existing one other files stay, and result.json is the last file
        to be replaced, so a folder with a result.json is complete at any moment. ``settings["seconds"]`` is not among
        the files: the same work leaves the same bits.

        Args:
            folder: where to; missing folders above it are made.
            pictures: further PNG files to write with them, file name -> Pillow image.

        Raises:
            UsageError: it cannot be written.
        """
        folder = Path(folder)
        temporary = None
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name[:64]}."))
            temporary.chmod(0o755)
            facts = {name: self.settings.get(name) for name in ("method", "space", "seed")}
            facts["generator_sha256"] = self.settings.get("generator", {}).get("sha256")
            save_latent(temporary / LATENT, self.w_plus, facts, self.codes)
            save_picture(torch.cat(list(self.images), dim=-1), temporary / PICTURE)
            for name, picture in (pictures or {}).items():
                save_picture(picture, temporary / name)
            settings = {name: value for name, value in self.settings.items() if name != "seconds"}
            document = {"settings": settings, "metrics": self.metrics, "losses": _lists(self.losses)}
            (temporary / RESULT).write_text(json.dumps(_without_nan(document), indent=1, allow_nan=False) + "\n")
            if folder.is_dir():
                (folder / RESULT).unlink(missing_ok=True)
                for name in (LATENT, PICTURE, *(pictures or ()), RESULT):
                    os.replace(temporary / name, folder / name)
            else:
                os.rename(temporary, folder)
        except OSError as error:
            raise UsageError(f"cannot write the result to {shown(folder)}: {error.strerror or error}") from error
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "InversionResult":
        """Read what ``save`` wrote; codes, curves and metrics are exact, pictures are rounded to 8 bits.

        Raises:
            UsageError: no complete result there. CheckpointError: a damaged latent file.
        """
        folder = Path(folder)
        try:
            document = json.loads((folder / RESULT).read_text())
            codes = load_codes(folder / LATENT)
            w_plus = codes.pop("w_plus")
            with Image.open(folder / PICTURE) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32))
            losses = {name: _tensor(rows) for name, rows in document["losses"].items()}
            metrics, settings = _with_nan(document["metrics"]), document["settings"]
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise UsageError(f"no inversion result in {shown(folder)}: {missing} is missing") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"cannot read the inversion result in {shown(folder)}: {error}") from error
        images = (pixels / 127.5 - 1).permute(2, 0, 1).chunk(len(w_plus), dim=-1)
        return cls(w_plus, torch.stack(images), losses, metrics, settings, codes)


def _lists(curves: dict[str, torch.Tensor]) -> dict[str, list]:
    return {name: curve.tolist() for name, curve in curves.items()}


def _tensor(rows: list) -> torch.Tensor:
    return torch.tensor(_with_nan(rows), dtype=torch.float64)


def _without_nan(value):
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value):
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
