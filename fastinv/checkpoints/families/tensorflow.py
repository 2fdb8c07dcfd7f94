"""StyleGAN2 in TensorFlow (NVlabs): pickles of the tuple (G, D, Gs) of ``dnnlib.tflib.network.Network``.

A network's state lists its variables by name, and its components' (``mapping``, ``synthesis``) likewise. TensorFlow
keeps convolutions as [height, width, in, out] and matrices as [in, out]; style biases are stored without their 1, and
up-sampling convolutions of the generator are flipped, because TensorFlow's transposed convolution flips them back.
What is then left to do is the same as for StyleGAN2-ADA's own files.
"""

import re
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import ada
from fastinv.checkpoints.network import Network
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError

NAME = "StyleGAN2 (TensorFlow)"
PROGRESSIVE = (
    "it is a StyleGAN2 of the configurations A to D, which grow progressively and have one toRGB layer per level of "
    "detail; only those of E and F (skip or residual) are supported"
)
# TensorFlow's names of a layer's variables and of a block's layers -> ours
PARTS = {
    "weight": "weight",
    "bias": "bias",
    "mod_weight": "affine.weight",
    "mod_bias": "affine.bias",
    "noise_strength": "noise_strength",
}
SYNTHESIS = {"Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Skip": "skip"}
SYNTHESIS_4 = {"Conv": "conv1", "ToRGB": "torgb"}
DISCRIMINATOR = {"FromRGB": "fromrgb", "Conv0": "conv0", "Conv1_down": "conv1", "Skip": "skip"}
DISCRIMINATOR_4 = {"FromRGB": "fromrgb", "Conv": "conv", "Dense0": "fc"}
UNUSED = ("lod",)  # the level of detail that progressive growing would fade in


def recognises(value) -> bool:
    """Whether this is (G, D, Gs) of StyleGAN2, or one such generator: v1 has no ``mod_weight``."""
    generator = value[-1] if isinstance(value, (tuple, list)) and len(value) == 3 else value
    return any(name.endswith("/mod_weight") for name, _ in variables(generator))


def networks(value) -> dict[str, Callable[[], Network]]:
    """Gs, the averaged generator, and D, read when called."""
    if isinstance(value, Record):
        return {"generator": lambda: _generator(value)}
    found = {"generator": lambda: _generator(value[2])}
    if isinstance(value[1], Record):
        found["discriminator"] = lambda: _discriminator(value[1])
    return found


def variables(network) -> list[tuple[str, object]]:
    """(name, value) of a network's variables; a component's begin with its name and a slash."""
    found, pending = [], [("", network)]
    for component in ("mapping", "synthesis"):
        components = network.state.get("components") if isinstance(network, Record) else None
        if isinstance(components, dict):
            pending.append((f"{component}/", components.get(component)))
    for prefix, part in pending:
        if not isinstance(part, Record) or (part.module, part.name) != ("dnnlib.tflib.network", "Network"):
            continue
        variables = part.state.get("variables")
        for pair in variables if isinstance(variables, (list, tuple)) else ():
            if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str):
                found.append((prefix + pair[0], pair[1]))
    return found


def _generator(network: Record) -> Network:
    items = variables(network)
    if any("ToRGB_lod" in name for name, _ in items):
        raise CheckpointError(PROGRESSIVE)
    if any(name == "mapping/LabelConcat/weight" for name, _ in items):
        raise CheckpointError(
            "it is a conditional generator of the first StyleGAN2 release, whose labels enter in another way than "
            "StyleGAN2-ADA's; only unconditional ones are supported"
        )
    options = _options(network)
    lr_multiplier = options.get("mapping_lrmul", ada.DEFAULT_LR_MULTIPLIER)
    tensors, extra = _convert(items, _generator_name, flipped=("conv0.weight", "skip.weight"))
    return ada.generator(
        tensors, _conv_clamp(options), ada.number(lr_multiplier, "mapping_lrmul", 1e-9, 1e9), _taps(options), extra
    )


def _discriminator(network: Record) -> Network:
    options = _options(network)
    group_size = options.get("mbstd_group_size", ada.DEFAULT_GROUP_SIZE)
    tensors, extra = _convert(variables(network), _discriminator_name, flipped=())
    if "mapping.embed.weight" not in tensors and tensors.get("b4.out.weight", torch.empty(1, 1)).shape[0] != 1:
        raise CheckpointError(
            "it is a conditional discriminator of the first StyleGAN2 release, whose labels enter in another way than "
            "StyleGAN2-ADA's; only unconditional ones are supported"
        )
    return ada.discriminator(
        tensors,
        _conv_clamp(options),
        ada.number(group_size, "mbstd_group_size", 1, 2**20, whole=True),
        _taps(options),
        extra,
    )


def _convert(items, rename: Callable, flipped: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Our names -> tensors in our layout, as views where that can be; and the names that have no place."""
    tensors, extra = {}, []
    for name, value in items:
        ours = rename(name)
        if ours is None:
            if name not in UNUSED:
                extra.append(name)
            continue
        if isinstance(value, (int, float)):  # a scalar variable
            value = torch.tensor(float(value))
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"the variable {name[:100]} is a {type(value).__name__}, not an array")
        if ours.endswith(".const"):
            value = value[0]
        elif ours.endswith(".noise_const"):
            value = value[0, 0]
        elif value.ndim == 4:
            value = value.permute(3, 2, 0, 1)
            value = value.flip(2, 3) if ours.endswith(flipped) and flipped else value
        elif value.ndim == 2:
            value = value.t()
        elif ours.endswith(".affine.bias"):
            value = value + 1
        tensors[ours] = value
    return tensors, tuple(extra)


def _generator_name(name: str) -> str | None:
    if name == "dlatent_avg":
        return "mapping.w_avg"
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"synthesis/noise(\d{1,3})", name):
        # noise0 is 4x4 conv1's; then 2 log2(r) - 5 and 2 log2(r) - 4 are conv0's and conv1's of resolution r
        number = int(match[1])
        return f"synthesis.b{4 << (number + 1) // 2}.conv{1 - number % 2}.noise_const"
    if match := re.fullmatch(r"mapping/(LabelEmbed|Dense(\d{1,3}))/(weight|bias)", name):
        return f"mapping.{_mapping_layer(match)}.{match[3]}"
    if match := re.fullmatch(r"synthesis/(\d{1,5})x\1/(\w+)/(\w+)", name):
        layer = (SYNTHESIS_4 if match[1] == "4" else SYNTHESIS).get(match[2])
        return _layer_part(f"synthesis.b{match[1]}", layer, match[3])
    return None


def _discriminator_name(name: str) -> str | None:
    if match := re.fullmatch(r"Output/(weight|bias)", name):
        return f"b4.out.{match[1]}"
    if match := re.fullmatch(r"(LabelEmbed|Mapping(\d{1,3}))/(weight|bias)", name):
        return f"mapping.{_mapping_layer(match)}.{match[3]}"
    if match := re.fullmatch(r"(\d{1,5})x\1/(\w+)/(\w+)", name):
        layer = (DISCRIMINATOR_4 if match[1] == "4" else DISCRIMINATOR).get(match[2])
        return _layer_part(f"b{match[1]}", layer, match[3])
    return None


def _mapping_layer(match: re.Match) -> str:
    return "embed" if match[1] == "LabelEmbed" else f"fc{int(match[2])}"


def _layer_part(block: str, layer: str | None, part: str) -> str | None:
    return f"{block}.{layer}.{PARTS[part]}" if layer and part in PARTS else None


def _options(network: Record) -> dict:
    """What the network was built with; refuses the choices that our classes do not have."""
    options = network.state.get("static_kwargs")
    options = options if isinstance(options, dict) else {}
    for name in ("nonlinearity", "mapping_nonlinearity"):
        if options.get(name, "lrelu") != "lrelu":
            raise CheckpointError(f"its {name} is not 'lrelu', the only one that is supported")
    if options.get("normalize_latents", True) is not True:
        raise CheckpointError("its latents are not normalized (normalize_latents is off), which is not supported")
    return options


def _conv_clamp(options: dict) -> float | None:
    clamp = options.get("conv_clamp")
    return None if clamp is None else ada.number(clamp, "conv_clamp", 0, 1e9)


def _taps(options: dict) -> tuple[float, ...]:
    taps = options.get("resample_kernel")
    if taps is None:
        return ada.DEFAULT_TAPS
    if not isinstance(taps, (list, tuple)) or not 1 <= len(taps) <= 32:
        raise CheckpointError("resample_kernel must be a list of at most 32 numbers")
    return tuple(ada.number(tap, "a number in resample_kernel", -1e9, 1e9) for tap in taps)
