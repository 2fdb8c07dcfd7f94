"""Codes, style mixing, interpolation, local edits and semantic diffusion, where the right answer is known."""

import json

import pytest
import torch
from test_image2stylegan_plus_plus import noisy
from test_inversion import SmallNetwork

import fastinv
from fastinv.checkpoints import network_hash
from fastinv.data import faces
from fastinv.data.pictures import save_picture
from fastinv.editing.blend import blend, box
from fastinv.editing.codes import check_generator, codes_of, edited, open_sources, render, rows
from fastinv.editing.diffuse import FACE_CENTER, FACE_SIZE
from fastinv.editing.interpolate import left_out, path
from fastinv.editing.mix import layers_of
from fastinv.errors import CheckpointError, PictureError, UsageError
from fastinv.inversion import InversionResult, invert
from fastinv.inversion.weights import compress
from fastinv.latents import save_latent
from fastinv.losses import mse
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.models.stylegan2 import Generator


@pytest.fixture(scope="module")
def faces64():
    return fastinv.load_generator("faces64")


@pytest.fixture(scope="module")
def network():
    return fastinv.load_attribute_network()


@pytest.fixture(scope="module")
def w_plus(faces64):
    """Codes of 24 held-out renders, by the bundled encoder."""
    return invert(faces64, faces.sample(24, seed=1, split="heldout")[0], "psp", progress=False).w_plus


def some(*shape, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def names(*wanted: str) -> list[int]:
    return [faces.NAMES.index(name) for name in wanted]


# Codes


def test_codes_of_whatever_is_given():
    G = noisy()
    w = some(2, G.num_ws, G.w_dim, dtype=torch.float32)
    result = InversionResult(w, torch.zeros(2, 3, 8, 8), {}, {}, {}, {"noise.b4.conv1": some(2, 1, 4, 4)})
    assert set(codes_of(result, G)) == {"w_plus", "noise.b4.conv1"}
    for given in (w, {"w_plus": w}):
        assert torch.equal(codes_of(given, G)["w_plus"], w)
    assert codes_of(w[0], G)["w_plus"].shape == (1, G.num_ws, G.w_dim)
    assert torch.equal(rows(codes_of(w), 1)["w_plus"], w[1:])
    for given, message in [
        ("w", "not str"), ({}, "not dict"), (some(2, 3, 8), r"must have shape \[N, 4, 8\]"),
        (w * torch.nan, "not finite"), ({"w_plus": w, "z": w[:1, 0]}, "codes of 2 pictures hold 'z' of 1"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            codes_of(given, G)


def test_edited_codes_keep_what_goes_beyond_w_plus():
    """Styles and features are those of the new code, and what was added to those of the old one."""
    G = noisy().double()
    old, new = some(1, G.num_ws, G.w_dim), some(3, G.num_ws, G.w_dim, seed=1)
    d_styles = some(*G.styles(old).shape, seed=2)
    codes = {"w_plus": old, "styles": G.styles(old) + d_styles, "z": some(1, 8), "noise.b8.conv0": some(1, 1, 8, 8)}
    found = edited(G, codes, new)
    assert set(found) == {"w_plus", "styles", "noise.b8.conv0"}
    torch.testing.assert_close(found["styles"], G.styles(new) + d_styles)
    assert torch.equal(found["noise.b8.conv0"], codes["noise.b8.conv0"].expand(3, -1, -1, -1))

    x, picture = G.features(old, 4)
    dx, dpicture = some(*x.shape, seed=3), some(*picture.shape, seed=4)
    found = edited(G, {"w_plus": old, "features": x + dx, "picture": picture + dpicture}, new)
    expected = G.features(new, 4)
    torch.testing.assert_close(found["features"], expected[0] + dx)
    torch.testing.assert_close(found["picture"], expected[1] + dpicture)
    torch.testing.assert_close(
        render(G, found), G.synthesis(new, features=(expected[0] + dx, expected[1] + dpicture)).detach()
    )
    with pytest.raises(UsageError, match="codes of 2 pictures cannot have 3 rows"):
        edited(G, {"w_plus": old.expand(2, -1, -1)}, new)


def test_another_generator_is_refused_by_hash():
    G, own = noisy(), network_hash(noisy())
    check_generator(own, G, "x")
    check_generator(None, G, "x")
    with pytest.raises(UsageError, match=f"x is for the generator {'0' * 16}.*not for this one, {own[:16]}.*--force"):
        check_generator("0" * 64, G, "x")
    check_generator("0" * 64, G, "x", force=True)


def test_sources(tmp_path):
    """A file of codes, a result, a folder of results, and a picture."""
    G = noisy()
    images = some(2, 3, 8, 8, dtype=torch.float32).clamp(-1, 1)
    options = {"steps": 1, "perceptual_weight": 0, "noise": "none", "progress": False}
    results = invert(G, images, **options)
    for row, name in enumerate("ab"):
        save_picture(images[row], tmp_path / f"{name}.png")
        results[row].settings["picture"] = str(tmp_path / f"{name}.png")
        results[row].save(tmp_path / "run" / name)
    save_latent(tmp_path / "both.safetensors", results.w_plus, {"generator_sha256": network_hash(G), "noise": "none"})

    found = open_sources([tmp_path / "run", tmp_path / "both.safetensors", tmp_path / "run" / "b"], G)
    assert [source.name for source in found] == ["a", "b", "both-0", "both-1", "b"]
    for source, row in zip(found, (0, 1, 0, 1, 1), strict=True):
        assert torch.equal(source.codes["w_plus"], results.w_plus[row : row + 1])
        assert source.noise == "none" and source.generator_sha256 == network_hash(G)
        assert torch.equal(render(G, source.codes, source.noise), results[row].render(G))
    assert found[0].made_by["method"] == "image2stylegan" and found[2].picture is None
    for row in (0, 1):
        assert (found[row].picture - images[row]).abs().max() < 0.01
    inside = open_sources([tmp_path / "run" / "b" / "latent.safetensors"], G)[0]
    assert (inside.name, inside.noise) == ("b", "none")


def test_pictures_are_inverted(faces64, tmp_path):
    images = faces.sample(2, seed=0, split="heldout")[0]
    for row, name in enumerate("ab"):
        save_picture(images[row], tmp_path / f"{name}.png")
    found = open_sources([tmp_path / "b.png", tmp_path / "a.png"], faces64)
    assert [source.name for source in found] == ["b", "a"]
    for source, row in zip(found, (1, 0), strict=True):
        assert source.made_by["method"] == "psp" and source.made_by["picture"] == str(source.path)
        assert source.result.metrics["psnr"][0] > 20
        assert float(mse(render(faces64, source.codes), images[row : row + 1])) < 0.03


def test_sources_that_cannot_be(tmp_path):
    G = noisy()
    w = some(1, G.num_ws, G.w_dim, dtype=torch.float32)
    save_latent(tmp_path / "other.safetensors", w, {"generator_sha256": "0" * 64})
    save_latent(tmp_path / "shape.safetensors", w[:, :2])
    save_latent(tmp_path / "nan.safetensors", w * torch.nan)
    save_latent(tmp_path / "no-codes.safetensors", w[:0])
    (tmp_path / "damaged.safetensors").write_bytes(b"0" * 100)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for name, kind, message in [
        ("none.safetensors", UsageError, "no such file"), ("none.png", PictureError, "no such file"),
        ("other.safetensors", UsageError, "is for the generator 0000"), ("empty", UsageError, "no inversion result"),
        ("shape.safetensors", UsageError, "is it for another generator"), ("text.png", PictureError, "text.png"),
        ("no-codes.safetensors", UsageError, "holds no codes"),
        ("nan.safetensors", CheckpointError, "not finite"), ("damaged.safetensors", CheckpointError, "damaged"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=message):
            open_sources([tmp_path / name], G)
    assert open_sources([tmp_path / "other.safetensors"], G, force=True)[0].generator_sha256 == "0" * 64
    with pytest.raises(UsageError, match="is it for another generator"):
        open_sources([tmp_path / "shape.safetensors"], G, force=True)


# Local edits


def test_a_blend_is_that_of_the_formula():
    """Block by block, by the modules of the network; masks by plain means of 2 x 2."""
    G = noisy().double()
    network = G.synthesis
    a, b = some(1, G.num_ws, G.w_dim), some(2, G.num_ws, G.w_dim, seed=1)
    mask = some(2, 1, 8, 8, seed=2).sigmoid()
    states = []
    for codes in (a.expand(2, -1, -1), b):
        styles, noise = network.layer_styles(codes, [4, 8]), network.noise_per_layer("const", 2)
        states.append((styles, noise, None, None))
    with torch.no_grad():
        for r, m in ((4, mask.unfold(2, 2, 2).unfold(3, 2, 2).mean((-2, -1))), (8, mask)):
            block = network.get_submodule(f"b{r}")
            for index, (styles, noise, x, picture) in enumerate(states):
                x, picture = block(x, picture, styles, noise, f"b{r}", torch.float64)
                states[index] = styles, noise, x, picture
            (_, _, x_a, picture_a), (styles, noise, x_b, picture_b) = states
            states[1] = styles, noise, m * x_b + (1 - m) * x_a, m * picture_b + (1 - m) * picture_a
    torch.testing.assert_close(blend(G, a, b, mask), states[1][3])


@pytest.mark.parametrize("kind", ["w+", "styles", "features", "noise", "weights"])
def test_no_mask_changes_nothing_and_a_full_one_all(kind):
    G = noisy()
    a, b = some(1, G.num_ws, G.w_dim, dtype=torch.float32), some(2, G.num_ws, G.w_dim, seed=1, dtype=torch.float32)
    codes = {"w_plus": a}
    if kind == "styles":
        codes["styles"] = G.styles(a).detach() + 0.1
    elif kind == "features":
        codes |= {
            name: part.detach() + 0.1 for name, part in zip(("features", "picture"), G.features(a, 4), strict=True)
        }
    elif kind == "noise":
        codes["noise.b8.conv0"] = some(1, 1, 8, 8, dtype=torch.float32)
    elif kind == "weights":
        weight = G.synthesis.b8.conv0.weight.detach()
        codes |= compress("b8.conv0.weight", some(1, *weight.shape, seed=5, dtype=torch.float32) * 0.1)
    new = edited(G, codes, b)
    before, after = render(G, codes).expand(2, -1, -1, -1), render(G, new)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(blend(G, codes, new, torch.zeros(8, 8), soften=1), before)
    torch.testing.assert_close(blend(G, codes, new, torch.ones(8, 8), soften=1), after)
    mask = torch.zeros(8, 8)
    mask[:, :3] = 1
    half = blend(G, codes, new, mask)
    torch.testing.assert_close(half[..., 3:], before[..., 3:])
    assert (half[..., :3] - before[..., :3]).abs().max() > 0.1


def test_the_state_between_blocks_can_be_gone_on_from():
    """As the formula needs it: features from features, of a generator and of a prepared one."""
    G = Generator(16, 8, 8, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2)
    w = some(2, G.num_ws, 8, dtype=torch.float32)
    with torch.no_grad():
        for network in (G, G.prepare()):
            first = network.features(w, 4)
            for resolution in (4, 8, 16):
                whole, part = network.features(w, resolution), network.features(w, resolution, features=first)
                for one, other in zip(whole, part, strict=True):
                    torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match="features at 8 x 8 are beyond"):
        G.features(w, 4, features=G.features(w, 8))


def test_a_smile_under_a_mask(faces64, network, w_plus):
    """The mouth smiles as in the full edit; what is outside the mask stays, where the full edit changes it."""
    smile = fastinv.evaluation.attribute_directions(faces64, network, samples=250)[faces.NAMES.index("smile")]
    w = w_plus[:8]
    codes, new = codes_of(w), edited(faces64, codes_of(w), w + 2 * smile)
    mask = box(64, (32, 44), 26)
    made = blend(faces64, codes, new, mask, soften=1)
    before, full = render(faces64, codes), render(faces64, new)
    outside = 1 - torch.nn.functional.max_pool2d(mask[None, None], 7, 1, 3)
    assert ((made - before) * outside).abs().max() < 1e-5
    assert ((full - before) * outside).abs().mean() > 0.003
    found = [network.standardised(images.clamp(-1, 1)) for images in (before, full, made)]
    at = faces.NAMES.index("smile")
    assert (found[2] - found[0])[:, at].mean() > 0.85 * (found[1] - found[0])[:, at].mean() > 0.85
    others = [index for index in range(len(faces.NAMES)) if index != at]
    assert (found[2] - found[0])[:, others].abs().mean() < (found[1] - found[0])[:, others].abs().mean()


def test_blends_that_cannot_be():
    G = noisy()
    w = some(1, G.num_ws, G.w_dim, dtype=torch.float32)
    for options, message in [
        ({"soften": 9}, "soften must be from 0"), ({"mask": torch.ones(4, 4)}, "masks must have shape"),
        ({"mask": torch.full((8, 8), 2.0)}, "masks must lie in"), ({"codes": w.expand(3, -1, -1)}, "codes of 3"),
    ]:  # fmt: skip
        arguments = {"codes": w, "edited": w.expand(2, -1, -1), "mask": torch.ones(8, 8)} | options
        with pytest.raises(UsageError, match=message):
            blend(G, **arguments)
    old = StyleGAN1Generator(8, 8, 8, channels={4: 4, 8: 4})
    with pytest.raises(UsageError, match="needs a StyleGAN2 generator; a StyleGAN1Generator"):
        blend(old, w, w, torch.ones(8, 8))
    other = Generator(8, 8, 8, channels={4: 4, 8: 4}, architecture="resnet")
    with pytest.raises(UsageError, match="needs the skip architecture"):
        blend(other, w, w, torch.ones(8, 8))


def test_a_square():
    assert box(8, (4, 4), 8).equal(torch.ones(8, 8)) and box(8, (2, 6), 2).nonzero().tolist() == [
        [5, 1], [5, 2], [6, 1], [6, 2],
    ]  # fmt: skip
    assert box(256, (125, 145), 110).sum() == 110**2
    with pytest.raises(UsageError, match="has no pixel of the picture, 8 x 8"):
        box(8, (20, 4), 4)


# Mixing


def test_layers_by_name():
    assert layers_of("0-3,7", 10) == layers_of([7, 0, 1, 2, 3, 3], 10) == (0, 1, 2, 3, 7)
    assert layers_of("9", 10) == (9,)
    for text in ("", "a", "3-", "7-10", "5-3", "-1", [10], [], 2.5, [True], "0;3"):
        with pytest.raises(UsageError, match="layers are counted from 0 to 9"):
            layers_of(text, 10)


def test_a_mixture_has_the_rows_of_both():
    G = noisy()
    a, b = some(1, G.num_ws, G.w_dim, dtype=torch.float32), some(2, G.num_ws, G.w_dim, seed=1, dtype=torch.float32)
    codes = {"w_plus": a, "noise.b4.conv1": torch.zeros(1, 1, 4, 4)}
    mixed = fastinv.mix(G, codes, b, "1-2")
    assert torch.equal(mixed["w_plus"][:, [1, 2]], b[:, [1, 2]])
    assert torch.equal(mixed["w_plus"][:, [0, 3]], a[:, [0, 3]].expand(2, -1, -1))
    assert mixed["noise.b4.conv1"].shape == (2, 1, 4, 4)
    half = fastinv.mix(G, codes, b[:1], [1, 2], strength=0.5)["w_plus"]
    torch.testing.assert_close(half[:, 1:3], (a + b[:1])[:, 1:3] / 2)
    assert torch.equal(fastinv.mix(G, codes, b, "0-3", 0.0)["w_plus"], a.expand(2, -1, -1))
    for arguments, message in [((a, b, "4"), "no layer 4"), ((b, some(3, 4, 8), "1"), "2 codes of content and 3"),
                               ((a, b, "1", torch.inf), "strength")]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            fastinv.mix(G, *arguments)


def test_layers_of_the_embedded_generator(faces64, network, w_plus):
    """Pose comes with layers 0-3 and colours with 4-9; what 6-9 bring is the expression.

    Measured is how far attributes move from the content's to the style's, by regression over pairs: 0 not, 1 all.
    """
    content, style = w_plus[:12], w_plus[12:]

    def read(codes):
        return network.standardised(render(faces64, codes).clamp(-1, 1))

    start, end = read(codes_of(content)), read(codes_of(style))
    moved = {
        layers: ((read(fastinv.mix(faces64, content, style, layers)) - start) * (end - start)).sum(0)
        / (end - start).square().sum(0)
        for layers in ("0-9", "4-9", "6-9")
    }
    torch.testing.assert_close(moved["0-9"], torch.ones(len(faces.NAMES)), atol=1e-4, rtol=0)
    pose, colours = names("yaw", "pitch", "face_width", "hair_length"), names("hair_hue", "skin_tone", "glasses")
    expression = names("smile", "eye_open", "gaze")
    assert moved["4-9"][pose].max() < 0.3, moved["4-9"][pose]
    assert moved["4-9"][colours].min() > 0.5 and moved["4-9"][expression].min() > 0.7, moved["4-9"]
    assert moved["6-9"][pose + colours].max() < 0.3 and moved["6-9"][expression].min() > 0.5, moved["6-9"]


# Interpolation


def test_an_interpolation_is_linear_and_its_ends_are_exact():
    a, b = ({"w_plus": some(1, 4, 8, seed=seed), "noise.b4.conv1": some(1, 1, 4, 4, seed=seed)} for seed in (0, 1))
    found = fastinv.interpolate(a, b, steps=3)
    for name in ("w_plus", "noise.b4.conv1"):
        assert torch.equal(found[name][:1], a[name]) and torch.equal(found[name][-1:], b[name])
        for row, t in enumerate((0, 0.25, 0.5, 0.75, 1)):
            torch.testing.assert_close(found[name][row], (a[name] + t * (b[name] - a[name]))[0])
    assert fastinv.interpolate(a["w_plus"], b["w_plus"], 0)["w_plus"].shape == (2, 4, 8)
    assert fastinv.interpolate(a, b)["w_plus"].shape == (7, 4, 8)  # five between the ends, as IDInvert's
    assert set(fastinv.interpolate(a, b, 1, w_only=True)) == {"w_plus"}


def test_what_only_one_has_is_left_out():
    w = {"w_plus": some(1, 4, 8)}
    features = {"features": some(1, 8, 4, 4), "picture": some(1, 3, 4, 4)}
    large = {"features": some(1, 8, 8, 8), "picture": some(1, 3, 8, 8)}
    assert left_out(w | {"noise.b4.conv1": some(1, 1, 4, 4)}, w) == ["noise.b4.conv1"]
    assert set(fastinv.interpolate(w | features, w | features, 1)) == {"w_plus", "features", "picture"}
    assert left_out(w | features, w | large) == ["features", "picture"]
    weights = {"weights.b4.conv1.bias": some(1, 8)}
    assert left_out(w | weights | {"z": some(1, 8)}, w | weights | {"z": some(1, 8)}) == list({**weights, "z": 0})


def test_through_several():
    ends = [some(1, 4, 8, seed=seed) for seed in range(3)]
    found = path(*ends, steps=2)["w_plus"]
    assert found.shape[0] == 7 and torch.equal(found[[0, 3, 6]], torch.cat(ends))
    torch.testing.assert_close(found[4], ends[1][0] + (ends[2] - ends[1])[0] / 3)
    for arguments, message in [
        ((ends[0],), "at least 2 codes"), ((ends[0], some(1, 5, 8)), "for one generator"),
        ((ends[0], some(2, 4, 8)), "one picture each"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            path(*arguments)
    with pytest.raises(UsageError, match="steps must be a whole number"):
        path(*ends, steps=-1)


def test_attributes_go_steadily_from_one_face_to_the_other(faces64, network, w_plus):
    """In the mean over pairs, every attribute that differs goes only one way, and ends at the other's."""
    found = []
    for a, b in zip(w_plus[:12], w_plus[12:], strict=True):
        read = network.standardised(render(faces64, fastinv.interpolate(a, b, 3)).clamp(-1, 1))
        ends = network.standardised(render(faces64, codes_of(torch.stack([a, b]))).clamp(-1, 1))
        torch.testing.assert_close(read[[0, -1]], ends, atol=1e-3, rtol=0)
        found.append((read - read[0]) * (read[-1] - read[0]).sign())  # the way to the other is up
    mean = torch.stack(found).mean(0)
    assert (mean.diff(dim=0) > 0).all(), mean
    assert (mean[-1] > 0.3).all()


# Semantic diffusion


class Encoder(torch.nn.Module):
    """Stands in for a trained one: a fixed linear map of small pictures."""

    def __init__(self, num_ws: int, w_dim: int):
        super().__init__()
        self.weight = torch.nn.Parameter(some(num_ws * w_dim, 3 * 4 * 4, dtype=torch.float32) * 0.3)
        self.shape = num_ws, w_dim

    def encode(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
        return (small @ self.weight.T).view(-1, *self.shape)


def test_the_objective_of_a_diffusion_is_that_of_the_formula():
    G, E, trunk = noisy(), Encoder(4, 8), SmallNetwork()
    target, context = (some(2, 3, 8, 8, seed=seed, dtype=torch.float32).clamp(-1, 1) for seed in (0, 1))
    mask = box(8, (4, 5), 4)
    result = fastinv.diffuse(G, target, context, mask, encoder=E, trunk=trunk, steps=3, progress=False)
    composite = mask * target + (1 - mask) * context
    with torch.no_grad():
        start = G.synthesis(E.encode(composite))
        pixel = (mask * start - mask * target).square().flatten(1).mean(1)
        features = [trunk.features(mask * images)[0] for images in (start, target)]
        perceptual = 0.17 * (features[0] - features[1]).square().flatten(1).mean(1)
    assert set(result.losses) == {"total", "pixel", "perceptual"}  # no domain term
    torch.testing.assert_close(result.losses["pixel"][0].float(), pixel)
    torch.testing.assert_close(result.losses["perceptual"][0].float(), perceptual)
    assert (result.losses["total"][-1] < result.losses["total"][0]).all()
    assert result.settings["task"] == {"name": "diffuse"} and result.settings["masked"]
    torch.testing.assert_close(result.render(G), result.images)
    json.dumps(result.settings, allow_nan=False)
    whole = fastinv.diffuse(G, target, context, torch.ones(8, 8), encoder=E, trunk=trunk, steps=0, progress=False)
    torch.testing.assert_close(whole.w_plus, E.encode(target).detach())


def test_diffusions_that_cannot_be(faces64):
    images = torch.zeros(2, 3, 64, 64)
    for arguments, message in [
        ((images, images[:1], torch.ones(64, 64)), "2 targets and 1 contexts"),
        ((images, images, None), "mask says which part"),
        ((images, images, torch.zeros(64, 64)), "hides all of it"),
        ((images[..., :32], images, torch.ones(64, 64)), "64 x 64"),
    ]:
        with pytest.raises(UsageError, match=message):
            fastinv.diffuse(faces64, *arguments)
    G = noisy()
    with pytest.raises(UsageError, match="idinvert starts from an encoder's code"):
        fastinv.diffuse(G, images[..., :8, :8], images[..., :8, :8], torch.ones(8, 8))


@pytest.mark.slow
def test_a_face_in_another_context(faces64, network):
    """The middle of the face becomes the target's; background, shirt and the length of the hair stay the context's."""
    images = faces.sample(12, seed=5, split="heldout")[0]
    target, context = images[[0, 1, 4]], images[[6, 7, 10]]
    mask = box(64, tuple(64 * part for part in FACE_CENTER), 64 * FACE_SIZE)
    start = fastinv.diffuse(faces64, target, context, mask, steps=0, progress=False)
    result = fastinv.diffuse(faces64, target, context, mask, progress=False)
    before, after = (torch.tensor(one.metrics["mse_masked"]) for one in (start, result))
    assert (after < 0.15 * before).all(), (before, after)
    read = [network.standardised(pictures.clamp(-1, 1)) for pictures in (target, context, result.images)]
    way = read[1] - read[0]
    of_context = ((read[2] - read[0]) * way).sum(0) / way.square().sum(0)
    face, around = names("smile", "eye_open", "glasses", "yaw"), names("bg_hue", "bg_light", "shirt")
    assert (of_context[face] < 0.25).all() and (of_context[around] > 0.6).all(), of_context
