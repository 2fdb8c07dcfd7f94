"""Memory formats: what the native kernels do, said in Python for their fake kernels."""

import torch


def prefers_channels_last(x: torch.Tensor) -> bool:
    """Whether the native ops compute in, and return, channels_last: the rule of csrc/common/stable.h."""
    return x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1 and x.numel() > 0 and not x.is_contiguous()


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """channels_last or contiguous_format: what the native ops compute in, and return, for a leading tensor x."""
    return torch.channels_last if prefers_channels_last(x) else torch.contiguous_format


def empty_like(x: torch.Tensor, shape: list[int] | None = None) -> torch.Tensor:
    """What a native op returns for a leading tensor x: dense, channels_last if x prefers it, dtype and device of x."""
    shape = x.shape if shape is None else shape
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
