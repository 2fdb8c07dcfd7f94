"""Directions: every way of finding them where the answer is known, and the edit in every space."""

import csv
import json

import numpy as np
import pytest
import torch

import fastinv
from fastinv.checkpoints import network_hash, save_network
from fastinv.cli import main
from fastinv.data import faces
from fastinv.editing.apply import edit
from fastinv.editing.codes import render
from fastinv.editing.direction import Direction, bundled, find_direction, load_directions, save_directions
from fastinv.editing.ganspace import ganspace
from fastinv.editing.interfacegan import boundary, conditional, deviation, interfacegan
from fastinv.editing.regression import regression
from fastinv.editing.samples import Samples, effects, given_samples, read_samples, scaled
from fastinv.editing.sefa import sefa, style_weights
from fastinv.editing.stylespace import change_maps, inside, ranking, style_statistics, stylespace
from fastinv.errors import UsageError
from fastinv.inversion.spaces import FW, S
from fastinv.latents import expand, mapped_samples
from fastinv.models.entries import style_inputs
from fastinv.models.stylegan1 import StyleGAN1Generator
from fastinv.models.stylegan2 import Generator

WIDTH = 6


def make(seed: int = 0, kind=Generator):
    torch.manual_seed(seed)
    return kind(16, 5, WIDTH, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2).eval().requires_grad_(False)


@pytest.fixture
def G():
    return make()


def random(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(seed: int = 0) -> torch.Tensor:
    """An orthonormal basis of W, as rows."""
    return torch.linalg.qr(random(WIDTH, WIDTH, seed=seed))[0]


def aligned(a: torch.Tensor, b: torch.Tensor) -> float:
    """The cosine between vectors, whatever their sign."""
    return float(torch.cosine_similarity(a.double(), b.double(), 0).abs())


# ---- SeFa


@pytest.mark.parametrize("kind", [Generator, StyleGAN1Generator])
def test_sefa_finds_what_the_affines_amplify(kind):
    """Every affine stretches known axes by known factors; the affine of another layer has other ones."""
    G, axes, others = make(kind=kind), basis(1), basis(2)
    factors = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    layers = [name for name, module in G.synthesis.named_modules() if hasattr(module, "affine")]
    for name in layers:
        affine = G.synthesis.get_submodule(name).affine
        rows = len(affine.weight)
        left = torch.linalg.qr(random(rows, WIDTH, seed=3))[0]  # orthonormal columns
        own = others if name == "b16.conv1" else axes
        affine.weight.copy_(left @ (factors[:, None] * own))
    end = G.num_ws - 2
    found = sefa(G, 3, (0, end), normalise=False)
    assert [one.name for one in found] == ["sefa-0", "sefa-1", "sefa-2"]
    for one, axis in zip(found, axes, strict=False):
        assert aligned(one.vector, axis) > 1 - 1e-6 and one.layers == (0, end)
        assert one.vector[one.vector.abs().argmax()] > 0
        spread = (mapped_samples(G, 10_000) @ axis).std(correction=0)
        assert float(one.vector.double().norm()) == pytest.approx(float(spread), rel=1e-4)
    shares = [one.facts["eigenvalue share"] for one in found]
    expected = (factors**2 / (factors**2).sum())[:3]
    assert shares == pytest.approx(expected.tolist(), rel=1e-6)
    last = {Generator: (G.num_ws - 2, G.num_ws - 1), StyleGAN1Generator: (G.num_ws - 1, G.num_ws)}[kind]
    assert aligned(sefa(G, 1, last, normalise=False)[0].vector, others[0]) > 1 - 1e-6


def test_sefa_looks_at_the_layers_of_the_paper(G):
    """The convolutions, and the last toRGB; each channel counts the same if its weight is normalised."""
    names = ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1", "b16.torgb"]
    weights = [G.synthesis.get_submodule(name).affine.weight.double() / WIDTH**0.5 for name in names]
    torch.testing.assert_close(style_weights(G), torch.cat(weights))
    torch.testing.assert_close(style_weights(G, (4, 6)), torch.cat(weights[4:]))
    rows = torch.cat(weights[1:3])
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = torch.linalg.svd(unit)[2]
    for one, axis in zip(sefa(G, WIDTH, (1, 3)), expected, strict=True):
        assert aligned(one.vector, axis) > 1 - 1e-5
    for wrong in ((0, 7), (3, 3), (-1, 2)):
        with pytest.raises(UsageError, match="layers must be"):
            sefa(G, 1, wrong)
    with pytest.raises(UsageError, match="from 1 to 6, not 7"):
        sefa(G, 7)


# ---- GANSpace


def test_ganspace_is_pca(G):
    found = ganspace(G, WIDTH, (2, 4), samples=3000, seed=5)
    w = mapped_samples(G, 3000, seed=5).numpy()
    _, values, axes = np.linalg.svd(w - w.mean(0), full_matrices=False)
    for one, value, axis in zip(found, values, axes, strict=True):
        expected = torch.from_numpy(axis * value / 3000**0.5)
        assert aligned(one.vector, expected) > 1 - 1e-5
        assert float(one.vector.norm()) == pytest.approx(float(expected.norm()), rel=1e-4)
        assert one.layers == (2, 4) and one.facts["variance share"] == pytest.approx(value**2 / (values**2).sum())
    with pytest.raises(UsageError, match="need more samples than 6"):
        ganspace(G, 2, samples=6)


# ---- InterFaceGAN


def separable(count: int = 600, seed: int = 0):
    """(w, scores, the unit normal): the score is how far a code lies along the normal, and a threshold separates."""
    normal = random(WIDTH, seed=seed + 10)
    normal = normal / normal.norm()
    w = random(count, WIDTH, seed=seed)
    return w, w @ normal, normal


def test_a_known_boundary_is_found():
    w, scores, normal = separable()
    found = boundary(w + 3, 7 * scores - 1, share=0.25)
    assert float(found.normal.norm()) == pytest.approx(1)
    assert float(found.normal @ normal) > 0.99
    assert found.accuracy["training"] == found.accuracy["validation"] == 1
    assert found.accuracy["others"] > 0.9
    offset = float((w + 3).mean(0) @ found.normal)
    assert found.offset == pytest.approx(-offset, abs=0.15)  # the plane goes through the middle


def test_the_boundary_is_that_of_the_convex_problem():
    """Against the same problem, solved by plain gradient descent, where no plane separates."""
    w, scores, _ = separable(200)
    noisy = scores + 2 * random(200, seed=4)
    found = boundary(w, noisy, share=0.5, cost=0.3)
    assert 0.5 < found.accuracy["training"] < 1
    order = noisy.argsort(stable=True)
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat([part[torch.randperm(100, generator=generator)][:70] for part in (order[:100], order[100:])])
    x, y = w[rows], torch.where(torch.arange(140) < 70, -1.0, 1.0).double()
    scale = (x - x.mean(0)).square().mean().sqrt()
    x = (x - x.mean(0)) / scale
    n, b = torch.zeros(WIDTH, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(5000):
        short = (1 - y * (x @ n + b)).clamp_min(0)
        n, b = n - 1e-3 * (n - 0.6 * (short * y) @ x), b + 1e-3 * 0.6 * (short * y).sum()
    torch.testing.assert_close(found.normal, n / n.norm(), atol=1e-6, rtol=0)
    expected = float(b * scale / n.norm() - w[rows].mean(0) @ found.normal)
    assert found.offset == pytest.approx(expected, abs=1e-6)


def test_boundaries_that_cannot_be():
    w, scores, _ = separable(100)
    with pytest.raises(UsageError, match="a share of 0.02 of 100 codes .* gives 2"):
        boundary(w, scores)
    with pytest.raises(UsageError, match="a share of 0.6"):
        boundary(w, scores, share=0.6)
    with pytest.raises(UsageError, match="the 20 highest scores are not above the 20 lowest"):
        boundary(w, torch.zeros(100), share=0.2)


def test_conditional_directions_leave_the_others():
    normals = random(4, WIDTH)
    found = conditional(normals[0], torch.cat([normals[1:], normals[1:2] + normals[2:3]]))  # one too many
    assert float(found.norm()) == pytest.approx(1)
    torch.testing.assert_close(normals[1:] @ found, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    two = conditional(normals[0], normals[1:2])
    n0, n1 = (normal / normal.norm() for normal in normals[:2])
    expected = n0 - (n0 @ n1) * n1
    torch.testing.assert_close(two, expected / expected.norm())
    with pytest.raises(UsageError, match="nothing of it is left"):
        conditional(normals[1] + normals[2], normals[1:])


def test_interfacegan(G):
    """Two attributes that lie askew: the plain direction of one changes the other, the conditional one does not."""
    w, first, n0 = separable(2000)
    n1 = n0 + 0.7 * random(WIDTH, seed=8)
    n1 = n1 / n1.norm()
    samples = Samples(w, torch.stack([first / first.std(), w @ n1 / (w @ n1).std()], 1), ("a", "b"))
    plain = interfacegan(G, samples, share=0.2)
    assert [one.name for one in plain] == ["a", "b"] and plain[0].generator_sha256 == network_hash(G)
    assert plain[0].facts["accuracy"]["validation"] == 1
    # A strength of 1 is one standard deviation of the attribute.
    assert float(plain[0].vector.double() @ n0 / first.std()) == pytest.approx(1, abs=0.01)
    (held,) = interfacegan(G, samples, ["a"], ["a", "b"], share=0.2)
    assert held.facts["conditions"] == ["b"]
    assert abs(float(plain[0].vector.double() @ n1)) > 0.5 and abs(float(held.vector.double() @ n1)) < 0.1
    assert float(held.vector.double() @ n0 / first.std()) == pytest.approx(1, abs=0.01)
    with pytest.raises(UsageError, match="no scores of 'c'; there are a, b"):
        interfacegan(G, samples, ["c"])


def test_the_length_where_scores_say_nothing():
    w = random(500, WIDTH)
    unit = torch.eye(WIDTH, dtype=torch.float64)[0]
    assert deviation(w, -w[:, 0], unit) == pytest.approx(float(w[:, 0].std(correction=0)))


def test_regression(G):
    w = random(300, WIDTH)
    matrix = random(2, WIDTH, seed=1)
    found = regression(G, Samples(w, w @ matrix.T, ("a", "b")), (1, 4))
    effect = torch.stack([one.vector.double() for one in found]) @ matrix.T
    torch.testing.assert_close(effect, torch.eye(2, dtype=torch.float64), atol=1e-5, rtol=0)
    assert [(one.name, one.layers, one.source) for one in found] == [(name, (1, 4), "regression") for name in "ab"]


# ---- StyleSpace


def test_ranking_of_channels():
    """A channel that all positives have far from its mean, one that they have spread, one that nothing moves."""
    mean, std = torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), torch.tensor([2.0, 1.0, 1.0, 0.0]).double()
    positives = torch.tensor([[4.0, 1.0, 9.0, 4.0], [6.0, 3.0, 1.0, 4.0]]).double()
    # normalised: (1.5, 2.5), (-1, 1), (6, -2), nothing
    expected = torch.tensor([2 / 0.5**0.5, 0.0, 2 / 32**0.5, 0.0]).double()
    torch.testing.assert_close(ranking(positives, mean, std), expected)
    with pytest.raises(UsageError, match="2 pictures with the attribute at least, not 1"):
        ranking(positives[:1], mean, std)


def test_stylespace_finds_the_channel_of_an_attribute(G):
    """The score is minus one style channel, of a convolution; toRGB has one that goes with it, and is left out."""
    w = random(400, WIDTH)
    styles = G.styles(expand(w.float(), G.num_ws)).double()
    layers = G.style_layers()
    channel, colour = layers["b8.conv1"].start + 3, layers["b16.torgb"].start
    colours = G.synthesis.b16.torgb.affine
    colours.weight[0] = 100 * G.synthesis.b8.conv1.affine.weight[3]
    styles = G.styles(expand(w.float(), G.num_ws)).double()
    scores = -styles[:, channel]
    samples = Samples(w, ((scores - scores.mean()) / scores.std())[:, None], ("a",))
    (found,) = stylespace(G, samples, share=0.05)
    mean, std = style_statistics(G, w)
    expected = torch.zeros_like(std)
    expected[channel] = -std[channel]
    torch.testing.assert_close(found.vector.double(), expected, atol=1e-6, rtol=1e-6)
    assert found.facts["channels"][0]["layer"] == "b8.conv1" and found.facts["channels"][0]["channel"] == 3
    torch.testing.assert_close(mean, styles.mean(0))
    three = stylespace(G, samples, channels=3, share=0.05)[0].vector
    assert int((three != 0).sum()) == 3 and three[channel] < 0 and three[colour] == 0
    with pytest.raises(UsageError, match="a StyleGAN1Generator has none"):
        stylespace(make(kind=StyleGAN1Generator), samples)


def test_where_a_channel_acts(G):
    """The map is the difference of two pictures; the share of a region is what of it lies there."""
    std = torch.ones(G.style_layers()["b16.torgb"].stop)
    w_plus = expand(random(3, WIDTH).float(), G.num_ws)
    channels = [0, 17]
    maps = change_maps(G, channels, std, w_plus, amount=0.5)
    styles = G.styles(w_plus)
    for channel, found in zip(channels, maps, strict=True):
        up, down = styles.clone(), styles.clone()
        up[:, channel] += 0.5
        down[:, channel] -= 0.5
        expected = (G.synthesis(up) - G.synthesis(down)).abs().mean((0, 1)) / 2
        torch.testing.assert_close(found[::2, ::2], expected, atol=1e-5, rtol=1e-4)
    region = torch.zeros(16, 16)
    region[:8, :8] = 1
    part = maps[:, :16, :16].sum((1, 2)) / maps.sum((1, 2))
    torch.testing.assert_close(inside(maps, region), part, atol=0.02, rtol=0)
    assert inside(maps, torch.ones(16, 16)).tolist() == pytest.approx([1, 1])


def test_channels_of_a_region(G):
    """Of the channels that rank first only those that act in the region; all act everywhere, more or less."""
    w = random(200, WIDTH)
    samples = Samples(w, w[:, :1], ("a",))
    assert len(stylespace(G, samples, channels=2, share=0.1, region=torch.ones(16, 16))) == 1
    with pytest.raises(UsageError, match="0 of the first 5 channels of 'a' act in the region"):
        stylespace(G, samples, share=0.1, region=torch.zeros(16, 16), candidates=5)


# ---- edits, against rendering by hand


def test_edit_in_w(G):
    w_plus, vector = random(3, G.num_ws, WIDTH).float(), random(WIDTH, seed=1).float()
    found = edit(G, w_plus, Direction("x", "w", vector, (1, 4)), -1.5)
    expected = w_plus.clone()
    expected[:, 1:4] -= 1.5 * vector
    torch.testing.assert_close(found["w_plus"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(render(G, found), G.synthesis(expected), atol=1e-5, rtol=0)
    several = edit(G, w_plus[:1], Direction("x", "w", vector), [-1, 0, 2.5])
    for row, strength in enumerate((-1, 0, 2.5)):
        torch.testing.assert_close(several["w_plus"][row], w_plus[0] + strength * vector, atol=1e-6, rtol=0)
    torch.testing.assert_close(several["w_plus"][1], w_plus[0], atol=0, rtol=0)


def test_edit_in_w_plus(G):
    w_plus, vector = random(2, G.num_ws, WIDTH).float(), random(G.num_ws, WIDTH, seed=1).float()
    found = edit(G, w_plus, Direction("x", "w+", vector, (0, 2)), 2)
    expected = w_plus.clone()
    expected[:, :2] += 2 * vector[:2]
    torch.testing.assert_close(found["w_plus"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", [(0, None), (1, 3)])
def test_edit_in_s(G, layers):
    w_plus, styles = random(2, G.num_ws, WIDTH).float(), None
    vector = torch.zeros(G.style_layers()["b16.torgb"].stop)
    vector[::3] = 0.5
    found = edit(G, w_plus, Direction("x", "s", vector, layers), 2)
    styles = G.styles(w_plus)
    for name, own in G.style_layers().items():
        if layers == (0, None) or style_inputs(G.synthesis)[name] in (1, 2):
            styles[:, own] += 2 * vector[own]
    torch.testing.assert_close(found["styles"], styles, atol=1e-6, rtol=0)
    torch.testing.assert_close(render(G, found), G.synthesis(styles), atol=1e-5, rtol=0)
    # w_plus is the nearest: what is left is orthogonal to all that w_plus can do.
    weight, bias = G.synthesis.affines()
    left = found["styles"] - G.styles(found["w_plus"])
    for name, own in G.style_layers().items():
        inputs = [
            other for other, index in style_inputs(G.synthesis).items() if index == style_inputs(G.synthesis)[name]
        ]
        if len(inputs) == 1:
            assert (left[:, own] @ weight[own]).abs().max() < 1e-4
    # Styles that are there already are what moves.
    again = edit(G, found, Direction("x", "s", vector, layers), -2)
    torch.testing.assert_close(again["styles"], G.styles(w_plus), atol=1e-5, rtol=0)
    torch.testing.assert_close(again["w_plus"], w_plus, atol=1e-4, rtol=0)


def test_a_direction_of_w_moves_styles_and_leaves_the_rest(G):
    w_plus, vector = random(1, G.num_ws, WIDTH).float(), random(WIDTH, seed=1).float()
    space = S(G)
    codes = space.finish(space.start(w_plus, None, 0))
    codes["styles"] = codes["styles"] + 0.3  # off W+
    codes |= {"z": random(1, 5).float(), "noise.b8.conv0": random(1, 1, 8, 8).float()}
    direction = Direction("x", "w", vector, (2, 5))
    found = edit(G, codes, direction, [0, 1.5])
    step = torch.zeros(G.num_ws, WIDTH)
    step[2:5] = 1.5 * vector
    weight, _ = G.synthesis.affines()
    moved = torch.cat([weight[own] @ step[style_inputs(G.synthesis)[name]] for name, own in G.style_layers().items()])
    torch.testing.assert_close(found["styles"][0], codes["styles"][0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found["styles"][1], codes["styles"][0] + moved, atol=1e-5, rtol=0)
    assert "z" not in found
    torch.testing.assert_close(found["noise.b8.conv0"], codes["noise.b8.conv0"].expand(2, -1, -1, -1))


def test_edits_that_are_refused(G):
    w_plus, direction = torch.zeros(2, G.num_ws, WIDTH), Direction("x", "w", torch.ones(WIDTH))
    with pytest.raises(UsageError, match="several strengths are for one picture; these are the codes of 2"):
        edit(G, w_plus, direction, [1, 2])
    for strength in (float("nan"), []):
        with pytest.raises(UsageError, match="strength must be finite"):
            edit(G, w_plus, direction, strength)
    with pytest.raises(UsageError, match="is it for another generator"):
        edit(G, torch.zeros(1, G.num_ws, 5), direction, 1)
    with pytest.raises(UsageError, match="need a StyleGAN2 generator"):
        edit(make(kind=StyleGAN1Generator), torch.zeros(1, 6, WIDTH), Direction("x", "s", torch.ones(144)), 1)
    space = FW(G, False, 8)
    codes = space.codes(space.start(w_plus, None, 0))
    channels = G.style_layers()["b16.torgb"].stop
    with pytest.raises(UsageError, match="cannot be edited in space S"):
        edit(G, codes, Direction("x", "s", torch.ones(channels)), 1)


def test_a_direction_of_another_generator_is_refused(G):
    direction = Direction("x", "w", torch.ones(WIDTH), generator_sha256=network_hash(G))
    w_plus = torch.zeros(1, G.num_ws, WIDTH)
    own = edit(G, w_plus, direction, 1)["w_plus"]
    other = make(seed=1)
    with pytest.raises(UsageError, match="direction 'x' is for the generator .* --force"):
        edit(other, w_plus, direction, 1)
    torch.testing.assert_close(edit(other, w_plus, direction, 1, force=True)["w_plus"], own)


# ---- scores, effects and lengths


class Reader:
    """Two attributes of a picture: the means of its red and of its green."""

    def standardised(self, images):
        return images.mean((2, 3))[:, :2]


def test_read_samples(G):
    found = read_samples(G, Reader(), 30, seed=3, names=("red", "green"))
    w = mapped_samples(G, 30, 3)
    torch.testing.assert_close(found.w, w)
    expected = G.synthesis(expand(w.float(), G.num_ws)).mean((2, 3))[:, :2].double()
    torch.testing.assert_close(found.scores, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.of("green"), found.scores[:, 1])


def test_effects_and_lengths(G):
    w_plus = expand(random(4, WIDTH).float(), G.num_ws)
    direction = Direction("x", "w", random(WIDTH, seed=1).float() / 50)
    found = effects(G, direction, Reader(), w_plus)
    pictures = [G.synthesis(w_plus + sign * direction.vector / 2).mean((2, 3))[:, :2] for sign in (1, -1)]
    torch.testing.assert_close(found, (pictures[0] - pictures[1]).mean(0).double(), atol=1e-5, rtol=1e-4)
    longer = scaled(direction, G, Reader(), 1, w_plus, rounds=1)
    factor = 1 / abs(float(found[1]))
    expected = direction.vector * min(10, max(0.1, factor)) * float(found[1].sign())
    torch.testing.assert_close(longer.vector, expected, atol=1e-6, rtol=1e-3)


def test_scores_of_a_user(G, tmp_path):
    w = mapped_samples(G, 8, seed=4)
    with open(tmp_path / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "age"])
        writer.writerows([["00005.png", "1.5"], [2, "3"], ["7", -2]])
    found = given_samples(tmp_path / "scores.csv", G, seed=4)
    torch.testing.assert_close(found.w, w[[5, 2, 7]])
    scores = torch.tensor([1.5, 3, -2]).double()
    torch.testing.assert_close(found.of("age"), (scores - scores.mean()) / scores.std(correction=0))
    np.savez(tmp_path / "scores.npz", w=w.numpy(), age=np.arange(8), smile=np.ones(8, np.float32).cumsum() ** 2)
    found = given_samples(tmp_path / "scores.npz", G)
    assert found.names == ("age", "smile") and found.w.shape == (8, WIDTH)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no rows, or no column 'picture'"),
        ("age\n3\n", "has no rows, or no column 'picture'"),
        ("picture,age\n0,old\n", "line 2: age is 'old', not a number"),
        ("picture,age\nanna.png,1\n", "line 2: picture is 'anna', not a number"),
        ("picture,age\n0\n", "line 2: age is None, not a number"),
        ("picture,age\n0,1\n1,nan\n", "the scores of 'age' are not 2 finite numbers"),
        ("picture,age\n0,1\n1,1\n", "all scores of 'age' are equal"),
        ("picture,age\n-1,1\n1,2\n", "numbered from 0"),
        ("picture\n0\n1\n", "has no scores"),
    ],
)
def test_scores_that_cannot_be(G, tmp_path, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        given_samples(tmp_path / "scores.csv", G)


def test_scores_are_never_unpickled(G, tmp_path):
    np.savez(tmp_path / "scores.npz", w=np.zeros((3, WIDTH)), age=np.array([1, None, "x"], dtype=object))
    with pytest.raises(UsageError, match="cannot read the scores in .*scores.npz: Object arrays cannot be loaded"):
        given_samples(tmp_path / "scores.npz", G)
    with pytest.raises(UsageError, match="No such file"):
        given_samples(tmp_path / "none.csv", G)


# ---- the bundled ones


def test_the_bundled_directions():
    found = load_directions(bundled()["faces64"])
    assert tuple(found) == faces.NAMES
    G = fastinv.load_generator("faces64")
    own = network_hash(G)
    assert all(one.generator_sha256 == own for one in found.values())
    direction = find_direction("smile", G)
    assert direction.layers == (0, G.num_ws)
    # What the benchmark shows for all of them and more pictures: the attribute rises, the others stay.
    network = fastinv.load_attribute_network()
    codes = expand(mapped_samples(G, 6, seed=11).float(), G.num_ws)
    changes = effects(G, direction, network, codes)
    index = faces.NAMES.index("smile")
    others = (changes.abs().sum() - changes[index].abs()) / (len(changes) - 1)
    assert changes[index] > 0.5 and others < changes[index] / 3
    with pytest.raises(UsageError, match="no direction 'nonesuch': neither a file"):
        find_direction("nonesuch", G)
    with pytest.raises(UsageError, match="'smile' of faces64 is for another generator than this one"):
        find_direction("smile", make())


# ---- the commands


def test_find_list_and_show(G, tmp_path, capsys):
    save_network(G, tmp_path / "g.safetensors")
    about = ["--generator", str(tmp_path / "g.safetensors"), "--quiet"]
    out = tmp_path / "new" / "sefa.safetensors"
    arguments = ["directions", "find", "--method", "sefa", "--count", "2", "--layers", "1-3", "--out", str(out)]
    assert main([*arguments, *about]) == 0
    assert "sefa-1" in capsys.readouterr().out
    found = load_directions(out)
    torch.testing.assert_close(found["sefa-1"].vector, sefa(G, 2, (1, 4))[1].vector)
    assert found["sefa-1"].layers == (1, 4) and found["sefa-1"].generator_sha256 == network_hash(G)

    assert main(["directions", "list", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "SPACE", "LAYERS", "STRENGTH", "SOURCE"]
    assert lines[1].split() == ["sefa-0", "w", "1-3", "3", "sefa"]
    assert main(["directions", "list", "--json", str(out)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["sefa-0", "sefa-1"] and rows[0]["layers"] == [1, 4]

    picture = tmp_path / "strip.png"
    arguments = ["directions", "show", f"{out}:sefa-0", "--out", str(picture), *about[:2], "--count", "2"]
    assert main([*arguments, "-s", "-1", "-s", "2"]) == 0
    assert picture.stat().st_size > 1000
    save_network(make(seed=1), tmp_path / "g.safetensors")
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def test_directions_from_scores(G, tmp_path, capsys):
    save_network(G, tmp_path / "g.safetensors")
    about = ["--generator", str(tmp_path / "g.safetensors"), "--quiet", "--seed", "2"]
    folder = tmp_path / "samples"
    assert main(["directions", "sample", "--count", "40", "--out", str(folder), *about]) == 0
    assert len(list(folder.glob("*.png"))) == 40
    table = folder / "scores.csv"
    normal, w = random(WIDTH, seed=7), mapped_samples(G, 40, 2)
    names = table.read_text().split()
    assert names[:2] == ["picture", "00000.png"]
    table.write_text("picture,age\n" + "\n".join(f"{n},{float(x @ normal)}" for n, x in zip(names[1:], w, strict=True)))
    assert main(["directions", "sample", "--count", "40", "--out", str(folder), *about]) == 2
    assert "with your scores" in capsys.readouterr().err
    for method, more in (("interfacegan", ["--share", "0.3"]), ("regression", []), ("stylespace", ["--channels", "2"])):
        out = tmp_path / f"{method}.safetensors"
        arguments = ["directions", "find", "--method", method, "--scores", str(table), "--out", str(out), *more, *about]
        assert main(arguments) == 0, capsys.readouterr().err
        (found,) = load_directions(out).values()
        assert (found.name, found.source) == ("age", method)
        codes = edit(G, expand(w.float(), G.num_ws), found, 1)
        if found.space == "w":
            assert float(found.vector.double() @ normal) > 0
        else:
            assert int((found.vector != 0).sum()) == 2 and len(codes["styles"]) == 40


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "magic"], "unknown method 'magic'; choose one of sefa, ganspace"),
        (["--method", "sefa", "--share", "0.1"], "--share is for interfacegan and stylespace, not for sefa"),
        (["--method", "regression", "--keep", "all"], "--keep is for interfacegan, not for regression"),
        (["--method", "sefa", "--out", "x.pt"], "--out must be a .safetensors file"),
        (["--method", "sefa", "--layers", "1,3"], "--layers must be one range"),
        (["--method", "sefa", "--layers", "4-9"], "has no layer 9"),
        (["--method", "regression"], "whose attributes?"),
        (["--method", "regression", "--scores", "faces", "--attribute", "age"], "no scores of 'age'; there are yaw"),
        (["--method", "interfacegan", "--scores", "none.csv"], "No such file"),
        (["--method", "interfacegan", "--share", "0.7"], "--share must be above 0 and at most 0.5, not 0.7"),
        (["--method", "ganspace", "--samples", "1"], "--samples must be at least 2"),
        (["--method", "regression", "--scores", "s.csv", "--samples", "9"], "--samples is for scores that are read"),
    ],
)
def test_wrong_options_of_find(G, tmp_path, capsys, arguments, message):
    save_network(G, tmp_path / "g.safetensors")
    given = ["--generator", str(tmp_path / "g.safetensors"), "--out", str(tmp_path / "d.safetensors"), "--quiet"]
    assert main(["directions", "find", *given, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_files_of_others_are_not_replaced(G, tmp_path, capsys):
    save_network(G, tmp_path / "g.safetensors")
    about = ["--generator", str(tmp_path / "g.safetensors"), "--quiet"]
    before = (tmp_path / "g.safetensors").read_bytes()
    find = ["directions", "find", "--method", "sefa", "--count", "2", *about]
    assert main([*find, "--out", str(tmp_path / "g.safetensors")]) == 2
    assert "is there, and no file of directions" in capsys.readouterr().err
    assert (tmp_path / "g.safetensors").read_bytes() == before
    for _ in range(2):  # one of directions is
        assert main([*find, "--out", str(tmp_path / "d.safetensors")]) == 0
    (tmp_path / "00001.png").write_bytes(b"mine")
    assert main(["directions", "sample", "--count", "2", "--out", str(tmp_path), *about]) == 2
    assert "00001.png is there already" in capsys.readouterr().err
    assert (tmp_path / "00001.png").read_bytes() == b"mine" and not (tmp_path / "00000.png").exists()


def test_a_file_that_is_replaced_stays_whole(G, tmp_path):
    save_directions(tmp_path / "d.safetensors", sefa(G, 2))
    with pytest.raises(UsageError):
        save_directions(tmp_path / "d.safetensors", [])
    assert len(load_directions(tmp_path / "d.safetensors")) == 2


def test_help_does_not_import_torch(run_python):
    code = "import sys, fastinv.cli as c; c.main(['directions', 'find', '--help']); print('torch' in sys.modules)"
    result = run_python(code)
    assert result.stdout.splitlines()[-1] == "False", result.stderr
