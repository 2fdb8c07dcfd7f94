"""Data: the procedural portraits (faces) and pictures from files (pictures)."""

from fastinv.data import faces

__all__ = ["faces"]
