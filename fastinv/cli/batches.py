"""One batch of pictures of `fastinv invert`: from files to results in a folder."""

import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fastinv.checkpoints.load import file_sha256
from fastinv.cli.common import out_of_memory, say
from fastinv.data.pictures import load_mask, load_picture
from fastinv.errors import CheckpointError, FastinvError, PictureError, UsageError
from fastinv.files import shown
from fastinv.inversion import InversionResult, NonFiniteLossError
from fastinv.inversion.checkpoint import Checkpoints
from fastinv.inversion.frames import Frames, animate
from fastinv.inversion.manifest import Batch, Manifest, Picture
from fastinv.inversion.result import LATENT, PICTURE, RESULT
from fastinv.inversion.runs import RESULTS, STATE, Run
from fastinv.latents import load_codes

LOSSES_EVERY = 10  # steps between two "loss" events: that is how often the loop looks at the losses anyway


class Log:
    """What `fastinv invert` prints on standard output: a line for each picture or, with --json, an object per event.

    Every object has "event"; numbers that are not finite are null.
    """

    def __init__(self, as_json: bool):
        self.as_json = as_json

    def event(self, event: str, line: str = "", **facts) -> None:
        """An event, and the line that stands for it, if any, without --json."""
        if self.as_json:
            print(json.dumps({"event": event, **_finite(facts)}), flush=True)
        elif line:
            print(line, flush=True)

    def failed(self, picture: str, reason: str) -> None:
        """A picture that could not be inverted; the reason is said on standard error, too."""
        say(reason)
        self.event("failed", picture=picture, reason=reason)


@dataclass
class Work:
    """What `fastinv invert` was asked for, the same for all batches.

    Attributes:
        G: the generator.
        arguments: of `invert`: method, space, steps, seed, dtype and options.
        crop, mask, init: as given; mask may be a folder, init a folder, or what `invert` takes.
        every: steps between two frames; None for none.
        video: whether to make an animation of them.
        seconds: between two checkpoints.
        quiet: no progress.
        facts: for the settings of each result.
        names: path -> what the user calls the picture.
        log: where to tell.
    """

    G: torch.nn.Module
    arguments: dict
    crop: str = "center"
    mask: Path | None = None
    init: object = None
    every: int | None = None
    video: bool = False
    seconds: float = 30.0
    quiet: bool = False
    facts: dict = field(default_factory=dict)
    names: dict[str, Path] = field(default_factory=dict)
    log: Log = field(default_factory=lambda: Log(False))

    def name(self, picture: Picture) -> Path:
        """What to call a picture: as the user did, else its absolute path."""
        return self.names.get(picture.path, Path(picture.path))


def invert_batch(work: Work, run: Run, batch: Batch, folder: Path) -> None:
    """Invert the pictures of a batch in its folder, and hand it back finished; or split, where memory ran out."""
    started = time.monotonic()
    too_large = False
    try:
        results, failures = _results(work, batch, folder)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        too_large = True  # what was tried is given back only when this block is left
    if too_large:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch.pictures) > 1:
            half = (len(batch.pictures) + 1) // 2
            say(f"out of memory with {len(batch.pictures)} pictures at a time; trying {half}")
            run.split(batch)
            return
        advice = "use --dtype bfloat16, a smaller generator or --device cpu"
        reason = f"{shown(work.name(batch.pictures[0]))}: out of memory even with one picture at a time; {advice}"
        results, failures = {}, {batch.pictures[0].path: reason}
    run.finish(batch, failures)
    state = {picture.path: picture for picture in Manifest.read(run.out).pictures()}
    seconds = round(time.monotonic() - started, 3)
    for picture in batch.pictures:
        now = state.get(picture.path, picture)
        if now.reason:
            work.log.failed(picture.path, now.reason)
        elif picture.path in results:
            tell_result(work.log, picture.path, run.out / picture.folder, results[picture.path], seconds)


def tell_result(log: Log, picture: str, folder: Path, result: InversionResult, seconds: float | None) -> None:
    """A finished picture; seconds are its batch's, None for one that was finished before or elsewhere."""
    metrics = {name: values[0] for name, values in result.metrics.items()}
    line = f"{shown(folder)}  PSNR {metrics['psnr']:.2f} dB" + ("" if seconds is not None else "  (was there)")
    log.event("picture", line, picture=picture, folder=str(folder), metrics=metrics, seconds=seconds)


def _results(work: Work, batch: Batch, folder: Path) -> tuple[dict[str, InversionResult], dict[str, str]]:
    """Write the results of a batch into its folder; path -> result, and path -> reason for those that failed."""
    from fastinv.inversion import invert

    targets, masks, starts, failures = {}, [], [], {}
    for picture in batch.pictures:
        name = work.name(picture)
        try:
            target, mask, start = _load(work, picture, name)
        except (PictureError, UsageError, CheckpointError, OSError) as error:
            failures[picture.path] = str(error)
            continue
        targets[picture.path] = target
        masks.append(mask)
        starts.append(start)
    if not targets:
        return {}, failures
    pictures = [picture for picture in batch.pictures if picture.path in targets]
    homes = {picture.path: folder / RESULTS / picture.folder for picture in pictures}
    arguments = dict(work.arguments)
    if masks[0] is not None:
        arguments["masks"] = torch.stack(masks)
    if starts[0] is not None:
        arguments["init"] = _joined(starts)
    elif work.init is not None:
        arguments["init"] = work.init
    if work.every or work.log.as_json:
        arguments["callback"] = _callback(work, [picture.folder for picture in pictures], list(homes.values()))
    checkpoints = Checkpoints(folder / STATE, work.seconds)
    try:
        whole = invert(
            work.G, torch.stack(list(targets.values())), progress=not work.quiet, checkpoints=checkpoints, **arguments
        )
    except NonFiniteLossError as error:
        whole = error.result
        for row, step in error.failed.items():
            name = shown(work.name(pictures[row]))
            failures[pictures[row].path] = (
                f"{name}: the loss is not finite after {step} steps; lower learning_rate or use --dtype float32"
            )
    results = {}
    for row, picture in enumerate(pictures):
        if picture.path in failures:
            continue
        result = replace(whole[row], settings=_settings(work, whole.settings, batch, picture))
        title = shown(Path(picture.path).name)
        try:
            save(result, targets[picture.path], homes[picture.path], title)
            if work.video:
                animate(homes[picture.path], homes[picture.path] / PICTURE)
            results[picture.path] = result
        except FastinvError as error:
            failures[picture.path] = str(error)
    return results, failures


def _load(work: Work, picture: Picture, name: Path):
    """(target, mask or None, start codes or None) of a picture."""
    if file_sha256(picture.path) != picture.sha256:
        raise PictureError(f"{shown(name)}: the file has changed while the run went on; start it again")
    target = load_picture(name, work.G.resolution, work.crop)
    mask = None if work.mask is None else load_mask(mask_of(work.mask, name), work.G.resolution, work.crop)
    return target, mask, start_of(work.init, name)


def mask_of(mask: Path, picture: Path) -> Path:
    """The mask file of a picture: ``mask`` itself, or the one file in that folder that has the picture's stem.

    Raises:
        PictureError: there is none, or several.
    """
    return by_stem(mask, picture, "mask", "*") if mask.is_dir() else mask


def by_stem(folder: Path, picture: Path, what: str, ending: str) -> Path:
    """The one file in a folder with a picture's stem; PictureError for none or several."""
    found = [path for path in sorted(folder.iterdir()) if path.stem == picture.stem and path.match(ending)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(shown(path.name) for path in found)
    problem = f"there are several: {names}" if found else f"there is no file {shown(picture.stem)}.*"
    raise PictureError(f"{shown(picture)}: no {what} for it in {shown(folder)}; {problem}")


def start_file(folder: Path, picture: Path) -> Path:
    """The latent file of a picture in a folder: <stem>/latent.safetensors of a result, or <stem>.safetensors.

    Raises:
        PictureError: there is none.
    """
    if (folder / picture.stem / RESULT).is_file():
        return folder / picture.stem / LATENT
    return by_stem(folder, picture, "result or latent code", "*.safetensors")


def start_of(init, picture: Path) -> dict[str, torch.Tensor] | None:
    """Codes [1, ...] to start a picture from, where ``init`` is a folder with some for each picture; else None."""
    if not (isinstance(init, Path) and init.is_dir()):
        return None
    codes = load_codes(start_file(init, picture))
    if len(codes["w_plus"]) != 1:
        raise PictureError(f"{shown(picture)}: {shown(init)} holds codes of {len(codes['w_plus'])} pictures for it")
    return codes


def as_result(codes: dict[str, torch.Tensor]) -> InversionResult:
    """Codes [N, ...] as ``invert(init=...)`` takes them."""
    codes = dict(codes)
    return InversionResult(codes.pop("w_plus"), torch.empty(0), {}, {}, {}, codes)


def _joined(starts: list[dict[str, torch.Tensor]]) -> InversionResult:
    """The codes of the pictures of a batch as one result."""
    names = set(starts[0])
    if any(set(codes) != names for codes in starts):
        raise UsageError("--init: the pictures of a batch have codes of different spaces; use --batch 1")
    return as_result({name: torch.cat([codes[name] for codes in starts]) for name in starts[0]})


def _callback(work: Work, names: list[str], homes: list[Path]):
    """For `invert`: frames, and the losses for --json."""
    frames = Frames(homes, work.every) if work.every else None
    started = time.monotonic()

    def callback(step: int, losses: dict[str, torch.Tensor], images: torch.Tensor) -> None:
        if frames is not None:
            frames(step, losses, images)
        if work.log.as_json and step % LOSSES_EVERY == 0:
            values = {name: value.tolist() for name, value in losses.items()}
            seconds = round(time.monotonic() - started, 3)
            work.log.event("loss", step=step, pictures=names, losses=values, seconds=seconds)

    return callback


def _settings(work: Work, settings: dict, batch: Batch, picture: Picture) -> dict:
    """What result.json says of how it was made: only what an interruption, or another process, would leave the same."""
    settings = {name: value for name, value in settings.items() if name not in ("captured", "why_eager")}
    settings["device"] = settings["device"].split(":")[0]
    mask = None if work.mask is None else str(mask_of(work.mask, work.name(picture)).resolve())
    return settings | {"picture": picture.path, "crop": work.crop, "mask": mask, "command": batch.command} | work.facts


def save(result: InversionResult, target: torch.Tensor, folder: Path, title: str) -> None:
    """Write one picture's result with its comparison picture."""
    from fastinv.report import comparison

    sheet = comparison(target[None], result.images, [shown_metrics(result)], names=[title])
    result.save(folder, {"comparison.png": sheet})


def shown_metrics(result: InversionResult) -> dict[str, str]:
    """The metrics of a result of one picture as people read them."""
    metrics = {name: values[0] for name, values in result.metrics.items()}
    lines = {"PSNR": f"{metrics['psnr']:.2f} dB", "MSE": f"{metrics['mse']:.3g}"}
    if "psnr_masked" in metrics:
        lines["PSNR within the mask"] = f"{metrics['psnr_masked']:.2f} dB"
    if math.isfinite(metrics.get("loss_perceptual", math.nan)):  # a last stage may not look at it
        trunk = result.settings.get("trunk", {}).get("name", "")
        lines["perceptual loss"] = f"{metrics['loss_perceptual']:.3g}" + (f" ({trunk})" if trunk else "")
    return lines | {"steps": str(metrics["best_step"])}


def _finite(value):
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
