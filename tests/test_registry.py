"""The list of public checkpoints, and the copies of them on this machine."""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastinv.checkpoints import load_generator, network_hash, open_checkpoint, registry
from fastinv.checkpoints.listing import facts, overview, records
from fastinv.checkpoints.load import KINDS, load_encoder, resolve
from fastinv.checkpoints.registry import BUNDLED, PUBLIC, BundledModel, cache_folder, cache_path, cached, find
from fastinv.errors import CheckpointError
from fastinv.inversion import METHODS
from fastinv.training.tasks import task_of

CONTENT = b"weights" * 1000
LINKED = replace(
    PUBLIC["stylegan2/ffhq"], size_bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest()
)  # as if that were the file
BY_HAND = PUBLIC["idinvert/ffhq256-encoder"]


def put(model, cache, content=CONTENT) -> Path:
    path = cache_path(model, cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", PUBLIC)
def test_every_entry_is_well_formed(name):
    model = PUBLIC[name]
    assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name) and name.startswith(model.family + "/")
    assert name not in BUNDLED
    assert re.fullmatch(r"[\w.-]+\.(pkl|pt|pth)", model.file)
    assert model.page.startswith("https://") and model.licence and model.domain
    assert model.resolution in (32, 128, 256, 512, 1024)
    assert set(model.kinds) <= {"generator", "discriminator", "encoder"} and model.kinds
    if model.url is None:
        assert model.size_bytes is None and model.sha256 is None
    else:
        assert re.fullmatch(r"https://[\w.-]+/[\w./-]+", model.url) and model.url.endswith("/" + model.file)
        assert "drive.google" not in model.url  # answers with a web page
    assert model.sha256 is None or re.fullmatch("[0-9a-f]{64}", model.sha256)
    assert model.size_bytes is None or 1e6 < model.size_bytes < 8e9


def test_no_two_models_share_a_name_or_a_file():
    assert len(PUBLIC) == len(registry._MODELS)
    assert len({cache_path(model, "x") for model in PUBLIC.values()}) == len(PUBLIC)
    known = [model.sha256 for model in PUBLIC.values() if model.sha256]
    links = [model.url for model in PUBLIC.values() if model.url]
    assert len(set(known)) == len(known) > 5 and len(set(links)) == len(links)


def test_what_the_task_of_inversion_needs_is_listed():
    families = {model.family for model in PUBLIC.values()}
    assert {"stylegan", "stylegan2", "stylegan2-ada", "rosinality", "psp", "e4e", "restyle-psp"} <= families
    assert {"restyle-e4e", "idinvert", "alae"} <= families


def test_a_model_that_is_not_here(tmp_path):
    with pytest.raises(CheckpointError, match="fastinv models stylegan2/ffhq --download` fetches it.*382 MB.*NC"):
        find("stylegan2/ffhq", tmp_path)
    with pytest.raises(CheckpointError) as caught:
        find(BY_HAND.name, tmp_path)
    for part in (BY_HAND.page, str(cache_path(BY_HAND, tmp_path)), "instead of the name"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["stylegan2/fhq", "ffhq", "", "x" * 5000, "a\nb", "../../etc/passwd"])
def test_a_name_that_does_not_exist(name):
    with pytest.raises(CheckpointError, match="no public checkpoint is called") as caught:
        find(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    if name == "stylegan2/fhq":
        assert "did you mean stylegan2/ffhq" in str(caught.value)


def test_find_gives_the_checked_file(tmp_path, monkeypatch):
    monkeypatch.setitem(PUBLIC, LINKED.name, LINKED)
    path = put(LINKED, tmp_path)
    assert find(LINKED.name, tmp_path) == path
    assert find(LINKED.name, str(tmp_path)) == path
    put(LINKED, tmp_path, CONTENT[:-1])
    with pytest.raises(CheckpointError, match="6,999 bytes instead of 7,000; `fastinv models stylegan2/ffhq --downl"):
        find(LINKED.name, tmp_path)
    put(LINKED, tmp_path, CONTENT[:-1] + b"x")
    with pytest.raises(CheckpointError, match=f"instead of {LINKED.sha256}"):
        find(LINKED.name, tmp_path)


def test_the_first_use_of_a_file_is_recorded(tmp_path):
    path = put(BY_HAND, tmp_path)
    assert find(BY_HAND.name, tmp_path) == path
    assert registry.recorded_sha256(path) == hashlib.sha256(CONTENT).hexdigest()
    assert find(BY_HAND.name, tmp_path) == path
    path.write_bytes(CONTENT + b"x")
    with pytest.raises(CheckpointError, match=r"damaged, or another file: its sha256 is \w+ instead of \w+") as caught:
        find(BY_HAND.name, tmp_path)
    assert BY_HAND.page in str(caught.value) and path.name + ".json" in str(caught.value)
    path.with_name(path.name + ".json").unlink()  # as the message says
    assert find(BY_HAND.name, tmp_path) == path


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b'{"sha256": 3}', b"\xff\xfe"])
def test_a_record_that_says_nothing(record, tmp_path):
    path = put(BY_HAND, tmp_path)
    path.with_name(path.name + ".json").write_bytes(record)
    assert find(BY_HAND.name, tmp_path) == path
    assert registry.recorded_sha256(path) == hashlib.sha256(CONTENT).hexdigest()


def test_a_cache_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    path = put(BY_HAND, tmp_path)

    def refuse(self, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert find(BY_HAND.name, tmp_path) == path


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = put(BY_HAND, tmp_path)

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=f"cannot read {re.escape(str(path))}: Permission denied"):
        cached(BY_HAND, tmp_path)


def test_the_cache_folder(monkeypatch):
    for name in ("FASTINV_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = Path(os.path.expanduser("~"))
    assert cache_folder() == home / ".cache/fastinv"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/fastinv")
    monkeypatch.setenv("FASTINV_CACHE", "~/weights")
    assert cache_folder() == home / "weights"
    assert cache_path(BY_HAND) == home / "weights/checkpoints/idinvert/ffhq256-encoder" / BY_HAND.file
    monkeypatch.setenv("FASTINV_CACHE", "")
    assert cache_folder() == Path("/xdg/fastinv")


def test_the_overview_names_everything(tmp_path):
    put(BY_HAND, tmp_path)
    lines = overview(tmp_path).splitlines()
    assert re.match(r"faces64 +64 x 64  10\.\d MB .*, default$", lines[0])
    for name, model in BUNDLED.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert model.description in line and (f"for {model.of}" in line) == (model.of is not None)
    for name, model in PUBLIC.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert str(model.resolution) in line and model.domain in line
        assert ("on this machine" in line) == (name == BY_HAND.name)
    for model in PUBLIC.values():
        assert f"  licence: {model.licence}" in lines
    assert max(map(len, lines)) < 250 and overview(tmp_path / "none").count("on this machine") == 0


@pytest.mark.parametrize("name", [*BUNDLED, *PUBLIC])
def test_the_facts_of_a_model(name, tmp_path):
    text = facts(name, tmp_path)
    model = BUNDLED.get(name) or PUBLIC[name]
    assert text.splitlines()[0] == name and model.licence in text and f"{model.resolution} x" in text
    assert f'fastinv.load_generator("{name}")' in text or "generator" not in model.kinds
    assert all(f'fastinv.load_{kind}("{name}")' in text for kind in model.kinds)
    if name in BUNDLED:
        assert all(str(model.file(kind)) in text for kind in model.kinds)
        assert (f"--method {model.method}" in text) == (model.method is not None)
    if name in PUBLIC:
        assert model.page in text and (model.sha256 or "not known") in text and "None" not in text
        assert (f"fastinv models {name} --download" in text) == (model.url is not None)
        path = put(model, tmp_path)
        assert str(path) in facts(name, tmp_path) and " get " not in facts(name, tmp_path)


def test_facts_of_nothing():
    with pytest.raises(CheckpointError, match="did you mean e4e/ffhq"):
        facts("e4e/ffh")
    with pytest.raises(CheckpointError, match="did you mean e4e/ffhq"):
        records("e4e/ffh")


# The bundled ones


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_model_has_its_files(name):
    model = BUNDLED[name]
    assert model.name == name and model.kinds and set(model.kinds) <= set(KINDS) and model.licence
    for kind in model.kinds:
        assert open_checkpoint(model.file(kind)).networks.keys() == {kind} and resolve(name, kind) == model.file(kind)
    assert resolve(name) == model.file(model.kinds[0])
    assert "generator" in BUNDLED[model.generator].kinds and (model.of is None or "generator" not in model.kinds)
    if model.method is not None:
        assert "encoder" in model.kinds and model.method in METHODS
    elif "encoder" in model.kinds:  # not for inversion, but for another task
        assert f"faces64-{task_of(name, load_encoder(name)).name}" == name


def test_a_bundled_encoder_is_for_its_method_task_and_generator():
    for name, model in BUNDLED.items():
        if "encoder" in model.kinds:
            E, G = load_encoder(name), load_generator(model.generator)
            assert E.origin == name
            assert type(E) in METHODS[model.method or "psp"].encoders
            assert model.method is None or task_of(name, E).name == "invert"
            assert (E.num_ws, E.w_dim, model.resolution) == (G.num_ws, G.w_dim, G.resolution)
            assert E.generator_sha256 in (network_hash(G), None)
            if model.of is not None:
                assert E.generator_sha256 is not None


def test_a_bundled_model_without_that_network(monkeypatch):
    alae = BundledModel("own", "", 64, "", ("generator", "encoder"), None, "alae")
    monkeypatch.setitem(BUNDLED, "own", alae)
    for name, kind, says in (
        ("faces64-psp", "generator", "faces64-psp is an encoder for faces64; give the generator faces64$"),
        ("faces64-psp", "discriminator", "faces64-psp is an encoder for faces64; give the discriminator faces64$"),
        ("faces64", "encoder", "faces64 is a generator and a discriminator; give the encoder faces64-psp"),
        ("own", "discriminator", "own is a generator and an encoder, not a discriminator$"),
    ):
        with pytest.raises(CheckpointError, match=says):
            resolve(name, kind)
