"""Chooses between the native kernels and the plain torch reference of an op, and remembers why."""

from collections.abc import Callable

import torch

from .. import _ext
from ..errors import NativeUnavailableError, UsageError

# What the kernels take, by device. Other dtypes go to the reference.
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}

# (op, device type, reason) -> how many calls fell back for it, in this process.
fallbacks: dict[tuple[str, str, str], int] = {}


def _registered_kernels() -> dict[str, frozenset[str]]:
    """Name of each native op (without the namespace) -> device types that have a kernel of it."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastinv::")]
    keys = {"cpu": "CPU", "cuda": "CUDA"}
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name.removeprefix("fastinv::"): frozenset(device for device, key in keys.items() if has_kernel(name, key))
        for name in names
    }


# Looked up once, here, since torch.compile cannot trace the look-up; only register_composed adds to it.
KERNELS = _registered_kernels() if _ext.available() else {}
_obstacles: dict[tuple[str, str, torch.dtype], str] = {}


def kernels_of(op: str) -> list[str]:
    """The native ops that `op` needs: its own name and those that start with it (bias_act, bias_act_backward, ...)."""
    return sorted(name for name in KERNELS if name == op or name.startswith(op + "_"))


def register_composed(op: str, device_type: str, kernel: Callable, *parts: str) -> None:
    """Register a Python kernel of the native `op` that is made of others, if those, `parts`, have a kernel there.

    Fake kernel and autograd of the op stay as they are. Does nothing where the op has a kernel already.
    """
    if device_type in KERNELS.get(op, (device_type,)) or not all(device_type in KERNELS.get(p, ()) for p in parts):
        return
    torch.library.impl(f"fastinv::{op}", device_type, kernel)
    KERNELS[op] = KERNELS[op] | {device_type}


def _find_obstacle(op: str, device_type: str, dtype: torch.dtype) -> str:
    if not _ext.available():
        return f"the native library is not loaded: {_ext.why_not()}"
    if device_type not in DTYPES:
        return f"there are no native kernels for device {device_type}"
    if device_type == "cuda" and not _ext.cuda_available():
        return f"the CUDA kernels are not loaded: {_ext.cuda_why_not()}"
    needed = kernels_of(op)
    missing = [name for name in needed if device_type not in KERNELS[name]]
    if missing or not needed:
        return f"there is no native {device_type} kernel of {', '.join(missing or [op])}"
    if dtype not in DTYPES[device_type]:
        known = ", ".join(str(known_dtype).removeprefix("torch.") for known_dtype in DTYPES[device_type])
        return f"the native {device_type} kernels take {known}, not {str(dtype).removeprefix('torch.')}"
    return ""


def obstacle(op: str, device_type: str, dtype: torch.dtype) -> str:
    """Why `op` has no native kernels for this device type and dtype; "" if it has all it needs."""
    key = (op, device_type, dtype)
    if key not in _obstacles:
        _obstacles[key] = _find_obstacle(*key)
    return _obstacles[key]


def choose(op: str, impl: str, x: torch.Tensor, *checks: tuple[bool, str]) -> str:
    """Decide how to run `op` on the leading tensor `x`: "native" or "ref".

    Args:
        op: name of the op; it needs every native op of that name or that starts with it (see `kernels_of`).
        impl: "auto" (native if it can, else the reference), "native" (an error if it cannot) or "ref".
        x: the leading tensor; its device and dtype decide.
        checks: further (fine, reason) pairs of the op; the first that is not fine is the reason for the reference.

    Raises:
        UsageError: impl is something else.
        NativeUnavailableError: impl is "native" and the kernel cannot take the call.
    """
    if impl == "ref":
        return "ref"
    if impl not in ("auto", "native"):
        raise UsageError(f"{op}: impl must be 'auto', 'native' or 'ref', got {impl!r}")
    reason = obstacle(op, x.device.type, x.dtype)
    if not reason:
        reason = next((why for fine, why in checks if not fine), "")
    if not reason:
        return "native"
    if impl == "native":
        raise NativeUnavailableError(f"{op}: impl='native' cannot be used: {reason}")
    if not torch.compiler.is_compiling():
        key = (op, x.device.type, reason)
        fallbacks[key] = fallbacks.get(key, 0) + 1
    return "ref"
