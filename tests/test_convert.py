"""Conversion: every family into ours, StyleGAN2 into the other formats and back, and nothing lost whatever fails."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_families_encoders import ENCODER_TYPES, SMALL, pytorch_file, randomised, scaled, wrapped
from test_families_encoders import generator as decoder
from test_families_stylegan1 import generator as stylegan1
from test_families_stylegan1 import genforce_state

import fastinv
from fastinv.checkpoints import convert as module
from fastinv.checkpoints import load_discriminator, load_encoder, load_generator, network_hash, save_network
from fastinv.checkpoints.convert import convert, outputs
from fastinv.checkpoints.families import ada, rosinality
from fastinv.checkpoints.load import file_sha256
from fastinv.checkpoints.network import CheckpointWarning, build
from fastinv.errors import CheckpointError, UsageError
from fastinv.models.discriminator import Discriminator
from fastinv.models.encoders import ENCODERS, ALAEEncoder, IDInvertEncoder
from fastinv.models.layers import channel_table
from fastinv.models.stylegan2 import Generator

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = {  # file -> (its family, the networks in it)
    "tiny_ada.pkl": ("StyleGAN2-ADA (PyTorch)", "generator discriminator"),
    "tiny_ada_cond.pkl": ("StyleGAN2-ADA (PyTorch)", "generator discriminator"),
    "tiny_ada_hostile_source.pkl": ("StyleGAN2-ADA (PyTorch)", "generator"),
    "tiny_pti.pt": ("StyleGAN2-ADA (PyTorch)", "generator"),
    "tiny_ada.G_ema.state.safetensors": ("StyleGAN2-ADA (PyTorch)", "generator"),
    "tiny_tf.pkl": ("StyleGAN2 (TensorFlow)", "generator discriminator"),
    "tiny_rosinality.pt": ("rosinality", "generator"),
}
CHANNELS = {4: 5, 8: 4, 16: 3}
LOAD = {"generator": load_generator, "encoder": load_encoder, "discriminator": load_discriminator}


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    """Nothing in a file is run, by any conversion."""
    monkeypatch.setenv("FASTINV_MARKER", str(tmp_path / "marker"))
    yield
    assert not (tmp_path / "marker").exists()


def tiny(**options) -> Generator:
    torch.manual_seed(0)
    return Generator(16, 6, 6, channels=CHANNELS, mapping_layers=2, **options).eval()


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        return function(*arguments)


def saved(network, folder) -> Path:
    path = folder / "source.safetensors"
    save_network(network, path)
    return path


def assert_same(found, expected):
    assert type(found) is type(expected)
    tensors = found.state_dict()
    assert tensors.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    assert torch.equal(outputs(found, seed=3), outputs(expected, seed=3))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ----------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("file", FAMILIES)
def test_every_family_into_ours(file, tmp_path):
    family, kinds = FAMILIES[file]
    target = tmp_path / "out.safetensors"
    written = quietly(convert, GOLDEN / file, target)
    assert [one.kind for one in written] == kinds.split()
    assert len(list(tmp_path.iterdir())) == len(written)
    for one in written:
        several = len(written) > 1
        assert one.path == (tmp_path / f"out.{one.kind}.safetensors" if several else target)
        assert one.difference == 0 and one.largest > 0.1 and one.notes == ()
        expected = quietly(LOAD[one.kind], GOLDEN / file)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # our own file says everything
            found = LOAD[one.kind](one.path)
        assert found.config == expected.config
        assert_same(found, expected)
        assert one.network_hash == network_hash(expected) == network_hash(found)
        assert one.sha256 == file_sha256(one.path)
        with safe_open(one.path, "pt") as opened:
            facts = json.loads(opened.metadata()["fastinv"])
        container = facts["source"].pop("container")
        assert container == {"pkl": "pickle", "pt": "torch zip", "safetensors": "safetensors"}[file.rsplit(".")[-1]]
        assert facts["source"] == {
            "file": file, "sha256": file_sha256(GOLDEN / file), "family": family, "network_hash": one.network_hash,
        }  # fmt: skip


@pytest.mark.parametrize("file", ["tiny_ada.pkl", "tiny_tf.pkl", "tiny_pti.pt", "tiny_rosinality.pt"])
@pytest.mark.parametrize("format", ["rosinality", "ada"])
def test_into_the_other_formats_and_back(file, format, tmp_path):
    written = convert(GOLDEN / file, tmp_path / "out.pt", format)
    assert {one.kind for one in written} == set(FAMILIES[file][1].split())
    for one in written:
        assert one.difference <= 1e-6 * one.largest
        expected = LOAD[one.kind](GOLDEN / file)
        assert_same(quietly(LOAD[one.kind], one.path), expected)
        beside = json.loads(one.path.with_name(one.path.name + ".json").read_text())
        assert beside["sha256"] == one.sha256 == file_sha256(one.path)
        assert beside["network_hash"][one.kind] == one.network_hash == network_hash(expected)
        assert beside["source"]["sha256"] == file_sha256(GOLDEN / file)
        (back,) = quietly(convert, one.path, tmp_path / f"{one.kind}.safetensors", None, one.kind)
        assert_same(LOAD[one.kind](back.path), expected)
        assert back.network_hash == one.network_hash
    assert len(files(tmp_path)) == (2 + 2 if len(written) > 1 and format == "rosinality" else 3 * len(written))


def test_the_written_rosinality_file_is_what_the_public_one_is(tmp_path):
    """The file that rosinality's own code wrote comes back: the same names, shapes and numbers."""
    convert(GOLDEN / "tiny_rosinality.pt", tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found.keys() == {"g_ema", "latent_avg"}
    golden = load_file(GOLDEN / "tiny_rosinality.g_ema.state.safetensors")
    assert found["g_ema"].keys() == golden.keys()
    for name, tensor in golden.items():
        assert found["g_ema"][name].shape == tensor.shape
        assert torch.equal(found["g_ema"][name], tensor), name
    assert torch.equal(found["latent_avg"], load_file(GOLDEN / "tiny_rosinality.expected.safetensors")["w_avg"].float())


@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_the_written_state_dict_is_that_of_the_public_code(kind, tmp_path):
    convert(GOLDEN / "tiny_ada.pkl", tmp_path / "out.pt", "ada", kind)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    golden = load_file(GOLDEN / f"tiny_ada.{'G_ema' if kind == 'generator' else 'D'}.state.safetensors")
    assert found.keys() == golden.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in golden.items())


def test_other_code_is_told_what_the_file_does_not_say(tmp_path):
    ada_note = convert(GOLDEN / "tiny_ada.pkl", tmp_path / "a.pt", "ada")[0].notes[-1]
    for stated in ("img_resolution=32", "num_layers=2", "channel_base=512", "channel_max=32", "conv_clamp=None"):
        assert stated in ada_note
    (one,) = quietly(convert, saved(tiny(), tmp_path), tmp_path / "b.pt", "ada")
    assert f"channels={CHANNELS}" in one.notes[-1]  # no channel_base gives 5, 4, 3
    (one,) = convert(GOLDEN / "tiny_rosinality.pt", tmp_path / "c.pt")
    assert "size=32, style_dim=32, n_mlp=2" in one.notes[-1] and "its table" in one.notes[-1]
    for base, multiplier in ((16384, 1), (32768, 2)):
        widths = channel_table(1024, None, base, 512)
        assert module._rosinality_widths(widths) == {"channel_multiplier": f"{multiplier}"}
        assert module._ada_widths(widths) == {"channel_base": base, "channel_max": 512}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name, tmp_path):
    torch.manual_seed(0)
    if name == "idinvert":
        encoder = randomised(IDInvertEncoder(32, w_dim=5, channels=(4, 6, 6, 8)))
        value = {"encoder": wrapped(encoder)}
    elif name == "alae":
        encoder = randomised(ALAEEncoder(32, w_dim=5, channels=(4, 6, 8, 8, 7)))
        value = {"models": {"encoder_s": scaled(encoder)}}
    else:
        size = {"input_resolution": 256} if name.startswith("w_") else {}  # not seen in the tensors
        encoder = randomised(ENCODERS[name](**SMALL | size))
        kind = next(iter(ENCODER_TYPES[name].values()))
        value = pytorch_file(encoder, {"encoder_type": kind, "start_from_latent_avg": True}, decoder())
    torch.save(value, tmp_path / "source.pt")
    written = quietly(convert, tmp_path / "source.pt", tmp_path / "out.safetensors")
    assert [one.kind for one in written] == (["generator", "encoder"] if "state_dict" in value else ["encoder"])
    assert all(one.difference == 0 for one in written)
    expected, found = load_encoder(tmp_path / "source.pt"), load_encoder(written[-1].path)
    assert type(found) is ENCODERS[name] and found.config == expected.config
    assert_same(found, expected)
    if name not in ("idinvert", "alae"):
        assert torch.equal(found.latent_avg, encoder.latent_avg) and found.latent_avg.abs().min() > 0
        assert_same(load_generator(written[0].path), decoder_of(value))


def decoder_of(value):
    """The generator that `pytorch_file` was given, read on its own."""
    state = {key.removeprefix("decoder."): t for key, t in value["state_dict"].items() if key.startswith("decoder.")}
    return quietly(build, rosinality.generator(state, value["latent_avg"]), "decoder")


def test_an_encoder_has_no_place_in_the_other_formats(tmp_path):
    encoder = randomised(ENCODERS["psp"](**SMALL))
    torch.save(pytorch_file(encoder, {"encoder_type": "GradualStyleEncoder"}, decoder()), tmp_path / "psp.pt")
    (one,) = quietly(convert, tmp_path / "psp.pt", tmp_path / "out.pt")
    assert one.kind == "generator" and "the encoder is left out" in one.notes[0]
    with pytest.raises(UsageError, match="the format rosinality has no encoders; choose fastinv"):
        convert(tmp_path / "psp.pt", tmp_path / "other.pt", kind="encoder")


def test_stylegan1(tmp_path):
    G = stylegan1()
    torch.save(genforce_state(G), tmp_path / "source.pth")
    (one,) = convert(tmp_path / "source.pth", tmp_path / "out.safetensors")
    assert one.difference == 0
    found = load_generator(one.path)
    assert_same(found, G)
    assert found.config == G.config
    for format in ("rosinality", "ada"):
        with pytest.raises(UsageError, match="format takes a"):
            convert(one.path, tmp_path / "out.pt", format)
    assert files(tmp_path).keys() == {"source.pth", "out.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path):
    (one,) = convert(GOLDEN / "tiny_pti.pt", tmp_path / "half.safetensors", dtype=dtype)
    expected = load_generator(GOLDEN / "tiny_pti.pt")
    found = load_generator(one.path)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.to(dtype).float()), name
    assert 0 < one.difference < (0.02 if dtype == torch.float16 else 0.2) * one.largest
    assert one.network_hash == network_hash(expected)  # of what was read
    assert convert(GOLDEN / "tiny_pti.pt", tmp_path / "full.safetensors", dtype=torch.float32)[0].difference == 0
    assert one.path.stat().st_size < 0.7 * (tmp_path / "full.safetensors").stat().st_size


def test_numbers_that_overflow_are_told(tmp_path):
    G = tiny()
    with torch.no_grad():
        G.synthesis.b8.conv0.bias[0] = 1e5
    with pytest.warns(CheckpointWarning, match=r"1 tensors hold numbers above 65504, .* is synthesis\.b8\.conv0\.bias"):
        convert(saved(G, tmp_path), tmp_path / "out.safetensors", dtype=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(tmp_path / "source.safetensors", tmp_path / "other.safetensors", dtype=torch.bfloat16)


def test_nan_is_kept_and_told_once(tmp_path):
    G = tiny()
    with torch.no_grad():
        G.synthesis.b4.conv1.weight[0, 0, 0, 0] = float("nan")
        G.mapping.w_avg[1] = float("inf")
    source = saved(G, tmp_path)
    for target in ("out.safetensors", "out.pt"):
        with pytest.warns(CheckpointWarning) as told:
            (one,) = convert(source, tmp_path / target)
        assert [str(w.message) for w in told if "infinities or NaN" in str(w.message)] == [str(told[0].message)]
        assert "source.safetensors: 2 tensors hold infinities or NaN" in str(told[0].message) and len(told) == 1
        assert one.difference == 0 and "its outputs are not finite" in " ".join(one.notes)
        found = quietly(load_generator, tmp_path / target)
        assert network_hash(found) == network_hash(G)


# ------------------------------------------------------------------------------------------ what a format does not have


def test_a_clamp_in_the_other_formats(tmp_path):
    source = saved(tiny(conv_clamp=1e-3), tmp_path)
    (one,) = convert(source, tmp_path / "ada.pt", "ada")  # compared with that clamp, and the user is told of it
    assert one.difference == 0 and "conv_clamp=0.001" in one.notes[-1]
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"differs .* rosinality's format has no conv_clamp, and 0\.001 bites"):
        convert(source, tmp_path / "rosinality.pt")
    assert files(tmp_path) == before
    save_network(tiny(conv_clamp=256.0), source)
    (one,) = convert(source, tmp_path / "rosinality.pt")
    assert one.difference == 0 and "conv_clamp 256.0 is left out" in one.notes[0]
    assert load_generator(tmp_path / "rosinality.pt").config["conv_clamp"] is None


def test_many_labels_take_no_square_of_memory():
    """The outputs that are compared: of a million labels, a square matrix would have 4 TB."""
    labels, pictures = 10**6, []
    generator = Generator(8, 2, 2, c_dim=labels, channels={4: 1, 8: 1}, mapping_layers=1).eval()
    pictures.append(outputs(generator))
    with torch.no_grad():
        generator.mapping.embed.weight[:, 0] = generator.mapping.embed.weight[:, 0].flip(0) + 1000
    pictures.append(outputs(generator))
    assert pictures[0].shape == (1, 3, 8, 8) and not torch.equal(*pictures)  # the label was looked at


def test_the_conditional_golden_network_in_its_own_format(tmp_path):
    """Its clamp bites; the state dict has the public code's numbers when the constructor is given the clamp."""
    written = convert(GOLDEN / "tiny_ada_cond.pkl", tmp_path / "out.pt", "ada")
    assert [one.difference for one in written] == [0, 0]
    assert "conv_clamp=1.5" in written[0].notes[-1] and "conv_clamp=4.0" in written[1].notes[-1]
    assert "c_dim=3" in written[0].notes[-1]
    with pytest.raises(UsageError, match="c_dim"):
        convert(GOLDEN / "tiny_ada_cond.pkl", tmp_path / "rosinality.pt")
    assert "rosinality.pt" not in files(tmp_path)


@pytest.mark.parametrize(
    ("network", "arguments", "says"),
    [
        (lambda: tiny(mapping_lr_multiplier=0.1), {"format": "ada"}, "mapping_lr_multiplier is 0.1"),
        (lambda: tiny(mapping_lr_multiplier=0.1), {}, "mapping_lr_multiplier 0.01, not 0.1"),
        (lambda: tiny(architecture="resnet"), {}, "architecture 'skip', not 'resnet'"),
        (lambda: Discriminator(16, channels=CHANNELS, group_size=2), {"format": "ada"}, "group_size is 2"),
        (lambda: Discriminator(16, channels=CHANNELS), {}, "needs a generator"),
        (lambda: Discriminator(16, channels=CHANNELS), {"kind": "generator"}, "discriminator, not a generator"),
    ],
)
def test_what_a_format_cannot_express(network, arguments, says, tmp_path):
    source = saved(network(), tmp_path)
    with pytest.raises((UsageError, CheckpointError), match=says):
        convert(source, tmp_path / "out.pt", **arguments)
    assert files(tmp_path).keys() == {source.name}


def test_nothing_is_written_if_the_second_network_cannot_be(tmp_path):
    source = tmp_path / "both.pt"
    convert(GOLDEN / "tiny_ada.pkl", source)
    content = torch.load(source, weights_only=True)
    del content["d"]["final_conv.0.weight"]
    torch.save(content, source)
    before = files(tmp_path)
    for target in ("out.safetensors", "out.pt"):
        with pytest.raises(CheckpointError, match=r"both\.pt.*is missing"):
            convert(source, tmp_path / target)
    assert files(tmp_path) == before


# ------------------------------------------------------------------------------------------------------ the self-check


@pytest.mark.parametrize("changed", ["synthesis.b8.conv1.weight", "mapping.w_avg", "synthesis.b4.conv1.noise_const"])
def test_a_wrong_copy_is_noticed(changed, tmp_path, monkeypatch):
    """Also of tensors on which the outputs of the check do not depend (w_avg)."""
    original = module.save_network

    def wrong(network, path, *arguments, **facts):
        other = tiny()
        other.load_state_dict(network.state_dict())
        with torch.no_grad():
            other.state_dict()[changed].view(-1)[0].add_(0.01)
        original(other, path, *arguments, **facts)

    source = saved(tiny(), tmp_path)
    monkeypatch.setattr(module, "save_network", wrong)
    with pytest.raises(CheckpointError, match=f"{changed} of the generator came back"):
        convert(source, tmp_path / "out.safetensors")
    assert files(tmp_path).keys() == {source.name}


def test_a_wrong_configuration_is_noticed(tmp_path, monkeypatch):
    original = module.save_network

    def wrong(network, *arguments, **facts):
        network.config["conv_clamp"] = 1e-3
        original(network, *arguments, **facts)

    source = saved(tiny(), tmp_path)
    monkeypatch.setattr(module, "save_network", wrong)
    with pytest.raises(CheckpointError, match="differs from the one that was read by .* on random inputs"):
        convert(source, tmp_path / "out.safetensors")
    assert files(tmp_path).keys() == {source.name}


# ---------------------------------------------------------------------------------------- places that cannot be written


@pytest.fixture
def source(tmp_path) -> Path:
    return saved(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("missing/out.safetensors", "there is no folder .*missing; make it first"),
        ("source.safetensors/out.safetensors", "there is no folder"),
        ("folder.safetensors", "is a folder"),
        ("folder.pt", "is a folder"),
        ("x" * 250 + ".safetensors", "File name too long"),
        ("/proc/out.safetensors", "cannot write /proc/out.safetensors"),
        ("there.safetensors", "exists already; choose another name, or --overwrite"),
        ("there.pt", "exists already"),
        ("beside.pt", "beside.pt.json exists already"),
        ("nowhere.safetensors", "exists already"),
        ("source.safetensors", "is the file that is read"),
        ("link.safetensors", "is the file that is read"),
        ("hard.safetensors", "is the file that is read"),
        ("out.pkl", "says no format"),
        ("out", "says no format"),
    ],
)
def test_targets_that_cannot_be(target, says, source, tmp_path):
    for name in ("folder.safetensors", "folder.pt"):
        (tmp_path / name).mkdir()
    for name in ("there.safetensors", "there.pt", "beside.pt.json"):
        (tmp_path / name).write_text("keep me")
    (tmp_path / "link.safetensors").symlink_to(source)
    (tmp_path / "nowhere.safetensors").symlink_to(tmp_path / "nothing")
    os.link(source, tmp_path / "hard.safetensors")
    before, links = files(tmp_path), sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match=says) as error:
        convert(source, tmp_path / target)
    assert "\n" not in str(error.value) and ".tmp" not in str(error.value)
    assert files(tmp_path) == before and sorted(tmp_path.iterdir()) == links


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(source, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        convert(source, tmp_path / "locked/out.safetensors")


def test_what_must_never_be_replaced_even_with_overwrite(source, tmp_path):
    for target in ("source.safetensors", "link.safetensors"):
        if target.startswith("link"):
            (tmp_path / target).symlink_to(source)
        with pytest.raises(UsageError, match="is the file that is read"):
            convert(source, tmp_path / target, overwrite=True)
    both = tmp_path / "both.generator.pt"  # one of the files that are made, not the target itself
    convert(GOLDEN / "tiny_ada.pkl", both)
    with pytest.raises(UsageError, match="both.generator.pt is the file that is read"):
        convert(both, tmp_path / "both.pt", "ada", overwrite=True)


def test_overwriting(source, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_text("keep me")
    target = tmp_path / "out.safetensors"
    target.symlink_to(other)  # the link is replaced, what it points to stays
    convert(source, target, overwrite=True)
    assert other.read_text() == "keep me" and not target.is_symlink()
    assert_same(load_generator(target), tiny())
    convert(GOLDEN / "tiny_pti.pt", target, overwrite=True)
    assert load_generator(target).resolution == 32


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "tensorflow"}, "the formats are fastinv, rosinality, ada, not 'tensorflow'"),
        ({"format": "ada"}, "ends in .pt, not in .safetensors"),
        ({"kind": "decoder"}, "not 'decoder'"),
        ({"dtype": torch.int8}, "not in torch.int8"),
        ({"dtype": torch.float64}, "not in torch.float64"),
    ],
)
def test_wrong_arguments(arguments, says, source, tmp_path):
    with pytest.raises(UsageError, match=says):
        convert(source, tmp_path / "out.safetensors", **arguments)
    with pytest.raises(UsageError, match="the format rosinality is written in float32 only"):
        convert(source, tmp_path / "out.pt", dtype=torch.float16)
    assert files(tmp_path).keys() == {source.name}


@pytest.mark.parametrize(("target", "full_at"), [("out.safetensors", ""), ("out.pt", ""), ("out.pt", ".json")])
@pytest.mark.parametrize("old", [True, False])
def test_a_full_disk(target, full_at, old, source, tmp_path, monkeypatch):
    """/dev/full takes the temporary file's place: every byte is refused by the system itself."""
    if old:
        (tmp_path / target).write_text("keep me")
    before = files(tmp_path)
    original = Path.open

    def full(path, mode="r", *arguments, **options):
        writes = "w" in mode and f".{target}{full_at}." in path.name and path.name.endswith(".tmp")
        return original(Path("/dev/full") if writes else path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UsageError, match=f"cannot write .*/{target}{full_at}: No space left on device; check"):
        convert(source, tmp_path / target, overwrite=old)
    monkeypatch.undo()
    assert files(tmp_path) == before


@pytest.mark.parametrize("target", ["out.safetensors", "out.pt"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), MemoryError()])
def test_an_interruption_leaves_nothing(target, error, source, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        assert len(files(tmp_path)) == 2  # the temporary file is there
        raise error

    monkeypatch.setattr(module, "_check", interrupted)
    with pytest.raises(type(error)):
        convert(source, tmp_path / target)
    assert files(tmp_path).keys() == {source.name}


def test_the_first_file_stays_whole_when_the_second_fails(tmp_path, monkeypatch):
    original = module._check

    def failing(network, written, kind, *arguments, **options):
        if kind == "discriminator":
            raise OSError(28, "No space left on device")
        return original(network, written, kind, *arguments, **options)

    monkeypatch.setattr(module, "_check", failing)
    with pytest.raises(UsageError, match=r"cannot write .*out\.discriminator\.safetensors: No space left"):
        convert(GOLDEN / "tiny_ada.pkl", tmp_path / "out.safetensors")
    assert files(tmp_path).keys() == {"out.generator.safetensors"}
    assert_same(load_generator(tmp_path / "out.generator.safetensors"), load_generator(GOLDEN / "tiny_ada.pkl"))


def test_progress_and_names(tmp_path, monkeypatch):
    seen = []
    convert("faces64", tmp_path / "out.safetensors", progress=lambda *step: seen.append(step))
    assert {what for what, _, _ in seen} == {"reading generator", "sha256 of the source", "writing out.safetensors"}
    assert all(0 <= done <= total for _, done, total in seen)
    assert all((what, total, total) in seen for what, _, total in seen)  # each comes to its end
    assert_same(load_generator(tmp_path / "out.safetensors"), fastinv.load_generator("faces64"))
    with pytest.raises(CheckpointError, match="nobody"):
        convert("nobody", tmp_path / "other.safetensors")


def test_the_readers_warnings_name_the_source_only(tmp_path):
    """A plain state dict and a file with tensors that nothing uses: one warning each, none on a temporary file."""
    with pytest.warns(CheckpointWarning) as told:
        convert(GOLDEN / "tiny_ada.G_ema.state.safetensors", tmp_path / "out.pt", "ada")
    assert len(told) == 1 and "tiny_ada.G_ema.state.safetensors: a plain state dict" in str(told[0].message)
    save_file(ada.state_dict(tiny()) | {"odd.tensor": torch.zeros(2)}, tmp_path / "extra.safetensors")
    with pytest.warns(CheckpointWarning) as told:
        convert(tmp_path / "extra.safetensors", tmp_path / "clean.safetensors")
    messages = [str(w.message) for w in told]
    assert any("1 tensors belong to no part of the generator and are left out: odd.tensor" in m for m in messages)
    assert not any(".tmp" in message for message in messages)
    assert_same(load_generator(tmp_path / "clean.safetensors"), tiny())
