"""Adam whose rows can be taken apart, for batches that pictures leave.

``torch.optim.Adam`` computes the same, but constructing it imports torch's compiler: over a second, longer than a short
inversion on a GPU.
"""

import torch


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) over named variables, each with its own learning rate.

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
        self.betas, self.eps, self.steps = betas, eps, 0
        self.mean = {name: torch.zeros_like(value) for name, value in variables.items()}
        self.square = {name: torch.zeros_like(value) for name, value in variables.items()}

    @torch.no_grad()
    def step(self, gradients: dict[str, torch.Tensor], factor: float = 1.0) -> None:
        """One update with gradients of the variables' shapes; ``factor`` scales every learning rate."""
        self.steps += 1
        beta1, beta2 = self.betas
        mean_correction, square_correction = 1 - beta1**self.steps, 1 - beta2**self.steps
        for name, value in self.variables.items():
            gradient = gradients[name]
            mean = self.mean[name].lerp_(gradient, 1 - beta1)
            square = self.square[name].lerp_(gradient.square(), 1 - beta2)
            scale = (square / square_correction).sqrt_().add_(self.eps)
            # A larger factor than the dtype holds would be an error of torch; as it is, the loss becomes infinite.
            rate = min(factor * self.rates[name] / mean_correction, torch.finfo(value.dtype).max)
            value.addcdiv_(mean, scale, value=-rate)

    def select(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Go on with some rows only, rows [M]; returns the new variables."""
        self.variables = {name: value.detach()[rows].requires_grad_() for name, value in self.variables.items()}
        self.mean = {name: value[rows] for name, value in self.mean.items()}
        self.square = {name: value[rows] for name, value in self.square.items()}
        return self.variables
