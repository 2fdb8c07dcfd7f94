"""From tensors under our names to a network: what a family's reader gives, checked against our class and built."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fastinv.checkpoints.containers import DAMAGE, one_line
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.encoders import ENCODERS
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.models.stylegan2 import Generator

# kind -> what a file of ours calls the class -> the class
MODELS: dict[str, dict[str, type[nn.Module]]] = {
    "generator": {"stylegan2": Generator, "stylegan1": StyleGAN1Generator},
    "encoder": ENCODERS,
    "discriminator": {"stylegan2": Discriminator},
}
MAX_TENSORS = 2000  # the largest public network has 621
MAX_CALLS = 30  # of torch for each tensor while a network is constructed; a convolution takes ten or so
RELEASED_AFTER = 64 << 20  # bytes copied


class CheckpointWarning(UserWarning):
    """Something odd in a checkpoint that does not keep it from being used."""


@dataclass(frozen=True)
class Network:
    """A network as a reader found it.

    Attributes:
        kind: "generator", "discriminator" or "encoder".
        model: which of our classes, see ``MODELS``.
        config: constructor arguments, JSON-serialisable.
        tensors: the state dict, with the names and shapes of our class and any floating type; may be views of a file.
        extra: names of tensors in the file that nothing uses.
        notes: one-line remarks for the user.
        generator_sha256: `network_hash` of the generator that an encoder was trained for, where the file says.
    """

    kind: str
    model: str
    config: dict
    tensors: dict[str, torch.Tensor]
    extra: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    generator_sha256: str | None = None


def model_of(network: nn.Module) -> tuple[str, str] | None:
    """(kind, model) of one of our networks; None for another module."""
    for kind, models in MODELS.items():
        for model, cls in models.items():
            if type(network) is cls:
                return kind, model
    return None


def build(
    found: Network,
    name: str,
    size: int | None = None,
    progress: Callable | None = None,
    release: Callable | None = None,
) -> nn.Module:
    """The network with these weights, in float32 and eval mode. Weights are copied one by one, each once.

    Args:
        found: what a reader gave.
        name: what messages call the file.
        size: bytes of the file, which bound what may be allocated.
        progress: called with (tensors copied, all) after each.
        release: called now and then, to give back memory of the file, of which tensors may be views.

    Raises:
        CheckpointError: tensors are missing or have another shape, or the configuration is none of the class's.
    """
    cls = MODELS.get(found.kind, {}).get(found.model)
    if cls is None:
        raise CheckpointError(f"{name} holds a {found.kind} of the unknown kind {str(found.model)[:40]!r}")
    if len(found.tensors) > MAX_TENSORS:
        raise CheckpointError(f"{name} is refused: its {found.kind} has {len(found.tensors)} tensors")
    try:
        with torch.device("meta"), _Bounded(MAX_CALLS * (len(found.tensors) + 10)):
            network = cls(**found.config)
    except DAMAGE as error:
        reason = one_line(" ".join(str(error).split())[:200])
        raise CheckpointError(f"{name} does not fit its configuration: {reason}") from error
    expected = network.state_dict()
    _compare(expected, found.tensors, name)
    extra = [*found.extra, *(key for key in found.tensors if key not in expected)]
    if extra:
        listed = ", ".join(key[:100] for key in extra[:8]) + (f" and {len(extra) - 8} more" if len(extra) > 8 else "")
        warn(f"{name}: {len(extra)} tensors belong to no part of the {found.kind} and are left out: {listed}")
    needed = sum(found.tensors[key].numel() for key in expected)
    if size is not None and needed > 2 * size + 1024:  # two bytes an element at least, shared ones counted twice
        raise CheckpointError(f"{name} is refused: its {size} bytes unfold into {needed} numbers")
    tensors, odd, touched = {}, [], 0
    for count, key in enumerate(expected, 1):
        tensors[key] = found.tensors[key].detach().to(expected[key].dtype, copy=True).contiguous()
        if not _is_finite(tensors[key]):
            odd.append(key)
        touched += tensors[key].nbytes
        if release is not None and touched > RELEASED_AFTER:
            release()
            touched = 0
        if progress is not None:
            progress(count, len(expected))
    if odd:
        warn(f"{name}: {len(odd)} tensors hold infinities or NaN, the first is {odd[0]}; pictures may be black")
    for note in found.notes:
        warn(f"{name}: {note}")
    network.load_state_dict(tensors, assign=True)
    if found.kind == "encoder":
        network.generator_sha256 = found.generator_sha256
    return network.requires_grad_(True).eval()


def _is_finite(tensor: torch.Tensor) -> bool:
    """Without tensors of the same size, which ``isfinite`` makes."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


class _Bounded(TorchFunctionMode):
    """Ends the construction of a network that a configuration makes far larger than the file can fill."""

    def __init__(self, calls: int):
        super().__init__()
        self.left = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0:  # once: on its way out the exception passes blocks that restore torch's state by calls
            raise ValueError("it asks for far more layers than the file has tensors for")
        return _WITHOUT_VALUES.get(func, func)(*args, **(kwargs or {}))


# Without values these come to the same, and torch's own versions for the meta device import its compiler: 2 s.
_WITHOUT_VALUES = {torch.randn: torch.empty, torch.Tensor.div: lambda x, divisor: x}


def _compare(expected: dict, tensors: dict, name: str) -> None:
    missing = [key for key in expected if not isinstance(tensors.get(key), torch.Tensor)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{name} does not fit its configuration: the tensor {missing[0]}{more} is missing")
    for key, tensor in expected.items():
        found = tensors[key]
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{name} does not fit its configuration: {key} has shape {list(found.shape)}, "
                f"not {list(tensor.shape)}"
            )
        if found.is_complex():
            raise CheckpointError(f"{name}: {key} has complex numbers")


def warn(message: str) -> None:
    """A remark on a checkpoint; the command line shows it as one line."""
    warnings.warn(one_line(" ".join(message.split())), CheckpointWarning, stacklevel=3)


def placed(network: nn.Module, device, dtype: torch.dtype | None) -> nn.Module:
    """The network on a device and in a type; a UsageError where that cannot be."""
    try:
        return network.to(device=device, dtype=dtype)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UsageError(f"cannot use device {device} with dtype {dtype}: {str(error).splitlines()[0]}") from error
