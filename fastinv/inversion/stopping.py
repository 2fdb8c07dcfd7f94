"""When a picture is finished before its steps are done: its loss is low enough, or no longer falls."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Stopping:
    """Per-picture stopping.

    Attributes:
        loss: a picture is finished when its total loss has reached this; None for never.
        patience: a picture is finished when its lowest total loss has fallen by less than ``plateau`` (relative) over
            so many steps; None for never.
        plateau: relative fall of the loss that still counts as progress.
        terms: a picture is finished when a term has reached the (weighted) value that stands here under its name.
    """

    loss: float | None = None
    patience: int | None = None
    plateau: float = 0.01
    terms: dict[str, float] = field(default_factory=dict)

    def watch(self, count: int) -> "Watch":
        """A watch over ``count`` pictures."""
        return Watch(self, count)


class Watch:
    """Remembers the lowest losses of all pictures, and says which are finished.

    It looks every few steps only, because reading a loss waits for the device. What it says of a picture depends on
    that picture's losses alone.
    """

    def __init__(self, rule: Stopping, count: int):
        self.rule = rule
        self.seen: list[tuple[int, torch.Tensor]] = []  # step, lowest loss of each picture so far
        self.lowest = torch.full((count,), torch.inf, dtype=torch.float64)

    def look(
        self, step: int, rows: torch.Tensor, lowest: torch.Tensor, losses: dict[str, torch.Tensor]
    ) -> dict[int, str]:
        """Which pictures are finished: picture -> why.

        Args:
            step: updates done.
            rows: the pictures that are left, [M].
            lowest: their lowest total losses so far, [M].
            losses: their losses now, name -> [M].
        """
        rows = rows.cpu()
        self.lowest[rows] = lowest.detach().to("cpu", torch.float64)
        reasons = self._note(step, rows.tolist())
        for name, limit in self.rule.terms.items():
            for row, value in zip(rows.tolist(), losses[name].tolist(), strict=True):
                if value <= limit:
                    reasons.setdefault(row, f"{name} reached")
        return reasons

    def replay(self, totals: torch.Tensor, every: int) -> None:
        """See again what was seen before an interruption: totals [steps, N], NaN for pictures that had left."""
        lowest = totals.double().nan_to_num(nan=torch.inf, posinf=torch.inf).cummin(0).values
        for step in range(0, len(lowest), every):
            self.lowest = lowest[step].clone()
            self._note(step, [])

    def _note(self, step: int, rows: list[int]) -> dict[int, str]:
        self.seen.append((step, self.lowest.clone()))
        patience, reasons = self.rule.patience, {}
        if patience is not None:
            while len(self.seen) > 1 and self.seen[1][0] <= step - patience:
                self.seen.pop(0)
        before_step, before = self.seen[0]
        for row in rows:
            now = float(self.lowest[row])
            if self.rule.loss is not None and now <= self.rule.loss:
                reasons[row] = "loss reached"
            elif patience is not None and before_step <= step - patience:
                if float(before[row]) - now < self.rule.plateau * float(before[row]):
                    reasons[row] = "no more progress"
        return reasons
