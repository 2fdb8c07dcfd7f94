"""The encoder of ALAE (.pth): ``models`` holds state dicts by name, with the average over training under ``*_s``.

Training files call the encoder "discriminator", so it is found by its tensors. Weights are stored scaled (the
optimiser, LREQAdam, equalises the learning rate, not the layers); ours are scaled at run time, so the reader divides.
"""

import math
from collections.abc import Callable

import torch

from fastinv.checkpoints.families import alae
from fastinv.checkpoints.network import Network

NAME = "ALAE encoder"
KEYS = ("encoder_s", "discriminator_s", "encoder", "discriminator")  # averages first
MARK = "encode_block.0.conv_1.weight"


def recognises(value) -> bool:
    """Whether this is a dict whose ``models`` have an encoder."""
    return _find(value) is not None


def networks(value) -> dict[str, Callable[[], Network]]:
    """The encoder, read when called."""
    return {"encoder": lambda: _encoder(*_find(value))}


def _find(value) -> tuple[dict, str] | None:
    """(state dict, its name in the file) of the averaged encoder, else of the one that training left."""
    models = value.get("models") if isinstance(value, dict) else None
    for key in KEYS if isinstance(models, dict) else ():
        state = models.get(key)
        if isinstance(state, dict):
            state = {alae.inner_name(name): tensor for name, tensor in state.items() if isinstance(name, str)}
            if MARK in state:
                return state, key
    return None


def _encoder(state: dict, key: str) -> Network:
    notes = () if key.endswith("_s") else (f"averages over training are missing; {key} is used",)
    tensors = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and ".blur." not in name:  # a constant
            if name.endswith(".weight"):
                tensor = tensor * math.sqrt(tensor.shape[1:].numel())
            elif name.endswith((".bias_1", ".bias_2")):
                tensor = tensor.reshape(1, -1, 1, 1)
            tensors[name] = tensor
    levels = next(index for index in range(len(tensors) + 1) if f"encode_block.{index}.conv_2.weight" not in tensors)
    channels = [tensors["encode_block.0.conv_1.weight"].shape[1]]
    channels += [tensors[f"encode_block.{index}.conv_2.weight"].shape[0] for index in range(levels)]
    config = {
        "input_resolution": 2 << levels,
        "num_ws": 2 * levels,
        "w_dim": tensors["encode_block.0.style_1.weight"].shape[0],
        "channels": channels,
        "input_nc": tensors["from_rgb.0.from_rgb.weight"].shape[1],
    }
    tensors["latent_avg"] = torch.zeros(()).expand(config["num_ws"], config["w_dim"])
    return Network("encoder", "alae", config, tensors, notes=notes)
