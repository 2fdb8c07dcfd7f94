"""Pivotal tuning: weights tuned around a code, and their small difference in a result."""

import copy
import math

import pytest
import torch
from test_inversion import SmallNetwork, generator, run

import fastinv
from fastinv.errors import UsageError
from fastinv.inversion import METHODS, InversionResult, NonFiniteLossError, invert
from fastinv.inversion.checkpoint import Checkpoint, Checkpoints
from fastinv.inversion.locality import Locality
from fastinv.inversion.pti import PTI, Tunable
from fastinv.inversion.spaces import NAMES
from fastinv.inversion.task import Task
from fastinv.inversion.weights import compress, difference
from fastinv.latents import truncate
from fastinv.losses import load_perceptual, psnr
from fastinv.models.stylegan1 import StyleGAN1Generator

STEPS = 20
# The trunk of the other tests in the place of LPIPS, which needs larger pictures where VGG-16 is installed.
OPTIONS = {
    "method": "pti", "steps": STEPS, "learning_rate": 5e-3, "lpips_weight": 0.0, "perceptual_weight": 1.0,
    "pivot_options": {"steps": 15},
}  # fmt: skip


@pytest.fixture(scope="module")
def G():
    return generator()


@pytest.fixture(scope="module")
def images(G):
    """Three pictures that the generator cannot quite make."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        pictures = G.synthesis(G.mapping(torch.randn(3, 8, generator=random)))
    return (pictures + 0.2 * torch.randn(pictures.shape, generator=random)).clamp(-1, 1)


def tune(G, images, **options):
    return run(G, images, **{**OPTIONS, **options})


def same_results(a, b):
    assert a.codes.keys() == b.codes.keys() and a.losses.keys() == b.losses.keys()
    tensors = [(a.w_plus, b.w_plus), (a.images, b.images), *((a.codes[name], b.codes[name]) for name in a.codes)]
    return all(torch.equal(x, y) for x, y in tensors) and all(
        torch.equal(curve.nan_to_num(-1), b.losses[name].nan_to_num(-1)) for name, curve in a.losses.items()
    )


# What tuning does


def test_the_tuned_generator_beats_the_pivot_and_g_stays_as_it_is(G, images):
    before = copy.deepcopy(G.state_dict())
    pivot = run(G, images, steps=15, space="w")
    result = tune(G, images, steps=60)
    assert torch.equal(result.w_plus, pivot.w_plus)
    assert all(after > first + 3 for first, after in zip(pivot.metrics["psnr"], result.metrics["psnr"], strict=True))
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert result.settings["pivot"] == {"method": "image2stylegan", "steps": 15}
    assert result.settings["options"]["pivot_options"] == {"steps": 15}
    assert result.metrics["steps"] == [75] * 3 and len(result.losses["total"]) == 16 + 61


@pytest.mark.parametrize("masked", [False, True])
def test_the_steps_are_those_of_adam_in_plain_torch(images, masked):
    G = generator().double()
    target = images.double()
    mask = torch.ones(3, 1, 8, 8, dtype=torch.float64)
    if masked:
        mask[1, :, :, 4:], mask[2] = 0.0, 0.25
    result = tune(G, target, masks=mask if masked else None, perceptual_weight=0.5)
    for row in range(3):
        tuned = copy.deepcopy(G).requires_grad_()
        adam = torch.optim.Adam(tuned.synthesis.parameters(), lr=5e-3)
        trunk = SmallNetwork().double()
        curve = []
        for step in range(STEPS + 1):
            picture = tuned.synthesis(result.w_plus[row : row + 1])  # not `once`: the composed layers
            d = (picture - target[row]) * mask[row]
            features = trunk.features(picture * mask[row])[0] - trunk.features(target[row : row + 1] * mask[row])[0]
            shrunk = torch.nn.functional.interpolate(mask[row : row + 1], size=features.shape[2:], mode="area")
            loss = d.square().mean() + 0.5 * (features * shrunk).square().mean()
            curve.append(loss.item())
            adam.zero_grad()
            loss.backward()
            if step < STEPS:
                adam.step()
        expected = torch.tensor(curve, dtype=torch.float64)
        torch.testing.assert_close(result.losses["total"][16:, row], expected, rtol=1e-6, atol=0)
        for name, parameter in G.synthesis.named_parameters():  # what is kept is the last one, rounded
            change = dict(tuned.synthesis.named_parameters())[name] - parameter
            kept = difference(result.codes, name, parameter)[row]
            step = (change.abs().flatten(1).amax(1) / 7 if change.ndim > 1 else change.new_zeros(1)).amax().item()
            assert (kept - change).abs().max() <= 0.51 * step + 1e-9, name


def test_a_picture_in_a_batch_gets_what_it_gets_alone(G, images):
    together = tune(G, images)
    alone = tune(G, images[1:2], init=together.w_plus[1:2])
    assert torch.equal(together.images[1:2], alone.images)
    assert torch.equal(together.losses["total"][16:, 1:2], alone.losses["total"])
    assert all(torch.equal(value[1:2], alone.codes[name]) for name, value in together.codes.items())


@pytest.mark.parametrize("space", NAMES)
def test_every_space_of_the_pivot(G, images, space):
    pivot = {"steps": 5} | ({"features_at": 4} if space == "f+w+" else {})
    result = tune(G, images[:2], space=space, pivot_options=pivot)
    start, end = result.losses["total"][6], result.losses["total"][-1]
    assert (end < start).all()
    tuned = {name.removeprefix("weights.") for name in result.codes if name.startswith("weights.")}
    has_say = [name for name in dict(G.synthesis.named_parameters()) if name in tuned]
    if space == "s":
        assert has_say and not any("affine" in name for name in has_say)
    elif space == "f+w+":
        assert has_say and not any(name.startswith("b4") for name in has_say)
    else:
        assert len(has_say) == len(list(G.synthesis.parameters()))
    assert torch.equal(result.render(G), result.images)


def test_codes_that_are_given_are_the_pivot(G, images):
    code = G.mapping(torch.randn(3, 8)).detach()
    result = tune(G, images, init=code)
    assert torch.equal(result.w_plus, code) and result.settings["pivot"] == "init"
    assert len(result.losses["total"]) == STEPS + 1


def test_all_codes_of_a_result_are_the_pivot_and_its_weights_go_on(G, images):
    noisy = run(G, images, steps=10, space="w+noise")
    result = tune(G, images, init=noisy)
    name = "noise.b8.conv0"
    assert torch.equal(result.codes[name], noisy.codes[name])
    first = result.losses["total"][0] - noisy.losses["total"].min(0).values
    assert first.abs().max() < 1e-5
    more = tune(G, images, init=result)  # from the rounded weights
    pixel = (result.images - images).square().mean((1, 2, 3))
    torch.testing.assert_close(more.losses["pixel"][0].float(), pixel, rtol=1e-4, atol=0)
    assert (more.losses["total"][-1] < result.losses["total"][-1]).all()


def test_only_the_chosen_parameters_change(G, images):
    result = tune(G, images, parameters=("b8.conv?.weight", "*.bias"))
    tuned = result.generator(G, 2).synthesis.state_dict()
    changed = {name for name, value in G.synthesis.state_dict().items() if not torch.equal(value, tuned[name])}
    biases = {name for name in tuned if name.endswith(".bias")}
    assert changed == biases | {"b8.conv0.weight", "b8.conv1.weight"}


def test_stylegan1_and_noise_none(images):
    torch.manual_seed(0)
    G = StyleGAN1Generator(8, z_dim=8, w_dim=8, channels={4: 8, 8: 8}, mapping_layers=2).eval()
    result = tune(G, images, noise="none")
    assert (result.losses["total"][-1] < result.losses["total"][16]).all()
    assert torch.equal(result.render(G), result.images)
    assert not any("noise_strength" in name for name in result.codes)


def test_a_half_precision_generator_is_tuned_in_float32(images):
    G = generator().to(torch.bfloat16)
    result = tune(G, images, learning_rate=1e-3)
    assert (result.losses["total"][-1] < result.losses["total"][16]).all()
    assert result.generator(G).w_avg.dtype == torch.float32 and G.w_avg.dtype == torch.bfloat16


# When it ends


def test_a_picture_is_finished_at_the_perceptual_distance(G, images):
    images, options = images[:2], {"lpips_weight": 2.0, "perceptual_weight": 0.0, "steps": 30}
    if load_perceptual("auto", torch.zeros(1, 3, 64, 64))[1]["name"] == "lpips":
        pytest.skip("LPIPS does not take pictures as small as these")
    free = tune(G, images, stop_lpips=0.0, **options)
    assert free.metrics["finished"] == [""] * 2
    distances = free.losses["lpips"][16:] / 2
    limit = distances[15].mean().item()
    result = tune(G, images, stop_lpips=limit, **options)
    for row in range(2):
        low = [step for step in range(0, 30, 10) if distances[step, row] <= limit]
        expected = (15 + low[0], "lpips reached") if low else (45, "")
        assert (result.metrics["steps"][row], result.metrics["finished"][row]) == expected
    assert result.settings["stop_lpips"] == limit and "lpips reached" in result.metrics["finished"]
    assert tune(G, images, **options | {"steps": 0}).settings["stop_lpips"] == 0.001


class Poisoned(SmallNetwork):
    """Its features are NaN in the calls from ``first`` to ``last``."""

    first, last, calls = 26, 33, 0

    def features(self, images):
        self.calls += 1
        (maps,) = super().features(images)
        return [maps * math.nan if self.first <= self.calls <= self.last else maps]


def test_a_picture_with_nan_leaves_the_others_alone(G, images):
    good = tune(G, images, pivot_options={"steps": 15, "trunk": SmallNetwork()})
    with pytest.raises(NonFiniteLossError) as error:  # call 1 is the targets, 2 to 22 are the first picture's
        tune(G, images, trunk=Poisoned(), pivot_options={"steps": 15, "trunk": SmallNetwork()})
    result = error.value.result
    assert error.value.failed == {1: 3}
    assert torch.equal(result.images[[0, 2]], good.images[[0, 2]])
    assert result.images.isfinite().all()
    assert all(value[[0, 2]].equal(good.codes[name][[0, 2]]) for name, value in result.codes.items())
    assert psnr(result.images, images)[1] > run(G, images, 15, space="w").metrics["psnr"][1] - 0.01


def test_the_callback_sees_all_pictures_and_can_end_it(G, images):
    seen = []

    def callback(step, losses, pictures):
        seen.append((step, losses["total"].isfinite().tolist(), pictures.isfinite().all(3).all(2).all(1).tolist()))
        return step == 15 + 1 + STEPS + 4

    result = tune(G, images, callback=callback)
    assert [step for step, *_ in seen[:17]] == [*range(16), 15] and seen[3][1] == [True] * 3
    assert seen[20][1:] == ([True, False, False],) * 2 and seen[-1][1:] == ([False, True, False],) * 2
    assert result.settings["stopped"] and result.images.isfinite().all()
    steps = [float(result.codes["weights.b8.conv0.bias"][row].abs().max()) for row in range(3)]
    assert steps[0] > 0 and steps[1] > 0 and steps[2] == 0
    assert tune(G, images, callback=lambda step, *_: step == 3).codes.keys() == set()  # in the pivot's stage


class Killed(Exception):
    pass


@pytest.mark.parametrize("locality", [False, True])
def test_a_killed_tuning_goes_on_with_the_same_bits(G, images, locality, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    options = {"locality": locality, "locality_lpips": 0.0}
    whole = tune(G, images, **options)
    for last in (12, 15 + 13, 15 + STEPS + 14):  # in the pivot, in the first picture, in the second

        def callback(step, *_, last=last):
            if step == last:
                raise Killed

        with pytest.raises(Killed):
            tune(G, images, checkpoints=Checkpoints(tmp_path), callback=callback, **options)
    begun = []
    options["callback"] = lambda step, *_: begun.append(step)
    assert same_results(tune(G, images, checkpoints=Checkpoints(tmp_path), **options), whole)
    assert begun[0] == 15 + STEPS + 11  # the second picture's state after 11 updates was the last to be kept


# The locality regulariser


def locality(G, images, network, **options):
    method = PTI(steps=8, locality=True, **options)
    task = Task(G, G, images, None, "w", 5)
    return Locality(method, task, network)


@pytest.mark.parametrize("interval", [1, 3])
def test_locality_is_the_formula(images, interval):
    G = generator().double()
    network = Tunable(G, ("*",), torch.float64)
    loss = locality(G, images.double(), network, locality_interval=interval, locality_alpha=3.0, locality_lpips=0.2)
    pivot = G.mapping(torch.randn(1, 8, dtype=torch.float64)).detach()
    tuned = copy.deepcopy(G)
    with torch.no_grad():
        for parameter in tuned.synthesis.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, dtype=torch.float64)
    weights = dict(tuned.synthesis.named_parameters())
    z = torch.randn(8 // interval + 1, 8, generator=torch.Generator().manual_seed(5)).double()
    for step in range(9):
        value = loss({"w_plus": pivot, "weights": weights, "step": torch.tensor([step])})
        assert value.shape == (1,)
        if step % interval:
            assert value.item() == 0
            continue
        w = truncate(G.mapping(z[step // interval : step // interval + 1]), G.w_avg, 0.5)
        w = pivot + 3 * (w - pivot) / (w - pivot).norm(dim=2, keepdim=True)
        old, new = G.synthesis(w, noise="none").detach(), tuned.synthesis(w, noise="none")
        distance = load_perceptual("attributes", old)[0]
        if load_perceptual("auto", torch.zeros(1, 3, 64, 64))[1]["name"] == "attributes":
            expected = 0.1 * (new - old).square().mean() + 0.2 * distance(new)[0]
            torch.testing.assert_close(value[0], expected, rtol=1e-9, atol=0)
    same = loss({"w_plus": pivot, "weights": dict(G.synthesis.named_parameters()), "step": torch.tensor([0])})
    assert same.item() == 0


def test_the_gradient_of_locality_agrees_with_finite_differences(images):
    G = generator().double()
    loss = locality(G, images.double(), Tunable(G, ("*",), torch.float64), locality_alpha=3.0, locality_lpips=0.0)
    pivot = G.mapping(torch.randn(1, 8, dtype=torch.float64)).detach()
    names = ["b4.const", "b8.conv0.bias", "b8.torgb.weight"]
    start = [G.synthesis.get_parameter(name).detach() for name in names]
    start = [(value + 0.1 * torch.randn_like(value)).requires_grad_() for value in start]

    def of(*values):
        weights = dict(zip(names, values, strict=True))
        return loss({"w_plus": pivot, "weights": weights, "step": torch.tensor([1])})

    assert torch.autograd.gradcheck(of, start, eps=1e-6, atol=1e-6)


def test_locality_keeps_what_other_codes_make(G, images):
    with torch.no_grad():
        others = G.mapping(torch.randn(20, 8, generator=torch.Generator().manual_seed(8)))
        before = G.synthesis(others)
        distances = []
        for on in (False, True):
            options = {"locality": on, "locality_lpips": 0.0, "locality_pixel": 1.0, "locality_alpha": 2.0}
            result = tune(G, images[:1], steps=60, **options)
            distances.append((result.generator(G).synthesis(others) - before).square().mean().item())
            assert result.metrics["psnr"][0] > run(G, images[:1], 15, space="w").metrics["psnr"][0] + 1
    assert distances[1] < 0.7 * distances[0]


# What is kept


@pytest.mark.parametrize(
    "name, shape", [("b8.conv0.weight", (5, 3, 3, 3)), ("b8.torgb.weight", (3, 7, 1, 1)), ("b4.const", (3, 4, 4)),
                    ("b8.conv1.affine.weight", (3, 8)), ("b8.conv0.bias", (5,)), ("b8.conv0.noise_strength", ())]
)  # fmt: skip
def test_compression_is_within_half_a_unit(name, shape):
    change = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    if len(shape) > 1:
        change[1, 0] = 0
    codes = compress(name, change)
    back = difference(codes, name, torch.zeros(shape))
    assert back.shape == change.shape
    if len(shape) < 2:
        assert torch.equal(back, change)
        return
    scale = codes[f"weights.{name}.scale"]
    assert ((back - change).abs().flatten(2) <= 0.5001 * scale[:, :, None]).all()
    largest = change.flatten(2).abs().amax(2)
    torch.testing.assert_close(scale, largest / (7 if "conv" in name else 127))
    assert (back[1, 0] == 0).all()
    count = math.prod(shape[1:])
    stored = codes[f"weights.{name}"]
    assert stored.element_size() * stored[0, 0].numel() == (-(-count // 2) if "conv" in name else count)
    again = compress(name, back)  # what is stored stays as it is
    assert torch.equal(again[f"weights.{name}"], stored)


def test_a_saved_result_gives_the_same_pictures_and_parts(G, images, tmp_path):
    result = tune(G, images)
    loaded = InversionResult.load(result.save(tmp_path / "out"))
    assert torch.equal(loaded.render(G), result.images)
    for index in (0, 1, 2, -1):
        with torch.no_grad():
            picture = loaded.generator(G, index).synthesis(result.w_plus[index][None])
        assert torch.equal(picture[0], result.images[index])
    assert torch.equal(loaded[1:].render(G), result.images[1:])
    assert torch.equal(loaded[1].generator(G).synthesis(result.w_plus[1:2]), result.images[1:2])
    with pytest.raises(IndexError):
        loaded.generator(G, 3)


def test_the_file_of_a_full_size_generator_is_small():
    with torch.device("meta"):
        G = fastinv.models.stylegan2.Generator(1024)
        parameters = dict(G.synthesis.named_parameters())
        stored = [compress(name, value[None]) for name, value in parameters.items()]
    size = sum(value.numel() * value.element_size() for part in stored for value in part.values())
    full = 4 * sum(value.numel() for value in parameters.values())
    assert full > 110e6 and size < 16e6


@pytest.mark.slow
def test_on_held_out_faces(tmp_path):
    G = fastinv.load_generator("faces64")
    images = fastinv.data.faces.sample(2, seed=0, split="heldout")[0]
    pivot = invert(G, images, space="w", steps=60, learning_rate=0.1, progress=False)
    result = invert(G, images, method="pti", init=pivot, steps=60, progress=False)
    for row in range(2):
        assert result.metrics["psnr"][row] > pivot.metrics["psnr"][row] + 3
        # Rounding the differences costs less than a tenth of a decibel.
        exact = -10 * math.log10(result.losses["pixel"][result.metrics["best_step"][row], row] / 4)
        assert abs(result.metrics["psnr"][row] - exact) < 0.1
    result.save(tmp_path / "out")
    full = 4 * sum(parameter.numel() for parameter in G.synthesis.parameters())
    assert (tmp_path / "out" / "latent.safetensors").stat().st_size < 2 * full / 7


# Wrong arguments


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pivot": "nonesuch"}, "unknown method 'nonesuch'"),
        ({"pivot": "pti"}, "unknown method 'pti'"),
        ({"pivot_options": [1]}, "pivot_options must be a dict"),
        ({"pivot_options": {"stepps": 3}}, "unknown option 'stepps' for image2stylegan"),
        ({"pivot_options": {"steps": -1}}, "steps must be a whole number"),
        ({"parameters": ()}, "parameters must be"),
        ({"parameters": ("b8.conv?.wait",)}, "'b8.conv.*wait' fits none"),
        ({"stop_lpips": -1.0}, "stop_lpips must be at least 0"),
        ({"locality_interval": 0}, "locality_interval must be at least 1"),
        ({"locality_alpha": -1.0}, "locality_alpha must be at least 0"),
        ({"locality": True, "locality_pixel": 0.0, "locality_lpips": 0.0}, "both 0"),
        ({"start": "random"}, r"start is for the pivot: pivot_options=\{'start': 'random'\}"),
        ({"p_norm_weight": 1.0}, "p_norm_weight is for the pivot"),
        ({"noise": "optimize"}, "noise=optimize is for the pivot"),
        ({"space": "f+w+", "pivot_options": {"coarse_resolution": 4}}, "coarse_resolution does not go with"),
    ],
)
def test_wrong_options(G, images, options, message):
    with pytest.raises(UsageError, match=message):
        tune(G, images, **{"callback": lambda *_: pytest.fail("work has begun"), **options})


def test_wrong_generators_for_tuned_weights(G, images):
    result = tune(G, images[:1], steps=1)
    torch.manual_seed(0)
    other = fastinv.models.stylegan2.Generator(8, z_dim=8, w_dim=8, channels={4: 8, 8: 6}, mapping_layers=2)
    with pytest.raises(UsageError, match="do not fit"):
        result.generator(other)
    first = StyleGAN1Generator(8, z_dim=8, w_dim=8, channels={4: 8, 8: 8}, mapping_layers=2)
    with pytest.raises(UsageError, match="generator has no|do not fit"):
        result.generator(first)
    with pytest.raises(UsageError, match="holds no tuned weights"):
        run(G, images[:1], 1).generator(G)


def test_parameters_without_a_say_are_refused(G, images):
    with pytest.raises(UsageError, match="none of the chosen parameters has a say"):
        tune(G, images, parameters=("*.noise_strength",), noise="none")


def test_it_is_a_method():
    assert METHODS["pti"] is PTI
