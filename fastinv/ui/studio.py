"""What the page does, without the page: pictures to codes, codes to edited pictures, for several tabs side by side."""

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastinv.checkpoints import network_hash
from fastinv.data.pictures import load_picture
from fastinv.editing.apply import edit
from fastinv.editing.codes import check_generator, codes_of, render
from fastinv.editing.mix import mix
from fastinv.errors import PictureError, UsageError
from fastinv.files import shown
from fastinv.inversion import PRESETS, invert
from fastinv.inversion.loop import frozen
from fastinv.inversion.objective import own_encoder
from fastinv.inversion.precision import prepare
from fastinv.latents import save_latent
from fastinv.losses import psnr
from fastinv.ui.jobs import Job, Queue

SECONDS = 0.1  # between two pictures of a running inversion, at least
MOST_STEPS = 5000
MOST_TABS = 200  # whose codes are kept
LAYERS = {"coarse": (0, 8), "middle": (16, 32), "fine": (64, 1024)}  # resolutions (Karras et al. 2019, section 3.1)


@dataclass(frozen=True)
class Choice:
    """A way to invert, for people who want to choose by quality and time.

    Attributes:
        label: in a few words.
        what: in one line.
        arguments: of ``fastinv.invert``.
        steps: that it does if nothing else is said; 0 for an encoder, which has none.
    """

    label: str
    what: str
    arguments: dict
    steps: int


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth
class Progress:
    """Where an inversion is.

    Attributes:
        step, steps: updates done, and of how many.
        loss: total, at this step.
        psnr: of the picture, in dB.
        picture: [3, R, R].
        curve: the PSNR after each step so far.
    """

    step: int
    steps: int
    loss: float
    psnr: float
    picture: torch.Tensor
    curve: tuple[float, ...]


@dataclass(frozen=True)
class Inverted:
    """An inverted picture: its codes (of one picture), settings, and the last Progress, that of the kept codes."""

    codes: dict[str, torch.Tensor]
    settings: dict
    progress: Progress


@dataclass
class Tab:
    """What one tab of a browser has: pictures [3, R, R], what became of them, and the job under way."""

    target: torch.Tensor | None = None
    inverted: Inverted | None = None
    other: Inverted | None = None
    job: Job | None = None

    def load(self, target: torch.Tensor | None) -> None:
        """Another picture, or none: what runs for the one before is stopped, its codes go."""
        self.stop()
        self.target, self.inverted = target, None

    def begin(self, studio: "Studio", choice: Choice, steps: float | None) -> Job:
        """Have the picture inverted.

        Raises:
            UsageError: there is none, it is being inverted already, or as ``Studio.invert`` says.
        """
        if self.target is None:
            raise UsageError("There is no picture yet: drop one, or take an example.")
        if self.job is not None and not self.job.ended:
            raise UsageError("This picture is being inverted already; cancel that first.")
        self.job = studio.invert(self.target, choice, steps)
        return self.job

    def end(self, job: Job) -> bool:
        """Take over what a job has found, unless the picture is another one by now; whether it is not."""
        if job is not self.job:
            return False
        self.job = None
        if job.result is not None:
            self.inverted = job.result
        return True

    def stop(self) -> None:
        """Stop what runs for this tab."""
        if self.job is not None:
            self.job.cancel()
        self.job = None

    def forget(self) -> None:
        """Stop what runs for this tab, and let go of its pictures."""
        self.stop()
        self.target = self.inverted = self.other = None


class Tabs:
    """Tabs by the name of their session; those that were used least recently go when there are too many."""

    def __init__(self, most: int = MOST_TABS):
        self._tabs: OrderedDict[str, Tab] = OrderedDict()
        self._most, self._lock = most, threading.Lock()

    def __len__(self) -> int:
        return len(self._tabs)

    def __getitem__(self, name: str) -> Tab:
        """The tab of a session; an empty one for a new session."""
        with self._lock:
            tab = self._tabs.setdefault(name, Tab())
            self._tabs.move_to_end(name)
            old = self._tabs.popitem(last=False)[1] if len(self._tabs) > self._most else None
        if old is not None:
            old.forget()
        return tab

    def close(self, name: str) -> None:
        """Forget a session, if there is such a one."""
        with self._lock:
            tab = self._tabs.pop(name, None)
        if tab is not None:
            tab.forget()


class Studio:
    """What all tabs share: the generator, its directions, the ways to invert, and one queue.

    Args:
        G: the generator.
        directions: name -> Direction, for the sliders.

    Raises:
        UsageError: a direction is for another generator.
    """

    def __init__(self, G, directions: dict):
        self.G, self.directions, self.network = G, directions, G.prepare()
        self.sha256 = network_hash(G)
        for direction in directions.values():
            check_generator(direction.generator_sha256, G, f"direction {direction.name!r}")
        self.choices = choices(G)
        self.quick = next(iter(self.choices.values()))
        self.layers = layer_ranges(G.num_ws)
        self.queue, self.tabs, self._dtype = Queue(), Tabs(), None
        self.queue.submit(self._get_ready)

    def close(self) -> None:
        """Stop everything; within a step of what runs."""
        self.queue.close()

    def read(self, path: str | Path) -> torch.Tensor:
        """The middle square of a picture file, [3, R, R]; a PictureError calls the file by its name alone."""
        try:
            return load_picture(path, self.G.resolution)
        except PictureError as error:
            raise PictureError(str(error).replace(shown(path), Path(path).name)) from error

    def invert(self, target: torch.Tensor, choice: Choice, steps: int | None = None) -> Job:
        """Put an inversion into the queue. ``latest`` of the job is a Progress, its result an Inverted.

        A cancelled job stops within a step and has the best so far as its result.

        Args:
            target: [3, R, R] in [-1, 1].
            choice: how.
            steps: 1 to MOST_STEPS; None is the choice's own. An encoder has none.

        Raises:
            UsageError: steps out of range, or a full queue.
        """
        steps = choice.steps if steps is None or not choice.steps else steps
        if choice.steps and not (float(steps).is_integer() and 1 <= steps <= MOST_STEPS):
            raise UsageError(f"steps must be a whole number from 1 to {MOST_STEPS}, not {steps}")
        return self.queue.submit(lambda job: self._invert(job, target, choice, int(steps)))

    def _invert(self, job: Job, target: torch.Tensor, choice: Choice, steps: int) -> Inverted:
        curve, last = [], -SECONDS

        def callback(step, losses, images) -> bool:
            nonlocal last
            curve.append(psnr(images, target[None].to(images)).item())
            now = time.monotonic()
            if now - last >= SECONDS or step == steps:
                last = now
                if images.isfinite().all():
                    picture = images[0].detach().cpu()
                    job.latest = Progress(step, steps, losses["total"].item(), curve[-1], picture, tuple(curve))
            return job.cancelled

        arguments = dict(choice.arguments)
        if choice.steps:
            arguments["steps"] = steps
            if PRESETS[arguments["preset"]]["dtype"] == "auto" and self._dtype:
                arguments["dtype"] = self._dtype  # timed once, not for each picture
        result = invert(self.G, target[None], callback=callback, progress=False, **arguments)
        codes = {name: value.cpu() for name, value in codes_of(result).items()}
        best, picture = result.metrics["best_step"][0], self.picture(codes)  # in full precision, as edits are shown
        kept = Progress(
            result.settings["steps_done"], steps, result.losses["total"][best, 0].item(),
            psnr(picture[None], target[None].to(picture)).item(), picture, tuple(curve),
        )  # fmt: skip
        job.latest = kept
        return Inverted(codes, result.settings, kept)

    def edit(
        self,
        codes: dict[str, torch.Tensor],
        strengths: dict[str, float],
        other: dict[str, torch.Tensor] | None = None,
        layers: Sequence[str] = (),
        amount: float = 0.0,
    ) -> dict[str, torch.Tensor]:
        """Codes, mixed with others and moved along directions.

        Args:
            codes: of one picture.
            strengths: direction -> strength; those of 0 may be left out.
            other: codes of the picture to mix with, ``w_plus + amount (other's w_plus - w_plus)`` in some layers.
            layers: which, names in ``layers``.
            amount: 0 leaves the codes, 1 takes the other picture's.

        Raises:
            UsageError: an unknown direction or layer, or a number that is not finite.
        """
        unknown = [*(set(strengths) - set(self.directions)), *(set(layers) - set(self.layers))]
        if unknown:
            raise UsageError(f"unknown direction or layers {unknown[0]!r}")
        if other is not None and amount and layers:
            chosen = [layer for name in layers for layer in range(*self.layers[name])]
            codes = mix(self.G, codes, other, chosen, amount)
        for name, strength in strengths.items():
            if strength:
                codes = edit(self.G, codes, self.directions[name], float(strength), force=True)  # checked before
        return codes

    def picture(self, codes: dict[str, torch.Tensor]) -> torch.Tensor:
        """The picture [3, R, R] of codes."""
        return render(self.network, codes)[0].cpu()

    def latent_file(self, codes: dict[str, torch.Tensor], settings: dict, edits: dict) -> bytes:
        """The content of latent.safetensors: codes, how the picture was inverted, and how it was edited."""
        facts = {name: settings.get(name) for name in ("method", "preset", "space", "seed")}
        facts |= {"generator_sha256": self.sha256, "edits": edits}
        others = {name: value for name, value in codes.items() if name != "w_plus"}
        with tempfile.TemporaryDirectory(prefix="fastinv-ui-") as folder:
            path = Path(folder) / "latent.safetensors"
            save_latent(path, codes["w_plus"], facts, others)
            return path.read_bytes()

    def _get_ready(self, job: Job) -> None:
        """What the first inversion would have to wait for: the encoder, and which arithmetic is the faster one."""
        target = torch.zeros(1, 3, self.G.resolution, self.G.resolution, device=self.G.w_avg.device)
        if not self.quick.steps:
            invert(self.G, target, progress=False, **self.quick.arguments)
        if job.cancelled:
            return
        with frozen(self.G):
            self._dtype = prepare(self.G, "auto", target)[1]["dtype"]


def choices(G) -> dict[str, Choice]:
    """The ways to invert for a generator, the quickest first: name -> Choice."""
    found = {}
    if own_encoder(G, "psp"):
        found["at once"] = Choice("At once", "pSp encoder, one pass", {"method": "psp"}, 0)
    for name in PRESETS:
        if name != "fast" or not found:  # an encoder is the quick one where there is one
            steps = PRESETS[name]["steps"]
            found[name] = Choice(name.capitalize(), f"optimised, {steps} steps", {"preset": name}, steps)
    return found


def layer_ranges(num_ws: int) -> dict[str, tuple[int, int]]:
    """Style inputs (first, end) of the coarse, middle and fine layers: two for each resolution, from 4 up."""
    resolutions = [4 * 2 ** (index // 2) for index in range(num_ws)]
    found = {}
    for name, (low, high) in LAYERS.items():
        inside = [index for index, resolution in enumerate(resolutions) if low <= resolution <= high]
        if inside:
            found[name] = inside[0], inside[-1] + 1
    return found
