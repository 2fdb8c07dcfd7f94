"""A stand-in for CUDA graphs on the CPU: records every operation of a function and replays them on the same storages.

What a CUDA graph would do wrong, this does wrong as well: Python code runs once, Python numbers are those of the
recording, and an operation reads and writes the very memory that it did then. So a step that gives the same bits with
and without it depends on tensors only.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Values or shapes that depend on data go through the host: an error on a recording stream.
HOST = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}
HOST_METHODS = ("tolist", "numpy", "__array__", "cpu")  # these read memory without an operation


def tensors(values) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Tape(TorchDispatchMode):
    """Carries operations out, and notes them with what they return; also what memory held before it was written."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.own = [], {}, set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation._schema.name.removeprefix("aten::")
        if name in HOST or (name == "index" and any(index.dtype == torch.bool for index in tensors(args[1]))):
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        for argument, value in zip(operation._schema.arguments, args):
            self._note(argument, value)
        for argument in operation._schema.arguments:
            if argument.name in kwargs:
                self._note(argument, kwargs[argument.name])
        given = {storage(tensor) for tensor in tensors((args, kwargs))}
        result = operation(*args, **kwargs)
        fresh = [tensor for tensor in tensors(result) if storage(tensor) not in given]
        self.own |= {storage(tensor) for tensor in fresh}
        if fresh or operation._schema.is_mutable:  # else it only made views, which stay
            self.operations.append((operation, args, kwargs, result))  # the tape keeps all memory alive
        return result

    def _note(self, argument, value) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in tensors(value):
            if storage(tensor) not in self.own | set(self.before):
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self.before[storage(tensor)] = (whole, whole.clone())


class OpRecorder:
    """As ``CudaRecorder``, for any function on the CPU."""

    made = []  # all of them, for tests to look at

    def __init__(self, device: torch.device):
        self.tape, self.warm_ups, self.replays = None, 0, 0
        OpRecorder.made.append(self)

    def warm_up(self, function):
        self.warm_ups += 1
        return function()

    def rehearse(self, function):
        return self.warm_up(function), ""

    def record(self, function):
        random = torch.get_rng_state()
        self.tape = _Tape()
        with contextlib.ExitStack() as stack:
            for name in HOST_METHODS:
                stack.callback(setattr, torch.Tensor, name, getattr(torch.Tensor, name))
                setattr(torch.Tensor, name, _refuse(name))
            stack.enter_context(self.tape)
            output = function()
        torch.set_rng_state(random)
        for whole, content in self.tape.before.values():  # a recording carries nothing out
            whole.copy_(content)
        return output

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for operation, args, kwargs, recorded in self.tape.operations:
            for old, new in zip(tensors(recorded), tensors(operation(*args, **kwargs)), strict=True):
                if storage(old) != storage(new):
                    old.copy_(new)


def _refuse(name):
    def refuse(*_, **__):
        raise RuntimeError(f"operation not permitted when stream is capturing: Tensor.{name}")

    return refuse
