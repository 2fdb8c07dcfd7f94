"""Sliced Wasserstein distance between two sets of pictures (Karras et al. 2018, arXiv 1710.10196, section 5).

Each picture becomes a Laplacian pyramid (Burt and Adelson 1983), down to 16 pixels. At each level 7x7 patches are drawn
at random, normalised by mean and standard deviation of each colour over the set, and the two sets of patches are
compared through the Wasserstein distances of their projections onto random directions (Rabin et al. 2011). Small
distances at 16 pixels say that the large shapes are alike, at the highest level that the textures are.
"""

import torch
from torch.nn import functional

from fastinv.errors import UsageError

PATCH, PATCHES, DIRECTIONS = 7, 128, 512  # pixels a side; of each picture and level; projections
SMALLEST = 16  # pixels a side of the last level
SCALE = 1e3  # distances are given in thousandths, as in the paper


def sliced_wasserstein(a: torch.Tensor, b: torch.Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    """``mean over directions u, |u| = 1, of W1(<a, u>, <b, u>)``; W1 of two equally large samples on a line is the mean
    distance of the sorted ones.

    Args:
        a, b: [N, d] and [M, d]. Of the larger set N or M rows are drawn.
        directions: number of random directions, equally distributed on the sphere.
        seed: of directions and draws.

    Returns:
        The distance, computed in float64 from sums over sorted float32 or wider values.

    Raises:
        UsageError: no two matrices of the same width with a row at least, or no direction.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not min(len(a), len(b)):
        raise UsageError(f"samples must be [N, d] and [M, d] with N, M >= 1, not {list(a.shape)} and {list(b.shape)}")
    if directions < 1:
        raise UsageError(f"at least one direction is needed, not {directions}")
    random = torch.Generator().manual_seed(seed)
    count = min(len(a), len(b))
    a, b = (x if len(x) == count else x[torch.randperm(len(x), generator=random)[:count].to(x.device)] for x in (a, b))
    units = torch.randn(directions, a.shape[1], generator=random, dtype=torch.float64)
    units = (units / units.norm(dim=1, keepdim=True)).to(a)
    total = 0.0
    for part in units.split(64):  # so that the projections of millions of patches fit into memory
        apart = (part @ a.T).sort(dim=1).values - (part @ b.T).sort(dim=1).values
        total += float(apart.abs().double().mean(1).sum())
    return total / directions


def laplacian_pyramid(images: torch.Tensor, smallest: int = SMALLEST) -> list[torch.Tensor]:
    """Each level is the picture minus what its half-sized version says of it; the last one is what is left.

    Args:
        images: [N, C, H, W].
        smallest: pixels; levels end before a side would become smaller.

    Returns:
        [N, C, H, W], [N, C, ceil(H / 2), ceil(W / 2)] ...; ``collapse`` of them are the pictures.
    """
    levels, x = [], images
    while min(-(-side // 2) for side in x.shape[2:]) >= smallest:
        half = _smooth(x)[..., ::2, ::2]
        levels.append(x - _enlarged(half, x.shape[2:]))
        x = half
    return [*levels, x]


def collapse(levels: list[torch.Tensor]) -> torch.Tensor:
    """The pictures of a Laplacian pyramid."""
    x = levels[-1]
    for level in reversed(levels[:-1]):
        x = level + _enlarged(x, level.shape[2:])
    return x


def pyramid_patches(images: torch.Tensor, seed: int = 0) -> dict[int, torch.Tensor]:
    """Random patches of each level of the pyramid.

    Args:
        images: [N, 3, H, W], at least 16 pixels a side.
        seed: of their places.

    Returns:
        Pixels a side of the level -> [N * 128, 3, 7, 7].

    Raises:
        UsageError: pictures of another shape.
    """
    if images.ndim != 4 or min(images.shape[2:]) < SMALLEST:
        raise UsageError(f"pictures must be [N, 3, H, W], at least {SMALLEST} pixels a side, not {list(images.shape)}")
    random, found = torch.Generator().manual_seed(seed), {}
    for level in laplacian_pyramid(images):
        count, channels, height, width = level.shape
        rows = torch.randint(height - PATCH + 1, (count, PATCHES, 1, 1), generator=random)
        columns = torch.randint(width - PATCH + 1, (count, PATCHES, 1, 1), generator=random)
        inside = torch.arange(PATCH)
        places = (rows + inside[:, None]) * width + columns + inside  # [N, patches, 7, 7]
        places = places.flatten(1).unsqueeze(1).expand(-1, channels, -1).to(level.device)
        patches = level.flatten(2).gather(2, places).unflatten(2, (PATCHES, PATCH, PATCH))
        found[min(height, width)] = patches.transpose(1, 2).flatten(0, 1)
    return found


def patch_distances(
    a: dict[int, torch.Tensor], b: dict[int, torch.Tensor], directions: int = DIRECTIONS, seed: int = 0
) -> dict[int, float]:
    """Distances of patches of two sets of pictures, see ``pyramid_patches``: level -> distance times 1000.

    Raises:
        UsageError: the sets have other levels.
    """
    if a.keys() != b.keys():
        raise UsageError(f"the pictures have levels of {list(a)} and of {list(b)} pixels; bring them to one size")
    return {
        level: SCALE * sliced_wasserstein(_normalised(a[level]), _normalised(b[level]), directions, seed) for level in a
    }


def swd(a: torch.Tensor, b: torch.Tensor, directions: int = DIRECTIONS, seed: int = 0) -> dict[int, float]:
    """Sliced Wasserstein distances of pictures [N, 3, H, W] and [M, 3, H, W]: pixels of the level -> distance x 1000.

    The patches of both sets lie at the same places, so that equal sets are at distance 0.
    """
    return patch_distances(pyramid_patches(a, seed), pyramid_patches(b, seed), directions, seed)


def _normalised(patches: torch.Tensor) -> torch.Tensor:
    """[K, C, 7, 7] -> [K, C * 49], of mean 0 and deviation 1 in each colour; a flat colour stays 0."""
    std, mean = torch.std_mean(patches.double(), dim=(0, 2, 3), correction=0, keepdim=True)
    return ((patches - mean.to(patches)) / std.clamp_min(1e-12).to(patches)).flatten(1)


def _smooth(x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Filtered by the binomial taps (1, 4, 6, 4, 1) / 16 along both axes; the edges are mirrored."""
    taps = x.new_tensor([1, 4, 6, 4, 1]) / 16 * gain**0.5
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, -1, -1)
    return functional.conv2d(functional.pad(x, [2, 2, 2, 2], mode="reflect"), kernel, groups=x.shape[1])


def _enlarged(x: torch.Tensor, size) -> torch.Tensor:
    """To twice the size (or one pixel less): zeros between the pixels, then filtered."""
    wide = x.new_zeros(*x.shape[:2], *size)
    wide[..., ::2, ::2] = x
    return _smooth(wide, gain=4.0)
