"""Steps that are recorded once and replayed: the same bits as steps run one by one; the reason where they are not.

On the CPU a recorder of operations stands in for CUDA graphs, see op_recorder.py; tests/gpu has the same with a GPU.
"""

import contextlib
import json
import math
import threading
import types
import warnings

import pytest
import torch
from op_recorder import OpRecorder
from test_inversion import SmallNetwork, generator, same_bits

from fastinv.errors import UsageError
from fastinv.inversion import NonFiniteLossError, capture, invert, loop
from fastinv.inversion.capture import WARM_UP, WORTH, CudaRecorder, Repeater
from fastinv.inversion.loop import Term, optimize, ramped

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    """What is computed here is small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recorders(monkeypatch):
    """The CPU records; gives the list of recorders that are made."""
    monkeypatch.setitem(capture.RECORDERS, "cpu", OpRecorder)
    monkeypatch.setattr(OpRecorder, "made", [])
    return OpRecorder.made


@pytest.fixture(scope="module")
def G():
    return generator()


@pytest.fixture(scope="module")
def images(G):
    with torch.no_grad():
        z = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        return G.synthesis(G.mapping(z)).clamp(-1, 1)


def run(G, images, steps=25, **options):
    return invert(G, images, steps=steps, **{"trunk": SmallNetwork(), "progress": False, **options})


def fit(steps=30, render=lambda v, _: (v["a"] + v["b"], v), terms=None, device=CPU, **options):
    """A small optimisation by itself: two variables of different dtypes, rates and shapes."""
    start = {"a": torch.tensor([[1.0], [2.0], [-3.0]]), "b": torch.arange(6, dtype=torch.float64).view(3, 2)}
    start = {name: value.to(device) for name, value in start.items()}
    terms = terms or [
        Term("square", lambda x: x.square().sum(1), 2.0),
        Term("prior", lambda v: (v["b"] - 1).abs().sum(1), 0.1, of="codes"),
    ]
    options = {"learning_rate": {"a": 0.3, "b": 0.05}, "schedule": ramped(0.1, 0.3), **options}
    return optimize(start, render, terms, steps=steps, **options)


def same_trace(a, b):
    return (
        all(torch.equal(value, b.variables[name]) for name, value in a.variables.items())
        and all(torch.equal(curve.nan_to_num(-7), b.losses[name].nan_to_num(-7)) for name, curve in a.losses.items())
        and torch.equal(a.best_step, b.best_step)
        and (a.steps, a.stopped, a.failed) == (b.steps, b.stopped, b.failed)
    )


# The recorder sees what a CUDA graph would get wrong


def repeated(function, times=6):
    repeat = Repeater(function, CPU, "auto", WORTH)
    return [repeat().clone() for _ in range(times)]


def test_what_is_in_tensors_goes_on(recorders):
    count, table = torch.zeros(1, dtype=torch.long), torch.arange(10) * 10

    def step():
        value = table.index_select(0, count)
        count.add_(1)
        return value[0] + 1

    assert torch.stack(repeated(step)).tolist() == [1, 11, 21, 31, 41, 51]
    assert count.item() == 6 and recorders[0].warm_ups == WARM_UP and recorders[0].replays == 3


def test_a_number_of_python_stands_still(recorders):
    state = types.SimpleNamespace(step=0)

    def step():
        state.step += 1
        return torch.zeros(()) + state.step

    assert torch.stack(repeated(step)).tolist() == [1, 2, 3, 4, 4, 4]


def test_a_tensor_that_is_replaced_stands_still(recorders):
    state = types.SimpleNamespace(value=torch.zeros(()))

    def step():
        state.value = state.value + 1
        return state.value

    assert torch.stack(repeated(step)).tolist() == [1, 2, 3, 4, 4, 4]


def test_random_numbers_go_on(recorders):
    def step():
        return torch.randn(3) * 2

    torch.manual_seed(3)
    expected = [step() for _ in range(6)]
    torch.manual_seed(3)
    assert torch.equal(torch.stack(repeated(step)), torch.stack(expected))


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x + x.sum().item(),
        lambda x: x + float(x.sum()),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x + torch.tensor(x.tolist()),
        lambda x: x + torch.from_numpy(x.numpy()),
        lambda x: x[torch.tensor(0)],
    ],
    ids=range(7),
)
def test_a_look_from_the_host_is_refused(recorders, look):
    repeat = Repeater(lambda: look(torch.ones(2)), CPU, "auto", WORTH)
    expected = look(torch.ones(2))
    assert all(torch.equal(repeat(), expected) for _ in range(6))
    assert not repeat.captured
    assert "the step cannot be recorded: operation not permitted when stream is capturing" in repeat.why_eager


def test_an_adam_that_counts_in_python_is_found_out(recorders, monkeypatch):
    sound = fit(graph=False)
    first = iter(range(1000))
    monkeypatch.setattr(loop._Batch, "step", _counting_step(loop._Batch.step, first))
    assert not same_trace(fit(), sound)


def _counting_step(real, counter):
    def step(self):
        row = next(counter)  # of Python, as an optimiser with a step count of its own would have it
        self.clock[0] = row - 1
        return real(self)

    return step


# A replayed step is the step


def test_an_inversion_gives_the_same_bits(G, images, recorders):
    for options in (
        {"space": "w+"},
        {"space": "w", "start": "random", "noise": "none"},
        {"masks": torch.linspace(0, 1, 64).view(8, 8), "learning_rate": 3.0, "ramp_down": 0.0},
    ):
        replayed, eager = run(G, images, **options), run(G, images, graph=False, **options)
        assert same_bits(replayed, eager) and replayed.metrics == eager.metrics
        assert replayed.settings["captured"] and replayed.settings["why_eager"] == ""
        assert not eager.settings["captured"] and eager.settings["why_eager"] == "graph is False"
        json.dumps(replayed.settings)
    assert [recorder.replays for recorder in recorders] == [25 - WARM_UP] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_generators_of_other_precisions(images, recorders, dtype):
    G = generator().to(dtype)
    assert same_bits(run(G, images), run(G, images, graph=False)) and recorders[0].replays == 25 - WARM_UP


@pytest.mark.parametrize("keep", ["best", "last"])
def test_variables_of_their_own_dtypes_and_rates(recorders, keep):
    trace = fit(keep=keep, learning_rate={"a": 2.0, "b": 0.05})
    assert trace.captured and trace.why_eager == ""
    assert same_trace(trace, fit(keep=keep, learning_rate={"a": 2.0, "b": 0.05}, graph=False))


@pytest.mark.parametrize("page", [1, 7, 29, 30, 31, 32])
def test_pages_are_turned_unseen(recorders, monkeypatch, page):
    expected = fit(30, graph=False)
    monkeypatch.setattr(loop, "PAGE", page)
    seen = []
    trace = fit(30, callback=lambda step, losses, images: seen.append(losses["total"]))
    assert trace.captured and len(recorders) == 1 and same_trace(trace, expected)
    assert same_trace(fit(30, graph=False), expected)
    assert torch.equal(torch.stack(seen).double(), expected.losses["total"])


def test_noise_that_is_drawn_in_every_step(recorders):
    def render(variables, step):
        values = variables["a"] + variables["b"]
        return values + 0.1 * torch.randn_like(values), variables

    torch.manual_seed(5)
    expected = fit(render=render, keep="last", graph=False)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert same_trace(fit(render=render, keep="last"), expected) and recorders[0].replays > 0
    assert torch.equal(torch.rand(1), after)


def test_a_callback_may_keep_what_it_sees_and_stop(G, images, recorders):
    def watch(seen):
        def callback(step, losses, pictures):
            seen.append((step, losses, pictures))
            return step == 24

        return callback

    seen, expected = [], []
    replayed = run(G, images, 60, callback=watch(seen))
    eager = run(G, images, 60, callback=watch(expected), graph=False)
    assert same_bits(replayed, eager) and replayed.settings["captured"]
    assert replayed.settings["stopped"] and replayed.settings["steps_done"] == 24
    for (step, losses, pictures), (eager_step, eager_losses, eager_pictures) in zip(seen, expected, strict=True):
        assert step == eager_step and torch.equal(pictures, eager_pictures)
        assert all(torch.equal(losses[name], eager_losses[name]) for name in ("total", "pixel", "perceptual"))


def test_progress_is_shown_between_replays(G, images, recorders, capsys):
    run(G, images, 40, progress=True)
    shown = [line.split(" dB")[0] for line in capsys.readouterr().err.splitlines()]
    run(G, images, 40, progress=True, graph=False)
    assert shown == [line.split(" dB")[0] for line in capsys.readouterr().err.splitlines()] and len(shown) == 11


class FailsAfter:
    """Square of the pictures; that of one picture is NaN after some calls. It counts in a tensor, as a replay can."""

    def __init__(self, calls, picture, device=CPU):
        self.left, self.picture = torch.tensor(calls, device=device), picture
        self.pictures = torch.arange(3, device=device)

    def __call__(self, images):
        self.left.sub_(1)
        return torch.where((self.left < 0) & (self.pictures == self.picture), math.nan, images.square().sum(1))

    def select(self, rows):
        chosen = FailsAfter(0, self.picture)
        chosen.left, chosen.pictures = self.left, self.pictures[rows]
        return chosen


@pytest.mark.parametrize("calls", [2, 3, 4, 14])
def test_a_picture_that_fails_leaves_and_the_others_are_recorded_anew(recorders, calls):
    eager, replayed = [
        fit(60, terms=[Term("square", FailsAfter(calls, picture=1))], graph=graph) for graph in (False, "auto")
    ]
    assert same_trace(eager, replayed) and replayed.failed == {1: calls} and replayed.steps == 60
    seen = 10 if calls <= 10 else 20  # the host looks at steps 0, 10, 20
    assert [recorder.replays for recorder in recorders] == [seen + 1 - WARM_UP, 60 - seen - 1 - WARM_UP]


def test_after_a_failure_few_steps_are_not_worth_a_recording(recorders):
    trace = fit(38, terms=[Term("square", FailsAfter(14, picture=1))])
    assert trace.captured and trace.why_eager == "17 steps are too few: steps are recorded from 20 on"
    assert same_trace(trace, fit(38, terms=[Term("square", FailsAfter(14, picture=1))], graph=False))


def test_when_all_pictures_fail_the_replays_end(G, images, recorders):
    errors = []
    for graph in ("auto", False):
        with pytest.raises(NonFiniteLossError, match="lower learning_rate") as info:
            run(G, images, 60, learning_rate=1e38, graph=graph)
        errors.append(info.value)
    replayed, eager = [error.result for error in errors]
    assert recorders[0].replays == 11 - WARM_UP and errors[0].failed == errors[1].failed == {0: 1, 1: 1, 2: 1}
    assert torch.equal(replayed.w_plus, eager.w_plus) and replayed.metrics == eager.metrics


# What the recorder of CUDA graphs asks of torch, without a device


@pytest.fixture
def cuda(monkeypatch):
    """A CudaRecorder whose calls of torch.cuda are noted; ``failing`` names those that raise."""
    calls, failing = [], set()

    def note(name, value=None):
        def call(*_, **__):
            calls.append(name)
            if name in failing:
                raise RuntimeError(f"CUDA error: {name}")
            return value

        return call

    @contextlib.contextmanager
    def context(_):
        calls.append("enter")
        yield
        calls.append("exit")

    class Graph:
        capture_begin, capture_end, replay = note("begin"), note("end"), note("replay")

    stream = types.SimpleNamespace(wait_stream=note("wait"), device_index=0)
    for name, value in {
        "Stream": lambda _: stream, "stream": context, "device": context, "CUDAGraph": Graph,
        "current_stream": lambda _: stream, "graph_pool_handle": lambda: (0, 1), "synchronize": note("synchronize"),
        "empty_cache": note("empty"), "get_sync_debug_mode": lambda: 2, "set_sync_debug_mode": calls.append,
        "default_generators": [types.SimpleNamespace(clone_state=dict, graphsafe_set_state=note("state"))],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", note("close"), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", note("release"), raising=False)
    return types.SimpleNamespace(recorder=CudaRecorder(torch.device("cuda:0")), calls=calls, failing=failing)


def test_a_recording_and_its_replay(cuda):
    output = cuda.recorder.record(lambda: cuda.calls.append("function") or 7)
    cuda.recorder.replay()
    around = ["enter", "synchronize", "empty", "enter", "begin", "function", "end", "exit", "exit"]
    assert output == 7 and cuda.calls == [*around, "replay"]


@pytest.mark.parametrize("failing", [{"end"}, set()])
def test_a_recording_that_breaks_leaves_nothing_open(cuda, failing):
    def function():
        raise ValueError("of the function")

    cuda.failing |= failing
    if not failing:
        cuda.failing.add("close")  # torch says so where the recording has closed it
    with pytest.raises(ValueError, match="of the function"):
        cuda.recorder.record(function)
    assert cuda.recorder.graph is None
    assert ("release" in cuda.calls and "state" in cuda.calls) == bool(failing)
    assert not capture._one_recording.locked()


def test_a_recording_that_cannot_end(cuda):
    cuda.failing.add("end")
    with pytest.raises(RuntimeError, match="CUDA error: end"):
        cuda.recorder.record(lambda: 7)
    assert cuda.calls[-3:] == ["close", "release", "state"] and cuda.recorder.graph is None


def test_a_rehearsal_says_where_the_host_waits(cuda):
    def look(text="called a synchronizing CUDA operation"):
        warnings.warn(text, stacklevel=1)
        return 7

    output, why = cuda.recorder.rehearse(look)
    assert output == 7 and why == f"the step waits for the device at {__file__}:{look.__code__.co_firstlineno + 1}"
    assert cuda.calls == ["warn", "wait", "enter", "exit", "wait", 2]  # the mode is put back
    assert cuda.recorder.rehearse(lambda: look("something else")) == (7, "")

    def elsewhere():
        other = threading.Thread(target=look)
        other.start()
        other.join()
        return 8

    assert cuda.recorder.rehearse(elsewhere) == (8, "")
    with pytest.warns(UserWarning, match="as before"):
        look("as before")


# Where steps are not recorded


def test_why_steps_are_not_recorded(G, images, recorders, monkeypatch):
    def why(steps=25, **options):
        settings = run(G, images, steps, **options).settings
        assert not settings["captured"]
        return settings["why_eager"]

    assert why(graph=False) == "graph is False"
    assert why(WORTH - 1) == "19 steps are too few: steps are recorded from 20 on"
    assert why(WARM_UP, graph=True) == "3 steps are too few: steps are recorded from 4 on"
    assert why(0) == "0 steps are too few: steps are recorded from 20 on"
    monkeypatch.undo()
    assert why() == "steps are recorded on cuda, not on cpu"


def test_few_steps_are_recorded_where_that_is_asked_for(G, images, recorders):
    result = run(G, images, WARM_UP + 1, graph=True)
    assert result.settings["captured"] and recorders[0].replays == 1
    assert same_bits(result, run(G, images, WARM_UP + 1, graph=False))


def peeking(images):
    return images.square().sum(1) * (2.0 if images.sum().item() > 0 else 1.0)


def test_a_step_that_cannot_be_recorded_runs_as_it_is(recorders):
    trace = fit(terms=[Term("peeking", peeking)])
    assert not trace.captured and same_trace(trace, fit(terms=[Term("peeking", peeking)], graph=False))
    assert trace.why_eager.startswith("the step cannot be recorded: operation not permitted when stream is capturing")
    assert "\n" not in trace.why_eager
    with pytest.raises(UsageError, match="graph=True, but the step cannot be recorded: .*; use graph='auto' or False"):
        fit(terms=[Term("peeking", peeking)], graph=True)


def test_a_step_that_waits_for_the_device_is_not_recorded(recorders, monkeypatch):
    where = "the step waits for the device at losses/a.py:7"
    monkeypatch.setattr(OpRecorder, "rehearse", lambda self, function: (self.warm_up(function), where))
    trace = fit()
    assert not trace.captured and trace.why_eager == where and recorders[0].tape is None
    assert same_trace(trace, fit(graph=False))
    with pytest.raises(UsageError, match=f"graph=True, but {where}"):
        fit(graph=True)


@pytest.mark.parametrize("graph", ["yes", None, 1, 0.0])
def test_a_wrong_option_is_refused_before_any_work(G, images, graph):
    work = []
    with pytest.raises(UsageError, match="graph must be 'auto', True or False, not "):
        run(G, images, graph=graph, trunk=3, callback=lambda *_: work.append(1))
    with pytest.raises(UsageError, match="graph must be 'auto', True or False, not "):
        fit(graph=graph, render=None)
    assert not work


def test_recording_where_the_device_cannot_is_refused_before_any_work(G, images):
    with pytest.raises(UsageError, match="graph=True, but steps are recorded on cuda, not on cpu; use graph='auto'"):
        run(G, images, graph=True, trunk=3)
