"""Picture-to-picture tasks: part maps and sketches, sources and targets, training, translation."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fastinv
from fastinv.checkpoints import load_encoder, save_network
from fastinv.cli import main
from fastinv.data import faces
from fastinv.data.pictures import load_labels, load_picture, save_picture
from fastinv.errors import CheckpointError, PictureError, UsageError
from fastinv.inversion.translate import translate
from fastinv.latents import load_codes
from fastinv.losses import psnr
from fastinv.models.encoders import GradualStyleEncoder
from fastinv.training import loop, psp
from fastinv.training.tasks import TASKS, Pair, TaskBatches, make_task, reduced, task_of

RUN = [
    "--batch", "4", "--steps", "6", "--validation", "6", "--log-every", "2", "--validate-every", "3", "--sample-every",
    "6", "--device", "cpu", "--lr", "1e-3", "--units", "1,1,1", "--channels", "4,4,6", "--head-channels", "5",
    "--optimizer", "adam", "--dtype", "float32",
]  # fmt: skip
NUMBER = {name: index for index, name in enumerate(faces.PARTS)}


@pytest.fixture
def train(generator_file):
    """train(task, out, *options) runs a tiny training and returns its folder."""

    def run(task, out, *options):
        data = [] if "--data" in options else ["--data", "faces"]
        task = ["--task", task, "--generator", str(generator_file), "--out", str(out)]
        return psp.main([*RUN, *data, *task, *options])

    return run


def batches(task, data="faces", resolution=16, batch=8, source="", labels=0, seed=0):
    return TaskBatches(make_task(task, data, source, labels), data, resolution, batch, seed, False, 0, "cpu")


# Part maps and sketches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attribute, coloured",
    [
        ("hair_hue", "hair beard brows"),
        ("skin_tone", "face neck ears nose lips"),
        ("bg_hue", "background"),
        ("shirt", "clothes"),
    ],
)
def test_the_parts_are_where_their_colour_is(attribute, coloured):
    """Where another colour of hair, skin, ... changes the picture, and only there, is a part that has that colour."""
    a = faces.sample_attributes(12, 3)
    a["hair_grey"], a["beard"] = torch.zeros(12), (a["beard"] > 0.5).float()  # no stubble: half a beard is no part
    ends = [faces.render(a | {attribute: torch.full((12,), end)}, 64) for end in (0.1, 0.9)]
    change = (ends[1] - ends[0]).abs().amax(1)
    found = torch.isin(faces.parts(a, 64), torch.tensor([NUMBER[name] for name in coloured.split()]))
    assert (change[found] > 0.1).double().mean() > 0.97  # highlights hide it
    other = torch.isin(faces.parts(a, 64), torch.tensor([NUMBER[n] for n in ("background", "clothes", "irises")]))
    other &= ~found
    # what is half covered at its border belongs to either side
    inner = F.max_pool2d((~other).float().unsqueeze(1), 3, 1, 1).squeeze(1) == 0
    assert inner.any() and change[inner].max() < 0.02


def test_every_part_is_there_and_no_smaller_in_a_larger_picture():
    a = faces.sample_attributes(40, 0)
    small, large = faces.parts(a, 64), faces.parts(a, 128)
    assert small.dtype == torch.uint8 and small.shape == (40, 64, 64)
    assert small.unique().tolist() == list(range(len(faces.PARTS)))
    blocks = large.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (blocks == small.unsqueeze(3)).any(3).double().mean() > 0.99
    shares = [torch.bincount(p.flatten().long(), minlength=len(faces.PARTS)) / p.numel() for p in (small, large)]
    torch.testing.assert_close(*shares, rtol=0.2, atol=0)
    glasses = (small == NUMBER["glasses"]).flatten(1).any(1)
    assert torch.equal(glasses, a["glasses"] == 1)
    nobody = {name: value[:0] for name, value in a.items()}
    assert faces.parts(nobody, 9).shape == (0, 9, 9) and faces.sketch(nobody, 9).shape == (0, 1, 9, 9)


@pytest.mark.parametrize("resolution, width", [(64, 1), (97, 2), (128, 2)])
def test_sketches_are_lines_at_the_borders_of_parts(resolution, width):
    a = faces.sample_attributes(9, 2)
    lines = faces.sketch(a, resolution)
    assert lines.shape == (9, 1, resolution, resolution) and lines.min() == -1 and lines.max() == 1
    fine = faces.parts(a, 2 * resolution).float().unsqueeze(1)
    reach = width + 1
    same = F.max_pool2d(fine, 2 * reach + 1, 1, reach) == -F.max_pool2d(-fine, 2 * reach + 1, 1, reach)
    same = F.avg_pool2d(same.float(), 2) == 1  # far from every border
    assert same.double().mean() > 0.3 and (lines[same] == 1).all()
    # The first line that a row from the left meets is the outline of the hair or an ear, nearly upright there.
    ink = []
    for row in ((1 - lines[:, 0, int(0.4 * resolution)]) / 2).tolist():
        run = itertools.takewhile(lambda dark: dark > 0, itertools.dropwhile(lambda dark: dark == 0, row))
        ink.append(sum(run))
    assert width <= sorted(ink)[len(ink) // 2] <= 1.5 * width


def test_frontal_faces_differ_in_the_pose_alone():
    a = faces.sample_attributes(4, 7)
    front = faces.frontal(a)
    assert all((front[name] == 0).all() for name in ("yaw", "pitch"))
    assert all(torch.equal(front[name], a[name]) for name in set(faces.NAMES) - {"yaw", "pitch"})
    assert (a["yaw"] != 0).all()  # left as it was


# Sources and targets --------------------------------------------------------------------------------------------------


def test_sources_and_targets_of_faces():
    a = faces.sample_attributes(8)  # of step 0
    render, front = faces.render(a, 16), faces.render(faces.frontal(a), 16)
    parts = faces.parts(a, 16).long()
    expected = {
        "invert": (render, render), "frontalize": (render, front), "sketch": (faces.sketch(a, 16), render),
        "segment": (torch.stack([parts == index for index in range(len(faces.PARTS))], 1).float(), render),
    }  # fmt: skip
    for name, (source, target) in expected.items():
        pair = next(batches(name).stream(0))
        assert torch.equal(pair.source, source) and torch.equal(pair.target, target), name
        task = make_task(name)
        assert source.shape[1] == task.input_nc
        assert task.shown(pair.source).shape == target.shape and task.shown(pair.source).abs().max() <= 1


def test_factors_of_super_resolution():
    stream = batches("super-resolution", resolution=32, batch=16).stream(0)
    seen = set()
    for pair in itertools.islice(stream, 3):
        for source, target in zip(pair.source, pair.target, strict=True):
            fitting = [f for f in (1, 2, 4, 8) if torch.allclose(source, reduced(target[None], f)[0], atol=1e-6)]
            assert len(fitting) == 1
            seen.add(fitting[0])
    assert seen == {1, 2, 4, 8}  # a 16th of 32 pixels would be 2


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_reduction_is_an_average_enlarged_bicubically(factor):
    """Against the cubic kernel of Keys (1981) with a = -3/4, in float64."""
    size = 24
    x = torch.rand(2, 3, size, size, dtype=torch.float64) * 1.2 - 0.6
    small = x.unfold(2, factor, factor).unfold(3, factor, factor).mean((4, 5))
    matrix = torch.zeros(size, size // factor, dtype=torch.float64)
    for row in range(size):
        place = (row + 0.5) / factor - 0.5
        for column in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            d = abs(place - column)
            near, far = 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(column, 0), size // factor - 1)] += near if d <= 1 else far
    expected = torch.einsum("ij,ncjk,lk->ncil", matrix, small, matrix).clamp(-1, 1)
    torch.testing.assert_close(reduced(x, factor), expected, rtol=0, atol=1e-12)


def test_bad_factors():
    for bad in (0, 17, 2.0):
        with pytest.raises(UsageError, match="a factor must be a whole number from 1"):
            reduced(torch.zeros(1, 3, 16, 16), bad)
    assert reduced(torch.zeros(0, 3, 16, 16), 4).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("name", TASKS)
def test_pairs_depend_on_seed_and_step_alone(name):
    whole = list(itertools.islice(batches(name).stream(0), 3))
    later = next(batches(name).stream(2))
    halves = [next(batches(name).stream(2, process, 2)) for process in (0, 1)]
    joined = Pair(torch.cat([half.source for half in halves]), torch.cat([half.target for half in halves]))
    for pair in (later, joined):
        assert torch.equal(pair.source, whole[2].source) and torch.equal(pair.target, whole[2].target)
    assert not torch.equal(whole[1].target, whole[2].target)
    held = batches(name).heldout(5)
    assert len(held) == 5 and torch.equal(held.source, batches(name, seed=3).heldout(5).source)
    parts = held.split(2)
    assert [len(part) for part in parts] == [2, 2, 1] and torch.equal(parts[2].source, held[4:].source)


# Folders --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """12 pictures in a folder, and sketches and label maps of them in others; two lack theirs, one is broken."""
    a = faces.sample_attributes(12, 1)
    images, sketches, parts = faces.render(a, 16), faces.sketch(a, 16), faces.parts(a, 16)
    for name in ("pictures", "sketches", "maps"):
        (tmp_path / name / "more").mkdir(parents=True)
    for i in range(12):
        stem = f"more/{i}" if i % 2 else f"{i}"
        save_picture(images[i], tmp_path / "pictures" / f"{stem}.png")
        if i not in (3, 4):
            save_picture(sketches[i], tmp_path / "sketches" / f"{stem}.png")
            Image.fromarray(parts[i].numpy()).save(tmp_path / "maps" / f"{stem}.bmp")
    (tmp_path / "sketches" / "6.png").write_bytes(b"nothing")
    Image.new("L", (16, 16), 99).save(tmp_path / "maps" / "6.bmp")
    Image.new("L", (16, 16)).save(tmp_path / "sketches" / "other.png")
    return tmp_path, images, sketches, parts


def test_sources_of_a_folder_have_the_names_of_its_pictures(folders, capsys):
    path, images, sketches, parts = folders
    data = str(path / "pictures")
    for name, source, labels in (("sketch", path / "sketches", 0), ("segment", path / "maps", len(faces.PARTS))):
        stream = batches(name, data, batch=7, source=str(source), labels=labels)
        seen = set()
        for pair in [*itertools.islice(stream.stream(0), 6), stream.heldout(1)]:
            for one, target in zip(pair.source, pair.target, strict=True):
                which = int((images - target).abs().amax((1, 2, 3)).argmin())
                seen.add(which)
                if name == "sketch":
                    assert (one - sketches[which]).abs().max() < 0.01
                else:
                    assert torch.equal(one, F.one_hot(parts[which].long(), labels).movedim(2, 0).float())
        assert seen == set(range(12)) - {3, 4, 6}
        told = capsys.readouterr().err.splitlines()
        assert len(told) == len(set(told)) == (4 if name == "sketch" else 3)
        assert sum("is not clear: no such file" in line for line in told) == 2
        problem = "6.png: not a picture" if name == "sketch" else "6.bmp: holds the label 99; there are 14"
        assert sum(problem in line for line in told) == 1
        assert sum("other.png: no picture in" in line for line in told) == (name == "sketch")


def test_frontalization_of_a_folder_mirrors_source_and_target_each_by_itself(folders):
    path, images, *_ = folders
    seen = []
    for pair in itertools.islice(batches("frontalize", str(path / "pictures")).stream(0), 8):
        for source, target in zip(pair.source, pair.target, strict=True):
            both = torch.cat([images, images.flip(3)])
            found = [int((both - one).abs().amax((1, 2, 3)).argmin()) for one in (source, target)]
            assert found[0] % 12 == found[1] % 12
            seen.append((found[0] >= 12, found[1] >= 12))
    assert min(seen.count(kind) for kind in itertools.product((False, True), repeat=2)) >= 6  # of 64


def test_label_maps_are_read_as_they_stand(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(values).save(tmp_path / "a.png")
    palette = Image.fromarray(values).convert("P")
    palette.putdata(list(range(24)))
    palette.putpalette([255 - i for i in range(24) for _ in range(3)])
    palette.save(tmp_path / "p.png")
    for name in ("a.png", "p.png"):
        assert load_labels(tmp_path / name, 4, 24).tolist() == values[:, 1:5].tolist()
    large = load_labels(tmp_path / "a.png", 8, 24)
    assert torch.equal(large, torch.from_numpy(values[:, 1:5]).repeat_interleave(2, 0).repeat_interleave(2, 1))
    padded = load_labels(tmp_path / "a.png", 6, 24, crop="pad")
    assert padded[1:5].tolist() == values.tolist() and not padded[[0, 5]].any()
    with pytest.raises(PictureError, match="holds the label 23; there are 20, from 0 to 19"):
        load_labels(tmp_path / "a.png", 4, 20)
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    Image.new("L", (4, 4)).save(tmp_path / "c.jpg")
    for name in ("c.png", "c.jpg"):
        with pytest.raises(PictureError, match="is no label map"):
            load_labels(tmp_path / name, 4, 20)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frontalize", "sketch", "segment", "super-resolution"])
def test_a_run_writes_an_encoder_that_knows_its_task(name, train, tmp_path):
    out = train(name, tmp_path / "run", "--steps", "2")
    E = load_encoder(out / "encoder.safetensors")
    task = task_of(out / "encoder.safetensors", E)
    assert task.name == name and task.input_nc == E.input_nc
    if name == "segment":
        assert task.labels == faces.PARTS
    held = batches(name, batch=4).heldout(6)
    with Image.open(out / "samples_0000002.png") as grid:
        assert grid.size == (6 * 16 + 5 * 2, 3 * 16 + 2 * 2)
        pixels = torch.from_numpy(np.array(grid)).float().permute(2, 0, 1) / 127.5 - 1
    for row, images in enumerate((task.shown(held.source), held.target)):
        assert (pixels[:, row * 18 : row * 18 + 16, :16] - images[0]).abs().max() < 0.01


def test_a_killed_run_continues_to_the_same_bits(train, tmp_path, monkeypatch):
    options = ["--synthetic", "0.5", "--checkpoint-steps", "2"]
    train("super-resolution", tmp_path / "whole", *options)
    original = psp.PSPTraining.iterate

    def dying(self, images, step):
        if step == 3:
            raise KeyboardInterrupt
        return original(self, images, step)

    monkeypatch.setattr(psp.PSPTraining, "iterate", dying)
    with pytest.raises(KeyboardInterrupt):
        train("super-resolution", tmp_path / "parts", *options)
    monkeypatch.undo()
    train("super-resolution", tmp_path / "parts", *options, "--resume")
    states = [load_encoder(tmp_path / run / "encoder.safetensors").state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def learner(generator_file, *options):
    parsed = psp.parser().parse_args(
        [*RUN, "--data", "faces", "--out", "-", "--generator", str(generator_file), *options]
    )
    torch.manual_seed(0)
    return psp.PSPTraining(parsed, loop.open_accelerator(parsed))


def test_losses_compare_with_the_target(generator_file):
    trained = learner(generator_file, "--task", "sketch", "--perceptual", "0", "--w-norm", "0")
    pair = batches("sketch", batch=4).heldout(4)
    with torch.no_grad():
        made = trained.G.synthesis(trained.final("encoder").encode(pair.source))
        measured = trained.measure(pair)
    torch.testing.assert_close(measured["psnr"], psnr(made, pair.target), rtol=1e-4, atol=1e-4)
    trained.begin_step(0)
    with torch.no_grad():
        made = trained.G.synthesis(trained.encoder.encode(pair.source))
    values = trained.iterate(pair, 0)
    expected = (made - pair.target).double().square().mean().item()
    assert values["pixel"].item() == pytest.approx(expected, rel=1e-3)
    assert set(values) == {"loss", "pixel"}


def test_generated_pictures_of_super_resolution_are_reduced(generator_file):
    trained = learner(generator_file, "--task", "super-resolution", "--synthetic", "1")
    images, codes = trained.generated(12)
    with torch.no_grad():
        whole = trained.synthesise(codes)
    change = (images - whole).abs().amax((1, 2, 3))
    assert 0 < (change == 0).sum() < 12  # factor 1 and others


def test_default_weights_are_the_papers():
    def weights(*arguments):
        options = psp.parser().parse_args(["--data", "faces", "--out", "x", *arguments])
        names = ("identity", "pixel", "perceptual", "crop_perceptual", "crop_pixel", "w_norm")
        return tuple(getattr(options, name) for name in names)

    assert weights() == (0.1, 1, 0.8, 0, 0, 0)
    assert weights("--task", "frontalize") == (1, 0.001, 0.08, 0.8, 0.01, 0.005)
    assert weights("--task", "sketch") == weights("--task", "segment") == (0, 1, 0.8, 0, 0, 0.005)
    assert weights("--task", "super-resolution") == (0.1, 1, 0.8, 0, 0, 0.005)
    assert weights("--w-norm", "0", "--pixel", "3", "--task", "sketch") == (0, 3, 0.8, 0, 0, 0)


@pytest.mark.parametrize(
    "task, options, message",
    [
        ("colourise", [], "invalid choice: 'colourise'"),
        ("sketch", ["--synthetic", "1"], "--synthetic is for --task invert and super-resolution"),
        ("frontalize", ["--synthetic", "1"], "--synthetic is for --task invert and super-resolution"),
        ("sketch", ["--restyle", "2"], "--restyle is for --task invert"),
        ("sketch", ["--source", "x"], "--source is for a folder of pictures"),
        ("sketch", ["--data", "x"], "--task sketch needs --source DIR"),
        ("frontalize", ["--data", "x", "--source", "y"], "frontalize needs the pictures alone"),
        ("segment", ["--data", "x", "--source", "y"], "needs --labels N, 2 to 256"),
        ("segment", ["--data", "x", "--source", "nowhere", "--labels", "9"], "nowhere is not a folder"),
        ("sketch", ["--labels", "3"], "--labels is for --task segment on a folder"),
    ],
)
def test_bad_options(task, options, message, train, tmp_path):
    with pytest.raises(UsageError, match=message) as info:
        train(task, tmp_path / "run", *options)
    assert "\n" not in str(info.value) and not (tmp_path / "run").exists()


def test_training_starts_from_an_encoder_with_other_channels(generator_file, tmp_path, capsys):
    first = learner(generator_file)
    first.save(tmp_path, "", {})
    second = learner(generator_file, "--task", "segment", "--start", str(tmp_path / "encoder.safetensors"))
    mine, theirs = dict(second.encoder.state_dict()), dict(first.encoder.state_dict())
    other = [name for name in mine if mine[name].shape != theirs[name].shape]
    assert other == ["input_layer.0.weight"]
    same = [torch.allclose(mine[n].float(), theirs[n].float(), atol=1e-3) for n in mine if n not in other]
    assert all(same) and f"{len(same) - 1} of {len(same)} tensors" in capsys.readouterr().out


# Use ------------------------------------------------------------------------------------------------------------------


def encoder(input_nc, seed=1):
    torch.manual_seed(seed)
    E = GradualStyleEncoder(6, 8, input_nc, 16, units=(1, 1, 1), channels=(4, 4, 6), head_channels=5)
    return E.eval()


def test_translation_and_its_variants(generator_file):
    G, E = fastinv.load_generator(generator_file), encoder(1)
    images = faces.sketch(faces.sample_attributes(3), 16)
    pictures, codes = fastinv.translate(G, E, images, outputs=3, mix_from=4, seed=5)
    assert pictures.shape == (3, 3, 3, 16, 16) and codes.shape == (3, 3, 6, 8)
    with torch.no_grad():
        plain = E.encode(images)
        torch.testing.assert_close(codes[:, 0], plain)
        torch.testing.assert_close(pictures[:, 0], G.synthesis(plain))
        torch.testing.assert_close(pictures[:, 2], G.synthesis(codes[:, 2]))
    assert torch.equal(codes[:, 1:, :4], codes[:, :1, :4].expand(-1, 2, -1, -1))
    assert torch.equal(codes[0, 1:, 4:], codes[2, 1:, 4:])  # the same style for all
    assert (codes[0, 1, 4] != codes[0, 2, 4]).any() and torch.equal(codes[0, 1, 4], codes[0, 1, 5])
    half = translate(G, E, images, outputs=2, mix_from=4, strength=0.5, seed=5)[1]
    torch.testing.assert_close(half[:, 1, 4:], (codes[:, 0, 4:] + codes[:, 1, 4:]) / 2)
    alone, one = translate(G, E, images[1:2], outputs=3, mix_from=4, seed=5)
    torch.testing.assert_close(alone, pictures[1:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one, codes[1:2], rtol=1e-4, atol=1e-4)
    assert translate(G, E, images[:0], outputs=2, mix_from=0)[0].shape == (0, 2, 3, 16, 16)
    assert torch.equal(translate(G, E, images)[0], pictures[:, :1])  # one output, whatever mix_from is


@pytest.mark.parametrize(
    "options, message",
    [
        ({"outputs": 0}, "outputs must be a whole number of at least 1"),
        ({"outputs": 2}, "mix_from is 8, but the generator has only layers 0 to 5"),
        ({"outputs": 2, "mix_from": -1}, "mix_from must be a whole number"),
        ({"strength": 1.5}, "strength must be from 0 to 1"),
        ({"seed": -1}, "seed must be"),
        ({"images": torch.zeros(1, 3, 16, 16)}, r"images must have shape \[N, 1, R, R\]"),
    ],
)
def test_bad_translations(options, message, generator_file):
    G = fastinv.load_generator(generator_file)
    arguments = {"images": torch.zeros(1, 1, 16, 16)} | options
    with pytest.raises(UsageError, match=message):
        translate(G, encoder(1), **arguments)


def test_the_tasks_of_files_that_do_not_say(tmp_path):
    for channels, name in ((3, "invert"), (1, "sketch"), (19, "segment")):
        E = encoder(channels)
        save_network(E, tmp_path / "e.safetensors")
        task = task_of(tmp_path / "e.safetensors", E)
        assert (task.name, task.input_nc) == (name, channels)
    for facts, message in (({"name": "juggle"}, "for the task 'juggle'"), ({"name": "segment"}, "its 19 labels")):
        save_network(E, tmp_path / "e.safetensors", training={"task": facts})
        with pytest.raises(CheckpointError, match=message):
            task_of(tmp_path / "e.safetensors", E)


@pytest.mark.parametrize("name", ["sketch", "segment", "super-resolution"])
def test_the_command(name, generator_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task, a = make_task(name), faces.sample_attributes(1, 4)
    E = encoder(task.input_nc)
    save_network(E, "e.safetensors", training={"task": task.facts()})
    if name == "segment":
        Image.fromarray(faces.parts(a, 32)[0].numpy()).save("a.png")
        source = F.one_hot(load_labels("a.png", 16, len(faces.PARTS)).long()[None], len(faces.PARTS))
        source = source.movedim(3, 1).float()
    else:
        save_picture(faces.sketch(a, 16)[0] if name == "sketch" else faces.render(a, 16)[0], "a.png")
        source = load_picture("a.png", 16)[None]
        source = source[:, :1] if name == "sketch" else reduced(source, 4)
    (tmp_path / "b.png").write_bytes(b"no")
    arguments = ["--encoder", "e.safetensors", "--generator", str(generator_file), "--outputs", "2", "--mix-from", "3"]
    arguments += ["--factor", "4"] if name == "super-resolution" else []
    assert main(["translate", "a.png", "b.png", "--out", "made", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out.split() == ["made/a.png"]
    assert err.splitlines()[0].startswith("fastinv: b.png: not a picture") and "1 of 2 pictures failed" in err
    pictures, codes = translate(fastinv.load_generator(generator_file), E, source, outputs=2, mix_from=3)
    torch.testing.assert_close(load_codes("made/a.safetensors")["w_plus"], codes[0])
    with Image.open("made/a.png") as sheet:
        assert sheet.size == (16 + 2 + 16, 16)
        found = torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 127.5 - 1
    assert (found[:, :, 18:] - pictures[0, 1].clamp(-1, 1)).abs().max() < 0.01


def test_the_command_refuses_before_it_writes(generator_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network(encoder(1), "e.safetensors")
    (tmp_path / "more").mkdir()
    for name in ("a.png", "more/a.png"):
        save_picture(torch.zeros(1, 16, 16), name)
    arguments = ["--encoder", "e.safetensors", "--generator", str(generator_file)]
    for options, message in (
        (["a.png", "more/a.png", "--out", "made"], "would both become made/a.png"),
        (["a.png", "--out", "."], "is one of the pictures; choose another --out"),
        (["a.png", "--out", "made", "--factor", "2"], "--factor is for super-resolution"),
        (["a.png", "--out", "made", "--outputs", "2"], "mix_from is 8"),
        (["a.png", "--out", "made", "--crop", "left"], "unknown crop 'left'"),
    ):
        assert main(["translate", *options, *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob("*a.safetensors"))
