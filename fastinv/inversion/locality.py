"""The locality regulariser of pivotal tuning (Roich et al. 2021, section 3.3): what is not the pivot stays as it is."""

import torch

from fastinv.errors import UsageError
from fastinv.latents import mean_latent, truncate
from fastinv.losses import PixelLoss, load_perceptual
from fastinv.losses.base import Loss

TRUNCATION = 0.5  # of the random latents


class Locality(Loss):
    """``L_R = lambda_L2 ||G(w_r; theta) - G(w_r; theta_0)||^2 / N + lambda_P LPIPS(G(w_r; theta), G(w_r; theta_0))``

    at ``w_r = w_p + alpha (w - w_p) / ||w - w_p||`` (for each style input), with w_p the pivot, theta_0 the weights of
    the generator, without noise. w is the mapping of another random z in each step, truncated by one half.

    Args:
        method: has ``steps`` and the options ``locality_*``.
        task: has ``G``, ``seed``, which the random z depend on alone, and ``target``.
        network: ``network.having(weights).synthesis`` makes pictures; those of theta_0 for no weights.

    Raises:
        UsageError: a conditional generator: the labels of its random latents are not known.
    """

    def __init__(self, method, task, network):
        G, like = task.G, task.target
        if getattr(G, "c_dim", 0):
            raise UsageError("locality needs an unconditional generator; leave it out")
        self.network, self.interval, self.alpha = network, method.locality_interval, method.locality_alpha
        self.pixel, self.lpips = method.locality_pixel, method.locality_lpips
        random = torch.Generator().manual_seed(task.seed)
        z = torch.randn(method.steps // self.interval + 1, G.z_dim, generator=random).to(like)
        with torch.no_grad():
            w_plus = G.mapping(z.to(G.w_avg.dtype))
            self.w_plus = truncate(w_plus, mean_latent(G), TRUNCATION).to(like)
        self.distance = load_perceptual("auto", like[:1])[0] if self.lpips else None

    def __call__(self, codes: dict) -> torch.Tensor:
        """{"w_plus": pivot [1, num_ws, w_dim], "weights": {...}, "step": updates done [1]} -> [1]."""
        pivot, step = codes["w_plus"], codes["step"]
        if self.interval > 1 and int(step) % self.interval:
            return pivot.new_zeros(1)
        direction = self.w_plus.index_select(0, step // self.interval) - pivot
        w_plus = pivot + self.alpha * direction / direction.norm(dim=2, keepdim=True).clamp(min=1e-8)
        with torch.no_grad():
            before = self.network.having({}).synthesis(w_plus, noise="none").to(pivot.dtype)
        after = self.network.having(codes["weights"]).synthesis(w_plus, noise="none").to(pivot.dtype)
        value = self.pixel * PixelLoss(before)(after)
        return value if self.distance is None else value + self.lpips * self.distance.towards(before)(after)
