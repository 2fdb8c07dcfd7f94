"""Our own safetensors: the metadata says which class it is and how it is constructed, tensors are its state dict."""

from collections.abc import Callable

from fastinv.checkpoints.network import MODELS, Network
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError

NAME = "fastinv"
DEFAULT_MODEL = "stylegan2"  # of files that do not say
LARGEST = 2**20  # whole number in a configuration; resolutions, widths and counts are far below


def recognises(value) -> bool:
    """Whether a file was written by us, whatever it holds."""
    return isinstance(value, Record) and value.module == "fastinv"


def networks(value) -> dict[str, Callable[[], Network]]:
    """The one network of the file; none where it holds something else, such as a latent code."""
    return {value.name: lambda: _network(value)} if value.name in MODELS else {}


def _network(value: Record) -> Network:
    config, model = value.state.get("config"), value.state.get("model", DEFAULT_MODEL)
    if not isinstance(config, dict) or not isinstance(model, str):
        raise CheckpointError(f"does not fit its configuration: it says {str(config)[:80]} for {str(model)[:40]}")
    largest = max((abs(number) for number in _whole_numbers(config)), default=0)
    if largest > LARGEST:
        raise CheckpointError(f"does not fit its configuration: it has a number of {largest.bit_length()} bits")
    training = value.state.get("training")
    sha256 = training.get("generator_sha256") if isinstance(training, dict) else None
    sha256 = sha256 if isinstance(sha256, str) else None
    return Network(value.name, model, config, value.state["tensors"], generator_sha256=sha256)


def _whole_numbers(value):
    """All in a value of JSON."""
    if isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)
    elif isinstance(value, int):
        yield value
