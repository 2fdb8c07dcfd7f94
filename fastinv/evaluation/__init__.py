"""How good a reconstruction or a set of pictures is."""

from fastinv.evaluation.frechet import frechet_distance

__all__ = ["frechet_distance"]
