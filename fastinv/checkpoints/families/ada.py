"""StyleGAN2-ADA in PyTorch (NVlabs): training pickles, single saved networks (PTI writes those), plain state dicts.

Our classes use the same tensor names, so reading is a copy; what is left is to find the constructor arguments from
shapes, and from which tensors there are. `generator` and `discriminator` do that for ADA-named tensors of any origin:
the other StyleGAN2 families rename theirs and call them.
"""

import re
from collections.abc import Callable

import torch
from torch import nn

from fastinv.checkpoints.network import Network
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.stylegan2 import Generator
from fastinv.ops import setup_filter

NAME = "StyleGAN2-ADA (PyTorch)"
CLASSES = {"generator": "Generator", "discriminator": "Discriminator"}
LAYERS = {
    "MappingNetwork", "SynthesisNetwork", "SynthesisBlock", "SynthesisLayer", "ToRGBLayer", "FullyConnectedLayer",
    "Conv2dLayer", "DiscriminatorBlock", "DiscriminatorEpilogue", "MinibatchStdLayer",
}  # fmt: skip
LINEAR = ("affine", "embed", "out", "skip", "torgb")  # the layers without an activation
CLAMPED = ("conv0", "conv1", "conv", "fromrgb", "torgb")
DEFAULT_TAPS = (1, 3, 3, 1)
DEFAULT_LR_MULTIPLIER, DEFAULT_GROUP_SIZE = 0.01, 4
MAX_LAYERS = 1000  # a 1024x1024 generator has 76
STYLEGAN3 = "StyleGAN3 generators are not supported; only StyleGAN and StyleGAN2 are"
ASSUMED = (
    "a plain state dict does not say everything: mapping learning-rate multiplier 0.01, minibatch groups of 4 and no "
    "clamp are assumed"
)


def recognises(value) -> bool:
    """Whether this is a network saved by StyleGAN2-ADA, a dict of them (G, D, G_ema), or an ADA state dict."""
    return _kind(value) is not None or (
        isinstance(value, dict) and any(_kind(value.get(key)) for key in ("G_ema", "G", "D"))
    )


def networks(value) -> dict[str, Callable[[], Network]]:
    """The generator (G_ema, else G) and the discriminator, read when called."""
    kind = _kind(value)
    if kind == "unknown":
        return {kind: lambda kind=kind: _read(kind, value) for kind in CLASSES}
    if kind is not None:
        return {kind: lambda: _read(kind, value)}
    found = {}
    for kind, keys in (("generator", ("G_ema", "G")), ("discriminator", ("D",))):
        key = next((key for key in keys if _kind(value.get(key))), None)
        if key is not None:
            notes = ("it holds no averaged generator G_ema; G, as training left it, is used",) if key == "G" else ()
            found[kind] = lambda kind=kind, key=key, notes=notes: _read(kind, value[key], notes)
    return found


def state_dict(network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a Generator or Discriminator under ADA's names, as ADA's ``load_state_dict`` takes them.

    ADA's constructor must be given the same resolution, widths, depth, architecture and ``conv_clamp``.

    Raises:
        UsageError: another kind of network, or one that ADA's classes cannot express by default arguments.
    """
    config = getattr(network, "config", {})
    if isinstance(network, Generator):
        if config["mapping_lr_multiplier"] != DEFAULT_LR_MULTIPLIER:
            raise UsageError(
                f"a state dict cannot say that mapping_lr_multiplier is {config['mapping_lr_multiplier']}: "
                f"readers take {DEFAULT_LR_MULTIPLIER}; keep this generator in fastinv's own format"
            )
    elif isinstance(network, Discriminator):
        if config["progressive"] and config["resolution"] > 8:
            raise UsageError(
                "a progressive discriminator has a fromRGB layer in every block, which StyleGAN2-ADA does not have; "
                "keep it in fastinv's own format"
            )
        if config["group_size"] != DEFAULT_GROUP_SIZE:
            raise UsageError(
                f"a state dict cannot say that group_size is {config['group_size']}: readers take "
                f"{DEFAULT_GROUP_SIZE}; keep this discriminator in fastinv's own format"
            )
    else:
        raise UsageError(f"StyleGAN2-ADA's format takes a Generator or a Discriminator, not a {type(network).__name__}")
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def generator(
    tensors: dict[str, torch.Tensor],
    conv_clamp: float | None = None,
    mapping_lr_multiplier: float = DEFAULT_LR_MULTIPLIER,
    taps: tuple[float, ...] | None = None,
    extra: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Network:
    """A StyleGAN2 generator from tensors under ADA's names.

    Args:
        tensors: name -> tensor. Resample filters may be missing, and noise where a layer has neither map nor strength.
        conv_clamp, mapping_lr_multiplier: what tensors do not tell.
        taps: of the resample filter; None takes them from the filters among the tensors, else [1, 3, 3, 1].
        extra, notes: for the Network.

    Raises:
        CheckpointError: blocks or layers are missing, the pictures are not RGB, or it is a StyleGAN3.
    """
    if "synthesis.input.weight" in tensors:
        raise CheckpointError(STYLEGAN3)
    tensors = dict(tensors)
    resolutions = _resolutions(tensors, r"synthesis\.b(\d{1,5})\.conv1\.weight", 4)
    channels = {r: _shape(tensors, f"synthesis.b{r}.conv1.weight", 4)[0] for r in resolutions}
    _check_rgb(_shape(tensors, f"synthesis.b{resolutions[-1]}.torgb.weight", 4)[0])
    z_dim, c_dim = _shape(tensors, "mapping.fc0.weight", 2)[1], 0
    if "mapping.embed.weight" in tensors:
        embedded, c_dim = _shape(tensors, "mapping.embed.weight", 2)
        z_dim -= embedded
    skip, resnet = "synthesis.b4.torgb.weight", "synthesis.b8.skip.weight"
    for r in resolutions:
        for layer in ("conv0", "conv1") if r > 4 else ("conv1",):
            strength, noise = (f"synthesis.b{r}.{layer}.{part}" for part in ("noise_strength", "noise_const"))
            if strength not in tensors:  # a generator without noise
                tensors[strength] = torch.zeros(())
                tensors.setdefault(noise, torch.zeros(()).expand(r, r))
    config = {
        "resolution": resolutions[-1],
        "z_dim": z_dim,
        "w_dim": _shape(tensors, "synthesis.b4.conv1.affine.weight", 2)[1],
        "c_dim": c_dim,
        "channels": channels,
        "mapping_layers": _mapping_layers(tensors),
        "mapping_lr_multiplier": mapping_lr_multiplier,
        "architecture": "skip" if skip in tensors else "resnet" if resnet in tensors else "orig",
        "resample_filter": _complete_filters(tensors, taps),
        "conv_clamp": conv_clamp,
    }
    return Network("generator", "stylegan2", config, tensors, tuple(extra), tuple(notes))


def discriminator(
    tensors: dict[str, torch.Tensor],
    conv_clamp: float | None = None,
    group_size: int = DEFAULT_GROUP_SIZE,
    taps: tuple[float, ...] | None = None,
    extra: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Network:
    """A StyleGAN2 discriminator from tensors under ADA's names; arguments and errors as for `generator`."""
    tensors = dict(tensors)
    resolutions = [4, *_resolutions(tensors, r"b(\d{1,5})\.conv1\.weight", 8)]
    resolution = resolutions[-1]
    channels = {r: _shape(tensors, f"b{r}.conv0.weight" if r > 4 else "b4.conv.weight", 4)[0] for r in resolutions}
    _check_rgb(_shape(tensors, f"b{resolution}.fromrgb.weight", 4)[1])
    conditional = "mapping.embed.weight" in tensors
    skip, resnet = "b4.fromrgb.weight", f"b{resolution}.skip.weight"
    config = {
        "resolution": resolution,
        "c_dim": _shape(tensors, "mapping.embed.weight", 2)[1] if conditional else 0,
        "channels": channels,
        "architecture": "skip" if skip in tensors else "resnet" if resnet in tensors else "orig",
        "mapping_layers": _mapping_layers(tensors) if conditional else 8,
        "group_size": group_size,
        "resample_filter": _complete_filters(tensors, taps),
        "conv_clamp": conv_clamp,
        "progressive": False,
    }
    return Network("discriminator", "stylegan2", config, tensors, tuple(extra), tuple(notes))


def number(value, what: str, low: float, high: float, whole: bool = False):
    """A number that a file states, if it is one between `low` and `high`; else a CheckpointError."""
    plain = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not plain or not low <= value <= high:
        short = isinstance(value, (bool, float)) or (plain and abs(value) < 10**18)
        kind = "whole number" if whole else "number"
        raise CheckpointError(
            f"{what} must be a {kind} between {low} and {high}, not {value if short else type(value).__name__}"
        )
    return value


def only_tensors(value: dict) -> dict[str, torch.Tensor]:
    """The entries that are tensors; optimizers' counts and the like are left out."""
    return {
        name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }


def _kind(value) -> str | None:
    """What a value is: "generator", "discriminator", "unknown" (a network of another class), None (no network)."""
    if isinstance(value, Record):
        kinds = [kind for kind, name in CLASSES.items() if value.name == name] or ["unknown"]
        return kinds[0] if value.module == "torch_utils.persistence" else None
    if isinstance(value, dict):
        if "synthesis.b4.const" in value or "synthesis.input.weight" in value:
            return "generator"
        return "discriminator" if "b4.fc.weight" in value else None
    return None


def _read(kind: str, value, notes: tuple[str, ...] = ()) -> Network:
    make = {"generator": generator, "discriminator": discriminator}[kind]
    if isinstance(value, dict):
        return make(only_tensors(value), notes=(*notes, ASSUMED))
    if value.name != CLASSES[kind]:
        raise CheckpointError(
            f"it holds a network of the unknown class {value.name[:100]!r}; StyleGAN2-ADA's are {CLASSES[kind]!r}"
        )
    layers = _layers(value)
    options = {"conv_clamp": _conv_clamp(layers), "notes": notes}
    lr_multiplier = DEFAULT_LR_MULTIPLIER
    if "mapping.fc0" in layers:
        stated = _init_argument(layers["mapping.fc0"], "lr_multiplier", DEFAULT_LR_MULTIPLIER)
        lr_multiplier = number(stated, "the mapping network's lr_multiplier", 1e-9, 1e9)
    if kind == "generator":
        options["mapping_lr_multiplier"] = lr_multiplier
    else:
        if lr_multiplier != DEFAULT_LR_MULTIPLIER:
            raise CheckpointError(f"the discriminator's label mapping has lr_multiplier {lr_multiplier}, not 0.01")
        if "b4.mbstd" in layers:
            stated = _init_argument(layers["b4.mbstd"], "group_size", DEFAULT_GROUP_SIZE)
            options["group_size"] = number(stated, "the minibatch group size", 1, 2**20, whole=True)
    return make(_tensors(layers), **options)


def _layers(network: Record) -> dict[str, Record]:
    """The network under "" and every layer in it under its dotted path."""
    found, pending = {"": network}, [("", network)]
    while pending:
        prefix, layer = pending.pop()
        children = layer.state.get("_modules")
        if not isinstance(children, dict):
            raise CheckpointError(f"the {layer.name[:100]} {prefix!r} has no list of layers")
        for name, child in children.items():
            if child is None:
                continue
            path = f"{prefix}.{name}" if prefix else f"{name}"
            if path == "synthesis.input":
                raise CheckpointError(STYLEGAN3)
            known = isinstance(child, Record) and child.module == network.module and child.name in LAYERS
            if not known:
                kind = child.name if isinstance(child, Record) else type(child).__name__
                raise CheckpointError(
                    f"the layer {path[:100]} is of the class {kind[:100]!r}, which StyleGAN2-ADA does not have"
                )
            activation = "linear" if name in LINEAR else "lrelu"
            stated = child.state.get("activation", activation)
            if stated != activation:
                stated = stated[:40] if isinstance(stated, str) else type(stated).__name__
                raise CheckpointError(f"the layer {path[:99]} has the activation {stated!r}, not {activation!r}")
            if len(found) > MAX_LAYERS or len(path) > 100:
                raise CheckpointError(f"it has more or deeper nested layers than any StyleGAN2, at {path[:100]}")
            found[path] = child
            pending.append((path, child))
    return found


def _tensors(layers: dict[str, Record]) -> dict[str, torch.Tensor]:
    tensors = {}
    for path, layer in layers.items():
        for group in ("_parameters", "_buffers"):
            for name, tensor in layer.state[group].items():
                name = f"{path}.{name}" if path else f"{name}"
                if isinstance(tensor, torch.Tensor):
                    tensors[name] = tensor
                elif tensor is not None:
                    raise CheckpointError(f"{name[:100]} is a {type(tensor).__name__}, not a tensor")
    return tensors


def _conv_clamp(layers: dict[str, Record]) -> float | None:
    found = {}
    for path, layer in layers.items():
        if path.rpartition(".")[2] in CLAMPED and path != "b4.fromrgb":  # that one is never clamped
            clamp = layer.state.get("conv_clamp")
            found[None if clamp is None else number(clamp, f"conv_clamp of {path}", 0, 1e9)] = path
    if len(found) > 1:
        stated = " and ".join(f"{clamp} ({path})" for clamp, path in list(found.items())[:2])
        raise CheckpointError(f"its layers have different conv_clamp: {stated}")
    return next(iter(found), None)


def _init_argument(layer: Record, name: str, default):
    """What a layer was made with; `default` where it took the default."""
    arguments = layer.state.get("_init_kwargs")
    return arguments.get(name, default) if isinstance(arguments, dict) else default


def _shape(tensors: dict[str, torch.Tensor], name: str, ndim: int) -> torch.Size:
    tensor = tensors.get(name)
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"the tensor {name} is missing")
    if tensor.ndim != ndim:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, which is not of {ndim} dimensions")
    return tensor.shape


def _resolutions(tensors, pattern: str, first: int) -> list[int]:
    """Resolutions of the blocks whose name fits the pattern: first, 2 first, 4 first, ... without gaps."""
    found = sorted(int(match[1]) for match in (re.fullmatch(pattern, str(name)) for name in tensors) if match)
    if not found or found[0] != first or any(r != 2 * below for below, r in zip(found, found[1:])):
        raise CheckpointError(
            f"it has blocks for the resolutions {found[:12]}; StyleGAN2 has {first}, {2 * first}, ... without gaps"
        )
    return found


def _mapping_layers(tensors) -> int:
    return next(i for i in range(len(tensors) + 1) if f"mapping.fc{i}.weight" not in tensors)


def _check_rgb(count: int) -> None:
    if count != 3:
        raise CheckpointError(f"its pictures have {count} channels; only RGB is supported")


def _complete_filters(tensors: dict[str, torch.Tensor], taps) -> list[float]:
    """Add the resample filters that are missing; return their taps."""
    if taps is None:
        found = next((name for name in tensors if name.endswith("resample_filter")), None)
        taps = DEFAULT_TAPS if found is None else _taps(found, tensors[found])
    filter = setup_filter(list(taps))
    for name in list(tensors):
        block, _, layer = name.removesuffix(".weight").rpartition(".")
        if layer in ("conv0", "conv1", "conv", "skip", "fromrgb") and tensors[name].ndim == 4:
            tensors.setdefault(f"{block}.{layer}.resample_filter", filter)
        if layer == "conv1":
            tensors.setdefault(f"{block}.resample_filter", filter)
    return list(taps)


def _taps(name: str, filter: torch.Tensor) -> list[float]:
    """The taps whose outer product a stored filter [k, k] is (or a long filter [k] itself)."""
    stored = filter.detach().double()
    if 1 <= stored.ndim <= 2 and 1 <= stored.numel() <= 1024 and not bool(stored.sum() == 0):
        default = setup_filter(list(DEFAULT_TAPS))
        if stored.shape == default.shape and torch.allclose(stored, default.double(), rtol=1e-5):
            return list(DEFAULT_TAPS)
        taps = stored / stored.sum() if stored.ndim == 1 else stored.sum(dim=0) / stored.sum()
        whole = taps if stored.ndim == 1 else torch.outer(taps, taps)
        if whole.shape == stored.shape and torch.allclose(stored, whole, rtol=1e-5, atol=1e-7):
            return taps.tolist()
    raise CheckpointError(f"the filter {name} of shape {list(filter.shape)} is no product of two equal rows of taps")
