"""Writes pickles that name whatever a test wants, without those names existing: what other people's files look like."""

import io
import struct

import numpy as np
import torch


class Call:
    """What a pickle makes by calling a global name with arguments, and then gives a state."""

    def __init__(self, name: str, *arguments, state=None, new: bool = False):
        self.name, self.arguments, self.state, self.new = name, arguments, state, new


class Name:
    """A global name itself."""

    def __init__(self, name: str):
        self.name = name


class Persistent:
    """A persistent id."""

    def __init__(self, identifier):
        self.identifier = identifier


def dumps(value) -> bytes:
    """The value as a pickle of protocol 2 with binary bytes of protocol 3 and 4."""
    out = io.BytesIO()
    out.write(b"\x80\x04")
    _write(out.write, value)
    out.write(b".")
    return out.getvalue()


def _write(emit, value) -> None:
    if value is None or isinstance(value, bool):
        emit({None: b"N", True: b"\x88", False: b"\x89"}[value])
    elif isinstance(value, int):
        size = value.bit_length() // 8 + 1
        emit(b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True))
    elif isinstance(value, float):
        emit(b"G" + struct.pack(">d", value))
    elif isinstance(value, str):
        data = value.encode()
        emit(b"X" + struct.pack("<I", len(data)) + data)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        emit(b"\x8e" + struct.pack("<Q", len(value)))
        emit(value)
    elif isinstance(value, dict):
        emit(b"}(")
        for key, item in value.items():
            _write(emit, key)
            _write(emit, item)
        emit(b"u")
    elif isinstance(value, (list, tuple)):
        emit(b"(" if isinstance(value, tuple) else b"](")
        for item in value:
            _write(emit, item)
        emit(b"t" if isinstance(value, tuple) else b"e")
    elif isinstance(value, set):
        _write(emit, Call("builtins.set", sorted(value)))
    elif isinstance(value, Name):
        module, _, name = value.name.rpartition(".")
        emit(f"c{module}\n{name}\n".encode())
    elif isinstance(value, Persistent):
        _write(emit, value.identifier)
        emit(b"Q")
    elif isinstance(value, Call):
        _write(emit, Name(value.name))
        _write(emit, tuple(value.arguments))
        emit(b"\x81" if value.new else b"R")
        if value.state is not None:
            _write(emit, value.state)
            emit(b"b")
    elif isinstance(value, torch.Tensor):
        _write(emit, tensor(value))
    elif isinstance(value, np.ndarray):
        _write(emit, array(value))
    else:
        raise TypeError(type(value))


def tensor(value: torch.Tensor) -> Call:
    """As pickle.dump writes a tensor: its storage nested as a file of torch.save's old format."""
    value = value.contiguous()
    buffer = io.BytesIO()
    torch.save(value.untyped_storage() if value.dtype == torch.uint8 else _typed(value), buffer,
               _use_new_zipfile_serialization=False)  # fmt: skip
    storage = Call("torch.storage._load_from_bytes", buffer.getbuffer())
    rebuilt = (storage, 0, tuple(value.shape), tuple(value.stride()), False, Call("collections.OrderedDict"))
    return Call("torch._utils._rebuild_tensor_v2", *rebuilt)


def _typed(value: torch.Tensor):
    return torch.storage.TypedStorage(wrap_storage=value.untyped_storage(), dtype=value.dtype, _internal=True)


def array(value: np.ndarray) -> Call:
    """As pickle.dump writes a NumPy array."""
    dtype = Call("numpy.dtype", value.dtype.str[1:], False, True, state=(3, "<", None, None, None, -1, -1, 0))
    state = (1, value.shape, dtype, False, memoryview(np.ascontiguousarray(value)).cast("B"))
    return Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (0,), b"b", state=state)


def ada_network(class_name: str, tensors: dict[str, torch.Tensor], **attributes) -> Call:
    """A network as StyleGAN2-ADA pickles it, every module a saved object of its own."""
    children: dict[str, dict] = {}
    own = {}
    for name, value in tensors.items():
        head, _, rest = name.partition(".")
        (children.setdefault(head, {}) if rest else own)[rest or head] = value
    modules = {name: ada_network(_class_of(name), inside) for name, inside in children.items()}
    hooks = Call("collections.OrderedDict")
    parameters = {name: Call("torch._utils._rebuild_parameter", value, True, hooks) for name, value in own.items()}
    state = {"training": False, "_parameters": parameters, "_buffers": {}, "_modules": modules}
    state |= {"_init_args": [], "_init_kwargs": {}, **attributes}
    meta = {"type": "class", "version": 6, "module_src": "# none", "class_name": class_name, "state": state}
    return Call("torch_utils.persistence._reconstruct_persistent_obj", meta)


def _class_of(name: str) -> str:
    if name in ("mapping", "synthesis"):
        return {"mapping": "MappingNetwork", "synthesis": "SynthesisNetwork"}[name]
    if name.startswith("conv"):
        return "SynthesisLayer"
    if name == "torgb":
        return "ToRGBLayer"
    return "SynthesisBlock" if name.startswith("b") and name[1:].isdigit() else "FullyConnectedLayer"
