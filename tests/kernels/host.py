"""The CUDA kernels compiled for the CPU: modules of csrc/host, and arrays for them."""

import importlib.util
import os
import pathlib

import numpy
import torch

ORDERS = ("forward", "reverse", "random")  # the turns of blocks and threads, for module.set_order(order, seed=1)

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "host"
FOLDER = pathlib.Path(os.environ.get("FASTINV_HOST_DIR") or ROOT / "build" / "host")
SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")  # .ci/run: the modules of build/host-sanitized


def load(op):
    """The module of csrc/host/bind_<op>.cpp.

    It is taken from build/host, or the folder that the environment variable FASTINV_HOST_DIR names. Nothing is built.
    """
    path = FOLDER / f"_host_{op}.so"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; build the kernels' test modules with: make host")
    spec = importlib.util.spec_from_file_location(f"_host_{op}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def to_numpy(tensor):
    """A NumPy array that shares the tensor's memory, shape and strides; bfloat16 becomes uint16 (NumPy has none)."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy.uint16)
    return tensor.numpy()


def from_numpy(array, dtype):
    """The tensor that shares the array's memory; dtype torch.bfloat16 takes uint16 arrays."""
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(numpy.int16)).view(torch.bfloat16)
    tensor = torch.from_numpy(array)
    if tensor.dtype != dtype:
        raise TypeError(f"the array is {array.dtype}, not {dtype}")
    return tensor
