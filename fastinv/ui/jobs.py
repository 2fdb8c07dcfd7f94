"""One queue of long work: one job at a time, the others wait with their place; each can be cancelled."""

import logging
import threading
from collections import deque
from collections.abc import Callable

from fastinv.errors import FastinvError, UsageError

LONGEST = 20  # jobs that may wait
_logger = logging.getLogger("fastinv.ui")


class Job:
    """Work for the queue.

    Attributes:
        state: "waiting", "running", "done", "failed" or "cancelled".
        latest: what the work has shown last; it sets this whenever there is news, and readers look when they like.
        result: what the work returned, once it is "done", or "cancelled" while it ran; else None.
        error: one line for people, once it has "failed".
        cancelled: whether it is to stop; the work looks at this between its steps.
    """

    def __init__(self, queue: "Queue", work: Callable[["Job"], object]):
        self._queue, self._work, self._ended = queue, work, threading.Event()
        self.state, self.latest, self.result, self.error, self.cancelled = "waiting", None, None, None, False

    @property
    def place(self) -> int:
        """How many jobs come before this one; 0 for one that runs or has ended."""
        return self._queue._place(self)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; whether it came in time."""
        return self._ended.wait(seconds)

    def cancel(self) -> None:
        """Leave the queue, or have the work stop at its next step. Nothing happens to a job that has ended."""
        self.cancelled = True
        if self._queue._leave(self):
            self._end("cancelled")

    def _run(self) -> None:
        if self.cancelled:  # just as it was taken out of the queue
            return self._end("cancelled")
        self.state, state = "running", "failed"
        try:
            self.result = self._work(self)
            state = "cancelled" if self.cancelled else "done"
        except FastinvError as error:
            self.error = str(error)
        except Exception as error:  # a job must not end the queue; whoever runs the server gets the traceback
            _logger.exception("a job failed")
            self.error = unexpected(error)
        self._end(state)

    def _end(self, state: str) -> None:
        self.state, self._work = state, None
        self._ended.set()


class Queue:
    """Runs jobs one after the other in a thread of its own.

    Args:
        longest: how many may wait.
    """

    def __init__(self, longest: int = LONGEST):
        self._longest, self._waiting, self._running, self._closed = longest, deque(), None, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="fastinv-ui-jobs", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job], object]) -> Job:
        """Put work behind all other; it is called with its Job.

        Raises:
            UsageError: too many are waiting, or the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise UsageError("the server is stopping")
            if len(self._waiting) >= self._longest:
                raise UsageError(f"{len(self._waiting)} pictures are waiting already; try again later")
            job = Job(self, work)
            self._waiting.append(job)
            self._changed.notify()
        return job

    def close(self, seconds: float = 10.0) -> None:
        """Cancel all jobs and wait for the one that runs, at most so long. The queue takes no more."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify()
        for job in jobs:
            job.cancel()
        self._thread.join(seconds)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._running = self._waiting.popleft()
            self._running._run()
            with self._changed:
                self._running = None

    def _place(self, job: Job) -> int:
        with self._changed:
            before = int(self._running is not None)
            return self._waiting.index(job) + before if job in self._waiting else 0

    def _leave(self, job: Job) -> bool:
        """Take a job out; False if it does not wait."""
        with self._changed:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True


def unexpected(error: Exception) -> str:
    """One line for an error that no user is to blame for."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; take a smaller network"
    first = (str(error).splitlines() or [""])[0]
    return f"unexpected {type(error).__name__}: {first}; please report it"
