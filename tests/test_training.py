"""The generator trainer: it learns, resumes to the same bits, and refuses bad options before any work."""

import json
import shlex

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fastinv.checkpoints import load_discriminator, load_generator
from fastinv.data import faces
from fastinv.errors import FastinvError, UsageError
from fastinv.training import generator as training
from fastinv.training.sources import FacesSource, FolderSource, faces_attributes

TINY = [
    "--resolution", "16", "--channels", "8,8,8", "--z-dim", "32", "--w-dim", "16", "--mapping-layers", "2",
    "--batch", "4", "--dtype", "float32", "--device", "cpu",
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
        assert grid.size == (8 * 16 + 7 * 2, 8 * 16 + 7 * 2)
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert row["kimg"] == 0.04 and row["resolution"] == 16 and row["batch"] == 4 and row["g_loss"] > 0
    with safe_open(path, "pt") as file:
        origin = json.loads(file.metadata()["fastinv"])["training"]
    assert shlex.split(origin["command"])[:5] == ["fastinv", "train", "generator", "--data", "faces"]
    assert origin["images"] == 40
    names = {"state.pt", "generator.safetensors", "discriminator.safetensors", "samples_000000.png", "log.jsonl"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == names


def test_resume_gives_the_same_bits_as_an_undisturbed_run(tmp_path):
    options = ["--paired", "1", "--progressive", "8:0.024:4", "--path-length-interval", "3", "--dtype", "bfloat16"]
    run(tmp_path / "whole", "--kimg", "0.08", *options)
    run(tmp_path / "parts", "--kimg", "0.036", *options)
    run(tmp_path / "parts", "--kimg", "0.08", *options, "--resume")
    whole, parts = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "parts"))
    for network in ("G", "D", "G_ema"):
        for name, tensor in whole[network].items():
            assert torch.equal(parts[network][name], tensor), (network, name)
    assert torch.equal(whole["random"], parts["random"])
    assert whole["averages"] == parts["averages"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_feature_maps_have_the_dtype_asked_for_and_weights_float32(dtype, tmp_path):
    options = training.parser().parse_args(["--data", "faces", "--out", str(tmp_path), *TINY, "--dtype", dtype])
    trainer = training.Trainer(options)
    seen = set()
    for layer in (trainer.G.synthesis.b8.conv0, trainer.D.b16.conv0):
        layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    trainer.step = 1  # neither R1 nor path length, which are float32 always
    trainer.iterate()
    assert seen == {getattr(torch, dtype)}
    assert {p.dtype for network in (trainer.G, trainer.D) for p in network.parameters()} == {torch.float32}


def test_paired_term_brings_the_picture_of_a_latent_near_its_render(tmp_path):
    run(tmp_path, "--resolution", "8", "--channels", "16,16", "--w-dim", "32", "--batch", "16", "--kimg", "4.8",
        "--paired", "1", "--paired-only", "100", "--g-lr", "0.02", "--g-beta1", "0.9",
        "--mapping-lr-multiplier", "0.4", "--style-mixing", "0", "--ema-kimg", "0.5")  # fmt: skip
    G = load_generator(tmp_path / "generator.safetensors")
    torch.manual_seed(1)
    images, z, _ = FacesSource(8, 32).batch(64, 8)
    with torch.no_grad():
        own = (G(z) - images).square().mean((1, 2, 3))
        other = (G(z.roll(1, 0)) - images).square().mean((1, 2, 3))
    assert own.mean() < 0.7 * other.mean()  # equal for a generator that has learned nothing of the pairs
    assert (own < other).float().mean() > 0.75


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
    images, z, details = source.batch(5, 8)
    assert details is None
    assert images.shape == (5, 3, 8, 8) and z.shape == (5, 8)
    assert set((images[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()) <= {0, 100, 200}
    training.main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), *TINY, "--kimg", "0.008"])
    assert load_generator(tmp_path / "run" / "generator.safetensors").resolution == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kimg", "0"], "--kimg must be above 0, not 0"),
        (["--kimg", "nan"], "--kimg must be above 0, not nan"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--batch", "many"], "invalid int value: 'many'; `fastinv train generator --help` lists"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--g-lr", "inf"], "--g-lr must be above 0 and at most"),
        (["--style-mixing", "2"], "--style-mixing must be at least 0 and at most 1, not 2"),
        (["--r1-gamma", "-1"], "--r1-gamma must be at least 0"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "1" + "0" * 30], "--seed must be at least 0 and at most"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--device", "toaster"], "device 'toaster' cannot be used"),
        (["--resolution", "20"], "resolution must be a power of two"),
        (["--progressive", "16:4"], "--progressive: sides"),
        (["--progressive", "small"], "--progressive must look like"),
        (["--progressive", "8:4:8:9"], "--progressive must look like"),
        (["--progressive", "8:4:0"], "--progressive: batches"),
        (["--progressive", "8:4,8:3"], "--progressive: the kimg"),
        (["--progressive", "8:nan"], "--progressive: the kimg"),
        (["--channels", "8,8"], "channels must be 3 counts"),
        (["--paired-only", "3"], "--paired-only needs --paired"),
        (["--z-dim", "4"], "z_dim"),
        (["--details", "smile,nose"], "no attribute 'nose'"),
        (["--resume"], "nothing to resume"),
        (["--data", "/nonexistent"], "not a folder of pictures"),
    ],
)
def test_bad_options(arguments, message, tmp_path):
    with pytest.raises(UsageError, match=message) as info:
        run(tmp_path / "run", *arguments)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/run"):
        with pytest.raises(UsageError, match="cannot write to"):
            run(out)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as info:
        training.main(["--help"])
    text = capsys.readouterr().out
    assert info.value.code == 0
    assert "(default: None)" not in text and "(default: )" not in text and "(default: inf)" not in text
    assert "thousands of pictures to train on (default: 1000)" in text and "(default: 0.0)" in text
    assert all(action.help for action in training.parser()._actions)


def test_a_run_is_not_overwritten_and_other_shapes_do_not_resume(tmp_path):
    run(tmp_path, "--kimg", "0.004")
    with pytest.raises(UsageError, match="--resume continues it"):
        run(tmp_path, "--kimg", "0.004")
    with pytest.raises(UsageError, match="does not fit these options.*size mismatch"):
        run(tmp_path, "--kimg", "0.008", "--resume", "--w-dim", "24")
    whole = (tmp_path / "state.pt").read_bytes()
    torch.save({"G": 1}, tmp_path / "other.pt")
    torch.save([1], tmp_path / "list.pt")
    others = [(tmp_path / name).read_bytes() for name in ("other.pt", "list.pt")]
    for content in (b"", b"not a state", whole[:5000], *others):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(UsageError, match="state.pt is damaged or does not fit") as info:
            run(tmp_path, "--kimg", "0.008", "--resume")
        assert "\n" not in str(info.value)


def test_divergence_stops_with_a_clear_error_and_keeps_the_state(tmp_path):
    run(tmp_path, "--kimg", "0.004")
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(FastinvError, match="lower the learning rates and run again with --resume.*state.pt"):
        run(tmp_path, "--kimg", "1", "--resume", "--g-lr", "1e30", "--d-lr", "1e30")
    assert (tmp_path / "state.pt").read_bytes() == before
    (row,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert row["kimg"] == 0.004  # of the run before


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    run(tmp_path, "--kimg", "0.004")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "log.jsonl"}

    def fail(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(UsageError, match="cannot write .*state.pt: No space left on device"):
        run(tmp_path, "--kimg", "0.008", "--resume")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "log.jsonl"} == before


@pytest.mark.gpu
def test_training_on_a_gpu_and_going_on_on_the_cpu(tmp_path):
    options = ["--paired", "1", "--progressive", "8:0.02:4", "--path-length-interval", "2", "--dtype", "bfloat16"]
    run(tmp_path, "--kimg", "0.04", *options, "--device", "cuda")
    assert "random_cuda" in torch.load(tmp_path / "state.pt", weights_only=True)
    run(tmp_path, "--kimg", "0.06", *options, "--resume", "--device", "cpu")
    run(tmp_path, "--kimg", "0.08", *options, "--resume", "--device", "cuda")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["images"] == 80


def test_details_are_the_eyes_and_the_mouth():
    torch.manual_seed(0)
    images, _, details = FacesSource(64, 32).batch(8, 64)
    assert details.shape == (8, 1, 64, 64) and set(details.unique().tolist()) == {0.0, 1.0}
    assert 0.01 < details.mean() < 0.12
    assert details[..., :12, :].sum() == details[..., 54:, :].sum() == 0  # not the hair, not the shirt


def test_paired_loss_weighs_pixels():
    real = torch.zeros(2, 3, 8, 8)
    fake = real.clone()
    fake[0, :, 2:4, 2:4] = 1
    fake[1, :, 6:, 6:] = 1
    flat = training.paired_loss(fake, real, torch.ones(2, 1, 8, 8))
    weight = torch.ones(2, 1, 8, 8)
    weight[:, :, :5, :5] = 3
    weighted = training.paired_loss(fake, real, weight)
    assert torch.allclose(weighted[0], 3 * flat[0]) and torch.equal(weighted[1], flat[1])
    assert torch.equal(training.paired_loss(real, real, weight), torch.zeros(2))
