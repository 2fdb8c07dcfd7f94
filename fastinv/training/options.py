"""What the trainers' command lines share: help that shows real defaults only, and one clear line for every error."""

import argparse
import math
import sys
from collections.abc import Callable

from fastinv.errors import FastinvError, UsageError


class _Help(argparse.HelpFormatter):
    """Adds the default to an option's help where there is one worth showing."""

    def _get_help_string(self, action):
        default = action.default  # compared by identity where 0.0 would equal it
        hidden = default is None or default is False or default in ("", math.inf, argparse.SUPPRESS)
        return action.help if hidden else f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError instead of printing its usage and exiting."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)

    def error(self, message: str):
        raise UsageError(f"{message}; `{self.prog} --help` lists the options")


def check_range(options: argparse.Namespace, names: str, low: float, high: float = math.inf, above: bool = False):
    """UsageError unless every named option is a number within low and high, and above low where ``above`` is set.

    ``names`` are attribute names, separated by spaces. Infinity passes only where ``high`` is left out.
    """
    for name in names.split():
        value = getattr(options, name)
        if low <= value <= high and not (above and value == low):
            continue
        wanted = f"above {low:g}" if above else f"at least {low:g}"
        wanted += "" if high == math.inf else f" and at most {high:g}"
        raise UsageError(f"--{name.replace('_', '-')} must be {wanted}, not {value:g}")


def run_as_command(main: Callable[[], object]):
    """Run a trainer's ``main`` as a program: an error of ours is one line on standard error and exit status 2."""
    try:
        main()
    except FastinvError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
