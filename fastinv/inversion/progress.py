"""Progress of an optimisation: a bar with loss, PSNR and time left on a terminal, about ten plain lines elsewhere."""

import sys
import time

import torch

from fastinv.losses import psnr, resize_mask


class Progress:
    """Shows the stages of an optimisation towards ``target`` [N, 3, R, R]; use it in a ``with`` block.

    Args:
        target: for the PSNR; means over the pictures are shown.
        stream: where to write; None is standard error.
    """

    interval = 0.2  # seconds between two refreshes of the bar: reading a number makes a GPU wait

    def __init__(self, target: torch.Tensor, stream=None):
        self.target = target
        self.stream = stream or sys.stderr
        self.label, self.steps = "", 0
        self.bar, self.task = None, None
        self.started = self.shown = 0.0
        self.first: int | None = None  # updates that were done when this stage began, or went on

    def __enter__(self):
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = ["{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}")]
            self.bar = Bar(*columns, TimeRemainingColumn(), console=Console(file=self.stream))
            self.bar.start()
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.stop()

    def begin(self, label: str, steps: int) -> None:
        """A stage of ``steps`` updates; label stands in front of its lines."""
        self.label, self.steps, self.first = label, steps, None
        if self.bar is not None:
            self.task = self.bar.add_task(label, total=steps, numbers="")

    def update(self, step: int, total: torch.Tensor, images: torch.Tensor) -> None:
        """After ``step`` updates: total loss [N] and pictures [N, 3, R, R] (NaN for pictures that have left)."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.started = step, now
        if self.bar is not None:
            due = now - self.shown >= self.interval or step in (self.first, self.steps)
        else:
            due = step in (self.first, self.steps) or step * 10 // self.steps > (step - 1) * 10 // self.steps
        if not due:
            return
        self.shown = now
        target = resize_mask(self.target, images.shape[-2:])
        numbers = f"loss {total.nanmean().item():.4g}  PSNR {psnr(images, target).nanmean().item():.2f} dB"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, numbers=numbers)
            return
        here, elapsed = step - self.first, now - self.started
        left = f"  {elapsed / here * (self.steps - step):.0f} s left" if here and step < self.steps else ""
        print(f"{self.label} {step}/{self.steps}  {numbers}{left}", file=self.stream, flush=True)
