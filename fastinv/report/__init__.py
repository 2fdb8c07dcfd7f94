"""Pictures for people: target beside reconstruction with the metrics, and grids of pictures."""

from fastinv.data.grid import grid
from fastinv.report.comparison import comparison

__all__ = ["comparison", "grid"]
