"""Pickles, torch's files and everything that is neither: read as data, or refused with one line; never run."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pickle_writer import Call, Name, Persistent, ada_network, dumps

import fastinv
from fastinv.checkpoints import containers, pickles
from fastinv.checkpoints.containers import read_data, read_file
from fastinv.checkpoints.pickles import Record
from fastinv.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = sorted(path for path in (GOLDEN / "hostile").iterdir() if path.suffix != ".md")


def read(data: bytes):
    return read_data(bytearray(data), "a.pkl").value


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that a hostile checkpoint creates when something in it runs."""
    path = tmp_path / "marker"
    monkeypatch.setenv("FASTINV_MARKER", str(path))
    yield path
    assert not path.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_every_protocol(protocol):
    value = {
        "none": None, "truth": [True, False], "integers": [0, -1, 255, 65535, -(2**31), 2**40, -(2**100), 2**300],
        "floats": (0.5, -1e300, float("inf")), "text": ["", "x" * 300, "Grüße ☃", "\ud800"],
        3: {"nested": ((), (1,), (1, 2))}, "set": {"a", "b"}, "frozen": frozenset({1, 2}),
    }  # fmt: skip
    if protocol > 2:  # which has no bytes; Python writes them as text, see _codecs.encode
        value["bytes"] = [b"", b"short", b"\x00\xff" * 600]
    def plain(item):
        if isinstance(item, memoryview):
            return bytes(item)
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        return type(item)(map(plain, item)) if isinstance(item, (list, tuple)) else item

    assert plain(read(pickle.dumps(value, protocol))) == value


def test_what_is_shared_stays_shared():
    inner = [1]
    first, second = read(pickle.dumps([inner, inner], 2))
    assert first is second


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_what_torch_saves(dtype, zipped):
    base = (torch.arange(24).reshape(2, 3, 4) % 3).to(getattr(torch, dtype))
    value = {
        "plain": base, "transposed": base.transpose(0, 2), "slice": base[1:, 1:, ::2], "empty": base[:0],
        "number": base[0, 0, 0], "list": [base, base], "size": base.shape, "dtype": base.dtype,
        "parameter": torch.nn.Parameter(base.clone(), requires_grad=False),
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    found = read(buffer.getvalue())
    assert found["size"] == (2, 3, 4)
    for name in ("plain", "transposed", "slice", "empty", "number", "parameter"):
        assert found[name].dtype == value[name].dtype and torch.equal(found[name], value[name]), name
    assert torch.equal(found["list"][1], base)


def test_tensors_are_views_of_the_file():
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1000)}, buffer)
    data = bytearray(buffer.getvalue())
    x = read_data(data, "a.pkl").value["x"]
    x[3] = 1.0  # nobody does this; it shows whose memory it is
    place = data.find(struct.pack("<f", 1.0))
    assert place > 0 and x.sum() == 1
    data[place : place + 4] = struct.pack("<f", 2.0)
    assert x[3] == 2


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_arrays_and_numbers(order, protocol):
    arrays = {
        name: np.asarray(np.arange(6).reshape(2, 3), dtype=name, order=order)
        for name in ("float32", "float64", "float16", "int32", "int64", "uint8", "bool")
    }
    value = {"arrays": arrays, "number": np.float64(0.25), "count": np.int64(7), "empty": np.zeros((0, 2), np.float32)}
    found = read(pickle.dumps(value, protocol))
    for name, array in arrays.items():
        assert torch.equal(found["arrays"][name], torch.from_numpy(array.copy())), name
    assert (found["number"], found["count"]) == (0.25, 7)
    assert found["empty"].shape == (0, 2)


def test_big_endian_arrays_are_refused():
    with pytest.raises(CheckpointError, match="big-endian"):
        read(pickle.dumps(np.arange(3, dtype=">f4"), 4))


def test_objects_become_records_and_dictionaries():
    value = {
        "options": Call("argparse.Namespace", new=True, state={"lr": 0.1}),
        "easy": Call("dnnlib.util.EasyDict", new=True),
        "path": Call("pathlib.PosixPath", "a", "b.png"),
        "device": Call("torch.device", "cuda", 0),
        "tf": Call("dnnlib.tflib.network.Network", new=True, state={"version": 4, "name": "G"}),
        "ada": ada_network("Generator", {"mapping.w_avg": torch.ones(2)}),
    }
    found = read(dumps(value))
    assert found["options"] == {"lr": 0.1} and found["easy"] == {}
    assert (found["path"], found["device"]) == ("a/b.png", "cuda:0")
    assert isinstance(found["tf"], Record) and found["tf"].state == {"version": 4, "name": "G"}
    assert (found["ada"].module, found["ada"].name) == ("torch_utils.persistence", "Generator")
    mapping = found["ada"].state["_modules"]["mapping"]
    assert torch.equal(mapping.state["_parameters"]["w_avg"], torch.ones(2))


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.name)
def test_hostile_files_are_refused(path, marker):
    for load in (fastinv.load_generator, fastinv.load_discriminator, fastinv.load_encoder):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_source_text_in_a_good_file_does_not_run(marker):
    fastinv.load_generator(GOLDEN / "tiny_ada_hostile_source.pkl")


NAMES = (
    "os.system posix.system nt.system subprocess.Popen builtins.eval builtins.exec builtins.compile builtins.getattr "
    "builtins.__import__ builtins.open builtins.print builtins.map __builtin__.apply __builtin__.execfile sys.exit "
    "importlib.import_module runpy._run_code code.interact pty.spawn socket.socket shutil.rmtree webbrowser.open "
    "operator.attrgetter operator.methodcaller functools.partial types.FunctionType types.CodeType marshal.loads "
    "pickle.loads _pickle.loads cloudpickle.loads dill.loads numpy.load numpy.testing._private.utils.runstring "
    "torch.load torch.hub.load torch.storage._load_from_bytes.__globals__ torch.jit.load torch.ops.load_library "
    "torch.utils.cpp_extension.load torch_utils.persistence._module_to_src dnnlib.util.open_url ctypes.CDLL "
    "fastinv.cli.main asyncio.create_subprocess_shell timeit.timeit bdb.Bdb.run pdb.run copyreg.add_extension"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_names_that_could_do_harm(name, marker):
    """As a call, as an object that is made, deep inside, and hidden in the bytes of a storage; in every container."""
    command = "touch $FASTINV_MARKER"
    inner = Call("torch.storage._load_from_bytes", dumps(Call(name, command)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(Call(name, command)))
    for data in (
        dumps(Call(name, command)), dumps(Call(name, command, new=True)), dumps({"G_ema": [Call(name, command)]}),
        dumps({"G_ema": inner}), dumps(Name(name)), buffer.getvalue(),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            read(data)
        assert "\n" not in str(caught.value)


def test_every_opcode_that_is_left_out_is_refused():
    refused = set(range(256)) - set(pickles.OPERATIONS) - {pickles.STOP}
    for code in b"ioP\x82\x83\x84\x97\x98":  # INST OBJ PERSID EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER
        assert code in refused
    for code in refused:
        with pytest.raises(CheckpointError, match="opcode"):
            read(b"\x80\x04" + bytes([code]) + b".")


def remembered(value, operations: bytes) -> bytes:
    """The value as memo entry 0, then what is done with it."""
    return dumps(value)[:-1] + b"q\x00" + operations + b"."


def doubled(count: int) -> bytes:
    """Lists that each hold the one before twice."""
    steps = (b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(count))
    return b"\x80\x02]q\x00" + b"".join(steps) + b"."


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x80\x04", "cut off"),
        (b"\x80\x04.", "no operand"),
        (b"\x80\x04(.", "no operand"),
        (b"\x80\x04N.N", "goes on for 1 bytes"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".", "bytes are announced"),
        (b"\x80\x04T" + struct.pack("<i", -5) + b".", "bytes are announced"),
        (b"\x80\x04X" + struct.pack("<I", 2**31) + b".", "bytes are announced"),
        (b"\x80\x04\x8b" + struct.pack("<i", 100) + bytes(100) + b".", "integer of 100 bytes"),
        (b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b"j" + struct.pack("<I", 7) + b".", "never stored"),
        (b"\x80\x04" + b"]" * 1_100_000 + b".", "operations"),
        (b"\x80\x04" + b"]" * 300 + b"a" * 299 + b".", "levels deep"),
        (b"\x80\x04]q\x00h\x00a.", "contains itself"),
        (b"\x80\x04}q\x00X\x01\x00\x00\x00ah\x00s.", "contains itself"),
        (doubled(40), "unfolds"),
        (b"\x80\x04}]Ns.", "as a key"),
        (b"\x80\x04}(NNNu.", "without a value"),
        (b"\x80\x04NNs.", "does not fit its operand"),
        (b"\x80\x04K\x01)R.", "used as a function"),
        (dumps(Name("collections.OrderedDict"))[:-1] + b"NR.", "no list of arguments"),
        (b"\x80\x04c" + b"x" * 5000 + b"\nx\n.", "a line has no end"),
        (dumps(Persistent(("storage", Name("torch.FloatStorage"), "0", "cpu", 4))), "outside itself"),
        (dumps(Call("torch._utils._rebuild_tensor_v2", None, 0, (1,), (1,))), "not made of a storage"),
        (dumps(Call("torch_utils.persistence._reconstruct_persistent_obj", {"type": "function"})), "not described"),
        (dumps(Call("torch_utils.persistence._reconstruct_persistent_obj",
                    {"type": "class", "class_name": "G", "version": 7})), "version 7"),
        (b"\x80\x04c_codecs\nencode\nq\x00" + dumps("x" * 5000)[2:-1] + b"q\x01" + b"h\x00h\x01\x85R" * 1000 + b".",
         "repeats its data"),
        (dumps(Call("_codecs.encode", "x", "rot13")), "unknown way"),
        (remembered({str(i): i for i in range(20_000)}, b"ccollections\nOrderedDict\nh\x00\x85R" * 1000), "operations"),
        (remembered({str(i): i for i in range(20_000)}, b"}h\x00b" * 1000), "operations"),
        (remembered("x" * 5000, b"cnumpy\ndtype\nh\x00\x85R"), "no short text"),
        (b"\x80\x04}(K\x01K\x02\x86Nu.", "a tuple as a key"),
        (remembered("x" * 5000, b"cpathlib\nPosixPath\nh\x00\x85R"), "no short text"),
        (dumps(Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (0,), b"b",
                    state=(1, (2**40,), Call("numpy.dtype", "f4"), False, b"1234"))), "does not fit its 4 bytes"),
        (dumps(Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (0,), b"b",
                    state=(1, (1,), Call("numpy.dtype", "O8"), False, b"12345678"))), "type 'O8'"),
    ],
)  # fmt: skip
def test_damaged_and_overblown_pickles(data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(data)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("cannot read a.pkl: ")


def geometry(offset, shape, strides):
    storage = Call("torch.storage._load_from_bytes", _storage_bytes(torch.arange(4.0)))
    return dumps(Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, {}))


def _storage_bytes(tensor: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_tensors_stay_inside_their_storage():
    assert torch.equal(read(geometry(1, (3,), (1,))), torch.tensor([1.0, 2, 3]))
    assert torch.equal(read(geometry(0, (2, 2), (0, 1))), torch.tensor([[0.0, 1], [0, 1]]))
    bad = [
        (2, (3,), (1,)), (0, (5,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (-1,), (1,)), (0, (2,), (-1,)),
        (0, (8,), (0,)), (0, (2**47,), (0,)), (0, (2**62,), (1,)), (2**62, (1,), (1,)), (0, (1.5,), (1,)),
        (0, ("a",), (1,)), (0, (1,), (1, 1)), (0, (1,) * 20, (1,) * 20), (0, [1], [1]),
    ]  # fmt: skip
    for place in bad:
        with pytest.raises(CheckpointError):
            read(geometry(*place))


def test_storages_are_as_long_as_they_say():
    good = _storage_bytes(torch.arange(4.0))
    for data in (good + b"x", good[:-1], good[:-16] + struct.pack("<f", 1.0)):
        with pytest.raises(CheckpointError):
            read(dumps(Call("torch.storage._load_from_bytes", data)))


def zipped(files: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def reference(key="0", count=4, kind="torch.FloatStorage"):
    storage = Persistent(("storage", Name(kind), key, "cpu", count))
    return dumps({"x": Call("torch._utils._rebuild_tensor_v2", storage, 0, (count,), (1,), False, {})})


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a/data.pkl": reference()}, "'a/data/0' is missing"),
        ({"a/data.pkl": reference(), "a/data/0": bytes(15)}, "15 bytes"),
        ({"a/data.pkl": reference(key="../../../etc/passwd")}, "missing"),
        ({"a/data.pkl": reference(kind="os.system")}, "posix|os.system"),
        ({"a/data.pkl": reference(count=-4)}, "described"),
        ({"a/data.pkl": reference(), "a/data/0": bytes(16), "a/byteorder": b"big"}, "big-endian"),
        ({"a/data.pkl": reference(), "b/data.pkl": b""}, "not torch's"),
        ({"a/data.pkl": reference(), "a/code/model.py": b"", "a/data/0": bytes(16)}, "TorchScript"),
        ({"a/x.npy": b""}, "NumPy"),
        ({"readme.txt": b"hello"}, "not torch's"),
        ({"a/data.pkl": b""}, "cut off"),
    ],
)
def test_zip_files(files, message):
    with pytest.raises(CheckpointError, match=message):
        read(zipped(files))


def test_zip_files_with_compression_or_double_names():
    files = {"a/data.pkl": reference(), "a/data/0": bytes(16)}
    assert torch.equal(read(zipped(files))["x"], torch.zeros(4))
    with pytest.raises(CheckpointError, match="compressed"):
        read(zipped(files, zipfile.ZIP_DEFLATED))
    buffer = io.BytesIO(zipped(files))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("a/data.pkl", dumps({}))
    with pytest.raises(CheckpointError, match="twice"):
        read(buffer.getvalue())


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>", "web page"),
        (b"\n\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"BZh9", "bzip2"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"hello world", "no checkpoint that is known"),
        (b"\x80\xff", "no checkpoint that is known"),
        (b"PK\x03\x04rest", "cut off or damaged"),
        (b"\x01\x00\x00\x00\x00\x00\x00\x00{", "cannot read"),
    ],
)
def test_files_that_are_something_else(data, message, tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_file(path)
    assert "\n" not in str(caught.value) and "network.pkl" in str(caught.value)


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_file(tmp_path / "none.pkl")
    with pytest.raises(CheckpointError, match="directory"):
        read_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        read_file(tmp_path / "pipe")


def test_only_what_we_make_ends_in_the_table():
    """No name stands for anything outside our package or for a type of Python's that runs code."""
    for inert in containers.names(pickles.Limits(0)).values():
        for function in (inert.make, inert.build):
            function = getattr(function, "func", function)
            assert function is None or function.__module__ == "fastinv.checkpoints.tensors", inert.name
