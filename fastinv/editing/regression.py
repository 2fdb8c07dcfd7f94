"""Directions by linear regression of codes on attributes."""

import torch

from fastinv.checkpoints import network_hash
from fastinv.editing.direction import Direction
from fastinv.editing.samples import Samples, read_samples
from fastinv.errors import UsageError

STRENGTH = 1.5


def attribute_directions(G, network, samples: int = 4000, seed: int = 0) -> torch.Tensor:
    """Directions in W that change one attribute and leave the others: ``regressed`` of an attribute network's readings.

    Args:
        G: a generator.
        network: with ``standardised(pictures [N, 3, R, R]) -> [N, attributes]``: mean 0 and deviation 1 over its data.
        samples: codes that are looked at.
        seed: of the codes.

    Returns:
        [attributes, w_dim], for one standard deviation each.

    Raises:
        UsageError: fewer than twice as many samples as attributes.
    """
    return regressed(read_samples(G, network, samples, seed)).to(G.w_avg)


def regressed(samples: Samples) -> torch.Tensor:
    """The displacements [K, w_dim], float64, of a regression of codes on attributes.

    The mean code of pictures with attributes a is taken to be mean + sum_k a_k d_k, so that d_k is what to add to a
    code for one more standard deviation of attribute k, the others being equal.

    Raises:
        UsageError: fewer than twice as many samples as attributes.
    """
    count, attributes = samples.scores.shape
    if count < 2 * attributes:
        raise UsageError(f"directions of {attributes} attributes need {2 * attributes} samples, not {count}")
    known = torch.cat([torch.ones_like(samples.scores[:, :1]), samples.scores], dim=1)
    return torch.linalg.lstsq(known, samples.w).solution[1:]


def regression(G, samples: Samples, layers: tuple[int, int | None] = (0, None)) -> list[Direction]:
    """One direction of W for each attribute of the samples, named by it; strength 1 is one standard deviation of it.

    Args:
        G: the generator of the samples.
        samples: of ``read_samples`` or ``given_samples``.
        layers: style inputs that the directions act on.
    """
    sha256, facts = network_hash(G), {"samples": len(samples.w)}
    return [
        Direction(name, "w", vector.float(), layers, STRENGTH, "regression", sha256, {"attribute": name, **facts})
        for name, vector in zip(samples.names, regressed(samples), strict=True)
    ]
