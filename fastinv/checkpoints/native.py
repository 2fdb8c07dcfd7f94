"""Our own file format: safetensors with the network's configuration in the metadata.

The metadata is one entry, ``fastinv``, JSON with ``kind`` ("generator" or "discriminator"), ``config`` (constructor
arguments) and ``training`` (how the weights were made, free-form). Tensor names are the state dict's.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn

from fastinv.checkpoints.registry import BUNDLED
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import load_tensors, save_tensors, shown
from fastinv.models.discriminator import Discriminator
from fastinv.models.stylegan2 import Generator

NETWORKS = {"generator": Generator, "discriminator": Discriminator}


def save_network(network: nn.Module, path: str | Path, dtype: torch.dtype | None = None, training: dict | None = None):
    """Write a Generator or Discriminator as safetensors; the file appears whole or not at all.

    Args:
        network: the network; its ``config`` goes into the metadata.
        path: where to; the folder must exist.
        dtype: store floating-point tensors in this type, e.g. ``torch.float16`` to halve the file.
        training: JSON-serialisable facts about the origin of the weights.

    Raises:
        UsageError: another kind of network, or the file cannot be written.
    """
    kinds = [kind for kind, cls in NETWORKS.items() if isinstance(network, cls)]
    if not kinds:
        raise UsageError(f"can only save a Generator or a Discriminator, not a {type(network).__name__}")
    tensors = network.state_dict()
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_tensors(path, tensors, kinds[0], {"config": network.config, "training": training or {}})


def load_generator(name_or_path: str | Path, device=None, dtype: torch.dtype | None = None) -> Generator:
    """Load a generator, in eval mode.

    Args:
        name_or_path: a bundled name (see ``fastinv models``) or the path of a ``.safetensors`` file of ours.
        device: where to put it; None is the CPU.
        dtype: its arithmetic; None is float32 (also when the file stores half precision).

    Raises:
        CheckpointError: no such name or file, not our format, a discriminator, or tensors that do not fit.
    """
    return _load(name_or_path, "generator", device, dtype)


def load_discriminator(name_or_path: str | Path, device=None, dtype: torch.dtype | None = None) -> Discriminator:
    """Load a discriminator, in eval mode; arguments and errors as for ``load_generator``."""
    return _load(name_or_path, "discriminator", device, dtype)


def network_hash(network: nn.Module) -> str:
    """sha256 over names, shapes and float32 values of all tensors: the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _resolve(name_or_path: str | Path, kind: str) -> Path:
    """The file behind a bundled name or a path."""
    path, name = Path(name_or_path), shown(name_or_path)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise CheckpointError(f"{name} is a folder; give the {kind}'s .safetensors file")
    except OSError as error:  # a name that is too long, a folder that must not be looked into
        raise CheckpointError(f"cannot read {name}: {error.strerror}") from error
    if str(name_or_path) in BUNDLED:
        return getattr(BUNDLED[str(name_or_path)], kind)
    raise CheckpointError(
        f"no {kind} {name!r}: neither a file nor a bundled name ({', '.join(BUNDLED)}); "
        "`fastinv models` lists what there is"
    )


def _load(name_or_path, kind, device, dtype):
    path = _resolve(name_or_path, kind)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{shown(path)} is not a .safetensors file; other formats are not read yet")
    tensors, facts = load_tensors(path, kind)
    try:
        network = NETWORKS[kind](**facts["config"])
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]  # torch lists every tensor
        raise CheckpointError(f"{shown(path)} does not fit its configuration: {reason}") from error
    try:
        network = network.to(device=device, dtype=dtype)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UsageError(f"cannot use device {device} with dtype {dtype}: {str(error).splitlines()[0]}") from error
    return network.eval()
