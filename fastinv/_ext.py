"""Loads the native library, in this one place. When it cannot, it says why; importing this module does not fail for it.

Environment: FASTINV_DISABLE_NATIVE=1 hides the library; FASTINV_LIBRARY=/path/_native.so loads another build of it.
"""

import json
import os
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
_BUILD_HINT = "build it: `make native` in a source tree, or `pip install --no-build-isolation .`"


def _load(path: Path) -> str:
    """Load one library into torch's dispatcher. Returns "" or the reason why it could not be loaded (one line)."""
    if os.environ.get("FASTINV_DISABLE_NATIVE", "0") not in ("", "0"):
        return "switched off by FASTINV_DISABLE_NATIVE"
    if not path.is_file():
        return f"{path} does not exist; {_BUILD_HINT}"
    if torch.__version__ < (2, 10):
        return f"torch {torch.__version__} is older than 2.10, which the native library needs; upgrade torch"
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return f"{path} does not load in torch {torch.__version__}: {str(error).splitlines()[0]}; {_BUILD_HINT}"
    try:
        torch.ops.fastinv.cpu_isa()
    except RuntimeError as error:  # FASTINV_CPU_ISA names an instruction set that this machine does not have
        return str(error).splitlines()[0]
    return ""


def build_info() -> dict:
    """What the build noted about itself beside the library (_build.json of CMakeLists.txt); {} if there is no note."""
    try:
        return json.loads(_library.with_name("_build.json").read_text())
    except (OSError, ValueError):
        return {}


_library = Path(os.environ.get("FASTINV_LIBRARY") or PACKAGE / "_native.so")
_cuda_library = _library.with_name("_native_cuda.so")
_why_not = _load(_library)
if _why_not:
    _cuda_why_not = _why_not
elif not _cuda_library.is_file():
    _cuda_why_not = "not built: " + build_info().get("cuda", {}).get("reason", f"{_cuda_library} does not exist")
else:
    _cuda_why_not = _load(_cuda_library)


def available() -> bool:
    """True if the native library is loaded."""
    return not _why_not


def why_not() -> str:
    """Why the native library is not loaded; "" if it is."""
    return _why_not


def cuda_available() -> bool:
    """True if the CUDA part of the native library is loaded (says nothing about a GPU being present)."""
    return not _cuda_why_not


def cuda_why_not() -> str:
    """Why the CUDA part is not loaded; "" if it is."""
    return _cuda_why_not


def library_path() -> Path:
    """Where the native library is, or would be."""
    return _library


def cpu_isa() -> str:
    """The CPU instruction set in use: "portable", "avx2" or "avx512"; "" without the library."""
    return torch.ops.fastinv.cpu_isa() if available() else ""


def cpu_matrix() -> str:
    """The processor's arithmetic for bfloat16 products in use: "amx", "avx512_bf16" or ""."""
    known = available() and hasattr(torch.ops.fastinv, "cpu_matrix")  # not so with an older build of the library
    return torch.ops.fastinv.cpu_matrix() if known else ""


def cpu_isas() -> list[str]:
    """What FASTINV_CPU_ISA may choose in this build and on this machine, best last; [] without the library.

    The last two, "avx512_bf16" and "amx", are the kernels of "avx512" with that arithmetic in bfloat16 products.
    """
    return torch.ops.fastinv.cpu_isas().split() if available() else []
