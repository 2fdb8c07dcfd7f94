"""The encoder of IDInvert (genforce's idinvert_pytorch, .pth): its state dict, alone or under "encoder".

Our names are the same but for batch norm, which the public class wraps: ``block0.bn.bn.weight``.
"""

import re
from collections.abc import Callable

import torch

from fastinv.checkpoints.network import Network
from fastinv.errors import CheckpointError

NAME = "IDInvert encoder"
MARKS = ("block0.conv.weight", "block1.conv1.weight", "block1.wscale1.bias")


def recognises(value) -> bool:
    """Whether this is such a state dict, or a dict with one."""
    return _state(value) is not None


def networks(value) -> dict[str, Callable[[], Network]]:
    """The encoder, read when called."""
    return {"encoder": lambda: _encoder(_state(value))}


def _state(value) -> dict | None:
    if not isinstance(value, dict):
        return None
    candidates = [value, value.get("encoder")]
    return next((state for state in candidates if isinstance(state, dict) and all(m in state for m in MARKS)), None)


def _encoder(state: dict) -> Network:
    tensors = {
        re.sub(r"\.(bn\d?)\.bn\.", r".\1.", name): tensor
        for name, tensor in state.items()
        if isinstance(name, str) and isinstance(tensor, torch.Tensor)
    }
    halvings = next(index for index in range(len(tensors) + 1) if f"block{index + 1}.conv2.weight" not in tensors)
    rows, features = tensors[f"block{halvings + 1}.fc.weight"].shape
    channels = [tensors["block0.conv.weight"].shape[0]]
    channels += [tensors[f"block{index + 1}.conv2.weight"].shape[0] for index in range(halvings)]
    num_ws = 2 * halvings + 2
    if rows % num_ws or features != 16 * channels[-1]:
        raise CheckpointError(
            f"block{halvings + 1}.fc.weight has shape {[rows, features]}; {num_ws} styles need a multiple of {num_ws} "
            f"rows and {16 * channels[-1]} columns"
        )
    config = {
        "input_resolution": 4 << halvings,
        "num_ws": num_ws,
        "w_dim": rows // num_ws,
        "channels": channels,
        "input_nc": tensors["block0.conv.weight"].shape[1],
    }
    tensors["latent_avg"] = torch.zeros(()).expand(num_ws, config["w_dim"])
    for name in list(tensors):  # old versions of torch did not count batches
        if name.endswith(".running_mean"):
            tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    return Network("encoder", "idinvert", config, tensors)
