"""What tensors and arrays are made of in pickled checkpoints: storages and the names that rebuild them as views.

Every size is checked against the bytes that are there: a tensor lies inside its storage, and a storage inside the file.
The result are torch tensors that share the file's memory (private to the process): nothing is copied until it is used.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fastinv.checkpoints.pickles import Inert, Limits, Pending, Record, plain_key, read_pickle
from fastinv.errors import CheckpointError

STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
ARRAY_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save's before its zip files (torch 1.5 and older)
LEGACY_PROTOCOL = 1001
MAX_DIMENSIONS = 16
MAX_TEXT = 256  # characters of a path
PERSISTENT_VERSION = 6  # of the networks that StyleGAN2-ADA and StyleGAN3 save


def _sizes(numbers: tuple) -> bool:
    """Whether these are few plain whole numbers, none below 0 or beyond what any file has."""
    return len(numbers) <= MAX_DIMENSIONS + 1 and all(type(n) is int and 0 <= n < 2**48 for n in numbers)


@dataclass(eq=False)
class Storage:
    """A run of elements; ``data`` is None while a file is only measured."""

    dtype: torch.dtype
    count: int
    data: memoryview | None

    def view(self, dtype: torch.dtype, offset: int, shape: tuple, strides: tuple) -> torch.Tensor | None:
        """A tensor of this shape over the elements, if it lies within them."""
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise CheckpointError("it is damaged: a tensor has no shape and strides")
        if len(shape) != len(strides) or not _sizes(shape) or not _sizes((offset, *strides)):
            raise CheckpointError("a tensor has an impossible shape, stride or offset")
        elements = math.prod(shape)
        available = self.count * self.dtype.itemsize // dtype.itemsize
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if elements and (last >= available or elements > available):
            raise CheckpointError(f"a tensor of shape {list(shape)} does not fit into its {available} stored elements")
        if self.data is None:
            return None
        if not elements:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.data, dtype=dtype, count=available).as_strided(shape, strides, offset)


def described_storage(identifier) -> tuple[torch.dtype, str, int]:
    """(dtype, key, number of elements) of a persistent id ("storage", type, key, place, count[, view of it])."""
    odd = CheckpointError("it is damaged: a storage is described in a way that is not torch's")
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6) or identifier[0] != "storage":
        raise odd
    kind, key, count = identifier[1], identifier[2], identifier[4]
    if len(identifier) == 6 and identifier[5] is not None:
        raise CheckpointError("it shares storages in the way of torch 0.3, which is not read")
    if not isinstance(kind, Inert) or not isinstance(key, str) or type(count) is not int or not 0 <= count < 2**48:
        raise odd
    name = kind.name.rpartition(".")[2]
    if name not in STORAGES:
        raise odd
    return STORAGES[name], key, count


def read_legacy(data: memoryview, position: int, limits: Limits, table: Mapping[str, Inert]) -> tuple[object, int]:
    """What torch.save wrote before its zip files: (the object, the position after its last storage).

    Four pickles (magic number, protocol, facts of the system, the object), the list of storage keys, then per key the
    number of elements in 8 bytes and their values. The object is read twice: where its storages lie is known only after
    its end.
    """
    found: dict[str, Storage] = {}

    def storage(identifier) -> Storage:
        dtype, key, count = described_storage(identifier)
        known = found.setdefault(key, Storage(dtype, count, None))
        if (known.dtype, known.count) != (dtype, count):
            raise CheckpointError(f"storage {key[:50]!r} is described in two ways")
        return known

    header = []
    for _ in range(3):
        value, position = read_pickle(data, {}, limits, position)
        header.append(value)
    if header[:2] != [LEGACY_MAGIC, LEGACY_PROTOCOL]:
        raise CheckpointError("it is no file of torch.save")
    if not isinstance(header[2], dict) or header[2].get("little_endian") is not True:
        raise CheckpointError("its numbers are big-endian, which is not read")
    begin = position
    _, position = read_pickle(data, table, limits, position, storage)
    keys, position = read_pickle(data, {}, limits, position)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not texts or len(set(keys)) != len(keys) or set(keys) != set(found):
        raise CheckpointError("its list of storages does not fit what it refers to")
    for key in keys:
        dtype, count = found[key].dtype, found[key].count
        size = count * dtype.itemsize
        if len(data) - position < 8 + size:
            raise CheckpointError(f"it is cut off: {len(data) - position} bytes are left for a storage of {8 + size}")
        if int.from_bytes(data[position : position + 8], "little", signed=True) != count:
            raise CheckpointError(f"storage {key[:50]!r} has another size than it is said to have")
        found[key].data = data[position + 8 : position + 8 + size]
        position += 8 + size
    value, _ = read_pickle(data, table, limits, begin, storage)
    return value, position


def _storage_of_bytes(limits: Limits, data) -> Storage:
    """``torch.storage._load_from_bytes``: torch would unpickle these bytes unrestrictedly; we read them as a file."""
    view = _shareable(limits, data)
    limits.copy(len(view))  # or the same long text in it could be read again and again
    value, end = read_legacy(view, 0, limits, NAMES)
    if end != len(view):
        raise CheckpointError(f"{len(view) - end} bytes follow a storage where it should end")
    if not isinstance(value, Storage):
        raise CheckpointError("it is damaged: a storage's bytes hold something else")
    return value


def _shareable(limits: Limits, data) -> memoryview:
    """Bytes as memory that tensors may share: a view of the file as it is, short or decoded bytes as a copy."""
    if isinstance(data, memoryview):
        return data
    if isinstance(data, str):  # bytes, as Python 2 wrote them
        data = data.encode("latin-1")
    if not isinstance(data, bytes):
        raise CheckpointError("it is damaged: something else stands where the bytes of an array should be")
    limits.copy(len(data))
    return memoryview(bytearray(data))


def _rebuild_tensor(storage, offset, shape, strides, *_rest) -> torch.Tensor | None:
    if not isinstance(storage, Storage):
        raise CheckpointError("it is damaged: a tensor is not made of a storage")
    return storage.view(storage.dtype, offset, shape, strides)


def _rebuild_untyped(storage, offset, shape, strides, _grad, _hooks, dtype, *_rest) -> torch.Tensor | None:
    kind = TORCH_DTYPES.get(dtype.name) if isinstance(dtype, Inert) else None
    if kind is None or not isinstance(storage, Storage):
        raise CheckpointError("it is damaged: a tensor is not made of a storage and a type")
    return storage.view(kind, offset, shape, strides)


@dataclass
class ArrayDtype:
    """A NumPy dtype: a code such as "f4" and whether it is stored big-endian."""

    code: str
    big_endian: bool = False

    @property
    def torch(self) -> torch.dtype:
        kind = ARRAY_DTYPES.get(self.code)
        if kind is None or self.big_endian:
            order = ", big-endian" if self.big_endian else ""
            raise CheckpointError(f"an array has the type {self.code[:20]!r}{order}, which is not read")
        return kind


def _dtype(code, *_) -> ArrayDtype:
    if not isinstance(code, str) or len(code) > 16:
        raise CheckpointError("it is damaged: an array's type is no short text")
    return ArrayDtype(code.lstrip("<=|"))


def _build_dtype(dtype: ArrayDtype, state) -> ArrayDtype:
    if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
        return ArrayDtype(dtype.code, big_endian=dtype.torch.itemsize > 1)
    return dtype


def _array(limits: Limits, data, dtype, shape, order="C") -> torch.Tensor:
    dtype = dtype.value if isinstance(dtype, Pending) else dtype
    if not isinstance(dtype, ArrayDtype) or not isinstance(shape, tuple):
        raise CheckpointError("it is damaged: an array is not made of bytes, a type and a shape")
    kind, view = dtype.torch, _shareable(limits, data)
    if not _sizes(shape):
        raise CheckpointError("an array has an impossible shape")
    if math.prod(shape) * kind.itemsize != len(view):
        raise CheckpointError(f"an array of shape {list(shape)} does not fit its {len(view)} bytes")
    fortran = order == "F"
    strides, step = [], 1
    for n in shape if fortran else reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    strides = tuple(strides if fortran else reversed(strides))
    return Storage(kind, len(view) // kind.itemsize, view).view(kind, 0, shape, strides)


def _build_array(limits: Limits, _, state) -> torch.Tensor:
    if not isinstance(state, tuple) or len(state) != 5:
        raise CheckpointError("it is damaged: an array has no shape, type and values")
    _, shape, dtype, fortran, data = state
    return _array(limits, data, dtype, shape, "F" if fortran else "C")


def _scalar(limits: Limits, dtype, data=b"") -> int | float | bool:
    return _array(limits, data, dtype, ()).item()


def _encode(limits: Limits, text, encoding="latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError("it is damaged: text is turned into bytes in an unknown way")
    limits.copy(len(text))
    return text.encode("latin-1")


def _network(meta) -> Record:
    """A network saved by StyleGAN2-ADA or StyleGAN3: its source text is in there too, and is not looked at."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise CheckpointError("it is damaged: a saved network is not described as such")
    version = meta.get("version")
    if type(version) is not int or version != PERSISTENT_VERSION:
        shown = version if type(version) is int else f"a {type(version).__name__}"
        raise CheckpointError(f"a network is saved in version {shown}; only {PERSISTENT_VERSION} is known")
    state = meta.get("state")
    if state is not None and not isinstance(state, dict):
        raise CheckpointError("it is damaged: the state of a saved network is no dictionary")
    return Record("torch_utils.persistence", meta["class_name"], state or {})


def _mapping(*arguments) -> dict:
    """dict(), OrderedDict(), Counter(), EasyDict(): of nothing, of a mapping, of a list of pairs."""
    pairs = [argument for argument in arguments if not isinstance(argument, Inert) and argument is not None]
    if not pairs:
        return {}
    items = list(pairs[0].items()) if isinstance(pairs[0], dict) else pairs[0]
    if len(pairs) > 1 or not isinstance(items, list):
        raise CheckpointError("it is damaged: a dictionary is made of something else than keys and values")
    result = {}
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise CheckpointError("it is damaged: a dictionary is made of something else than keys and values")
        result[plain_key(item[0])] = item[1]
    return result


def _members(kind: type) -> Callable:
    def make(items=()):
        if not isinstance(items, (list, tuple)):
            raise CheckpointError("it is damaged: a set is made of something else than its members")
        return kind(plain_key(item) for item in items)

    return make


def _size(items=()) -> tuple:
    if not isinstance(items, (list, tuple)):
        raise CheckpointError("it is damaged: a size is no list")
    return tuple(items)


def _joined(separator: str) -> Callable:
    """Short texts and numbers in one: paths, devices."""

    def make(*parts) -> str:
        if not all(isinstance(part, (str, int)) for part in parts) or sum(len(str(part)) for part in parts) > MAX_TEXT:
            raise CheckpointError("it is damaged: a path or a device is no short text")
        return separator.join(map(str, parts))

    return make


def _network_tf() -> Record:
    return Record("dnnlib.tflib.network", "Network", {})


def _first(value, *_rest):
    return value


def _table() -> dict[str, Inert]:
    makers: dict[str, Callable | None] = {
        "torch_utils.persistence._reconstruct_persistent_obj": _network,
        "dnnlib.tflib.network.Network": _network_tf,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v3": _rebuild_untyped,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch.Size": _size,
        "torch.device": _joined(":"),
        "argparse.Namespace": _mapping,
    }
    makers |= {f"{module}.{name}": None for module in ("torch", "torch.storage") for name in STORAGES}
    makers |= {name: None for name in TORCH_DTYPES}
    for name in ("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"):
        makers[name] = _mapping
    for name in ("dnnlib.util.EasyDict", "dnnlib.EasyDict", "torch_utils.misc.EasyDict"):
        makers[name] = _mapping
    for name in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"):
        makers[f"pathlib.{name}"] = makers[f"pathlib._local.{name}"] = _joined("/")
    makers |= {"builtins.set": _members(set), "builtins.frozenset": _members(frozenset), "builtins.bytes": lambda: b""}
    table = {name: Inert(name, make) for name, make in makers.items()}
    table["numpy.dtype"] = Inert("numpy.dtype", _dtype, _build_dtype)
    table["numpy.ndarray"] = Inert("numpy.ndarray")
    for name in ("dict", "set", "frozenset", "bytes"):  # as Python 2 and protocol 2 name them
        table[f"__builtin__.{name}"] = table[f"builtins.{name}"]
    return table


TORCH_DTYPES = {str(dtype): dtype for dtype in STORAGES.values()}
NAMES = _table()


def names(limits: Limits) -> dict[str, Inert]:
    """What the names in one file stand for; those that copy bytes count them against the file's limits."""
    counted = {
        "torch.storage._load_from_bytes": Inert("torch.storage", functools.partial(_storage_of_bytes, limits)),
        "_codecs.encode": Inert("_codecs.encode", functools.partial(_encode, limits)),
    }
    for module in ("numpy.core", "numpy._core"):
        reconstruct = Inert("numpy.array", lambda *_: None, functools.partial(_build_array, limits))
        counted[f"{module}.multiarray._reconstruct"] = reconstruct
        counted[f"{module}.multiarray.scalar"] = Inert("numpy.scalar", functools.partial(_scalar, limits))
        counted[f"{module}.numeric._frombuffer"] = Inert("numpy.array", functools.partial(_array, limits))
    return NAMES | counted
