"""Runs one function again and again: records its work on the device once and replays that, or calls it and says why."""

import contextlib
import threading
import warnings
from collections.abc import Callable

import torch

from fastinv.errors import UsageError

WARM_UP = 3  # real runs before the recording: kernels are loaded, algorithms chosen, workspaces and caches filled
WORTH = 20  # from so many runs on a recording pays: it costs about as much as ten launched one by one
_one_recording = threading.Lock()  # torch records one graph at a time; its debug mode is for all threads


class CudaRecorder:
    """Records a function's work on a CUDA device as a CUDA graph.

    Everything but the recording itself is ordered with the current stream, as if the function ran there.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)  # a recording needs a stream that is not the default one
        self.graph = None

    def warm_up(self, function: Callable) -> torch.Tensor:
        """Run the function on the stream that will record it."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            output = function()
        current.wait_stream(self.stream)
        return output

    def rehearse(self, function: Callable) -> tuple[torch.Tensor, str]:
        """``warm_up``, and what in it made the host wait for the device ("" for nothing): that cannot be recorded.

        A recording that breaks can leave torch's allocator and generator in disorder; so it is better not begun.
        """
        waits, thread = [], threading.get_ident()

        def note(message, category, filename, line, *_):  # other threads may wait as they like
            if "called a synchronizing" in str(message) and threading.get_ident() == thread:
                waits.append(f"the step waits for the device at {filename}:{line}")

        with _one_recording, warnings.catch_warnings():
            before = torch.cuda.get_sync_debug_mode()
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                output = self.warm_up(function)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        return output, waits[0] if waits else ""

    def record(self, function: Callable) -> torch.Tensor:
        """Record the function without carrying it out. Its output is overwritten by every ``replay``.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        with _one_recording, torch.cuda.device(self.device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what the warm-up used: the recording gets memory of its own
            self.graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            try:
                with torch.cuda.stream(self.stream):
                    # Other threads may go on using the device meanwhile ("global" would make that an error).
                    self.graph.capture_begin(pool, capture_error_mode="thread_local")
                    try:
                        output = function()
                    except BaseException:
                        with contextlib.suppress(RuntimeError):  # it says no more than that the recording is broken
                            self.graph.capture_end()
                        raise
                    self.graph.capture_end()
            except BaseException:
                self._tidy_up(pool)
                raise
        return output

    def _tidy_up(self, pool) -> None:
        """After a broken recording, close what it leaves open in torch: its memory pool, and the generator's state."""
        index = self.device.index
        try:
            torch._C._cuda_endAllocateToPool(index, pool)
        except RuntimeError:  # it is closed: the recording broke in Python, and ended well
            self.graph = None
            return
        torch._C._cuda_releasePool(index, pool)
        self.graph = None
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())  # a new state, which is not being recorded

    def replay(self) -> None:
        """Do the recorded work, on the current stream."""
        self.graph.replay()


# By type of device; what cannot record is not listed.
RECORDERS = {"cuda": CudaRecorder}


def check_graph(graph: str | bool, device: torch.device) -> str:
    """Why nothing will be recorded for this option on this device; "" if it can be tried.

    Raises:
        UsageError: graph is not "auto", True or False, or it is True and the device does not record.
    """
    if not (isinstance(graph, bool) or graph == "auto"):
        raise UsageError(f"graph must be 'auto', True or False, not {graph!r}")
    if graph is False:
        return "graph is False"
    if device.type in RECORDERS:
        return ""
    why = f"steps are recorded on {', '.join(RECORDERS)}, not on {device.type}"
    if graph is True:
        raise UsageError(f"graph=True, but {why}; use graph='auto' or False")
    return why


class Repeater:
    """Runs a function many times: WARM_UP times as it is, then by replaying a recording of its work on the device.

    The function takes nothing and returns one tensor. All that changes between two runs must be in tensors, which it
    reads and writes in place: its Python code is not run by a replay.

    Args:
        function: what to run.
        device: where it works.
        graph: "auto" records where that works and pays; True records, or is an error that says why not; False does not.
        runs: how often it will be run at most.

    Attributes:
        captured: whether any run was a replay.
        why_eager: why the runs after the warm-up were not all replays; "" if they were.

    Raises:
        UsageError: graph is something else, or it is True and the device or the function cannot be recorded.
    """

    def __init__(self, function: Callable[[], torch.Tensor], device: torch.device, graph: str | bool, runs: int):
        self.function, self.device, self.graph = function, device, graph
        self.captured, self.why_eager = False, check_graph(graph, device)
        self.restart(runs)

    def restart(self, runs: int) -> None:
        """Forget the recording: the function's tensors are others now. It will be run so many times more."""
        self.recorder, self.output, self.warm = None, None, 0
        if self.why_eager:
            return
        least = WORTH if self.graph == "auto" else WARM_UP + 1
        if runs < least:
            self.why_eager = f"{runs} steps are too few: steps are recorded from {least} on"
            return
        self.recorder = RECORDERS[self.device.type](self.device)

    def __call__(self) -> torch.Tensor:
        """One run. The output of a replay is overwritten by the next one."""
        if self.recorder is None:
            return self.function()
        if self.warm < WARM_UP:
            self.warm += 1
            if self.warm < WARM_UP:
                return self.recorder.warm_up(self.function)
            output, waits = self.recorder.rehearse(self.function)
            if waits:
                self._give_up(waits)
            return output
        if self.output is None:
            try:
                self.output = self.recorder.record(self.function)
            except RuntimeError as error:
                self._give_up(f"the step cannot be recorded: {str(error).splitlines()[0]}", error)
                return self.function()
        self.recorder.replay()
        self.captured = True
        return self.output

    def _give_up(self, why: str, error: Exception | None = None) -> None:
        if self.graph is True:
            raise UsageError(f"graph=True, but {why}; use graph='auto' or False") from error
        self.why_eager, self.recorder = why, None
