"""Loading networks from files of every family; nothing in a file is ever run."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastinv.checkpoints.containers import Contents, named, read_file
from fastinv.checkpoints.families import (
    ada,
    alae,
    alae_encoder,
    genforce,
    idinvert_encoder,
    ours,
    psp,
    rosinality,
    stylegan1,
    tensorflow,
)
from fastinv.checkpoints.network import Network, build, placed
from fastinv.checkpoints.pickles import Record
from fastinv.checkpoints.registry import BUNDLED, PUBLIC, BundledModel, find
from fastinv.errors import CheckpointError
from fastinv.files import shown

# Each recognises its files by names that only it has; a file may belong to two (ALAE: generator and encoder).
FAMILIES = (ours, ada, tensorflow, stylegan1, rosinality, psp, genforce, alae, idinvert_encoder, alae_encoder)
KINDS = ("generator", "encoder", "discriminator")


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read: which networks it holds. Nothing of them is copied before ``load``."""

    path: Path
    size: int
    container: str
    family: str
    networks: dict[str, Callable[[], Network]]
    release: Callable[[], None] = lambda: None  # of the file's memory, see `fastinv.checkpoints.containers.Contents`

    def load(self, kind: str, progress: Callable[[int, int], None] | None = None) -> nn.Module:
        """One of its networks, in float32 and eval mode.

        Args:
            kind: a key of ``networks``.
            progress: called with (tensors copied, all of them).

        Raises:
            CheckpointError: it holds no such network, or one with missing or odd tensors.
        """
        name = shown(self.path)
        if kind not in self.networks:
            raise CheckpointError(f"{name} holds {_listed(self.networks)}, not {_an(kind)}")
        with named(name, f"{name}: ", f"{name} looks like a file of {self.family}, but is odd"):
            found = self.networks[kind]()
        self.release()
        return build(found, name, self.size, progress, self.release)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file and say what it holds: see `fastinv.checkpoints.families` for what is known.

    Raises:
        CheckpointError: it cannot be read, is damaged or harmful, or holds no network that is known.
    """
    return checkpoint_of(read_file(path), path)


def checkpoint_of(contents: Contents, path: str | Path) -> Checkpoint:
    """The same for a file that was read already; errors call it ``path``."""
    name, networks = shown(path), {}
    with named(name, f"cannot read {name}: ", f"cannot read {name}: it is odd"):
        families = [family for family in FAMILIES if family.recognises(contents.value)]
        for family in families:
            networks = family.networks(contents.value) | networks
        if not networks:
            raise CheckpointError(f"{name} holds {_described(contents.value)}, no network that is known")
    return Checkpoint(Path(path), contents.size, contents.container, families[0].NAME, networks, contents.release)


def load_generator(name_or_path: str | Path, device=None, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a generator, in eval mode: ours, StyleGAN2-ADA, TensorFlow, rosinality, genforce, that of pSp or e4e ...

    Args:
        name_or_path: a file of any family; else a bundled name or that of a downloaded public checkpoint
            (`fastinv models` lists both). Nothing is downloaded here.
        device: where to put it; None is the CPU.
        dtype: its arithmetic; None is float32 (also when the file stores half precision).

    Returns:
        `fastinv.models.stylegan2.Generator` or `fastinv.models.stylegan1.StyleGAN1Generator`.

    Raises:
        CheckpointError: no such name or file, damaged or harmful, no generator in it, or tensors that do not fit.
        UsageError: a device or dtype that cannot be.
    """
    return _load(name_or_path, "generator", device, dtype)


def load_discriminator(name_or_path: str | Path, device=None, dtype: torch.dtype | None = None) -> nn.Module:
    """Load a discriminator, in eval mode; arguments and errors as for ``load_generator``."""
    return _load(name_or_path, "discriminator", device, dtype)


def load_encoder(name_or_path: str | Path, device=None, dtype: torch.dtype | None = None) -> nn.Module:
    """Load an encoder, in eval mode: pSp, e4e, ReStyle, IDInvert, ALAE, ours; the rest as for ``load_generator``.

    Returns:
        `fastinv.models.encoders.Encoder`: ``encode(images)`` gives codes w_plus, the latent average added; its
        ``origin`` is the name or path, and its ``generator_sha256`` says whose codes they are, where the file does.
    """
    encoder = _load(name_or_path, "encoder", device, dtype)
    encoder.origin = str(name_or_path)
    return encoder


def _load(name_or_path: str | Path, kind: str, device, dtype: torch.dtype | None) -> nn.Module:
    return placed(open_checkpoint(resolve(name_or_path, kind)).load(kind), device, dtype)


def resolve(name_or_path: str | Path, kind: str | None = None) -> Path:
    """The file behind a path, a bundled name or a downloaded public checkpoint; a local file first.

    Args:
        name_or_path: as for ``load_generator``.
        kind: of a bundled model, which of its networks; None is its first.

    Raises:
        CheckpointError: there is none; for a public one that is not here, with the command that fetches it.
    """
    path, name = Path(name_or_path), shown(name_or_path)
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise CheckpointError(f"{name} is a folder; give the {kind or 'network'}'s file")
    except OSError as error:  # a name that is too long, a folder that must not be looked into
        raise CheckpointError(f"cannot read {name}: {error.strerror}") from error
    if str(name_or_path) in BUNDLED:
        return _bundled_file(BUNDLED[str(name_or_path)], kind)
    if str(name_or_path) in PUBLIC:
        return find(str(name_or_path))
    raise CheckpointError(
        f"no {kind or 'network'} {name!r}: neither a file nor a bundled name ({', '.join(BUNDLED)}); "
        "`fastinv models` lists what there is"
    )


def _bundled_file(model: BundledModel, kind: str | None) -> Path:
    """The file of a bundled model's network; the error for one that it lacks names the model that has it."""
    if kind is None or kind in model.kinds:
        return model.file(kind or model.kinds[0])
    what = f"{model.name} is {_listed(model.kinds)}" + (f" for {model.of}" if model.of else "")
    others = [other.name for other in BUNDLED.values() if other.generator == model.generator and kind in other.kinds]
    raise CheckpointError(f"{what}; give the {kind} {' or '.join(others)}" if others else f"{what}, not {_an(kind)}")


def file_sha256(path: str | Path, progress: Callable[[int], None] | None = None) -> str:
    """The sha256 of a file's bytes; ``progress`` is called with the bytes read so far."""
    digest, done = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def _an(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _listed(kinds) -> str:
    return " and ".join(_an(kind) for kind in KINDS if kind in kinds)


def _described(value) -> str:
    """What a file holds, for the message that it is not a network."""
    if isinstance(value, Record):
        if value.module == "fastinv":
            return _an(value.name[:60] or "nameless thing")
        return f"an object {value.module}.{value.name}"[:100]
    if isinstance(value, dict):
        names = [str(key)[:40] for key in list(value)[:6]]
        return f"the entries {', '.join(names)}{' ...' if len(value) > 6 else ''}" if names else "nothing"
    return f"one {type(value).__name__}"
