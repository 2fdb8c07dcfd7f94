"""Optimisation steps recorded as CUDA graphs: what tests/test_capture.py shows with a stand-in, on the device."""

import copy
import math
import threading

import pytest
import torch
from test_capture import FailsAfter, fit, same_trace
from test_inversion import SmallNetwork, generator

from fastinv.errors import UsageError
from fastinv.inversion import invert
from fastinv.inversion.loop import Term
from fastinv.ops import _dispatch
from fastinv.ops.adam import adam_record, adam_step

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def pair(**options):
    """The same optimisation eager and recorded."""
    eager, recorded = (fit(device=CUDA, graph=graph, **copy.deepcopy(options)) for graph in (False, True))
    assert recorded.captured and recorded.why_eager == "" and not eager.captured
    return eager, recorded


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_same_bits(keep):
    eager, recorded = pair(keep=keep, learning_rate={"a": 2.0, "b": 0.05})
    assert same_trace(eager, recorded)


def test_many_pages():
    eager, recorded = pair(steps=2300)
    assert same_trace(eager, recorded)


def test_noise_from_the_default_generator():
    def render(variables):
        values = variables["a"] + variables["b"]
        return values + 0.1 * torch.randn_like(values)

    traces, after = [], []
    for graph in (False, True):
        torch.cuda.manual_seed(5)
        traces.append(fit(device=CUDA, render=render, keep="last", graph=graph))
        after.append(torch.rand(4, device=CUDA))
    assert traces[1].captured and same_trace(*traces) and torch.equal(*after)


def test_on_the_stream_of_the_caller():
    expected = fit(device=CUDA, graph=False)
    with torch.cuda.stream(torch.cuda.Stream()):
        recorded = fit(device=CUDA, graph=True)
    assert same_trace(expected, recorded)


@pytest.mark.parametrize("calls", [2, 3, 14])
def test_a_picture_that_fails_leaves_and_the_others_are_recorded_anew(calls):
    eager, recorded = (
        fit(60, device=CUDA, graph=graph, terms=[Term("square", FailsAfter(calls, 1, device=CUDA))])
        for graph in (False, True)
    )
    assert same_trace(eager, recorded) and recorded.captured and recorded.failed == {1: calls}


def test_a_callback_may_keep_what_it_sees():
    seen = {False: [], True: []}
    for graph, kept in seen.items():
        fit(40, device=CUDA, graph=graph, callback=lambda step, losses, images, kept=kept: kept.append(images))
    assert torch.equal(torch.stack(seen[False]), torch.stack(seen[True])) and len(seen[True]) == 41


def test_the_memory_of_a_recording_is_given_back():
    fit(device=CUDA, graph=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        fit(device=CUDA, graph=True)
    assert torch.cuda.memory_allocated() == before


# Steps that cannot be recorded


def peeking(images):
    return images.square().sum(1) * (2.0 if images.sum().item() > 0 else 1.0)


def waiting(images):
    torch.cuda.synchronize()  # the rehearsal does not see this one, the recording breaks on it
    return images.square().sum(1)


@pytest.mark.parametrize(("loss", "why"), [(peeking, "the step waits for the device at "), (waiting, "recorded: ")])
def test_a_step_that_looks_or_waits_runs_as_it_is(loss, why):
    terms = [Term("loss", loss)]
    eager, automatic = (fit(device=CUDA, terms=terms, graph=graph) for graph in (False, "auto"))
    assert not automatic.captured and why in automatic.why_eager and same_trace(eager, automatic)
    if loss is peeking:
        assert "test_cuda_graph.py:" in automatic.why_eager
    with pytest.raises(UsageError, match="graph=True, but the step "):
        fit(device=CUDA, terms=terms, graph=True)
    # Nothing is left in disorder: random numbers, the memory pools, other recordings.
    assert torch.rand(1000, device=CUDA).std() > 0.1
    torch.cuda.empty_cache()
    assert torch.cuda.get_sync_debug_mode() == 0
    test_noise_from_the_default_generator()


def test_two_threads_record_at_a_time():
    expected, traces = fit(200, device=CUDA, graph=False), [None] * 3

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            traces[index] = fit(200, device=CUDA, graph="auto")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(traces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_trace(expected, trace) for trace in traces)


# An inversion


@pytest.mark.parametrize("space", ["w+", "w"])
def test_an_inversion(space):
    G = generator().double().to(CUDA)
    with torch.no_grad():
        z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(CUDA)
        images = G.synthesis(G.mapping(z)).clamp(-1, 1)
    options = {"steps": 40, "space": space, "trunk": SmallNetwork(), "progress": False}
    eager, recorded = (invert(G, images, graph=graph, **options) for graph in (False, True))
    assert recorded.settings["captured"] and not eager.settings["captured"]
    for name, curve in eager.losses.items():
        torch.testing.assert_close(recorded.losses[name], curve, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(recorded.w_plus, eager.w_plus, rtol=1e-6, atol=1e-9)


# The native ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adam_native_against_reference(dtype):
    if "cuda" not in _dispatch.KERNELS.get("adam_step", ()):
        pytest.skip("the CUDA kernels are not loaded")
    draw = torch.Generator(CUDA).manual_seed(0)
    x, g, m, s, best = (torch.randn(3, 18, 512, generator=draw, device=CUDA, dtype=dtype) for _ in range(5))
    values = torch.randn(2, 3, generator=draw, device=CUDA, dtype=dtype)
    values[0, 1] = math.inf
    coefficients = torch.rand(9, 3, generator=draw, device=CUDA, dtype=dtype) + 0.1
    state = {
        impl: [
            torch.tensor([3, 13], device=CUDA), torch.zeros(9, 3, 3, device=CUDA, dtype=dtype),
            torch.full((3,), 0.5, device=CUDA, dtype=dtype), torch.zeros(3, dtype=torch.long, device=CUDA),
            torch.full((3,), -1, device=CUDA), torch.zeros(3, dtype=torch.bool, device=CUDA),
            x.clone(), m.clone(), s.abs() + 0.5, best.clone(),
        ]
        for impl in ("native", "ref")
    }  # fmt: skip
    for impl, (clock, curves, lowest, best_step, bad_step, better, x, m, s, best) in state.items():
        adam_record(values.sum(0), values, clock, curves, lowest, best_step, bad_step, better, False, impl=impl)
        adam_step(x, g, m, s, best, better, coefficients, clock, 1, (0.9, 0.99), 1e-8, impl=impl)
    unit = torch.finfo(dtype).eps  # of numbers of at most about 4, and no small divisors
    for native, reference in zip(*state.values(), strict=True):
        torch.testing.assert_close(native, reference, rtol=8 * unit, atol=16 * unit)
