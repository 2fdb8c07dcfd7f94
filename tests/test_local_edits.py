"""The tasks of Image2StyleGAN++ on portraits, where the right answer is known, and their commands."""

import json

import pytest
import torch
from PIL import Image
from test_cli import files, run
from test_image2stylegan_plus_plus import noisy
from test_inversion import SmallNetwork

import fastinv
from fastinv.data import faces
from fastinv.data.pictures import save_picture
from fastinv.errors import UsageError
from fastinv.inversion import InversionResult, local_edits
from fastinv.inversion.checkpoint import Checkpoints
from fastinv.losses import PerceptualLoss, load_trunk, psnr
from fastinv.models.attributes import load_attribute_network
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.models.stylegan2 import Generator

TASKS = ("reconstruct", "inpaint", "crossover", "scribble", "style_transfer", "activation_transfer")
# Steps on portraits are along the principal axes of W, as in the presets, so that few are enough.
QUICK = {
    "steps": 60, "noise_steps": 30, "learning_rate": 0.4, "precondition": 0.5, "beta1": 0.6, "ramp_down": 0.5,
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def G():
    return fastinv.load_generator("faces64")


@pytest.fixture(scope="module")
def network():
    return load_attribute_network()


def portrait(**attributes) -> torch.Tensor:
    """A face in the middle of all ranges, with these attributes."""
    values = {name: (attribute.low + attribute.high) / 2 for name, attribute in faces.ATTRIBUTES.items()}
    values |= {"glasses": 0, "beard": 0, "hair_grey": 0, "eye_open": 0.8, "smile": 0.5} | attributes
    return faces.render({name: torch.tensor([float(value)]) for name, value in values.items()})


def box(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., top:bottom, left:right] = 1
    return mask


def differing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 where pictures differ, and one pixel beyond."""
    changed = ((a - b).abs().amax(1, keepdim=True) > 0.1).float()
    return torch.nn.functional.max_pool2d(changed, 3, 1, 1)


def check_attributes(network, images, right: dict, wrong: dict, tolerance: float = 0.2) -> None:
    """The attributes are read as in ``right``; ``wrong`` gives values that this would not let pass."""
    found = network(images.clamp(-1, 1))
    for name, value in right.items():
        assert abs(float(found[name]) - value) < tolerance, (name, float(found[name]), value)
    for name, value in wrong.items():
        assert abs(value - right[name]) > 2 * tolerance, name


# The right answer


@pytest.mark.slow
def test_reconstruct(G):
    images = faces.sample(1, seed=0, split="heldout")[0]
    result = local_edits.reconstruct(G, images, **QUICK)
    first = local_edits.reconstruct(G, images, **QUICK | {"noise_steps": 0})
    assert torch.equal(first.w_plus, result.w_plus)
    assert result.metrics["psnr"][0] > first.metrics["psnr"][0] + 8
    assert result.settings["task"] == {"name": "reconstruct"}


@pytest.mark.slow
def test_inpaint(G, network):
    """A mouth is missing: what comes is a mouth, it fits, and the rest is as good as without a hole."""
    images = faces.sample(1, seed=3, split="heldout")[0]
    hole = box(36, 52, 16, 48)
    known = 1 - hole
    whole = local_edits.reconstruct(G, images, **QUICK)
    blank = torch.where(known > 0, images, torch.zeros(()))
    result = local_edits.inpaint(G, blank, known, **QUICK)
    assert (psnr(result.images, images, known) > psnr(whole.images, images, known) - 1).all()

    # The hole is filled better than by the mean of what is round it, or by the mean face.
    around = (images * known).sum((2, 3), keepdim=True) / known.sum()
    mean_face = G.synthesis(G.w_avg.expand(1, G.num_ws, -1)).detach()
    for other in (blank, around.expand_as(images), mean_face):
        assert (psnr(result.images, images, hole) > psnr(other, images, hole) + 3).all()
    # What is read there lies in the range of portraits, and nearer to the truth than from the picture with the hole.
    found, truth, holed = (network(pictures.clamp(-1, 1)) for pictures in (result.images, images, blank))
    for name in ("smile", "beard", "skin_tone"):
        low, high = faces.ATTRIBUTES[name].low, faces.ATTRIBUTES[name].high
        assert ((found[name] > low - 0.1) & (found[name] < high + 0.1)).all(), name
    names = [faces.NAMES.index(name) for name in ("smile", "beard", "skin_tone")]
    error, blank_error = (
        torch.stack([(read[faces.NAMES[i]] - truth[faces.NAMES[i]]).abs() / network.stds[i] for i in names]).mean(0)
        for read in (found, holed)
    )
    assert (error < 0.5 * blank_error).all(), (error, blank_error)


@pytest.mark.slow
def test_crossover(G, network):
    """Hair and glasses of one face, mouth and shirt of another: the portrait with these attributes is the answer."""
    upper = {"hair_hue": 0.9, "glasses": 1, "hair_length": 0.3}
    lower = {"smile": -0.6, "shirt": 0.9, "hair_length": 0.3}
    first = portrait(smile=0.7, shirt=0.1, **upper)
    second = portrait(hair_hue=0.1, glasses=0, **lower)
    mask = box(0, 36, 0, 64)
    result = local_edits.crossover(G, first, second, mask, **QUICK)
    right = upper | lower
    check_attributes(network, result.images, right, {"hair_hue": 0.1, "glasses": 0, "smile": 0.7, "shirt": 0.1})
    truth = portrait(**right)
    assert float(psnr(result.images, truth)) > max(float(psnr(first, truth)), float(psnr(second, truth)), 24) + 6


@pytest.mark.slow
def test_scribble(G, network):
    """A flat colour painted over dark hair makes it blond hair, with its shading; the face stays."""
    before, after = ({"hair_hue": hue, "smile": -0.5, "skin_tone": 0.2} for hue in (0.1, 0.9))
    picture, truth = portrait(**before), portrait(**after)
    hair = differing(picture, truth)
    painted = -torch.nn.functional.max_pool2d(-hair, 3, 1, 1)
    colour = (truth * painted).sum((2, 3), keepdim=True) / painted.sum()
    scribbled = torch.where(painted > 0, colour, picture)
    result = local_edits.scribble(G, picture, scribbled, hair, **QUICK)
    check_attributes(network, result.images, after, {"hair_hue": before["hair_hue"]})
    distance = PerceptualLoss(truth, load_trunk("attributes")[0])  # to a blond face
    assert float(distance(result.images)) < 0.8 * min(float(distance(other)) for other in (scribbled, picture))
    assert float(psnr(result.images, truth)) > max(float(psnr(other, truth)) for other in (scribbled, picture)) + 1
    face = 1 - torch.nn.functional.max_pool2d(hair, 5, 1, 2)
    assert float(psnr(result.images, picture, face)) > 35


@pytest.mark.slow
def test_style_transfer(G, network):
    """The hair takes the colour of another's; both hairs have other places."""
    of_content = {"bg_hue": 0.2, "shirt": 0.0, "smile": 0.5, "skin_tone": 0.5}
    of_style = {"bg_hue": 0.8, "shirt": 0.7, "skin_tone": 0.2, "hair_length": 0.6}
    content, truth = (portrait(hair_hue=hue, yaw=0.2, **of_content) for hue in (0.1, 0.9))
    style, other = (portrait(hair_hue=hue, yaw=-0.2, **of_style) for hue in (0.9, 0.1))
    mask, style_mask = differing(content, truth), differing(style, other)
    result = local_edits.style_transfer(G, content, style, mask, second_style_mask=style_mask, **QUICK)
    wrong = {"bg_hue": 0.8, "shirt": 0.7, "hair_hue": 0.1}
    check_attributes(network, result.images, of_content | {"hair_hue": 0.9}, wrong)
    assert float(psnr(result.images, truth)) > float(psnr(content, truth)) + 6
    assert result.metrics["psnr_masked"][0] > 38


@pytest.mark.slow
def test_activation_transfer(G, network):
    """The glasses of another face, whose hair, mouth and background stay behind."""
    own = {"hair_hue": 0.1, "bg_hue": 0.2, "smile": 0.6}
    target, truth = (portrait(glasses=glasses, yaw=-0.3, **own) for glasses in (0, 1))
    others = {"hair_hue": 0.8, "bg_hue": 0.8, "smile": -0.5}
    source = portrait(glasses=1, yaw=-0.3, **others)
    mask = box(22, 36, 16, 48)
    result = local_edits.activation_transfer(G, target, source, mask, at=32, **QUICK)
    check_attributes(network, result.images, own | {"glasses": 1}, others | {"glasses": 0})
    assert float(psnr(result.images, truth)) > float(psnr(target, truth)) + 3
    torch.testing.assert_close(result.render(G), result.images)


# How they are put together, on the tiny generator


def small(task: str, G=None, **options) -> InversionResult:
    """A task on two pictures of 8x8."""
    G = noisy() if G is None else G
    random = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 3, 8, 8, generator=random) - 0.5 for _ in range(2))
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    arguments = {
        "reconstruct": [first], "inpaint": [first, mask], "scribble": [first, torch.lerp(first, second, mask), None],
        "activation_transfer": [first, second, mask, 4],
    }.get(task, [first, second, mask])  # fmt: skip
    options = {"steps": 6, "noise_steps": 4, "trunk": SmallNetwork(), "progress": False, **options}
    return getattr(local_edits, task)(G, *arguments, **options)


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task, tmp_path):
    G = noisy()
    result = small(task, G)
    assert len(result) == 2 and result.settings["task"]["name"] == task.replace("_", " ")
    torch.testing.assert_close(result.render(G), result.images)
    loaded = InversionResult.load(result.save(tmp_path / "result"))
    assert torch.equal(loaded.render(G), result.render(G))
    json.dumps(result.settings, allow_nan=False)


def test_a_transfer_everywhere_is_the_source_and_nowhere_the_target():
    G = noisy()
    random = torch.Generator().manual_seed(0)
    target, source = (torch.rand(1, 3, 8, 8, generator=random) - 0.5 for _ in range(2))
    options = {"steps": 6, "trunk": SmallNetwork(), "progress": False}
    both = local_edits.reconstruct(G, torch.cat([target, source]), space="w+", **options)
    for at in (4, 8):
        # At the last block nothing follows that could mix the two.
        result = local_edits.activation_transfer(G, target, source, torch.ones(8, 8), at, **options)
        assert torch.equal(result.w_plus, both.w_plus[:1])
        if at == 8:
            torch.testing.assert_close(result.images, both.images[1:])
        mask = torch.full((8, 8), 1e-30)
        result = local_edits.activation_transfer(G, target, source, mask, at, **options)
        torch.testing.assert_close(result.images, both.images[:1])


def test_the_features_are_those_of_the_formula():
    G = noisy().double()
    result = small("activation_transfer", G, space="w+noise", mask_blur=0.0, dtype=None)
    random = torch.Generator().manual_seed(0)
    pictures = torch.cat([torch.rand(2, 3, 8, 8, generator=random) - 0.5 for _ in range(2)])
    options = {"steps": 6, "noise_steps": 4, "trunk": SmallNetwork(), "progress": False}
    both = local_edits.reconstruct(G, pictures, **options)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    mask[..., :4] = 1
    coarse = mask[..., ::2, ::2]
    with torch.no_grad():
        noise = {name.removeprefix("noise."): value for name, value in both.codes.items()}
        x, picture = G.features(both.w_plus, 4, noise)
        x, picture = (coarse * value[2:] + (1 - coarse) * value[:2] for value in (x, picture))
        noise = {name: value[:2] for name, value in noise.items()} | {
            name: mask * value[2:] + (1 - mask) * value[:2] for name, value in noise.items() if value.shape[-1] == 8
        }
        expected = G.synthesis(both.w_plus[:2], noise=noise, features=(x, picture))
    torch.testing.assert_close(result.images, expected)


def test_rows_by_resolution():
    G = Generator(8, 8, 8, channels={4: 4, 8: 4})
    assert local_edits.coarse_rows(G) == local_edits.inpainting_rows(G) == (0, 1, 2, 3)
    for resolution, last in ((128, (10, 11)), (1024, (16, 17))):
        G.resolution, G.num_ws = resolution, last[1] + 1
        assert local_edits.coarse_rows(G) == tuple(range(9))
        assert local_edits.inpainting_rows(G) == (*range(9), *last)


def test_options_take_precedence():
    options = {"trained_rows": (0,), "mask_blur": 0.5}
    result = small("inpaint", **options)
    assert result.settings["options"]["trained_rows"] == [0]
    assert result.settings["options"]["mask_blur"] == 0.5
    mean = noisy().w_avg
    assert all(torch.equal(result.w_plus[:, row], mean.expand(2, -1)) for row in (1, 2, 3))
    assert small("inpaint").settings["options"]["mask_blur"] == 8 / 64


def test_an_edit_starts_from_the_pictures_own_code():
    own = small("reconstruct", space="w+")
    for task in ("scribble", "style_transfer"):
        started = small(task, steps=0)
        assert not torch.equal(started.w_plus, own.w_plus)
        given = small(task, steps=0, init=own)
        assert torch.equal(given.w_plus, own.w_plus)
        assert torch.equal(small(task, noise_steps=3).w_plus, small(task, init=own, noise_steps=3).w_plus)


@pytest.mark.parametrize("after", [3, 16])  # in the first inversion; in the second
def test_an_interrupted_edit_goes_on_to_the_same_bits(tmp_path, after):
    class Killed(Exception):
        pass

    calls = []

    def killed(*_):
        calls.append(_)
        if len(calls) == after:
            raise Killed

    whole = small("scribble")
    with pytest.raises(Killed):
        small("scribble", checkpoints=Checkpoints(tmp_path, seconds=0), callback=killed)
    again = small("scribble", checkpoints=Checkpoints(tmp_path, seconds=0))
    assert torch.equal(again.images, whole.images) and torch.equal(again.w_plus, whole.w_plus)
    assert len(list(tmp_path.glob("*.trace.safetensors"))) == 3


@pytest.mark.parametrize("task", ["inpaint", "crossover", "style_transfer"])
def test_masks_are_needed(task):
    first = torch.zeros(1, 3, 8, 8)
    arguments = [first] if task == "inpaint" else [first, first]
    with pytest.raises(UsageError, match="masks say wh.*: give them, 1 .white. for yes"):
        getattr(local_edits, task)(noisy(), *arguments, None)


def test_wrong_arguments():
    G, picture, mask = noisy(), torch.zeros(1, 3, 8, 8), torch.ones(8, 8)
    with pytest.raises(UsageError, match="nothing is drawn on picture 0"):
        local_edits.scribble(G, picture, picture)
    with pytest.raises(UsageError, match="there are 1 and 2 pictures"):
        local_edits.crossover(G, picture, picture.repeat(2, 1, 1, 1), mask)
    with pytest.raises(UsageError, match="images are 4 x 4"):
        local_edits.style_transfer(G, picture, torch.zeros(1, 3, 4, 4), mask)
    with pytest.raises(UsageError, match="at must be the resolution of a block, 4, 8, not 16"):
        local_edits.activation_transfer(G, picture, picture, mask, at=16)

    def never(*_):
        raise AssertionError("work has started")

    for wrong in ({"noise_mask": torch.ones(2, 2)}, {"trained_rows": [9]}, {"noise_steps": -1}):
        with pytest.raises(UsageError):
            local_edits.style_transfer(G, picture, picture, mask, callback=never, **wrong)
    with pytest.raises(UsageError, match="hides all of it"):
        local_edits.inpaint(G, picture, 0 * mask)
    older = StyleGAN1Generator(8, z_dim=8, w_dim=8, channels={4: 8, 8: 8}, mapping_layers=2)
    with pytest.raises(UsageError, match="needs a StyleGAN2 generator"):
        local_edits.activation_transfer(older, picture, picture, mask, at=4)


# The commands


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with two portraits, a drawing on the first, and a mask, in other sizes than the generator's."""
    monkeypatch.chdir(tmp_path)
    a, b = portrait(hair_hue=0.1)[0], portrait(hair_hue=0.9, bg_hue=0.9)[0]
    drawn = a.clone()
    drawn[:, 10:20, 16:48] = 0.5
    for name, image in {"a": a, "b": b, "drawn": drawn, "mask": box(0, 32, 0, 64)[0] * 2 - 1}.items():
        save_picture(image, f"{name}.png")
    return tmp_path


COMMANDS = {
    "inpaint": (["a.png", "--mask", "mask.png"], "inpaint-a", "inpaint"),
    "crossover": (["a.png", "b.png", "--mask", "mask.png"], "crossover-a-b", "crossover"),
    "scribble": (["a.png", "drawn.png"], "scribble-a-drawn", "scribble"),
    "style-transfer": (
        ["a.png", "b.png", "--mask", "mask.png", "--style-mask", "mask.png"],
        "style-transfer-a-b",
        "style transfer",
    ),
    "transfer": (
        ["a.png", "b.png", "--mask", "mask.png", "--at", "16"],
        "activation-transfer-a-b",
        "activation transfer",
    ),
}
FAST = ["--steps", "1", "--set", "noise_steps=1", "--set", "perceptual_weight=0", "--dtype", "bfloat16", "-q"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(folder, capsys, command):
    arguments, name, task = COMMANDS[command]
    status, output, errors = run(capsys, command, *arguments, *FAST)
    assert (status, errors) == (0, "")
    assert output.startswith(f"edited/{name}  PSNR ")
    written = {"comparison.png", "latent.safetensors", "reconstruction.png", "result.json"}
    assert files(folder / "edited") == {name, *(f"{name}/{file}" for file in written)}
    result = InversionResult.load(folder / "edited" / name)
    settings = result.settings
    assert settings["task"]["name"] == task and settings["pictures"][0] == str(folder / "a.png")
    assert settings["command"].startswith(f"fastinv {command} a.png") and settings["dtype"] == "bfloat16"
    assert settings["options"]["steps"] == 1
    assert Image.open(folder / "edited" / name / "reconstruction.png").size == (64, 64)


def test_the_same_command_again_replaces_and_others_get_a_number(folder, capsys):
    command = ["inpaint", "a.png", "--mask", "mask.png", *FAST]
    assert run(capsys, *command)[0] == run(capsys, *command)[0] == 0
    assert {path.name for path in (folder / "edited").iterdir()} == {"inpaint-a"}
    (folder / "other").mkdir()
    save_picture(portrait(glasses=1)[0], "other/a.png")
    assert run(capsys, "inpaint", "other/a.png", *command[2:])[0] == 0
    assert {path.name for path in (folder / "edited").iterdir()} == {"inpaint-a", "inpaint-a-2"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["inpaint", "a.png"], "Missing option '--mask'"),
        (["inpaint", "none.png", "--mask", "mask.png"], "none.png: no such file"),
        (["inpaint", "a.png", "--mask", "none.png"], "none.png: no such file"),
        (["inpaint", "a.png", "--mask", "mask.png", "--space", "z"], "space 'z' does not work for image2stylegan++"),
        (["inpaint", "a.png", "--mask", "mask.png", "--set", "noise_step=3"], "did you mean noise_steps"),
        (["inpaint", "a.png", "--mask", "mask.png", "--crop", "left"], "unknown crop 'left'"),
        (["inpaint", "a.png", "--mask", "mask.png", "--seed", "-1"], "--seed must be a whole number"),
        (["scribble", "a.png", "a.png"], "nothing is drawn on picture 0"),
        (["transfer", "a.png", "b.png", "--mask", "mask.png", "--at", "7"], "at must be the resolution of a block"),
        (
            ["style-transfer", "a.png", "b.png", "--mask", "mask.png", "--set", "second=b.png"],
            "images must be a tensor",
        ),
    ],
)
def test_errors_are_one_line(folder, capsys, arguments, message):
    status, output, errors = run(capsys, *arguments, "-q")
    assert status == 2 and output == "" and message in errors and errors.count("\n") == 1
    assert not (folder / "edited").exists()
