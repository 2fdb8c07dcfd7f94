"""In which arithmetic the generator runs during an inversion: as the caller says or, for "auto", by time to quality."""

import statistics
import time

import torch

from fastinv.devices import DTYPES
from fastinv.errors import UsageError
from fastinv.ops.frozen_conv import obstacle

# Optimisation steps to the loss that float32 has after 300, relative to float32: median of 20 held-out portraits,
# benchmarks/losses.py (0.96 for bfloat16, so no more). float16 keeps three more bits than bfloat16; for want of a
# measurement it counts the same.
STEPS_TO_QUALITY = {torch.float32: 1.0, torch.bfloat16: 1.0, torch.float16: 1.0}
REPEATS = 3  # timed steps of each candidate, after one that is not


def check_dtype(G, dtype) -> torch.dtype | str | None:
    """A torch dtype, "auto" or None from what a caller gave, which may also be a dtype's name.

    Raises:
        UsageError: an unknown name, or a generator that cannot be prepared for another arithmetic.
    """
    if isinstance(dtype, str) and dtype != "auto":
        dtype = DTYPES.get(dtype, dtype)
    if dtype not in (None, "auto", *DTYPES.values()):
        raise UsageError(f"dtype must be auto, None or one of {', '.join(DTYPES)}, not {dtype!r}")
    if dtype is not None and not hasattr(G, "prepare"):
        raise UsageError(f"dtype={dtype!r}: a {type(G).__name__} has no prepare(dtype); leave dtype out")
    return dtype


def prepare(G, dtype: torch.dtype | str | None, target: torch.Tensor, steps: int = 1):
    """The prepared generator for pictures like `target` [N, 3, R, R], and {"dtype", "why_dtype"} for the settings.

    "auto" times a step of each candidate here (synthesis and squared error) and multiplies it by the steps that the
    candidate needs to the same quality. The candidates are the generator's own dtype and, for a float32 one, bfloat16
    on a CPU that computes in it, float16 on a GPU. Without ``steps`` there is nothing to gain: its own is taken.
    """
    own = G.w_avg.dtype
    if not hasattr(G, "prepare"):
        return G, {"dtype": _name(own), "why_dtype": "the generator's own"}
    if dtype != "auto":
        why = "the generator's own" if dtype is None else "as asked for"
        return G.prepare(dtype), {"dtype": _name(dtype or own), "why_dtype": why}
    kind = target.device.type
    low = torch.bfloat16 if kind == "cpu" else torch.float16
    if steps == 0:
        why = "nothing is optimised"
    elif own != torch.float32:
        why = f"the generator is {_name(own)}"
    else:
        why = obstacle(low) if kind == "cpu" else ""
    if why:
        return G.prepare(), {"dtype": _name(own), "why_dtype": f"auto: {why}"}
    seconds, P = {}, None
    for candidate in (own, low):
        P = None  # two prepared generators may not fit into memory
        P = G.prepare(candidate)
        seconds[candidate] = _seconds_of_step(P, target)
    needed = {candidate: seconds[candidate] * STEPS_TO_QUALITY[candidate] for candidate in seconds}
    best = min(needed, key=needed.get)
    if best != candidate:
        P = None
        P = G.prepare(best)
    other = own if best == low else low
    factor = STEPS_TO_QUALITY[low] / STEPS_TO_QUALITY[own]
    why = (
        f"auto: a step takes {seconds[best]:.3g} s, in {_name(other)} {seconds[other]:.3g} s; {_name(low)} needs "
        f"{factor:.3g} times the steps of {_name(own)} for the same loss"
    )
    return P, {"dtype": _name(best), "why_dtype": why}


def _seconds_of_step(P, target: torch.Tensor) -> float:
    w_plus = P.w_avg.to(target).expand(len(target), P.num_ws, -1).clone().requires_grad_()

    def wait():
        if target.is_cuda:
            torch.cuda.synchronize(target.device)

    times = []
    with torch.enable_grad():
        for _ in range(REPEATS + 1):
            wait()
            started = time.perf_counter()
            loss = (P.synthesis(w_plus).to(target.dtype) - target).square().mean()
            torch.autograd.grad(loss, w_plus)
            wait()
            times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
