"""What keeps optimised noise maps noise: Karras et al. 2020 (StyleGAN2), appendix D."""

import torch
from torch.nn import functional

from fastinv.errors import UsageError
from fastinv.losses.base import Loss, mean_per_picture

SMALLEST_LEVEL = 8  # pixels a side, of the pyramid of a noise map


class NoiseRegularizer(Loss):
    """Sum over noise maps and levels of ``mean(n * right(n))^2 + mean(n * down(n))^2``: n shifted by one, circularly.

    Neighbouring pixels of noise are not correlated, at any scale: the levels of a map's pyramid are means over 2x2
    pixels of the one before, until the side is at most 8. The StyleGAN2 projector gives it a weight of 1e5.
    """

    def __call__(self, codes: dict) -> torch.Tensor:
        """codes["noise"], layer -> map [N, 1, r, r], -> [N]. UsageError: the codes have no noise maps."""
        if not codes.get("noise"):
            raise UsageError("the noise regulariser needs noise maps in the codes: use space w+noise or noise=optimize")
        total = 0
        for level in codes["noise"].values():
            while True:
                for axis in (2, 3):
                    total = total + mean_per_picture(level * level.roll(1, axis)).square()
                if min(level.shape[2:]) <= SMALLEST_LEVEL:
                    break
                level = functional.avg_pool2d(level, 2)
        return total


@torch.no_grad()
def normalize_noise(maps: dict[str, torch.Tensor]) -> None:
    """Bring every noise map [N, 1, r, r] to mean 0 and mean square 1, in place, per picture; constant ones become 0."""
    for noise in maps.values():
        noise -= mean_per_picture(noise).view(-1, 1, 1, 1)
        noise *= mean_per_picture(noise.square()).clamp(min=torch.finfo(noise.dtype).tiny).rsqrt().view(-1, 1, 1, 1)
