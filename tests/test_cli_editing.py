"""The commands edit, mix, interpolate and diffuse: what they write, and what they refuse before they work."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cli import files, picture, refused, run, tiny

import fastinv
from fastinv.checkpoints import network_hash, save_network
from fastinv.data import faces
from fastinv.data.pictures import load_picture, save_picture
from fastinv.editing.blend import blend
from fastinv.editing.codes import codes_of, edited, render
from fastinv.editing.direction import Direction, save_directions
from fastinv.errors import UsageError
from fastinv.files import atomic_folder
from fastinv.inversion import InversionResult
from fastinv.inversion.local_edits import pasted
from fastinv.latents import load_codes, save_latent
from fastinv.report.strip import strip


def some(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def G():
    return tiny(16)


@pytest.fixture
def folder(tmp_path, monkeypatch, G) -> Path:
    """A working folder with a generator of 16 pixels, codes for it (and for another), directions and a mask."""
    monkeypatch.chdir(tmp_path)
    save_network(G, "g.safetensors")
    own = network_hash(G)
    for seed, name in enumerate("abc"):
        save_latent(f"{name}.safetensors", some(1, 6, 8, seed=seed), {"generator_sha256": own})
    save_latent("other.safetensors", some(1, 6, 8), {"generator_sha256": "0" * 64})
    directions = [Direction(name, "w", some(8, seed=seed), (0, None), 2.0, "test", own)
                  for seed, name in enumerate(("smile", "age"))]  # fmt: skip
    save_directions("d.safetensors", directions)
    save_directions("wrong.safetensors", [Direction("smile", "w", some(8), (0, None), 2.0, "test", "0" * 64)])
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    save_picture(mask * 2 - 1, "mask.png")
    return tmp_path


OWN = ["--generator", "g.safetensors", "-q"]


def shows(path: str, image: torch.Tensor) -> None:
    """The file holds the picture, in 8 bits."""
    found = load_picture(path, image.shape[-1])
    assert (found - image.detach().clamp(-1, 1)).abs().max() < 1 / 127


def test_edit(folder, capsys, G):
    arguments = ["edit", "a.safetensors", "b.safetensors", "-d", "d.safetensors:smile", "-d", "d.safetensors:age"]
    status, out, err = run(capsys, *arguments, "--strength", "-1", "--strength", "0.5", *OWN)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"edited/{one}/edits/{d}/strip.png" for one in "ab" for d in ("smile", "age")]
    home = folder / "edited/b/edits/age"
    written = {"strip.png", "latent.safetensors", "edit.json", "pictures", "pictures/-1.png", "pictures/+0.5.png"}
    assert files(home) == written
    w = some(1, 6, 8, seed=1)
    expected = torch.cat([w - some(8, seed=1), w + 0.5 * some(8, seed=1)])
    codes = load_codes(home / "latent.safetensors")
    torch.testing.assert_close(codes["w_plus"], expected)
    shows(home / "pictures/-1.png", G.synthesis(expected)[0])
    facts = json.loads((home / "edit.json").read_text())
    assert facts["direction"] == "age" and facts["strengths"] == [-1, 0.5] and facts["mask"] is None
    assert facts["directions"] == [{"name": "age", "space": "w", "layers": [0, 6], "source": "test"}]
    assert facts["generator"]["sha256"] == network_hash(G)
    assert facts["inputs"] == [str(folder / "b.safetensors")] and facts["command"].startswith("fastinv edit a.saf")
    strip = Image.open(home / "strip.png")
    assert strip.width > 3 * 192 and strip.width > 2 * strip.height  # before, -1 and +0.5


def test_edit_by_default_goes_from_minus_to_plus_what_is_typical(folder, capsys):
    arguments = ["edit", "a.safetensors", "-d", "d.safetensors:smile"]
    assert run(capsys, *arguments, *OWN)[0] == 0
    home = folder / "edited/a/edits/smile"
    assert json.loads((home / "edit.json").read_text())["strengths"] == [-2, -1, 0, 1, 2]
    assert torch.equal(load_codes(home / "latent.safetensors")["w_plus"][2:3], some(1, 6, 8))
    # Again, with others: the folder is replaced, with nothing left of before.
    assert run(capsys, *arguments, "-s", "1", *OWN)[0] == 0
    assert {path.name for path in (home / "pictures").iterdir()} == {"+1.png"}
    assert {path.name for path in home.parent.iterdir()} == {"smile"}


def test_directions_together(folder, capsys):
    arguments = ["-d", "d.safetensors:smile", "-d", "d.safetensors:age", "--together", "-s", "2"]
    assert run(capsys, "edit", "a.safetensors", *arguments, *OWN)[0] == 0
    found = load_codes("edited/a/edits/smile+age/latent.safetensors")["w_plus"]
    torch.testing.assert_close(found, some(1, 6, 8) + 2 * (some(8) + some(8, seed=1)))


def test_an_edit_under_a_mask(folder, capsys, G):
    arguments = ["edit", "a.safetensors", "-d", "d.safetensors:smile", "-s", "2", "--mask", "mask.png"]
    assert run(capsys, *arguments, "--soften", "0", *OWN)[0] == 0
    home = folder / "edited/a/edits/smile-mask"
    codes, mask = codes_of(some(1, 6, 8)), load_picture("mask.png", 16)[0] / 2 + 0.5
    new = edited(G, codes, codes["w_plus"] + 2 * some(8))
    assert torch.equal(load_codes(home / "latent.safetensors")["w_plus"], new["w_plus"])
    shows(home / "pictures/+2.png", blend(G, codes, new, mask)[0])
    found = load_picture(home / "pictures/+2.png", 16)
    assert (found - render(G, codes)[0].clamp(-1, 1))[:, 8:].abs().max() < 1 / 127
    facts = json.loads((home / "edit.json").read_text())
    assert facts["mask"] == str(folder / "mask.png") and facts["soften"] == 0


def test_results_are_edited_where_they_are(folder, capsys):
    """A folder of `fastinv invert` is edited picture by picture, each in its own folder."""
    for seed, name in enumerate("xy"):
        picture(folder / f"{name}.png", seed)
    options = ["--steps", "1", "--set", "perceptual_weight=0", "--out", "run", *OWN]
    assert run(capsys, "invert", "x.png", "y.png", *options)[0] == 0
    assert run(capsys, "edit", "run", "-d", "d.safetensors:age", "--out", "run", *OWN)[0] == 0
    for name in "xy":
        result = InversionResult.load(folder / "run" / name)
        codes = load_codes(f"run/{name}/edits/age/latent.safetensors")
        assert torch.equal(codes["w_plus"][2:3], result.w_plus)
        strip = Image.open(f"run/{name}/edits/age/strip.png")
        assert strip.width > 6 * 192  # the picture itself is shown, too


def test_pictures_are_inverted_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image = faces.sample(1, seed=0, split="heldout")[0][0]
    save_picture(image, "anna.png")
    G = fastinv.load_generator("faces64")
    save_directions("d.safetensors", [Direction("x", "w", some(256), (0, None), 0.1, "test", network_hash(G))])
    command = ["edit", "anna.png", "-d", "d.safetensors", "-s", "0", "-q"]
    assert run(capsys, *command)[0] == 0
    result = InversionResult.load("edited/anna")
    assert result.settings["method"] == "psp" and result.settings["picture"] == str(tmp_path / "anna.png")
    assert torch.equal(load_codes("edited/anna/edits/x/latent.safetensors")["w_plus"], result.w_plus)
    shows("edited/anna/edits/x/pictures/0.png", result.render(G)[0])
    assert run(capsys, *command)[0] == 0  # the same again replaces it
    refused(capsys, [*command, "--method", "e4e"], "edited/anna holds another inversion", "choose another --out")


def test_mix(folder, capsys, G):
    status, out, err = run(capsys, "mix", "a.safetensors", "b.safetensors", "--layers", "2-3", *OWN)
    assert (status, out, err) == (0, "edited/mix-a-b/strip.png\n", "")
    home = folder / "edited/mix-a-b"
    assert files(home) == {"strip.png", "latent.safetensors", "mix.json", "pictures", "pictures/0-0.png"}
    a, b = some(1, 6, 8), some(1, 6, 8, seed=1)
    found = load_codes(home / "latent.safetensors")["w_plus"]
    assert torch.equal(found, torch.cat([a[:, :2], b[:, 2:4], a[:, 4:]], 1))
    shows(home / "pictures/0-0.png", G.synthesis(found)[0])
    facts = json.loads((home / "mix.json").read_text())
    assert facts["layers"] == [2, 3] and facts["strength"] == 1

    arguments = ["mix", "a.safetensors", "b.safetensors", "c.safetensors", "--content", "b.safetensors", "-l", "5"]
    assert run(capsys, *arguments, "--strength", "0.5", *OWN)[0] == 0
    home = folder / "edited/mix-a-b-b-1-more"
    found = load_codes(home / "latent.safetensors")["w_plus"]  # row by row: a with b, a with c, b with b, b with c
    c = some(1, 6, 8, seed=2)
    torch.testing.assert_close(found[:, 5], torch.cat([(x + y)[:, 5] / 2 for x in (a, b) for y in (b, c)]))
    assert torch.equal(found[1, :5], a[0, :5])
    assert {path.name for path in (home / "pictures").iterdir()} == {f"{i}-{j}.png" for i in (0, 1) for j in (0, 1)}
    assert Image.open(home / "strip.png").height > 3 * 192


def test_interpolate(folder, capsys, G):
    arguments = ["interpolate", "a.safetensors", "b.safetensors", "c.safetensors", "--steps", "2", "--gif"]
    status, out, err = run(capsys, *arguments, *OWN)
    assert (status, out, err) == (0, "edited/interpolate-a-b-c/strip.png\n", "")
    home = folder / "edited/interpolate-a-b-c"
    found = load_codes(home / "latent.safetensors")["w_plus"]
    assert len(found) == 7
    for row, seed in ((0, 0), (3, 1), (6, 2)):
        assert torch.equal(found[row], some(1, 6, 8, seed=seed)[0])
        shows(home / f"pictures/00{row}.png", G.synthesis(found[row : row + 1])[0])
    with Image.open(home / "animation.gif") as animation:
        assert animation.n_frames == 12 and animation.info["loop"] == 0  # there and back, the ends once
    assert run(capsys, *arguments, *OWN)[0] == 0  # the same place again, another for other inputs of that name
    save_latent("edited/a.safetensors", some(1, 6, 8, seed=3))
    assert run(capsys, "interpolate", "edited/a.safetensors", *arguments[2:], *OWN)[0] == 0
    assert {path.name for path in (folder / "edited").iterdir()} == {
        "a.safetensors", "interpolate-a-b-c", "interpolate-a-b-c-2",
    }  # fmt: skip


def test_interpolate_says_what_it_leaves_out(folder, capsys):
    codes = {"noise.b4.conv1": some(1, 1, 4, 4)}
    save_latent("n.safetensors", some(1, 6, 8), codes=codes)
    status, _, err = run(capsys, "interpolate", "n.safetensors", "b.safetensors", *OWN)
    assert status == 0 and "left out" in err and "noise maps" in err
    assert "noise.b4.conv1" not in load_codes("edited/interpolate-n-b/latent.safetensors")
    assert run(capsys, "interpolate", "n.safetensors", "b.safetensors", "--w-only", *OWN)[2] == ""


def test_diffuse(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = faces.sample(2, seed=5, split="heldout")[0]
    for image, name in zip(images, "ab", strict=True):
        save_picture(image, f"{name}.png")
    quick = ["--steps", "1", "--set", "perceptual_weight=0", "-q"]
    arguments = ["diffuse", "a.png", "b.png", "--center", "32,40", "--size", "20", *quick]
    status, out, err = run(capsys, *arguments)
    assert status == 0 and err == "" and out.startswith("edited/diffuse-a-b  PSNR ")
    result = InversionResult.load("edited/diffuse-a-b")
    settings = result.settings
    assert settings["task"] == {"name": "diffuse"} and settings["method"] == "idinvert" and settings["masked"]
    assert settings["pictures"] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert settings["masks"] == {"mask": "square round 32,40, 20 pixels a side"}
    assert settings["options"]["domain_weight"] == 0
    # A picture of the same square is the same mask.
    mask = torch.zeros(1, 64, 64)
    mask[:, 30:50, 22:42] = 1
    save_picture(mask * 2 - 1, "mask.png")
    assert run(capsys, "diffuse", "a.png", "b.png", "--mask", "mask.png", "--out", "other", *quick)[0] == 0
    other = InversionResult.load("other/diffuse-a-b")
    assert torch.equal(other.w_plus, result.w_plus)
    a, b = (load_picture(name, 64)[None] for name in ("a.png", "b.png"))
    start = fastinv.load_encoder("faces64-idinvert").encode(pasted(a, b, mask[None], 0.0))
    assert (result.w_plus - start).abs().max() < 0.02  # one step of 0.01 from there


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("edit a.safetensors", "Missing option '--direction'"),
        ("edit a.safetensors -d nonesuch", "nonesuch"),
        ("edit a.safetensors -d d.safetensors", "several directions"),
        ("edit a.safetensors -d d.safetensors:none", "no direction 'none'"),
        ("edit a.safetensors -d wrong.safetensors", "direction 'smile' is for the generator 0000"),
        ("edit other.safetensors -d d.safetensors:smile", "other.safetensors is for the generator 0000"),
        ("edit none.safetensors -d d.safetensors:smile", "no such file"),
        ("edit g.safetensors -d d.safetensors:smile", "holds a generator, not a latent code"),
        ("edit . -d d.safetensors:smile", "no inversion result in ."),
        ("edit a.safetensors -d d.safetensors:smile -s nan", "--strength must be a finite number"),
        ("edit a.safetensors -d d.safetensors:smile -s x", "should be a valid number"),
        ("edit a.safetensors -d d.safetensors:smile --soften 1", "give one"),
        ("edit a.safetensors -d d.safetensors:smile --mask none.png", "none.png: no such file"),
        ("edit a.safetensors -d d.safetensors:smile --mask mask.png --soften 20", "--soften must be from 0"),
        ("edit a.safetensors -d d.safetensors:smile --crop left", "unknown crop"),
        ("edit a.safetensors -d d.safetensors:smile --seed -1", "--seed must be"),
        ("edit a.safetensors -d d.safetensors:smile --out a.safetensors", "a.safetensors"),
        ("edit a.safetensors ./sub/a.safetensors -d d.safetensors:smile", "two of the inputs are called 'a'"),
        ("edit a.safetensors -d d.safetensors:smile -d wrong.safetensors --force", "two of the directions are called"),
        ("mix a.safetensors b.safetensors", "Missing option '--layers'"),
        ("mix a.safetensors b.safetensors -l 3-6", "the generator has no layer 6"),
        ("mix a.safetensors b.safetensors -l three", "no layers: 'three'"),
        ("mix a.safetensors other.safetensors -l 3", "other.safetensors is for the generator 0000"),
        ("mix a.safetensors b.safetensors -l 3 --strength nan", "--strength must be"),
        ("interpolate a.safetensors", "at least 2 inputs, not 1"),
        ("interpolate a.safetensors b.safetensors --steps -1", "--steps must be a whole number"),
        ("interpolate a.safetensors other.safetensors", "other.safetensors is for the generator 0000"),
        ("diffuse a.png b.png --mask mask.png --size 3", "leave out --center and --size"),
        ("diffuse a.png b.png --center 3", "--center wants X,Y"),
        ("diffuse a.png b.png --center 90,90 --size 3", "has no pixel of the picture"),
        ("diffuse a.png none.png", "none.png: no such file"),
        ("diffuse a.png b.png", "idinvert starts from an encoder's code"),
    ],
)
def test_what_is_refused(folder, capsys, arguments, says):
    (folder / "sub").mkdir()
    save_latent("sub/a.safetensors", some(1, 6, 8))
    for seed, name in enumerate("ab"):
        picture(folder / f"{name}.png", seed)
    refused(capsys, [*arguments.split(), *OWN], says)


def test_force(folder, capsys):
    arguments = ["edit", "other.safetensors", "-d", "wrong.safetensors", "-s", "1", *OWN]
    assert run(capsys, *arguments, "--force")[0] == 0
    assert run(capsys, "mix", "other.safetensors", "a.safetensors", "-l", "0", "--force", *OWN)[0] == 0


def test_a_foreign_folder_is_not_replaced(folder, capsys):
    (folder / "edited/a/edits/smile").mkdir(parents=True)
    (folder / "edited/a/edits/smile/mine.txt").write_text("mine")
    refused(capsys, ["edit", "a.safetensors", "-d", "d.safetensors:smile", *OWN], "is there, and no edit")
    assert (folder / "edited/a/edits/smile/mine.txt").read_text() == "mine"


def test_an_edit_of_another_input_is_not_replaced(folder, capsys):
    (folder / "sub").mkdir()
    save_latent("sub/a.safetensors", some(1, 6, 8, seed=3))
    arguments = ["-d", "d.safetensors:smile", "-s", "1", *OWN]
    assert run(capsys, "edit", "a.safetensors", *arguments)[0] == 0
    before = Path("edited/a/edits/smile/latent.safetensors").read_bytes()
    refused(capsys, ["edit", "sub/a.safetensors", *arguments], "edited/a/edits/smile is an edit of", "another --out")
    assert Path("edited/a/edits/smile/latent.safetensors").read_bytes() == before
    assert run(capsys, "edit", "sub/a.safetensors", "--out", "other", *arguments)[0] == 0

    # A picture, the result that was made of it, and that result where the folder has been moved to are one input.
    picture(folder / "x.png", 0)
    options = ["--steps", "1", "--set", "perceptual_weight=0", "--out", "run", *OWN]
    assert run(capsys, "invert", "x.png", *options)[0] == 0
    for given in ("run", "run/x/latent.safetensors", "x.png"):
        method = ["--method", "image2stylegan"] if given == "x.png" else []
        assert run(capsys, "edit", given, "--out", "run", *method, *arguments)[0] == 0, given
    (folder / "run").rename(folder / "moved")
    assert run(capsys, "edit", "moved", "--out", "moved", *arguments)[0] == 0


def test_the_commands_do_not_wait_for_torch(run_python):
    code = "import sys; from fastinv.cli import main; main([sys.argv[1], '--help']); print('torch' in sys.modules)"
    for name in ("edit", "mix", "interpolate", "diffuse"):
        result = run_python(code, name)
        assert result.stdout.endswith("False\n"), result.stderr
        assert "Example: fastinv" in result.stdout


def test_a_strip():
    small, large = torch.zeros(3, 8, 8), torch.zeros(3, 500, 500)
    sheet = strip([[small, None], [small, small]], [["a", ""], ["b", "c"]], "title")
    assert sheet.width > 2 * 192 and sheet.height > sheet.width
    assert strip([[large]]).width < 500  # larger ones are scaled down
    for rows, labels in [([], None), ([[None]], None), ([[small]], [["a", "b"]])]:
        with pytest.raises(UsageError, match="at least one picture, and a label for each place"):
            strip(rows, labels)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "new" / "f") as folder:
            (folder / text).write_text(text)
        assert files(tmp_path / "new") == {"f", f"f/{text}"}
    with pytest.raises(ValueError), atomic_folder(tmp_path / "new" / "f") as folder:  # noqa: PT012
        (folder / "third").write_text("third")
        raise ValueError
    assert files(tmp_path / "new") == {"f", "f/second"}
    with pytest.raises(UsageError, match="cannot write"), atomic_folder(tmp_path / "new/f/second/x"):
        pass
