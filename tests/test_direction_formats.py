"""Files of directions: ours, public ones, and damaged or hostile ones."""

import io
import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from pickle_writer import Call, Name, dumps
from safetensors.torch import save_file

from fastinv.cli import main
from fastinv.editing import formats
from fastinv.editing.direction import Direction, find_direction, find_directions, load_directions, save_directions
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.stylegan2 import Generator

WIDTH = 6


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    return Generator(16, 5, WIDTH, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2).eval().requires_grad_(False)


def unit(seed: int = 0, shape=(1, WIDTH)) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=shape)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


# ---- ours


def test_directions_come_back(G, tmp_path):
    given = [
        Direction(
            "smile", "w", torch.randn(WIDTH), (2, 5), 1.5, "regression", "ab12", {"attribute": "smile", "n": [1]}
        ),
        Direction("a long name, 2.0", "w+", torch.randn(G.num_ws, WIDTH).double()),
        Direction("channel", "s", torch.randn(G.style_layers()["b16.torgb"].stop), source="stylespace"),
    ]
    save_directions(tmp_path / "d.safetensors", given, {"command": "this"})
    first = (tmp_path / "d.safetensors").read_bytes()
    found = load_directions(tmp_path / "d.safetensors")
    assert list(found) == [one.name for one in given]
    for one in given:
        back = found[one.name]
        torch.testing.assert_close(back.vector, one.vector.float(), atol=0, rtol=0)
        for key in ("name", "space", "layers", "strength", "source", "generator_sha256", "facts"):
            assert getattr(back, key) == getattr(one, key), key
    save_directions(tmp_path / "d.safetensors", list(found.values()), {"command": "this"})
    assert (tmp_path / "d.safetensors").read_bytes() == first
    assert find_directions(tmp_path / "d.safetensors", G)["channel"].layers == (0, G.num_ws)
    assert find_direction(f"{tmp_path}/d.safetensors:channel", G).space == "s"
    with pytest.raises(UsageError, match="holds several directions; name one, as .*:smile"):
        find_direction(f"{tmp_path}/d.safetensors", G)
    with pytest.raises(UsageError, match="has no direction 'age'; there are smile, a long name, 2.0, channel"):
        find_direction(f"{tmp_path}/d.safetensors:age", G)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"name": "../../etc"}, "cannot be called '../../etc'"),
        ({"name": ""}, "cannot be called"),
        ({"name": "a\nb"}, "cannot be called"),
        ({"space": "z"}, "the space must be one of w, w+, s, not 'z'"),
        ({"vector": torch.ones(2, WIDTH)}, "must have 1 dimension"),
        ({"vector": torch.zeros(WIDTH)}, "not all of them zero"),
        ({"vector": torch.tensor([1.0, float("nan")])}, "finite numbers"),
        ({"layers": (3, 3)}, "0 <= first < end"),
        ({"layers": (-1, 3)}, "0 <= first < end"),
        ({"layers": "0-3"}, "the layers must be (first, end)"),
        ({"strength": 0}, "a number above 0, not 0"),
        ({"strength": float("inf")}, "a number above 0"),
        ({"generator_sha256": "a/b"}, "the generator's hash"),
    ],
)
def test_what_is_no_direction(changed, message):
    fields = {"name": "x", "space": "w", "vector": torch.ones(WIDTH)}
    with pytest.raises(UsageError, match=re.escape(message)):
        Direction(**fields | changed)


def test_directions_that_do_not_fit(G, tmp_path):
    with pytest.raises(UsageError, match=r"has a vector \[7\], and this generator takes \[6\] in space w"):
        Direction("x", "w", torch.ones(7)).for_generator(G)
    with pytest.raises(UsageError, match="acts on layers 0 to 18; this generator has 6"):
        Direction("x", "w", torch.ones(WIDTH), (0, 18)).for_generator(G)
    with pytest.raises(UsageError, match="two directions are called 'x'"):
        save_directions(tmp_path / "d.safetensors", [Direction("x", "w", torch.ones(WIDTH))] * 2)
    with pytest.raises(UsageError, match="there is no direction to write"):
        save_directions(tmp_path / "d.safetensors", [])
    with pytest.raises(CheckpointError, match="no directions 'nonesuch': neither a file nor a bundled set"):
        find_directions("nonesuch")


def test_damaged_files_of_ours(tmp_path):
    path = tmp_path / "d.safetensors"
    save_directions(path, [Direction("smile", "w", torch.ones(WIDTH))])
    content = path.read_bytes()
    bad = content.replace(b'\\"name\\": \\"smile\\"', b'\\"name\\": \\"../..\\"')
    assert bad != content
    for data in (content[:40], content[:-3], bad, content.replace(b"edit directions", b"edit DIRECTIONS")):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            load_directions(path)
        assert "d.safetensors" in str(error.value) and "\n" not in str(error.value)
    save_file({"smile": torch.ones(WIDTH)}, path)
    with pytest.raises(CheckpointError, match="was not written by fastinv"):
        find_directions(path)


# ---- those of other projects


def test_ganspace(G, tmp_path):
    components, deviations = unit(0, (4, 1, WIDTH)).astype(np.float32), np.array([4.0, 3.0, 2.0, 1.0], np.float32)
    np.savez(tmp_path / "ffhq w.npz", lat_comp=components, lat_stdev=deviations, act_comp=np.zeros(3), lat_mean=1.0)
    found = find_directions(tmp_path / "ffhq w.npz", G)
    assert list(found) == [f"ffhq_w-{index}" for index in range(4)]
    for index, one in enumerate(found.values()):
        expected = torch.from_numpy(components[index, 0] * deviations[index])
        torch.testing.assert_close(one.vector, expected)
        assert (one.space, one.layers, one.source) == ("w", (0, G.num_ws), "ganspace")


@pytest.mark.parametrize("shape", [(1, WIDTH), (WIDTH,), (1, 1, WIDTH)])
def test_interfacegan(G, tmp_path, shape):
    normal = unit().reshape(shape)
    np.save(tmp_path / "stylegan_ffhq_age_w_boundary.npy", np.asfortranarray(normal))
    found = find_direction(str(tmp_path / "stylegan_ffhq_age_w_boundary.npy"), G)
    assert found.name == "stylegan_ffhq_age_w_boundary" and found.source == "interfacegan"
    torch.testing.assert_close(found.vector, torch.from_numpy(normal.reshape(WIDTH)).float())


@pytest.mark.parametrize(
    "layers, expected",
    [
        ([2, 3, 4], (2, 5)),
        (np.arange(1, 3), (1, 3)),
        ("2-4", (2, 5)),
        (None, (0, 6)),
        ([0, 1, 5], None),
    ],
)
def test_idinvert(G, tmp_path, layers, expected):
    normal = unit(1).astype(np.float32)
    about = {"manipulate_layers": layers, "latent_space_type": "WP"}
    np.save(tmp_path / "pose.npy", {"boundary": normal, "meta_data": about}, allow_pickle=True)
    (found,) = find_directions(tmp_path / "pose.npy", G).values()
    vector = torch.from_numpy(normal[0])
    if expected is not None:
        assert (found.space, found.layers) == ("w", expected)
        torch.testing.assert_close(found.vector, vector)
    else:  # not one range: a direction of W+
        each = torch.zeros(G.num_ws, WIDTH)
        each[layers] = vector
        assert found.space == "w+"
        torch.testing.assert_close(found.vector, each)
        with pytest.raises(CheckpointError, match="the generator must be known"):
            find_directions(tmp_path / "pose.npy")
    assert found.source == "idinvert" and found.facts["latent_space_type"] == "WP"


def test_idinvert_as_old_numpy_wrote_it(G, tmp_path):
    normal = unit(1)
    objects = Call("numpy.dtype", "O8", False, True, state=(3, "|", None, None, None, -1, -1, 63))
    state = (1, (), objects, False, [{"boundary": normal, "meta_data": {"manipulate_layers": [4, 3]}}])
    array = Call("numpy.core.multiarray._reconstruct", Name("numpy.ndarray"), (0,), b"b", state=state)
    (tmp_path / "pose.npy").write_bytes(npy("()", dumps(array), "'|O'"))
    found = find_direction(str(tmp_path / "pose.npy"), G)
    torch.testing.assert_close(found.vector, torch.from_numpy(normal[0]).float())
    assert found.layers == (3, 5)


def test_e4e(G, tmp_path):
    one, several, each = (torch.from_numpy(unit(2, (n, WIDTH))).float() for n in (1, 4, G.num_ws))
    for name, value in {"age": one, "poses": several, "each": each}.items():
        torch.save(value, tmp_path / f"{name}.pt")
    torch.testing.assert_close(find_direction(str(tmp_path / "age.pt"), G).vector, one[0])
    found = find_directions(tmp_path / "poses.pt", G)
    torch.testing.assert_close(torch.stack([part.vector for part in found.values()]), several)
    assert list(found) == ["poses-0", "poses-1", "poses-2", "poses-3"]
    assert find_directions(tmp_path / "each.pt", G)["each"].space == "w+"
    assert len(find_directions(tmp_path / "each.pt")) == G.num_ws  # nobody says how many style inputs there are


# ---- damaged and hostile ones


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def npy(shape: str, data: bytes = b"", descr: str = "'<f8'") -> bytes:
    """A file in NumPy's format with a header of our own."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def pickled(value) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(value, dtype=object), allow_pickle=True)
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(f"{name}.npy", content)
    return file.getvalue()


FLOATS = np.ones(WIDTH).tobytes()
BAD = {
    "empty.npy": b"",
    "text.npy": b"<!DOCTYPE html>",
    "cut.npy": npy("(1, 6)", FLOATS[:-8]),
    "long.npy": npy("(1, 6)", FLOATS + b"x"),
    "huge.npy": npy("(1000000000000, 6)", FLOATS),
    "minus.npy": npy("(-1, 6)", FLOATS),
    "complex.npy": npy("(1, 3)", FLOATS, "'<c16'"),
    "code.npy": npy("(1, 6)", FLOATS, "__import__('os').mkdir('harm')"),
    "nan.npy": npy("(1, 6)", np.full(WIDTH, np.nan).tobytes()),
    "zero.npy": npy("(1, 6)", np.zeros(WIDTH).tobytes()),
    "harmful.npy": pickled(Harmful()),
    "harmful_inside.npy": pickled({"boundary": Harmful(), "meta_data": {}}),
    "no_boundary.npy": pickled({"boundary": "text", "meta_data": {}}),
    "layers.npy": pickled({"boundary": np.ones((1, WIDTH)), "meta_data": {"manipulate_layers": [-1]}}),
    "far_layers.npy": pickled({"boundary": np.ones((1, WIDTH)), "meta_data": {"manipulate_layers": [0, 99]}}),
    "list.npy": pickled([1, 2, 3]),
    "keys.npz": archive(lat_comp=npy("(1, 6)", FLOATS)),
    "unlike.npz": archive(lat_comp=npy("(1, 6)", FLOATS), lat_stdev=npy("(2,)", FLOATS[:16])),
    "harmful.npz": archive(lat_comp=pickled(Harmful()), lat_stdev=npy("(1,)", FLOATS[:8])),
    "no.npz": b"PK\x03\x04 and then nothing",
    "harmful.pt": pickle.dumps(Harmful()),
    "dict.pt": pickle.dumps({"a": 1}, protocol=2),
    "text.pt": b"version https://git-lfs.github.com/spec/v1",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(G, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(CheckpointError) as error:
        find_directions(name, G)
    assert name in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "harm").exists()


def test_what_unfolds_into_much_is_not_unfolded(G, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 100_000)
    (tmp_path / "bomb.npz").write_bytes(archive(lat_comp=npy("(1, 6)", FLOATS), lat_stdev=bytes(100_001)))
    with pytest.raises(CheckpointError, match="lat_stdev has 100001 bytes, far more than directions have"):
        find_directions(tmp_path / "bomb.npz", G)
    (tmp_path / "large.npy").write_bytes(bytes(100_001))
    with pytest.raises(CheckpointError, match="it has 100001 bytes"):
        find_directions(tmp_path / "large.npy", G)


def test_every_cut_of_a_pickled_file_is_refused(G, tmp_path):
    content = pickled({"boundary": np.ones((1, WIDTH)), "meta_data": {"manipulate_layers": [2, 3]}})
    for end in range(len(content)):
        (tmp_path / "cut.npy").write_bytes(content[:end])
        with pytest.raises(CheckpointError):
            find_directions(tmp_path / "cut.npy", G)


def test_a_bad_file_is_one_line(tmp_path, capsys):
    (tmp_path / "harmful.npy").write_bytes(BAD["harmful.npy"])
    assert main(["directions", "list", str(tmp_path / "harmful.npy")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "mkdir" in lines[0]
