"""Structural similarity, as a metric (SSIM) and over several scales as a loss (MS-SSIM).

SSIM (Wang, Bovik, Sheikh, Simoncelli 2004) compares two pictures through their means, variances and covariance in a
Gaussian window of 11x11 pixels with standard deviation 1.5:

    luminance l = (2 mx my + C1) / (mx^2 + my^2 + C1)          C1 = (0.01 L)^2
    structure s = (2 vxy + C2) / (vx + vy + C2)                C2 = (0.03 L)^2
    SSIM = l s

at every place where the window lies inside the picture. Pictures in [-1, 1] are taken as (x + 1) / 2 with L = 1, which
gives the numbers of 8-bit pictures with L = 255. Under a mask the moments are weighted by it (mean = blur(M x) /
blur(M)), so that hidden pixels have no say in what is measured beside them, and the map of similarities is, too.

Computed are 1 - l = (mx - my)^2 / (...) and 1 - s = v(x - y) / (vx + vy + C2), which are the same and keep their digits
where pictures are nearly equal.
"""

import functools

import torch
from torch.nn import functional

from fastinv.losses.base import Loss, check_target, mean_per_picture, wide
from fastinv.ops import upfirdn2d

WINDOW, DEVIATION = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, fine to coarse
# A mean structure term may be negative, which has no power, and the derivative of the power is infinite at 0.
SMALLEST_TERM = 1e-3


class MSSSIMLoss(Loss):
    """``1 - MS-SSIM`` (Wang, Simoncelli, Bovik 2003), 0 for equal pictures, mean over the colours.

    MS-SSIM is the product over five scales, each of half the size of the one before (mean of 2x2 pixels), of the mean
    structure term to the power of the scale's weight; the coarsest has the luminance term, too. Pictures that are too
    small for the window at the coarser scales (of 160 pixels a side and less) have fewer scales, with the weights
    divided by their sum: 3 scales from 41 pixels on, 1 from 11 to 20. Mean terms below 0.001 count as 0.001.

    With a mask the dissimilarities 1 - s are multiplied by it and the mean stays over the whole map, at each scale.

    Args:
        target: [N, 3, R, R] in [-1, 1], R of at least 11.
        mask: soft mask [N, 1, R, R] in [0, 1], or None.

    Raises:
        UsageError: target or mask have another shape, or the target is too small for the window.
    """

    per_picture = ("targets", "moments", "masks")

    def __init__(self, target: torch.Tensor, mask: torch.Tensor | None = None):
        check_target("MS-SSIM", target, mask, WINDOW)
        y, scales = wide(target) / 2, scale_count(min(target.shape[2:]))
        mask = None if mask is None else mask.to(y.dtype)
        total = sum(SCALE_WEIGHTS[:scales])
        self.weights = tuple(weight / total for weight in SCALE_WEIGHTS[:scales])
        self.targets, self.moments = [], []  # at each scale: half the picture; its local mean and variance in one
        self.masks = None if mask is None else []
        with torch.no_grad():
            for scale in range(scales):
                if scale:
                    y, mask = _halved(y, mask), None if mask is None else _halved(mask)
                self.targets.append(y)
                self.moments.append(torch.cat(_moments(y, mask), dim=1))
                if mask is not None:
                    self.masks.append(mask)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> [N], in float32 at least."""
        x, similarity = wide(images) / 2, 1
        for scale, (y, moments, weight) in enumerate(zip(self.targets, self.moments, self.weights, strict=True)):
            mask = None if self.masks is None else self.masks[scale]
            if scale:
                x = _halved(x, None if self.masks is None else self.masks[scale - 1])
            luminance, structure = _dissimilarities(x, y, mask, moments.chunk(2, dim=1))
            last = scale == len(self.weights) - 1
            different = luminance + structure - luminance * structure if last else structure  # 1 - l s, or 1 - s
            if mask is not None:
                different = different * _inside(mask)
            mean = 1 - different.flatten(2).sum(2) / different.shape[2:].numel()  # [N, 3]
            similarity = similarity * mean.clamp(min=SMALLEST_TERM) ** weight
        return 1 - similarity.mean(1)


def scale_count(side: int) -> int:
    """Scales at which a picture of ``side`` pixels is at least as large as the window."""
    count = 0
    while count < len(SCALE_WEIGHTS) and side >= WINDOW:
        count, side = count + 1, -(-side // 2)
    return count


@torch.no_grad()
def ssim(images: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Structural similarity of pictures clamped to [-1, 1] in float32 at least, 1 for equal ones: two [N, 3, R, R]
    -> [N].

    With a mask [N, 1, R, R] it is the weighted mean over the pixels that count; NaN if those are all within five pixels
    of the edge, where no window fits.

    Raises:
        UsageError: target or mask have another shape, or the target is too small for the window.
    """
    check_target("ssim", target, mask, WINDOW)
    x, y = (wide(picture).clamp(-1, 1) / 2 for picture in (images, target))
    mask = None if mask is None else mask.to(y.dtype)
    luminance, structure = _dissimilarities(x, y, mask, _moments(y, mask))
    similarity = (1 - luminance) * (1 - structure)
    if mask is None:
        return mean_per_picture(similarity)
    weights = _inside(mask)
    return mean_per_picture(similarity * weights) / mean_per_picture(weights)


def _dissimilarities(x, y, mask, moments_of_y):
    """1 - l and 1 - s at every place, of halves of pictures in [-1, 1]: [N, 3, H, W] -> two [N, 3, H - 10, W - 10]."""
    (mean_x, variance_x), (mean_y, variance_y) = _moments(x, mask), moments_of_y
    shift = mean_x - mean_y
    luminance = shift.square() / ((mean_x + 0.5).square() + (mean_y + 0.5).square() + C1)
    structure = (_local_mean((x - y).square(), mask) - shift.square()) / (variance_x + variance_y + C2)
    return luminance, structure


def _moments(x, mask):
    """Means and variances in the window at every place."""
    mean = _local_mean(x, mask)
    return mean, _local_mean(x.square(), mask) - mean.square()


def _local_mean(x, mask):
    return _blur(x) if mask is None else _blur(x * mask) / _positive(_blur(mask))


def _blur(x):
    """Weighted mean in the window: [N, C, H, W] -> [N, C, H - 10, W - 10]."""
    return upfirdn2d(x, _window(x.device))


@functools.cache
def _window(device) -> torch.Tensor:
    """The taps of the window along one axis, in float32; kept, because a CUDA graph cannot copy to the device."""
    with torch.inference_mode(False):
        places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
        taps = torch.exp(-places.square() / (2 * DEVIATION**2))
        return (taps / taps.sum()).float().to(device)


def _inside(mask):
    """A mask where the window lies inside the picture."""
    return mask[..., WINDOW // 2 : -(WINDOW // 2), WINDOW // 2 : -(WINDOW // 2)]


def _halved(x, mask=None):
    """Mean of the visible pixels among 2x2 (fewer at the edges of odd sizes)."""
    if mask is None:
        return functional.avg_pool2d(x, 2, ceil_mode=True)
    return _halved(x * mask) / _positive(_halved(mask))


def _positive(weights):
    """Where all is hidden, 0 / tiny is 0; what is made of that has no weight."""
    return weights.clamp(min=torch.finfo(weights.dtype).tiny)
