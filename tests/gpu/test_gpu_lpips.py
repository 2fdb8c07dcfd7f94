"""LPIPS on a CUDA device: numbers in every dtype, repeatability, a side stream, a CUDA graph.

The checks are functions of a device, so that a dry run goes through them on the CPU.
"""

import functools

import pytest
import torch
from torch.nn import functional

from fastinv.losses import LPIPS, lpips, trunks
from fastinv.ops import _dispatch

# Of value and gradient. The nets' weights are random, so half precision flips more signs than a trained net would.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 0.4, torch.float16: 0.1}


@functools.cache
def network():
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for index, inputs, outputs in trunks.vgg16_convolutions().values():
        scale = (2 / (9 * inputs)) ** 0.5
        weights[f"features.{index}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * scale
        weights[f"features.{index}.bias"] = torch.randn(outputs, generator=generator) * 0.1
    heads = [torch.rand(width, generator=generator) for _, width in trunks.VGG16_BLOCKS]
    return lpips.LPIPSNetwork(trunks.VGG16Trunk(weights, layers=lpips.TAPS), heads)


def pictures(size, seed, device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, size // 4, size // 4, generator=generator, dtype=torch.float64) * 2 - 1
    return functional.interpolate(coarse, size=(size, size), mode="bilinear").to(device, dtype)


def value_and_gradient(loss, images):
    images = images.detach().requires_grad_()
    value = loss(images)
    return value.detach(), torch.autograd.grad(value.sum(), images)[0]


def relative_error(found, expected):
    return ((found.cpu().double() - expected).norm() / expected.norm()).item()


@functools.cache
def expected(size, masked):
    mask = pictures(size, 3)[:, :1].abs() if masked else None
    return value_and_gradient(LPIPS(pictures(size, 2), network(), mask), pictures(size, 1))


def build(size, device, dtype, masked=False):
    wide = torch.promote_types(dtype, torch.float32)
    mask = pictures(size, 3, device, wide)[:, :1].abs() if masked else None
    return LPIPS(pictures(size, 2, device, wide), network(), mask, dtype), pictures(size, 1, device, wide)


def without_tf32(check):
    @functools.wraps(check)
    def run(*arguments):
        before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            check(*arguments)
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return run


@without_tf32
def check_numbers(dtype, size, masked, device):
    value, gradient = value_and_gradient(*build(size, device, dtype, masked))
    right_value, right_gradient = expected(size, masked)
    assert relative_error(value, right_value) < TOLERANCES[dtype] / 10
    assert relative_error(gradient, right_gradient) < TOLERANCES[dtype]


def check_native(device):
    """On a GPU none of LPIPS's ops may fall back."""
    for dtype in _dispatch.DTYPES["cuda"]:
        for op in ("perceptual_input", "perceptual_stage", "perceptual_sum", "bias_act"):
            if device.type == "cuda":
                assert _dispatch.obstacle(op, "cuda", dtype) == ""


def check_repeatable(device):
    torch.backends.cudnn.deterministic, before = True, torch.backends.cudnn.deterministic
    try:
        loss, images = build(36, device, torch.float32)
        first, second = value_and_gradient(loss, images), value_and_gradient(loss, images)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    finally:
        torch.backends.cudnn.deterministic = before


@without_tf32
def check_graph(device):
    """Captured, forward and backward, and replayed on other pictures."""
    loss, images = build(64, device, torch.float16)
    static = images.clone()
    if device.type != "cuda":
        value_and_gradient(loss, static)
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):
            value_and_gradient(loss, static)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = value_and_gradient(loss, static)
    static.copy_(images * 0.9)
    graph.replay()
    torch.cuda.synchronize(device)
    for found, right in zip(results, value_and_gradient(loss, images * 0.9), strict=True):
        assert relative_error(found, right.cpu().double()) < 1e-2


@functools.cache
def checks(device_type):
    """Every check by name: a function of a device of that type."""
    table = {"native": check_native, "repeatable": check_repeatable, "graph": check_graph}
    for dtype in TOLERANCES:
        for size, masked in ((64, False), (36, True)):
            name = f"numbers, {size}{', masked' if masked else ''}, {str(dtype).removeprefix('torch.')}"
            table[name] = functools.partial(check_numbers, dtype, size, masked)
    return table


@pytest.mark.gpu
@pytest.mark.parametrize("name", checks("cuda"))
def test_on_cuda(name):
    checks("cuda")[name](torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.slow
@pytest.mark.parametrize("name", checks("cpu"))
def test_the_checks_themselves_on_the_cpu(name):
    checks("cpu")[name](torch.device("cpu"))
