"""Latent spaces of a generator: Z (Gaussian noise), W (mapped, one vector) and W+ (one vector per style input).

Shapes: z [N, z_dim], w [N, w_dim] (or [N, 1, w_dim]), w_plus [N, num_ws, w_dim].
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from fastinv.errors import CheckpointError, UsageError
from fastinv.files import load_tensors, save_tensors, shown

SPACES = ("z", "w", "w+")
KIND = "latent code"  # of a file


@dataclass(frozen=True)
class WStatistics:
    """First and second moments of W, measured on mapped samples (float32, on the generator's device).

    Attributes:
        mean: [w_dim], the mean latent.
        std: [w_dim], standard deviation of each coordinate.
        radius: root mean square distance of a sample from the mean, ``sqrt(sum(std ** 2))``: the StyleGAN2 projector's
            ``w_std``.
    """

    mean: torch.Tensor
    std: torch.Tensor
    radius: float


@torch.no_grad()
def w_statistics(G, samples: int = 10_000, seed: int = 0, batch: int = 1000) -> WStatistics:
    """Mean and spread of W over random latents (Karras et al. 2020, appendix D, uses 10,000).

    The same seed gives the same latents on every device. A conditional generator gets labels drawn uniformly from its
    classes.

    Raises:
        UsageError: fewer than two samples.
    """
    if samples < 2:
        raise UsageError(f"statistics of W need at least 2 samples, not {samples}")
    w = mapped_samples(G, samples, seed, batch)
    std, mean = torch.std_mean(w, dim=0, correction=0)
    return WStatistics(mean.float(), std.float(), std.square().sum().sqrt().item())


@torch.no_grad()
def mapped_samples(G, samples: int, seed: int = 0, batch: int = 1000) -> torch.Tensor:
    """w of random latents, float64 [samples, w_dim] (the first style input's, where a mapping gives several).

    The same seed gives the same latents on every device. A conditional generator gets labels drawn uniformly from its
    classes, by a random sequence of their own: more samples begin with the same ones.
    """
    random = torch.Generator().manual_seed(seed)
    device = G.w_avg.device
    z = torch.randn(samples, G.z_dim, generator=random).to(device).split(batch)
    labels = [None] * len(z)
    if G.c_dim:
        own = torch.Generator().manual_seed(seed + 1)
        classes = torch.randint(G.c_dim, (samples,), generator=own).to(device)
        labels = torch.nn.functional.one_hot(classes, G.c_dim).float().split(batch)
    return torch.cat([G.mapping(part, label)[:, 0].double() for part, label in zip(z, labels, strict=True)])


def mean_latent(G) -> torch.Tensor:
    """The generator's average w [w_dim]: the one tracked in training, or measured where there is none (all zero)."""
    tracked = G.w_avg.detach()
    return tracked if tracked.any() else w_statistics(G).mean.to(tracked.dtype)


def truncate(w: torch.Tensor, mean: torch.Tensor, psi: float, cutoff: int | None = None) -> torch.Tensor:
    """Truncation trick: ``mean + psi * (w - mean)``, on the first ``cutoff`` style inputs only if that is given.

    Args:
        w: [N, w_dim] or [N, L, w_dim].
        mean: [w_dim].
        psi: 1 leaves w alone, 0 gives the mean.
        cutoff: number of leading style inputs to truncate (w must be [N, L, w_dim]); None truncates all.
    """
    truncated = mean + psi * (w - mean)
    if cutoff is None:
        return truncated
    if w.ndim != 3:
        raise UsageError(f"a truncation cutoff needs w+ codes [N, num_ws, w_dim], not {list(w.shape)}")
    return torch.cat([truncated[:, :cutoff], w[:, cutoff:]], dim=1)


def expand(w: torch.Tensor, num_ws: int) -> torch.Tensor:
    """One vector per style input: [N, w_dim], [N, 1, w_dim] or [N, num_ws, w_dim] -> [N, num_ws, w_dim] (a view)."""
    wide = w.unsqueeze(1) if w.ndim == 2 else w
    if wide.ndim != 3 or wide.shape[1] not in (1, num_ws):
        raise UsageError(f"w must be [N, w_dim], [N, 1, w_dim] or [N, {num_ws}, w_dim], not {list(w.shape)}")
    return wide.expand(-1, num_ws, -1)


def times(w: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``w @ matrix`` of vectors [N, L, w_dim] and [w_dim, M]; on a CPU the bits do not depend on the number of threads.

    Those of a product of 3 to 16 rows do, with MKL; so each row of a few is a product by itself.
    """
    rows = w.flatten(0, 1)
    if w.device.type != "cpu" or len(rows) > 32:
        return w @ matrix
    return torch.bmm(rows.unsqueeze(1), matrix.expand(len(rows), -1, -1)).view(*w.shape[:2], -1)


def to_w_plus(G, latent: torch.Tensor, space: str) -> torch.Tensor:
    """Convert a code of any space ("z", "w" or "w+") to w_plus [N, num_ws, w_dim].

    Raises:
        UsageError: unknown space, or a shape that does not belong to it.
    """
    if space not in SPACES:
        raise UsageError(f"unknown latent space {space!r}; known are {', '.join(SPACES)}")
    if space == "z":
        return G.mapping(latent)
    if space == "w+" and latent.shape[1:] != (G.num_ws, G.w_dim):
        raise UsageError(f"a w+ code must have shape [N, {G.num_ws}, {G.w_dim}], not {list(latent.shape)}")
    return expand(latent, G.num_ws)


def save_latent(path: str | Path, w_plus: torch.Tensor, facts: dict | None = None, codes: dict | None = None) -> None:
    """Write codes w_plus [N, num_ws, w_dim] and JSON-serialisable facts as safetensors; complete or not at all.

    ``codes`` are further tensors [N, ...] by name, such as style channels or noise maps. Equal codes and facts give
    equal bytes.
    """
    save_tensors(path, {"w_plus": w_plus, **(codes or {})}, KIND, facts or {})


def load_latent(path: str | Path) -> torch.Tensor:
    """Read codes w_plus [N, num_ws, w_dim] that ``save_latent`` wrote; errors as for ``load_codes``."""
    return load_codes(path)["w_plus"]


def load_codes(path: str | Path) -> dict[str, torch.Tensor]:
    """Read all that ``save_latent`` wrote: {"w_plus": [N, num_ws, w_dim], ...}.

    Raises:
        FileNotFoundError: no such file. CheckpointError: damaged, or not a latent file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(2, "no such file", str(path))
    tensors, _ = load_tensors(path, KIND)
    if "w_plus" not in tensors or tensors["w_plus"].ndim != 3:
        raise CheckpointError(f"{shown(path)} holds no w_plus of shape [N, num_ws, w_dim]; the file is damaged")
    # The bits of a product depend on where its operands lie in memory; in a file they lie anywhere.
    return {name: value.clone() for name, value in tensors.items()}
