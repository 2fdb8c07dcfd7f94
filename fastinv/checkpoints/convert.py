"""Converting checkpoints: any family in; our safetensors, rosinality's .pt or StyleGAN2-ADA's state dict out."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fastinv.checkpoints.families import ada, rosinality
from fastinv.checkpoints.load import KINDS, Checkpoint, file_sha256, open_checkpoint, resolve
from fastinv.checkpoints.save import network_hash, save_network
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import atomic_file, shown

FORMATS = ("fastinv", "rosinality", "ada")
SAMPLES = 2  # of the self-check
# Largest difference between the outputs of the network that was read and of the one that was written, over the largest
# output. Weights are stored exactly in float32; what remains is that rosinality's filters are stored times four.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Converted:
    """One file that was written, and how the network in it compares with the one that was read.

    ``difference`` is the largest difference of outputs on random inputs, ``largest`` the largest output.
    """

    kind: str
    path: Path
    sha256: str
    network_hash: str
    difference: float
    largest: float

    @property
    def relative(self) -> float:
        return self.difference / max(self.largest, 1e-30)


def convert(
    source: str | Path,
    target: str | Path,
    format: str | None = None,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Converted]:
    """Convert a checkpoint and check what was written.

    Every network that the file holds is written: where there is one, or where ``kind`` names one, as ``target``, else
    as ``<stem>.<kind><suffix>`` beside it. rosinality's format takes generator and discriminator in one file. Each file
    is read back, and both networks are run on the same random inputs. The source's name and sha256 and the network's
    hash are recorded in the metadata; beside a ``.pt``, which has none, in ``<target>.json``.

    Args:
        source: a file of any family, a bundled name or a downloaded public checkpoint.
        target: the file to write; its folder must exist.
        format: "fastinv" (safetensors), "rosinality" or "ada" (a plain state dict under StyleGAN2-ADA's names); None
            is "fastinv" for ``.safetensors`` and "rosinality" for ``.pt``.
        kind: "generator", "encoder" or "discriminator"; None is all there are.
        dtype: to store in, our own format only; None is float32.
        overwrite: replace files that exist.
        progress: called with (what is done, steps done, all steps).

    Returns:
        what was written, one entry a network.

    Raises:
        UsageError: the target exists or cannot be written, an unknown or unfitting format.
        CheckpointError: the source is no checkpoint, or a network came back from its file as another one; then nothing
            of that file is kept.
    """
    target = Path(target)
    format = _format(target, format)
    if kind is not None and kind not in KINDS:
        raise UsageError(f"the networks are {', '.join(KINDS)}, not {kind!r}")
    if dtype is not None and format != "fastinv":
        raise UsageError(f"the format {format} is written in float32 only; leave the dtype out")
    path = resolve(source, kind or "generator")
    if target.exists() and path.samefile(target):
        raise UsageError(f"{shown(target)} is the file that is read; choose another name")
    report = progress or (lambda what, done, total: None)
    checkpoint = open_checkpoint(path)
    kinds = [kind] if kind else [k for k in KINDS if k in checkpoint.networks]
    if format != "fastinv" and "encoder" in kinds:
        if kind == "encoder" or kinds == ["encoder"]:
            raise UsageError(f"the format {format} has no encoders; choose fastinv")
        kinds.remove("encoder")
    paths = _paths(target, kinds, together=format == "rosinality")
    for existing in {p for p in paths.values() if p.exists()}:
        if not overwrite:
            raise UsageError(f"{shown(existing)} exists already; choose another name, or say that it may be replaced")
    networks = {k: checkpoint.load(k, lambda done, total, k=k: report(f"reading {k}", done, total)) for k in kinds}
    size = checkpoint.size
    facts = {
        "file": path.name, "sha256": file_sha256(path, lambda done: report("sha256 of the source", done, size)),
        "family": checkpoint.family, "container": checkpoint.container,
    }  # fmt: skip
    return _write(networks, paths, format, dtype, facts, report)


def _format(target: Path, format: str | None) -> str:
    suffix = target.suffix.lower()
    if format is None:
        format = {".safetensors": "fastinv", ".pt": "rosinality", ".pth": "rosinality"}.get(suffix)
        if format is None:
            raise UsageError(f"{shown(target)} says no format; end it in .safetensors, or in .pt for rosinality's")
    if format not in FORMATS:
        raise UsageError(f"the formats are {', '.join(FORMATS)}, not {format!r}")
    if (suffix == ".safetensors") != (format == "fastinv"):
        wanted = ".safetensors" if format == "fastinv" else ".pt"
        raise UsageError(f"a file in the format {format} ends in {wanted}, not in {suffix or 'nothing'}")
    return format


def _paths(target: Path, kinds: list[str], together: bool) -> dict[str, Path]:
    if len(kinds) == 1 or together:
        return dict.fromkeys(kinds, target)
    return {kind: target.with_name(f"{target.stem}.{kind}{target.suffix}") for kind in kinds}


def _write(networks, paths, format, dtype, facts, report) -> list[Converted]:
    """Each file is written under a temporary name, read back and compared before it gets its own."""
    results = []
    for path in dict.fromkeys(paths.values()):
        inside = {kind: network for kind, network in networks.items() if paths[kind] == path}
        hashes = {kind: network_hash(network) for kind, network in inside.items()}
        with atomic_file(path) as temporary:
            report(f"writing {path.name}", 0, 1)
            if format == "fastinv":
                (kind, network), = inside.items()
                save_network(network, temporary, dtype, source=facts | {"network_hash": hashes[kind]})
            else:
                _save_torch(inside, temporary, format)
            written = open_checkpoint(temporary)
            compared = {k: _compare(network, written, k, exact=dtype is None) for k, network in inside.items()}
            sha256 = file_sha256(temporary)
        for kind, (difference, largest) in compared.items():
            results.append(Converted(kind, path, sha256, hashes[kind], difference, largest))
        if format != "fastinv":
            beside = facts | {"network_hash": hashes, "sha256_of_result": sha256}
            with atomic_file(path.with_name(path.name + ".json")) as temporary:
                temporary.write_text(json.dumps(beside, indent=1) + "\n")
    return results


def _save_torch(networks: dict[str, nn.Module], path: Path, format: str) -> None:
    if format == "rosinality":
        if "generator" not in networks:
            raise UsageError("rosinality's format needs a generator")
        content = rosinality.checkpoint(networks["generator"], networks.get("discriminator"))
    else:
        (network,) = networks.values()
        content = ada.state_dict(network)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())


def _compare(network: nn.Module, written: Checkpoint, kind: str, exact: bool) -> tuple[float, float]:
    """(largest difference, largest value) of the outputs of a network and of its copy in a file."""
    expected, found = outputs(network), outputs(written.load(kind))
    difference, largest = (expected - found).abs().max().item(), expected.abs().max().item()
    if exact and not difference <= TOLERANCE * max(largest, 1e-30):  # NaN is no agreement either
        raise CheckpointError(
            f"the {kind} that was written differs from the one that was read by {difference:.3g} of {largest:.3g} on "
            "random inputs; nothing was written. The source may hold NaN"
        )
    return difference, largest


@torch.no_grad()
def outputs(network: nn.Module, seed: int = 0) -> torch.Tensor:
    """What a network gives on fixed random inputs: pictures of latents, codes or scores of pictures of noise."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    if hasattr(network, "synthesis"):
        labels = torch.eye(network.c_dim)[:1].expand(SAMPLES, -1) if network.c_dim else None
        return network.synthesis(network.mapping(normal(SAMPLES, network.z_dim), labels))
    if hasattr(network, "encode"):
        size = network.input_resolution
        return network(network.fit(normal(SAMPLES, network.input_nc, size, size).clamp(-1, 1)))
    labels = torch.eye(network.c_dim)[:1].expand(SAMPLES, -1) if network.c_dim else None
    return network(normal(SAMPLES, 3, network.resolution, network.resolution).clamp(-1, 1), labels)
