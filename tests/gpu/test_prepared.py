"""The prepared synthesis and LPIPS on a CUDA device: numbers, devices, streams, torch.compile, graph capture.

Each check is a function of a device; tests/test_frozen.py holds the same code to more on the CPU.
"""

import pytest
import torch

from fastinv.models.convolution import candidates
from fastinv.models.stylegan2 import Generator

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def generator(device, resolution=64, channels=64):
    torch.manual_seed(0)
    options = {"channel_base": channels * 32, "channel_max": channels, "mapping_layers": 1, "conv_clamp": 256}
    G = Generator(resolution, 64, 64, **options)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith(("noise_strength", "conv0.bias", "conv1.bias", "torgb.bias")):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    return G.to(device)


def codes(G, n=2):
    random = torch.Generator().manual_seed(1)
    return torch.randn(n, G.num_ws, G.w_dim, generator=random).to(G.w_avg.device)


def image_and_gradient(P, w_plus):
    w_plus = w_plus.detach().clone().requires_grad_()
    image = P.synthesis(w_plus)
    cotangent = torch.randn(image.shape, generator=torch.Generator().manual_seed(2)).to(image)
    return image.detach(), torch.autograd.grad((image * cotangent).sum(), w_plus)[0]


def error(actual, truth):
    return float((actual.double() - truth).norm() / truth.norm())


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """Where bits are compared, cuDNN must not add in an order of its own."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture(scope="module")
def truth():
    G = generator(CUDA).double()
    return image_and_gradient(G.prepare(), codes(G).double())


def test_float64_agrees_with_the_training_path(truth):
    G = generator(CUDA).double()
    for actual, expected in zip(image_and_gradient(G, codes(G).double()), truth, strict=True):
        assert error(actual, expected) < 1e-10


@pytest.mark.parametrize("up", candidates(2), ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_form_in_every_dtype(dtype, up, truth):
    """At most twice as far from float64 as the unfused path in the same dtype."""
    G = generator(CUDA)
    same = candidates(1)[candidates(2).index(up) % 2]
    P = G.prepare(dtype, {name: up if name.endswith("conv0") else same for name in G.synthesis.noise_layers()})

    class Plain:
        @staticmethod
        def synthesis(w_plus):
            return G.synthesis(w_plus, dtype=dtype)

    ours, plain = image_and_gradient(P, codes(G)), image_and_gradient(Plain, codes(G))
    for actual, other, expected in zip(ours, plain, truth, strict=True):
        assert error(actual, expected) <= max(2 * error(other, expected), 1e-6)


def test_results_are_the_same_bits_again():
    G = generator(CUDA)
    P = G.prepare(torch.float16)
    first, second = image_and_gradient(P, codes(G)), image_and_gradient(P, codes(G))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    G = generator(torch.device("cuda", 1))
    with torch.cuda.device(0):
        image, gradient = image_and_gradient(G.prepare(), codes(G))
    assert image.device == gradient.device == torch.device("cuda", 1)


def test_a_side_stream_is_used():
    G = generator(CUDA)
    P = G.prepare(torch.float16)
    expected = image_and_gradient(P, codes(G))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = image_and_gradient(P, codes(G))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_autocast_changes_nothing():
    G = generator(CUDA)
    P = G.prepare(torch.float16)
    expected = image_and_gradient(P, codes(G))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = image_and_gradient(P, codes(G))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_compiles_into_one_graph():
    G = generator(CUDA)
    P = G.prepare()
    w_plus = codes(G).requires_grad_()
    expected = torch.autograd.grad(P.synthesis(w_plus).square().sum(), w_plus)[0]
    compiled = torch.compile(lambda w: P.synthesis(w).square().sum(), fullgraph=True)
    assert error(torch.autograd.grad(compiled(w_plus), w_plus)[0], expected.double()) < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_graph_of_forward_and_backward_replays_on_new_codes(dtype):
    G = generator(CUDA)
    P = G.prepare(dtype)
    static = codes(G).requires_grad_()
    gradient = torch.zeros_like(static)

    def step():
        image = P.synthesis(static)
        gradient.copy_(torch.autograd.grad(image.square().sum(), static)[0])
        return image

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        image = step()
    other = codes(G).flip(0).contiguous()
    with torch.no_grad():
        static.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    replayed = image.detach().clone(), gradient.clone()
    fresh = other.clone().requires_grad_()
    expected = P.synthesis(fresh)
    assert torch.equal(replayed[0], expected.detach())
    assert torch.equal(replayed[1], torch.autograd.grad(expected.square().sum(), fresh)[0])


def shifted(x):
    """The same numbers and strides in memory that begins one value after a multiple of 16 bytes."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory.as_strided(x.shape, x.stride(), 1).copy_(x)


def check_slices(device, dtype):
    """Kernels that load nothing but vectors take operands which begin anywhere."""
    torch.manual_seed(3)
    native = torch.ops.fastinv
    u, g, target = (torch.randn(2, 6, 10, 8, device=device).to(dtype).permute(0, 3, 1, 2) for _ in range(3))
    head, inverse = torch.rand(8, device=device), torch.ones(2, 6, 10, device=device)
    d, next_styles, bias = (
        torch.randn(2, 8, device=device),
        torch.randn(2, 8, device=device),
        u[0, :, 0, 0].contiguous(),
    )
    layer = d, None, 0.0, None, next_styles, None, None, None, None, [], 0, 0.2, 1.0, -1.0, -1.0
    back = d, None, 0.0, next_styles, None, None, [], 0, 0.2, 1.0, -1.0, -1.0, False
    h, _, h_inverse, slope, _ = native.perceptual_stage(u, bias, head, target, inverse, None, True)
    pooled, ones = g[:, :, :3, :5].contiguous(memory_format=torch.channels_last), torch.ones(2, device=device)
    calls = [
        lambda at: native.synthesis_epilogue(at(u), *layer),
        lambda at: native.synthesis_epilogue_backward(at(g), None, at(u), None, *back),
        lambda at: native.perceptual_stage(at(u), at(bias), at(head), at(target), inverse, None, True),
        lambda at: [
            native.perceptual_stage_backward(
                at(h), h_inverse, slope, at(head), at(target), inverse, None, ones, at(pooled)
            )
        ],
    ]
    for call in calls:
        expected, found = call(lambda x: x), call(shifted)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slices_that_begin_inside_of_16_bytes(dtype):
    check_slices(CUDA, dtype)
