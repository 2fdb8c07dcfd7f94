"""The drop-in: public names resolve to fastinv, with the public signatures and the numbers of plain torch.

The imports are those of the public code bases, `torch_utils.ops...` and `op`, by name, after `compat.install()`.
"""

import importlib
import inspect
import json
import pickle
import sys

import numpy as np
import ops_contract as contract
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastinv.errors import NativeUnavailableError, UsageError
from fastinv.ops import compat

TORCH_UTILS = [
    "torch_utils.custom_ops", "torch_utils.ops.bias_act", "torch_utils.ops.conv2d_gradfix",
    "torch_utils.ops.conv2d_resample", "torch_utils.ops.filtered_lrelu", "torch_utils.ops.fma",
    "torch_utils.ops.grid_sample_gradfix", "torch_utils.ops.upfirdn2d",
]  # fmt: skip
OP_PACKAGES = ["op", "stylegan2.op", "models.stylegan2.op", "models.e4e.stylegan2.op",
               "models.StyleCLIP.models.stylegan2.op"]  # fmt: skip
ROOTS = {"torch_utils", "op", "stylegan2", "models", "my", "other"}
GRADFIX = ["torch_utils.ops.conv2d_gradfix", "op.conv2d_gradfix", "models.stylegan2.op.conv2d_gradfix"]


@pytest.fixture(autouse=True)
def installed():
    """Every test here sees the drop-in, and leaves the interpreter as it found it."""
    finders, modules = list(sys.meta_path), set(sys.modules)
    compat.install()
    yield
    compat.uninstall()
    assert sys.meta_path == finders
    assert not {name for name in set(sys.modules) - modules if name.split(".")[0] in ROOTS}


def public(name):
    return importlib.import_module(name)


def ops(name):
    """The module `torch_utils.ops.<name>`."""
    return public(f"torch_utils.ops.{name}")


def numbers(*shape, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def check_second(function, *leaves):
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


# --- golden numbers, through the public names ---


@pytest.mark.parametrize("impl", ["cuda", "ref"])
@pytest.mark.parametrize("case", **contract.golden_cases("upfirdn2d", "filter2d", "upsample2d", "downsample2d"))
def test_golden_upfirdn2d(case, impl):
    contract.check_golden(getattr(ops("upfirdn2d"), case["op"]), case, impl)


@pytest.mark.parametrize("impl", ["cuda", "ref"])
@pytest.mark.parametrize("case", **contract.golden_cases("bias_act"))
def test_golden_bias_act(case, impl):
    contract.check_golden(ops("bias_act").bias_act, case, impl, optional=("b",))


@pytest.mark.parametrize("case", **contract.golden_cases("conv2d_resample"))
def test_golden_conv2d_resample(case):
    conv2d_resample = ops("conv2d_resample").conv2d_resample
    contract.check_golden(lambda impl, **arguments: conv2d_resample(**arguments), case, impl=None)
    stored = contract.golden_tensors()  # a frozen weight takes another way
    y = conv2d_resample(**{name: stored[key] for name, key in case["inputs"].items()}, **case["args"])
    assert contract.relative_error(y, stored[case["output"]]) <= 1e-10


def test_golden_setup_filter():
    stored = contract.golden_tensors()
    entries = json.loads((contract.GOLDEN / "ops.json").read_text())["setup_filter"]
    assert len(entries) == 8
    for entry in entries:
        f = ops("upfirdn2d").setup_filter(entry["f"], **entry["args"])
        assert contract.relative_error(f, stored[entry["output"]]) <= 1e-7, entry["name"]


# --- signatures ---


SIGNATURES = {
    "torch_utils.custom_ops.get_plugin": "(module_name, sources, headers=None, source_dir=None, **build_kwargs)",
    "torch_utils.ops.upfirdn2d.setup_filter":
        "(f, device='cpu', normalize=True, flip_filter=False, gain=1, separable=None)",
    "torch_utils.ops.upfirdn2d.upfirdn2d":
        "(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl='cuda')",
    "torch_utils.ops.upfirdn2d.filter2d": "(x, f, padding=0, flip_filter=False, gain=1, impl='cuda')",
    "torch_utils.ops.upfirdn2d.upsample2d": "(x, f, up=2, padding=0, flip_filter=False, gain=1, impl='cuda')",
    "torch_utils.ops.upfirdn2d.downsample2d": "(x, f, down=2, padding=0, flip_filter=False, gain=1, impl='cuda')",
    "torch_utils.ops.bias_act.bias_act":
        "(x, b=None, dim=1, act='linear', alpha=None, gain=None, clamp=None, impl='cuda')",
    "torch_utils.ops.conv2d_resample.conv2d_resample":
        "(x, w, f=None, up=1, down=1, padding=0, groups=1, flip_weight=True, flip_filter=False)",
    "torch_utils.ops.conv2d_gradfix.conv2d":
        "(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)",
    "torch_utils.ops.conv2d_gradfix.conv_transpose2d":
        "(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)",
    "torch_utils.ops.conv2d_gradfix.no_weight_gradients": "(disable=True)",
    "torch_utils.ops.fma.fma": "(a, b, c)",
    "torch_utils.ops.grid_sample_gradfix.grid_sample": "(input, grid)",
    "torch_utils.ops.filtered_lrelu.filtered_lrelu":
        "(x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=1.4142135623730951, slope=0.2, clamp=None, "
        "flip_filter=False, impl='cuda')",
    "op.fused_act.FusedLeakyReLU": "(channel, bias=True, negative_slope=0.2, scale=1.4142135623730951)",
    "op.fused_act.fused_leaky_relu": "(input, bias=None, negative_slope=0.2, scale=1.4142135623730951)",
    "op.upfirdn2d.upfirdn2d": "(input, kernel, up=1, down=1, pad=(0, 0))",
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    module, _, function = name.rpartition(".")
    function = getattr(public(module), function)
    assert str(inspect.signature(function)) == SIGNATURES[name]
    if "kwargs" not in SIGNATURES[name]:
        with pytest.raises(TypeError, match="unexpected keyword argument 'nonesuch'"):
            function(**{p: None for p in inspect.signature(function).parameters}, nonesuch=1)


@pytest.mark.parametrize("package", OP_PACKAGES)
def test_the_names_of_an_op_package(package):
    namespace = {}
    exec(f"from {package} import FusedLeakyReLU, fused_leaky_relu, upfirdn2d, conv2d_gradfix", namespace)
    assert callable(namespace["upfirdn2d"]) and namespace["conv2d_gradfix"].enabled is True
    assert namespace["fused_leaky_relu"] is public(f"{package}.fused_act").fused_leaky_relu
    assert namespace["upfirdn2d"] is public(f"{package}.upfirdn2d").upfirdn2d
    assert namespace["FusedLeakyReLU"].__module__ == f"{package}.fused_act"


def test_activation_table():
    table = ops("bias_act").activation_funcs
    names = ["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]
    assert list(table) == names and [table[name].cuda_idx for name in names] == list(range(1, 10))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for name, spec in table.items():
        assert spec["def_gain"] == spec.def_gain == (2**0.5 if name in ("relu", "lrelu", "swish") else 1)
        assert spec.def_alpha == (0.2 if name == "lrelu" else 0)
        expected = ops("bias_act").bias_act(x[None], act=name, gain=1)[0]
        torch.testing.assert_close(spec.func(x, alpha=spec.def_alpha), expected, rtol=1e-12, atol=1e-12)
    assert [name for name in names if table[name].has_2nd_grad] == names[3:]
    assert [table[name].ref for name in names] == ["", *"yyyyyyy", "x"]


def test_helpers_that_forks_import():
    module = ops("upfirdn2d")
    assert module._parse_scaling(2) == (2, 2) and module._parse_scaling([3, 1]) == (3, 1)
    assert module._parse_padding(1) == (1, 1, 1, 1) and module._parse_padding([1, 2]) == (1, 1, 2, 2)
    assert module._parse_padding([1, 2, 3, 4]) == (1, 2, 3, 4)
    assert module._get_filter_size(None) == (1, 1) and module._get_filter_size(torch.ones(3, 5)) == (5, 3)


def test_nothing_is_compiled():
    with pytest.raises(NativeUnavailableError, match="'mine_plugin' would have to be compiled"):
        public("torch_utils.custom_ops").get_plugin("mine_plugin", sources=["mine.cu"], extra_cuda_cflags=["-O3"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops("upfirdn2d").upfirdn2d(numbers(1, 1, 4, 4), None, impl="auto"), "impl must be 'cuda'"),
        (lambda: ops("bias_act").bias_act(numbers(1, 2), impl="native"), "impl must be 'cuda'"),
        (lambda: ops("filtered_lrelu").filtered_lrelu(numbers(1, 2, 4, 4), impl=None), "impl must be 'cuda'"),
        (lambda: ops("filtered_lrelu").filtered_lrelu(numbers(1, 2, 4, 4), padding=[0.5] * 4), "padding must be"),
        (lambda: ops("conv2d_resample").conv2d_resample(numbers(1, 2, 4, 4), numbers(3, 3, 1, 1)), "2 channels"),
        (lambda: public("op").fused_leaky_relu(numbers(2, 18, 8), numbers(8)), r"shape \[18\] \(axis 1"),
        (lambda: public("op").upfirdn2d(numbers(1, 1, 4, 4), torch.ones(2, 2), pad=(1, 2, 3)), "pad must be"),
        (lambda: public("op").upfirdn2d(numbers(1, 1, 4, 4), torch.ones(2, 2), pad=1), "pad must be"),
        (lambda: public("op").upfirdn2d(numbers(1, 1, 4, 4), [1, 2]), "kernel must be a tensor"),
        (lambda: compat.install("my.fork.op", "a b"), "got 'a b'"),
        (lambda: compat.install(torch), "dotted names"),
        (lambda: compat.install("my..op"), "dotted names"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_refused_packages_change_nothing():
    with pytest.raises(UsageError):
        compat.install("my.fork.op", "a b")
    with pytest.raises(ModuleNotFoundError):
        public("my.fork.op")


# --- the numbers of the other ops ---


def upfirdn_by_definition(x, f, up, down, pads, gain=1.0):
    """Zero insertion, padding, true convolution, decimation, one after the other; up and down as (x, y)."""
    n, channels, height, width = x.shape
    stuffed = x.new_zeros(n, channels, height * up[1], width * up[0])
    stuffed[:, :, :: up[1], :: up[0]] = x
    kernel = (f * gain).flip(0, 1).expand(channels, 1, *f.shape)
    return F.conv2d(F.pad(stuffed, pads), kernel, groups=channels)[:, :, :: down[1], :: down[0]]


@pytest.mark.parametrize("package", OP_PACKAGES[:2])
@pytest.mark.parametrize(
    ("settings", "up", "down", "pads"),
    [
        ({"pad": (1, 0)}, (1, 1), (1, 1), [1, 0, 1, 0]),
        ({"up": 2, "pad": (2, 1)}, (2, 2), (1, 1), [2, 1, 2, 1]),
        ({"down": 2, "pad": (1, 1)}, (1, 1), (2, 2), [1, 1, 1, 1]),
        ({"up": (3, 1), "down": (2, 2), "pad": (4, 3, -1, 4)}, (3, 1), (2, 2), [4, 3, -1, 4]),
        ({"up": 2, "pad": [0, 3]}, (2, 2), (1, 1), [0, 3, 0, 3]),
    ],
)
def test_op_upfirdn2d(package, settings, up, down, pads):
    upfirdn2d = public(package).upfirdn2d
    x, kernel = numbers(2, 2, 3, 4), numbers(4, 3, seed=1, grad=False)  # no float32 holds these taps
    y = upfirdn2d(x, kernel, **settings)
    assert contract.relative_error(y, upfirdn_by_definition(x, kernel, up, down, pads)) <= 1e-13
    check_second(lambda x: upfirdn2d(x, kernel, **settings), x)
    for dtype in (torch.float32, torch.bfloat16):  # a module's buffers are of its own dtype
        y = upfirdn2d(x.to(dtype), kernel.to(dtype), **settings)
        assert y.dtype == dtype
        exact = upfirdn_by_definition(x.to(dtype).double(), kernel.to(dtype).double(), up, down, pads)
        assert contract.relative_error(y, exact) <= 4 * torch.finfo(dtype).eps
    assert upfirdn2d(x[:0], kernel, **settings).shape == (0, *y.shape[1:])


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 5), (2, 4, 3, 5), (2, 4, 3, 1, 2), (0, 4, 3, 3)])
def test_fused_leaky_relu(shape):
    fused_leaky_relu = public("op").fused_leaky_relu
    x, bias = numbers(*shape), numbers(4, seed=1)
    for b, slope, scale in ((bias, 0.2, 2**0.5), (None, 0.2, 2**0.5), (bias, 0.05, 0.7)):
        y = fused_leaky_relu(x, b, negative_slope=slope, scale=scale)
        shifted = x if b is None else x + b.view(1, -1, *[1] * (x.ndim - 2))
        torch.testing.assert_close(y, F.leaky_relu(shifted, slope) * scale, rtol=1e-13, atol=1e-13)
    if x.numel():
        check_second(fused_leaky_relu, x, bias)


def test_fused_leaky_relu_module():
    FusedLeakyReLU = public("models.stylegan2.op").FusedLeakyReLU
    layer = FusedLeakyReLU(4)
    assert list(layer.state_dict()) == ["bias"] and torch.equal(layer.bias, torch.zeros(4))
    assert isinstance(layer.bias, torch.nn.Parameter)
    layer.load_state_dict({"bias": torch.arange(4.0)})
    x = numbers(2, 4, 3, 3).float()
    torch.testing.assert_close(layer(x), F.leaky_relu(x + torch.arange(4.0)[:, None, None], 0.2) * 2**0.5)
    plain = FusedLeakyReLU(4, bias=False, negative_slope=0.1, scale=3)
    assert plain.bias is None and not plain.state_dict()
    torch.testing.assert_close(plain(x), F.leaky_relu(x, 0.1) * 3)
    again = pickle.loads(pickle.dumps(layer))
    assert type(again) is FusedLeakyReLU and torch.equal(again.bias, layer.bias)


def test_fma_broadcasts():
    a, b, c = numbers(2, 3, 4), numbers(3, 1, seed=1), numbers(2, 1, 1, seed=2)
    fma = ops("fma").fma
    torch.testing.assert_close(fma(a, b, c), a * b + c, rtol=1e-14, atol=1e-14)
    check_second(fma, a, b, c)


def bilinear(x, grid):
    """Sampling by its definition: four neighbours, those outside being zero."""
    n, _, height, width = x.shape
    at_x, at_y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2
    y = 0
    for dx in (0, 1):
        for dy in (0, 1):
            column, row = at_x.floor() + dx, at_y.floor() + dy
            weight = (1 - (at_x - column).abs()) * (1 - (at_y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            batch = torch.arange(n)[:, None, None]
            value = x[batch, :, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            y = y + (value * (weight * inside)[..., None]).permute(0, 3, 1, 2)
    return y


def test_grid_sample():
    module = ops("grid_sample_gradfix")
    x, grid = numbers(2, 3, 4, 5), 0.8 * numbers(2, 3, 2, 2, seed=1, grad=False)
    assert (grid.abs() > 1).any()
    torch.testing.assert_close(module.grid_sample(x, grid), bilinear(x, grid), rtol=1e-12, atol=1e-12)
    check_second(lambda x: module.grid_sample(x, grid), x)
    leaf = grid.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(module.grid_sample, (x, leaf))
    module.enabled = False
    torch.testing.assert_close(module.grid_sample(x, grid), bilinear(x, grid), rtol=1e-12, atol=1e-12)
    assert module.grid_sample(x, grid).grad_fn.name() == "GridSampler2DBackward0"
    module.enabled = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module.grid_sample(x.detach().bfloat16().requires_grad_(True), grid.float())
    y.sum().backward()
    assert module.grid_sample(x[:0], grid[:0]).shape == (0, 3, 3, 2)


@pytest.mark.parametrize("impl", ["cuda", "ref"])
@pytest.mark.parametrize("taps", [(), (4,), (4, 3)])
def test_filtered_lrelu(impl, taps):
    filtered_lrelu = ops("filtered_lrelu").filtered_lrelu
    x, b = numbers(1, 2, 5, 4), numbers(2, seed=1)
    fu = fd = None
    full = torch.ones(1, 1, dtype=torch.float64)
    if taps:
        fu = fd = torch.arange(1.0, 1 + np.prod(taps)).reshape(taps) / 8  # exact in float32, not symmetric
        full = (torch.outer(fu, fu) if fu.ndim == 1 else fu).double()

    def by_definition(x, b):
        y = upfirdn_by_definition(x + b[:, None, None], full, (2, 2), (1, 1), [3, 2, 1, 4], gain=4)
        y = (F.leaky_relu(y, 0.1) * 1.3).clamp(-2, 2)
        return upfirdn_by_definition(y, full, (1, 1), (2, 2), [0] * 4)

    settings = {"up": 2, "down": 2, "gain": 1.3, "slope": 0.1, "clamp": 2, "impl": impl}
    y = filtered_lrelu(x, fu, fd, b, padding=[np.int64(3), 2, 1, 4], **settings)
    assert contract.relative_error(y, by_definition(x, b)) <= 1e-12
    flipped = [f if f is None else f.flip(list(range(f.ndim))) for f in (fu, fd)]
    again = filtered_lrelu(x, *flipped, b, padding=[3, 2, 1, 4], flip_filter=True, **settings)
    assert contract.relative_error(again, y) <= 1e-12
    check_second(lambda x, b: filtered_lrelu(x, fu, fd, b, padding=[3, 2, 1, 4], **settings), x, b)
    default = filtered_lrelu(x)
    torch.testing.assert_close(default, F.leaky_relu(x, 0.2) * 2**0.5, rtol=1e-13, atol=1e-13)


# --- convolutions and their weights ---


CONVOLUTIONS = [
    ("conv2d", (3, 4, 3, 2), {"padding": (1, 0)}),
    ("conv2d", (6, 2, 3, 3), {"stride": 2, "padding": 1, "groups": 2}),
    ("conv2d", (3, 4, 3, 1), {"dilation": (2, 1), "stride": (1, 2)}),
    ("conv_transpose2d", (4, 3, 3, 2), {"stride": 2}),
    ("conv_transpose2d", (4, 2, 3, 3), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 2}),
    ("conv_transpose2d", (4, 3, 2, 3), {"dilation": (3, 1), "output_padding": (2, 0)}),
]  # fmt: skip


@pytest.mark.parametrize("module", GRADFIX[:2])
@pytest.mark.parametrize(("name", "kernel", "settings"), CONVOLUTIONS)
def test_convolutions(module, name, kernel, settings):
    function, plain = getattr(public(module), name), getattr(F, name)
    x, w = numbers(2, 4, 5, 6), numbers(*kernel, seed=1)
    bias = numbers(plain(x, w, **settings).shape[1], seed=2)
    assert torch.equal(function(x, w, bias, **settings), plain(x, w, bias, **settings))
    check_second(lambda x, w, bias: function(x, w, bias, **settings), x, w, bias)


@pytest.mark.parametrize("module", GRADFIX)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_no_weight_gradients(module, name):
    module = public(module)
    x, w = numbers(2, 3, 5, 4), numbers(3, 3, 3, 3, seed=1)
    bias = numbers(3, seed=2)

    def gradients(disable=None):
        y = getattr(module, name)(x, w, bias).square().sum()
        if disable is None:
            return torch.autograd.grad(y, [x, w, bias], allow_unused=True)
        with module.no_weight_gradients(disable=disable):  # the convolution was outside
            return torch.autograd.grad(y, [x, w, bias], allow_unused=True)

    dx, dw, db = gradients()
    assert gradients(disable=True)[1] is None
    for inside in (gradients(disable=True), gradients(disable=False)):
        assert torch.equal(inside[0], dx) and torch.equal(inside[2], db)
    assert torch.equal(gradients(disable=False)[1], dw)

    with pytest.raises(KeyError), module.no_weight_gradients():
        with module.no_weight_gradients(disable=False):
            assert module.weight_gradients_disabled
        with module.no_weight_gradients():
            pass
        assert module.weight_gradients_disabled
        raise KeyError
    assert not module.weight_gradients_disabled
    module.enabled = False  # torch's own function
    assert torch.equal(gradients(disable=True)[1], dw)
    module.enabled = True


class WeightGradients(TorchDispatchMode):
    """Counts the convolutions whose weight gradient is computed."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.convolution_backward.default:
            self.count += args[-1][1]
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [{"padding": 1}, {"up": 2, "padding": 1}, {"down": 2, "padding": 1}])
def test_conv2d_resample_heeds_no_weight_gradients(settings):
    """R1 asks for the picture's gradient only; its own gradient reaches the weight all the same."""
    conv2d_resample, gradfix = ops("conv2d_resample").conv2d_resample, ops("conv2d_gradfix")
    f = ops("upfirdn2d").setup_filter([1, 3, 3, 1])
    x, w = numbers(2, 3, 6, 6), numbers(4, 3, 3, 3, seed=1)
    y = conv2d_resample(x, w, f, **settings).square().sum()
    with gradfix.no_weight_gradients(), WeightGradients() as work:
        (dx,) = torch.autograd.grad(y, x, create_graph=True)
    assert work.count == 0
    (penalty,) = torch.autograd.grad(dx.square().sum(), w)

    (dx,) = torch.autograd.grad(conv2d_resample(x, w, f, **settings).square().sum(), x, create_graph=True)
    expected = torch.autograd.grad(dx.square().sum(), w)[0]
    assert torch.equal(penalty, expected) and penalty.abs().max() > 0
    with gradfix.no_weight_gradients():
        assert torch.autograd.grad(conv2d_resample(x, w, f, **settings).sum(), w, allow_unused=True) == (None,)
    check_second(lambda x, w: conv2d_resample(x, w, f, **settings), x, w)


def test_autocast():
    x, w = numbers(1, 2, 4, 4).float(), numbers(3, 2, 3, 3, seed=1).float().detach().requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [public("op").conv2d_gradfix.conv2d(x, w), ops("conv2d_resample").conv2d_resample(x, w)]
    for y in results:
        assert y.dtype == torch.bfloat16
        (dw,) = torch.autograd.grad(y.sum(), w)
        assert dw.dtype == torch.float32


# --- the two regularizers of StyleGAN2, written with either family and in plain torch ---


def torch_utils_family():
    bias_act, resample, fma = ops("bias_act").bias_act, ops("conv2d_resample").conv2d_resample, ops("fma").fma
    f = ops("upfirdn2d").setup_filter([1, 3, 3, 1])

    def discriminator(image, w1, w2, b):
        x = bias_act(resample(image, w1, padding=1), b, act="lrelu")
        return bias_act(resample(x, w2, f, down=2, padding=1), act="softplus").sum((1, 2, 3))

    def generator(ws, const, w1, b):
        x = const.expand(len(ws), -1, -1, -1) * ws[:, :, None, None]
        x = resample(x, w1, f, up=2, padding=1, flip_weight=False)
        x = bias_act(fma(x, ws[:, :1, None, None], b[:, None, None]), b, act="lrelu", clamp=256)
        return ops("upfirdn2d").upsample2d(x, f)

    return discriminator, generator, ops("conv2d_gradfix").no_weight_gradients


def op_family():
    package = public("models.stylegan2.op")
    gradfix = public("models.stylegan2.op.conv2d_gradfix")
    kernel = torch.outer(*[torch.tensor([1, 3, 3, 1], dtype=torch.float64)] * 2) / 64

    def discriminator(image, w1, w2, b):
        x = package.fused_leaky_relu(gradfix.conv2d(image, w1, padding=1), b)
        x = package.upfirdn2d(x, kernel, pad=(2, 2))
        return F.softplus(gradfix.conv2d(x, w2, stride=2)).sum((1, 2, 3))

    def generator(ws, const, w1, b):
        x = const.expand(len(ws), -1, -1, -1) * ws[:, :, None, None]
        x = gradfix.conv_transpose2d(x, w1.transpose(0, 1), stride=2)
        x = package.upfirdn2d(x, kernel * 4, pad=(1, 1))
        x = package.fused_leaky_relu(x * ws[:, :1, None, None] + b[:, None, None], b)
        return package.upfirdn2d(x, kernel * 4, up=2, pad=(2, 1))

    return discriminator, generator, gradfix.no_weight_gradients


def plain_torch():
    kernel = torch.outer(*[torch.tensor([1, 3, 3, 1], dtype=torch.float64)] * 2) / 64

    def activate(x, b):
        return F.leaky_relu(x + b[:, None, None], 0.2) * 2**0.5

    def discriminator(image, w1, w2, b):
        x = activate(F.conv2d(image, w1, padding=1), b)
        x = upfirdn_by_definition(x, kernel, (1, 1), (1, 1), [2] * 4)
        return F.softplus(F.conv2d(x, w2, stride=2)).sum((1, 2, 3))

    def generator(ws, const, w1, b):
        x = const.expand(len(ws), -1, -1, -1) * ws[:, :, None, None]
        x = F.conv_transpose2d(x, w1.transpose(0, 1), stride=2)
        x = upfirdn_by_definition(x, kernel, (1, 1), (1, 1), [1] * 4, gain=4)
        x = activate(x * ws[:, :1, None, None] + b[:, None, None], b)
        return upfirdn_by_definition(x, kernel, (2, 2), (1, 1), [2, 1, 2, 1], gain=4)

    return discriminator, generator, None


def regularizers(discriminator, generator, no_weight_gradients):
    """R1 and the path length (Karras et al. 2020, section 3.2), and what they do to every parameter."""
    image, ws, noise = numbers(2, 3, 8, 8), numbers(2, 3, seed=1), numbers(2, 4, 16, 16, seed=2, grad=False)
    w1, w2, b = numbers(4, 3, 3, 3, seed=3), numbers(5, 4, 3, 3, seed=4), numbers(4, seed=5)
    w1, w2 = (w1 / 6).detach().requires_grad_(True), (w2 / 6).detach().requires_grad_(True)  # as layers scale them
    const = numbers(1, 3, 4, 4, seed=6)

    def gradient(y, x):
        if no_weight_gradients is None:
            return torch.autograd.grad(y, x, create_graph=True)[0]
        with no_weight_gradients():
            return torch.autograd.grad(y, x, create_graph=True)[0]

    r1 = gradient(discriminator(image, w1, w2, b).sum(), image).square().sum((1, 2, 3))
    results = [r1, *torch.autograd.grad(r1.mean(), [w1, w2, b], allow_unused=True)]
    lengths = gradient((generator(ws, const, w1, b) * noise).sum(), ws).square().sum(1).sqrt()
    penalty = (lengths - lengths.mean().detach()).square().mean()
    return [*results, lengths, *torch.autograd.grad(penalty, [const, w1])]  # piecewise linear in b: no gradient


@pytest.mark.parametrize("family", [torch_utils_family, op_family])
def test_r1_and_path_length(family):
    expected = regularizers(*plain_torch())
    for actual, wanted in zip(regularizers(*family()), expected, strict=True):
        assert wanted.abs().max() > 0
        assert contract.relative_error(actual, wanted) <= 1e-10
