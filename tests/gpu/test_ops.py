"""Every op on a CUDA device: numbers, derivatives, devices, streams, autocast, torch.compile, CUDA graphs.

The checks are functions of a device. `checks(device_type)` lists them by name, so that a dry run without a GPU can go
through them on the CPU, where streams and graphs are left out of what they do.
"""

import contextlib
import functools
from typing import NamedTuple

import conv_contract as contract
import pytest
import torch
from ops_contract import relative_error

from fastinv import ops
from fastinv.ops import _dispatch
from fastinv.ops.bias_act import ACTIVATIONS

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
ONE_DERIVATIVE = ("styled_conv",)
FOUR, FIVE, SIX = [1, 3, 3, 1], [1, 4, 6, 4, 1], [1, 5, 10, 10, 5, 1]  # 5 and 6 taps: a known trap in channels_last
TWELVE = [1, 2, 4, 7, 9, 11, 11, 9, 7, 4, 2, 1]  # separable


class Case(NamedTuple):
    op: str
    label: str
    options: dict
    taps: list | None = None
    kernel: int = 3


CASES = [
    *(Case("bias_act", act, {"act": act, "clamp": 2.5 if act in ("lrelu", "tanh") else None}) for act in ACTIVATIONS),
    Case("upfirdn2d", "4 taps", {"padding": [2, 1, 2, 1]}, FOUR),
    Case("upfirdn2d", "5 taps", {"padding": 2}, FIVE),
    Case("upfirdn2d", "6 taps", {"padding": [3, 2, 3, 2], "flip_filter": True}, SIX),
    Case("upfirdn2d", "12 taps", {"padding": [6, 5, 6, 5]}, TWELVE),
    Case("upfirdn2d", "up", {"up": 2, "padding": [2, 1, 2, 1], "gain": 4.0}, FOUR),
    Case("upfirdn2d", "down", {"down": 2, "padding": 1}, FOUR),
    Case("upfirdn2d", "up and down", {"up": [2, 3], "down": [3, 2], "padding": [4, -1, 2, 3]}, FIVE),
    Case("conv2d_resample", "plain", {"padding": 1}),
    Case("conv2d_resample", "convolution", {"padding": [2, 0, 1, 1], "flip_weight": False}),
    Case("conv2d_resample", "up", {"up": 2, "padding": 1, "flip_weight": False}, FOUR),
    Case("conv2d_resample", "down", {"down": 2, "padding": 1}, FOUR),
    Case("conv2d_resample", "pointwise", {"up": 2}, FOUR, 1),
    Case("modulated_conv2d", "plain", {"padding": 1}),
    Case("modulated_conv2d", "up", {"up": 2, "padding": 1, "flip_weight": False}, FOUR),
    Case("modulated_conv2d", "down", {"down": 2, "padding": 1}, FOUR),
    Case("modulated_conv2d", "toRGB", {"demodulate": False}, None, 1),
    Case("styled_conv", "lrelu", {"clamp": 2.0}),
    Case("styled_conv", "up", {"up": 2}, FOUR),
    Case("styled_conv", "swish", {"act": "swish"}),
    Case("styled_conv", "no demodulation", {"demodulate": False, "act": "linear"}),
]
TYPICAL = [  # one of each op, for what does not depend on its options
    next(case for case in CASES if (case.op, case.label) == wanted)
    for wanted in [
        ("bias_act", "lrelu"),
        ("bias_act", "swish"),
        ("upfirdn2d", "up"),
        ("conv2d_resample", "up"),
        ("modulated_conv2d", "up"),
        ("styled_conv", "up"),
    ]
]


def inputs(case, device, size=(21, 27), channels=24, out=16, n=3, dtype=torch.float64, layout="nchw"):
    """The operands of a case by their names, drawn on the CPU."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    f = None if case.taps is None else ops.setup_filter(case.taps).to(device)
    x = randn(n, channels, *size).contiguous(memory_format=LAYOUTS[layout])
    if case.op == "bias_act":
        return {"x": x, "b": randn(channels)}
    if case.op == "upfirdn2d":
        return {"x": x, "f": f}
    w = randn(out, channels, case.kernel, case.kernel)
    if case.op == "conv2d_resample":
        return {"x": x, "w": w, "f": f}
    up, down = case.options.get("up", 1), case.options.get("down", 1)
    noise = randn(n, 1, size[0] * up // down, size[1] * up // down)
    given = {"x": x, "weight": w, "styles": 1 + 0.5 * randn(n, channels), "noise": noise, "resample_filter": f}
    if case.op == "styled_conv":
        given |= {"bias": randn(out), "noise_strength": torch.tensor(0.7, device=device, dtype=dtype)}
    return given


def split(given):
    """Names and values of what has a gradient, and the rest."""
    names = [name for name, value in given.items() if value is not None and name not in ("f", "resample_filter")]
    return names, [given[name] for name in names], {name: given[name] for name in given if name not in names}


def function_of(case, given, impl="native"):
    """The op as a function of the tensors that have a gradient."""
    names, _, rest = split(given)
    return lambda *tensors: getattr(ops, case.op)(**dict(zip(names, tensors)), **rest, **case.options, impl=impl)


def with_gradients(function, tensors, dy=None):
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y) if dy is None else dy)]


@contextlib.contextmanager
def full_precision():
    """Without TF32, whose error would hide ours."""
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    try:
        yield
    finally:
        for setting, value in zip(settings, before):
            setting.allow_tf32 = value


def check_same(actual, expected, tolerance):
    for i, (a, b) in enumerate(zip(actual, expected)):
        assert a.dtype == b.dtype and a.device == b.device
        error = relative_error(a, b)
        assert error <= tolerance, f"{'output' if i == 0 else f'gradient {i - 1}'}: error {error:.2e}"


def check_numbers(case, layout, dtype, device):
    """Output and gradients in dtype are at most twice as far from float64 as plain torch's on the same device."""
    assert not _dispatch.obstacle(case.op, torch.device(device).type, dtype)
    with full_precision():
        given = inputs(case, device, layout=layout)
        if dtype != torch.float64:
            return contract.check_accuracy(case.op, given, dtype, **case.options)
        names, tensors, _ = split(given)
        expected = with_gradients(function_of(case, inputs(case, "cpu"), "ref"), [t.cpu() for t in tensors])
        actual = with_gradients(function_of(case, given), tensors)
        assert actual[0].is_contiguous(memory_format=LAYOUTS[layout])
        check_same([t.cpu() for t in actual], expected, 1e-12)


def check_derivatives(case, layout, device):
    """gradcheck and, where the op has one, the second derivative's."""
    given = inputs(case, device, (3, 4), 2, 3, 2, layout=layout)
    _, tensors, _ = split(given)
    leaves = [t.detach().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(function_of(case, given), leaves, fast_mode=True, nondet_tol=1e-12)
    if case.op not in ONE_DERIVATIVE:
        assert torch.autograd.gradgradcheck(function_of(case, given), leaves, fast_mode=True, nondet_tol=1e-12)


def check_repeatable(case, layout, device):
    """Bit by bit the same again: no atomics. Convolutions are torch's, so the op has none of its own: frozen weight."""
    given = inputs(case, device, dtype=torch.float32, layout=layout)
    names, tensors, rest = split(given)
    kept = [name for name in names if name not in ("w", "weight")]
    fixed = {name: given[name] for name in names if name not in kept} | rest

    def function(*changing):
        return getattr(ops, case.op)(**dict(zip(kept, changing)), **fixed, **case.options, impl="native")

    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        first, again = (with_gradients(function, [given[name] for name in kept]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def check_empty(case, device):
    given = inputs(case, device, n=0, dtype=torch.float32)
    y, *gradients = with_gradients(function_of(case, given), split(given)[1])
    assert y.shape[0] == 0 and not any(gradient.any() for gradient in gradients)


def check_autocast(case, device):
    """Under autocast the convolutions take its dtype; the other ops keep that of x."""
    given = inputs(case, device, dtype=torch.float32)
    function, tensors = function_of(case, given), split(given)[1]
    exact = with_gradients(function, tensors)
    device_type = torch.device(device).type
    for dtype in _dispatch.DTYPES[device_type]:
        if dtype not in (torch.float16, torch.bfloat16):
            continue
        with torch.autocast(device_type, dtype):
            y = function(*tensors)
        assert y.dtype == (dtype if "conv" in case.op else torch.float32)
        assert relative_error(y, exact[0]) < 2e-2


def check_compile(case, device):
    """torch.compile takes the op in one graph, with the same numbers in both directions."""
    given = inputs(case, device, dtype=torch.float32, layout="nhwc")
    function, tensors = function_of(case, given), split(given)[1]
    expected = with_gradients(function, tensors)
    torch._dynamo.reset()
    backend = "inductor" if torch.device(device).type == "cuda" else "aot_eager"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    check_same(with_gradients(compiled, tensors), expected, 1e-5)
    torch._dynamo.reset()


def check_side_stream(case, device):
    """On a stream of its own, behind work that is still under way there: kernels on another one would read NaN."""
    given = inputs(case, device, dtype=torch.float32, layout="nhwc")
    function, tensors = function_of(case, given), split(given)[1]
    expected = with_gradients(function, tensors)
    late = [torch.full_like(t, float("nan")) for t in tensors]
    if torch.device(device).type != "cuda":
        for target, source in zip(late, tensors):
            target.copy_(source)
        return check_same(with_gradients(function, late), expected, 1e-5)
    torch.cuda.synchronize(device)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for target, source in zip(late, tensors):
            target.copy_(source)
        actual = with_gradients(function, late)
    stream.synchronize()
    check_same(actual, expected, 1e-5)


def check_graph(case, device):
    """Captured in a CUDA graph, forward and backward, and replayed on other numbers."""
    given = inputs(case, device, dtype=torch.float32, layout="nhwc")
    function, tensors = function_of(case, given), split(given)[1]
    others = [0.5 * t + 0.1 for t in tensors]
    static = [t.clone() for t in tensors]
    if torch.device(device).type != "cuda":
        with_gradients(function, static)
        for target, source in zip(static, others):
            target.copy_(source)
        return check_same(with_gradients(function, static), with_gradients(function, others), 1e-5)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):  # convolutions choose their algorithms
            with_gradients(function, static)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = with_gradients(function, static)
    for target, source in zip(static, others):
        target.copy_(source)
    graph.replay()
    torch.cuda.synchronize(device)
    check_same(results, with_gradients(function, others), 1e-5)


def check_other_device(case, device):
    """Tensors on a device that is not the current one."""
    given = inputs(case, device, dtype=torch.float32)
    actual = with_gradients(function_of(case, given), split(given)[1])
    assert all(t.device == torch.device(device) for t in actual)
    on_cpu = inputs(case, "cpu", dtype=torch.float32)
    expected = with_gradients(function_of(case, on_cpu, "ref"), split(on_cpu)[1])
    with full_precision():
        check_same([t.cpu() for t in actual], expected, 1e-2)


def check_mixed_devices(case, device):
    """An operand that the Python checks do not look at, on the CPU: one clear line, no fault of the device."""
    if case.op != "modulated_conv2d" or torch.device(device).type != "cuda":
        return
    x = torch.zeros(2, 3, 4, 4, device=device)
    with pytest.raises(RuntimeError, match="modulated_conv2d_scale: scale must be on CUDA device"):
        torch.ops.fastinv.modulated_conv2d_scale(x, torch.ones(2, 3))


@functools.cache
def checks(device_type):
    """Every check by name: a function of a device of that type."""
    table = {}
    for case in CASES:
        for layout in LAYOUTS:
            for dtype in _dispatch.DTYPES[device_type]:
                name = f"numbers, {case.op}, {case.label}, {layout}, {str(dtype).removeprefix('torch.')}"
                table[name] = functools.partial(check_numbers, case, layout, dtype)
    for case in TYPICAL:
        for layout in LAYOUTS:
            for check in (check_derivatives, check_repeatable):
                what = check.__name__.removeprefix("check_")
                table[f"{what}, {case.op}, {case.label}, {layout}"] = functools.partial(check, case, layout)
        for check in (check_empty, check_autocast, check_compile, check_side_stream, check_graph, check_mixed_devices):
            what = check.__name__.removeprefix("check_").replace("_", " ")
            table[f"{what}, {case.op}, {case.label}"] = functools.partial(check, case)
    return table


@pytest.mark.gpu
@pytest.mark.parametrize("name", checks("cuda"))
def test_on_cuda(name):
    checks("cuda")[name](torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.gpu
@pytest.mark.parametrize("case", TYPICAL, ids=lambda case: f"{case.op}, {case.label}")
def test_on_another_device(case):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    with torch.cuda.device(0):
        check_other_device(case, torch.device("cuda", 1))


@pytest.mark.slow
@contract.native
@pytest.mark.parametrize("name", checks("cpu"))
def test_the_checks_themselves_on_the_cpu(name):
    checks("cpu")[name](torch.device("cpu"))
