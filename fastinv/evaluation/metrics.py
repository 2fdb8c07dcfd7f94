"""How much two pictures differ, and two sets of features: one small function for each metric.

Pictures are [N, 3, H, W] in [-1, 1] and clamped to it; the results are one number for each pair, [N]. Mean squared
error, PSNR and SSIM are `fastinv.losses.mse`, ``psnr`` and ``ssim``; LPIPS is `fastinv.losses.LPIPS`.
"""

import torch

from fastinv.data.faces import NAMES
from fastinv.errors import UsageError
from fastinv.losses import MSSSIMLoss


@torch.no_grad()
def ms_ssim(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Structural similarity over several scales (Wang, Simoncelli, Bovik 2003), 1 for equal pictures.

    ``prod_j mean(cs_j)^w_j * mean(l_M cs_M)^w_M`` over up to five scales, each of half the size of the one before, for
    each colour; mean over the colours. How many scales there are, and what becomes of negative means, says
    `fastinv.losses.MSSSIMLoss`.

    Args:
        images, target: [N, 3, H, W] in [-1, 1], clamped, at least 11 pixels a side.

    Returns:
        [N], in float32 at least.

    Raises:
        UsageError: the shapes differ, or are too small.
    """
    return 1 - MSSSIMLoss(target.clamp(-1, 1))(images.clamp(-1, 1))


def identity_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of two embeddings, ``<a, b> / (|a| |b|)``: 1 is the same person (Deng et al. 2019, arXiv 1801.07698).

    Args:
        a, b: [N, d] of a recognition network.

    Returns:
        [N] in [-1, 1], float64.
    """
    _check_rows(a, b)
    return torch.cosine_similarity(a.double(), b.double())


def attribute_change(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How far attributes are apart: ``mean_k |a_k - b_k|`` of standardised attributes, 0 is all preserved.

    Args:
        a, b: [N, attributes], in standard deviations, as a network's ``standardised`` gives them.

    Returns:
        [N], float64.
    """
    _check_rows(a, b)
    return (a.double() - b.double()).abs().mean(1)


def attribute_errors(network, images: torch.Tensor, attributes: dict[str, torch.Tensor]) -> torch.Tensor:
    """|read from a picture - true| / standard deviation.

    Args:
        network: the attribute network.
        images: [N, 3, H, W] in [-1, 1].
        attributes: the truth, {name: [N]} for each of ``faces.NAMES``.

    Returns:
        [N, attributes], in the order of ``faces.NAMES``.
    """
    read = network(images)
    stds = dict(zip(NAMES, network.stds, strict=True))
    return torch.stack([(read[name] - attributes[name]).abs() / stds[name] for name in NAMES], dim=1)


def _check_rows(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise UsageError(f"two [N, d] of the same shape are needed, not {list(a.shape)} and {list(b.shape)}")
