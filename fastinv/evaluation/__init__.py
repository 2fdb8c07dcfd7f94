"""How good a reconstruction or a set of pictures is, and how well its codes can be edited."""

from fastinv.evaluation.editability import attribute_directions, edit_scores, latent_editing_consistency
from fastinv.evaluation.frechet import frechet_distance

__all__ = ["attribute_directions", "edit_scores", "frechet_distance", "latent_editing_consistency"]
