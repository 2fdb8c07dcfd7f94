"""Editing of codes: directions, style mixing, interpolation, semantic diffusion, and local edits."""

from fastinv.editing.apply import edit
from fastinv.editing.blend import blend
from fastinv.editing.diffuse import diffuse
from fastinv.editing.direction import Direction, find_direction, find_directions, load_directions, save_directions
from fastinv.editing.interpolate import interpolate
from fastinv.editing.mix import mix

__all__ = [
    "Direction", "blend", "diffuse", "edit", "find_direction", "find_directions", "interpolate", "load_directions",
    "mix", "save_directions",
]  # fmt: skip
