"""Inversion: from pictures to latent codes. ``invert`` is the one entry; ``METHODS`` holds the methods by name."""

import platform
import time

import torch

import fastinv
from fastinv.checkpoints import network_hash
from fastinv.errors import FastinvError
from fastinv.inversion.capture import check_graph
from fastinv.inversion.image2stylegan import Image2StyleGAN
from fastinv.inversion.loop import frozen
from fastinv.inversion.precision import check_dtype, prepare
from fastinv.inversion.progress import Progress
from fastinv.inversion.result import InversionResult
from fastinv.inversion.task import Task, check_generator, check_images, check_masks, configure, whole_number
from fastinv.losses import mse, psnr

METHODS = {method.name: method for method in [Image2StyleGAN]}

__all__ = ["METHODS", "InversionResult", "NonFiniteLossError", "invert"]


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
    method: str = "image2stylegan",
    space: str = "w+",
    steps: int | None = None,
    masks: torch.Tensor | None = None,
    seed: int = 0,
    callback=None,
    progress: bool = True,
    graph: str | bool = "auto",
    dtype: torch.dtype | str | None = None,
    **options,
) -> InversionResult:
    """Find latent codes whose pictures match the given ones.

    Pictures of a batch do not influence each other: each gets the result it would get alone (up to rounding). The same
    arguments and seed give the same bits. The generator is not changed.

    Args:
        G: a generator, see ``fastinv.load_generator``.
        images: [N, 3, R, R] (or one [3, R, R]), RGB in [-1, 1], R the generator's resolution.
        method: a name in ``METHODS``.
        space: the latent space: "w+" (one vector per style input) or "w" (one vector).
        steps: updates; None is the method's default, 0 only evaluates the start.
        masks: soft masks in [0, 1], [R, R], [1, 1, R, R] or [N, 1, R, R]: 1 fits a pixel, 0 ignores it.
        seed: of everything random; at least 0.
        callback: called as ``callback(step, losses, images)`` at each of the ``steps + 1`` evaluations, with the
            updates done, {"total": [N], ...} and the pictures [N, 3, R, R]; return True to stop early.
        progress: show a bar on a terminal, or about ten lines elsewhere, on standard error.
        graph: record a step as a CUDA graph and replay it: "auto" where that works and pays, True as an error where it
            does not work, False never. ``settings`` of the result say what was done ("captured", "why_eager").
        dtype: arithmetic of the generator's feature maps, a torch dtype or its name; None is the generator's own,
            "auto" whichever gets to the same quality sooner here: ``settings["why_dtype"]`` says why it was taken. It
            is timed, so another run may choose otherwise and give other bits. Codes, losses and sums are float32 at
            least.
        options: fields of the method class, e.g. ``learning_rate``; see ``help(METHODS[method])``.

    Returns:
        InversionResult with the codes of the lowest loss.

    Raises:
        UsageError: a wrong argument, found before the work starts.
        CheckpointError: the perceptual trunk's weights are missing or damaged.
        NonFiniteLossError: some losses became NaN or infinite; carries the result with the best so far.
    """
    started = time.perf_counter()
    configured = configure(METHODS, method, space, steps, options)
    whole_number("seed", seed, least=0)
    check_generator(G)
    dtype = check_dtype(G, dtype)
    wide = torch.promote_types(G.w_avg.dtype, torch.float32)  # latents and losses of a half-precision generator
    target = check_images(images, G.resolution).detach().to(G.w_avg.device, wide)
    mask = check_masks(masks, len(target), G.resolution)
    mask = None if mask is None else mask.detach().to(target)
    check_graph(graph, target.device)

    with frozen(G):
        prepared, arithmetic = prepare(G, dtype, target)

        def synthesis(w_plus, **arguments):
            return prepared.synthesis(w_plus, **arguments).to(wide)

        task = Task(G, synthesis, target, mask, space, seed, callback, graph)
        if progress:
            with Progress(method, configured.steps, target) as task.progress:
                trace = configured.run(task)
        else:
            trace = configured.run(task)
        with torch.no_grad():
            reconstruction = configured.render(task, trace.variables)
            w_plus = configured.w_plus(task, trace.variables).contiguous()

    metrics = {"psnr": psnr(reconstruction, target), "mse": mse(reconstruction, target)}
    if mask is not None:
        metrics |= {"psnr_masked": psnr(reconstruction, target, mask), "mse_masked": mse(reconstruction, target, mask)}
    for name, curve in trace.losses.items():
        metrics[f"loss_{name}"] = curve[trace.best_step, torch.arange(len(target))]
    metrics = {name: values.tolist() for name, values in metrics.items()} | {"best_step": trace.best_step.tolist()}
    settings = {
        "method": method,
        "space": space,
        "seed": seed,
        "options": {name: _plain(value) for name, value in vars(configured).items()},
        "steps_done": trace.steps,
        "stopped": trace.stopped,
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
    result = InversionResult(w_plus, reconstruction, trace.losses, metrics, settings)
    if trace.failed:
        raise NonFiniteLossError(result, trace.failed)
    return result


def _plain(value):
    """An option as JSON can hold it: a module by its class name."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__
