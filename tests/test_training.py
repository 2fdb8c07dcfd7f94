"""The generator trainer: it learns, resumes to the same bits, and refuses bad options before any work."""

import json

import pytest
import torch
from PIL import Image

from fastinv.checkpoints import load_discriminator, load_generator
from fastinv.data import faces
from fastinv.errors import FastinvError, UsageError
from fastinv.training import generator as training
from fastinv.training.sources import FacesSource, FolderSource, faces_attributes

TINY = [
    "--resolution", "16", "--channels", "8,8,8", "--z-dim", "32", "--w-dim", "16", "--mapping-layers", "2",
    "--batch", "4", "--dtype", "float32",
]  # fmt: skip


def run(out, *arguments):
    return training.main(["--data", "faces", "--out", str(out), *TINY, *arguments])


def test_run_writes_networks_samples_and_state(tmp_path):
    path = run(tmp_path / "run", "--kimg", "0.04", "--progressive", "8:0.02:4", "--path-length-interval", "2")
    G = load_generator(path)
    D = load_discriminator(path.with_name("discriminator.safetensors"))
    assert D(G(torch.randn(2, 32))).shape == (2, 1)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["images"] == 40 and state["step"] == 10
    assert {"g_loss", "d_loss", "r1", "path_length"} <= set(state["averages"])
    with Image.open(tmp_path / "run" / "samples_000000.png") as grid:
        assert grid.size == (128, 128)
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_resume_gives_the_same_bits_as_an_undisturbed_run(tmp_path):
    options = ["--paired", "1", "--progressive", "8:0.024:4", "--path-length-interval", "3"]
    run(tmp_path / "whole", "--kimg", "0.08", *options)
    run(tmp_path / "parts", "--kimg", "0.036", *options)
    run(tmp_path / "parts", "--kimg", "0.08", *options, "--resume")
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    for network in ("G", "D", "G_ema"):
        for name, tensor in whole[network].items():
            assert torch.equal(parts[network][name], tensor), (network, name)
    assert torch.equal(whole["random"], parts["random"])
    assert whole["averages"] == parts["averages"]


def test_paired_term_brings_the_picture_of_a_latent_near_its_render(tmp_path):
    run(tmp_path, "--paired", "1", "--paired-only", "1", "--kimg", "0.6", "--g-lr", "0.03", "--g-beta1", "0.9",
        "--mapping-lr-multiplier", "0.4", "--style-mixing", "0", "--ema-kimg", "0.05")  # fmt: skip
    G = load_generator(tmp_path / "generator.safetensors")
    torch.manual_seed(1)
    images, z = FacesSource(16, 32).batch(64, 16)
    with torch.no_grad():
        error = (G(z) - images).square().mean()
        shuffled = (G(z.roll(1, 0)) - images).square().mean()
    assert error < 0.8 * shuffled


def test_faces_of_latents_are_train_split_faces_with_its_distribution():
    values = faces_attributes(torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)))
    expected = faces.sample_attributes(4000, seed=1)
    assert set(values) == set(faces.NAMES)
    for name, value in values.items():
        assert abs(value.mean() - expected[name].mean()) < 0.05, name
    # yaw = 2 u - 1 with u = (4k + 1) / 2^24 in the train split, (4k + 3) / 2^24 in the held-out split.
    assert (((values["yaw"].double() + 1) / 2 * 2**24) % 4 == 1).all()


def test_folder_source(tmp_path):
    for i in range(3):
        Image.new("RGB", (20, 30), (i * 100, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    source = FolderSource(tmp_path, 16, 8, mirror=True)
    images, z = source.batch(5, 8)
    assert images.shape == (5, 3, 8, 8) and z.shape == (5, 8)
    assert set((images[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()) <= {0, 100, 200}
    training.main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), *TINY, "--kimg", "0.008"])
    assert load_generator(tmp_path / "run" / "generator.safetensors").resolution == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kimg", "0"], "--kimg must be positive"),
        (["--style-mixing", "2"], "--style-mixing must be within 0 and 1"),
        (["--r1-gamma", "-1"], "--r1-gamma must not be negative"),
        (["--progressive", "16:4"], "--progressive: resolutions"),
        (["--progressive", "small"], "--progressive must look like"),
        (["--channels", "8,8"], "channels must be 3 counts"),
        (["--paired-only", "3"], "--paired-only needs --paired"),
        (["--z-dim", "4"], "z_dim"),
        (["--resume"], "nothing to resume"),
        (["--data", "/nonexistent"], "not a folder of pictures"),
    ],
)
def test_bad_options(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_run_is_not_overwritten_and_other_shapes_do_not_resume(tmp_path):
    run(tmp_path, "--kimg", "0.004")
    with pytest.raises(UsageError, match="add --resume"):
        run(tmp_path, "--kimg", "0.004")
    with pytest.raises(UsageError, match="does not fit these options"):
        run(tmp_path, "--kimg", "0.008", "--resume", "--w-dim", "24")


def test_divergence_stops_with_a_clear_error_and_keeps_the_state(tmp_path):
    run(tmp_path, "--kimg", "0.004")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(FastinvError, match="lower the learning rates"):
        run(tmp_path, "--kimg", "1", "--resume", "--g-lr", "1e30", "--d-lr", "1e30")
    assert (tmp_path / "state.pt").read_bytes() == before
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(row["kimg"] <= 1 for row in rows)
