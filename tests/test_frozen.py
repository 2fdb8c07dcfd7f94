"""The frozen synthesis network: every form of its convolutions, every dtype, and no gradient but that of the codes."""

import math

import pytest
import torch
from ops_contract import relative_error

from fastinv.errors import UsageError
from fastinv.models import convolution, frozen
from fastinv.models.convolution import Form, Forms, FrozenConvolution, candidates
from fastinv.models.stylegan2 import Generator
from fastinv.ops import synthesis

CHANNELS = {4: 12, 8: 10, 16: 8, 32: 4}


def generator(**options):
    torch.manual_seed(0)
    G = Generator(32, 8, 8, channels=CHANNELS, mapping_layers=1, **options)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("noise_strength", "conv0.bias", "conv1.bias", "torgb.bias")):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return G


def codes(G, n=2, dtype=torch.float64):
    return torch.randn(n, G.num_ws, G.w_dim, generator=torch.Generator().manual_seed(1)).to(dtype)


def image_and_gradients(P, w_plus, maps=None):
    w_plus = w_plus.clone().requires_grad_()
    maps = {name: value.clone().requires_grad_() for name, value in (maps or {}).items()}
    image = P.synthesis(w_plus, noise=maps or "const")
    cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(image)
    return [image.detach(), *torch.autograd.grad((image * cotangent).sum(), [w_plus, *maps.values()])]


def noise_maps(G, n):
    random = torch.Generator().manual_seed(4)
    shapes = [(r, r) if i % 2 else (n, 1, r, r) for i, r in enumerate(G.synthesis.noise_layers().values())]
    return {
        name: torch.randn(shape, generator=random, dtype=torch.float64)
        for name, shape in zip(G.synthesis.noise_layers(), shapes, strict=True)
    }


UP_FORMS = candidates(2)
SAME_FORMS = candidates(1)


@pytest.mark.parametrize("clamp", [None, 0.7])
@pytest.mark.parametrize("up", UP_FORMS, ids="-".join)
def test_every_form_gives_the_same_picture_and_gradients(up, clamp):
    G = generator(conv_clamp=clamp).double()
    names = list(G.synthesis.noise_layers())
    same = SAME_FORMS[UP_FORMS.index(up) % 2]
    P = G.prepare(forms={name: up if name.endswith("conv0") else same for name in names})
    maps = noise_maps(G, 2)
    expected = image_and_gradients(G, codes(G), maps)  # the training path: other ops, torch's own autograd
    for actual, truth in zip(image_and_gradients(P, codes(G), maps), expected, strict=True):
        assert relative_error(actual, truth) < 1e-11


def test_gradients_are_those_of_finite_differences():
    G = Generator(8, 4, 4, channels={4: 4, 8: 4}, mapping_layers=1).double()
    with torch.no_grad():
        G.synthesis.b8.conv0.noise_strength.fill_(0.5)
    P = G.prepare()
    w_plus = codes(G).requires_grad_()
    maps = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, m: P.synthesis(w, noise={"b8.conv0": m}), (w_plus, maps), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precision_is_as_close_as_the_training_path(dtype):
    """Pictures and gradients at most twice as far from float64 as those of the unfused path in the same dtype."""
    G = generator()
    exact = image_and_gradients(generator().double().prepare(), codes(G))
    w_plus = codes(G, dtype=torch.float32)
    fast = image_and_gradients(G.prepare(dtype), w_plus)

    class Plain:
        @staticmethod
        def synthesis(w_plus, noise):
            return G.synthesis(w_plus, noise=noise, dtype=dtype)

    plain = image_and_gradients(Plain, w_plus)
    for ours, other, truth in zip(fast, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = ((x.double() - truth).norm() for x in (ours, other))
        assert error <= 2 * allowed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_clamped_values_have_no_gradient_where_the_bound_is_rounded(dtype):
    """0.7 is no bfloat16: what was clamped is then below 0.7."""
    G = generator(conv_clamp=0.7)
    G.synthesis.b32.conv1.bias.data.fill_(100)  # all of the last layer is clamped
    P, noise = G.prepare(dtype), torch.zeros(32, 32, requires_grad=True)
    P.synthesis(codes(G, dtype=torch.float32), noise={"b32.conv1": noise}).sum().backward()
    assert not noise.grad.any()


def test_float16_survives_tiny_gradients_and_large_weights():
    """Image gradients of 1e-6 and a hundredfold weight are beyond float16 without the powers of two."""
    G = generator()
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("conv0.weight", "conv1.weight")):
                parameter.mul_(100)  # cancelled by the demodulation
    w_plus = codes(G, dtype=torch.float32)
    results = []
    for P in (G.prepare(torch.float16), G.prepare()):
        w = w_plus.clone().requires_grad_()
        image = P.synthesis(w)
        results.append((image.detach(), torch.autograd.grad((image * 1e-7).sum(), w)[0]))
    (image, gradient), (image_ref, gradient_ref) = results
    assert (image - image_ref).norm() / image_ref.norm() < 5e-3
    assert (gradient - gradient_ref).norm() / gradient_ref.norm() < 2e-2


def test_rows_of_a_batch_do_not_depend_on_each_other():
    """The gradient scaling of float16 is per picture: one with a huge loss takes nothing from the other."""
    G = generator()
    P = G.prepare(torch.float16)
    w_plus = codes(G, dtype=torch.float32).requires_grad_()
    image = P.synthesis(w_plus)
    weight = torch.tensor([1e4, 1e-6]).view(2, 1, 1, 1)
    gradient = torch.autograd.grad((image * weight).sum(), w_plus)[0]
    alone = w_plus[1:].detach().requires_grad_()
    expected = torch.autograd.grad((P.synthesis(alone) * 1e-6).sum(), alone)[0]
    assert relative_error(gradient[1:], expected) < 2e-3


@pytest.mark.parametrize("mode", ["const", "none", "random"])
def test_noise_modes(mode):
    G = generator().double()
    w_plus = codes(G)
    torch.manual_seed(5)
    image = G.prepare().synthesis(w_plus, noise=mode)
    torch.manual_seed(5)
    if mode == "random":
        assert image.shape == (2, 3, 32, 32) and not torch.equal(image, G.prepare().synthesis(w_plus, noise="none"))
    else:
        assert relative_error(image, G.synthesis(w_plus, noise=mode)) < 1e-11


def test_no_weight_gradient_is_ever_computed(monkeypatch):
    """A weight that requires a gradient costs a third convolution in every layer, unseen."""
    calls = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
                calls.append((function, args))
            return function(*args, **(kwargs or {}))

    P = generator().prepare()
    P._fused = None  # its ops have no weight gradient at all
    w_plus = codes(P, dtype=torch.float32).requires_grad_()
    with Spy():
        P.synthesis(w_plus).sum().backward()
    assert all(function is torch.ops.aten.convolution.default for function, _ in calls)
    assert len(calls) == 2 * len(P._fast.layers)  # one forward and one backward each
    tensors = [argument for _, args in calls for argument in args if isinstance(argument, torch.Tensor)]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_second_derivatives_are_refused():
    P = generator().prepare()
    w_plus = codes(P, dtype=torch.float32).requires_grad_()
    with pytest.raises(UsageError, match="first derivatives only"):
        torch.autograd.grad(P.synthesis(w_plus).sum(), w_plus, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype):
    P = generator().prepare(dtype)
    w_plus = codes(P, dtype=torch.float32)
    expected = image_and_gradients(P, w_plus)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = image_and_gradients(P, w_plus)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_other_architectures_run_layer_by_layer():
    G = Generator(8, 4, 4, channels={4: 4, 8: 4}, mapping_layers=1, architecture="resnet")
    P = G.prepare()
    assert "resnet" in P.layerwise
    assert relative_error(P.synthesis(codes(G, dtype=torch.float32)), G.synthesis(codes(G, dtype=torch.float32))) < 1e-5
    with pytest.raises(UsageError, match="resnet"):
        G.prepare(forms={"b8.conv0": ("phases", "flipped")})
    other = Generator(8, 4, 4, channels={4: 4, 8: 4}, mapping_layers=1)
    other.synthesis.b8.conv0.resample_filter = torch.ones(6, 6) / 36
    assert "four taps" in other.prepare().layerwise


def test_forms_that_do_not_exist_are_refused():
    G = generator()
    with pytest.raises(UsageError, match="there is no layer 'b64.conv0'"):
        G.prepare(forms={"b64.conv0": ("phases", "flipped")})
    with pytest.raises(UsageError, match="no form of a layer with up=1"):
        G.prepare(forms={"b8.conv1": ("phases", "flipped")}).synthesis(codes(G, dtype=torch.float32))


def test_choice_of_forms(monkeypatch, tmp_path):
    """On CUDA the fastest measured form is taken, once per shape, dtype and device; saved choices are taken over."""
    weight = torch.randn(4, 6, 3, 3)
    layer = FrozenConvolution(weight, 2, [0.5, 1.5, 1.5, 0.5], torch.float32)
    forms, measured = Forms(), []
    on_cpu = forms.choose(layer, torch.zeros(1, 6, 4, 4))
    assert on_cpu == Form("transposed", "backward_data") and not forms.table

    def fake_measure(convolution, x, repeats):
        measured.append(tuple(x.shape))
        return {form: 1.0 if form == Form("phases", "flipped") else 2.0 for form in candidates(2)}

    class OnCuda:
        shape, dtype, device = torch.Size([1, 6, 4, 4]), torch.float32, torch.device("cuda", 0)

    monkeypatch.setattr(convolution, "measure", fake_measure)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert forms.choose(layer, OnCuda) == forms.choose(layer, OnCuda) == Form("phases", "flipped")
    assert len(measured) == 1
    forms.save(tmp_path / "forms.json")
    other = Forms()
    other.load(tmp_path / "forms.json")
    assert other.choose(layer, OnCuda) == Form("phases", "flipped") and len(measured) == 1
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert Forms().choose(layer, OnCuda) == on_cpu and len(measured) == 1  # nothing can be timed in a capture


def test_measure_times_every_form():
    for up, form_count in ((1, 2), (2, 6)):
        layer = FrozenConvolution(torch.randn(4, 6, 3, 3), up, [0.5, 1.5, 1.5, 0.5], torch.float32)
        seconds = convolution.measure(layer, torch.zeros(1, 6, 4, 4), repeats=1)
        assert list(seconds) == candidates(up) and len(seconds) == form_count
        assert all(value > 0 for value in seconds.values())


def test_measuring_leaves_random_numbers_alone_and_survives_a_form_that_fails(monkeypatch):
    layer = FrozenConvolution(torch.randn(4, 6, 3, 3), 2, [0.5, 1.5, 1.5, 0.5], torch.float32)
    before = torch.get_rng_state()
    forward = FrozenConvolution.forward

    def fails(self, x, form):
        if form.forward == broken:
            raise RuntimeError("no engine")
        assert x.any()  # random, not the zeros that were given
        return forward(self, x, form)

    monkeypatch.setattr(FrozenConvolution, "forward", fails)
    broken, forms = "phases", Forms()
    seconds = forms.measure(layer, torch.zeros(1, 6, 4, 4), 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert {form.forward for form, value in seconds.items() if value == math.inf} == {"phases"}
    assert list(forms.table.values()) == [min(seconds, key=seconds.get)]
    broken = "same"
    with pytest.raises(RuntimeError, match="no engine"):
        convolution.measure(FrozenConvolution(layer.source, 1, layer.taps, torch.float32), torch.zeros(1, 6, 4, 4))


@pytest.mark.parametrize("scale", [False, True])
def test_styles_and_demodulation_are_differentiated_right(scale):
    """styles -> demodulation -> a function of scaled styles and d, against autograd through the formulas."""
    random = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    rows, conv_rows, inputs, outputs, epsilons = [0, 6, 14, 18], [0, 6], [6, 5], [5, 4], [1e-8, 1e-3]
    weight, bias, sumsq = randn(18, 7), randn(18), randn(30 + 20).square()
    w_plus = randn(2, 3, 7).requires_grad_()
    styles = synthesis.styles(w_plus, weight, bias, rows, impl="ref")
    scaled, d, scales = synthesis.demodulation(styles, sumsq, conv_rows, inputs, outputs, epsilons, scale, impl="ref")
    ds, dd = randn(*scaled.shape), randn(*d.shape)
    expected = torch.autograd.grad((scaled * ds).sum() + (d * dd).sum(), w_plus)[0]
    back = synthesis.demodulation_backward(
        ds, (dd * d**3).detach(), scaled.detach(), scales.detach(), sumsq, conv_rows, inputs, outputs, impl="ref"
    )
    assert relative_error(synthesis.styles_backward(back, weight, rows, impl="ref"), expected) < 1e-12
    if scale:
        for row, count in zip(conv_rows, inputs):
            assert ((largest := scaled[:, row : row + count].abs().amax(1)) >= 0.5).all() and (largest < 1).all()


def test_gradient_scale_is_a_power_of_two_and_leaves_the_rest_alone():
    dimage = torch.randn(4, 3, 2, 2) * torch.tensor([1e-20, 1.0, 0.0, float("nan")]).view(4, 1, 1, 1)
    scaled, inverse = synthesis.gradient_scale(dimage, impl="ref")
    assert torch.equal(torch.frexp(inverse).mantissa, torch.full([4], 0.5))
    assert torch.equal(inverse[2:], torch.ones(2)) and scaled[3].isnan().all()
    for row in range(2):
        assert 0.5 <= scaled[row].abs().max() < 1
        assert torch.equal(scaled[row] * inverse[row], dimage[row])


def test_float16_gradients_of_one_sign_do_not_overflow():
    """They grow towards 4x4. Here the large weights of toRGB do what more resolutions would."""
    torch.manual_seed(0)
    G = Generator(32, 32, 32, channels=dict.fromkeys(CHANNELS, 32), mapping_layers=1)
    for r in CHANNELS:
        getattr(G.synthesis, f"b{r}").torgb.weight.data *= 300
    w_plus = codes(G, dtype=torch.float32)
    truth, found = (
        torch.autograd.grad(P.synthesis(w.requires_grad_()).sum(), w)[0]
        for P, w in ((G.prepare(torch.float64), w_plus.double()), (G.prepare(torch.float16), w_plus.clone()))
    )
    assert relative_error(found, truth) < 1e-2


def assert_compiles_into_one_graph(P):
    w_plus = codes(P, dtype=torch.float32).requires_grad_()
    expected = torch.autograd.grad(P.synthesis(w_plus).square().sum(), w_plus)[0]
    compiled = torch.compile(lambda w: P.synthesis(w).square().sum(), fullgraph=True, backend="aot_eager")
    assert relative_error(torch.autograd.grad(compiled(w_plus), w_plus)[0], expected) < 1e-5


@pytest.mark.slow
def test_compiles_into_one_graph():
    """torch.compile with fullgraph: no graph break in the whole prepared synthesis, forward and backward."""
    assert_compiles_into_one_graph(generator().prepare())


@pytest.mark.slow
def test_compiles_into_one_graph_where_forms_are_timed(monkeypatch):
    """As on CUDA: the choices that the first, eager call made are looked up while torch.compile traces."""
    monkeypatch.setattr(Forms, "timed_on", ("cpu",))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(frozen, "FORMS", Forms())
    # A form of the library for one layer: without it the eager call takes the CPU's own kernels, which time nothing.
    assert_compiles_into_one_graph(generator().prepare(forms={"b4.conv1": ("same", "flipped")}))
    assert frozen.FORMS.table
