"""Every method in every of its spaces, and every loss in every space, on a tiny generator in float64."""

import re
from pathlib import Path

import pytest
import torch
from losses_contract import SmallNetwork, pictures, soft_mask
from torch import nn
from torch.nn import functional

from fastinv.errors import UsageError
from fastinv.inversion import METHODS, InversionResult, invert
from fastinv.inversion.checkpoint import Checkpoints
from fastinv.inversion.image2stylegan import Image2StyleGAN
from fastinv.inversion.loop import Trace, ramped
from fastinv.inversion.method import Method
from fastinv.inversion.objective import build_terms, find_encoder
from fastinv.inversion.precision import prepare
from fastinv.inversion.spaces import NAMES
from fastinv.inversion.stylegan_encoder import lower_of
from fastinv.inversion.task import Task
from fastinv.latents import mean_latent, w_statistics
from fastinv.losses import PerceptualLoss, load_trunk, pnorm_statistics
from fastinv.models.discriminator import Discriminator
from fastinv.models.encoders import ReStylePSP
from fastinv.models.stylegan2 import Generator

SIDE = 16
SAMPLES = 2000  # of W, for P-norm
# The others have tests of their own: pti optimises weights and not codes, image2stylegan++ has two stages and tasks.
# Those without optimisation have, too.
OTHERS = ("pti", "image2stylegan++")
NAMES_HERE = [name for name, method in METHODS.items() if issubclass(method, Method) and name not in OTHERS]
CASES = [(name, space) for name in NAMES_HERE for space in METHODS[name].spaces]


def generator():
    torch.manual_seed(0)
    G = Generator(SIDE, z_dim=8, w_dim=8, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2)
    with torch.no_grad():
        G.mapping.w_avg.copy_(G.mapping(torch.randn(500, 8))[:, 0].mean(0))
        for layer in G.synthesis.noise_layers():
            G.synthesis.get_submodule(layer).noise_strength.fill_(0.1)
    return G.eval().double()


class LinearEncoder(nn.Module):
    """A least-squares fit of w to pictures of 4x4 pixels, on samples of a generator."""

    def __init__(self, G, samples=400):
        super().__init__()
        self.num_ws, self.w_dim = G.num_ws, G.w_dim
        with torch.no_grad():
            w_plus = G.mapping(torch.randn(samples, G.z_dim, generator=torch.Generator().manual_seed(5)).double())
            solution = torch.linalg.lstsq(self.pixels(G.synthesis(w_plus)), w_plus[:, 0]).solution
        self.register_buffer("solution", solution)

    @staticmethod
    def pixels(images):
        return functional.pad(functional.adaptive_avg_pool2d(images, 4).flatten(1), (0, 1), value=1.0)

    def encode(self, images):
        # Not @, whose bits depend on the number of threads.
        w = (self.pixels(images).unsqueeze(2) * self.solution).sum(1)
        return w.unsqueeze(1).repeat(1, self.num_ws, 1)


@pytest.fixture(scope="module")
def G():
    return generator()


@pytest.fixture(scope="module")
def encoder(G):
    return LinearEncoder(G)


@pytest.fixture(scope="module")
def images(G):
    """Three pictures that the generator can make, up to the clamp."""
    with torch.no_grad():
        z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
        return G.synthesis(G.mapping(z)).clamp(-1, 1)


@pytest.fixture
def small(monkeypatch):
    """A smaller stand-in for LPIPS, and fewer samples of W: the real ones would take most of the time here."""

    def load(kind, target, mask=None):
        trunk, _ = load_trunk(SmallNetwork(), dtype=target.dtype)
        return PerceptualLoss(target, trunk, mask=mask), {"name": "attributes"}

    monkeypatch.setattr("fastinv.inversion.objective.load_perceptual", load)
    monkeypatch.setattr("fastinv.inversion.objective.pnorm_statistics", lambda G: pnorm_statistics(G, SAMPLES))


@pytest.fixture
def run(G, images, encoder, small):
    def run(method, space=None, targets=images, **options):
        own = {"idinvert": {"encoder": encoder, "learning_rate": 0.05}, "projector": {"noise_weight": 1.0}}
        options = {"steps": 30, "trunk": SmallNetwork(), "progress": False, "features_at": 8} | options
        if method != "projector":
            options.pop("w_noise", None)
        return invert(G, targets, method, space, **own.get(method, {}) | options)

    return run


def same_bits(one, two):
    tensors = [(one.w_plus, two.w_plus), (one.images, two.images)]
    tensors += [(one.losses[name], two.losses[name]) for name in one.losses]
    tensors += [(one.codes[name], two.codes[name]) for name in one.codes]
    return one.codes.keys() == two.codes.keys() and all(
        torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in tensors
    )


# What every method does


@pytest.mark.parametrize("method, space", CASES)
def test_the_loss_falls(run, method, space):
    result = run(method, space, steps=60)
    curve = result.losses["total"]
    assert (curve[-1] < 0.7 * curve[0]).all()
    assert all(best > 30 for best in result.metrics["best_step"])
    torch.testing.assert_close(
        curve, sum(value.nan_to_num(0) for name, value in result.losses.items() if name != "total")
    )


@pytest.mark.parametrize("method, space", CASES)
def test_a_batch_equals_single_runs_and_the_seed_decides_the_bits(run, images, method, space):
    together = run(method, space, seed=3)
    for row in range(len(images)):
        alone = run(method, space, images[row], seed=3)
        torch.testing.assert_close(together[row].w_plus, alone.w_plus, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(together[row].images, alone.images, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(together[row].losses["total"], alone.losses["total"], rtol=1e-6, atol=1e-10)
    torch.manual_seed(9)
    assert same_bits(run(method, space, seed=3), together)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(method, space, seed=3, steps=3))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(*results)


@pytest.mark.parametrize("method, space", CASES)
def test_hidden_pixels_have_no_say(run, G, images, method, space):
    mask = torch.ones(SIDE, SIDE, dtype=torch.float64)
    mask[:, 9:] = 0
    start = G.w_avg.expand(G.num_ws, -1)  # of idinvert, whose encoder sees the whole picture
    changed = torch.where(mask > 0, images, -images)
    one, two = (run(method, space, targets, steps=12, masks=mask, init=start) for targets in (images, changed))
    assert torch.equal(one.w_plus, two.w_plus) and torch.equal(one.losses["total"], two.losses["total"])
    assert not torch.equal(run(method, space, steps=12, init=start).w_plus, one.w_plus)


@pytest.mark.parametrize("method, space", CASES)
def test_pictures_stop_by_themselves(run, images, method, space):
    free = run(method, space, steps=40, stop_patience=None)
    lowest = free.losses["total"].cummin(0).values
    limit = float(lowest[20].median()) * (1 + 1e-6)  # two pictures are done after 20 steps; no rounding decides
    options = {"steps": 40, "stop_patience": None, "stop_loss": limit}
    stopped = run(method, space, **options)
    early = [row for row, why in enumerate(stopped.metrics["finished"]) if why == "loss reached"]
    assert set((lowest[20] <= limit).nonzero().flatten().tolist()) <= set(early)
    assert set(early) <= set((lowest[-1] <= limit).nonzero().flatten().tolist())
    for row in range(len(images)):
        assert (stopped.metrics["steps"][row] < 40) == (row in early)
        alone = run(method, space, images[row], **options)
        assert alone.metrics["steps"] == stopped[row].metrics["steps"]
        torch.testing.assert_close(stopped[row].images, alone.images, rtol=1e-6, atol=1e-8)
    patient = run(method, space, steps=100, learning_rate=1e-9, w_noise=0.0, stop_patience=10, stop_plateau=0.5)
    assert patient.metrics["finished"] == ["no more progress"] * 3


class Killed(Exception):
    pass


@pytest.mark.parametrize("method, space", CASES)
def test_a_killed_run_goes_on_with_the_same_bits(run, method, space, tmp_path, monkeypatch):
    monkeypatch.setattr("fastinv.inversion.checkpoint.SHARE", 0)  # save whenever the loop asks
    whole, checkpoints = run(method, space, steps=50), Checkpoints(tmp_path, 0.0)
    for last in (13, 27, 49):  # in f+w+ the last one is among the features

        def callback(step, *_, last=last):
            if step == last:
                raise Killed

        with pytest.raises(Killed):
            run(method, space, steps=50, checkpoints=checkpoints, callback=callback)
    assert list(tmp_path.glob("stage-*.state.safetensors"))
    assert same_bits(run(method, space, steps=50, checkpoints=checkpoints), whole)
    assert same_bits(run(method, space, steps=50, checkpoints=checkpoints), whole)  # all is there


@pytest.mark.parametrize("method, space", CASES)
def test_a_saved_result_gives_the_same_pictures(run, G, method, space, tmp_path):
    result = run(method, space, steps=5)
    loaded = InversionResult.load(result.save(tmp_path / "result"))
    torch.testing.assert_close(result.render(G), result.images, rtol=1e-12, atol=1e-12)
    assert torch.equal(loaded.render(G), result.render(G))
    assert torch.equal(loaded.w_plus, result.w_plus) and loaded.metrics == result.metrics
    assert all(torch.equal(loaded.codes[name], value) for name, value in result.codes.items())


@pytest.mark.parametrize("method", [name for name in NAMES_HERE if "w+" in METHODS[name].spaces])
def test_coarse_to_fine(run, method):
    options = {"ms_ssim_weight": 0.0} if method == "stylegan-encoder" else {}  # its windows do not fit into 8x8
    result = run(method, "w+", steps=40, coarse_resolution=8, **options)
    curve = result.losses["total"]
    assert len(curve) >= 21 + 21 and result.images.shape[-1] == SIDE
    assert (curve[20] < curve[0]).all() and (curve[41] < curve[21]).all()
    if method == "projector":  # noise on w goes on, as do steps: in its second stage there is little left
        assert result.metrics["best_step"] == [41] * 3
    if method == "stylegan-encoder":
        with pytest.raises(UsageError, match="at least 11x11 pixels"):
            run(method, coarse_resolution=8)
        with pytest.raises(UsageError, match="coarse_resolution does not go with discriminator_weight"):
            run(method, coarse_resolution=8, discriminator_weight=1.0)


# Every loss in every space


LOSSES = {
    "pixel": {}, "l1": {"pixel_loss": "l1"}, "log-cosh": {"pixel_loss": "log-cosh"}, "perceptual": {},
    "perceptual log-cosh": {"feature_loss": "log-cosh"}, "lpips": {}, "ms_ssim": {}, "mean": {}, "p_norm": {},
    "discriminator": {}, "domain": {}, "noise": {"noise": "optimize"},
}  # fmt: skip
TERMS = {"l1": "pixel", "log-cosh": "pixel", "perceptual log-cosh": "perceptual"}  # else of the same name
NOT_IN_S = ("p_norm", "domain")


def method_for(loss, encoder, **options):
    term = TERMS.get(loss, loss)
    weights = {"pixel_weight": 1.0, "perceptual_weight": 0.0} | {f"{term}_weight": 0.7}
    others = {"trunk": SmallNetwork(), "features_at": 8}
    if term == "discriminator":
        torch.manual_seed(4)
        others["discriminator"] = Discriminator(SIDE, channels={4: 8, 8: 8, 16: 8}).double()
    if term == "domain":
        others["encoder"] = encoder
    return Image2StyleGAN(**weights, **others, **LOSSES[loss], **options)


@pytest.mark.parametrize("space", NAMES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_agrees_with_finite_differences(G, encoder, small, loss, space, masked):
    method = method_for(loss, encoder, noise_start="random")
    if space == "s" and loss in NOT_IN_S:
        with pytest.raises(UsageError, match=f"{loss}_weight is for codes in W"):
            method.check_space(space)
        return
    method.check_space(space)
    target, mask = pictures(2, SIDE), soft_mask(2, SIDE) if masked else None
    task = Task(G, prepare(G, None, target)[0], target, mask, space, seed=2)
    place = method.space(task)
    terms = {term.name: term for term in build_terms(method, task, target, mask)}
    term, step = terms[TERMS.get(loss, loss)], torch.zeros(1, dtype=torch.long)
    random = torch.Generator().manual_seed(6)

    def noise_like(value):
        return torch.randn(value.shape, generator=random, dtype=value.dtype)

    start = method.start_variables(task, place)
    start = {name: value + 0.1 * noise_like(value) for name, value in start.items()}

    def value(variables):
        return term(*method.render(task, place, variables, step)).sum()

    free = [name for name in start if name not in place.frozen_variables()]
    variables = {name: tensor.clone().requires_grad_(name in free) for name, tensor in start.items()}
    gradients = torch.autograd.grad(value(variables), [variables[name] for name in free], allow_unused=True)
    seen = False
    for name, gradient in zip(free, gradients, strict=True):
        direction = noise_like(start[name])
        ends = [value(start | {name: start[name] + sign * 1e-6 * direction}) for sign in (1, -1)]
        found = 0.0 if gradient is None else (gradient * direction).sum()
        expected = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), expected, rtol=1e-5, atol=1e-8)
        seen = seen or expected.item() != 0
    assert seen


def test_the_gradient_with_the_attribute_network(G):
    target = pictures(1, SIDE)
    method = Image2StyleGAN(pixel_weight=0.0, perceptual_weight=0.0, lpips_weight=1.0)
    task = Task(G, G, target, None, "w+", seed=0)
    (term,), w = build_terms(method, task, target, None), method.start_codes(task).clone().requires_grad_()
    direction = torch.randn(w.shape, generator=torch.Generator().manual_seed(0), dtype=w.dtype)
    (gradient,) = torch.autograd.grad(term(G.synthesis(w), None).sum(), w)
    with torch.no_grad():
        ends = [term(G.synthesis(w + sign * 1e-6 * direction), None).sum() for sign in (1, -1)]
    torch.testing.assert_close((gradient * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8)


# The documented tables


def table(title):
    """A table of docs/inversion.md: row -> column -> whether the two go together."""
    text = (Path(__file__).parent.parent / "docs" / "inversion.md").read_text()
    lines = re.search(rf"\n\| {title} \|.*\n((?:\|.*\n)+)", text)[0].strip().splitlines()
    cells = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {
        row[0]: {column: cell != "-" for column, cell in zip(cells[0][1:], row[1:], strict=True)} for row in cells[2:]
    }


def test_the_table_of_methods_and_spaces_is_what_is_enforced(G, images):
    found = table("method")
    assert set(found) == set(METHODS)
    for name, row in found.items():
        assert row == {space: space in METHODS[name].spaces for space in NAMES}
        for space in set(NAMES) - set(METHODS[name].spaces):
            with pytest.raises(UsageError, match="does not work for"):
                invert(G, images, name, space)


def test_the_table_of_losses_and_spaces_is_what_is_enforced(encoder):
    found, losses = table("loss"), {}
    for name, row in found.items():
        assert set(row) == set(NAMES)
        for space, valid in row.items():
            try:
                method_for(name, encoder).check_space(space)
                assert valid, (name, space)
            except UsageError:
                assert not valid, (name, space)
        losses[name] = row
    with pytest.raises(UsageError, match="noise_weight is for optimised noise maps"):
        Image2StyleGAN(noise_weight=1.0).check_space("w+")
    Image2StyleGAN(noise_weight=1.0).check_space("w+noise")
    fields = {name.removesuffix("_weight") for name in Image2StyleGAN.__dataclass_fields__ if name.endswith("_weight")}
    assert set(losses) == fields


# projector


def test_noise_on_w_is_the_formula_and_the_same_for_all_pictures(run, G, images):
    method = METHODS["projector"](steps=8)
    for space, vectors in (("w", 1), ("w+", G.num_ws)):
        task = Task(G, G, images, None, space, seed=4)
        method.tabulate(task)
        draws = torch.randn(9, vectors, 8, generator=torch.Generator().manual_seed(-5), dtype=torch.float64)
        deviation = w_statistics(G, 10_000, 123).radius
        seen = 0
        for step in range(9):
            expected = draws[step] * deviation * 0.05 * max(0.0, 1 - step / 8 / 0.75) ** 2
            variables = {"w": torch.zeros(3, vectors, 8, dtype=torch.float64)}
            _, codes = method.render(task, method.space(task), variables, torch.tensor([step]))
            torch.testing.assert_close(codes["w_plus"], expected.expand(3, G.num_ws, -1), rtol=1e-5, atol=1e-12)
            seen += bool(codes["w_plus"].any())
        assert seen == 6
    with pytest.raises(UsageError, match=r"w_noise must be in \[0, 1\], not 2"):
        METHODS["projector"](w_noise=2.0)


def test_projector_starts_at_the_mean_of_samples_with_random_maps_and_keeps_the_last(run, G):
    start = run("projector", steps=0, noise_start="random", seed=7)
    mean = w_statistics(G, 10_000, 123).mean.double()
    torch.testing.assert_close(start.w_plus, mean.expand_as(start.w_plus))
    random = torch.Generator().manual_seed(7)
    for layer, side in G.synthesis.noise_layers().items():
        assert torch.equal(
            start.codes[f"noise.{layer}"][1:], torch.randn(1, 1, side, side, generator=random).expand(2, -1, -1, -1)
        )
    result = run("projector", steps=20)
    assert result.metrics["best_step"] == [20] * 3
    for name, maps in result.codes.items():
        assert name.startswith("noise.")
        torch.testing.assert_close(maps.mean((1, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(maps.square().mean((1, 2, 3)), torch.ones(3).double())


def test_projector_is_adam_in_plain_torch(run, G, images):
    """The paper's algorithm written down once more, without the loop, for one picture."""
    steps, target = 6, images[:1]
    statistics = w_statistics(G, 10_000, 123)
    w = statistics.mean.double().view(1, 1, 8).clone().requires_grad_()
    random = torch.Generator().manual_seed(2)
    sides = G.synthesis.noise_layers()
    maps = {
        layer: torch.randn(1, 1, side, side, generator=random).double().requires_grad_()
        for layer, side in sides.items()
    }
    draws = torch.randn(steps + 1, 1, 8, generator=torch.Generator().manual_seed(-3), dtype=torch.float64)
    optimizer = torch.optim.Adam([w, *maps.values()], lr=0.1, betas=(0.9, 0.999))
    features = SmallNetwork().double().features
    rate = ramped(0.05, 0.25)
    for step in range(steps):
        t = step / steps
        noisy = w + draws[step] * statistics.radius * 0.05 * max(0.0, 1 - t / 0.75) ** 2
        picture = G.synthesis(noisy.expand(1, G.num_ws, 8), noise=maps)
        distance = sum((a - b).square().mean() for a, b in zip(features(picture), features(target), strict=True))
        regularizer = 0.0
        for level in maps.values():
            while True:
                for axis in (2, 3):
                    regularizer = regularizer + (level * level.roll(1, axis)).mean().square()
                if level.shape[2] <= 8:
                    break
                level = functional.avg_pool2d(level, 2)
        optimizer.param_groups[0]["lr"] = 0.1 * rate(step, steps)
        optimizer.zero_grad()
        (0.35 * distance + 1e5 * regularizer).backward()
        optimizer.step()
        with torch.no_grad():
            for value in maps.values():
                value -= value.mean()
                value *= value.square().mean().rsqrt()
    result = run("projector", targets=target, steps=steps, seed=2, noise_weight=1e5)
    torch.testing.assert_close(result.w_plus, w.detach().expand(1, G.num_ws, 8), rtol=1e-5, atol=1e-7)
    for layer, value in maps.items():
        torch.testing.assert_close(result.codes[f"noise.{layer}"], value.detach(), rtol=1e-5, atol=1e-6)


def test_projector_without_optimised_noise(run, G):
    assert run("projector", steps=2, noise="const", noise_weight=0.0).codes == {}
    with pytest.raises(UsageError, match="noise_weight is for optimised noise maps"):
        run("projector", noise="const")


# p-norm


def test_the_prior_keeps_codes_near_the_latents(run, G):
    statistics = pnorm_statistics(G, SAMPLES)

    def size(result):
        v = (functional.leaky_relu(result.w_plus, 5.0) - statistics.mean) @ statistics.directions.T / statistics.std
        return v.square().mean((1, 2))

    free, held = (run("p-norm", steps=60, p_norm_weight=weight) for weight in (0.0, 1.0))
    assert (size(held) < 0.7 * size(free)).all()
    torch.testing.assert_close(held.losses["p_norm"][held.metrics["best_step"][0], 0], size(held)[0])


def test_features_are_optimised_after_the_codes(run, G, images):
    result = run("p-norm", "f+w+", steps=20, features_part=0.25)
    codes = run("p-norm", "w+", steps=15, ramp_up=0.05)
    assert len(result.losses["total"]) == 16 + 6
    torch.testing.assert_close(result.losses["total"][:16], codes.losses["total"])
    torch.testing.assert_close(result.losses["total"][16], codes.losses["total"].min(0).values, rtol=1e-6, atol=0)
    assert result.codes["features"].shape == (3, 8, 8, 8) and result.codes["picture"].shape == (3, 3, 8, 8)
    assert (torch.tensor(result.metrics["mse"]) < torch.tensor(codes.metrics["mse"])).all()
    with pytest.raises(UsageError, match=r"features_part must be in \[0, 1\], not 3"):
        run("p-norm", "f+w+", features_part=3.0)
    ended = run("p-norm", "f+w+", steps=20, callback=lambda step, *_: step == 4)
    assert ended.settings["stopped"] and ended.codes == {}


# stylegan-encoder


def test_the_average_is_the_running_mix_of_the_best_codes(run, G):
    """In plain torch: codes seen by the callback, mixed at each new lowest loss."""
    seen = []
    method = METHODS["stylegan-encoder"]
    options = {"learning_rate": 0.5, "ramp_down": 0.0, "stop_patience": None, "clip": None, "steps": 25}
    original = method.render

    def render(self, task, space, variables, step, resolution=None):
        seen.append(variables["w"].detach().clone())
        return original(self, task, space, variables, step, resolution)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "render", render)
        result = run("stylegan-encoder", **options)
    totals = result.losses["total"]
    assert len(seen) == len(totals) == 27
    mixed, lowest = seen[0].clone(), totals[0].clone()
    for step in range(1, 26):
        for row in (totals[step] < lowest).nonzero().flatten():
            mixed[row] = 0.25 * mixed[row] + 0.75 * seen[step][row]
            lowest[row] = totals[step, row]
    torch.testing.assert_close(seen[26], mixed)
    for row in range(3):
        best = 26 if totals[26, row] < lowest[row] else int(totals[:26, row].argmin())
        assert result.metrics["best_step"][row] == best
        torch.testing.assert_close(result.w_plus[row], seen[best][row].expand(G.num_ws, -1))
    plain = run("stylegan-encoder", **options, average_best_loss=0.0)
    torch.testing.assert_close(plain.losses["total"], totals[:26])
    with pytest.raises(UsageError, match=r"average_best_loss must be in \[0, 1\), not 1"):
        run("stylegan-encoder", average_best_loss=1.0)


def test_of_each_picture_the_lower_of_two_is_taken():
    first = Trace(
        {"w": torch.tensor([[1.0], [2.0]])},
        {"total": torch.tensor([[5.0, 5], [3, 4]]).double()},
        torch.ones(2).long(),
        1,
        False,
        {},
        {0: (1, "x")},
    )
    other = Trace(
        {"w": torch.tensor([[10.0], [20.0]])},
        {"total": torch.tensor([[2.0, 6]]).double()},
        torch.zeros(2).long(),
        0,
        False,
    )
    both = lower_of(first, other)
    assert both.variables["w"].tolist() == [[10.0], [2.0]] and both.best_step.tolist() == [2, 1]
    assert both.losses["total"].tolist() == [[5, 5], [3, 4], [2, 6]]
    assert both.steps == 1 and both.finished == {0: (1, "x")}


@pytest.mark.parametrize("space", ["w+", "w"])
def test_codes_are_clipped_to_random_places_within(run, G, space):
    deviation, mean = w_statistics(G).std.double(), mean_latent(G)
    options = {"learning_rate": 0.5, "stop_patience": None, "average_best_loss": 0.0}
    clipped, free = (run("stylegan-encoder", space, clip=clip, **options) for clip in (0.5, None))
    assert ((clipped.w_plus - mean).abs() <= 0.5 * deviation * (1 + 1e-9)).all()
    assert ((free.w_plus - mean).abs() > 0.5 * deviation).any()
    with pytest.raises(UsageError, match="clip must be above 0, or None"):
        run("stylegan-encoder", clip=0.0)
    with pytest.raises(UsageError, match="set clip to None"):
        run("stylegan-encoder", precondition=0.5)
    assert run("stylegan-encoder", space, precondition=0.5, clip=None).losses["total"].isfinite().all()


def test_it_starts_from_an_encoder_a_guess_or_the_mean(run, G, images, encoder):
    guess = encoder.encode(images)
    found = run("stylegan-encoder", steps=0, encoder=encoder)
    torch.testing.assert_close(found.w_plus, guess)
    assert found.settings["init"]["encoder"] == "LinearEncoder"
    torch.testing.assert_close(run("stylegan-encoder", steps=0, init=guess).w_plus, guess)
    torch.testing.assert_close(run("stylegan-encoder", steps=0).w_plus, G.w_avg.expand_as(guess))
    assert found.losses.keys() == {"total", "pixel", "perceptual", "lpips", "ms_ssim", "mean"}


# idinvert


def test_idinvert_is_the_formula_from_the_encoders_code(run, G, images, encoder):
    found = run("idinvert", steps=1)
    w = encoder.encode(images)
    with torch.no_grad():
        picture = G.synthesis(w)
    features = SmallNetwork().double().features
    pairs = zip(features(picture), features(images), strict=True)
    expected = {
        "pixel": (picture - images).square().mean((1, 2, 3)),
        "perceptual": 0.17 * sum((a - b).square().mean((1, 2, 3)) for a, b in pairs),
        "domain": 2 * (w - encoder.encode(picture)).square().mean((1, 2)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.losses[name][0], value.detach())
    torch.testing.assert_close(found.losses["total"][0], sum(expected.values()).detach())


def test_idinvert_stays_nearer_to_the_encoders_domain(run, G, encoder):
    distances = []
    for weight in (0.0, 10.0):
        result = run("idinvert", domain_weight=weight, steps=60)
        distances.append((result.w_plus - encoder.encode(result.images)).square().mean((1, 2)))
    assert (distances[1] < 0.5 * distances[0]).all()


def test_idinvert_says_how_an_encoder_is_given(G, images):
    with pytest.raises(UsageError, match=r"idinvert starts from an encoder's code.*give encoder=.*fastinv models"):
        invert(G, images, "idinvert")
    with pytest.raises(UsageError, match=r"must have encode\(images\).*a Linear has none"):
        invert(G, images, "idinvert", encoder=nn.Linear(1, 1))


def test_encoders_that_need_the_generator(G, images):
    torch.manual_seed(0)
    body = {"num_ws": G.num_ws, "w_dim": G.w_dim, "input_resolution": 16, "units": (1, 1), "channels": (4, 6)}
    restyle = ReStylePSP(**body).double().eval()
    with torch.no_grad():
        expected = restyle.encode(images, G)
        torch.testing.assert_close(find_encoder(restyle, G).encode(images), expected)
    options = {"pixel_weight": 0.0, "perceptual_weight": 0.0, "progress": False, "steps": 3}
    result = invert(G, images, "idinvert", encoder=restyle, **options)
    with torch.no_grad():
        distance = 2 * (expected - restyle.encode(G.synthesis(expected), G)).square().mean((1, 2))
    torch.testing.assert_close(result.losses["domain"][0], distance)
