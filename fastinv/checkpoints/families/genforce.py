"""genforce's generators (.pth): StyleGAN as idinvert_pytorch has it, and StyleGAN2.

A file is one state dict, or a dict with ``generator`` and, averaged, ``generator_smooth``. The names of IDInvert's
generator are known tensor by tensor; other StyleGAN files of genforce are read if they have the same names. Taken from
the networks' definition, not from a file: biases of the mapping network are stored before their learning-rate
multiplier 0.01, as TensorFlow does.
"""

import re
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import ada, stylegan1
from fastinv.checkpoints.network import Network
from fastinv.errors import CheckpointError

NAME = "genforce"
KEYS = ("generator_smooth", "generator")  # the average first
STYLEGAN1 = "synthesis.layer0.epilogue.style_mod.dense.fc.weight"
STYLEGAN2 = "synthesis.early_layer.const"
# StyleGAN: names of a layer's tensors -> ours
PARTS = {
    "conv.weight": "weight",
    "weight": "weight",
    "epilogue.bias": "bias",
    "epilogue.apply_noise.weight": "noise_strength",
    "epilogue.apply_noise.noise": "noise_const",
    "epilogue.style_mod.dense.fc.weight": "affine.weight",
    "epilogue.style_mod.dense.wscale.bias": "affine.bias",
}
# StyleGAN2: likewise, of layer{k} and output{k}
PARTS2 = {
    "weight": "weight",
    "bias": "bias",
    "style.weight": "affine.weight",
    "style.bias": "affine.bias",
    "noise_strength": "noise_strength",
    "noise": "noise_const",
}
# Constants (blur, truncation) and what progressive growing needed (lower toRGB layers)
UNUSED = re.compile(r"synthesis\.(lod|layer\d+\.(blur|filter)\.kernel|output\d+\..+)|truncation\.truncation")


def recognises(value) -> bool:
    """Whether this is such a state dict, or a dict with one."""
    return _find(value) is not None


def networks(value) -> dict[str, Callable[[], Network]]:
    """The generator (generator_smooth, else generator), read when called."""
    return {"generator": lambda: _read(*_find(value))}


def _find(value) -> tuple[dict, tuple[str, ...]] | None:
    """(state dict, notes)."""
    if not isinstance(value, dict):
        return None
    for key, state in (("", value), *((key, value.get(key)) for key in KEYS)):
        if isinstance(state, dict) and (STYLEGAN1 in state or STYLEGAN2 in state):
            note = "it holds no averaged generator generator_smooth; generator, as training left it, is used"
            return state, (note,) if key == "generator" else ()
    return None


def _read(state: dict, notes: tuple[str, ...]) -> Network:
    tensors = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, torch.Tensor)}
    return (_stylegan1 if STYLEGAN1 in tensors else _stylegan2)(tensors, notes)


def _stylegan1(state: dict[str, torch.Tensor], notes: tuple[str, ...]) -> Network:
    tensors, extra = {}, []
    outputs = [re.fullmatch(r"synthesis\.output(\d{1,2})\.bias", name) for name in state]
    last = max((int(match[1]) for match in outputs if match), default=0)
    for name, tensor in state.items():
        if name == "truncation.w_avg":
            tensors["mapping.w_avg"] = tensor
        elif match := re.fullmatch(r"mapping\.dense(\d{1,3})\.(?:fc|wscale)\.(weight|bias)", name):
            tensors[f"mapping.fc{int(match[1])}.{match[2]}"] = tensor
        elif name == "synthesis.layer0.const":
            tensors["synthesis.b4.const"] = tensor[0]
        elif match := re.fullmatch(rf"synthesis\.output{last}\.(?:conv\.)?(weight|bias)", name):
            tensors[f"synthesis.torgb.{match[1]}"] = tensor
        elif (match := re.fullmatch(r"synthesis\.layer(\d{1,2})\.(.+)", name)) and match[2] in PARTS:
            if match[2] == "weight":  # [height, width, in, out], and flipped: for a transposed convolution
                tensor = tensor.permute(3, 2, 0, 1).flip(2, 3)
            ours = PARTS[match[2]]
            tensor = tensor[0, 0] if ours == "noise_const" else tensor
            tensors[f"synthesis.{stylegan1.layer(int(match[1]))}.{ours}"] = tensor
        elif not UNUSED.fullmatch(name):
            extra.append(name)
    return stylegan1.generator(tensors, lod=state.get("synthesis.lod"), extra=tuple(extra), notes=notes)


def _stylegan2(state: dict[str, torch.Tensor], notes: tuple[str, ...]) -> Network:
    """Up-sampling convolutions are stored flipped, and style biases without their 1, as in TensorFlow."""
    tensors, extra = {}, []
    for name, tensor in state.items():
        if name == "truncation.w_avg":
            tensors["mapping.w_avg"] = tensor
        elif match := re.fullmatch(r"mapping\.dense(\d{1,3})\.(weight|bias)", name):
            tensors[f"mapping.fc{int(match[1])}.{match[2]}"] = tensor
        elif name.startswith("mapping."):
            raise CheckpointError(f"it has {name[:100]}: conditional generators of genforce are not supported")
        elif name == STYLEGAN2:
            tensors["synthesis.b4.const"] = tensor[0]
        elif (match := re.fullmatch(r"synthesis\.(layer|output)(\d{1,2})\.(.+)", name)) and match[3] in PARTS2:
            ours, index = PARTS2[match[3]], int(match[2])
            layer = f"b{4 << index}.torgb" if match[1] == "output" else stylegan1.layer(index + 1)
            if ours == "weight" and layer.endswith("conv0"):
                tensor = tensor.flip(2, 3)
            elif ours == "affine.bias":
                tensor = tensor + 1
            elif ours == "noise_const":
                tensor = tensor[0, 0]
            elif ours == "noise_strength":
                tensor = tensor.reshape(())
            tensors[f"synthesis.{layer}.{ours}"] = tensor
        elif not UNUSED.fullmatch(name):
            extra.append(name)
    return ada.generator(tensors, extra=tuple(extra), notes=notes)
