"""Directions in the files of other projects. Nothing in a file is run, and no more is read than it has.

    .npz  GANSpace: lat_comp [n, (1,) w_dim] and lat_stdev [n]; a direction is a component times its deviation
    .npy  InterFaceGAN: [1, w_dim] or [w_dim], a unit normal
    .npy  IDInvert: a pickled dict of boundary [1, w_dim] and meta_data {"manipulate_layers": ...}
    .pt   e4e: a tensor [1, w_dim], or one row for each direction or each style input

``read_public`` gives the arguments of Directions; what they mean stands there.
"""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from fastinv.checkpoints.containers import named, read_file
from fastinv.checkpoints.pickles import Inert, Limits, Pending, finished, read_pickle
from fastinv.checkpoints.tensors import ArrayDtype, names
from fastinv.errors import CheckpointError
from fastinv.files import shown

PUBLIC = (".npz", ".npy", ".pt", ".pth")
LARGEST = 1 << 28  # bytes of a file or of an array in it
STRENGTH = 3.0  # what their projects show: steps from -3 to 3


def read_public(path: Path, num_ws: int | None) -> list[dict]:
    """The arguments of the Directions in a file, chosen by its end (``PUBLIC``).

    Args:
        path: the file.
        num_ws: style inputs of the generator, where it is known.

    Raises:
        CheckpointError: one line on what is wrong with it.
    """
    name = shown(path)
    reader = {".npz": _ganspace, ".npy": _boundary}.get(path.suffix, _tensor_file)
    with named(name, f"cannot read {name}: ", f"cannot read {name}: it is damaged"):
        try:
            if path.stat().st_size > LARGEST:
                raise CheckpointError(f"it has {path.stat().st_size} bytes, far more than directions have")
            return reader(path, num_ws)
        except OSError as error:
            raise CheckpointError(str(error.strerror or error)) from error


def _ganspace(path: Path, num_ws: int | None) -> list[dict]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for key in ("lat_comp", "lat_stdev"):
            if key not in members:
                raise CheckpointError(f"it has no {key!r}, as GANSpace's files have")
            if members[key].file_size > LARGEST:
                raise CheckpointError(f"{key} has {members[key].file_size} bytes, far more than directions have")
            arrays[key] = _array(archive.read(members[key]))
    components, deviations = arrays["lat_comp"], arrays["lat_stdev"].flatten()
    components = components.flatten(1) if components.ndim > 2 else components
    if components.ndim != 2 or len(components) != len(deviations):
        shapes = f"{list(arrays['lat_comp'].shape)} and {list(arrays['lat_stdev'].shape)}"
        raise CheckpointError(f"lat_comp [n, w_dim] and lat_stdev [n] do not belong together: {shapes}")
    return [
        _fields(f"{_stem(path)}-{index}", component * deviation, "ganspace", {"standard deviation": float(deviation)})
        for index, (component, deviation) in enumerate(zip(components, deviations, strict=True))
    ]


def _boundary(path: Path, num_ws: int | None) -> list[dict]:
    data = path.read_bytes()
    value = _array(data)
    if isinstance(value, torch.Tensor):
        return _rows(path, value, num_ws, "interfacegan")
    boundary, about = value.get("boundary"), value.get("meta_data")
    if not isinstance(boundary, torch.Tensor) or boundary.numel() != boundary.shape[-1]:
        raise CheckpointError("it has no 'boundary' of shape [1, w_dim], as IDInvert's files have")
    about = about if isinstance(about, dict) else {}
    facts = {key: text for key, text in about.items() if isinstance(text, str | int | float) and isinstance(key, str)}
    fields = _fields(_stem(path), boundary.flatten(), "idinvert", facts)
    layers = _layer_list(about.get("manipulate_layers"))
    if not layers:
        return [fields]
    first, end = layers[0], layers[-1] + 1
    if layers == list(range(first, end)):
        return [fields | {"layers": (first, end)}]
    if num_ws is None:
        raise CheckpointError(f"it acts on the layers {layers}: the generator must be known to read it")
    if end > num_ws:
        raise CheckpointError(f"it acts on layer {end - 1}; the generator has {num_ws}")
    each = torch.zeros(num_ws, boundary.shape[-1])
    each[layers] = fields["vector"]
    return [fields | {"space": "w+", "vector": each}]


def _tensor_file(path: Path, num_ws: int | None) -> list[dict]:
    value = read_file(path).value
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"it holds a {type(value).__name__}, not a tensor [n, w_dim] of directions")
    return _rows(path, value.clone(), num_ws, "e4e")


def _rows(path: Path, value: torch.Tensor, num_ws: int | None, source: str) -> list[dict]:
    """[w_dim] or [1, w_dim] is one direction; as many rows as style inputs are one of W+; others are several."""
    value = value.squeeze(0) if value.ndim == 3 and len(value) == 1 else value
    value = value.unsqueeze(0) if value.ndim == 1 else value
    if value.ndim != 2 or not len(value) or not value.is_floating_point():
        raise CheckpointError(f"it holds numbers of shape {list(value.shape)}, not directions [n, w_dim]")
    if len(value) == 1:
        return [_fields(_stem(path), value[0], source, {})]
    if len(value) == num_ws:
        return [_fields(_stem(path), value, source, {}) | {"space": "w+"}]
    return [_fields(f"{_stem(path)}-{index}", row, source, {}) for index, row in enumerate(value)]


def _fields(name: str, vector: torch.Tensor, source: str, facts: dict) -> dict:
    return {
        "name": name, "space": "w", "vector": vector.float(), "layers": (0, None), "strength": STRENGTH,
        "source": source, "facts": facts,
    }  # fmt: skip


def _stem(path: Path) -> str:
    """The file's name, as far as a direction can be called so."""
    return re.sub(r"[^\w.,+-]", "_", path.stem).lstrip(".,+-")[:56] or "direction"


def _layer_list(given) -> list[int]:
    """The layers of IDInvert's meta data: a list, an array, or text such as "2-5,8"; [] where all are meant."""
    if isinstance(given, torch.Tensor):
        given = given.flatten().tolist()
    if isinstance(given, str):
        parts = [part.split("-") for part in given.replace(" ", "").split(",") if part]
        if not all(len(part) in (1, 2) and all(end.isdecimal() and len(end) < 4 for end in part) for part in parts):
            raise CheckpointError(f"its layers {given[:40]!r} are no list")
        given = [layer for part in parts for layer in range(int(part[0]), int(part[-1]) + 1)]
    if given is None:
        return []
    if not isinstance(given, list | tuple) or not all(type(n) is int and 0 <= n < 1000 for n in given):
        raise CheckpointError(f"its layers {str(given)[:40]!r} are no list")
    return sorted(set(given))


def _array(data: bytes):
    """An array in NumPy's format as a tensor, or the dict that is pickled in it.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html; sizes are checked before anything is made.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise CheckpointError(f"it is of version {version} of NumPy's format, which is not read")
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = header(file)
    rest = memoryview(bytearray(data[file.tell() :]))
    if dtype.hasobject:
        return _pickled(rest)
    count = 1
    for n in shape:
        count *= n
    if dtype.kind not in "fiu" or len(shape) > 8 or min(shape, default=0) < 0 or count * dtype.itemsize != len(rest):
        raise CheckpointError(f"an array of {dtype} {list(shape)} does not fit its {len(rest)} bytes")
    array = np.frombuffer(rest, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(array, dtype=np.float64 if dtype.kind == "f" else np.int64))


def _pickled(data: memoryview) -> dict:
    """The dict in an array of one object."""
    limits = Limits(copied_bytes=2 * len(data) + 2**20)
    table = names(limits)
    for key in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        table = table | {key: _or_object(table[key])}
    value, end = read_pickle(data, table, limits)
    if end != len(data):
        raise CheckpointError(f"it goes on for {len(data) - end} bytes where it should end")
    value = finished(value, len(data))
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds a {type(value).__name__}, neither an array nor a dict with a boundary")
    return value


def _or_object(reconstruct: Inert) -> Inert:
    """The same, and an array of one object is that object."""

    def build(made, state):
        if isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, _, content = state
            dtype = dtype.value if isinstance(dtype, Pending) else dtype
            if isinstance(dtype, ArrayDtype) and dtype.code.startswith("O") and isinstance(content, list):
                if shape != () or len(content) != 1:
                    raise CheckpointError("it holds an array of several objects")
                return content[0]
        return reconstruct.build(made, state)

    return Inert(reconstruct.name, reconstruct.make, build)
