"""Pictures for people: target beside reconstruction with the metrics, grids of pictures, a page of all results."""

from fastinv.data.grid import grid
from fastinv.report.comparison import comparison
from fastinv.report.page import report

__all__ = ["comparison", "grid", "report"]
