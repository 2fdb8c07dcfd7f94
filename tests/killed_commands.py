"""Runs command lines of fastinv in forks of a process that has imported everything already, and kills them.

One line of JSON on standard input is a list of jobs, which run side by side:

    {"folder": where, "arguments": [...], "after": seconds until it is killed, or null,
     "at": number of the file operation before which it kills itself, or null}

The answer is a line with a list of their exit statuses (-9 for a killed one). <folder>/job<n>.out, .err and .count hold
what job n printed, and how many file operations it did.
"""

import json
import os
import signal
import sys
import time

import fastinv.cli.batches
import fastinv.data.faces
import fastinv.inversion.runs
import fastinv.report  # noqa: F401
from fastinv.cli import main
from fastinv.inversion import checkpoint


def watch_operations(at: int | None) -> list[int]:
    """Count the operations that change a folder; kill this process before one of them."""
    count = [0]

    def watched(operation):
        def run(*arguments, **options):
            if count[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return operation(*arguments, **options)

        return run

    for name in ("replace", "rename", "link", "unlink", "mkdir", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))
    return count


def start(job: dict, name: str) -> int:
    """Fork a process that does a job; its number."""
    pid = os.fork()
    if pid:
        return pid
    os.chdir(job["folder"])
    for stream, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    count = watch_operations(job.get("at"))
    status = main(job["arguments"])
    sys.stdout.flush()
    with open(f"{name}.count", "w") as file:
        file.write(str(count[0]))
    os._exit(status)


def serve() -> None:
    checkpoint.SHARE = 0  # save whenever the loop asks
    fastinv.load_generator("faces64")  # with all that torch imports for it; one thread, so that forks are safe
    for line in sys.stdin:
        begun, jobs, statuses = time.monotonic(), json.loads(line), {}
        running = {start(job, f"job{number}"): number for number, job in enumerate(jobs)}
        while running:
            for pid, number in list(running.items()):
                after = jobs[number].get("after")
                if after is not None and time.monotonic() - begun >= after:
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[number] = os.waitstatus_to_exitcode(status)
                    del running[pid]
            time.sleep(0.002)
        print(json.dumps([statuses[number] for number in range(len(jobs))]), flush=True)


if __name__ == "__main__":
    serve()
