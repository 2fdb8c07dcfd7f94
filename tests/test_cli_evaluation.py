"""`fastinv evaluate` and `fastinv benchmark-methods`: what is compared with what, what is said, what is written."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fastinv
from fastinv.cli import main
from fastinv.cli.evaluation import METRIC_NAMES
from fastinv.data.pictures import load_picture, save_picture
from fastinv.errors import UsageError
from fastinv.evaluation import MEASURES, methods, tables
from fastinv.evaluation.measures import knows_faces
from fastinv.evaluation.methods import Entry, Pictures, measure, read_entries
from fastinv.evaluation.pictures import results
from fastinv.losses import mse, psnr

QUICK = ["--steps", "2", "--set", "perceptual_weight=0", "--quiet"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(path: Path, seed: int, size: int = 24) -> torch.Tensor:
    """Write a smooth random picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    image = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")[0]
    save_picture(image, path)
    return image


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def rows_of(text: str) -> dict[str, dict]:
    return {row["metric"]: row for row in json.loads(text)["rows"]}


def test_the_help_names_all_metrics():
    assert METRIC_NAMES.split(", ") == list(MEASURES)


def test_two_folders_are_paired_by_name(folder, capsys):
    for index, name in enumerate(("one.png", "two.png", "inner/three.png", "alone.png")):
        picture(folder / "a" / name, index)
    for index, name in enumerate(("one.jpg", "two.png", "inner/three.png")):
        path = folder / "b" / name
        picture(path.with_suffix(".png"), index + 10, size=30)
        if name.endswith("jpg"):
            Image.open(path.with_suffix(".png")).save(path)
            path.with_suffix(".png").unlink()
    status, out, err = run(capsys, "evaluate", "a", "b", "--metrics", "mse,swd", "--json")
    assert status == 0 and "a/alone.png: no picture of this name in b" in err
    document, rows = json.loads(out), rows_of(out)
    assert sorted(document["names"]) == ["inner/three", "one", "two"] and document["settings"]["resolution"] == [24, 24]
    expected = [
        mse(load_picture(folder / "b" / name, 24)[None], load_picture(folder / "a" / f"{stem}.png", 24)[None]).item()
        for stem, name in {"inner/three": "inner/three.png", "one": "one.jpg", "two": "two.png"}.items()
    ]
    assert dict(zip(document["names"], rows["mse"]["each"])) == pytest.approx(
        dict(zip(("inner/three", "one", "two"), expected))
    )
    assert rows["swd"]["n"] == 4 and rows["swd"]["settings"]["n of b"] == 3

    status, out, err = run(capsys, "evaluate", "a", "b", "--metrics", "psnr", "--resolution", "12", "--out", "report")
    assert status == 0 and "3 pairs of 4 and 3 pictures; resolution 12x12, range [-1, 1], crop none" in out
    assert set(out.splitlines()[-3:]) == {
        f"report/{name}" for name in ("evaluation.json", "evaluation.csv", "pictures.csv")
    }
    lines = list(csv.DictReader((folder / "report/pictures.csv").open()))
    saved = json.loads((folder / "report/evaluation.json").read_text())
    assert [float(line["psnr"]) for line in lines] == saved["rows"][0]["each"]
    assert [line["picture"] for line in lines] == saved["names"]
    assert saved["settings"]["left_out"] == ["a/alone.png: no picture of this name in b"]
    one = next(csv.DictReader((folder / "report/evaluation.csv").open()))
    assert one["metric"] == "psnr" and float(one["value"]) == saved["rows"][0]["value"]


def test_two_files(folder, capsys):
    a, b = picture(folder / "a.png", 0), picture(folder / "b.png", 1)
    status, out, _ = run(capsys, "evaluate", "a.png", "b.png", "--metrics", "psnr", "--json")
    expected = psnr(load_picture("b.png", 24)[None], load_picture("a.png", 24)[None]).item()
    assert status == 0 and rows_of(out)["psnr"]["value"] == pytest.approx(expected) and a.shape == b.shape
    status, out, _ = run(capsys, "evaluate", "a.png", "b.png", "--metrics", "mse", "--crop", "0,0,0.5,0.25", "--json")
    x, y = (load_picture(name, 24)[None, :, :6, :12] for name in ("a.png", "b.png"))
    assert rows_of(out)["mse"]["value"] == pytest.approx(mse(y, x).item())
    assert rows_of(out)["mse"]["settings"]["crop"] == "0 0 0.5 0.25"


def test_no_pairs_and_broken_pictures(folder, capsys):
    for index in range(3):
        picture(folder / "a" / f"a{index}.png", index)
        picture(folder / "b" / f"b{index}.png", index)
    (folder / "b" / "b9.png").write_bytes(b"nothing")
    status, out, err = run(capsys, "evaluate", "a", "b", "--metrics", "mse,swd")
    assert status == 1 and "b/b9.png: not a picture that can be read" in err
    assert "1 pictures could not be compared" in err
    assert "mse  compares pairs of pictures, and no picture of one set belongs to one of the other" in out
    assert "\nswd " in out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["a", "nothing"], "nothing: no such file or folder"),
        (["a", "a/x.png"], "must be two folders or two pictures"),
        (["a"], "no results of `fastinv invert` in a"),
        (["empty", "a"], "no pictures in empty"),
        (["a", "a", "--metrics", "mse,snr"], "'snr' is no metric; there are mse, psnr"),
        (["a", "a", "--metrics", ","], "is no metric"),
        (["a", "a", "--crop", "nose"], "crop must be none, face, or four fractions"),
        (["a", "a", "--crop", "0,0,x,1"], "must be four numbers between 0 and 1"),
        (["a", "a", "--crop", "0,0,2,1"], "crop must be none, face, or four fractions"),
        (["a", "a", "--resolution", "0"], "--resolution must be a whole number of at least 1"),
        (["a", "a", "--batch", "0"], "--batch must be a whole number of at least 1"),
        (["twice", "a"], "have the same name"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, says):
    picture(folder / "a/x.png", 0)
    picture(folder / "twice/x.png", 0)
    (folder / "twice/x.bmp").write_bytes((folder / "twice/x.png").read_bytes())
    (folder / "empty").mkdir()
    status, out, err = run(capsys, "evaluate", *arguments)
    assert (status, out) == (2, "") and says in err and len(err.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------- results


def test_results_of_invert(folder, capsys, generator_file):
    for index in range(4):
        picture(folder / f"faces/p{index}.png", index)
    inverted = ["invert", *sorted((folder / "faces").glob("*.png")), "--generator", generator_file, "--out", "out"]
    assert run(capsys, *inverted, *QUICK)[0] == 0
    status, out, err = run(capsys, "evaluate", "out", "--metrics", "psnr", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["names"] == [f"p{index}" for index in range(4)] and document["settings"]["resolution"] == [16, 16]
    # reconstruction.png is rounded; the codes' own pictures have the metrics of result.json.
    metrics = [json.loads((folder / f"out/p{index}/result.json").read_text())["metrics"] for index in range(4)]
    assert document["rows"][0]["each"] == pytest.approx([one["psnr"][0] for one in metrics], abs=0.1)
    status, out, err = run(capsys, "evaluate", "out", "--metrics", "psnr", "--json", "--generator", generator_file)
    assert rows_of(out)["psnr"]["each"] == pytest.approx([one["psnr"][0] for one in metrics], abs=1e-4)

    # Of one result, and after things have happened to the pictures.
    assert run(capsys, "evaluate", "out/p2", "--metrics", "mse")[0] == 0
    (folder / "faces/p0.png").unlink()
    picture(folder / "faces/p1.png", 99)
    status, out, err = run(capsys, "evaluate", "out", "--metrics", "mse", "--json")
    assert status == 1 and json.loads(out)["names"] == ["p2", "p3"]
    assert "out/p0: the picture" in err and "p0.png is not there any more" in err
    assert "out/p1: the picture" in err and "has changed since it was inverted" in err
    (folder / "out/p2/result.json").write_text("{")
    (folder / "faces/p3.png").unlink()
    status, out, err = run(capsys, "evaluate", "out", "--metrics", "mse")
    assert (status, out) == (2, "") and "nothing to compare in out" in err


def test_codes_of_another_generator_are_refused(folder, capsys, generator_file):
    from fastinv.checkpoints import save_network
    from fastinv.models.stylegan2 import Generator

    torch.manual_seed(1)
    save_network(Generator(16, 8, 8, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2), folder / "other.safetensors")
    picture(folder / "p.png", 0)
    assert run(capsys, "invert", "p.png", "--generator", generator_file, "--out", "out", *QUICK)[0] == 0
    other = ["evaluate", "out", "--metrics", "mse", "--generator", "other.safetensors"]
    status, _, err = run(capsys, *other)
    assert status == 2 and "--force" in err
    assert run(capsys, *other, "--force")[0] == 0
    status, _, err = run(capsys, "evaluate", "out", "--generator", generator_file, "--resolution", "8")
    assert status == 2 and "codes are rendered at 16 pixels" in err


class Exact(torch.nn.Module):
    """An encoder that remembers the code of the last picture that was rendered."""

    origin = "exact"

    def __init__(self, G):
        super().__init__()
        self.G = G

    def encode(self, images):
        return Exact.last


def test_lec_of_an_encoder_that_never_errs(folder, capsys, generator_file, monkeypatch):
    G = fastinv.load_generator(generator_file)
    assert not knows_faces(G)
    picture(folder / "p.png", 0)
    assert run(capsys, "invert", "p.png", "--generator", generator_file, "--out", "out", *QUICK)[0] == 0
    compared = results(folder / "out", G)
    original = fastinv.evaluation.measures.rendered

    def remembering(G, result, w_plus):
        Exact.last = w_plus
        return original(G, result, w_plus)

    monkeypatch.setattr(fastinv.evaluation.measures, "rendered", remembering)
    arguments = {"G": G, "encoder": Exact(G), "codes": compared.codes}
    found = fastinv.evaluate(compared.a, compared.b, ["lec", "edits"], **arguments)
    assert found.row("lec").value < 1e-5 and found.row("lec.pictures").value < 1e-9
    assert found.row("lec").settings["edits"] == "1.5 deviations of 8 principal components of W"
    assert "does not draw them" in found.row("edits").missing
    monkeypatch.setattr(Exact, "encode", lambda self, images: Exact.last + 1)
    assert fastinv.evaluate(compared.a, compared.b, ["lec"], **arguments).row("lec").value > 0.1


# ------------------------------------------------------------------------------------------------------------- methods


def test_entries():
    text = "psp, image2stylegan:space=w,steps=100,image2stylegan,fast,image2stylegan:layers=[0,1],learning_rate=0.1"
    entries = read_entries(text)
    assert entries == [
        Entry("psp", {"method": "psp"}),
        Entry("image2stylegan:space=w,steps=100", {"method": "image2stylegan", "space": "w", "steps": 100}),
        Entry("image2stylegan", {"method": "image2stylegan"}),
        Entry("fast", {"preset": "fast"}),
        Entry(
            "image2stylegan:layers=[0,1],learning_rate=0.1",
            {"method": "image2stylegan", "layers": (0, 1), "learning_rate": 0.1},
        ),
    ]
    for bad, says in {
        "": "names no method",
        "steps=3": "is an option of nothing; write METHOD:steps=3",
        "psp,nonesuch": "unknown method 'nonesuch'",
        "image2stylegan:stepps=3": "unknown option 'stepps'",
        "image2stylegan:space=v": "is no latent space",
        "image2stylegan:quick": "write OPTION=VALUE",
        "psp,e4e,psp": "names psp twice",
        "fast:steps=0.5": "steps must be a whole number",
    }.items():
        with pytest.raises(UsageError, match=says):
            read_entries(bad)


METHODS = "image2stylegan:steps=1,perceptual_weight=0,image2stylegan:space=w,steps=0"


def test_benchmark_of_a_folder_goes_on_where_it_was(folder, capsys, generator_file):
    for index in range(3):
        picture(folder / f"data/p{index}.png", index)
    arguments = ["benchmark-methods", "--generator", generator_file, "--data", "data", "--count", 2, "--out", "table"]
    status, out, err = run(capsys, *arguments, "--methods", METHODS, "--no-plot", "--no-lec")
    assert (status, err) == (0, "") and "(was there)" not in out
    document = json.loads((folder / "table/methods.json").read_text())
    rows = {row["row"]: row for row in document["rows"]}
    assert list(rows) == ["image2stylegan:steps=1,perceptual_weight=0", "image2stylegan:space=w,steps=0"]
    # What the attribute network would read is left out; what has no weights says so.
    first = rows["image2stylegan:steps=1,perceptual_weight=0"]
    assert not {"attributes", "moved", "edited", "features", "identity", "frechet"} & set(first)
    assert first["steps"] == 1 and first["settings"]["count"] == 2 and "fid" in first["missing"]
    assert first["settings"]["metrics"]["fid"] is None  # so that the row is measured again where it is not
    assert first["settings"]["metrics"]["mse"] == {"resolution": "16x16", "range": "[-1, 1]", "crop": "none"}
    images = torch.stack([load_picture(f"data/p{index}.png", 16) for index in range(2)])
    G = fastinv.load_generator(generator_file)
    expected = fastinv.invert(G, images, "image2stylegan", steps=1, perceptual_weight=0.0, progress=False)
    assert first["mse"] == pytest.approx(sum(expected.metrics["mse"]) / 2, rel=1e-5)
    lines = list(csv.DictReader((folder / "table/methods.csv").open()))
    assert [float(line["psnr"]) for line in lines] == [row["psnr"] for row in rows.values()]
    page = (folder / "table/methods.md").read_text()
    assert "| image2stylegan:space=w,steps=0 |" in page and "fastinv benchmark-methods" in page and "`fid`: no" in page

    files = {path: path.stat().st_mtime_ns for path in (folder / "table/rows").iterdir()}
    status, out, _ = run(capsys, *arguments, "--methods", METHODS + ",image2stylegan:steps=0", "--no-plot", "--no-lec")
    assert status == 0 and out.count("(was there)") == 2
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    status, out, _ = run(capsys, *arguments, "--methods", METHODS, "--no-plot", "--no-lec", "--seed", 1)
    assert status == 0 and "(was there)" not in out  # other settings
    (folder / "table/rows/image2stylegan_steps=0.json").write_text("no row")
    status, out, err = run(capsys, *arguments, "--methods", "image2stylegan:steps=0", "--no-plot", "--no-lec")
    assert status == 2 and "is no row of ours" in err


def test_lec_of_a_method_takes_principal_components_where_attributes_are_not_known(generator_file):
    G = fastinv.load_generator(generator_file)
    pictures = Pictures(torch.rand(3, 3, 16, 16) * 2 - 1, None)
    options = {"method": "image2stylegan", "steps": 1, "perceptual_weight": 0.0}
    row = measure("x", options, G, pictures, batch=2, metrics=["psnr"])
    assert row["lec"] > 0 and row["edit-consistency"] > 0 and "moved" not in row and "ssim" not in row
    assert pictures.directions_of(G).shape == (8, 8)


def test_directions_are_kept_between_runs(folder, generator_file, monkeypatch):
    G, calls = fastinv.load_generator(generator_file), []
    original = methods.edit_directions
    monkeypatch.setattr(methods, "edit_directions", lambda *given: calls.append(1) or original(*given))
    found = [Pictures(torch.zeros(1, 3, 16, 16), None, folder=folder / "rows").directions_of(G) for _ in range(2)]
    assert calls == [1] and torch.equal(*found)
    monkeypatch.setattr(fastinv, "__version__", "another")
    Pictures(torch.zeros(1, 3, 16, 16), None, folder=folder / "rows").directions_of(G)
    assert calls == [1, 1]


def test_bad_benchmarks(folder, capsys):
    for arguments, says in [
        (["--methods", "psp", "--count", "0"], "--count must be a whole number"),
        (["--methods", "psp", "--batch", "0"], "--batch must be a whole number"),
        (["--methods", "psp", "--data", "nothing"], "nothing is not a folder of pictures"),
        (["--methods", "psp", "--dtype", "int7"], "int7"),
        (["--methods", "nonesuch"], "unknown method 'nonesuch'"),
    ]:
        status, out, err = run(capsys, "benchmark-methods", *arguments, "--no-plot")
        assert (status, out) == (2, "") and says in err and len(err.splitlines()) == 1
    assert not list(folder.iterdir())


ROWS = [
    {"row": "psp", "psnr": 30.0, "mse": 1e-3, "edited": 0.98, "lec": 0.1, "swd": 5.0, "seconds": 0.03, "steps": 0.0},
    {"row": "w+", "psnr": 35.0, "mse": 1e-4, "edited": 0.9, "lec": None, "swd": 2.0, "seconds": 6.0, "steps": 300.0},
]


def test_tables():
    assert tables.columns(ROWS) == ["row", "mse", "psnr", "swd", "edited", "lec", "seconds", "steps"]
    assert tables.markdown(ROWS).splitlines() == [
        "| row | mse | psnr | swd | edited | lec | seconds | steps |",
        "|---|---|---|---|---|---|---|---|",
        "| psp | 0.001 | 30 | 5 | 98.0 % | 0.1 | 0.03 | 0 |",
        "| w+ | 0.0001 | 35 | 2 | 90.0 % |  | 6 | 300 |",
    ]


def test_plot(folder):
    pytest.importorskip("matplotlib")
    tables.plot(ROWS, folder / "plot.png")
    image = Image.open(folder / "plot.png")
    assert image.width > image.height > 300 and len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_without_matplotlib_the_plot_says_what_to_install(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = run(capsys, "benchmark-methods", "--methods", "psp")
    assert status == 2 and "pip install 'fastinv[plot]'" in err and "--no-plot" in err
