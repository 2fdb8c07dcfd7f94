"""The frozen synthesis network with each layer one op: same numbers as layer by layer, in memory that is kept."""

import copy
import gc
import threading
from pathlib import Path

import pytest
import torch
from ops_contract import relative_error
from test_frozen import codes, generator, image_and_gradients, noise_maps

from fastinv.errors import UsageError
from fastinv.models import kinds
from fastinv.models.convolution import Form
from fastinv.models.frozen import FrozenSynthesis
from fastinv.models.fused import FusedSynthesis
from fastinv.models.stylegan2 import Generator
from fastinv.ops.frozen_conv import obstacle

NATIVE = [dtype for dtype in (torch.float32, torch.bfloat16) if not obstacle(dtype)]
# A machine without kernels runs the same Python on the references.
WAYS = [(dtype, "ref") for dtype in (torch.float32, torch.bfloat16)] + [(dtype, "native") for dtype in NATIVE]


def prepared(G, dtype=None, impl="ref", forms=None):
    """G.prepare(dtype), fused whether or not there are kernels."""
    P = G.prepare(dtype)
    P._fused = FusedSynthesis(P._fast, forms, impl)
    return P


def unfused(G, dtype=None):
    P = G.prepare(dtype)
    P._fused = None
    return P


@pytest.mark.parametrize("clamp", [None, 0.7])
def test_formulas(clamp):
    """In float64 the references give the picture and gradients of the training path."""
    G = generator(conv_clamp=clamp).double()
    maps = noise_maps(G, 2)
    expected = image_and_gradients(G, codes(G), maps)
    P = prepared(G)
    for actual, truth in zip(image_and_gradients(P, codes(G), maps), expected, strict=True):
        assert relative_error(actual, truth) < 1e-11
    with torch.no_grad():
        assert relative_error(P.synthesis(codes(G), noise=maps), expected[0]) < 1e-11
        assert relative_error(P.synthesis(codes(G), noise="none"), G.synthesis(codes(G), noise="none")) < 1e-11


@pytest.mark.parametrize("dtype, impl", WAYS, ids=str)
@pytest.mark.parametrize("clamp", [None, 0.7])
def test_as_close_to_float64_as_layer_by_layer(dtype, impl, clamp):
    """Pictures and gradients, of latents and noise, at most twice as far off as those of the training path."""
    G = generator(conv_clamp=clamp)
    maps = noise_maps(G, 2)
    exact = image_and_gradients(generator(conv_clamp=clamp).double().prepare(), codes(G), maps)
    w_plus, maps = codes(G, dtype=torch.float32), {name: value.float() for name, value in maps.items()}

    class Plain:
        @staticmethod
        def synthesis(w_plus, noise):
            return G.synthesis(w_plus, noise=noise, dtype=dtype)

    plain = image_and_gradients(Plain, w_plus, maps)
    found = image_and_gradients(prepared(G, dtype, impl), w_plus, maps)
    for ours, other, truth in zip(found, plain, exact, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = ((x.double() - truth).norm() for x in (ours, other))
        assert error <= 2 * allowed


@pytest.mark.parametrize("same", kinds.candidates(1), ids="-".join)
@pytest.mark.skipif(torch.float32 not in NATIVE, reason="no kernels")
def test_every_form(same):
    """Winograd too, at channels and sizes where it would not be chosen."""
    G = generator()
    exact = image_and_gradients(generator().double().prepare(), codes(G))
    P = G.prepare(forms={name: same for name in G.synthesis.noise_layers() if name.endswith("conv1")})
    assert not P.unfused and P._fused.forms[0] == same
    for ours, truth in zip(image_and_gradients(P, codes(G, dtype=torch.float32)), exact, strict=True):
        assert relative_error(ours.double(), truth) < 1e-5


@pytest.mark.skipif(torch.float32 not in NATIVE, reason="no kernels")
def test_number_of_threads_changes_nothing():
    P = prepared(generator(), impl="native")
    w_plus, threads, found = codes(P, 3, torch.float32), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(image_and_gradients(P, w_plus))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_only_what_is_asked_for_gets_a_gradient():
    G = generator().double()
    P, w_plus = prepared(G), codes(G)
    maps = {name: value.requires_grad_(name == "b16.conv0") for name, value in noise_maps(G, 2).items()}
    weight = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found, truth = (
        torch.autograd.grad((Q.synthesis(w_plus, noise=maps) * weight).sum(), maps["b16.conv0"])[0] for Q in (P, G)
    )
    assert relative_error(found, truth) < 1e-11
    assert not P.synthesis(w_plus).requires_grad


def test_memory_does_not_grow_with_the_steps(mapped):
    P = prepared(Generator(8, 4, 4, channels={4: 4, 8: 4}, mapping_layers=1))
    w_plus = codes(P, dtype=torch.float32).requires_grad_()
    gc.disable()  # nothing may wait for a collection
    try:
        for _ in range(50):
            P.synthesis(w_plus).square().sum().backward()
    finally:
        gc.enable()
    assert len(mapped) == 2  # y of all layers; scratch
    assert P._fused.arena.free_bytes() == sum(mapped)
    with torch.no_grad():
        P.synthesis(w_plus)
    assert len(mapped) == 2
    P.synthesis(w_plus[:1]).sum().backward()  # another batch size: another block in place of the first
    scratch = mapped[1]  # the references need none, of whatever batch size
    assert P._fused.arena.free_bytes() == sum(mapped[2:]) + scratch < sum(mapped[:2])


def test_a_result_holds_its_memory_until_backward(mapped):
    P = prepared(generator())
    w_plus = [codes(P, dtype=torch.float32).add(i).requires_grad_() for i in range(3)]
    expected = [torch.autograd.grad(P.synthesis(w).square().sum(), w)[0] for w in w_plus]
    losses = [P.synthesis(w).square().sum() for w in w_plus]
    assert len(mapped) == 4  # a block for each live result, one for scratch
    for w, loss, truth in zip(w_plus, losses, expected, strict=True):
        for retain in (True, True, False):
            assert torch.equal(torch.autograd.grad(loss, w, retain_graph=retain)[0], truth)
    assert len(mapped) == 4
    loss = P.synthesis(w_plus[0]).square().sum()
    del loss  # without any backward
    kept, scratch = (len(P._fused.arena.lease(purpose, 1)._view) for purpose in ("kept", "scratch"))
    assert kept == scratch == 1 and mapped[4:] == [1]  # scratch had that size: the reference needs none


def test_pictures_are_memory_of_the_callers_own():
    P = prepared(generator())
    w_plus = codes(P, dtype=torch.float32)
    for w in (w_plus, w_plus.clone().requires_grad_()):
        picture = P.synthesis(w)
        before = picture.detach().clone()
        P.synthesis(w.detach() + 1)
        assert torch.equal(picture, before)
        P.synthesis(w).detach().add_(1)  # allowed, and nothing of it stays
        assert torch.equal(P.synthesis(w), before)


def test_gradients_may_be_kept():
    G = generator()
    P, maps = prepared(G), {name: value.float() for name, value in noise_maps(G, 2).items()}
    first = image_and_gradients(P, codes(P, dtype=torch.float32), maps)
    copies = [x.clone() for x in first]
    image_and_gradients(P, codes(P, dtype=torch.float32) + 1, maps)
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))


def test_threads_have_memory_of_their_own():
    P = prepared(generator())
    w_plus = [codes(P, dtype=torch.float32) + i for i in range(3)]
    expected = [image_and_gradients(P, w) for w in w_plus]
    wrong = []

    def work(w, truth):
        for _ in range(5):
            found = image_and_gradients(P, w)
            if not all(torch.equal(a, b) for a, b in zip(found, truth, strict=True)):
                wrong.append(w)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(w_plus, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_of_a_prepared_generator():
    P = prepared(generator())
    w_plus = codes(P, dtype=torch.float32)
    expected = image_and_gradients(P, w_plus)
    other = copy.deepcopy(P)
    assert other._fused.arena is not P._fused.arena
    assert all(torch.equal(a, b) for a, b in zip(image_and_gradients(other, w_plus), expected, strict=True))


@pytest.mark.parametrize("dtype", NATIVE, ids=str)
def test_a_pickled_copy_runs_on_a_machine_with_other_kernels(dtype, tmp_path, run_python):
    P = generator().prepare(dtype)
    w_plus = codes(P, dtype=torch.float32)
    image_and_gradients(P, w_plus)  # its weights are packed for this machine now
    torch.save((P, w_plus), tmp_path / "pickled.pt")
    code = """
import sys, torch
P, w_plus = torch.load("pickled.pt", weights_only=False)
sys.path.insert(0, sys.argv[1])
from test_frozen import image_and_gradients
torch.save(image_and_gradients(P, w_plus), "found.pt")
"""
    truth = image_and_gradients(generator().double(), w_plus.double())
    for environment in ({"FASTINV_CPU_ISA": "portable"}, {"FASTINV_DISABLE_NATIVE": "1"}):
        process = run_python(code, str(Path(__file__).parent), **environment)
        assert process.returncode == 0, process.stderr
        found = torch.load(tmp_path / "found.pt")
        bound = 1e-5 if dtype == torch.float32 else 0.1
        assert all(relative_error(a, b) < bound for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("dtype, impl", WAYS, ids=str)
def test_an_empty_batch(dtype, impl):
    P = prepared(generator(), dtype, impl)
    w_plus = codes(P, dtype=torch.float32)[:0].requires_grad_()
    image = P.synthesis(w_plus)
    assert image.shape == (0, 3, P.resolution, P.resolution)
    assert torch.autograd.grad(image.sum(), w_plus)[0].shape == w_plus.shape


@pytest.mark.parametrize("dtype, impl", WAYS, ids=str)
def test_autocast_and_inference_mode_change_nothing(dtype, impl):
    P = prepared(generator(), dtype, impl)
    w_plus = codes(P, dtype=torch.float32)
    with torch.inference_mode():
        image = P.synthesis(w_plus)
    expected = image_and_gradients(P, w_plus)
    assert torch.equal(image, expected[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = image_and_gradients(P, w_plus)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_second_derivatives_are_refused():
    P = prepared(generator())
    w_plus = codes(P, dtype=torch.float32).requires_grad_()
    with pytest.raises(UsageError, match="first derivatives only"):
        torch.autograd.grad(P.synthesis(w_plus).sum(), w_plus, create_graph=True)


def test_the_reference_lays_weights_out_when_they_are_first_used():
    P = prepared(generator())
    w_plus = codes(P, dtype=torch.float32)
    weights = [layer.convolution._packed for layer in P._fast.layers]
    for packed in weights:
        packed.clear()  # what the kernels took
    P.synthesis(w_plus)
    assert {key for packed in weights for key in packed} == {("direct", False, False), ("up", False, False)}
    image_and_gradients(P, w_plus)
    before = [dict(packed) for packed in weights]
    assert all(len(packed) == 2 for packed in weights)
    image_and_gradients(P, w_plus)
    assert [dict(packed) for packed in weights] == before


def test_choice_of_kinds(monkeypatch):
    layer = FrozenSynthesis(generator().synthesis, torch.float32).layers[0].convolution
    monkeypatch.setattr(kinds._ext, "cpu_isa", lambda: "avx2")
    monkeypatch.setitem(kinds.TABLE, ("avx2", 12, 12, 4), "winograd")
    assert kinds.choose(layer, 4) == Form("winograd", "winograd")
    assert kinds.choose(layer, 8) == kinds.choose(layer, 4, ("direct", "direct")) == Form("direct", "direct")
    assert kinds.choose_kind(512, 512, 64, torch.float32) == "winograd"
    for unit, kind in (("amx", "direct"), ("avx512_bf16", "winograd")):
        monkeypatch.setattr(kinds._ext, "cpu_matrix", lambda unit=unit: unit)
        assert kinds.choose_kind(512, 512, 64, torch.bfloat16) == kind
    with pytest.raises(UsageError, match="no form of a fused layer with up=1 in float32"):
        kinds.choose(layer, 4, ("up", "down"))


def test_forms_of_both_sorts_do_not_mix():
    G = generator()
    forms = {"b8.conv0": ("phases", "flipped")}
    assert G.prepare(forms=forms)._fused is None
    with pytest.raises(UsageError, match="'b8.conv1' cannot be"):
        G.prepare(forms=forms | {"b8.conv1": ("direct", "direct")})
    with pytest.raises(UsageError, match="'b8.conv1' cannot be .* not float64"):
        G.prepare(torch.float64, {"b8.conv1": ("direct", "direct")})
    with pytest.raises(UsageError, match="there is no layer 'b64.conv1'"):
        G.prepare(forms={"b64.conv1": ("phases", "flipped")})


@pytest.mark.skipif(torch.float32 not in NATIVE, reason="no kernels")
def test_is_used_where_there_are_kernels():
    G = generator()
    assert G.prepare()._fused is not None and G.prepare(torch.float64)._fused is None
    assert G.prepare(torch.float16)._fused is None


def test_unfused_gives_the_same():
    G = generator()
    w_plus = codes(G, dtype=torch.float32)
    for ours, other in zip(
        image_and_gradients(prepared(G), w_plus), image_and_gradients(unfused(G), w_plus), strict=True
    ):
        assert relative_error(ours, other) < 1e-5


@pytest.mark.skipif(torch.float32 not in NATIVE, reason="no kernels")
def test_weights_are_borrowed_not_copied():
    G = generator()
    P = G.prepare()
    weight = G.synthesis.b8.conv1.weight
    assert P._fast.layers[2].convolution.source.data_ptr() == weight.data_ptr()
    w_plus = codes(P, dtype=torch.float32)
    before = image_and_gradients(P, w_plus)
    with torch.no_grad():
        weight.mul_(2)
    for found, truth in zip(image_and_gradients(P, w_plus), before, strict=True):
        assert torch.equal(found, truth)
    with pytest.raises(UsageError, match="changed after prepare"):
        copy.deepcopy(P)  # it would pack its weights for itself
    P._fused = None  # as under torch.compile, which needs the weights in another form
    with pytest.raises(UsageError, match="changed after prepare"):
        P.synthesis(w_plus)


def test_may_be_prepared_in_inference_mode():
    G = generator()
    with torch.inference_mode():
        P = G.prepare()
    w_plus = codes(P, dtype=torch.float32)
    for found, truth in zip(image_and_gradients(P, w_plus), image_and_gradients(G.prepare(), w_plus), strict=True):
        assert torch.equal(found, truth)
