"""Memory that is kept from step to step. A fresh block of 32 MB and more is mapped and zeroed by the system each time,
which costs more than what is then computed in it.

An `Arena` hands out whole blocks as leases; a lease makes tensors. Nobody gives a lease back: its block is free again
when the lease and the last of its tensors are gone, wherever those were kept, for instance in an autograd graph that
may or may not be retained. So any number of results can be alive, each with a block of its own, in any thread.
"""

import ctypes
import math
import mmap
import weakref
from collections import deque

import torch

ALIGNMENT = 64  # bytes: a cache line and the widest register
HUGE_PAGE = 1 << 21


def padded(size: int) -> int:
    """Bytes rounded up, so that what follows is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _mapped(size: int) -> mmap.mmap:
    """Zeroed memory of its own, in huge pages where the system has them; after a fork each process has its own copy."""
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            block.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            pass
    return block


def settled(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a tensor, if it is large in huge pages of its own. There it costs fewer misses to read, and
    what is allocated and freed around it leaves no holes in the heap.
    """
    if tensor.nbytes < HUGE_PAGE:
        return tensor.contiguous()
    lease = Lease(memoryview(_mapped(tensor.nbytes)))
    return lease.tensor(0, tuple(tensor.shape), tensor.dtype).copy_(tensor)


def trim() -> None:
    """Give free memory inside the heap back to the system, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass


class Lease:
    """A block for one use, and the tensors on it; made by ``Arena.lease``. Contents are whatever was there before."""

    def __init__(self, view: memoryview):
        self._view = view

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor, `offset` bytes from the beginning. It has a version counter of its own: autograd does
        not take writing to another tensor on the same bytes for a change of this one.
        """
        return self._numbers(offset, math.prod(shape), dtype).view(shape)

    def feature_map(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Likewise [N, C, H, W], dense channels_last."""
        _, channels, height, width = shape
        flat = self._numbers(offset, math.prod(shape), dtype)
        return flat.as_strided(shape, (channels * height * width, 1, channels * width, channels))

    def _numbers(self, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        if count == 0:  # an empty batch; frombuffer refuses it
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._view, dtype=dtype, count=count, offset=offset)


class Arena:
    """Blocks of memory for some purposes, of which at most one each is kept while it is not in use.

    A copy of an arena, also an unpickled one, is a new one without blocks.
    """

    def __init__(self):
        self._free: dict[str, deque[mmap.mmap]] = {}

    def __reduce__(self):
        return Arena, ()

    def lease(self, purpose: str, size: int) -> Lease:
        """A block of `size` bytes: the free one of this purpose if it is of this size, else a new one in its place."""
        free = self._free.setdefault(purpose, deque(maxlen=1))  # its operations are atomic
        size = max(size, 1)
        try:
            block = free.pop()
        except IndexError:
            block = None
        if block is None or len(block) != size:
            block = None  # unmapped before the new one is mapped
            block = _mapped(size)
        view = memoryview(block)
        # Every tensor holds the view; with the last of them it dies, and the block goes back.
        weakref.finalize(view, free.append, block).atexit = False
        return Lease(view)

    def has_free(self, purpose: str, size: int) -> bool:
        """Whether a lease of this purpose and size would find its block."""
        return any(len(block) == size for block in tuple(self._free.get(purpose, ())))

    def free_bytes(self) -> int:
        """Bytes of the blocks that are kept and not in use."""
        return sum(len(block) for free in self._free.values() for block in tuple(free))
