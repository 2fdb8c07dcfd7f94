"""Devices and arithmetic by name, as the command line takes them; and the number of threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastinv.errors import UsageError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def named_device(name: str) -> torch.device:
    """The device of a name such as cpu, cuda or cuda:1; "auto" is a GPU if there is one, else the CPU.

    Raises:
        UsageError: no such device, or it does not work here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        seen = torch.cuda.device_count()
        raise UsageError(f"device {name!r} cannot be used; use auto, cpu or cuda ({seen} seen here)") from error
    return device


def named_dtype(name: str) -> torch.dtype:
    """The dtype of a name in ``DTYPES``; UsageError for others."""
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}; choose one of {', '.join(DTYPES)} (or auto, for an inversion)")
    return DTYPES[name]


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on the CPU in one thread: linear algebra and convolutions that are split over several have other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
