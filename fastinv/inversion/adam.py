"""Adam with its numbers in a table on the device, and rows that can be taken apart, for batches that pictures leave.

``torch.optim.Adam`` computes the same, but constructing it imports torch's compiler: over a second, longer than a short
inversion on a GPU.
"""

import functools

import torch

from fastinv.ops.adam import adam_step


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) over named variables, each with its own learning rate.

    What else changes from update to update (learning rate, corrections of the running means) is read from a tensor, so
    that a recorded update can be replayed: ``coefficients`` makes a table of it for ``step``.

    Args:
        variables: name -> tensor [N, ...] that requires a gradient; ``step`` changes it in place.
        learning_rate: one for all, or name -> value.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the square root.
    """

    def __init__(
        self,
        variables: dict[str, torch.Tensor],
        learning_rate: float | dict[str, float],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.variables = variables
        self.rates = learning_rate if isinstance(learning_rate, dict) else dict.fromkeys(variables, learning_rate)
        self.betas, self.eps = betas, eps
        self.mean = {name: torch.zeros_like(value) for name, value in variables.items()}
        self.square = {name: torch.zeros_like(value) for name, value in variables.items()}

    def coefficients(self, first: int, factors: list[float]) -> torch.Tensor:
        """Rows for ``step``, [len(factors), variables + 1], on the CPU.

        Args:
            first: the updates done before the one that the first row is for.
            factors: of each update, on every learning rate.
        """
        beta1, beta2 = self.betas
        rows = []
        for step, factor in enumerate(factors, start=first + 1):
            mean_correction, square_correction = 1 - beta1**step, 1 - beta2**step
            # A larger factor than the dtype holds would be an error of torch; as it is, the loss becomes infinite.
            rates = [
                -min(factor * self.rates[name] / mean_correction, torch.finfo(value.dtype).max)
                for name, value in self.variables.items()
            ]
            rows.append([*rates, square_correction])
        dtype = functools.reduce(torch.promote_types, [value.dtype for value in self.variables.values()])
        return torch.tensor(rows, dtype=dtype).view(len(rows), len(self.variables) + 1)

    @torch.no_grad()
    def step(
        self,
        gradients: tuple[torch.Tensor, ...],
        coefficients: torch.Tensor,
        clock: torch.Tensor,
        best: dict[str, torch.Tensor],
        better: torch.Tensor,
    ) -> None:
        """One update of all variables.

        Args:
            gradients: in the order and the shapes of the variables.
            coefficients: the table, on the variables' device; ``clock[0]`` is the row to take.
            best: name -> tensor that takes over the rows of ``better`` [N] before the update.
        """
        for column, (name, value) in enumerate(self.variables.items()):
            adam_step(
                value, gradients[column], self.mean[name], self.square[name], best[name], better,
                coefficients, clock, column, self.betas, self.eps,
            )  # fmt: skip

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some rows only, rows [M]; ``variables`` are new tensors then."""
        self.variables = {name: value.detach()[rows].requires_grad_() for name, value in self.variables.items()}
        self.mean = {name: value[rows] for name, value in self.mean.items()}
        self.square = {name: value[rows] for name, value in self.square.items()}
