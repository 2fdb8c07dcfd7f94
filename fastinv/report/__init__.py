"""Pictures for people: target beside reconstruction with the metrics, and grids of pictures."""

from fastinv.report.comparison import comparison
from fastinv.report.grid import grid

__all__ = ["comparison", "grid"]
