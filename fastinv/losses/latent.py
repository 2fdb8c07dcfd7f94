"""Priors on latent codes. They are called with the codes that a space renders: ``prior(codes) -> [N]``.

Codes are a dict with "w_plus" [N, num_ws, w_dim], or "styles" [N, S] in its place (see ``fastinv.inversion.spaces``).
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fastinv.devices import one_thread
from fastinv.errors import UsageError
from fastinv.latents import times
from fastinv.losses.base import Loss, frozen, mean_per_picture

SLOPE = 5.0  # inverse of the last activation of the mapping network, leaky ReLU of slope 0.2
BATCH = 1000  # latents that are mapped at a time


class MeanDistance(Loss):
    """Distance of codes to their mean: ``mean |w - w_mean|^p`` over style inputs and dimensions.

    p = 1 is the L1 penalty of pbaylies' stylegan-encoder, p = 2 the mean square.

    Args:
        mean: [w_dim], [num_ws, w_dim], or with key="styles" [S].
        p: 1 or 2.
        key: which of the codes, "w_plus" or "styles".

    Raises:
        UsageError: another p.
    """

    def __init__(self, mean: torch.Tensor, p: int = 1, key: str = "w_plus"):
        if p not in (1, 2):
            raise UsageError(f"MeanDistance takes p=1 (absolute) or p=2 (square), not {p!r}")
        self.mean, self.p, self.key = mean, p, key

    def __call__(self, codes: dict) -> torch.Tensor:
        """Codes of N pictures -> [N]. UsageError: the codes lack ``key``, or are of another width than the mean."""
        w = _code(codes, self.key)
        if w.shape[-1] != self.mean.shape[-1]:
            raise UsageError(f"MeanDistance: codes {list(w.shape)} do not fit a mean {list(self.mean.shape)}")
        difference = w - self.mean
        difference = difference if difference.ndim > 2 else difference.unsqueeze(1)
        return mean_per_picture(difference.abs() if self.p == 1 else difference.square())


@dataclass(frozen=True)
class PNormStatistics:
    """What W looks like where the last activation of the mapping network is undone (float64).

    Attributes:
        mean: [w_dim].
        directions: [w_dim, w_dim], an orthonormal principal direction in each row, by falling spread.
        std: [w_dim], standard deviation along each direction.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    std: torch.Tensor


@torch.no_grad()
def pnorm_statistics(G, samples: int = 100_000, seed: int = 0, floor: float = 0.01) -> PNormStatistics:
    """Statistics of ``leaky_relu(w, 5)`` over mapped random latents, by an exact eigendecomposition in float64.

    Zhu et al. 2020 (II2S, arXiv 2012.09036), which has them from an incremental PCA of a million samples. The same
    seed gives the same latents on every device; a conditional generator gets labels drawn uniformly from its classes.
    On the CPU the bits do not depend on the number of threads.

    Args:
        G: the generator.
        samples: mapped latents, at least 2.
        seed: of the latents.
        floor: smallest standard deviation, relative to the largest. Codes between two latents leave the thin
            directions of W at once, and would be at a distance of thousands of standard deviations: the mean latent of
            faces64 has a P-norm of 2400 with floor=0, which is the paper's, of 7 with the default.

    Raises:
        UsageError: fewer than two samples, or a floor outside [0, 1].
    """
    if samples < 2:
        raise UsageError(f"statistics of W need at least 2 samples, not {samples}")
    if not 0 <= floor <= 1:
        raise UsageError(f"floor must be in [0, 1], not {floor}")
    random = torch.Generator().manual_seed(seed)
    device, width = G.w_avg.device, G.w_dim
    total, products = torch.zeros(width, dtype=torch.float64, device=device), 0
    shift = functional.leaky_relu(G.w_avg.detach().double(), SLOPE)  # near the mean, so that no digits cancel
    for first in range(0, samples, BATCH):
        z = torch.randn(min(BATCH, samples - first), G.z_dim, generator=random)
        label = None
        if G.c_dim:
            classes = torch.randint(G.c_dim, (len(z),), generator=random)
            label = functional.one_hot(classes, G.c_dim).float().to(device)
        x = functional.leaky_relu(G.mapping(z.to(device), label)[:, 0].double(), SLOPE) - shift
        with one_thread():
            total, products = total + x.sum(0), products + x.T @ x
    mean = total / samples
    with one_thread():
        variances, directions = torch.linalg.eigh(products / samples - torch.outer(mean, mean))
    std = variances.flip(0).clamp(min=0).sqrt()
    return PNormStatistics(mean + shift, directions.T.flip(0).contiguous(), std.clamp(min=floor * std[0]))


class PNorm(Loss):
    """P-norm+ of codes: ``mean v^2`` over style inputs and dimensions, ``v = (leaky_relu(w, 5) - mean) C^T / std``.

    Zhu et al. 2020 (II2S): in the space of v the latents of the generator are near a standard normal distribution, so
    that they have a mean of about 1 and what is far from them more.

    Args:
        statistics: of the generator, see ``pnorm_statistics``.

    Raises:
        UsageError: all standard deviations are 0.
    """

    def __init__(self, statistics: PNormStatistics):
        if not statistics.std.min() > 0:
            raise UsageError("P-norm needs standard deviations above 0: here all latents are mapped to the same w")
        self.mean = statistics.mean
        self.whitening = (statistics.directions / statistics.std.unsqueeze(1)).T.contiguous()

    def __call__(self, codes: dict) -> torch.Tensor:
        """Codes of N pictures -> [N]. UsageError: the codes have no w_plus, or one of another width."""
        w = _code(codes, "w_plus")
        if w.shape[-1] != len(self.mean):
            raise UsageError(f"P-norm: codes {list(w.shape)} do not fit statistics of {len(self.mean)} dimensions")
        v = times(functional.leaky_relu(w, SLOPE) - self.mean.to(w), self.whitening.to(w))
        return mean_per_picture(v.square())


class DomainLoss(Loss):
    """``mean (w - E(G(w)))^2`` over style inputs and dimensions: a code should be what an encoder sees in its picture.

    The domain regularisation of IDInvert (Zhu et al. 2020, arXiv 2004.00049), whose weight is 2. The gradient goes to
    the code both directly and through the picture.

    Args:
        encoder: has ``encode(images) -> w_plus``; it is not changed, and used in eval mode.

    Raises:
        UsageError: it has no ``encode``.
    """

    def __init__(self, encoder: nn.Module):
        if not isinstance(encoder, nn.Module) or not callable(getattr(encoder, "encode", None)):
            raise UsageError(f"an encoder has a method encode(images); {type(encoder).__name__} has none")
        self.encoder = frozen(encoder)

    def __call__(self, images: torch.Tensor, codes: dict) -> torch.Tensor:
        """Pictures [N, 3, R, R] and their codes -> [N]. UsageError: the codes have no w_plus, or of another shape."""
        w = _code(codes, "w_plus")
        read = self.encoder.encode(images).to(w.dtype)
        if read.shape != w.shape:
            raise UsageError(f"the encoder gives codes {list(read.shape)}, the generator takes {list(w.shape)}")
        return mean_per_picture((w - read).square())


def _code(codes: dict, key: str) -> torch.Tensor:
    if key not in codes:
        raise UsageError(f"this prior looks at {key!r}; the codes here have {', '.join(codes) or 'nothing'}")
    return codes[key]
