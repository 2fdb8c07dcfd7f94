"""What the commands share: their options, lines on standard error, a bar of progress."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

_state = {"debug": False, "arguments": []}


def say(message: str) -> None:
    """One line on standard error."""
    print("fastinv: " + " ".join(message.splitlines()), file=sys.stderr, flush=True)


def debugging() -> bool:
    """Whether tracebacks are shown."""
    return _state["debug"]


def set_debugging(value: bool) -> None:
    """Before a command: not yet; `--debug`, wherever it stands, then sets it."""
    _state["debug"] = value


def set_arguments(arguments: list[str]) -> None:
    """What stands behind `fastinv` on this command line."""
    _state["arguments"] = list(arguments)


def command() -> str:
    """The command line, as a shell takes it."""
    return shlex.join(["fastinv", *_state["arguments"]])


def _set_debug(value: bool) -> bool:
    _state["debug"] = _state["debug"] or value
    return value


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of a GPU (told by name: torch may not be imported here)."""
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_type or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def free_folder(out: Path, name: str, own: Callable[[Path], bool]) -> Path:
    """OUT/NAME; with a number where that holds something else than an earlier result of the same work.

    Args:
        out, name: the folder of all results, and what to call this one.
        own: whether a folder holds an earlier result of the same work.
    """
    number, folder = 1, out / name
    while folder.exists() and not own(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        number += 1
        folder = out / f"{name}-{number}"
    return folder


class Progress:
    """One bar on standard error for work that says (what, done, total); nothing where that is no terminal."""

    def __init__(self, hidden: bool = False):
        from rich.console import Console
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self.bar = Bar(console=console, transient=True, disable=hidden or not console.is_terminal)
        self.tasks: dict = {}

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what, total=total)
        self.bar.update(self.tasks[what], completed=done, total=total)


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Arithmetic: float32, float64, bfloat16, float16, or auto (the sooner to the same quality); without it "
        "the preset's, else float32."
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything random; the same seed gives the same result.")]
Steps = Annotated[int | None, typer.Option(help="Optimisation steps; without it the method's default.")]
