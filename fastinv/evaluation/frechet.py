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
    means = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))  # so that a^T a is the covariance
    total = a.square().sum() + b.square().sum()  # of the traces of the covariances
    return float(means + total - 2 * _trace_of_root(a, b))


def _trace_of_root(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """trace((C_a C_b)^(1/2)) of C_a = a^T a and C_b = b^T b."""
    if min(len(a), len(b)) <= a.shape[1]:
        # C_a C_b has the nonzero eigenvalues of (a b^T)(a b^T)^T: few pictures of many features take a small matrix.
        return torch.linalg.svdvals(a @ b.T).sum()
    # They are also those of the symmetric C_a^(1/2) C_b C_a^(1/2): no root of an unsymmetric matrix is needed.
    values, vectors = torch.linalg.eigh(a.T @ a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return torch.linalg.eigvalsh(root @ (b.T @ b) @ root).clamp_min(0).sqrt().sum()
