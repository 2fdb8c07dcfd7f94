"""The optimisation loop, Image2StyleGAN and ``invert``."""

import io
import json
import math
import os

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import fastinv
from fastinv.errors import CheckpointError, UsageError
from fastinv.inversion import METHODS, InversionResult, NonFiniteLossError, invert
from fastinv.inversion.loop import Term, frozen, optimize, ramped
from fastinv.inversion.progress import Progress
from fastinv.losses import PixelLoss, psnr
from fastinv.models.stylegan2 import Generator


class SmallNetwork(nn.Module):
    """Stands in for the attribute network; counts the pictures it sees."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, 3, 5, 5, generator=generator) * 0.1)

    def features(self, images):
        return [nn.functional.conv2d(images, self.weight, stride=4).tanh()]


def generator(**options):
    torch.manual_seed(0)
    G = Generator(8, z_dim=8, w_dim=8, channels={4: 8, 8: 8}, mapping_layers=2, **options)
    with torch.no_grad():
        G.mapping.w_avg.copy_(G.mapping(torch.randn(500, 8))[:, 0].mean(0))
    return G.eval()


@pytest.fixture(scope="module")
def G():
    return generator()


@pytest.fixture(scope="module")
def images(G):
    """Three pictures that the generator can make, up to the clamp."""
    with torch.no_grad():
        z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        return G.synthesis(G.mapping(z)).clamp(-1, 1)


def run(G, images, steps=20, **options):
    options = {"trunk": SmallNetwork(), "progress": False, **options}
    return invert(G, images, steps=steps, **options)


def same_bits(a, b):
    return (
        torch.equal(a.w_plus, b.w_plus)
        and torch.equal(a.images, b.images)
        and (all(torch.equal(curve, b.losses[name]) for name, curve in a.losses.items()))
    )


# What an inversion does


@pytest.mark.parametrize("space", ["w+", "w"])
def test_the_loss_falls(G, images, space):
    result = run(G, images, steps=60, space=space, learning_rate=0.1)
    curve = result.losses["total"]
    assert curve.shape == (61, 3) and curve.dtype == torch.float64
    assert (curve[-1] < 0.3 * curve[0]).all()
    assert result.w_plus.shape == (3, G.num_ws, G.w_dim)
    repeated = torch.equal(result.w_plus, result.w_plus[:, :1].expand_as(result.w_plus))
    assert repeated == (space == "w")
    torch.testing.assert_close(curve, result.losses["pixel"] + result.losses["perceptual"])


def test_pictures_belong_to_the_codes_and_metrics_to_the_pictures(G, images):
    result = run(G, images)
    with torch.no_grad():
        torch.testing.assert_close(G.synthesis(result.w_plus), result.images)
    assert result.metrics["psnr"] == psnr(result.images, images).tolist()
    expected = (result.images.clamp(-1, 1) - images).square().mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor(result.metrics["mse"]), expected)


def test_the_code_kept_is_the_best_seen(G, images):
    result = run(G, images, steps=40, learning_rate=5.0, ramp_down=0.0)  # too fast: the loss jumps about
    curve = result.losses["total"]
    assert (curve.min(0).values < curve[-1]).any()
    assert result.metrics["loss_total"] == curve.min(0).values.tolist()
    assert result.metrics["best_step"] == curve.argmin(0).tolist()
    pixel = (result.images - images).square().mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor(result.metrics["loss_pixel"]), pixel)


@pytest.mark.parametrize("space", ["w+", "w"])
@pytest.mark.parametrize("start", ["mean", "random"])
def test_a_batch_equals_single_runs(images, space, start):
    G = generator().double()
    images = images.double()
    together = run(G, images, steps=30, space=space, start=start)
    for index in range(len(images)):
        alone = run(G, images[index], steps=30, space=space, start=start)
        torch.testing.assert_close(together[index].w_plus, alone.w_plus, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(together[index].losses["total"], alone.losses["total"], rtol=1e-7, atol=0)


def test_the_same_seed_gives_the_same_bits(G, images):
    torch.manual_seed(1)
    first = run(G, images, start="random", seed=5)
    torch.manual_seed(2)
    assert same_bits(first, run(G, images, start="random", seed=5))
    assert not same_bits(first, run(G, images, start="random", seed=6))


def test_global_random_numbers_stay_untouched(G, images):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    run(G, images, steps=2, start="random")
    assert torch.equal(torch.rand(3), expected)


def test_random_start_is_uniform_and_mean_start_the_average(G, images):
    result = run(G, images, 0, start="random")
    assert result.w_plus.abs().max() <= 1 and result.w_plus.std() > 0.4
    assert torch.equal(result.w_plus[0], result.w_plus[1])
    assert torch.equal(run(G, images, 0).w_plus, G.w_avg.expand(3, G.num_ws, -1))


def test_hidden_pixels_have_no_say(G, images):
    mask = torch.ones(8, 8)
    mask[:, 4:] = 0
    spoilt = images.clone()
    spoilt[..., 4:] = torch.rand(3, 3, 8, 4) * 2 - 1
    result = run(G, images, masks=mask)
    assert same_bits(result, run(G, spoilt, masks=mask.expand(3, 1, 8, 8)))
    assert not same_bits(result, run(G, spoilt))
    assert result.settings["masked"]
    left = (result.images.clamp(-1, 1) - images)[..., :4].square().mean((1, 2, 3))
    torch.testing.assert_close(torch.tensor(result.metrics["mse_masked"]), left)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_generators_of_other_precisions(images, dtype):
    result = run(generator().to(dtype), images, steps=40, learning_rate=0.1)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert result.w_plus.dtype == result.images.dtype == expected
    assert (result.losses["total"].min(0).values < 0.5 * result.losses["total"][0]).all()


def test_the_gradient_agrees_with_finite_differences(images):
    G = generator().double()
    target = images[:1].double()
    w = G.mapping(torch.randn(1, 8)).detach().clone()

    def loss(w):
        return PixelLoss(target)(G.synthesis(w))

    with frozen(G):
        assert torch.autograd.gradcheck(loss, w.requires_grad_(), fast_mode=True)


def test_target_features_are_computed_once(G, images, monkeypatch):
    calls = []
    features = SmallNetwork.features
    monkeypatch.setattr(SmallNetwork, "features", lambda self, x: calls.append(len(x)) or features(self, x))
    run(G, images, steps=5)
    assert calls == [3] * 7  # the target, and six evaluations


def test_without_a_perceptual_term_no_trunk_is_loaded(G, images, monkeypatch):
    monkeypatch.setattr("fastinv.inversion.objective.load_trunk", None)
    result = invert(G, images, steps=2, perceptual_weight=0, progress=False)
    assert set(result.losses) == {"total", "pixel"} and "trunk" not in result.settings


def test_weights_scale_the_terms(G, images):
    one = run(G, images, 0)
    other = run(G, images, 0, pixel_weight=2.0, perceptual_weight=3.0, layer_weights=(5.0,))
    torch.testing.assert_close(other.losses["pixel"], 2 * one.losses["pixel"])
    torch.testing.assert_close(other.losses["perceptual"], 15 * one.losses["perceptual"])


def test_the_generator_is_left_as_it_was(images):
    G = generator().train()
    G.synthesis.b4.conv1.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    flags = [parameter.requires_grad for parameter in G.parameters()]
    run(G, images, steps=2)
    assert G.training and all(module.training for module in G.modules())
    assert [parameter.requires_grad for parameter in G.parameters()] == flags and not all(flags)
    assert all(parameter.grad is None for parameter in G.parameters())
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    with pytest.raises(ZeroDivisionError):  # also after an error
        run(G, images, steps=2, callback=lambda *_: 1 / 0)
    assert G.training and [parameter.requires_grad for parameter in G.parameters()] == flags


def test_it_works_where_gradients_are_off(G, images):
    with torch.no_grad():
        result = run(G, images)
    assert same_bits(result, run(G, images)) and not result.w_plus.requires_grad


def test_settings_say_how_it_was_made(G, images):
    settings = run(G, images, steps=3, seed=9, learning_rate=0.02).settings
    assert settings["method"] == "image2stylegan" and settings["space"] == "w+" and settings["seed"] == 9
    assert settings["options"]["steps"] == 3 and settings["options"]["learning_rate"] == 0.02
    assert settings["steps_done"] == 3 and not settings["stopped"] and settings["seconds"] > 0
    assert settings["generator"]["sha256"] == fastinv.checkpoints.network_hash(G)
    assert settings["trunk"]["name"] == "SmallNetwork"
    assert settings["trunk"]["sha256"] == fastinv.checkpoints.network_hash(SmallNetwork())
    assert settings["versions"]["fastinv"] == fastinv.__version__
    json.dumps(settings, allow_nan=False)


def test_every_field_of_every_method_is_documented():
    for name, method in METHODS.items():
        assert method.name == name and method.spaces and method.__doc__
        assert all(
            field.metadata["help"]
            for field in method.__dataclass_fields__.values()
            if field._field_type.name != ("_FIELD_CLASSVAR")
        )


# Callback, stopping, failing


def test_the_callback_sees_every_step_and_may_stop(G, images):
    seen = []

    def callback(step, losses, pictures):
        seen.append((step, set(losses), losses["total"].tolist(), tuple(pictures.shape)))
        assert not pictures.requires_grad
        return step == 4

    result = run(G, images, steps=50, callback=callback)
    assert [step for step, *_ in seen] == [0, 1, 2, 3, 4]
    assert all(entry[1:2] + entry[3:] == ({"total", "pixel", "perceptual"}, (3, 3, 8, 8)) for entry in seen)
    assert [entry[2] for entry in seen] == result.losses["total"].tolist()
    assert result.settings["stopped"] and result.settings["steps_done"] == 4
    seen.clear()
    full = run(G, images, steps=3, callback=callback)
    assert len(seen) == 4 and full.settings["steps_done"] == 3 and not full.settings["stopped"]


class Fragile(nn.Module):
    """Features of the first picture become NaN after some calls."""

    def __init__(self, calls, row):
        super().__init__()
        self.weight, self.calls, self.row = nn.Parameter(torch.ones(1)), calls, row

    def features(self, images):
        self.calls -= 1
        poison = torch.zeros(len(images), 1, 1, 1)
        if self.calls < 0 and len(images) > self.row:
            poison[self.row] = math.nan
        return [images * self.weight + poison]


def test_a_picture_that_fails_leaves_the_others_alone(images):
    G = generator().double()
    images = images.double()
    # Call 0 is the target, so calls 1 to 14 are steps 0 to 13; then the batch shrinks, and row 2 exists no longer.
    with pytest.raises(
        NonFiniteLossError, match=r"picture 2 \(of 3, counted from 0\) is not finite from step 14"
    ) as info:
        run(G, images, steps=40, trunk=Fragile(15, row=2))
    result = info.value.result
    assert info.value.failed == {2: 14} and len(result) == 3
    sound = run(G, images[:2], steps=40, trunk=Fragile(1000, row=2))
    torch.testing.assert_close(result.w_plus[:2], sound.w_plus, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(result.losses["total"][:, :2], sound.losses["total"], rtol=1e-7, atol=0)
    curve = result.losses["total"][:, 2]
    assert curve[:14].isfinite().all() and curve[14:].isnan().all()
    assert result.metrics["best_step"][2] == curve[:14].argmin().item()
    assert result.w_plus.isfinite().all() and result.images.isfinite().all()


def test_when_the_only_picture_fails_the_work_ends_and_the_best_is_kept(G, images, tmp_path):
    steps = []
    with pytest.raises(NonFiniteLossError, match="lower learning_rate") as info:
        run(G, images[0], 100, trunk=Fragile(8, row=0), callback=lambda step, *_: steps.append(step))
    result = info.value.result
    assert len(steps) < 30 and result.w_plus.isfinite().all()
    assert result.metrics["loss_total"] == [result.losses["total"][:7].min().item()]
    result.save(tmp_path / "failed")  # NaN in the curves is no obstacle
    torch.testing.assert_close(
        InversionResult.load(tmp_path / "failed").losses["total"], result.losses["total"], equal_nan=True
    )


@pytest.mark.parametrize("learning_rate", [1e38, 1e300])
def test_a_learning_rate_beyond_the_number_range_is_a_clear_error(G, images, learning_rate):
    with pytest.raises(NonFiniteLossError, match="lower learning_rate") as info:
        run(G, images, 20, learning_rate=learning_rate)
    assert info.value.result.w_plus.isfinite().all()


def test_failing_at_the_last_step_is_noticed(G, images):
    with pytest.raises(NonFiniteLossError) as info:
        run(G, images, 3, trunk=Fragile(4, row=1))  # the target and steps 0 to 2 are sound
    assert info.value.failed == {1: 3}


# The loop by itself


def test_the_loop_is_adam_on_every_row():
    start = torch.tensor([[1.0, -2.0], [3.0, 0.5]], dtype=torch.float64)
    goal = torch.tensor([[0.0, 0.0], [1.0, 1.0]])

    def distance(x):
        return (x - goal).square().sum(1)

    trace = optimize(
        {"x": start}, lambda v, _: (v["x"], v), [Term("distance", distance)], steps=25, learning_rate=0.1, keep="last"
    )
    parameter = start.clone().requires_grad_()
    adam = torch.optim.Adam([parameter], lr=0.1)
    for step in range(25):
        torch.testing.assert_close(trace.losses["distance"][step], distance(parameter.detach()))
        adam.zero_grad()
        distance(parameter).sum().backward()
        adam.step()
    torch.testing.assert_close(trace.variables["x"], parameter.detach(), rtol=1e-12, atol=0)
    assert trace.steps == 25 and trace.best_step.tolist() == [25, 25]
    assert start.tolist() == [[1.0, -2.0], [3.0, 0.5]]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_what_is_kept(keep):
    seen = []

    def render(variables, step):
        assert step.tolist() == [len(seen)]
        seen.append(variables["x"].detach().clone())
        return variables["x"], variables

    distance = Term("distance", lambda x: x.square().sum(1))
    trace = optimize({"x": torch.ones(1, 1)}, render, [distance], steps=3, learning_rate=0.9, keep=keep)
    curve = trace.losses["total"][:, 0]
    assert curve.argmin() < 3  # it overshoots
    assert trace.best_step.tolist() == [3 if keep == "last" else curve.argmin().item()]
    assert torch.equal(trace.variables["x"], seen[trace.best_step])


def test_terms_on_variables_and_rates_per_variable():
    trace = optimize(
        {"a": torch.ones(2, 1), "b": torch.ones(2, 3)},
        lambda v, _: (v["a"] + v["b"], v),
        [
            Term("sum", lambda images: images.square().sum(1)),
            Term("prior", lambda v: v["b"].square().sum(1), weight=0.5, of="codes"),
            Term("both", lambda images, v: (images - v["a"]).square().sum(1), weight=2.0, of="both"),
        ],
        steps=1,
        learning_rate={"a": 0.25, "b": 0.0},
    )
    assert torch.equal(trace.variables["b"], torch.ones(2, 3))
    torch.testing.assert_close(trace.variables["a"], torch.full((2, 1), 0.75))  # Adam's first step is its rate
    assert trace.losses["prior"].tolist() == [[1.5, 1.5]] * 2 and trace.losses["sum"][0].tolist() == [12, 12]
    assert trace.losses["both"].tolist() == [[6, 6]] * 2


def test_the_schedule_rises_and_falls():
    factor = ramped(0.1, 0.25)
    values = [factor(step, 100) for step in range(100)]
    assert values[0] == pytest.approx(0.1) and values[9:76] == pytest.approx([1.0] * 67)
    assert values[-1] == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.04)) and min(values) > 0
    assert all(a >= b for a, b in zip(values[75:], values[76:], strict=False))
    assert {ramped(0, 0)(step, 7) for step in range(7)} == {1.0}
    assert ramped(1, 1)(0, 1) > 0


# Progress


def test_plain_progress_has_about_ten_lines(G, images, capsys):
    result = run(G, images, steps=47, progress=True)
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert output.out == "" and len(lines) == 11
    assert lines[0].startswith("image2stylegan 0/47  loss ") and " dB" in lines[0] and " left" not in lines[0]
    assert lines[5].endswith(" s left") and lines[-1].startswith("image2stylegan 47/47")
    loss, decibels = result.losses["total"][-1].mean(), sum(psnr(result.images, images).tolist()) / 3
    assert f"loss {loss:.4g}  PSNR {decibels:.2f} dB" in lines[-1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_on_a_terminal_shows_loss_psnr_and_time_left(images, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    with Progress(images, terminal) as progress:
        progress.begin("image2stylegan", 3)
        for step in range(4):
            progress.update(step, torch.tensor([0.5, 0.25, math.nan]), images)
    output = terminal.getvalue()
    assert "3/3" in output and "loss 0.375" in output and "PSNR 100.00 dB" in output and "0:00" in output


def test_no_progress_when_not_wanted(G, images, capsys):
    run(G, images, steps=2, progress=False)
    assert capsys.readouterr().err == ""


# Saving and loading


def test_round_trip(G, images, tmp_path):
    result = run(G, images, steps=4, masks=torch.ones(8, 8))
    assert result.save(tmp_path / "new" / "result") == tmp_path / "new" / "result"
    names = ["latent.safetensors", "reconstruction.png", "result.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "result").iterdir()) == names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result"]
    loaded = InversionResult.load(tmp_path / "new" / "result")
    assert torch.equal(loaded.w_plus, result.w_plus)
    assert loaded.metrics == result.metrics
    assert loaded.settings == {name: value for name, value in result.settings.items() if name != "seconds"}
    assert set(loaded.losses) == set(result.losses)
    assert all(torch.equal(loaded.losses[name], curve) for name, curve in result.losses.items())
    assert loaded.images.shape == result.images.shape
    assert (loaded.images - result.images.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6


def test_further_pictures_are_saved_with_the_result(G, images, tmp_path):
    result = run(G, images, 0)
    for colour in ("red", "blue"):  # into a new folder, then over it
        result.save(tmp_path / "a", {"sheet.png": Image.new("RGB", (4, 2), colour)})
        with Image.open(tmp_path / "a" / "sheet.png") as sheet:
            assert sheet.getpixel((0, 0)) == {"red": (255, 0, 0), "blue": (0, 0, 255)}[colour]


def test_parts_of_a_result(G, images, tmp_path):
    result = run(G, images, steps=3)
    one, two = result[1], result[1:]
    assert len(result) == 3 and len(one) == 1 and len(two) == 2
    assert torch.equal(one.w_plus, result.w_plus[1:2]) and torch.equal(two.images, result.images[1:])
    assert one.metrics["psnr"] == [result.metrics["psnr"][1]]
    assert torch.equal(two.losses["pixel"], result.losses["pixel"][:, 1:])
    assert torch.equal(result[-1].w_plus, result.w_plus[2:])
    assert [len(part) for part in result] == [1, 1, 1]
    with pytest.raises(IndexError):
        result[3]
    one.save(tmp_path / "one")
    assert InversionResult.load(tmp_path / "one").images.shape == (1, 3, 8, 8)


def test_saving_over_an_old_result(G, images, tmp_path):
    run(G, images, steps=1).save(tmp_path)
    (tmp_path / "comparison.png").write_text("other")
    result = run(G, images[:1], steps=2)
    result.save(tmp_path)
    assert torch.equal(InversionResult.load(tmp_path).w_plus, result.w_plus)
    assert (tmp_path / "comparison.png").read_text() == "other"


@pytest.mark.parametrize("broken", ["save_latent", "save_picture", "os.rename"])
def test_a_save_that_breaks_leaves_nothing_half_written(G, images, tmp_path, monkeypatch, broken):
    old, new = run(G, images, steps=1), run(G, images, steps=2)
    old.save(tmp_path / "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"fastinv.inversion.result.{broken}", fail)
    with pytest.raises(UsageError, match="cannot write the result to .*new: No space left on device"):
        new.save(tmp_path / "new")
    if broken != "os.rename":  # only a new folder is renamed into place
        with pytest.raises(UsageError):
            new.save(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert torch.equal(InversionResult.load(tmp_path / "old").w_plus, old.w_plus)


def test_a_kill_while_replacing_is_recognised(G, images, tmp_path, monkeypatch):
    run(G, images, steps=1).save(tmp_path / "a")
    real, moved = os.replace, []

    def replace_one(source, target):
        if target.parent == tmp_path / "a":
            if moved:
                raise KeyboardInterrupt
            moved.append(target)
        real(source, target)

    new = run(G, images, steps=2)
    monkeypatch.setattr("fastinv.inversion.result.os.replace", replace_one)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="no inversion result in .*: result.json is missing"):
        InversionResult.load(tmp_path / "a")


def test_saving_where_it_cannot_be(G, images, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UsageError, match="cannot write the result to"):
            run(G, images, 0).save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_loading_what_is_no_result(G, images, tmp_path):
    with pytest.raises(UsageError, match="no inversion result in .*none: result.json is missing"):
        InversionResult.load(tmp_path / "none")
    run(G, images, 0).save(tmp_path / "a")
    for content in ("{", "[]", "{}", '{"losses": 3}'):
        (tmp_path / "a" / "result.json").write_text(content)
        with pytest.raises(UsageError, match="cannot read the inversion result"):
            InversionResult.load(tmp_path / "a")
    run(G, images, 0).save(tmp_path / "b")
    (tmp_path / "b" / "latent.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="cannot read .*latent.safetensors"):
        InversionResult.load(tmp_path / "b")
    (tmp_path / "b" / "latent.safetensors").unlink()
    with pytest.raises(UsageError, match="latent.safetensors is missing"):
        InversionResult.load(tmp_path / "b")


# Bad input: refused before any work, in one line that names the value


def picture(value=0.0, shape=(1, 3, 8, 8), dtype=torch.float32):
    return torch.full(shape, value, dtype=dtype)


BAD_INPUT = [
    ({"images": "face.png"}, r"images must be a tensor \[N, 3, 8, 8\] in \[-1, 1\], not str"),
    ({"images": picture(3, dtype=torch.uint8)}, r"not torch.uint8; 8-bit: images.float\(\) / 127.5 - 1"),
    ({"images": picture(shape=(8, 8))}, r"must have shape \[N, 3, 8, 8\], not \[8, 8\]"),
    ({"images": picture(shape=(1, 4, 8, 8))}, r"must have shape \[N, 3, 8, 8\], not \[1, 4, 8, 8\]"),
    ({"images": picture(shape=(0, 3, 8, 8))}, r"not \[0, 3, 8, 8\]"),
    ({"images": picture(shape=(1, 3, 16, 16))}, "images are 16 x 16, the generator makes 8 x 8"),
    ({"images": picture(shape=(1, 3, 8, 16))}, "images are 8 x 16"),
    ({"images": picture(255.0)}, r"must lie in \[-1, 1\]; found 255 to 255"),
    ({"images": picture(-1.01)}, r"found -1.01"),
    ({"images": picture(math.nan)}, "not finite"),
    ({"images": picture(math.inf)}, "not finite"),
    ({"G": nn.Linear(2, 2)}, "not a generator: Linear has no 'mapping'"),
    ({"G": generator().prepare()}, "must be the generator itself, not a PreparedGenerator"),
    ({"method": "magic"}, "unknown method 'magic'; known are projector, image2stylegan"),
    ({"space": "v"}, r"space 'v' is no latent space for image2stylegan; it works in w\+, w, z"),
    ({"steps": -1}, "steps must be a whole number of at least 0, not -1"),
    ({"steps": 2.5}, "not 2.5"),
    ({"steps": True}, "not True"),
    ({"steps": "10"}, "not '10'"),
    ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ({"seed": "a"}, "seed must be a whole number"),
    ({"seed": 10**30}, "seed must be below 2"),
    (
        {"learning_rte": 0.1},
        r"unknown option 'learning_rte' for image2stylegan; did you mean learning_rate",
    ),
    ({"learning_rate": 0}, "learning_rate must be positive and finite, not 0"),
    ({"learning_rate": -0.1}, "learning_rate must be positive and finite, not -0.1"),
    ({"learning_rate": math.nan}, "learning_rate must be positive and finite, not nan"),
    ({"learning_rate": math.inf}, "learning_rate must be positive and finite, not inf"),
    ({"learning_rate": "fast"}, "learning_rate must be a float, not 'fast'"),
    ({"learning_rate": None}, "learning_rate must be a float, not None"),
    ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), not 1.0"),
    ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), not -0.1"),
    ({"ramp_up": 2.0}, r"ramp_up must be in \[0, 1\], not 2.0"),
    ({"ramp_down": -1.0}, r"ramp_down must be in \[0, 1\], not -1.0"),
    ({"pixel_weight": -1.0}, "pixel_weight must be at least 0, not -1.0"),
    ({"perceptual_weight": math.inf}, "perceptual_weight must be at least 0, not inf"),
    ({"layer_weights": ("a",)}, "layer_weights must be numbers of at least 0, not"),
    ({"layer_weights": (-1.0,)}, "layer_weights must be numbers of at least 0, not"),
    ({"method": []}, "unknown method \\[\\]"),
    ({"pixel_weight": 0.0, "perceptual_weight": 0.0}, "all others are 0: nothing would be optimised"),
    ({"start": "middle"}, "start must be mean or random, not 'middle'"),
    ({"start": 3}, "start must be a str, not 3"),
    ({"noise": "random"}, "noise must be const, none or optimize, not 'random'"),
    ({"normalize": "yes"}, "normalize must be a bool, not 'yes'"),
    ({"layers": "conv1_1"}, "layers must be a list, not 'conv1_1'"),
    ({"layers": (7,)}, "SmallNetwork has feature maps 0 to 0, not 7"),
    ({"layer_weights": (1.0, 2.0)}, "2 layer weights for 1 feature maps"),
    ({"trunk": "vgg19"}, "unknown trunk 'vgg19'"),
    ({"trunk": 3}, "unknown trunk 3"),
    ({"masks": "mask.png"}, r"masks must be a tensor \[N, 1, 8, 8\], not str"),
    ({"masks": torch.ones(4, 4)}, r"masks must have shape \[8, 8\] or \[1, 1, 8, 8\], not \[4, 4\]"),
    ({"masks": torch.ones(2, 1, 8, 8)}, r"not \[2, 1, 8, 8\]"),
    ({"masks": torch.full((8, 8), 255.0)}, r"masks must lie in \[0, 1\]; found 255 to 255"),
    ({"masks": torch.full((8, 8), math.nan)}, r"masks must lie in \[0, 1\]"),
    ({"masks": torch.zeros(8, 8)}, "the mask of picture 0 hides all of it"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=range(len(BAD_INPUT)))
def test_bad_input_is_refused_before_any_work(G, arguments, message, capsys):
    arguments = {"G": G, "images": picture(), "steps": 5, "trunk": SmallNetwork(), **arguments}
    work = []
    with pytest.raises(UsageError, match=message) as info:
        invert(**arguments, callback=lambda *_: work.append(1))
    assert not work and "\n" not in str(info.value)
    assert capsys.readouterr().err == ""


def test_tolerated_input(G):
    run(G, picture(1.0005), 0)  # rounding
    run(G, picture(dtype=torch.float16), 0)
    run(G, picture(), 0, masks=torch.ones(8, 8, dtype=torch.bool))
    run(G, picture(), 0, masks=torch.ones(1, 8, 8, dtype=torch.uint8), learning_rate=1)
    result = run(G, picture(), numpy.int64(1), learning_rate=numpy.float32(0.5))
    assert json.dumps(result.settings["options"]["learning_rate"]) == "0.5"
