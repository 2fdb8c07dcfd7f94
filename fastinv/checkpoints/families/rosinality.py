"""StyleGAN2 in the format of rosinality/stylegan2-pytorch: reading and writing.

Its tensors have ADA's orientation and scale; names and some dimensions of one differ, and resample filters of the
up-sampling layers are stored times 4. It adds the demodulation's epsilon after dividing by sqrt(fan_in) instead of
before, which changes pictures by 1e-8 to 1e-7 relative; that is left.
"""

import re
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import ada
from fastinv.checkpoints.network import Network
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.stylegan2 import Generator, MappingNetwork

NAME = "rosinality"
GENERATOR_TENSOR, DISCRIMINATOR_TENSOR = "conv1.conv.modulation.weight", "final_linear.0.weight"
MEAN_SAMPLES = 10_000
MAX_BLOCKS = 10  # after the first: 4096x4096
MAX_DEPTH = 64  # of the mapping network, which is 8; it may have to be run


def recognises(value) -> bool:
    """Whether this is a dict with ``g_ema`` or ``g`` (or only ``d``) in rosinality's names, or such a state dict."""
    return isinstance(value, dict) and (
        GENERATOR_TENSOR in value or any(_tensors(value, key) for key in ("g_ema", "g", "d"))
    )


def networks(value) -> dict[str, Callable[[], Network]]:
    """The generator (g_ema, else g) and the discriminator d, read when called."""
    if GENERATOR_TENSOR in value:
        return {"generator": lambda: generator(ada.only_tensors(value))}
    found = {}
    key = next((key for key in ("g_ema", "g") if _tensors(value, key)), None)
    if key is not None:
        notes = ("it holds no averaged generator g_ema; g, as training left it, is used",) if key == "g" else ()
        found["generator"] = lambda: generator(ada.only_tensors(value[key]), value.get("latent_avg"), notes)
    if _tensors(value, "d"):
        found["discriminator"] = lambda: discriminator(ada.only_tensors(value["d"]))
    return found


def generator(
    tensors: dict[str, torch.Tensor], latent_avg: torch.Tensor | None = None, notes: tuple[str, ...] = ()
) -> Network:
    """A generator from rosinality's tensors (of pSp and its kin: the decoder's, without the prefix).

    Args:
        tensors: name -> tensor.
        latent_avg: the mean latent [w_dim], [1, w_dim] or [n, w_dim]; rows that differ are reduced to the first, with
            a note. None: the mean of 10,000 mapped samples (fixed seed), with a note.
        notes: for the Network.

    Raises:
        CheckpointError: tensors are missing or odd.
    """
    blocks = _count(tensors, "to_rgbs.{}.conv.weight")
    depth = _count(tensors, "style.{}.weight", first=1)
    if not blocks or not depth:
        raise CheckpointError(f"the tensor {'style.1.weight' if blocks else 'to_rgbs.0.conv.weight'} is missing")
    if depth > MAX_DEPTH:
        raise CheckpointError(f"its mapping network has {depth} layers; {MAX_DEPTH} are the most")
    names = generator_names(_resolutions(blocks), depth)
    ours = {name: _read(name, tensors[theirs]) for name, theirs in names.items() if theirs in tensors}
    if not any(name.startswith("noises.") for name in tensors):
        for name in names:
            if name.endswith(".noise_const"):
                resolution = int(name.split(".")[1].removeprefix("b"))
                ours[name] = torch.zeros(()).expand(resolution, resolution)
        notes += ("it holds no noise maps, as early versions did not; they are zero here, so use noise='random'",)
    w_dim, z_dim = ours["mapping.fc0.weight"].shape
    if w_dim != z_dim:
        raise CheckpointError(f"style.1.weight has shape {[w_dim, z_dim]}, which is not square")
    if latent_avg is None:
        ours["mapping.w_avg"] = _mean_latent(ours, depth)
        notes += (f"it holds no mean latent; the mean of {MEAN_SAMPLES} mapped samples is used",)
    else:
        ours["mapping.w_avg"], distinct = _latent_avg(latent_avg, w_dim)
        if distinct:
            notes += ("its latent_avg differs from layer to layer; the first layer's is used as the mean latent",)
    used = set(names.values())
    return ada.generator(ours, notes=notes, extra=tuple(name for name in tensors if name not in used))


def discriminator(tensors: dict[str, torch.Tensor]) -> Network:
    """A discriminator from rosinality's tensors; raises a CheckpointError where some are missing or odd."""
    blocks = _count(tensors, "convs.{}.conv1.0.weight", first=1)
    if not blocks:
        raise CheckpointError("the tensor convs.1.conv1.0.weight is missing")
    names = discriminator_names(_resolutions(blocks))
    ours = {name: _read(name, tensors[theirs]) for name, theirs in names.items() if theirs in tensors}
    used = set(names.values())
    return ada.discriminator(ours, extra=tuple(name for name in tensors if name not in used))


def checkpoint(generator: Generator, discriminator: Discriminator | None = None) -> dict:
    """A checkpoint as rosinality's ``generate.py``, pSp and their kin read it.

    Args:
        generator: skip architecture, unconditional, z as wide as w. A ``conv_clamp`` is left out: that code has none.
        discriminator: residual architecture, unconditional.

    Returns:
        {"g_ema": name -> tensor, "latent_avg": [w_dim]} and, with a discriminator, "d": name -> tensor. Tensors share
        memory with the networks where they can. That code's own table of widths must be changed where these are not
        min(512, 16384 * channel_multiplier / resolution).

    Raises:
        UsageError: the format cannot express a network.
    """
    for network, kind in ((generator, Generator), (discriminator, Discriminator)):
        if network is not None and not isinstance(network, kind):
            raise UsageError(f"rosinality's format takes a StyleGAN2 {kind.__name__}, not a {type(network).__name__}")
    config = generator.config
    _refuse(
        "generator",
        config,
        architecture="skip",
        c_dim=0,
        mapping_lr_multiplier=ada.DEFAULT_LR_MULTIPLIER,
        z_dim=config["w_dim"],
    )
    resolutions = generator.synthesis.resolutions
    tensors = generator.state_dict()
    names = generator_names(resolutions, config["mapping_layers"])
    saved = {
        "g_ema": {theirs: _write(name, tensors[name]) for name, theirs in names.items()},
        "latent_avg": generator.w_avg.detach(),
    }
    if discriminator is not None:
        resolution = discriminator.resolution
        _refuse(
            "discriminator",
            discriminator.config,
            architecture="resnet",
            c_dim=0,
            group_size=ada.DEFAULT_GROUP_SIZE,
            progressive=discriminator.config["progressive"] and resolution == 8,  # then it has one fromRGB anyway
        )
        tensors = discriminator.state_dict()
        names = discriminator_names(discriminator.resolutions)
        saved["d"] = {theirs: _write(name, tensors[name]) for name, theirs in names.items()}
    return saved


def generator_names(resolutions: list[int], mapping_layers: int) -> dict[str, str]:
    """Our name -> rosinality's, for every tensor of its generator (the mean latent stands beside it)."""
    names = {}
    for i in range(mapping_layers):
        for part in ("weight", "bias"):
            names[f"mapping.fc{i}.{part}"] = f"style.{i + 1}.{part}"  # style.0 normalizes and has no tensors
    names["synthesis.b4.const"] = "input.input"
    convolutions = {"synthesis.b4.conv1": "conv1"}
    to_rgbs = {"synthesis.b4.torgb": "to_rgb1"}
    for i, r in enumerate(resolutions[1:]):
        block = f"synthesis.b{r}"
        convolutions |= {f"{block}.conv0": f"convs.{2 * i}", f"{block}.conv1": f"convs.{2 * i + 1}"}
        to_rgbs[f"{block}.torgb"] = f"to_rgbs.{i}"
        names[f"{block}.conv0.resample_filter"] = f"convs.{2 * i}.conv.blur.kernel"
        names[f"{block}.resample_filter"] = f"to_rgbs.{i}.upsample.kernel"
    for i, (ours, theirs) in enumerate(convolutions.items()):
        names |= _modulated(ours, theirs)
        names[f"{ours}.bias"] = f"{theirs}.activate.bias"
        names[f"{ours}.noise_strength"] = f"{theirs}.noise.weight"
        names[f"{ours}.noise_const"] = f"noises.noise_{i}"
    for ours, theirs in to_rgbs.items():
        names |= _modulated(ours, theirs)
        names[f"{ours}.bias"] = f"{theirs}.bias"
    return names


def discriminator_names(resolutions: list[int]) -> dict[str, str]:
    """Our name -> rosinality's, for every tensor of its discriminator."""
    top = resolutions[-1]
    names = {f"b{top}.fromrgb.weight": "convs.0.0.weight", f"b{top}.fromrgb.bias": "convs.0.1.bias"}
    for i, r in enumerate(reversed(resolutions[1:]), 1):
        names |= {
            f"b{r}.conv0.weight": f"convs.{i}.conv1.0.weight",
            f"b{r}.conv0.bias": f"convs.{i}.conv1.1.bias",
            f"b{r}.conv1.resample_filter": f"convs.{i}.conv2.0.kernel",
            f"b{r}.conv1.weight": f"convs.{i}.conv2.1.weight",
            f"b{r}.conv1.bias": f"convs.{i}.conv2.2.bias",
            f"b{r}.skip.resample_filter": f"convs.{i}.skip.0.kernel",
            f"b{r}.skip.weight": f"convs.{i}.skip.1.weight",
        }
    return names | {
        "b4.conv.weight": "final_conv.0.weight",
        "b4.conv.bias": "final_conv.1.bias",
        "b4.fc.weight": "final_linear.0.weight",
        "b4.fc.bias": "final_linear.0.bias",
        "b4.out.weight": "final_linear.1.weight",
        "b4.out.bias": "final_linear.1.bias",
    }


def _modulated(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"{ours}.weight": f"{theirs}.conv.weight",
        f"{ours}.affine.weight": f"{theirs}.conv.modulation.weight",
        f"{ours}.affine.bias": f"{theirs}.conv.modulation.bias",
    }


# The dimensions of one that rosinality has and we do not, by the end of our name.
_ADDED = {
    "synthesis.b4.const": lambda t: t[None],
    ".noise_strength": lambda t: t.reshape(1),
    ".noise_const": lambda t: t[None, None],
    ".torgb.bias": lambda t: t.reshape(1, -1, 1, 1),
}
_MODULATED_WEIGHT = re.compile(r"synthesis\.b\d+\.(conv0|conv1|torgb)\.weight")


def _read(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """rosinality's tensor in our layout."""
    if name.endswith("resample_filter"):
        return tensor / 4 if name.startswith("synthesis.") else tensor
    if name.endswith(".bias"):
        return tensor.flatten()  # also of its early versions, [1, C, 1, 1] in every layer
    if name.endswith(".noise_strength"):
        return tensor[0]
    if name.endswith(".noise_const"):
        return tensor[0, 0]
    leading = name == "synthesis.b4.const" or _MODULATED_WEIGHT.fullmatch(name)
    return tensor[0] if leading else tensor


def _write(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Our tensor in rosinality's layout."""
    tensor = tensor.detach()
    if name.endswith("resample_filter"):
        if tensor.ndim != 2:
            raise UsageError(f"rosinality's format has no resample filters of {len(tensor)} taps; 7 are the most")
        return tensor * 4 if name.startswith("synthesis.") else tensor
    if _MODULATED_WEIGHT.fullmatch(name):
        return tensor[None]
    return next((add(tensor) for end, add in _ADDED.items() if name.endswith(end)), tensor)


def _refuse(kind: str, config: dict, **wanted) -> None:
    for option, value in wanted.items():
        if config[option] != value:
            raise UsageError(
                f"rosinality's format takes a {kind} with {option} {value!r}, not {config[option]!r}; "
                "write another format"
            )


def _tensors(value: dict, key: str) -> bool:
    """Whether there are rosinality's tensors under this key."""
    tensor = DISCRIMINATOR_TENSOR if key == "d" else GENERATOR_TENSOR
    return isinstance(value.get(key), dict) and tensor in value[key]


def _count(tensors: dict, pattern: str, first: int = 0) -> int:
    return next(i for i in range(len(tensors) + 1) if pattern.format(first + i) not in tensors)


def _resolutions(blocks: int) -> list[int]:
    if blocks > MAX_BLOCKS:
        raise CheckpointError(f"it has {blocks + 1} blocks; {MAX_BLOCKS + 1}, for 4096x4096, are the most")
    return [4 << i for i in range(blocks + 1)]


def _latent_avg(given, w_dim: int) -> tuple[torch.Tensor, bool]:
    """(the mean latent [w_dim], whether there were different ones)."""
    shape = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
    if not isinstance(given, torch.Tensor) or given.ndim not in (1, 2) or given.shape[-1] != w_dim or not len(given):
        raise CheckpointError(f"latent_avg must have shape [{w_dim}] or [n, {w_dim}], not {shape}")
    rows = given.reshape(-1, w_dim)
    return rows[0], not torch.equal(rows, rows[:1].expand_as(rows))


def _mean_latent(tensors: dict[str, torch.Tensor], depth: int) -> torch.Tensor:
    w_dim = len(tensors["mapping.fc0.weight"])
    mapping = MappingNetwork(w_dim, 0, w_dim, 1, depth)
    mapping.load_state_dict(
        {f"fc{i}.{part}": tensors[f"mapping.fc{i}.{part}"].float() for i in range(depth) for part in ("weight", "bias")}
        | {"w_avg": torch.zeros(w_dim)}
    )
    z = torch.randn(MEAN_SAMPLES, w_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return mapping(z)[:, 0].mean(dim=0)
