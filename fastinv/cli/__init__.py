"""The command line.

Exit status: 0 done; 1 some pictures failed, the others are done; 2 wrong usage or input; 70 an error of fastinv itself;
130 interrupted. Errors are one line on standard error; `--debug` shows the traceback as well.

Only light imports at the top: `fastinv --help` does not import torch.
"""

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from typing import Annotated

import typer

from fastinv.cli import (
    checkpoints,
    directions,
    editing,
    evaluation,
    inversion,
    local_edits,
    report,
    training,
    translate,
    ui,
)
from fastinv.cli.common import debugging, out_of_memory, say, set_arguments, set_debugging
from fastinv.errors import FastinvError

app = typer.Typer(
    help="Turns a picture into a StyleGAN latent code and back, fast.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(training.train, name="train")
app.add_typer(directions.app, name="directions")


def _version(value: bool) -> None:
    if value:
        import fastinv

        print(f"fastinv {fastinv.__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    pass


app.command()(inversion.invert)
app.command()(inversion.demo)
app.command()(translate.translate)
app.command()(evaluation.evaluate)
app.command("benchmark-methods")(evaluation.benchmark_methods)
app.command()(editing.edit)
app.command()(editing.mix)
app.command()(editing.interpolate)
app.command()(editing.diffuse)
app.command()(report.report)
app.command()(ui.ui)
for _name, _edit in local_edits.COMMANDS.items():
    app.command(_name)(_edit)


@app.command()
def info(json: Annotated[bool, typer.Option("--json", help="The facts as JSON.")] = False) -> None:
    """Show versions, the compiled library, and which implementation each op takes and why."""
    from fastinv.info import main as run

    run(as_json=json)


app.command()(inversion.methods)
app.command()(checkpoints.models)
app.command()(checkpoints.convert)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (None: this process's arguments) and return the exit status."""
    set_debugging(False)
    set_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what Pillow has to say is in our one line
    if arguments is None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
        sys.unraisablehook = _end_after_all
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(arguments)


def _end_after_all(unraisable) -> None:
    """A signal that arrives while an object is destroyed raises there, where Python ignores what is raised: the arena's
    blocks return that way in every step. Send it again, a moment later.
    """
    ends = {SystemExit: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
    if unraisable.exc_type in ends:
        again = threading.Timer(0.01, os.kill, (os.getpid(), ends[unraisable.exc_type]))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _show_warning(message, category, *place) -> None:
    if category.__name__ == "CheckpointWarning":  # told by name: torch may not be imported here
        say(str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, *place[:2]))


def _run(arguments: list[str] | None) -> int:
    try:
        status = typer.main.get_command(app).main(arguments, prog_name="fastinv", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except FastinvError as error:
        status = 2
        say(str(error))
        _show_traceback()
    except Exception as error:
        if hasattr(error, "format_message"):  # of the option parser
            status = error.exit_code
            if message := error.format_message().rstrip("."):  # none where it has already shown the help
                say(f"{message}; `fastinv --help` lists commands and options")
        elif out_of_memory(error):
            status = 2
            say("out of memory; use smaller batches, pictures or networks")
        else:
            status = 70
            first = (str(error).splitlines() or [""])[0]
            hint = "" if debugging() else "; --debug shows where"
            say(f"unexpected {type(error).__name__}: {first}{hint}; please report it")
        _show_traceback()
    if status == 130:
        say("interrupted")
    return status if isinstance(status, int) else 0


def _show_traceback() -> None:
    if debugging():
        traceback.print_exc()
