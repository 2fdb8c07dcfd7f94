"""Checkpoints of an optimisation: what was interrupted goes on to the same bits, whatever the method."""

import contextlib
import math
import random

import pytest
import torch
from PIL import Image
from torch import nn

from fastinv.errors import CheckpointError, UsageError
from fastinv.inversion import NonFiniteLossError, invert
from fastinv.inversion.checkpoint import Checkpoint, Checkpoints
from fastinv.inversion.frames import Frames, animate
from fastinv.inversion.loop import Trace
from fastinv.models.stylegan2 import Generator


class SmallNetwork(nn.Module):
    """Stands in for the attribute network."""

    def __init__(self):
        super().__init__()
        random_numbers = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, 3, 5, 5, generator=random_numbers) * 0.1)

    def features(self, images):
        return [nn.functional.conv2d(images, self.weight, stride=4).tanh()]


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    G = Generator(16, z_dim=8, w_dim=8, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2)
    with torch.no_grad():
        G.mapping.w_avg.copy_(G.mapping(torch.randn(500, 8))[:, 0].mean(0))
        for layer in G.synthesis.noise_layers():
            G.synthesis.get_submodule(layer).noise_strength.fill_(0.1)
    return G.eval()


@pytest.fixture(scope="module")
def images(G):
    with torch.no_grad():
        return G.synthesis(G.mapping(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))).clamp(-1, 1)


class Killed(BaseException):
    pass


def killed(moment, *arguments, frames=None, **options):
    """``invert``, killed when it has done ``moment`` evaluations."""
    left = [moment]

    def callback(*seen):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        if frames is not None:
            frames(*seen)

    return invert(*arguments, progress=False, callback=callback, **options)


def killed_after(*arguments, **options):
    """The same; its result, or None where it was killed."""
    with contextlib.suppress(Killed):
        return killed(*arguments, **options)


def interrupted(moments, folder, *arguments, **options):
    """``invert`` that is killed after so many evaluations, again and again, and then goes on to the end."""
    for moment in moments:
        killed_after(moment, *arguments, checkpoints=Checkpoints(folder, 0.0), **options)
    return killed(math.inf if moments != [0] else 0, *arguments, checkpoints=Checkpoints(folder, 0.0), **options)


def same_bits(one, two):
    assert torch.equal(one.w_plus, two.w_plus) and torch.equal(one.images, two.images)
    assert list(one.losses) == list(two.losses) and list(one.codes) == list(two.codes)
    for name, curve in one.losses.items():
        torch.testing.assert_close(curve, two.losses[name], rtol=0, atol=0, equal_nan=True)
    for name, value in one.codes.items():
        assert torch.equal(value, two.codes[name]), name
    assert str(one.metrics) == str(two.metrics)
    without = [{k: v for k, v in result.settings.items() if k != "seconds"} for result in (one, two)]
    assert without[0] == without[1]


SMALL = {"trunk": SmallNetwork(), "lpips_weight": 0.0}
CASES = {  # the other methods and spaces are in test_methods.py
    "two stages, pictures that are finished sooner": (
        "image2stylegan", {"coarse_resolution": 8, "stop_patience": 10, "stop_plateau": 0.2, "learning_rate": 0.2}
    ),
    "the rows that are left": ("image2stylegan", {"stop_loss": 0.07, "learning_rate": 0.2}),
    "one stage per picture": (
        "pti",
        {"perceptual_weight": 1.0, "learning_rate": 0.01, "pivot_options": {"steps": 12, "perceptual_weight": 0.0}},
    ),
    "a code, then noise": ("image2stylegan++", {"noise_steps": 25}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_with_the_same_bits(G, images, case, tmp_path, monkeypatch):
    monkeypatch.setattr("fastinv.inversion.checkpoint.SHARE", 0)
    method, options = CASES[case]
    pictures, steps = (images[:2], 21) if method == "pti" else (images, 35)
    arguments, options = (G, pictures, method, None, steps), SMALL | options
    whole = invert(*arguments, progress=False, **options)
    if "stop_loss" in options:
        assert 0 < sum(map(bool, whole.metrics["finished"])) < 3
    same_bits(interrupted([25, 3, 14, 31, 12], tmp_path, *arguments, **options), whole)
    assert not list(tmp_path.glob("*.state.safetensors")) and list(tmp_path.glob("*.trace.safetensors"))
    same_bits(interrupted([0], tmp_path, *arguments, **options), whole)  # not one evaluation more
    same_bits(invert(*arguments, progress=False, checkpoints=Checkpoints(tmp_path / "new"), **options), whole)


def test_when_it_is_saved_makes_no_difference(G, images, tmp_path):
    arguments, options = (G, images, "image2stylegan", None, 45), SMALL
    whole = invert(*arguments, progress=False, **options)
    dice = random.Random(0)

    class Sometimes(Checkpoints):
        def __call__(self, stage):
            checkpoint = super().__call__(stage)
            checkpoint.due = lambda: dice.random() < 0.5
            return checkpoint

    for trial in range(5):
        moments = [dice.randrange(5, 40) for _ in range(4)]
        for moment in [*moments, math.inf]:
            result = killed_after(moment, *arguments, checkpoints=Sometimes(tmp_path / str(trial)), **options)
        same_bits(result, whole)


def test_a_picture_that_failed_stays_so(G, images, tmp_path, monkeypatch):
    monkeypatch.setattr("fastinv.inversion.checkpoint.SHARE", 0)
    arguments, options = (G, images, "image2stylegan", None, 35), SMALL | {"learning_rate": 1e30, "ramp_up": 0.0}
    failures = []
    for _ in range(2):
        with pytest.raises(NonFiniteLossError) as error:
            invert(*arguments, progress=False, checkpoints=Checkpoints(tmp_path, 0), **options)
        failures.append(error.value)
    assert failures[0].failed == failures[1].failed and failures[0].failed
    same_bits(failures[0].result, failures[1].result)


def test_a_trace_is_read_back_exactly(tmp_path):
    curve = torch.tensor([[1.0, math.nan], [0.1, math.inf]], dtype=torch.float64)
    trace = Trace(
        {"w": torch.randn(2, 3, dtype=torch.float64), "noise.b4": torch.tensor([[-0.0, math.nan]]).half()},
        {"total": curve, "a": curve * 2}, torch.tensor([5, 0]), 7, True, {1: 3}, {0: (6, "loss reached")}, True, "why",
    )  # fmt: skip
    checkpoint = Checkpoints(tmp_path / "new")(2)
    assert checkpoint.finished() is None and checkpoint.load() is None and not (tmp_path / "new").exists()
    checkpoint.save({"step": torch.tensor([3])})
    assert checkpoint.load()["step"].tolist() == [3]
    checkpoint.finish(trace)
    again = Checkpoints(tmp_path / "new")(2).finished()
    assert checkpoint.load() is None
    for name in ("variables", "losses"):
        old, new = getattr(trace, name), getattr(again, name)
        assert list(old) == list(new)
        for key, value in old.items():
            assert value.dtype == new[key].dtype and value.numpy().tobytes() == new[key].numpy().tobytes()
    for name in ("steps", "stopped", "failed", "finished", "captured", "why_eager"):
        assert getattr(trace, name) == getattr(again, name), name
    assert torch.equal(trace.best_step, again.best_step)


def test_it_is_due_every_so_many_seconds_but_takes_little_of_the_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fastinv.inversion.checkpoint.time.monotonic", lambda: now[0])
    monkeypatch.setattr("fastinv.inversion.checkpoint.save_tensors", lambda *_: now.__setitem__(0, now[0] + 3))
    checkpoint = Checkpoint(tmp_path, 0, 30)
    for passed, due in ((29.9, False), (0.1, True)):
        now[0] += passed
        assert checkpoint.due() is due
    checkpoint.save({})
    for passed, due in ((0, False), (59.9, False), (0.1, True)):  # 20 times what a save takes
        now[0] += passed
        assert checkpoint.due() is due


def test_damaged_and_foreign_states(G, images, tmp_path, monkeypatch):
    monkeypatch.setattr("fastinv.inversion.checkpoint.SHARE", 0)
    arguments = G, images, "image2stylegan", None, 35
    with pytest.raises(Killed):
        killed(25, *arguments, checkpoints=Checkpoints(tmp_path, 0), **SMALL)
    (state,) = tmp_path.iterdir()
    with pytest.raises(UsageError, match="another optimisation"):
        invert(G, images[:2], *arguments[2:], progress=False, checkpoints=Checkpoints(tmp_path), **SMALL)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="stage-0.state.safetensors.*remove it"):
        invert(*arguments, progress=False, checkpoints=Checkpoints(tmp_path), **SMALL)


# Frames


def test_frames_are_complete_after_an_interruption(G, images, tmp_path, monkeypatch):
    monkeypatch.setattr("fastinv.inversion.checkpoint.SHARE", 0)
    arguments, options = (G, images, "image2stylegan", None, 33), SMALL | {"coarse_resolution": 8}

    def files(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}

    for name, moments in (("whole", []), ("parts", [29, 17, 4])):
        folders = [tmp_path / name / picture for picture in "abc"]
        for moment in [*moments, math.inf]:
            frames = Frames(folders, 4)
            killed_after(
                moment, *arguments, frames=frames, checkpoints=Checkpoints(tmp_path / f"{name}.state", 0), **options
            )
        for folder in folders:
            Image.new("RGB", (16, 16)).save(folder / "final.png")
            animate(folder, folder / "final.png")
    whole = files(tmp_path / "whole")
    assert whole == files(tmp_path / "parts")
    assert [f"a/frames/{step:05d}.png" in whole for step in (0, 4, 32, 33)] == [True, True, True, False]
    with Image.open(tmp_path / "whole/a/progress.gif") as animation:
        assert animation.size == (16, 16) and animation.n_frames == 10  # steps 0 to 32, and the final picture
        animation.seek(9)
        assert animation.info["duration"] == 2000


def test_a_picture_that_has_left_gets_no_frame(tmp_path):
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[1] = math.nan
    frames = Frames([tmp_path / "a", tmp_path / "b"], 3)
    for step in range(5):
        frames(step, {}, pictures)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")) == [
        "a/frames/00000.png", "a/frames/00003.png",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no frames"):
        animate(tmp_path / "b", tmp_path / "a/frames/00000.png")
