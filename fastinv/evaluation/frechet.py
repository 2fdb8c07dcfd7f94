"""Fréchet distance between two sets of features (Heusel et al. 2017, arXiv 1706.08500)."""

import torch

from fastinv.errors import UsageError


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """``|mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2))`` of Gaussians fitted to features.

    Args:
        a, b: features [N, d] and [M, d]; N and M well above d, or the covariances are singular and the distance is
            biased upwards.

    Returns:
        The distance, >= 0 up to rounding, computed in float64; covariances are the unbiased ones.

    Raises:
        UsageError: not two matrices of the same width with two rows at least.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UsageError(f"features must be [N, d] and [M, d] with N, M >= 2, not {list(a.shape)} and {list(b.shape)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    # C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), so its root's trace needs no matrix root of
    # an unsymmetric matrix.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    trace = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace)
