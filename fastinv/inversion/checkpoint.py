"""Where an optimisation keeps its state, so that a killed one goes on and ends with the same bits.

``invert(..., checkpoints=Checkpoints(folder))``: every stage of the method has two files there, never both for long,

    stage-<n>.state.safetensors   what ``loop.optimize`` needs to go on, written every so many seconds
    stage-<n>.trace.safetensors   what a finished stage left behind, whole

The folder belongs to one call of ``invert``: the same pictures, arguments and generator. The caller removes it.
"""

import time
from pathlib import Path

import torch

from fastinv.errors import CheckpointError
from fastinv.files import load_tensors, save_tensors
from fastinv.inversion.loop import Trace

STATE, TRACE = "state of an optimisation", "trace of an optimisation"  # kinds of file
SHARE = 20  # between two saves lies at least so many times the time that one takes


class Checkpoints:
    """The states of one call of ``invert``; called with the number of a stage, it gives that stage's ``Checkpoint``.

    Args:
        folder: where they are kept; made when it is needed.
        seconds: between two saves, at least. When they happen changes no bit of the result.
    """

    def __init__(self, folder: str | Path, seconds: float = 30.0):
        self.folder, self.seconds = Path(folder), seconds

    def __call__(self, stage: int) -> "Checkpoint":
        return Checkpoint(self.folder, stage, self.seconds)


class Checkpoint:
    """The state of one stage, as ``loop.optimize`` and ``Task.optimize`` want it.

    Args:
        folder, seconds: as for ``Checkpoints``.
        stage: its number.
    """

    def __init__(self, folder: Path, stage: int, seconds: float):
        self.state, self.trace = (folder / f"stage-{stage}.{kind}.safetensors" for kind in ("state", "trace"))
        self.interval, self.saved = seconds, time.monotonic()
        self.seconds = seconds

    def load(self) -> dict[str, torch.Tensor] | None:
        """The state that was saved last, on the CPU; None if there is none.

        Raises:
            CheckpointError: a damaged file.
        """
        return _read(self.state, STATE)[0] if self.state.exists() else None

    def due(self) -> bool:
        """Whether to save now."""
        return time.monotonic() - self.saved >= self.interval

    def save(self, state: dict[str, torch.Tensor]) -> None:
        """Put a state in the place of the last one, atomically.

        Raises:
            UsageError: it cannot be written.
        """
        started = time.monotonic()
        self.state.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(self.state, state, STATE, {})
        self.saved = time.monotonic()
        self.interval = max(self.seconds, SHARE * (self.saved - started))

    def finished(self, device: torch.device | str = "cpu") -> Trace | None:
        """What the stage left behind, bit by bit, its variables on a device; None if it is not finished.

        Raises:
            CheckpointError: a damaged file.
        """
        if not self.trace.exists():
            return None
        tensors, facts = _read(self.trace, TRACE)
        return Trace(
            {name: tensors[f"variable/{name}"].to(device, copy=True) for name in facts["variables"]},
            {name: tensors[f"loss/{name}"] for name in facts["losses"]},
            tensors["best_step"],
            facts["steps"],
            facts["stopped"],
            dict(facts["failed"]),
            {row: (done, why) for row, done, why in facts["finished"]},
            facts["captured"],
            facts["why_eager"],
        )

    def finish(self, trace: Trace) -> None:
        """Store what the stage left behind, and remove its state.

        Raises:
            UsageError: it cannot be written.
        """
        tensors = {f"variable/{name}": value for name, value in trace.variables.items()}
        tensors |= {f"loss/{name}": value for name, value in trace.losses.items()}
        facts = {
            "variables": list(trace.variables), "losses": list(trace.losses), "steps": trace.steps,
            "stopped": trace.stopped, "failed": list(trace.failed.items()),
            "finished": [(row, done, why) for row, (done, why) in trace.finished.items()],
            "captured": trace.captured, "why_eager": trace.why_eager,
        }  # fmt: skip
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(self.trace, tensors | {"best_step": trace.best_step}, TRACE, facts)
        self.state.unlink(missing_ok=True)


def _read(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict]:
    try:
        return load_tensors(path, kind)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove it, and the work of this stage begins again") from error
