"""What makes several processes train as one: equal gradients, and batch statistics over the whole batch."""

import torch
import torch.distributed as distributed
from torch import nn


def average_gradients(network: nn.Module, accelerator) -> None:
    """Replace gradients by their mean over all processes; nothing to do for one.

    All in one message. DistributedDataParallel would overlap it with the backward pass, but takes neither several
    forward passes per step, nor networks that are frozen now and then, nor heads that are not in use yet.
    """
    if accelerator.num_processes == 1:
        return
    parameters = [p for p in network.parameters() if p.grad is not None]  # the same ones on every process
    if not parameters:
        return
    mean = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), "mean")
    for p, part in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


def synchronise_batch_norm(network: nn.Module) -> None:
    """Let every batch norm see the pictures of all processes, as one process would; names of tensors stay.

    (torch's SyncBatchNorm is for GPUs only.) Differentiable; each process must have as many pictures.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.forward = _Synchronised(module)


class _Sum(torch.autograd.Function):
    """Sum of a tensor over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient.contiguous())


class _Synchronised:
    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        if not module.training:
            return type(module).forward(module, x)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = distributed.get_world_size()
        sums = _Sum.apply(torch.stack([wide.mean(axes), wide.square().mean(axes)]))
        mean, square = sums / count
        variance = square - mean.square()
        with torch.no_grad():
            n = count * x.numel() // x.shape[1]
            module.num_batches_tracked += 1
            module.running_mean.lerp_(mean, module.momentum)
            module.running_var.lerp_(variance * n / max(1, n - 1), module.momentum)
        scale = module.weight * (variance.clamp_min(0) + module.eps).rsqrt()
        result = (wide - mean.view(shape)) * scale.view(shape) + module.bias.view(shape)
        return result.to(x.dtype)
