"""The objective of a method: a term for each loss whose weight is not 0."""

import copy
import functools

import torch

from fastinv.checkpoints import BUNDLED, load_discriminator, load_encoder, load_generator, network_hash
from fastinv.checkpoints.network import warn
from fastinv.errors import UsageError
from fastinv.inversion.loop import Term
from fastinv.latents import mean_latent
from fastinv.losses import (
    DiscriminatorLoss,
    DomainLoss,
    L1Loss,
    LogCoshLoss,
    MeanDistance,
    MSSSIMLoss,
    NoiseRegularizer,
    PerceptualLoss,
    PixelLoss,
    PNorm,
    load_perceptual,
    load_trunk,
    pnorm_statistics,
)
from fastinv.models.encoders.restyle import ReStyle

PIXEL_LOSSES = {"mse": PixelLoss, "l1": L1Loss, "log-cosh": LogCoshLoss}


def build_terms(method, task, target: torch.Tensor, mask: torch.Tensor | None) -> list[Term]:
    """The terms of a method (see the options of ``Method``) for targets [N, 3, R, R]; facts go to the task."""
    terms, device, dtype = [], target.device, target.dtype

    def add(name: str, loss, weight: float, of: str = "images") -> None:
        terms.append(Term(name, loss, weight, of))

    if method.pixel_weight:
        add("pixel", PIXEL_LOSSES[method.pixel_loss](target, mask), method.pixel_weight)
    if method.perceptual_weight:
        trunk, task.facts["trunk"] = load_trunk(
            method.trunk, method.layers, method.pre_relu, method.normalize, device, dtype
        )
        loss = PerceptualLoss(
            target, trunk, method.layer_weights, mask, None, method.feature_loss, method.mask_features
        )
        add("perceptual", loss, method.perceptual_weight)
    if method.lpips_weight:
        loss, task.facts["lpips"] = load_perceptual("auto", target, mask)
        add("lpips", loss, method.lpips_weight)
    if method.ms_ssim_weight:
        add("ms_ssim", MSSSIMLoss(target, mask), method.ms_ssim_weight)
    if method.discriminator_weight:
        D = find_discriminator(method.discriminator, task.G).to(device, dtype)
        task.facts["discriminator"] = {"sha256": network_hash(D)}
        add("discriminator", DiscriminatorLoss(D), method.discriminator_weight)
    if method.mean_weight:
        add("mean", mean_prior(task), method.mean_weight, "codes")
    if method.p_norm_weight:
        if "p_norm" not in task.tables:  # each stage has terms of its own
            task.tables["p_norm"] = pnorm_statistics(task.G)
        add("p_norm", PNorm(task.tables["p_norm"]), method.p_norm_weight, "codes")
    if method.domain_weight:
        encoder = find_encoder(method.encoder, task.G).to(device, dtype)
        task.facts["encoder"] = {"sha256": network_hash(encoder)}
        add("domain", DomainLoss(encoder), method.domain_weight, "both")
    if method.noise_weight:
        add("noise", NoiseRegularizer(), method.noise_weight, "codes")
    return terms


def mean_prior(task) -> MeanDistance:
    """Distance to the mean code, of the space that the task is in."""
    mean = mean_latent(task.G).to(task.target)
    if task.space == "s":
        styles = task.G.styles(mean.to(task.G.w_avg.dtype).expand(1, task.G.num_ws, -1))
        return MeanDistance(styles[0].to(mean), key="styles")
    return MeanDistance(mean)


def find_discriminator(given, G) -> torch.nn.Module:
    """A frozen discriminator for the pictures of G: a module, or by name or file; None is that of the embedded default.

    Raises:
        UsageError: it is for pictures of another size, or none is known.
    """
    D = copy.deepcopy(given) if isinstance(given, torch.nn.Module) else load_discriminator(given or "faces64")
    if D.resolution != G.resolution:
        which = "discriminator= must name one: that of faces64" if given is None else "the discriminator"
        raise UsageError(f"{which} takes {D.resolution}x{D.resolution}, the generator makes {G.resolution}")
    return D.eval().requires_grad_(False)


def find_encoder(given, G) -> torch.nn.Module:
    """A frozen encoder for codes of G, as ``read_encoder``, but a copy whose ``encode`` takes pictures alone."""
    E = copy.deepcopy(read_encoder(given, G))
    if isinstance(E, ReStyle):  # it looks at the generator's pictures, too
        E.encode = lambda images: type(E).encode(E, images, G)
    return E.eval().requires_grad_(False)


def read_encoder(given, G) -> torch.nn.Module:
    """The encoder for codes of G: a module with ``encode``, as it is, or by name or file.

    A CheckpointWarning says if its file names another generator: one that was tuned, for example, has other weights.

    Raises:
        UsageError: it has no ``encode``, or makes codes of another shape.
        CheckpointError: its file cannot be read.
    """
    E = given if isinstance(given, torch.nn.Module) else load_encoder(given)
    if not callable(getattr(E, "encode", None)):
        raise UsageError(f"encoder must have encode(images) -> w_plus; a {type(E).__name__} has none")
    shape = getattr(E, "num_ws", G.num_ws), getattr(E, "w_dim", G.w_dim)
    if shape != (G.num_ws, G.w_dim):
        raise UsageError(f"the encoder makes codes of {list(shape)}, the generator takes [{G.num_ws}, {G.w_dim}]")
    trained_for = getattr(E, "generator_sha256", None)
    if trained_for is not None and trained_for != network_hash(G):
        warn(f"the encoder {E.origin} was trained for another generator than this one: its codes may be far off")
    return E


def own_encoder(G, method: str) -> str | None:
    """Name of the bundled encoder that a feed-forward method has for G; None if G is no bundled generator of one."""
    found = [model for model in BUNDLED.values() if model.method == method and model.resolution == G.resolution]
    sha256 = network_hash(G) if found else None
    return next((model.name for model in found if bundled_hash(model.generator) == sha256), None)


@functools.cache
def bundled_hash(name: str) -> str:
    """``network_hash`` of a bundled generator."""
    return network_hash(load_generator(name))
