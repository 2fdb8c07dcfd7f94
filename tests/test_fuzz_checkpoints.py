"""Damaged checkpoints by the thousand, that the fuzzer notices faults, and what it or a reader's eye found."""

import io
import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import checkpoint_fuzzer
import pytest
import torch
from full_size_files import filled, tensorflow
from pickle_writer import Call, Name, Persistent, dumps
from safetensors.torch import save_file
from test_pickles import doubled

from fastinv.checkpoints import load_generator, open_checkpoint
from fastinv.checkpoints.containers import read_data, read_file
from fastinv.checkpoints.load import checkpoint_of
from fastinv.errors import CheckpointError
from fastinv.models.stylegan2 import Generator

FUZZER = Path(checkpoint_fuzzer.__file__)


# The fuzzer


def fuzz(*arguments):
    result = subprocess.run([sys.executable, FUZZER, *arguments], capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    words = result.stdout.split()  # "5 were read, 7 refused, in 3 s"
    return int(words[0]), int(words[3])


def test_some_damaged_files():
    read, refused = fuzz("--count", "2000", "--seed", "1")
    assert read + refused == 2000
    assert read > 50 and refused > 1000  # damage that nobody can notice, in weights, and damage that is noticed


@pytest.mark.slow
def test_many_damaged_files():
    assert sum(fuzz("--count", "100000", "--seed", "2")) == 100_000


@pytest.mark.filterwarnings("ignore::fastinv.checkpoints.CheckpointWarning")
def test_seeds_cover_every_container_and_family(tmp_path):
    containers, families, kinds = set(), set(), set()
    for seed in checkpoint_fuzzer.seeds():
        (tmp_path / seed.name).write_bytes(seed.data)
        checkpoint = open_checkpoint(tmp_path / seed.name)
        containers.add(checkpoint.container)
        families.add(checkpoint.family)
        for kind in checkpoint.networks:
            checkpoint.load(kind)
            kinds.add(kind)
        assert len(seed.operations) > 100 or seed.name.endswith(".safetensors"), seed.name
    assert containers == {"pickle", "torch zip", "torch stream", "safetensors"}
    assert len(families) == 9 and kinds == {"generator", "discriminator", "encoder"}


def test_inputs_can_be_made_again():
    seeds = checkpoint_fuzzer.seeds()
    inputs = [checkpoint_fuzzer.mutated(seeds, 5, number) for number in range(300)]
    assert inputs == [checkpoint_fuzzer.mutated(seeds, 5, number) for number in range(300)]
    assert len({data for _, data in inputs}) > 250
    assert [data for _, data in inputs[:50]] != [checkpoint_fuzzer.mutated(seeds, 6, n)[1] for n in range(50)]
    good = {seed.data for seed in seeds}
    assert sum(data in good for _, data in inputs) < 60


PLANTED = """
import ctypes, os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import checkpoint_fuzzer
from fastinv.checkpoints import load
from fastinv.errors import CheckpointError

def odd_error(contents, path): raise LookupError("planted")
def endless(contents, path):
    while True: pass
def file(contents, path): open(os.devnull).close()
def process(contents, path): os.system("true")
def module(contents, path): import this_module_is_nowhere
def memory(contents, path):
    try: bytearray(1 << 33)
    except MemoryError as error: raise CheckpointError(f"{path} is large") from error
def two_lines(contents, path): raise CheckpointError(f"{path}\\nis odd")
def nameless(contents, path): raise CheckpointError("it is odd")
def crash(contents, path): ctypes.string_at(0)

seeds, original = checkpoint_fuzzer.seeds(), load.checkpoint_of
for plant in (odd_error, endless, file, process, module, memory, two_lines, nameless, crash):
    def planted(contents, path):
        if "fuzzed" in str(path): plant(contents, path)
        return original(contents, path)
    load.checkpoint_of = checkpoint_fuzzer.checkpoint_of = planted
    found = checkpoint_fuzzer.run(6, 0, workers=1, all_seeds=seeds[:1])
    print(plant.__name__, found["faults"][:1])
"""


def test_planted_faults_are_noticed(run_python):
    result = run_python(PLANTED, str(FUZZER.parent))
    assert result.returncode == 0, result.stderr
    found = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    expected = {
        "odd_error": "LookupError: planted", "endless": "took more than 2.0 seconds", "file": "Python reports open",
        "process": "Python reports os.system", "module": "ModuleNotFoundError", "memory": "asked for more than",
        "two_lines": "an unclear line", "nameless": "an unclear line", "crash": "the process ended with -11",
    }  # fmt: skip
    for name, message in expected.items():
        assert message in found[name], result.stdout


# What would have made a reader hang, grow, or say something unclear; each of these once did.


def body(value) -> bytes:
    """The opcodes of a value, without the pickle's beginning and end."""
    return value if isinstance(value, bytes) else dumps(value)[2:-1]


def pickled(*parts) -> bytes:
    return b"\x80\x04" + b"".join(body(part) for part in parts) + b"."


def stream(value, keys) -> bytes:
    """What torch.save wrote before its zip files, with another list of storages."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = buffer.getvalue()
    head = head[: head.index(b"\x80\x02}q\x00.\x80\x02]")]
    return head + pickled(value) + pickled(keys)


def refused(data: bytes, message: str, seconds=1.0):
    """Reading the bytes is refused, with one line, in little time of the processor."""
    started = time.process_time()
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint_of(read_data(bytearray(data), "a.pkl"), "a.pkl")
    assert time.process_time() - started < seconds
    assert str(caught.value).isprintable() and "a.pkl" in str(caught.value)


BOMB = doubled(40)[2:-1]  # 2^40 lists when written out
PERSISTENT = b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def storage(tensor) -> bytes:
    """A call that makes a tensor's storage."""
    return body(tensor).split(REBUILD)[1][1:].split(b"\x8a\x01\x00(")[0]


def test_what_is_shared_exponentially_is_never_written_out():
    refused(pickled(BOMB, "name", b"\x93"), "is no text")
    network = {"type": "class", "class_name": "Generator"}
    refused(pickled(PERSISTENT, network, "version", b"(", BOMB, b"ts\x85R"), "saved in version a tuple")
    refused(pickled(PERSISTENT, {**network, "version": 7}, b"\x85R"), "saved in version 7")
    rest = body(False) + body({}) + b"tR"
    tensor = REBUILD + b"(" + storage(torch.zeros(3)) + body(0) + b"(" + BOMB + b"t" + b"(" + BOMB + b"t" + rest
    refused(pickled(tensor), "impossible shape")
    array = (b"cnumpy._core.numeric\n_frombuffer\n(", memoryview(b"1234"), Call("numpy.dtype", "f4"))
    refused(pickled(*array, b"(", BOMB, b"ttR"), "impossible shape")
    refused(stream({}, BOMB), "list of storages")


def test_keys_cannot_collide():
    """All multiples of 2^61 - 1 have the same hash: a dict of n of them takes n^2 / 2 comparisons."""
    numbers = [n * (2**61 - 1) for n in range(1, 3)]
    for keys in (numbers, [(number,) for number in numbers]):
        refused(pickled(b"}(", *(part for key in keys for part in (key, None)), b"u"), "as a key")
        refused(pickled(b"\x8f(", *keys, b"\x90"), "as a key")
        refused(pickled(Call("builtins.set", keys)), "as a key")
        refused(pickled(Call("collections.OrderedDict", [[key, 1] for key in keys])), "as a key")


def test_the_same_work_cannot_be_asked_for_again_and_again():
    large = body({f"{n:x}": None for n in range(5000)})
    refused(pickled(b"(", large, b"\x94", b"}", b"h\x00b" * 20_000, b"t"), "more than 1000000 operations")
    listed = body([0] * 5000)
    sizes = b"ctorch\nSize\nh\x00\x85R" * 20_000
    refused(pickled(b"(", listed, b"\x94", sizes, b"t"), "more than 1000000 operations")
    shape = (2**500,) * 5000
    array = Call("numpy._core.numeric._frombuffer", bytes(4), Call("numpy.dtype", "f4"), shape)
    refused(pickled(array), "impossible shape")
    key = "x" * 200_000
    described = Persistent(("storage", Name("torch.FloatStorage"), key, "cpu", 1, None))
    text = stream(described, [key]) + struct.pack("<qf", 1, 0.5)
    assert read_data(bytearray(text), "a.pt").value.count == 1
    load = b"ctorch.storage\n_load_from_bytes\n"
    refused(pickled(b"(", memoryview(text), b"\x94", (load + b"h\x00\x85R") * 200, b"t"), "repeats its data")


def test_tensors_cannot_overlap_without_end():
    """A family that scales what it reads would otherwise make a copy of the same memory for every name."""
    shared = pickled(b"(", torch.zeros(100_000), b"\x94", b"h\x00" * 2000, b"t")
    refused(shared, "unfolds into")
    few = pickled(b"(", torch.zeros(100_000), b"\x94", b"h\x00" * 4, b"t")
    assert len(read_data(bytearray(few), "a.pkl").value) == 5


def test_names_out_of_a_file_stay_on_one_line():
    meta = {"type": "class", "version": 6, "class_name": "odd\n\x1b[2Jname", "state": {}}
    refused(pickled([Call("torch_utils.persistence._reconstruct_persistent_obj", meta)]), "one list, no network")
    data = pickled(Call("torch_utils.persistence._reconstruct_persistent_obj", meta))
    with pytest.raises(CheckpointError, match=r"unknown class") as caught:
        checkpoint_of(read_data(bytearray(data), "a.pkl"), "a.pkl").load("generator")
    assert str(caught.value).isprintable()
    refused(pickled({"one\ntwo\x1b": 1}), r"the entries one\\ntwo\\x1b, no network")


def ours(path, kind, config, **more):
    save_file({"x": torch.zeros(1)}, path, {"fastinv": json.dumps({"kind": kind, "config": config, **more})})
    return path


@pytest.mark.parametrize("count", [10**5, 10**9, 10**4000])
@pytest.mark.parametrize(
    ("kind", "model", "config"),
    [
        ("generator", "stylegan2", {"resolution": 8, "mapping_layers": "count"}),
        ("generator", "stylegan1", {"resolution": 8, "mapping_layers": "count"}),
        ("generator", "stylegan2", {"resolution": "count"}),
        ("discriminator", "stylegan2", {"resolution": 8, "c_dim": 1, "mapping_layers": "count"}),
        ("encoder", "psp", {"num_ws": "count"}),
        ("encoder", "e4e", {"units": ["count"] * 4}),
        ("encoder", "alae", {"input_resolution": 8, "num_ws": "count"}),
    ],
)
def test_configurations_cannot_ask_for_more_than_the_file_has(kind, model, config, count, tmp_path):
    config = json.loads(json.dumps(config).replace('"count"', str(count)))
    path, started = ours(tmp_path / "a.safetensors", kind, config, model=model), time.process_time()
    with pytest.raises(CheckpointError, match="does not fit its configuration") as caught:
        open_checkpoint(path).load(kind)
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 1000
    assert torch.is_grad_enabled()  # which constructors turn off for a while


def test_odd_safetensors_are_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="holds a nameless thing, no network"):
        open_checkpoint(ours(tmp_path / "nameless.safetensors", "", {}))
    header = b'{"x":{"dtype":"F32\\u001b","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "odd.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"^cannot read [^ ]+odd.safetensors: Error") as caught:
        open_checkpoint(tmp_path / "odd.safetensors")
    assert str(caught.value).isprintable()


def test_layers_without_width_are_refused_by_name():
    state = filled(Generator, resolution=8, z_dim=2, w_dim=2, channels={4: 2, 8: 2}, mapping_layers=1).state_dict()
    state |= {name: torch.zeros(0, *t.shape[1:]) for name, t in state.items() if "b8.conv1." in name and t.ndim}
    checkpoint = checkpoint_of(read_data(bytearray(pickled(state)), "a.pkl"), "a.pkl")
    with pytest.raises(CheckpointError, match=r"^a\.pkl does not fit its configuration"):
        checkpoint.load("generator")


def test_a_mapping_network_that_must_be_run_is_not_deep():
    state = {"conv1.conv.modulation.weight": torch.zeros(1, 1), "to_rgbs.0.conv.weight": torch.zeros(1, 3, 1, 1, 1)}
    state |= {f"style.{n}.weight": torch.zeros(1, 1) for n in range(1, 70)}
    checkpoint = checkpoint_of(read_data(bytearray(pickled(state)), "a.pkl"), "a.pkl")
    with pytest.raises(CheckpointError, match="mapping network has 69 layers; 64 are the most"):
        checkpoint.load("generator")


def test_memory_of_the_file_is_given_back_and_comes_back(tmp_path):
    G = filled(Generator, resolution=8, z_dim=2, w_dim=2, channels={4: 2, 8: 2}, mapping_layers=8)
    tensorflow(tmp_path / "g.pkl", G)
    contents = read_file(tmp_path / "g.pkl")
    variables = contents.value[2].state["components"]["mapping"].state["variables"]
    before = [(name, value.clone()) for name, value in variables]
    contents.release()
    assert all(torch.equal(value, kept) for (_, value), (_, kept) in zip(variables, before, strict=True))
    assert torch.equal(load_generator(tmp_path / "g.pkl").w_avg, G.w_avg)
