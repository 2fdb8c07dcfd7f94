"""Our safetensors format: round trips, and one clear error for everything that is not such a file."""

import json

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
        assert json.loads(file.metadata()["training"]) == {"seed": 3}
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
    cases["cannot read"] = tmp_path / "empty.safetensors"
    (tmp_path / "weights.pkl").write_bytes(b"anything")
    cases["not a .safetensors file"] = tmp_path / "weights.pkl"
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    cases["not written by fastinv"] = tmp_path / "foreign.safetensors"
    with safe_open(good, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    tensors.pop("synthesis.b4.const")
    save_file(tensors, tmp_path / "short.safetensors", metadata)
    cases["does not fit its configuration"] = tmp_path / "short.safetensors"
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
    import fastinv.checkpoints.native as native

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(native, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_network(generator, tmp_path / "g.safetensors")
    assert list(tmp_path.iterdir()) == []
