"""Chooses between the native kernel and the plain torch reference of an op, and remembers why."""

import functools

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


@functools.cache
def obstacle(op: str, device_type: str, dtype: torch.dtype) -> str:
    """Why `op` has no native kernel for this device and dtype; "" if it has one."""
    if not _ext.available():
        return f"the native library is not loaded: {_ext.why_not()}"
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    if key is None:
        return f"there are no native kernels for device {device_type}"
    if key == "CUDA" and not _ext.cuda_available():
        return f"the CUDA kernels are not loaded: {_ext.cuda_why_not()}"
    name = f"fastinv::{op}"
    if torch._C._get_operation_overload(name, "") is None or not torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        return f"{op} has no native {key} kernel"
    if dtype not in DTYPES[device_type]:
        known = ", ".join(str(d).removeprefix("torch.") for d in DTYPES[device_type])
        return f"the native {key} kernels take {known}, not {str(dtype).removeprefix('torch.')}"
    return ""


def choose(op: str, impl: str, x: torch.Tensor, *checks: tuple[bool, str]) -> str:
    """Decide how to run `op` on the leading tensor `x`: "native" or "ref".

    Args:
        op: name of the op, as in torch.ops.fastinv.
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
