"""Our own file format: safetensors with the network's configuration in the metadata.

The metadata is one entry, ``fastinv``, JSON with ``kind`` ("generator", "discriminator" or "encoder"), ``model`` (which
class), ``config`` (constructor arguments) and ``training`` (how the weights were made, free-form). Tensor names are the
state dict's.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn

from fastinv.checkpoints.network import MODELS, model_of
from fastinv.errors import UsageError
from fastinv.files import save_tensors


def save_network(
    network: nn.Module,
    path: str | Path,
    dtype: torch.dtype | None = None,
    training: dict | None = None,
    source: dict | None = None,
):
    """Write a generator, discriminator or encoder as safetensors; the file appears whole or not at all.

    Args:
        network: the network; its ``config`` goes into the metadata.
        path: where to; the folder must exist.
        dtype: store floating-point tensors in this type, e.g. ``torch.float16`` to halve the file; statistics of batch
            norm stay as they are.
        training: JSON-serialisable facts about the origin of the weights.
        source: likewise, of the file that they were converted from.

    Raises:
        UsageError: another kind of network, or the file cannot be written.
    """
    found = model_of(network)
    if found is None:
        raise UsageError(f"can only save a {', '.join(MODELS)} of ours, not a {type(network).__name__}")
    tensors = network.state_dict()
    if dtype is not None:
        tensors = {name: tensor.to(dtype) if shortened(name, tensor) else tensor for name, tensor in tensors.items()}
    facts = {"model": found[1], "config": network.config, "training": training or {}}
    save_tensors(path, tensors, found[0], facts | ({"source": source} if source else {}))


def shortened(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor of a network is stored in a shorter type: not the variances of feature maps, which are often
    above the largest number in half precision.
    """
    return tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))


def network_hash(network: nn.Module) -> str:
    """sha256 over names, shapes and float32 values of all tensors: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()
