"""Converting checkpoints: any family in; our safetensors, rosinality's .pt or StyleGAN2-ADA's state dict out."""

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fastinv.checkpoints.families import ada, rosinality
from fastinv.checkpoints.load import KINDS, Checkpoint, file_sha256, open_checkpoint, resolve
from fastinv.checkpoints.network import CheckpointWarning, build, warn
from fastinv.checkpoints.save import network_hash, save_network, shortened
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import atomic_file, shown

FORMATS = ("fastinv", "rosinality", "ada")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Largest difference between the network that was read and the one that was written, of outputs over the largest output
# and of each number in a tensor. Both are equal to the bit but for resample filters that a format has no place for.
TOLERANCE = 1e-5

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Converted:
    """One network that was written.

    Attributes:
        kind: "generator", "encoder" or "discriminator".
        path: its file.
        sha256: of the file.
        network_hash: of the network that was read, see `fastinv.checkpoints.network_hash`.
        difference: the largest difference of its outputs to those of the network in the file, on random inputs.
        largest: the largest finite output.
        notes: one-line remarks: what the format cannot say, and other code must be told.
    """

    kind: str
    path: Path
    sha256: str
    network_hash: str
    difference: float
    largest: float
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path,
    target: str | Path,
    format: str | None = None,
    kind: str | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Converted]:
    """Convert a checkpoint and check what was written.

    Every network that the file holds is written: where there is one, or where ``kind`` names one, as ``target``, else
    as ``<stem>.<kind><suffix>`` beside it. rosinality's format takes generator and discriminator in one file. Each file
    is read back under a temporary name and must hold the same tensors, and both networks must give the same outputs on
    random inputs; then it takes its own name. The source's name, sha256 and family and the networks' hashes are
    recorded in the metadata; beside a ``.pt``, which has none, in ``<target>.json``.

    Args:
        source: a file of any family, a bundled name or a downloaded public checkpoint.
        target: the file to write; its folder must exist.
        format: "fastinv" (safetensors), "rosinality" or "ada" (a plain state dict under StyleGAN2-ADA's names); None
            is "fastinv" for ``.safetensors`` and "rosinality" for ``.pt``.
        kind: "generator", "encoder" or "discriminator"; None is all there are.
        dtype: to store in: float32, float16 or bfloat16; the last two in our own format only. None is float32.
        overwrite: replace files that exist (a symbolic link itself, not what it points to).
        progress: called with (what is done, steps done, all steps).

    Returns:
        what was written, one entry a network.

    Raises:
        UsageError: a target exists or cannot be written, an unknown or unfitting format or dtype.
        CheckpointError: the source is no checkpoint, or a network came back from its file as another one. Of the file
            concerned nothing is kept; files that were finished before stay.
    """
    target = Path(target)
    format = _format(target, format)
    if kind is not None and kind not in KINDS:
        raise UsageError(f"the networks are {', '.join(KINDS)}, not {kind!r}")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"weights are stored in float32, float16 or bfloat16, not in {str(dtype)[:40]}")
    dtype = None if dtype == torch.float32 else dtype
    if dtype is not None and format != "fastinv":
        raise UsageError(f"the format {format} is written in float32 only; leave the dtype out")
    path = resolve(source, kind)
    report = progress or (lambda what, done, total: None)
    checkpoint = open_checkpoint(path)
    kinds = [kind] if kind else [k for k in KINDS if k in checkpoint.networks]
    kinds, notes = _without_encoder(kinds, format)
    paths = _paths(target, kinds, together=format == "rosinality")
    _check_targets(paths.values(), format, path, overwrite)
    networks = {k: checkpoint.load(k, lambda done, total, k=k: report(f"reading {k}", done, total)) for k in kinds}
    size = checkpoint.size
    facts = {
        "file": path.name, "sha256": file_sha256(path, lambda done: report("sha256 of the source", done, size)),
        "family": checkpoint.family, "container": checkpoint.container,
    }  # fmt: skip
    del checkpoint
    files: dict[Path, dict[str, nn.Module]] = {}
    for k in kinds:
        files.setdefault(paths[k], {})[k] = networks.pop(k)
    # Tensors of the contents are the networks' own. What a format cannot express is refused before anything is written.
    contents = {p: None if format == "fastinv" else _content(inside, format) for p, inside in files.items()}
    results = []
    for p in list(files):  # each network is let go once it is written
        report(f"writing {p.name}", 0, 1)
        results += _write(files.pop(p), p, contents.pop(p), format, dtype, facts, notes)
        report(f"writing {p.name}", 1, 1)
    return results


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


def _without_encoder(kinds: list[str], format: str) -> tuple[list[str], tuple[str, ...]]:
    """(the networks that the format takes, a note on one that is left out)."""
    if format == "fastinv":
        return kinds, ()
    rest = [kind for kind in kinds if kind != "encoder"]
    if not rest:
        raise UsageError(f"the format {format} has no encoders; choose fastinv")
    if format == "rosinality" and "generator" not in rest:
        raise UsageError("rosinality's format needs a generator; choose fastinv or ada for a discriminator alone")
    return rest, () if rest == kinds else (f"the encoder is left out: the format {format} has none",)


def _paths(target: Path, kinds: list[str], together: bool) -> dict[str, Path]:
    if len(kinds) == 1 or together:
        return dict.fromkeys(kinds, target)
    return {kind: target.with_name(f"{target.stem}.{kind}{target.suffix}") for kind in kinds}


def _beside(path: Path) -> Path:
    """The file that says where a .pt file is from."""
    return path.with_name(path.name + ".json")


def _check_targets(paths: Iterable[Path], format: str, source: Path, overwrite: bool) -> None:
    """A UsageError, before work starts, for a place that cannot be written or whose file would be lost."""
    for path in dict.fromkeys(paths):
        for file in (path,) if format == "fastinv" else (path, _beside(path)):
            name, folder = shown(file), file.parent
            try:
                if not folder.is_dir():
                    raise UsageError(f"cannot write {name}: there is no folder {shown(folder)}; make it first")
                if file.is_dir():
                    raise UsageError(f"{name} is a folder; give the name of a file")
                if file.exists() and file.samefile(source):
                    raise UsageError(f"{name} is the file that is read; choose another name")
                with contextlib.suppress(FileNotFoundError):
                    os.lstat(file)  # also finds a link to nothing, and a name that is too long
                    if not overwrite:
                        raise UsageError(f"{name} exists already; choose another name, or --overwrite (overwrite=True)")
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UsageError(f"cannot write {name}: {error.strerror}; choose another place or name") from error


def _content(networks: dict[str, nn.Module], format: str) -> dict:
    """What torch.save is given."""
    if format == "rosinality":
        return rosinality.checkpoint(networks["generator"], networks.get("discriminator"))
    (network,) = networks.values()
    return ada.state_dict(network)


def _write(networks, path, content, format, dtype, facts, notes) -> list[Converted]:
    """One file, written under a temporary name, read back and compared before it gets its own."""
    hashes = {kind: network_hash(network) for kind, network in networks.items()}
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_file(path))
        if format == "fastinv":
            ((kind, network),) = networks.items()
            _warn_of_overflow(network, path, dtype)
            try:
                save_network(network, temporary, dtype, source=facts | {"network_hash": hashes[kind]})
            except UsageError as error:  # names the temporary file; atomic_file above names the right one
                raise error.__cause__ if isinstance(error.__cause__, OSError) else error from None
        else:
            with temporary.open("wb") as file:
                torch.save(content, file)
        written, sha256 = open_checkpoint(temporary), file_sha256(temporary)
        results = []
        for kind, network in networks.items():
            difference, largest, remarks = _check(network, written, kind, format, exact=dtype is None)
            remarks = (*notes, *remarks, *_to_be_told(network, kind, format))
            results.append(Converted(kind, path, sha256, hashes[kind], difference, largest, remarks))
        if format != "fastinv":
            beside = {"format": format, "sha256": sha256, "network_hash": hashes, "source": facts}
            stack.enter_context(atomic_file(_beside(path))).write_text(json.dumps(beside, indent=1) + "\n")
    return results


def _warn_of_overflow(network: nn.Module, path: Path, dtype: torch.dtype | None) -> None:
    if dtype is None:
        return
    largest = torch.finfo(dtype).max
    over = [
        name for name, tensor in network.state_dict().items()
        if shortened(name, tensor) and bool((tensor.isfinite() & tensor.to(dtype).isinf()).any())
    ]  # fmt: skip
    if over:
        warn(
            f"{shown(path)}: {len(over)} tensors hold numbers above {largest:.6g}, which become infinite in "
            f"{str(dtype).removeprefix('torch.')}, the first is {over[0]}; store bfloat16 or float32"
        )


@torch.no_grad()
def _check(network, written: Checkpoint, kind: str, format: str, exact: bool) -> tuple[float, float, tuple[str, ...]]:
    """(largest difference, largest value of the outputs of a network and of its copy in a file, notes)."""
    with warnings.catch_warnings():
        # What is odd in the tensors was said when the source was read; the rest is the next reader's business.
        warnings.simplefilter("ignore", CheckpointWarning)
        if format == "ada":  # this file leaves the configuration to its reader
            found = replace(written.networks[kind](), config=network.config)
            copy = build(found, f"the {kind} that was written", written.size)
        else:
            copy = written.load(kind)
    tensors = copy.state_dict()
    for name, tensor in network.state_dict().items() if exact else ():
        if not torch.allclose(tensors[name], tensor, rtol=TOLERANCE, atol=0, equal_nan=True):
            raise CheckpointError(f"{name} of the {kind} came back from the file with other numbers; nothing is kept")
    expected, found = outputs(network), outputs(copy)
    same = (expected == found) | (expected.isnan() & found.isnan())
    difference = (expected - found).abs().masked_fill(same, 0).max().item()
    finite = expected.isfinite()
    largest = expected.where(finite, 0).abs().max().item()
    clamp = getattr(network, "config", {}).get("conv_clamp") if format == "rosinality" else None
    if exact and not difference <= TOLERANCE * largest:  # NaN is no agreement either
        reason = "nothing is kept"
        if clamp is not None:
            reason = f"rosinality's format has no conv_clamp, and {clamp} bites here; choose fastinv or ada"
        raise CheckpointError(
            f"the {kind} that was written differs from the one that was read by {difference:.3g} of {largest:.3g} on "
            f"random inputs: {reason}"
        )
    notes = () if finite.any() else ("its outputs are not finite, so that only its tensors were compared",)
    if clamp is not None:
        notes += (f"its conv_clamp {clamp} is left out, the format has none; it did not bite on random inputs",)
    return difference, largest, notes


@torch.no_grad()
def outputs(network: nn.Module, seed: int = 0) -> torch.Tensor:
    """What a network gives on fixed random inputs: the picture of a latent, the code of a picture, scores of two."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    if hasattr(network, "encode"):
        size = network.input_resolution
        return network(network.fit(normal(1, network.input_nc, size, size).clamp(-1, 1)))
    c_dim = getattr(network, "c_dim", 0)
    labels = torch.eye(1, c_dim) if c_dim else None  # the first class
    if hasattr(network, "synthesis"):
        return network.synthesis(network.mapping(normal(1, network.z_dim), labels))
    pictures = normal(2, 3, network.resolution, network.resolution).clamp(-1, 1)  # it compares those of a batch
    return network(pictures, None if labels is None else labels.expand(2, -1))


def _to_be_told(network: nn.Module, kind: str, format: str) -> tuple[str, ...]:
    """What the constructor of the other code must be given, as its file does not say it."""
    config = getattr(network, "config", {})
    if format == "ada":
        arguments = {"c_dim": config["c_dim"], "img_resolution": config["resolution"], "img_channels": 3}
        block = {"architecture": config["architecture"], "resample_filter": config["resample_filter"]}
        if kind == "generator":
            arguments |= {"z_dim": config["z_dim"], "w_dim": config["w_dim"]}
            arguments["mapping_kwargs.num_layers"] = config["mapping_layers"]
            inner = _ada_widths(config["channels"]) | {"conv_clamp": config["conv_clamp"]} | block
            arguments |= {f"synthesis_kwargs.{name}": value for name, value in inner.items()}
        else:
            arguments |= _ada_widths(config["channels"]) | {"conv_clamp": config["conv_clamp"]}
            arguments |= {"architecture": block["architecture"]}
            arguments["block_kwargs.resample_filter"] = block["resample_filter"]
    elif format == "rosinality" and kind == "generator":
        arguments = {"size": config["resolution"], "style_dim": config["w_dim"], "n_mlp": config["mapping_layers"]}
        arguments |= _rosinality_widths(config["channels"])
    else:
        return ()
    listed = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return (f"the other code's constructor must be given {listed}",)


def _ada_widths(channels: dict[int, int]) -> dict:
    """StyleGAN2-ADA: min(channel_base / resolution, channel_max)."""
    top, most = max(channels), max(channels.values())
    base = channels[top] * top
    fits = all(width == min(base // r, most) for r, width in channels.items())
    return {"channel_base": base, "channel_max": most} if fits else {"channels": channels}


def _rosinality_widths(channels: dict[int, int]) -> dict:
    """rosinality: 512 up to 32x32, then 16384 * channel_multiplier / resolution."""
    multiplier = channels[64] / 256 if 64 in channels else 2
    fits = all(width == (512 if r < 64 else 16384 * multiplier / r) for r, width in channels.items())
    return {"channel_multiplier": f"{multiplier:g}"} if fits else {"channels": f"{channels} (its table, to be changed)"}
