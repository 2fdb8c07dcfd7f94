"""Inversion: from pictures to latent codes. ``invert`` is the one entry; ``METHODS`` holds the methods by name."""

import platform
import time

import torch

import fastinv
from fastinv.checkpoints import network_hash
from fastinv.errors import FastinvError
from fastinv.inversion.capture import check_graph
from fastinv.inversion.feed_forward import FEED_FORWARD
from fastinv.inversion.idinvert import IDInvert
from fastinv.inversion.image2stylegan import Image2StyleGAN
from fastinv.inversion.image2stylegan_plus_plus import Image2StyleGANPlusPlus
from fastinv.inversion.loop import frozen
from fastinv.inversion.p_norm import PNormPlus
from fastinv.inversion.precision import check_dtype, prepare
from fastinv.inversion.presets import PRESETS, apply_preset
from fastinv.inversion.progress import Progress
from fastinv.inversion.projector import Projector
from fastinv.inversion.pti import PTI
from fastinv.inversion.result import InversionResult
from fastinv.inversion.spaces import flat
from fastinv.inversion.start import start_codes
from fastinv.inversion.stylegan_encoder import StyleGANEncoder
from fastinv.inversion.task import Task, check_generator, check_images, check_masks, configure, whole_number
from fastinv.losses import mse, psnr

_LISTED = [Projector, Image2StyleGAN, Image2StyleGANPlusPlus, StyleGANEncoder, IDInvert, PTI, PNormPlus, *FEED_FORWARD]
METHODS = {method.name: method for method in _LISTED}

__all__ = ["METHODS", "PRESETS", "InversionResult", "NonFiniteLossError", "invert"]


class NonFiniteLossError(FastinvError, ArithmeticError):
    """The loss of some pictures became NaN or infinite.

    Attributes:
        result: InversionResult of all pictures: finished for the others, the best so far for the failed ones.
        failed: picture -> updates after which its loss was not finite.
    """

    def __init__(self, result: "InversionResult", failed: dict[int, int]):
        self.result, self.failed = result, failed
        which = ", ".join(str(index) for index in failed)
        super().__init__(
            f"the loss of picture {which} (of {len(result)}, counted from 0) is not finite from step "
            f"{min(failed.values())} on; lower learning_rate or use a float32 generator (the best so far is kept)"
        )


def invert(
    G,
    images: torch.Tensor,
    method: str | None = None,
    space: str | None = None,
    steps: int | None = None,
    masks: torch.Tensor | None = None,
    seed: int = 0,
    callback=None,
    progress: bool = True,
    graph: str | bool = "auto",
    dtype: torch.dtype | str | None = None,
    init=None,
    preset: str | None = None,
    checkpoints=None,
    **options,
) -> InversionResult:
    """Find latent codes whose pictures match the given ones.

    Pictures of a batch do not influence each other: each gets the result it would get alone (up to rounding). The same
    arguments and seed give the same bits. The generator is not changed.

    Args:
        G: a generator, see ``fastinv.load_generator``.
        images: [N, 3, R, R] (or one [3, R, R]), RGB in [-1, 1], R the generator's resolution.
        method: a name in ``METHODS``; None is the preset's, or "image2stylegan". "psp", "e4e", "idinvert-encoder" and
            "alae" take an encoder's code as it is, without steps, masks and init.
        space: the latent space: "z", "w" (one vector), "w+" (one per style input), "s" (style channels), "w+noise" (W+
            and the noise maps) or "f+w+" (features after a block, and W+); None is the method's own.
        steps: updates; None is the method's default, 0 only evaluates the start.
        masks: soft masks in [0, 1], [R, R], [1, 1, R, R] or [N, 1, R, R]: 1 fits a pixel, 0 ignores it.
        seed: of everything random; at least 0.
        callback: called as ``callback(step, losses, images)`` at each of the ``steps + 1`` evaluations, with the
            updates done, {"total": [N], ...} and the pictures [N, 3, R, R]; return True to stop early. A method of
            several stages has one more evaluation for each, and smaller pictures where it works at a low resolution.
        progress: show a bar on a terminal, or about ten lines elsewhere, on standard error.
        graph: record a step as a CUDA graph and replay it: "auto" where that works and pays, True as an error where it
            does not work, False never. ``settings`` of the result say what was done ("captured", "why_eager").
        dtype: arithmetic of the generator's feature maps, a torch dtype or its name; None is the generator's own,
            "auto" whichever gets to the same quality sooner here: ``settings["why_dtype"]`` says why it was taken. It
            is timed, so another run may choose otherwise and give other bits. Codes, losses and sums are float32 at
            least.
        init: where to start instead of the method's own start: codes w_plus [N, num_ws, w_dim] (or of one picture, for
            all), an InversionResult, or an encoder (a module with ``encode``, a bundled name or a file).
        preset: a name in ``PRESETS``, "fast", "balanced" or "best": method, options and dtype that were measured to
            be good; what else is given takes precedence.
        checkpoints: where the state of a long optimisation is kept, see ``fastinv.inversion.checkpoint``; None for
            nowhere.
        options: fields of the method class, e.g. ``learning_rate``; see ``help(METHODS[method])``.

    Returns:
        InversionResult with the codes of the lowest loss.

    Raises:
        UsageError: a wrong argument, found before the work starts.
        CheckpointError: the perceptual trunk's weights are missing or damaged.
        NonFiniteLossError: some losses became NaN or infinite; carries the result with the best so far.
    """
    started = time.perf_counter()
    method, steps, dtype, options = apply_preset(preset, method, steps, dtype, options)
    configured, space = configure(METHODS, method, space, steps, options)
    whole_number("seed", seed, least=0)
    check_generator(G)
    configured = configured.fitted(G, masks is not None, init is not None)
    dtype = check_dtype(G, dtype)
    wide = torch.promote_types(G.w_avg.dtype, torch.float32)  # latents and losses of a half-precision generator
    target = check_images(images, G.resolution).detach().to(G.w_avg.device, wide)
    mask = check_masks(masks, len(target), G.resolution)
    mask = None if mask is None else mask.detach().to(target)
    check_graph(graph, target.device)

    with frozen(G):
        start, facts = start_codes(init, G, target)
        network, arithmetic = prepare(G, dtype, target, configured.steps)
        task = Task(G, network, target, mask, space, seed, start, callback, graph, None, checkpoints, facts)
        if progress:
            with Progress(target) as task.progress:
                trace, codes = configured.run(task)
        else:
            trace, codes = configured.run(task)
        with torch.no_grad():
            reconstruction = configured.picture(task, codes)
    codes = {name: value.contiguous() for name, value in flat(codes).items()}
    w_plus = codes.pop("w_plus")

    metrics = {"psnr": psnr(reconstruction, target), "mse": mse(reconstruction, target)}
    if mask is not None:
        metrics |= {"psnr_masked": psnr(reconstruction, target, mask), "mse_masked": mse(reconstruction, target, mask)}
    for name, curve in trace.losses.items():
        metrics[f"loss_{name}"] = curve[trace.best_step, torch.arange(len(target))]
    metrics = {name: values.tolist() for name, values in metrics.items()} | {"best_step": trace.best_step.tolist()}
    ended = [trace.finished.get(row, (trace.steps, "")) for row in range(len(target))]
    metrics |= {"steps": [done for done, _ in ended], "finished": [why for _, why in ended]}
    settings = {
        "method": method,
        "space": space,
        "seed": seed,
        "options": plain(vars(configured)),
        "steps_done": trace.steps,
        "stopped": trace.stopped,
        "preset": preset,
        "captured": trace.captured,
        "why_eager": trace.why_eager,
        "masked": mask is not None,
        "generator": {"sha256": network_hash(G), "resolution": G.resolution},
        **task.facts,
        "device": str(target.device),
        **arithmetic,
        "threads": torch.get_num_threads(),
        "versions": {"fastinv": fastinv.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "seconds": round(time.perf_counter() - started, 3),
    }
    result = InversionResult(w_plus, reconstruction, trace.losses, metrics, settings, codes)
    if trace.failed:
        raise NonFiniteLossError(result, trace.failed)
    return result


def plain(value):
    """Options as JSON can hold them: a module by the name or file that it was loaded from, else by its class name."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return getattr(value, "origin", None) or type(value).__name__
