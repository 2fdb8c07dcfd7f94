"""Image2StyleGAN++: the code, then the noise maps, under the masks of each term."""

import math

import pytest
import torch
from test_inversion import SmallNetwork, generator, run

from fastinv.errors import UsageError
from fastinv.inversion import METHODS, InversionResult, invert
from fastinv.inversion.checkpoint import Checkpoints
from fastinv.inversion.image2stylegan_plus_plus import Image2StyleGANPlusPlus, blurred
from fastinv.losses import psnr
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.ops.noise import noise_regularization

METHOD = "image2stylegan++"
STRENGTHS = {"b4.conv1": 0.3, "b8.conv0": -0.02, "b8.conv1": 0.1}


def noisy(**options):
    """The tiny generator, 8x8, whose layers add noise."""
    G = generator(**options)
    with torch.no_grad():
        for layer, strength in STRENGTHS.items():
            G.synthesis.get_submodule(layer).noise_strength.fill_(strength)
    return G


@pytest.fixture(scope="module")
def G():
    return noisy()


@pytest.fixture(scope="module")
def images(G):
    """Three pictures that the generator cannot quite make."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        pictures = G.synthesis(G.mapping(torch.randn(3, 8, generator=random)))
    return (pictures + 0.2 * torch.randn(pictures.shape, generator=random)).clamp(-1, 1)


@pytest.fixture(scope="module")
def second():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def soft(seed: int) -> torch.Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def left() -> torch.Tensor:
    """1 in the left half."""
    mask = torch.zeros(3, 1, 8, 8)
    mask[..., :4] = 1
    return mask


def same(a, b) -> bool:
    """The same bits of everything; a term that a stage does not have is NaN in the curves."""
    pairs = [(a.w_plus, b.w_plus), (a.images, b.images), *((a.codes[name], b.codes[name]) for name in a.codes)]
    pairs += [(curve.nan_to_num(-1), b.losses[name].nan_to_num(-1)) for name, curve in a.losses.items()]
    return a.codes.keys() == b.codes.keys() and all(torch.equal(x, y) for x, y in pairs)


def embed(G, images, *arguments, **options):
    return run(G, images, **{"method": METHOD, "noise_steps": 15, **options})


# The two stages


def test_the_first_stage_is_image2stylegan(G, images):
    plain = run(G, images, method="image2stylegan", space="w+")
    assert same(embed(G, images, space="w+"), plain)
    for options in ({"noise_steps": 0}, {"noise_steps": 15}):
        result = embed(G, images, **options)
        assert torch.equal(result.w_plus, plain.w_plus)
        curve = result.losses["total"]
        assert len(curve) == (21 if not options["noise_steps"] else 37)
        torch.testing.assert_close(curve[:21], plain.losses["total"])


def test_noise_lifts_the_psnr_and_maps_are_kept(G, images):
    before, after = embed(G, images, noise_steps=0), embed(G, images, noise_steps=100)
    assert all(b > a + 4 for a, b in zip(before.metrics["psnr"], after.metrics["psnr"], strict=True))
    assert set(after.codes) == {f"noise.{layer}" for layer in STRENGTHS}
    for layer in STRENGTHS:
        own = G.synthesis.get_submodule(layer).noise_const
        assert torch.equal(before.codes[f"noise.{layer}"], own.expand(3, 1, -1, -1))
        assert not torch.equal(after.codes[f"noise.{layer}"], before.codes[f"noise.{layer}"])
    torch.testing.assert_close(after.render(G), after.images)
    assert after.metrics["steps"] == [120] * 3 and min(after.metrics["best_step"]) > 21


def test_save_and_load(G, images, tmp_path):
    result = embed(G, images)
    loaded = InversionResult.load(result.save(tmp_path / "result"))
    assert torch.equal(loaded.render(G), result.render(G))
    assert (
        math.isnan(loaded.metrics["loss_perceptual"][0])
        and loaded.metrics["loss_pixel"] == result.metrics["loss_pixel"]
    )


@pytest.mark.parametrize("by_strength", [True, False])
def test_both_stages_are_adam_on_the_formula(images, second, by_strength):
    """Plain torch, float64, all terms and masks, against the method."""
    G, x, y = noisy().double(), images.double(), second.double()
    masks = {name: soft(seed).double() for seed, name in enumerate(["m", "p", "s", "t"])}
    trunk, rows = SmallNetwork().double(), [0, 2]
    result = embed(
        G, x, steps=8, noise_steps=6, learning_rate=0.02, noise_learning_rate=0.03, noise_by_strength=by_strength,
        ramp_up=0.0, ramp_down=0.0, masks=masks["m"], perceptual_mask=masks["p"], style_mask=masks["s"],
        second_style_mask=masks["t"], second=y, pixel_weight=0.7, second_weight=0.4, perceptual_weight=1.3,
        style_weight=2.0, trained_rows=rows, mask_blur=0.8, trunk=trunk,
    )  # fmt: skip
    m, p, s, t = (dense_blur(mask, 0.8) for mask in masks.values())
    down = torch.nn.functional.avg_pool2d  # the trunk's map is 1x1 of 8x8 pixels

    def features(pictures, mask):
        return trunk.features(pictures * mask)[0]

    def gram(pictures, mask):
        f, small = features(pictures, mask).flatten(2), down(mask, 8).flatten(2)
        assert f.shape[2] == 1
        return f * small @ f.mT / small.sum(2, keepdim=True)

    def squares(z):
        return z.square().flatten(1).mean(1)

    def first(w, n):
        g = G.synthesis(w, noise=n)
        return (
            0.7 * squares(m * (g - x)) + 0.4 * squares((1 - m) * (g - y)) + 2 * squares(gram(g, s) - gram(y, t))
            + 1.3 * squares(down(p, 8) * (features(g, p) - features(x, p)))
        )  # fmt: skip

    def later(w, n):
        g = G.synthesis(w, noise=n)
        return squares(m * (g - x)) + squares((1 - m) * (g - y))

    own = {layer: G.synthesis.get_submodule(layer).noise_const for layer in STRENGTHS}
    for row in range(3):
        start = G.w_avg.expand(1, G.num_ws, -1).clone()
        free = [start[:, i].clone().requires_grad_() for i in rows]
        noise = {layer: value.expand(1, 1, -1, -1).clone().requires_grad_() for layer, value in own.items()}

        def code(free=free, start=start):
            return torch.stack([free[rows.index(i)] if i in rows else start[:, i] for i in range(G.num_ws)], 1)

        def minimise(objective, groups, steps, row=row, code=code, noise=noise):
            adam, values, kept = torch.optim.Adam(groups), [], None
            variables = [v for group in groups for v in group["params"]]
            for step in range(steps + 1):
                value = objective(code().expand(3, -1, -1), {k: v.expand(3, -1, -1, -1) for k, v in noise.items()})[row]
                values.append(value.item())
                if value.item() == min(values):
                    kept = [v.detach().clone() for v in variables]
                if step < steps:
                    for v, gradient in zip(variables, torch.autograd.grad(value, variables), strict=True):
                        v.grad = gradient
                    adam.step()
            with torch.no_grad():
                for v, best in zip(variables, kept, strict=True):
                    v.copy_(best)
            return torch.tensor(values, dtype=torch.float64)

        curve = minimise(first, [{"params": free, "lr": 0.02}], 8)
        strengths = {layer: abs(float(G.synthesis.get_submodule(layer).noise_strength.detach())) for layer in STRENGTHS}
        rates = {layer: 0.03 / strength if by_strength else 0.03 for layer, strength in strengths.items()}
        noisy_curve = minimise(later, [{"params": [noise[k]], "lr": rate} for k, rate in rates.items()], 6)
        torch.testing.assert_close(
            result.losses["total"][:, row], torch.cat([curve, noisy_curve]), rtol=1e-6, atol=1e-9
        )
        torch.testing.assert_close(result.w_plus[row], code()[0].detach(), rtol=1e-6, atol=1e-8)
        assert torch.equal(result.w_plus[row, 1], start[0, 1])
        for layer, value in noise.items():
            torch.testing.assert_close(result.codes[f"noise.{layer}"][row], value[0].detach(), rtol=1e-5, atol=1e-7)


def dense_blur(mask, deviation):
    """A Gaussian over the pixels, those beyond the border being the nearest within; cut off at three deviations."""
    reach, size = math.ceil(3 * deviation), mask.shape[-1]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for k in range(-reach, reach + 1):
            matrix[i, min(max(i + k, 0), size - 1)] += math.exp(-0.5 * (k / deviation) ** 2)
    matrix /= matrix.sum(1, keepdim=True)
    return matrix @ mask.double() @ matrix.T


@pytest.mark.parametrize("deviation", [0.0, 0.4, 1.5, 20.0])
def test_blur(deviation):
    mask = soft(5).double()
    expected = dense_blur(mask, deviation) if deviation else mask
    torch.testing.assert_close(blurred(mask, deviation), expected)
    torch.testing.assert_close(blurred(torch.ones(1, 1, 8, 8), deviation), torch.ones(1, 1, 8, 8))


@pytest.mark.parametrize("precondition", [0.0, 0.5])
def test_rows_that_are_not_trained_keep_their_bits(G, images, precondition):
    start = torch.randn(3, G.num_ws, 8, generator=torch.Generator().manual_seed(4))
    result = embed(G, images, init=start, trained_rows=[3, 1], precondition=precondition)
    same = [torch.equal(result.w_plus[:, row], start[:, row]) for row in range(G.num_ws)]
    assert same == [True, False, True, False]


def test_a_picture_does_not_depend_on_its_batch(G, images, second):
    options = {"second": second, "perceptual_mask": soft(1), "mask_blur": 1.0, "trained_rows": [0, 1]}
    together = embed(G, images, masks=soft(0), **options)
    for row in range(3):
        part = slice(row, row + 1)
        own = options | {"second": second[part], "perceptual_mask": soft(1)[part]}
        alone = embed(G, images[part], masks=soft(0)[part], **own)
        torch.testing.assert_close(alone.images, together.images[part], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(alone.losses["total"][:, 0], together.losses["total"][:, row], rtol=1e-3, atol=1e-6)


def test_pictures_that_are_finished_leave_both_stages(G, images, second):
    result = embed(
        G, images, steps=200, noise_steps=200, stop_patience=10, stop_plateau=0.2, second=second, masks=soft(0),
        style_weight=1.0,
    )  # fmt: skip
    assert result.metrics["finished"] == ["no more progress"] * 3
    assert max(result.metrics["steps"]) < 400 and result.images.isfinite().all()


# Masks


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_hidden_pixels_do_not_matter(G, images, second, blur):
    mask = left()
    options = {"masks": mask, "mask_blur": blur}
    other = torch.where(mask > 0, images, second)
    a, b = embed(G, images, **options), embed(G, other, **options)
    assert same(a, b)


def test_the_noise_stage_keeps_what_is_hidden(G, images):
    mask = left()
    first, both = (embed(G, images, masks=mask, noise_steps=steps) for steps in (0, 80))
    known, hidden = mask, 1 - mask
    assert (psnr(both.images, images, known) > psnr(first.images, images, known) + 3).all()
    assert (psnr(both.images, first.images, hidden) > 30).all()
    assert (psnr(both.images, first.images, hidden) > psnr(both.images, first.images, known) + 3).all()


def test_the_noise_mask_is_that_of_the_second_stage(G, images):
    first, both = (embed(G, images, noise_mask=left(), noise_steps=steps) for steps in (0, 80))
    assert torch.equal(first.images, embed(G, images, noise_steps=0).images)
    assert torch.equal(first.w_plus, both.w_plus)
    assert (psnr(both.images, images, left()) > psnr(first.images, images, left()) + 3).all()
    assert (psnr(both.images, first.images, 1 - left()) > 30).all()


def test_a_second_picture_is_fitted_where_the_mask_is_0(G, images, second):
    mask = left()
    one = embed(G, images, masks=mask, noise_steps=60)
    two = embed(G, images, masks=mask, second=second, noise_steps=60)
    assert (psnr(two.images, second, 1 - mask) > psnr(one.images, second, 1 - mask) + 6).all()
    third = embed(G, images, masks=mask, second=second, second_weight=0.0, noise_steps=60)
    assert same(one, third)


def test_the_style_of_the_second_picture(G, images, second):
    plain, styled = (embed(G, images, second=second, second_weight=0.0, style_weight=w) for w in (1e-9, 10.0))
    assert (styled.losses["style"][20] / 10 < 0.9 * plain.losses["style"][20] / 1e-9).all()
    assert styled.settings["options"]["second"] == "Tensor"


def test_coarse_to_fine_with_masks_and_a_second_picture(G, images, second):
    options = {"masks": soft(0), "second": second, "style_weight": 0.1, "style_mask": soft(1)}
    result = embed(G, images, coarse_resolution=4, trunk=AnySize(), **options)
    assert len(result.losses["total"]) == 11 + 11 + 16
    assert all(result.losses[name][:22].isfinite().all() for name in ("pixel", "second", "perceptual", "style"))


class AnySize(SmallNetwork):
    """For pictures of 4x4, too."""

    def features(self, images):
        return [torch.nn.functional.conv2d(images, self.weight, stride=4, padding=2).tanh()]


# Noise maps


def test_maps_of_layers_without_strength_stay(images):
    G = noisy()
    with torch.no_grad():
        G.synthesis.b4.conv1.noise_strength.zero_()
    result = embed(G, images)
    own = G.synthesis.b4.conv1.noise_const.expand(3, 1, -1, -1)
    assert torch.equal(result.codes["noise.b4.conv1"], own)
    assert not torch.equal(result.codes["noise.b8.conv1"], G.synthesis.b8.conv1.noise_const.expand(3, 1, -1, -1))


def test_the_regulariser_of_the_maps_is_in_the_second_stage(G, images):
    plain, even = embed(G, images, noise_steps=40), embed(G, images, noise_steps=40, noise_weight=1.0)
    assert torch.equal(plain.w_plus, even.w_plus)
    assert even.losses["noise"][:21].isnan().all() and even.losses["noise"][21:].isfinite().all()
    before, after = (noise_regularization(result.codes) for result in (plain, even))
    assert (after < 0.7 * before).all()


def test_a_generator_that_ignores_noise_is_refused(images):
    with pytest.raises(UsageError, match="noise strengths of this generator are all 0: use space w"):
        embed(generator(), images)
    assert embed(generator(), images, space="w+").codes == {}
    embed(generator(), images, noise_steps=0)


def test_stylegan1_has_a_strength_per_channel(images):
    torch.manual_seed(0)
    G = StyleGAN1Generator(8, z_dim=8, w_dim=8, channels={4: 8, 8: 8}, mapping_layers=2).eval()
    with torch.no_grad():
        for layer in G.synthesis.noise_layers():
            G.synthesis.get_submodule(layer).noise_strength.normal_(std=0.1)
    before, after = (embed(G, images, noise_steps=steps) for steps in (0, 40))
    assert all(b > a + 3 for a, b in zip(before.metrics["psnr"], after.metrics["psnr"], strict=True))


def test_random_maps_are_those_of_both_stages(G, images):
    first, both = (embed(G, images, noise_start="random", noise_steps=steps, seed=3) for steps in (0, 15))
    assert torch.equal(first.w_plus, both.w_plus)
    assert not torch.equal(first.codes["noise.b8.conv1"][0, 0], G.synthesis.b8.conv1.noise_const)
    torch.testing.assert_close(first.losses["pixel"][20], both.losses["pixel"][20])
    expected = (first.images - images).square().mean((1, 2, 3))
    torch.testing.assert_close(both.losses["pixel"][21].float(), expected)


# Stopping, resuming, wrong arguments


def test_the_callback_sees_both_stages_and_may_stop_either(G, images):
    for last in (5, 27):
        seen = []
        result = embed(G, images, callback=lambda step, *_, last=last, seen=seen: seen.append(step) or step == last)
        assert seen == ([*range(6)] if last == 5 else [*range(21), *range(20, 28)])
        assert result.settings["stopped"] and result.settings["steps_done"] == last


def test_an_interrupted_noise_stage_goes_on_to_the_same_bits(G, images, tmp_path):
    class Killed(Exception):
        pass

    def killed(step, *_):
        if step == 34:
            raise Killed

    whole = embed(G, images, noise_steps=30)
    with pytest.raises(Killed):
        embed(G, images, noise_steps=30, checkpoints=Checkpoints(tmp_path, seconds=0), callback=killed)
    assert same(embed(G, images, noise_steps=30, checkpoints=Checkpoints(tmp_path, seconds=0)), whole)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise_steps": -1}, "noise_steps must be at least 0, not -1"),
        ({"mask_blur": -0.5}, "mask_blur must be at least 0 and finite, not -0.5"),
        ({"mask_blur": math.inf}, "mask_blur must be at least 0 and finite"),
        ({"noise_learning_rate": 0.0}, "noise_learning_rate must be positive"),
        ({"style_weight": 1.0}, "style_weight needs a picture with the style: give second="),
        ({"style_weight": -1.0}, "style_weight must be at least 0"),
        ({"pixel_weight": 0.0, "perceptual_weight": 0.0}, "all weights of the picture are 0"),
        ({"trained_rows": []}, "trained_rows must be style inputs"),
        ({"trained_rows": [True]}, "trained_rows must be style inputs"),
        ({"trained_rows": [-1]}, "trained_rows must be style inputs"),
        ({"trained_rows": 3}, "trained_rows must be"),
        ({"trained_rows": [0, 4]}, "the generator has style inputs 0 to 3, not 4"),
        ({"second": torch.zeros(3, 3, 8, 8)}, "second is fitted where the mask is 0: give masks="),
        ({"second": torch.zeros(2, 3, 8, 8), "masks": torch.ones(8, 8)}, "second must be one picture or 3"),
        ({"second": torch.zeros(3, 3, 4, 4), "masks": torch.ones(8, 8)}, "images are 4 x 4"),
        ({"perceptual_mask": torch.ones(2, 1, 8, 8)}, "masks must have shape"),
        ({"style_mask": "hair.png"}, "masks must be a tensor"),
        ({"noise_mask": torch.full((8, 8), 2.0)}, r"masks must lie in \[0, 1\]"),
        ({"space": "w"}, "works in w\\+noise, w\\+"),
    ],
)
def test_wrong_arguments(G, images, options, message):
    def never(*_):
        raise AssertionError("work has started")

    with pytest.raises(UsageError, match=message):
        embed(G, images, callback=never, **options)


def test_it_is_listed():
    assert METHODS[METHOD] is Image2StyleGANPlusPlus
    with pytest.raises(UsageError, match="noise_learning_rate"):
        invert(noisy(), torch.zeros(1, 3, 8, 8), METHOD, noise_learning_rates=1)
