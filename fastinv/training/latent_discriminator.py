"""Discriminators of latent codes: e4e's, with its pool of older codes, and ALAE's."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinv.models.layers import FullyConnected


class LatentDiscriminator(nn.Module):
    """e4e's: w [..., w_dim] -> logits [...], larger for more like a mapped latent. Four layers, leaky ReLU of 0.2."""

    def __init__(self, w_dim: int, hidden: int | None = None, layers: int = 4):
        super().__init__()
        widths = [w_dim] + [hidden or w_dim] * (layers - 1)
        parts = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            parts += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*parts, nn.Linear(widths[-1], 1))

    def forward(self, w: Tensor) -> Tensor:
        return self.layers(w).squeeze(-1)


class LinearDiscriminator(nn.Module):
    """ALAE's: w [N, w_dim] -> logits [N], three equalised layers without activations between them."""

    def __init__(self, w_dim: int, lr_multiplier: float = 0.1):
        super().__init__()
        self.layers = nn.Sequential(
            *(FullyConnected(w_dim, out, lr_multiplier=lr_multiplier) for out in (w_dim, w_dim, 1))
        )

    def forward(self, w: Tensor) -> Tensor:
        return self.layers(w).squeeze(1)


class CodePool:
    """A few older codes, so that a discriminator does not forget what the encoder did before (Shrivastava et al. 2017,
    arXiv 1612.07828).

    Until ``size`` codes are in it, codes are kept and handed back. Then, with probability one half, a stored code is
    handed back and the new one takes its place, else the new one is handed back.

    Attributes:
        codes: [n, w_dim], n up to ``size``.
    """

    def __init__(self, size: int):
        self.size, self.codes = size, torch.zeros(0, 0)

    def exchange(self, w: Tensor) -> Tensor:
        """Codes [N, w_dim] -> codes [N, w_dim] for the discriminator; draws from torch's random numbers."""
        if self.size == 0:
            return w
        stored = list(self.codes.to(w).unbind(0))
        chosen = []
        for code in w.detach():
            if len(stored) < self.size:
                stored.append(code)
                chosen.append(code)
            elif torch.rand(()) < 0.5:
                place = int(torch.randint(self.size, ()))
                chosen.append(stored[place])
                stored[place] = code
            else:
                chosen.append(code)
        self.codes = torch.stack(stored) if stored else self.codes
        return torch.stack(chosen) if chosen else w


def logistic(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of a discriminator from its logits (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1_penalty(discriminator, real: Tensor) -> Tensor:
    """Mean over real examples [N, ...] of the squared norm of the gradient of D (Mescheder et al. 2018)."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()
