"""Our safetensors format: round trips, and one clear error for everything that is not such a file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastinv.checkpoints import load_discriminator, load_generator, network_hash, save_network
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.stylegan2 import Generator

CHANNELS = {4: 4, 8: 4, 16: 2}


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return Generator(16, 8, 6, c_dim=2, channels=CHANNELS, mapping_layers=2, conv_clamp=256.0)


def test_generator_round_trip_is_exact(generator, tmp_path):
    save_network(generator, tmp_path / "g.safetensors", training={"seed": 3})
    loaded = load_generator(tmp_path / "g.safetensors")
    assert not loaded.training
    assert loaded.config == generator.config
    for name, tensor in generator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert network_hash(loaded) == network_hash(generator)
    z, c = torch.randn(2, 8), torch.eye(2)
    assert torch.equal(loaded(z, c), generator(z, c))
    with safe_open(tmp_path / "g.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fastinv"])["training"] == {"seed": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


def test_half_precision_file_loads_in_float32(generator, tmp_path):
    save_network(generator, tmp_path / "full.safetensors")
    save_network(generator, tmp_path / "half.safetensors", torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.75 * (tmp_path / "full.safetensors").stat().st_size
    loaded = load_generator(tmp_path / "half.safetensors")
    assert loaded.w_avg.dtype == torch.float32
    weight, stored = loaded.synthesis.b8.conv0.weight, generator.synthesis.b8.conv0.weight
    assert torch.equal(weight, stored.half().float())
    assert load_generator(tmp_path / "half.safetensors", dtype=torch.float64).w_avg.dtype == torch.float64


@pytest.mark.parametrize("progressive", [False, True])
def test_discriminator_round_trip(progressive, tmp_path):
    D = Discriminator(16, channels=CHANNELS, progressive=progressive)
    save_network(D, tmp_path / "d.safetensors")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_discriminator(tmp_path / "d.safetensors")(images), D(images))


def test_files_that_are_not_ours(generator, tmp_path):
    good = tmp_path / "good.safetensors"
    save_network(generator, good)
    cases = {
        "neither a file nor a bundled name": tmp_path / "missing.safetensors",
        "is a folder": tmp_path,
    }
    (tmp_path / "empty.safetensors").touch()
    cases["is empty"] = tmp_path / "empty.safetensors"
    (tmp_path / "weights.pkl").write_bytes(b"anything")
    cases["is no checkpoint that is known: it begins with b'anything'"] = tmp_path / "weights.pkl"
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    cases["holds the entries x, no network that is known"] = tmp_path / "foreign.safetensors"
    with safe_open(good, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    tensors.pop("synthesis.b4.const")
    save_file(tensors, tmp_path / "short.safetensors", metadata)
    cases[r"the tensor synthesis\.b4\.const is missing"] = tmp_path / "short.safetensors"
    for number, config in enumerate(([1], {"resolution": 16, "channels": [4]}, {"resolution": "16"}, {"depth": 3})):
        document = json.dumps({"kind": "generator", "config": config})
        save_file(tensors, tmp_path / f"odd{number}.safetensors", {"fastinv": document})
        with pytest.raises(CheckpointError, match="does not fit its configuration"):
            load_generator(tmp_path / f"odd{number}.safetensors")
    for message, path in cases.items():
        with pytest.raises(CheckpointError, match=message):
            load_generator(path)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_generator(tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointError, match="holds a generator, not a discriminator"):
        load_discriminator(good)
    with pytest.raises(UsageError, match="cannot use device"):
        load_generator(good, device="warp-drive")


def test_hash_tells_weights_apart(generator):
    before = network_hash(generator)
    with torch.no_grad():
        generator.synthesis.b8.conv1.bias[0] += 1e-3
    assert network_hash(generator) != before


def test_nothing_half_written_stays(generator, tmp_path, monkeypatch):
    save_network(generator, tmp_path / "old.safetensors")
    before = (tmp_path / "old.safetensors").read_bytes()

    def fail(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    for name in ("new", "old"):
        with pytest.raises(UsageError, match=f"cannot write .*{name}.safetensors: No space left on device"):
            save_network(generator, tmp_path / f"{name}.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
    assert (tmp_path / "old.safetensors").read_bytes() == before


def test_the_same_network_gives_the_same_bytes_in_every_process(run_python, tmp_path):
    code = """
import sys, torch, fastinv.latents
from fastinv.checkpoints import save_network
from fastinv.models.stylegan2 import Generator
torch.manual_seed(0)
save_network(Generator(8, 4, 4, channels={4: 2, 8: 2}), sys.argv[1] + ".g", training={"a": 1, "b": [2], "c": "x"})
fastinv.latents.save_latent(sys.argv[1] + ".w", torch.ones(1, 4, 4), {"space": "w+", "seed": 3, "method": "m"})
"""
    for number in range(2):
        result = run_python(code, str(tmp_path / str(number)), PYTHONHASHSEED=str(number))
        assert result.returncode == 0, result.stderr
    for suffix in ("g", "w"):
        first, second = (tmp_path / f"{number}.{suffix}" for number in range(2))
        assert first.read_bytes() == second.read_bytes()


def test_odd_names_are_one_clear_line():
    for name in ("x" * 5000, "new\nline"):
        with pytest.raises(CheckpointError) as caught:
            load_generator(name)
        assert "\n" not in str(caught.value)
