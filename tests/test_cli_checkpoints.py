"""`fastinv convert`, `fastinv models`, and `fastinv invert` on other people's generators: statuses, lines, files."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from pickle_writer import Call, dumps
from test_cli import ROOT, files, picture, process, refused, run
from test_families_stylegan1 import CHANNELS, genforce_state, tensorflow_variables
from test_families_stylegan1 import generator as stylegan1

import fastinv
from fastinv.checkpoints import CheckpointWarning, load_generator, network_hash, registry, save_network
from fastinv.checkpoints import convert as module
from fastinv.checkpoints.families import ada, rosinality

GOLDEN = ROOT / "tests/golden"
HOSTILE = sorted(path for path in (GOLDEN / "hostile").iterdir() if path.suffix != ".md")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder; a file that runs something leaves a marker in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTINV_MARKER", str(tmp_path / "marker"))
    monkeypatch.setenv("FASTINV_CACHE", str(tmp_path / "cache"))
    return tmp_path


def small_stylegan1():
    return stylegan1(resolution=16, channels={r: CHANNELS[r] for r in (4, 8, 16)})


def golden_state() -> dict[str, torch.Tensor]:
    return ada.state_dict(load_generator(GOLDEN / "tiny_pti.pt"))


# ------------------------------------------------------------------------------------------------------------- convert


def test_convert(folder, capsys):
    status, out, err = run(capsys, "convert", GOLDEN / "tiny_ada.pkl", "out.safetensors")
    assert (status, err) == (0, "")
    assert files(folder) == {"out.generator.safetensors", "out.discriminator.safetensors"}
    first, second = out.splitlines()
    assert first.startswith("out.generator.safetensors  generator  self-check: largest difference 0 of ")
    assert second.startswith("out.discriminator.safetensors  discriminator  self-check: largest difference 0 of ")
    status, out, err = run(capsys, "convert", GOLDEN / "tiny_ada.pkl", "g.pt", "--network", "generator", "--quiet")
    assert (status, err) == (0, "") and {"g.pt", "g.pt.json"} < files(folder) and len(files(folder)) == 4
    assert "constructor must be given size=32" in out.splitlines()[1]
    status, _, err = run(capsys, "convert", "g.pt", "half.safetensors", "--dtype", "float16")
    assert (status, err) == (0, "")
    assert (folder / "half.safetensors").stat().st_size < (folder / "out.generator.safetensors").stat().st_size
    status, out, err = run(capsys, "convert", "g.pt", "state.pt", "--format", "ada")
    assert (status, err) == (0, "") and "img_resolution=32" in out
    assert run(capsys, "convert", "state.pt", "half.safetensors", "--overwrite")[0] == 0
    assert network_hash(load_generator("half.safetensors")) == network_hash(load_generator(GOLDEN / "tiny_ada.pkl"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument 'IN'"),
        (["good.pt"], "Missing argument 'OUT'"),
        (["none.pkl", "out.safetensors"], "neither a file nor a bundled name"),
        (["x" * 300, "out.safetensors"], "File name too long"),
        ([".", "out.safetensors"], "is a folder"),
        (["stylegan2/ffhq", "out.safetensors"], "fastinv models stylegan2/ffhq --download"),
        (["faces64", "out.safetensors", "--network", "encoder"], "give the encoder faces64-psp"),
        (["good.pt", "out.onnx"], "says no format"),
        (["good.pt", "out"], "says no format"),
        (["good.pt", "out.safetensors", "--format", "magic"], "'magic'"),
        (["good.pt", "out.safetensors", "--format", "ada"], "ends in .pt"),
        (["good.pt", "out.safetensors", "--network", "decoder"], "'decoder'"),
        (["good.pt", "out.safetensors", "--network", "discriminator"], "holds a generator, not a discriminator"),
        (["good.pt", "out.safetensors", "--dtype", "int8"], "int8"),
        (["good.pt", "out.safetensors", "--dtype", "float64"], "float64"),
        (["good.pt", "out.pt", "--dtype", "float16"], "float32 only"),
        (["good.pt", "out/below.safetensors"], "there is no folder out"),
        (["good.pt", "good.pt/below.safetensors"], "there is no folder good.pt"),
        (["good.pt", "/proc/out.safetensors"], "cannot write /proc/out.safetensors"),
        (["good.pt", "good.pt", "--overwrite"], "is the file that is read"),
        (["good.pt", "there.safetensors"], "--overwrite"),
        (["good.pt", "out.safetensors", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use_of_convert(folder, capsys, arguments, says):
    (folder / "good.pt").write_bytes((GOLDEN / "tiny_rosinality.pt").read_bytes())
    (folder / "there.safetensors").write_text("keep me")
    refused(capsys, ["convert", *arguments], says)


def without(state: dict, name: str) -> dict:
    return {key: tensor for key, tensor in state.items() if key != name}


def mixed() -> dict:
    """The mapping network under rosinality's names, the rest under StyleGAN2-ADA's."""
    theirs = rosinality.checkpoint(load_generator(GOLDEN / "tiny_rosinality.pt"))["g_ema"]
    ours = {name: tensor for name, tensor in golden_state().items() if not name.startswith("mapping.fc")}
    return ours | {name: tensor for name, tensor in theirs.items() if name.startswith("style.")}


def cycle() -> dict:
    value: dict = {"g_ema": golden_state()}
    value["again"] = [value]
    return value


def torch_file(value) -> bytes:
    torch.save(value, "made.pt")
    return Path("made.pt").read_bytes()


# name of the file -> (what makes its content, what the line says)
BAD = {
    "truncated.pkl": (lambda: (GOLDEN / "tiny_ada.pkl").read_bytes()[:-1000], "cut off"),
    "truncated.pt": (lambda: (GOLDEN / "tiny_rosinality.pt").read_bytes()[:-1000], "cut off or damaged"),
    "truncated.safetensors": (
        lambda: (GOLDEN / "tiny_ada.G_ema.state.safetensors").read_bytes()[:-1000], "cannot read truncated.safetensors",
    ),
    "magic.pkl": (lambda: b"\x00\x01\x02" + (GOLDEN / "tiny_ada.pkl").read_bytes()[3:], "no checkpoint that is known"),
    "length.pkl": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.", "cut off"),
    "length.safetensors": (lambda: struct.pack("<Q", 2**60) + b'{"a":', "cannot read length.safetensors"),
    "cycle.pt": (lambda: torch_file(cycle()), "it contains itself"),
    "missing.pt": (lambda: torch_file(without(golden_state(), "synthesis.b8.conv0.bias")), "b8.conv0.bias is missing"),
    "missing.safetensors": (
        lambda: (save_network(load_generator(GOLDEN / "tiny_pti.pt"), "made.safetensors"),
                 Path("made.safetensors").read_bytes().replace(b"b16.conv1.bias", b"b16.conv1.bia5"))[1],
        "synthesis.b16.conv1.bias is missing",
    ),
    "shape.pt": (
        lambda: torch_file(golden_state() | {"synthesis.b8.conv0.bias": torch.zeros(31)}),
        "synthesis.b8.conv0.bias has shape [31], not [32]",
    ),
    "mixed.pt": (lambda: torch_file(mixed()), "the tensor mapping.fc0.weight is missing"),
    "page.pkl": (lambda: b"<!DOCTYPE html>\n<html><title>Google Drive - Quota exceeded</title></html>", "a web page"),
    "pointer.pkl": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
    "packed.pkl": (lambda: gzip.compress((GOLDEN / "tiny_ada.pkl").read_bytes()), "compressed with gzip"),
    "empty.pkl": (lambda: b"", "is empty"),
    "other.pkl": (lambda: pickle.dumps({"epoch": 3, "model": [1, 2]}, 2), "holds the entries epoch, model, no network"),
    "optimizer.pt": (lambda: torch_file({"state": {0: torch.ones(3)}}), "holds the entries state, no network"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BAD, *(path.name for path in HOSTILE)])
def test_bad_files_are_one_line_and_nothing_is_written(name, folder, capsys):
    if name in BAD:
        make, says = BAD[name]
        content = make()
    else:
        content, says = (GOLDEN / "hostile" / name).read_bytes(), name
    (folder / name).write_bytes(content)
    path = picture(folder / "a.png")
    refused(capsys, ["convert", name, "out.safetensors"], name, says)
    refused(capsys, ["convert", name, "out.pt"], name, says)
    refused(capsys, ["invert", path, "--generator", name, "--steps", "1"], name, says)
    assert not (folder / "marker").exists()


def test_nan_weights_are_allowed_with_a_warning(folder, capsys):
    state = golden_state()
    state["synthesis.b8.conv0.bias"] = torch.full((32,), float("nan"))
    torch.save({"generator": 3} | state, "nan.pt")
    status, out, err = run(capsys, "convert", "nan.pt", "out.safetensors")
    assert status == 0 and "self-check" in out
    lines = err.splitlines()
    assert all(line.startswith("fastinv: nan.pt: ") for line in lines) and len(lines) == 2
    assert "1 tensors hold infinities or NaN, the first is synthesis.b8.conv0.bias" in lines[0]
    assert "plain state dict" in lines[1]
    with pytest.warns(CheckpointWarning, match="NaN"):
        assert load_generator("out.safetensors").synthesis.b8.conv0.bias.isnan().all()


def test_extra_tensors_are_listed(folder, capsys):
    content = torch.load(GOLDEN / "tiny_rosinality.pt", weights_only=True)
    content["g_ema"] |= {f"extra.{i}": torch.ones(1) for i in range(10)}
    torch.save(content, "extra.pt")
    status, _, err = run(capsys, "convert", "extra.pt", "out.safetensors")
    (line,) = err.splitlines()
    assert status == 0 and line.startswith("fastinv: extra.pt: 10 tensors belong to no part of the generator")
    assert line.endswith("extra.0, extra.1, extra.2, extra.3, extra.4, extra.5, extra.6, extra.7 and 2 more")
    expected = load_generator(GOLDEN / "tiny_rosinality.pt")
    assert network_hash(load_generator("out.safetensors")) == network_hash(expected)


def test_a_clamp_that_rosinality_cannot_say(folder, capsys):
    G = fastinv.load_generator(GOLDEN / "tiny_pti.pt")
    clamped = type(G)(**G.config | {"conv_clamp": 0.01})
    clamped.load_state_dict(G.state_dict())
    save_network(clamped, "clamped.safetensors")
    refused(capsys, ["convert", "clamped.safetensors", "out.pt"], "has no conv_clamp, and 0.01 bites")
    status, out, _ = run(capsys, "convert", "clamped.safetensors", "out.pt", "--format", "ada")
    assert status == 0 and "conv_clamp=0.01" in out


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory"),
        (OSError(28, "No space left on device"), 2, "cannot write out.safetensors: No space left on device"),
        (KeyError("x"), 70, "unexpected KeyError"),
    ],
)
def test_an_end_in_the_middle_leaves_nothing(error, status, says, folder, capsys, monkeypatch):
    def fails(*arguments, **options):
        assert len(files(folder)) == 1  # the temporary file is there
        raise error

    monkeypatch.setattr(module, "_check", fails)
    refused(capsys, ["convert", GOLDEN / "tiny_pti.pt", "out.safetensors"], says, status=status)


def test_python_m_runs_the_command_line(folder):
    running = process("-m", "fastinv.cli", "convert", str(GOLDEN / "tiny_pti.pt"), "out.safetensors", cwd=folder)
    out, err = running.communicate(timeout=120)
    assert (running.returncode, err) == (0, "") and out.startswith("out.safetensors  generator")


def test_the_help_has_no_odd_breaks(folder, capsys, monkeypatch):
    """Text of a paragraph fills its lines at 80 columns: the next word would not have fitted."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    for command in ("convert", "models", "invert"):
        out = run(capsys, command, "--help")[1]
        lines = [line.strip() for line in out.split("╭")[0].splitlines()]
        for line, following in zip(lines, lines[1:], strict=False):
            assert not following or not line or len(line) + 1 + len(following.split()[0]) > 76, (line, following)


# -------------------------------------------------------------------------------------------------------------- models


def test_models(folder, capsys):
    status, out, err = run(capsys, "models")
    assert (status, err) == (0, "")
    for name in (*registry.BUNDLED, *registry.PUBLIC):
        assert name in out
    status, out, err = run(capsys, "models", "stylegan2-ada/ffhq")
    assert (status, err) == (0, "")
    for fact in ("1024 x 1024", "non-commercial", "381,624,121 bytes", 'load_generator("stylegan2-ada/ffhq")', "here"):
        assert fact in out
    status, out, err = run(capsys, "models", "--json")
    listed = {model["name"]: model for model in json.loads(out)}
    assert (status, err) == (0, "") and list(listed) == [*registry.BUNDLED, *registry.PUBLIC]
    assert listed["faces64-psp"]["bundled"] and listed["faces64-psp"]["of"] == "faces64"
    assert listed["faces64-psp"]["files"] == [str(registry.BUNDLED["faces64-psp"].file("encoder"))]
    assert not listed["stylegan2/ffhq"]["bundled"] and listed["stylegan2/ffhq"]["files"] == []
    assert json.loads(run(capsys, "models", "e4e/ffhq", "--json")[1]) == [listed["e4e/ffhq"]]
    assert run(capsys, "models", "faces64", "--download")[:2] == run(capsys, "models", "faces64")[:2]  # it is here
    assert files(folder) == set()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stylegan2/ffhq", "--download", "--json"], "--json is for lists"),
        (["--download"], "--download needs the name of a model"),
        (["stylegan2/fhq"], "did you mean stylegan2/ffhq"),
        (["nobody"], "`fastinv models` lists them"),
        (["a", "b"], "b"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_use_of_models(folder, capsys, arguments, says):
    refused(capsys, ["models", *arguments], says)


def test_a_download_needs_consent_and_a_link(folder, capsys):
    status, out, err = run(capsys, "models", "stylegan2-ada/ffhq", "--download")  # standard input is no terminal
    assert status == 2 and "non-commercial" in out and "--yes accepts its licence" in err
    status, _, err = run(capsys, "models", "stylegan/ffhq", "--download", "--yes")
    assert status == 2 and "download it in a browser" in err and len(err.strip().splitlines()) == 1
    assert files(folder) == set()


# -------------------------------------------------------------------------------------------------------------- invert


@pytest.mark.parametrize(
    "file", ["tiny_ada.pkl", "tiny_rosinality.pt", "tiny_tf.pkl", "stylegan1.pth", "stylegan1.pkl"]
)
def test_invert_with_a_public_generator(file, folder, capsys):
    path = picture(folder / "a.png")
    if file == "stylegan1.pth":
        torch.save(genforce_state(small_stylegan1()), file)
    elif file == "stylegan1.pkl":
        (folder / file).write_bytes(tensorflow_pickle(small_stylegan1()))
    else:
        file = str(GOLDEN / file)
    arguments = ["--steps", 5, "--set", "perceptual_weight=0", "--quiet", "--generator", file]
    status, out, err = run(capsys, "invert", path, *arguments)
    assert (status, err) == (0, "") and out.startswith("inverted/a  PSNR ")
    settings = json.loads((folder / "inverted/a/result.json").read_text())
    G = load_generator(file)
    assert settings["settings"]["generator"]["sha256"] == network_hash(G)
    losses = settings["losses"]["total"]
    assert losses[-1] < losses[0]
    result = fastinv.InversionResult.load(folder / "inverted/a")
    assert result.w_plus.shape == (1, G.num_ws, G.w_dim)


def tensorflow_pickle(G) -> bytes:
    """(None, None, Gs) as TensorFlow's StyleGAN pickles it."""
    own, mapping, synthesis = tensorflow_variables(G)

    def network(name, variables, components=()):
        state = {
            "version": 3, "name": name, "static_kwargs": {}, "components": dict(components), "build_module_src": "",
            "build_func_name": "G_style",
            "variables": [(key, t.numpy() if isinstance(t, torch.Tensor) else t) for key, t in variables.items()],
        }  # fmt: skip
        return Call("dnnlib.tflib.network.Network", state=state, new=True)

    parts = {"mapping": network("G_mapping", mapping), "synthesis": network("G_synthesis", synthesis)}
    return dumps((None, None, network("Gs", own, parts)))
