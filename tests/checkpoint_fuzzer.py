"""Mutated checkpoints, all the way from bytes to networks: nothing but a network or one clear line may come out.

    python tests/checkpoint_fuzzer.py --count 1000000 --seed 3

Small files of every container and family are damaged in seeded ways. An input fails when anything but a CheckpointError
of one line with the file's name is raised, when it takes over two seconds or much memory, when a file is opened, a
module imported, a process started (whatever Python's audit hooks tell), or when the process dies. What is printed
repeats it: `--seed 3 --first 4711 --count 1`.
"""

import argparse
import collections
import io
import mmap
import multiprocessing
import os
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import full_size_files as files
import torch
from safetensors.torch import save
from test_families_stylegan1 import generator as stylegan1_generator

from fastinv.checkpoints import CheckpointWarning, open_checkpoint, save_network
from fastinv.checkpoints.containers import read_data
from fastinv.checkpoints.load import checkpoint_of
from fastinv.errors import CheckpointError
from fastinv.models.discriminator import Discriminator
from fastinv.models.encoders import ALAEEncoder, Encoder4Editing, IDInvertEncoder
from fastinv.models.stylegan2 import Generator

SECONDS = 2.0  # of the processor, for one input
MEMORY = 200 << 20  # bytes of address space that one input may add
STUCK = 60  # seconds without a next input until a worker counts as hanging where no signal reaches it
MAX_FAULTS = 20  # of one worker, then it stops
SMALL = {4: 2, 8: 2}
# What an event of Python's audit hooks may be while a file in memory is read. All else is a fault.
HARMLESS = {"builtins.id", "object.__getattr__", "object.__setattr__", "sys._getframe", "code.__new__"}
LENGTHS = (0, 1, -1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))
NAMES = (
    "os system", "posix system", "builtins eval", "builtins getattr", "subprocess Popen", "torch load", "os __class__",
    "torch.storage _load_from_bytes", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "numpy._core.multiarray _reconstruct", "numpy._core.multiarray scalar", "numpy dtype", "numpy ndarray",
    "collections OrderedDict", "builtins set", "_codecs encode", "torch FloatStorage", "torch HalfStorage",
    "torch_utils.persistence _reconstruct_persistent_obj", "dnnlib.tflib.network Network", "argparse Namespace",
    "copyreg _reconstructor", "torch Size", "builtins object", "torch._utils _rebuild_tensor_v3",
)  # fmt: skip
SNIPPETS = [bytes([code]) for code in b"NRb\x81\x92Q()tdlsuea02]}.\x85\x86\x87\x88\x8f\x90\x91\x93\x94"] + [
    b"c" + name.replace(" ", "\n").encode() + b"\n" for name in NAMES
]  # fmt: skip


class Fault(AssertionError):
    """An input after which something else than a network or a CheckpointError came out."""


class Slow(BaseException):
    """Raised by the timer; no handler of the package takes it for damage."""


@dataclass(frozen=True)
class Seed:
    """A good file. ``wrap`` makes a file of a changed ``body``, the part that holds pickles."""

    name: str
    data: bytes
    body: bytes
    operations: tuple[int, ...]  # where the body's opcodes begin, and where the last one ends
    wrap: Callable[[bytes], bytes] = bytes


def seeds() -> list[Seed]:
    """A small file of every container and family."""
    torch.manual_seed(0)
    options = {"w_dim": 2, "channels": SMALL, "mapping_layers": 1}
    G, D = Generator(8, 2, **options), Discriminator(8, channels=SMALL)
    G1 = stylegan1_generator(resolution=8, z_dim=2, **options)
    e4e = Encoder4Editing(2, 2, input_resolution=8, units=(1, 1), channels=(2, 3), pyramid=False)
    idinvert, alae = IDInvertEncoder(8, w_dim=2, channels=(2, 2)), ALAEEncoder(8, w_dim=2, channels=(2, 2, 2))
    writers = {
        "ada.pkl": lambda path: files.ada(path, G_ema=G),
        "ada_discriminator.pkl": lambda path: files.ada(path, D=D),
        "pti.pt": lambda path: files.pti(path, G),
        "pti_old.pt": lambda path: files.pti_old(path, G),
        "rosinality.pt": lambda path: files.rosinality_pt(path, G),
        "rosinality_discriminator.pt": lambda path: torch.save({"d": files.rosinality.checkpoint(G, D)["d"]}, path),
        "tensorflow.pkl": lambda path: files.tensorflow(path, G),
        "tensorflow2.pkl": lambda path: files.tensorflow(path, G, protocol=2),
        "stylegan1.pkl": lambda path: files.tensorflow_stylegan1(path, G1),
        "e4e.pt": lambda path: files.psp(path, e4e, G),
        "genforce.pth": lambda path: files.genforce(path, G),
        "idinvert.pth": lambda path: files.idinvert_encoder(path, idinvert),
        "idinvert_generator.pth": lambda path: files.idinvert_generator(path, G1),
        "alae.pth": lambda path: files.alae(path, G1, alae),
        "ours.safetensors": lambda path: save_network(G, path),
        "encoder.safetensors": lambda path: save_network(e4e, path),
        "other.safetensors": lambda path: Path(path).write_bytes(save(G.state_dict(), {"odd": "{"})),
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in writers.items():
            write(Path(folder) / name)
            found.append(_seed(name, (Path(folder) / name).read_bytes()))
    return found


def _seed(name: str, data: bytes) -> Seed:
    if not data.startswith(b"PK"):
        return Seed(name, data, data, _operations(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    pickled = next(member for member in members if member.endswith("/data.pkl"))

    def wrap(body: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for member, content in members.items():
                fixed = zipfile.ZipInfo(member)  # a name alone would get the time of day
                archive.writestr(fixed, body if member == pickled else content)
        return out.getvalue()

    return Seed(name, wrap(members[pickled]), members[pickled], _operations(members[pickled]), wrap)


def _operations(data: bytes) -> tuple[int, ...]:
    """Positions of opcodes in all pickles from the beginning on."""
    found, file = [0], io.BytesIO(data)
    if data[:1] == b"\x80":
        while data[file.tell() : file.tell() + 1] == b"\x80":
            begin = file.tell()
            found += [begin + position if begin == 0 else position for _, _, position in pickletools.genops(file)]
    return tuple(sorted({*found, file.tell() or len(data)}))


def mutated(all_seeds: list[Seed], seed: int, number: int) -> tuple[str, bytes]:
    """(a description, the bytes) of one input; the same for the same arguments."""
    rng = random.Random(f"{seed}/{number}")
    chosen = rng.choice(all_seeds)
    names = []
    if chosen.name.endswith(".safetensors"):
        data = bytearray(chosen.data)
        names.append(_change_header(rng, data) if rng.random() < 0.7 else _change_bytes(rng, data, chosen.data))
    else:
        body = bytearray(chosen.body)
        in_body = rng.random() < 0.6
        if in_body:
            for _ in range(rng.choice((1, 1, 1, 2, 3))):
                names.append(_change_operations(rng, body, chosen, rng.choice(all_seeds)))
        data = bytearray(chosen.wrap(bytes(body)))
        for _ in range(0 if in_body else rng.choice((1, 1, 1, 2, 4))):
            names.append(_change_bytes(rng, data, rng.choice(all_seeds).data))
    return f"{chosen.name}: {', '.join(names)}", bytes(data)


def _change_bytes(rng: random.Random, data: bytearray, other: bytes) -> str:
    """Damage without regard to what the bytes mean."""
    kind = rng.choice(("flip", "set", "length", "cut", "insert", "delete", "splice", "copy"))
    where = rng.randrange(len(data) + 1)
    # Containers say at their beginning and end what they are; hit those more often.
    where = rng.choice((where, where, min(where, 64), max(0, len(data) - where % 200 - 1)))
    if kind == "flip" and where < len(data):
        data[where] ^= 1 << rng.randrange(8)
    elif kind == "set":
        data[where : where + 1] = bytes([rng.randrange(256)])
    elif kind == "length":
        size, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
        value = rng.choice((*LENGTHS, len(data), len(data) - where, rng.getrandbits(64)))
        data[where : where + size] = (value % (1 << 8 * size)).to_bytes(size, order)
    elif kind == "cut":
        del data[where:]
    elif kind == "insert":
        data[where:where] = rng.choice((rng.randbytes(rng.randrange(1, 9)), rng.choice(SNIPPETS)))
    elif kind == "delete":
        del data[where : where + rng.choice((1, 2, 4, 8, rng.randrange(1, 200)))]
    elif kind == "splice":
        data[where:] = other[rng.randrange(len(other)) :]
    else:
        begin = rng.randrange(len(data) + 1)
        data[where:where] = data[begin : begin + rng.randrange(1, 400)]
    return kind


def _change_operations(rng: random.Random, body: bytearray, seed: Seed, other: Seed) -> str:
    """Damage by whole opcodes; after a first change, positions are only nearly those of opcodes."""
    kind = rng.choice(("swap", "double", "drop", "insert", "foreign", "memo", "name", "number", "byte"))
    places = seed.operations

    def piece(most: int = 1) -> slice:
        index = rng.randrange(len(places) - 1)
        return slice(places[index], places[min(index + rng.randrange(1, most + 1), len(places) - 1)])

    here = piece(rng.choice((1, 3, 20)))
    if kind == "swap":
        there = piece()
        first, second = sorted((here, there), key=lambda part: part.start)
        if first.stop <= second.start:
            body[first.start : second.stop] = (
                body[second] + body[first.stop : second.start] + body[first]
            )  # fmt: skip
    elif kind == "double":
        body[here.stop : here.stop] = body[here] * rng.choice((1, 2, 50))
    elif kind == "drop":
        del body[here]
    elif kind == "insert":
        body[here.start : here.start] = b"".join(rng.choices(SNIPPETS, k=rng.randrange(1, 4)))
    elif kind == "foreign":
        index = rng.randrange(max(1, len(other.operations) - 1))
        end = min(index + rng.randrange(1, 30), len(other.operations) - 1)
        body[here] = other.body[other.operations[index] : other.operations[end]]
    elif kind == "memo":
        _replace(rng, body, seed, b"hqjr\x94", lambda code: code, lambda: rng.randrange(64))
    elif kind == "name":
        names = [place for place in places[:-1] if body[place : place + 1] in (b"c", b"X", b"\x8c")]
        if names:
            place = rng.choice(names)
            end = next(p for p in places if p > place)
            module, name = rng.choice(NAMES).split()
            text = rng.choice((module, name)).encode()
            short = b"\x8c" + bytes([len(text)]) + text
            named = b"c" + f"{module}\n{name}\n".encode()
            body[place:end] = named if body[place : place + 1] == b"c" else short
    elif kind == "number":
        _replace(rng, body, seed, b"KMJG\x8a", lambda code: code, lambda: rng.choice(LENGTHS))
    elif here.start < len(body):
        body[here.start] = rng.randrange(256)
    return kind


def _replace(rng, body: bytearray, seed: Seed, codes: bytes, code_of: Callable, number: Callable) -> None:
    """Another number in an opcode of one of these kinds."""
    places = [place for place in seed.operations[:-1] if place < len(body) and body[place] in codes]
    if places:
        place = rng.choice(places)
        end = min(len(body), next(p for p in seed.operations if p > place))
        size = end - place - 1
        body[place + 1 : end] = (number() % (1 << 8 * size)).to_bytes(size, "little") if size else b""


def _change_header(rng: random.Random, data: bytearray) -> str:
    """Other text in a safetensors header, with its length put right, so that more than the length is looked at."""
    size = struct.unpack("<Q", data[:8])[0]
    header = bytearray(data[8 : 8 + size])
    where = rng.randrange(len(header))
    texts = (b"0", b"-1", b"9" * 30, b"null", b"[]", b"{}", b'"', b"\\n", b"\\u001b", b"true", b"1e400")
    texts += (b"F64", b"F8_E4M3", b"I64", b"BOOL")
    kind = rng.choice(("text", "number", "delete", "copy"))
    digits = [index for index, byte in enumerate(header) if byte in b"0123456789"]
    if kind == "text":
        header[where : where + rng.choice((0, 1, 3))] = rng.choice(texts)
    elif kind == "number":
        where = rng.choice(digits)
        header[where : where + 1] = rng.choice((b"0", b"1", b"7", b"-3", b"99999", b"1" * 25, b"0.5", b"null"))
    elif kind == "delete":
        del header[where : where + rng.randrange(1, 60)]
    else:
        begin = rng.randrange(len(header))
        header[where:where] = header[begin : begin + rng.randrange(1, 60)]
    data[: 8 + size] = struct.pack("<Q", len(header)) + header
    return f"header {kind}"


class Guard:
    """Watches one input at a time; made once in a process, which it limits for good."""

    def __init__(self, folder: Path):
        self.path = folder / f"fuzzed-{os.getpid()}"
        self.watching, self.in_file, self.seen = False, False, []
        resident = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (resident + MEMORY, resource.RLIM_INFINITY))
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", CheckpointWarning)
        signal.signal(signal.SIGPROF, self._late)
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple) -> None:
        own = event == "mmap.__new__" or (event == "open" and str(arguments[0]) == str(self.path))
        if self.watching and event not in HARMLESS and not (self.in_file and own):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _late(self, *_) -> None:
        self.watching = False
        raise Slow

    def attempt(self, data: bytes) -> str:
        """"network", or "refused: ..." with the line that a user would see; everything else is a Fault."""
        self.in_file = data[8:9] == b"{"  # so `read_file` takes safetensors, which are read from the file itself
        if self.in_file:
            self.path.write_bytes(data)
        self.seen = []
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            self.watching = True
            if self.in_file:
                checkpoint = open_checkpoint(self.path)
            else:
                checkpoint = checkpoint_of(read_data(bytearray(data), str(self.path)), self.path)
            for kind in checkpoint.networks:
                checkpoint.load(kind)
            outcome = "network"
        except CheckpointError as error:
            outcome = f"refused: {error}"
            self._check_line(error)
        except Slow as error:
            raise Fault(f"took more than {SECONDS} seconds") from error
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error}") from error
        finally:
            self.watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            if self.in_file:
                self.path.unlink()
        if self.seen:
            raise Fault(f"Python reports {self.seen[0]}")
        return outcome

    def _check_line(self, error: CheckpointError) -> None:
        line, cause = str(error), error
        if self.path.name not in line or not line.isprintable() or len(line) > 2000:
            raise Fault(f"an unclear line: {line[:300]!r}") from error
        while cause is not None:
            if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
                raise Fault(f"asked for more than {MEMORY} bytes: {line[:300]}") from error
            cause = cause.__cause__


def work(all_seeds: list[Seed], seed: int, numbers: range, progress, folder: Path, results) -> None:
    """Try the inputs of these numbers in this process; progress holds the number at hand."""
    guard, outcomes, faults = Guard(folder), collections.Counter(), []
    for number in numbers:
        progress.value = number
        name, data = mutated(all_seeds, seed, number)
        try:
            outcomes[guard.attempt(data).split(":")[0]] += 1
        except Fault as fault:
            faults.append((number, f"{name}: {fault}"))
            if len(faults) == MAX_FAULTS:
                break
    results.put((faults, outcomes))


def run(count: int, seed: int, first: int = 0, workers: int = 2, all_seeds: list[Seed] | None = None) -> dict:
    """Try the inputs first .. first + count - 1.

    Returns:
        {"faults": [(number, what)], "network": how many were read, "refused": how many were not}.
    """
    torch.set_num_threads(1)
    all_seeds = seeds() if all_seeds is None else all_seeds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for good in all_seeds:  # also brings in what is imported at the first use
            _good(good)
    fork = multiprocessing.get_context("fork")
    found = {"faults": [], "network": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        team = []
        for worker in range(workers):
            numbers = range(first + worker, first + count, workers)
            progress, results = fork.Value("q", -1), fork.SimpleQueue()
            process = fork.Process(target=work, args=(all_seeds, seed, numbers, progress, Path(folder), results))
            process.start()
            team.append((process, progress, results))
        for process, progress, results in team:
            _wait(process, progress)
            if results.empty():
                found["faults"].append((progress.value, f"the process ended with {process.exitcode}, or hung"))
                continue
            faults, outcomes = results.get()
            found["faults"] += faults
            found |= {kind: found[kind] + outcomes[kind] for kind in ("network", "refused")}
    return found


def _good(seed: Seed) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / seed.name
        path.write_bytes(seed.data)
        checkpoint = open_checkpoint(path)
        for kind in checkpoint.networks:
            checkpoint.load(kind)


def _wait(process, progress) -> None:
    """Until a worker ends; one that stays at the same input for long is ended."""
    at, since = progress.value, time.monotonic()
    while process.is_alive():
        process.join(0.2)
        if progress.value != at:
            at, since = progress.value, time.monotonic()
        elif time.monotonic() - since > STUCK:
            process.kill()
            process.join()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", type=Path, help="only write the first input to this file")
    options = parser.parse_args(arguments)
    if options.write:
        name, data = mutated(seeds(), options.seed, options.first)
        options.write.write_bytes(data)
        print(f"{options.write}: {name}")
        return 0
    started = time.monotonic()
    found = run(options.count, options.seed, options.first, min(options.workers, options.count))
    for number, what in found["faults"]:
        print(f"FAULT {what}\n  repeat it with --seed {options.seed} --first {number} --count 1")
    print(f"{found['network']} were read, {found['refused']} refused, in {time.monotonic() - started:.0f} s")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
