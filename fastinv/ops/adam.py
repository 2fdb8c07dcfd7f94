"""The end of an optimisation step in two passes: note the losses, then update a variable with Adam.

Both work in place and take every number that changes from step to step from tensors, so that a CUDA graph of a step can
be replayed. ``clock`` [2] holds the row of the current page (of losses and of learning rates) and the updates done.
"""

from __future__ import annotations

import torch

from . import _dispatch


def adam_record(
    total: torch.Tensor,
    values: torch.Tensor,
    clock: torch.Tensor,
    curves: torch.Tensor,
    lowest: torch.Tensor,
    best_step: torch.Tensor,
    bad_step: torch.Tensor,
    better: torch.Tensor,
    last: bool,
    impl: str = "auto",
) -> None:
    """Advance the clock by one evaluation and note its losses.

    Args:
        total: loss of each picture [N].
        values: its terms [terms, N].
        clock: [2], int64; both numbers are raised by 1 first: they are -1 more than what the first evaluation is.
        curves: [page, 1 + terms, N]; its row ``clock[0]`` becomes (total, values).
        lowest, best_step: [N], the lowest total so far, and the updates done when it was reached.
        bad_step: [N], int64, the updates done when the total was not finite for the first time; -1 before.
        better: [N], bool, becomes: is the total lower than ``lowest``? With ``last``: is it finite?
        last: every finite total counts as better.
        impl: "auto", "native" (an error says why if it cannot) or "ref".
    """
    if _how("adam_record", impl, total, (values, curves, lowest)) == "ref":
        return adam_record_ref(total, values, clock, curves, lowest, best_step, bad_step, better, last)
    torch.ops.fastinv.adam_record(total, values, clock, curves, lowest, best_step, bad_step, better, last)


def adam_record_ref(total, values, clock, curves, lowest, best_step, bad_step, better, last) -> None:
    """`adam_record` in plain PyTorch."""
    row, done = clock.add_(1).split(1)
    curves.index_copy_(0, row, torch.cat([total[None], values])[None])
    finite = (total - total) == 0  # infinity and NaN give NaN; isfinite is four operations
    if last:
        better.copy_(finite)
    else:
        torch.lt(total, lowest, out=better)
    torch.where(better, total, lowest, out=lowest)
    torch.where(better, done, best_step, out=best_step)
    torch.where(finite | (bad_step >= 0), bad_step, done, out=bad_step)


def adam_step(
    variable: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    best: torch.Tensor,
    better: torch.Tensor,
    coefficients: torch.Tensor,
    clock: torch.Tensor,
    column: int,
    betas: tuple[float, float],
    eps: float,
    impl: str = "auto",
) -> None:
    """Keep the rows that got better, then update them all (Kingma and Ba 2015, algorithm 1)::

        best[better] = variable[better]
        mean += (1 - beta1) (gradient - mean);  square += (1 - beta2) (gradient^2 - square)
        variable += rate * mean / (sqrt(square / correction) + eps)

    Args:
        variable, gradient, mean, square, best: of one shape [N, ...].
        better: [N], bool.
        coefficients: [page, columns]; in row ``clock[0]``, ``rate`` (negative, with the correction of the mean in it)
            is in the given column and ``correction`` (of the square) in the last one.
        clock: [2], int64.
        betas, eps: Adam's.
        impl: "auto", "native" (an error says why if it cannot) or "ref".
    """
    if _how("adam_step", impl, variable, (mean, square, best, coefficients)) == "ref":
        return adam_step_ref(
            variable, gradient, mean, square, best, better, coefficients, clock, column, betas, eps
        )  # fmt: skip
    torch.ops.fastinv.adam_step(
        variable, gradient, mean, square, best, better, coefficients, clock, column, *betas, eps
    )


def adam_step_ref(variable, gradient, mean, square, best, better, coefficients, clock, column, betas, eps) -> None:
    """`adam_step` in plain PyTorch."""
    beta1, beta2 = betas
    torch.where(better.view(-1, *[1] * (variable.ndim - 1)), variable, best, out=best)
    numbers = coefficients.index_select(0, clock[:1])
    mean.lerp_(gradient, 1 - beta1)
    square.lerp_(gradient.square(), 1 - beta2)
    scale = (square / numbers[0, -1]).sqrt_().add_(eps)
    variable.addcdiv_(mean * numbers[0, column], scale)


def _how(op: str, impl: str, x: torch.Tensor, companions: tuple[torch.Tensor, ...]) -> str:
    if impl == "auto" and x.device.type == "cpu":
        return "ref"  # by design: a step on the CPU is long
    fits = x.dtype in (torch.float32, torch.float64) and x.is_contiguous()
    fits = fits and all(other.dtype == x.dtype and other.is_contiguous() for other in companions)
    return _dispatch.choose(op, impl, x, (fits, "tensors are not all float32 or all float64, or not contiguous"))


if "adam_step" in _dispatch.KERNELS:  # not so without the library, or with an older build of it
    torch.library.register_fake("fastinv::adam_step", lambda *_: None)
    torch.library.register_fake("fastinv::adam_record", lambda *_: None)
