"""Chains of frozen 3x3 convolutions, each with bias and ReLU, as VGG has them between its poolings.

On a CPU with kernels for the dtype a convolution is one pass with all that follows it: bias and ReLU forward, the ReLU
of the layer before backward (`fastinv.ops.frozen_conv`), in memory that is kept from step to step. Elsewhere, and
under torch.compile, it is torch's convolution with passes around it.
"""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional

from fastinv.models.arena import Arena, padded
from fastinv.models.kinds import choose_kind
from fastinv.ops import bias_act
from fastinv.ops.frozen_conv import FrozenWeight, frozen_conv, frozen_conv_backward, obstacle

_LAST = torch.channels_last


class FrozenChain:
    """Frozen convolutions of padding 1, each followed by bias and ReLU. Called, it is differentiable in its input.

    Args:
        convolutions: (weight [O, I, 3, 3], bias [O]) of each, in order.
        dtype: of the feature maps.
        device: where it runs; None is that of the weights.
        fused: whether to compute by `fastinv.ops.frozen_conv`; None is where that has kernels.
    """

    def __init__(self, convolutions, dtype: torch.dtype, device=None, fused: bool | None = None):
        self.dtype = dtype
        self.weights, self.biases = [], []
        for weight, bias in convolutions:
            self.weights.append(weight.detach().to(device, dtype, memory_format=_LAST))
            self.biases.append(bias.detach().to(device, dtype))
        self._fused = not obstacle(dtype, self.weights[0].device.type) if fused is None else fused
        self._wide = [bias.float() for bias in self.biases] if self._fused else []
        self._packed: dict[tuple[int, str, bool], FrozenWeight] = {}
        self._arena = Arena()

    def __getstate__(self):
        return vars(self) | {"_packed": {}}  # a pickle may come to a machine with other kernels

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def fused(self) -> bool:
        """Whether bias and ReLU are part of the convolutions, at present."""
        return self._fused and not torch.compiler.is_compiling()

    def __call__(self, x: torch.Tensor, ending: str = "relu") -> torch.Tensor:
        """The last result of `forward`."""
        x = x.contiguous(memory_format=_LAST)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Run.apply(x, self, ending)
        return self.forward(x, ending, keep=False)[-1]

    def forward(self, x: torch.Tensor, ending: str = "relu", keep: bool = True) -> list[torch.Tensor]:
        """x [N, I, H, W] of the chain's dtype -> x and the result of each convolution, channels_last.

        Args:
            ending: of the last convolution: "relu", "bias" (no ReLU) or "none" (nor a bias).
            keep: False if only the last result counts, which then has memory of its own; those before it are None.
        """
        maps = [x.contiguous(memory_format=_LAST)]
        last = len(self) - 1
        if not self.fused:
            for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                u = functional.conv2d(maps[-1], weight, padding=1)
                act = "relu" if index < last or ending == "relu" else "linear"
                maps.append(u if index == last and ending == "none" else bias_act(u, bias, act=act, gain=1))
            return maps if keep else [None] * len(self) + maps[-1:]
        weights = [self._weight(index, False, x) for index in range(len(self))]
        if keep:
            results = self._maps("kept", weights, x)
        else:
            final = torch.empty((len(x), weights[-1].outputs, *x.shape[2:]), dtype=self.dtype, memory_format=_LAST)
            results = [*self._maps("passing", weights[:-1], x, alternate=True), final]
        work = self._work("forward", weights, x)
        for index, (weight, y) in enumerate(zip(weights, results, strict=True)):
            bias = None if index == last and ending == "none" else self._wide[index]
            alpha = 0.0 if index < last or ending == "relu" else 1.0
            frozen_conv(maps[-1], weight, y, bias=bias, alpha=alpha, work=work)
            maps.append(y)
        return maps if keep else [None] * len(self) + maps[-1:]

    def backward(self, du: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        """The gradient of maps[0], from du [N, O, H, W], that of the last convolution without its bias and ReLU.

        Args:
            maps: the inputs of the convolutions: what `forward` gave, without the last one.
        """
        if not self.fused:
            for index in reversed(range(len(self))):
                du = _input_gradient(du, maps[index], self.weights[index])
                if index:  # maps[index] is the output of a ReLU
                    du = torch.ops.aten.threshold_backward(du, maps[index], 0)
            return du
        du = du.contiguous(memory_format=_LAST)
        weights = [self._weight(index, True, du) for index in reversed(range(len(self)))]
        results = self._maps("gradients", weights, du, alternate=True)
        work = self._work("backward", weights, du)
        with torch.autocast("cpu", enabled=False):
            for weight, y, before in zip(weights, [*reversed(maps[1:]), None], results, strict=True):
                frozen_conv_backward(du, weight, y, before, alpha=0.0, work=work)
                du = before
        return du

    def differentiable(self, x: torch.Tensor, ending: str = "relu") -> torch.Tensor:
        """The last result of `forward` by torch's operators, differentiable any number of times."""
        last = len(self) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = functional.conv2d(x, weight, None if index == last and ending == "none" else bias, padding=1)
            x = x.relu() if index < last or ending == "relu" else x
        return x

    def _weight(self, index: int, turned: bool, x: torch.Tensor) -> FrozenWeight:
        """The weight of a convolution, or with `turned` of its adjoint, for maps of the size of x; laid out once."""
        weight = self.weights[index]
        outputs, inputs = weight.shape[:2]
        kind = choose_kind(*((outputs, inputs) if turned else (inputs, outputs)), min(x.shape[2:]), self.dtype)
        key = index, kind, turned
        if key not in self._packed:
            with torch.inference_mode(False):
                packed = FrozenWeight(weight.flip(2, 3).transpose(0, 1) if turned else weight, kind, self.dtype)
            if turned and packed.packed is not None:  # only a reference would read the copy
                packed.source = weight.new_full((), math.nan).expand(inputs, outputs, 3, 3)
            self._packed[key] = packed
        return self._packed[key]

    def _maps(self, purpose: str, weights: list[FrozenWeight], x: torch.Tensor, alternate: bool = False):
        """Memory for the result of each weight; with `alternate` every other one is in the same place."""
        n, _, height, width = x.shape
        shapes = [(n, weight.outputs, height, width) for weight in weights]
        sizes = [padded(math.prod(shape) * self.dtype.itemsize) for shape in shapes]
        if alternate:
            sizes = [max(sizes[index % 2 :: 2]) for index in range(len(sizes))]
            offsets = [index % 2 * sizes[0] for index in range(len(sizes))]
        else:
            offsets = [0, *itertools.accumulate(sizes[:-1])]
        lease = self._arena.lease(purpose, sum(sizes[:2] if alternate else sizes))
        return [lease.feature_map(*place, self.dtype) for place in zip(offsets, shapes, strict=True)]

    def _work(self, purpose: str, weights: list[FrozenWeight], x: torch.Tensor) -> torch.Tensor | None:
        n, _, height, width = x.shape
        size = max(weight.work_bytes(n, height, width) for weight in weights)
        return self._arena.lease(purpose, size).tensor(0, (size,), torch.uint8) if size else None


class FusedChains:
    """A module's convolutions as chains where those are fused, laid out when first used and after every change."""

    def __init__(self):
        self._state, self._held, self._chains = None, [], []

    def __reduce__(self):
        return FusedChains, ()

    def of(self, runs: list[list[nn.Conv2d]], x: torch.Tensor) -> list[FrozenChain]:
        """A chain for each run of convolutions; none where they are not frozen, or there are no kernels for x."""
        device = x.device.type
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(device) or obstacle(x.dtype, device):
            return []
        parameters = [parameter for run in runs for layer in run for parameter in (layer.weight, layer.bias)]
        if any(p.dtype != x.dtype or p.device != x.device or p.requires_grad for p in parameters):
            return []
        state = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        if self._state != state:
            self._chains = [FrozenChain([(layer.weight, layer.bias) for layer in run], x.dtype) for run in runs]
            self._state = state
            self._held = [parameter.detach() for parameter in parameters]  # so that no other can come to lie there
        return self._chains


class _Run(torch.autograd.Function):
    """A chain as one node."""

    @staticmethod
    def forward(ctx, x, chain, ending):
        maps = chain.forward(x, ending)
        ctx.chain, ctx.ending = chain, ending
        ctx.save_for_backward(*maps)
        return maps[-1]

    @staticmethod
    def backward(ctx, grad):
        chain, (*maps, y) = ctx.chain, ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the caller differentiates the gradient
            y = chain.differentiable(maps[0], ctx.ending)
            return torch.autograd.grad(y, maps[0], grad, create_graph=True)[0], None, None
        if ctx.ending == "relu":
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        return chain.backward(grad, maps), None, None


def _input_gradient(du: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of x alone: weights are frozen."""
    ones, mask = [1, 1], [True, False, False]
    return torch.ops.aten.convolution_backward(du, x, weight, None, ones, ones, ones, False, [0, 0], 1, mask)[0]
