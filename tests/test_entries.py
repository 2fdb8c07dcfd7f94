"""Style channels, smaller pictures and features: the plain network, the frozen and the fused one give the same."""

import copy
import gc
import pickle

import pytest
import torch
from ops_contract import relative_error
from test_frozen import CHANNELS, codes, generator, noise_maps
from test_fused import NATIVE, WAYS, prepared, unfused

from fastinv.errors import UsageError
from fastinv.models.stylegan2 import Generator

RESOLUTIONS = sorted(CHANNELS)
# What makes a synthesis of a generator in float64, each by other code.
MAKERS = {"plain": lambda G: G, "frozen": unfused, "fused": prepared}
each_maker = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


def randn_like(x, seed):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)


def derivatives(function, *inputs):
    """The results of function(*inputs), and the gradients of a weighted sum of them in each input."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    results = function(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    total = sum((result.double() * randn_like(result, 10 + i).double()).sum() for i, result in enumerate(results))
    return [*(result.detach() for result in results), *torch.autograd.grad(total, inputs)]


def compare(found, truth, bound):
    for a, b in zip(found, truth, strict=True):
        assert relative_error(a, b) < bound


def with_maps(names, function):
    """function(code, ..., {name: map}) as one of (code, ..., *maps)."""
    count = len(names)
    return lambda *inputs: function(*inputs[:-count], noise=dict(zip(names, inputs[-count:], strict=True)))


def state(G, resolution, n=2, dtype=torch.float64):
    """Features and a picture that no code makes."""
    x, picture = G.features(codes(G, n).to(G.w_avg.dtype), resolution)
    return (x + 0.5 * randn_like(x, 3)).detach().to(dtype), (picture + 0.5 * randn_like(picture, 4)).detach().to(dtype)


def variables(G, n, dtype, features_at=None):
    """Codes, features and noise maps to derive in: [w_plus, styles, x, picture, *maps]."""
    maps = noise_maps(G, n).values()
    own = [codes(G, n), G.styles(codes(G, n)) + 0.1, *state(G, features_at or 8, n), *maps]
    return [x.detach().to(dtype) for x in own]


# --- style channels


def test_number_and_order_of_the_style_channels():
    with torch.device("meta"):
        layers = Generator(1024).style_layers()
    assert list(layers)[:5] == ["b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1", "b8.torgb"]
    assert list(layers)[-1] == "b1024.torgb" and list(layers.values())[-1].stop == 9088
    assert layers["b4.conv1"] == slice(0, 512) and layers["b1024.torgb"] == slice(9088 - 32, 9088)
    assert sum(own.stop - own.start for name, own in layers.items() if name.endswith("torgb")) == 3040
    assert all(a.stop == b.start for a, b in zip(list(layers.values()), list(layers.values())[1:]))


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_styles_are_what_the_affine_layers_give(architecture):
    G = generator(architecture=architecture).double()
    w_plus, weights = codes(G, 3), dict(G.synthesis.named_parameters())
    inputs = {"b4.conv1": 0, "b4.torgb": 1}
    for r, first in ((8, 1), (16, 3), (32, 5)):
        inputs |= {f"b{r}.conv0": first, f"b{r}.conv1": first + 1, f"b{r}.torgb": first + 2}
    layers, P = G.style_layers(), G.prepare()
    assert layers == P.style_layers()
    assert list(layers) == [name for name in inputs if f"{name}.affine.weight" in weights]
    truth = [
        w_plus[:, inputs[name]] @ weights[f"{name}.affine.weight"].t() / G.w_dim**0.5 + weights[f"{name}.affine.bias"]
        for name in layers
    ]
    assert relative_error(G.styles(w_plus), torch.cat(truth, 1)) < 1e-14
    assert relative_error(P.styles(w_plus), torch.cat(truth, 1)) < 1e-14
    assert G.styles(w_plus[:0]).shape == P.styles(w_plus[:0]).shape == (0, list(layers.values())[-1].stop)


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
@pytest.mark.parametrize("make", ["plain", "prepared"])
def test_styles_make_the_picture_and_the_gradients_of_their_w_plus(architecture, make):
    G = generator(architecture=architecture).double()
    Q, maps = G if make == "plain" else G.prepare(), noise_maps(G, 3)
    truth = derivatives(lambda w: G.synthesis(w, noise=maps), codes(G, 3))
    compare(derivatives(lambda w: Q.synthesis(Q.styles(w), noise=maps), codes(G, 3)), truth, 1e-11)


@pytest.mark.parametrize("architecture", ["skip", "orig"])
@pytest.mark.parametrize("make", ["plain", "prepared"])
def test_w_plus_of_styles(architecture, make):
    """Least squares: w itself where an input has as many channels, else of all w that fit the nearest to w_avg."""
    G = generator(architecture=architecture).double()
    G.mapping.w_avg.normal_()
    Q, w_plus = G if make == "plain" else G.prepare(), codes(G, 3)
    found = Q.w_plus_of_styles(Q.styles(w_plus))
    assert relative_error(Q.styles(found), Q.styles(w_plus)) < 1e-12
    wide = slice(0, 6) if architecture == "skip" else slice(0, 5)  # of 8; the others have 4 channels for 8 numbers
    assert relative_error(found[:, wide], w_plus[:, wide]) < 1e-11
    assert not torch.allclose(found[:, 7], w_plus[:, 7])
    weight, bias = G.synthesis.b32.torgb.affine.weight / 8**0.5, G.synthesis.b32.torgb.affine.bias
    other = torch.randn(3, list(G.style_layers().values())[-1].stop, dtype=torch.float64)  # of no w_plus
    residual = other[:, G.style_layers()["b32.torgb"]] - bias - weight @ G.w_avg
    truth = G.w_avg + torch.linalg.lstsq(weight.detach(), residual.detach().t(), driver="gelsd").solution.t()
    assert relative_error(Q.w_plus_of_styles(other)[:, 7], truth) < 1e-11
    weight, bias = G.synthesis.b4.conv1.affine.weight / 8**0.5, G.synthesis.b4.conv1.affine.bias
    residual = other[:, G.style_layers()["b4.conv1"]] - bias
    truth = torch.linalg.lstsq(weight.detach(), residual.detach().t(), driver="gelsd").solution.t()
    assert relative_error(Q.w_plus_of_styles(other)[:, 0], truth) < 1e-11
    assert Q.w_plus_of_styles(other[:0]).shape == (0, 8, 8)


def test_w_plus_of_styles_of_an_affine_layer_without_full_rank():
    G = generator().double()
    with torch.no_grad():
        G.synthesis.b4.conv1.affine.weight[:, 3] = G.synthesis.b4.conv1.affine.weight[:, 2]
    styles = G.styles(codes(G))
    assert relative_error(G.styles(G.w_plus_of_styles(styles)), styles) < 1e-12
    found = G.float().w_plus_of_styles(styles.float())
    assert found.dtype == torch.float32 and found.abs().max() < 100


# --- all of it, as one picture and its gradients


@each_maker
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("n", [1, 3])
def test_style_channels(maker, clamp, n):
    G = generator(conv_clamp=clamp).double()
    _, styles, _, _, *maps = variables(G, n, torch.float64)
    names = list(G.synthesis.noise_layers())
    truth = derivatives(with_maps(names, lambda s, noise: _by_styles(G, s, noise)), styles, *maps)
    compare(derivatives(with_maps(names, maker(G).synthesis), styles, *maps), truth, 1e-11)


def _by_styles(G, styles, noise):
    """The picture from style channels by way of affine layers that give just those, for one of a batch at a time."""
    pictures = []
    for i, own in enumerate(styles):
        layers = {name: own[place] for name, place in G.style_layers().items()}
        changed = {
            f"{name}.affine.weight": torch.zeros_like(G.synthesis.get_submodule(name).affine.weight) for name in layers
        }
        changed |= {f"{name}.affine.bias": bias for name, bias in layers.items()}
        maps = {name: given if given.ndim == 2 else given[i : i + 1] for name, given in noise.items()}
        w_plus = styles.new_zeros(1, G.num_ws, G.w_dim)
        pictures.append(torch.func.functional_call(G.synthesis, changed, (w_plus,), {"noise": maps}))
    return torch.cat(pictures)


@pytest.mark.parametrize("maker", [unfused, prepared], ids=["frozen", "fused"])
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_smaller_pictures(maker, clamp, resolution):
    """The plain network is the oracle: stopping it early is nothing but leaving its loop."""
    G = generator(conv_clamp=clamp).double()
    P, names = maker(G), list(G.synthesis.noise_layers())
    w_plus, styles, _, _, *maps = variables(G, 3, torch.float64)
    for code in (w_plus, styles):
        results = [
            derivatives(with_maps(names, lambda c, noise, Q=Q: Q.synthesis(c, noise, resolution)), code, *maps)
            for Q in (P, G)
        ]
        assert results[0][0].shape == (3, 3, resolution, resolution)
        compare(*results, 1e-11)
        _, dcode, *dmaps = results[0]
        if code.ndim == 3:
            used = 2 * RESOLUTIONS.index(resolution) + 2
            assert dcode[:, :used].abs().amax((0, 2)).min() > 0 and not dcode[:, used:].any()
        else:
            used = P.style_layers()[f"b{resolution}.torgb"].stop
            assert dcode[:, :used].any() and not dcode[:, used:].any()
        sides = G.synthesis.noise_layers().values()
        assert all(bool(gradient.any()) == (r <= resolution) for gradient, r in zip(dmaps, sides, strict=True))
    with torch.no_grad():
        assert (
            relative_error(P.synthesis(w_plus, resolution=resolution), G.synthesis(w_plus, resolution=resolution))
            < 1e-11
        )


@each_maker
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_features_go_on_to_the_same_picture(maker, clamp, resolution):
    """In one or in two stages: the picture, and all gradients through both, are those of the whole plain network."""
    G = generator(conv_clamp=clamp).double()
    Q, names = maker(G), list(G.synthesis.noise_layers())
    w_plus, styles, _, _, *maps = variables(G, 3, torch.float64)

    def in_stages(code, noise):
        features = Q.features(code, resolution, noise)
        assert features[0].shape == (3, CHANNELS[resolution], resolution, resolution)
        assert features[1].shape == (3, 3, resolution, resolution)
        return Q.synthesis(code, noise, features=features)

    for code in (w_plus, styles):
        truth = derivatives(with_maps(names, G.synthesis), code, *maps)
        compare(derivatives(with_maps(names, in_stages), code, *maps), truth, 1e-11)


@pytest.mark.parametrize("maker", [unfused, prepared], ids=["frozen", "fused"])
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("resolution, last", [(4, None), (8, None), (16, None), (32, None), (4, 16), (8, 16), (8, 8)])
def test_features_that_no_code_makes(maker, clamp, resolution, last):
    G = generator(conv_clamp=clamp).double()
    P, names = maker(G), list(G.synthesis.noise_layers())
    w_plus, styles, x, picture, *maps = variables(G, 3, torch.float64, resolution)
    for code in (w_plus, styles):
        results = [
            derivatives(
                with_maps(names, lambda c, x, p, noise, Q=Q: Q.synthesis(c, noise, last, features=(x, p))),
                code, x, picture, *maps,
            )
            for Q in (P, G)
        ]  # fmt: skip
        assert results[0][0].shape == (3, 3, last or 32, last or 32)
        compare(*results, 1e-11)
    with torch.no_grad():
        found, truth = (Q.synthesis(w_plus, resolution=last, features=(x, picture)) for Q in (P, G))
    assert relative_error(found, truth) < 1e-11


@each_maker
def test_gradients_are_those_of_finite_differences(maker):
    torch.manual_seed(0)
    G = Generator(16, 4, 4, channels={4: 4, 8: 4, 16: 3}, mapping_layers=1).double()
    with torch.no_grad():
        G.synthesis.b16.conv0.noise_strength.fill_(0.5)
    Q, w_plus = maker(G), codes(G).requires_grad_()
    styles, (x, picture) = (G.styles(codes(G)) + 0.1).detach().requires_grad_(), state(G, 8)
    x, picture = x.requires_grad_(), picture.requires_grad_()
    noise = torch.randn(2, 1, 16, 16, dtype=torch.float64, requires_grad=True)

    def resumed(code, x, picture, noise):
        return Q.synthesis(code, {"b16.conv0": noise}, features=(x, picture))

    assert torch.autograd.gradcheck(Q.styles, w_plus, fast_mode=True)
    assert torch.autograd.gradcheck(Q.synthesis, styles, fast_mode=True)
    assert torch.autograd.gradcheck(lambda w: Q.synthesis(w, resolution=8), w_plus, fast_mode=True)
    assert torch.autograd.gradcheck(lambda w: Q.features(w, 8), w_plus, fast_mode=True)
    for code in (w_plus, styles):
        assert torch.autograd.gradcheck(resumed, (code, x, picture, noise), fast_mode=True)


@pytest.mark.parametrize("wanted", range(4), ids=["code", "x", "picture", "noise"])
@each_maker
def test_only_what_is_asked_for_gets_a_gradient(maker, wanted):
    G = generator().double()
    values = [codes(G), *state(G, 8), noise_maps(G, 2)["b16.conv1"]]

    def gradient(Q, which):
        inputs = [v.clone().requires_grad_(i in which) for i, v in enumerate(values)]
        image = Q.synthesis(inputs[0], {"b16.conv1": inputs[3]}, features=inputs[1:3])
        return torch.autograd.grad((image * randn_like(image, 5)).sum(), [inputs[i] for i in which])

    assert relative_error(gradient(maker(G), [wanted])[0], gradient(G, range(4))[wanted]) < 1e-11


def test_second_derivatives_of_the_plain_network():
    G = Generator(8, 4, 4, channels={4: 3, 8: 2}, mapping_layers=1).double()
    torch.manual_seed(0)
    styles = (G.styles(codes(G)) + 0.1).detach().requires_grad_()
    noise = torch.zeros(8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(G.synthesis, styles, atol=1e-6, fast_mode=True)
    small = G.synthesis(codes(G).requires_grad_(), {"b8.conv1": noise}, resolution=4)
    assert not torch.autograd.grad(small.square().sum(), noise, create_graph=True)[0].any()


# --- precision


FROZEN_WAYS = [(dtype, "unfused") for dtype in (torch.float32, torch.bfloat16, torch.float16)]
# Name -> the results by Q.synthesis, ... of (code, x, picture, noise), with options of the plain network.
PATHS = {
    "styles": lambda G, s, x, picture, noise, **options: G.synthesis(s, noise, **options),
    "resolution": lambda G, s, x, picture, noise, **options: G.synthesis(s, noise, resolution=16, **options),
    "features": lambda G, s, x, picture, noise, **options: G.synthesis(s, noise, features=(x, picture), **options),
    "to features": lambda G, s, x, picture, noise, **options: _features(G, s, noise, **options),
}


def _features(G, code, noise, **options):
    return G.synthesis.features(code, 16, noise, **options) if options else G.features(code, 16, noise)


@pytest.mark.parametrize("dtype, impl", WAYS + FROZEN_WAYS, ids=str)
@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("path", PATHS)
def test_as_close_to_float64_as_layer_by_layer(dtype, impl, clamp, path):
    """Mean errors at most twice those of the plain network; of gradients over some codes and all inputs, since a single
    one depends on which values rounding carries over the kink of the activation."""
    G, exact = generator(conv_clamp=clamp), generator(conv_clamp=clamp).double()
    P = unfused(G, dtype) if impl == "unfused" else prepared(G, dtype, impl)
    names, errors = ["b16.conv0", "b16.conv1", "b32.conv1"], []
    for seed in range(7):
        n = 3 if seed % 2 else 1
        styles = exact.styles(randn_like(codes(G, n), seed)).detach().float()
        x, picture = state(exact, 8, n)
        maps = [randn_like(noise_maps(G, n)[name], seed).float() for name in names]
        inputs = [styles, x.to(dtype).float(), picture.float(), *maps]

        def results(Q, inputs, **options):
            used = [0, 1, 2] if path == "features" else [0]
            values = [inputs[i] for i in used] + inputs[3:]

            def call(*given):
                given = {**dict(zip(used, given)), **dict(zip(range(3, 6), given[len(used) :]))}
                noise = {name: given[3 + i] for i, name in enumerate(names)}
                return PATHS[path](Q, given[0], given.get(1), given.get(2), noise, **options)

            return derivatives(call, *values)

        truth = results(exact, [t.double() for t in inputs])
        found, plain = results(P, inputs), results(G, inputs, dtype=dtype)
        scales = [t.norm() or 1.0 for t in truth]
        errors.append(
            [[float((a.double() - t).norm() / s) for a, t, s in zip(r, truth, scales)] for r in (found, plain)]
        )
    count = 2 if path == "to features" else 1  # of results; gradients follow
    ours, others = torch.tensor(errors).mean(0)
    assert (ours[:count] <= 2 * others[:count]).all() and ours[count:].mean() <= 2 * others[count:].mean()


@pytest.mark.parametrize("dtype, impl", WAYS, ids=str)
def test_two_stages_give_the_bits_of_one(dtype, impl):
    P = prepared(generator(), dtype, impl)
    w_plus = codes(P, 3, torch.float32)
    for resolution in RESOLUTIONS:
        features = P.features(w_plus, resolution)
        assert features[0].dtype == features[1].dtype == torch.float32
        assert torch.equal(P.synthesis(w_plus, features=features), P.synthesis(w_plus))
        assert torch.equal(P.synthesis(w_plus, resolution=resolution), features[1])


@pytest.mark.parametrize("scales", [(1e-7, 0.0), (0.0, 1e-7), (1e4, 1e-7)])
def test_float16_gradients_of_features_keep_to_the_range(scales):
    """Tiny gradients of the features or the picture, and huge ones."""
    G = generator()
    w_plus = codes(G, dtype=torch.float32)

    def gradient(P, w_plus):
        w_plus = w_plus.clone().requires_grad_()
        x, picture = P.features(w_plus, 16)
        results = x.to(w_plus), picture.to(w_plus)
        total = sum((t * randn_like(t, 6)).sum() * scale for t, scale in zip(results, scales, strict=True))
        return torch.autograd.grad(total, w_plus)[0]

    found, truth = gradient(G.prepare(torch.float16), w_plus), gradient(G.double(), w_plus.double())
    assert (found - truth).norm() / truth.norm() < 6e-2  # a few values lie beyond the kink


# --- memory, copies


def steps(P):
    """One step of every kind."""
    for n in (2, 1, 2):
        w_plus = codes(P, n, torch.float32).requires_grad_()
        P.synthesis(P.styles(w_plus)).sum().backward()
        P.synthesis(w_plus, resolution=8).sum().backward()
        x, picture = (t.detach().requires_grad_() for t in P.features(w_plus, 8))
        P.synthesis(w_plus, features=(x, picture)).sum().backward()
        with torch.no_grad():
            P.synthesis(w_plus, features=P.features(w_plus, 8))


@pytest.mark.parametrize("impl", ["ref"] + ["native"] * bool(NATIVE))
def test_memory_does_not_grow_with_the_steps(impl):
    P, kept = prepared(generator(), impl=impl), []
    gc.disable()  # nothing may wait for a collection
    try:
        for _ in range(10):
            steps(P)
            kept.append(P._fused.arena.free_bytes())
    finally:
        gc.enable()
    assert len(set(kept[1:])) == 1
    assert all(part.arena is P._fused.arena for part in P._fused._parts.values()) and len(P._fused._parts) == 2


@pytest.mark.parametrize("impl", ["ref"] + ["native"] * bool(NATIVE))
def test_parts_share_all_weights(impl):
    P = prepared(generator(), impl=impl)
    w_plus = codes(P, dtype=torch.float32).requires_grad_()
    P.synthesis(w_plus).sum().backward()
    before = [dict(layer.convolution._packed) for layer in P._fast.layers]
    steps(P)
    assert [dict(layer.convolution._packed) for layer in P._fast.layers] == before
    assert P._fast._parts
    for part in P._fast._parts.values():
        for name in ("affine_weight", "affine_bias", "weight_sumsq", "style_gain", "bias"):
            whole, own = getattr(P._fast, name), getattr(part, name)
            assert own.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() and own.is_contiguous()
        convolutions = {id(layer.convolution) for layer in P._fast.layers}
        assert {id(layer.convolution) for layer in part.layers} < convolutions


@pytest.mark.parametrize("maker", [unfused, prepared], ids=["frozen", "fused"])
def test_results_are_the_callers_own_and_graphs_may_be_retained(maker):
    G = generator()
    P, w_plus = maker(G), codes(G, dtype=torch.float32).requires_grad_()
    x, picture = P.features(w_plus, 8)
    kept = x.detach().clone(), picture.detach().clone()
    loss = P.synthesis(w_plus, features=(x, picture)).square().sum()
    first = torch.autograd.grad(loss, w_plus, retain_graph=True)[0]
    P.synthesis(w_plus + 1, features=P.features(w_plus + 1, 8)).sum().backward()
    assert torch.equal(x, kept[0]) and torch.equal(picture, kept[1])
    assert torch.equal(torch.autograd.grad(loss, w_plus)[0], first)
    with torch.no_grad():
        again = P.features(w_plus, 8)
        P.features(w_plus + 1, 8)
        assert torch.equal(again[0], kept[0]) and torch.equal(again[1], kept[1])
        again[0].zero_(), again[1].zero_()
        assert torch.equal(P.features(w_plus, 8)[0], kept[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda P: pickle.loads(pickle.dumps(P))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("maker", [unfused, prepared], ids=["frozen", "fused"])
def test_copies_of_a_prepared_generator(maker, copied):
    P = maker(generator())
    w_plus = codes(P, dtype=torch.float32)
    features = P.features(w_plus, 8)
    other = copied(P)
    assert torch.equal(other.synthesis(w_plus, features=features), P.synthesis(w_plus, features=features))
    assert torch.equal(other.synthesis(w_plus, resolution=8), P.synthesis(w_plus, resolution=8))
    assert torch.equal(other.synthesis(other.styles(w_plus)), P.synthesis(P.styles(w_plus)))


@pytest.mark.parametrize("dtype, impl", WAYS + FROZEN_WAYS, ids=str)
def test_an_empty_batch(dtype, impl):
    P = unfused(generator(), dtype) if impl == "unfused" else prepared(generator(), dtype, impl)
    w_plus = codes(P, dtype=torch.float32)[:0].requires_grad_()
    features = P.features(w_plus, 8)
    pictures = P.synthesis(w_plus, features=features), P.synthesis(w_plus, resolution=8), P.synthesis(P.styles(w_plus))
    assert [picture.shape for picture in pictures] == [(0, 3, r, r) for r in (32, 8, 32)]
    assert torch.autograd.grad(sum(picture.sum() for picture in pictures), w_plus)[0].shape == w_plus.shape


@pytest.mark.parametrize("dtype, impl", WAYS, ids=str)
def test_autocast_and_inference_mode_change_nothing(dtype, impl):
    P = prepared(generator(), dtype, impl)
    w_plus = codes(P, dtype=torch.float32)
    with torch.inference_mode():  # the parts are made in here
        pictures = [P.synthesis(w_plus, features=P.features(w_plus, 8)), P.synthesis(w_plus, resolution=8)]
    x, picture = P.features(w_plus, 8)
    expected = derivatives(lambda w, x, p: P.synthesis(w, features=(x, p)), w_plus, x, picture)
    assert torch.equal(pictures[0], expected[0]) and torch.equal(pictures[1], picture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = derivatives(lambda w, x, p: P.synthesis(w, features=(x, p)), w_plus, x, picture)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("make", ["prepared", "plain"])
def test_a_filter_that_is_not_separable_runs_layer_by_layer(make):
    G = generator()
    for r in (8, 16, 32):
        getattr(G.synthesis, f"b{r}").conv0.resample_filter = torch.ones(6, 6) / 36
    P, w_plus = G.prepare() if make == "prepared" else G, codes(G, dtype=torch.float32)
    assert make == "plain" or "four taps" in P.layerwise
    truth = derivatives(lambda w: P.synthesis(w), w_plus)
    compare(derivatives(lambda w: P.synthesis(P.styles(w), features=P.features(w, 8)), w_plus), truth, 1e-4)
    assert relative_error(P.synthesis(w_plus, resolution=8), P.features(P.styles(w_plus), 8)[1]) < 1e-5


# --- refusals


BAD = [
    (lambda Q, w: Q.synthesis(torch.zeros(2, 7)), r"style channels must have shape \[N, 98\], not \[2, 7\]"),
    (lambda Q, w: Q.synthesis(torch.zeros(2, 3, 8)), r"w_plus must have shape \[N, 8, 8\]"),
    (lambda Q, w: Q.synthesis(torch.zeros(8)), "w_plus must have shape"),
    (lambda Q, w: Q.styles(torch.zeros(2, 98)), "w_plus must have shape"),
    (lambda Q, w: Q.w_plus_of_styles(w), "style channels must have shape"),
    (lambda Q, w: Q.synthesis(w, resolution=12), "resolution must be one of 4, 8, 16, 32, not 12"),
    (lambda Q, w: Q.features(w, 64), "resolution must be one of 4, 8, 16, 32, not 64"),
    (lambda Q, w: Q.features(w, None), "resolution must be one of .*, not None"),
    (lambda Q, w: Q.synthesis(w, features=Q.features(w[:1], 8)), r"features: x must have shape \[2, 10, 8, 8\]"),
    (lambda Q, w: Q.synthesis(w, features=Q.features(w, 8)[::-1]), r"features: x must have shape"),
    (
        lambda Q, w: Q.synthesis(w, features=(Q.features(w, 8)[0], torch.zeros(2, 3, 16, 16))),
        r"features: picture must have shape \[2, 3, 8, 8\], not \[2, 3, 16, 16\]",
    ),
    (lambda Q, w: Q.synthesis(w, features=(torch.zeros(2, 10, 7, 7), torch.zeros(2, 3, 7, 7))), "the size of a block"),
    (lambda Q, w: Q.synthesis(w, features=torch.zeros(2, 10, 8, 8)), "features must be a pair of tensors"),
    (lambda Q, w: Q.synthesis(w, features=(torch.zeros(2, 10, 8, 8), None)), "features must be a pair of tensors"),
    (
        lambda Q, w: Q.synthesis(w, resolution=4, features=Q.features(w, 8)),
        "beyond the resolution that is asked for, 4",
    ),
    (lambda Q, w: Q.features(w, 8, noise="constant"), "noise must be one of const"),
]


@pytest.mark.parametrize("make", ["plain", "prepared"])
@pytest.mark.parametrize("call, message", BAD)
def test_bad_arguments_are_refused(make, call, message):
    G = generator()
    with pytest.raises(UsageError, match=message):
        call(G if make == "plain" else G.prepare(), codes(G, dtype=torch.float32))


@pytest.mark.parametrize("architecture", ["resnet", "orig"])
@pytest.mark.parametrize("make", ["plain", "prepared"])
def test_other_architectures_have_no_pictures_in_between(make, architecture):
    G = generator(architecture=architecture)
    Q, w_plus = G if make == "plain" else G.prepare(), codes(G, dtype=torch.float32)
    with pytest.raises(UsageError, match=f"smaller picture needs the skip architecture; .* {architecture!r}"):
        Q.synthesis(w_plus, resolution=8)
    with pytest.raises(UsageError, match="needs the skip architecture"):
        Q.features(w_plus, 8)
    with pytest.raises(UsageError, match="features need the skip architecture"):
        Q.synthesis(w_plus, features=(torch.zeros(2, 10, 8, 8), torch.zeros(2, 3, 8, 8)))


def test_second_derivatives_of_a_prepared_generator_are_refused():
    P = prepared(generator())
    styles = P.styles(codes(P, dtype=torch.float32)).requires_grad_()
    with pytest.raises(UsageError, match="first derivatives only"):
        torch.autograd.grad(P.synthesis(styles).sum(), styles, create_graph=True)


@pytest.mark.slow
def test_compiles_into_one_graph():
    P = generator().prepare()
    w_plus = codes(P, dtype=torch.float32)

    def call(w):
        return P.synthesis(P.styles(w), features=P.features(w, 8)).square().sum() + P.synthesis(w, resolution=8).sum()

    expected = derivatives(call, w_plus)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    compare(derivatives(compiled, w_plus), expected, 1e-5)
