"""Errors that a user can act on. The command line turns each into one line and an exit status, never a traceback."""


class FastinvError(Exception):
    """Base of every error whose message is written for the user: what is wrong, the value, what to do."""


class UsageError(FastinvError, ValueError):
    """An argument is missing, out of range or contradicts another."""


class PictureError(FastinvError):
    """A picture file cannot be read or is of a kind that is not supported."""


class CheckpointError(FastinvError):
    """A checkpoint is missing, damaged or not of the expected kind."""


class NativeUnavailableError(FastinvError, RuntimeError):
    """impl="native" was asked for and the compiled kernel cannot take the call; the message says why."""
