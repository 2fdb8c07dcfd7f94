"""ALAE's generator (.pth): ``models`` holds state dicts by name, the averages over training under ``*_s``.

ALAE equalises the learning rate in its optimiser (LREQAdam) and stores weights as they are applied; our layers scale
them at run time, so the reader divides. Known are the names ``models``, ``generator``, ``mapping_fl``, ``dlatent_avg``,
``decode_block``, ``to_rgb`` and ``map_blocks``. The ones inside, the shapes and the scale of what is stored are from
memory and unverified against a file; so shapes decide where they can.
"""

import math
import re
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import stylegan1
from fastinv.checkpoints.network import Network
from fastinv.errors import CheckpointError
from fastinv.models.stylegan1 import HE_GAIN

NAME = "ALAE"
MARKS = {"generator": "decode_block.0.conv_2.weight", "mapping_fl": "map_blocks.0.fc.weight"}
LR_MULTIPLIER = 0.1  # of the mapping network in training; pictures do not depend on it here
MAX_BLOCKS = 9  # 1024x1024, ALAE's largest; noise maps are made for as many as there are
PARTS = {  # of a block's two layers, without their number
    "conv_.weight": "weight",
    "noise_weight_": "noise_strength",
    "bias_": "bias",
    "style_.weight": "affine.weight",
    "style_.bias": "affine.bias",
}
UNUSED = re.compile(r"to_rgb\.\d+\..+|decode_block\.\d\.blur\..+")  # progressive growing's toRGB layers; a constant
NO_NOISE = "ALAE draws noise anew each time and stores no noise maps; they are zero here, so use noise='random'"


def recognises(value) -> bool:
    """Whether this is a dict whose ``models`` have a generator of ALAE and its mapping network."""
    return all(_find(value, key) is not None for key in MARKS)


def networks(value) -> dict[str, Callable[[], Network]]:
    """The generator with its mapping network (the averages if they are there), read when called."""
    return {"generator": lambda: _read(value)}


def _find(value, key: str) -> tuple[dict, str] | None:
    """(state dict, its name in the file) of the averaged ``key``_s, else of ``key``, by the names in it."""
    models = value.get("models") if isinstance(value, dict) else None
    for name in (f"{key}_s", key) if isinstance(models, dict) else ():
        state = models.get(name)
        if isinstance(state, dict):
            state = {inner_name(part): tensor for part, tensor in state.items() if isinstance(part, str)}
            if MARKS[key] in state:
                return state, name
    return None


def inner_name(name: str) -> str:
    """A tensor's name without the parts of the model that contain its part."""
    return re.sub(r"^(?:module\.|decoder\.|encoder\.|mapping_f\.)+", "", name)


def _read(value: dict) -> Network:
    (state, generator), (mapping, mapping_fl) = _find(value, "generator"), _find(value, "mapping_fl")
    notes = [NO_NOISE]
    if not (generator.endswith("_s") and mapping_fl.endswith("_s")):
        notes.append(f"averages over training are missing; {generator} and {mapping_fl} are used")
    blocks = next(i for i in range(len(state) + 1) if f"decode_block.{i}.conv_2.weight" not in state)
    if blocks > MAX_BLOCKS:
        raise CheckpointError(f"it has {blocks} resolutions; at most {MAX_BLOCKS}, up to 1024x1024, are supported")

    tensors, extra = {}, []
    for name, tensor in state.items():
        match = re.fullmatch(r"decode_block\.(\d)\.(conv_|noise_weight_|bias_|style_)([12])(|\.weight|\.bias)", name)
        part = PARTS.get(match[2] + match[4]) if match else None
        if name in ("const", "decode_block.0.const"):
            tensors["synthesis.b4.const"] = tensor[0]
        elif part is not None:
            layer = stylegan1.layer(2 * int(match[1]) + int(match[3]) - 1)
            if part == "weight":
                outputs = state[f"decode_block.{match[1]}.bias_{match[3]}"].numel()
                tensor = _convolution(tensor, outputs, 4 << int(match[1]) if match[3] == "1" else 0)
            elif part == "affine.weight":
                tensor = tensor * math.sqrt(tensor.shape[1])
            elif part in ("noise_strength", "bias"):
                tensor = tensor.flatten()
            tensors[f"synthesis.{layer}.{part}"] = tensor
        elif match := re.fullmatch(rf"to_rgb\.{blocks - 1}\.to_rgb\.(weight|bias)", name):
            scale = math.sqrt(tensor.shape[1]) if match[1] == "weight" else 1
            tensors[f"synthesis.torgb.{match[1]}"] = tensor * scale
        elif not UNUSED.fullmatch(name):
            extra.append(name)
    for i in range(2 * blocks):
        r = 4 << i // 2
        tensors[f"synthesis.{stylegan1.layer(i)}.noise_const"] = torch.zeros(()).expand(r, r)

    for name, tensor in mapping.items():
        if match := re.fullmatch(r"map_blocks\.(\d{1,3})\.fc\.(weight|bias)", name):
            gain = HE_GAIN / math.sqrt(tensor.shape[1]) if match[2] == "weight" else 1
            tensors[f"mapping.fc{int(match[1])}.{match[2]}"] = tensor / (gain * LR_MULTIPLIER)
        else:
            extra.append(name)
    w_dim = tensors["synthesis.b4.conv0.affine.weight"].shape[1]
    tensors["mapping.w_avg"] = _mean_latent(value["models"], w_dim)
    return stylegan1.generator(tensors, LR_MULTIPLIER, extra=tuple(extra), notes=tuple(notes))


def _convolution(weight: torch.Tensor, outputs: int, up_resolution: int) -> torch.Tensor:
    """A stored 3x3 kernel as ours, [out, in, 3, 3] and unscaled.

    From 128x128 on up-sampling ones are those of a transposed convolution: [in, out, 3, 3] and flipped. Shapes tell,
    unless both counts are the same.
    """
    transposed = weight.shape[0] != outputs
    if weight.shape[0] == weight.shape[1]:
        transposed = up_resolution >= stylegan1.FUSED_FROM
    weight = weight.transpose(0, 1).flip(2, 3) if transposed else weight
    return weight * (math.sqrt(weight.shape[1] * 9) / HE_GAIN)


def _mean_latent(models: dict, w_dim: int) -> torch.Tensor:
    """The mean latent [w_dim], stored as it is or as the one tensor of a module, [w_dim] or once per style input.

    Zeros without one: then it is measured where it is needed, see ``fastinv.latents.mean_latent``.
    """
    for name in ("dlatent_avg_s", "dlatent_avg"):
        found = models.get(name)
        found = next(iter(found.values()), None) if isinstance(found, dict) else found
        if isinstance(found, torch.Tensor):
            return found.reshape(-1, w_dim).mean(0)
    return torch.zeros(w_dim)
