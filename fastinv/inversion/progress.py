"""Progress of an optimisation: a bar with loss, PSNR and time left on a terminal, about ten plain lines elsewhere."""

import sys
import time

import torch

from fastinv.losses import psnr


class Progress:
    """Shows an optimisation of ``steps`` updates towards ``target`` [N, 3, R, R]; use it in a ``with`` block.

    Args:
        label: what runs, in front of every line.
        steps: updates to come.
        target: for the PSNR; means over the pictures are shown.
        stream: where to write; None is standard error.
    """

    interval = 0.2  # seconds between two refreshes of the bar: reading a number makes a GPU wait

    def __init__(self, label: str, steps: int, target: torch.Tensor, stream=None):
        self.label, self.steps, self.target = label, steps, target
        self.stream = stream or sys.stderr
        self.bar, self.task = None, None
        self.started = self.shown = 0.0

    def __enter__(self):
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}")]
            self.bar = Bar(*columns, TimeRemainingColumn(), console=Console(file=self.stream))
            self.task = self.bar.add_task(self.label, total=self.steps, numbers="")
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, total: torch.Tensor, images: torch.Tensor) -> None:
        """After ``step`` updates: total loss [N] and pictures [N, 3, R, R] (NaN for pictures that have left)."""
        now = time.monotonic()
        if step == 0:
            self.started = now
        if self.bar is not None:
            due = now - self.shown >= self.interval or step in (0, self.steps)
        else:
            due = step in (0, self.steps) or step * 10 // self.steps > (step - 1) * 10 // self.steps
        if not due:
            return
        self.shown = now
        numbers = f"loss {total.nanmean().item():.4g}  PSNR {psnr(images, self.target).nanmean().item():.2f} dB"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, numbers=numbers)
            return
        elapsed = now - self.started
        left = f"  {elapsed / step * (self.steps - step):.0f} s left" if 0 < step < self.steps else ""
        print(f"{self.label} {step}/{self.steps}  {numbers}{left}", file=self.stream, flush=True)
