"""upfirdn2d and its three wrappers, setup_filter."""

import json
from functools import partial

import ops_contract as contract
import pytest
import torch
from conv_contract import native as needs_native

from fastinv import ops
from fastinv.errors import NativeUnavailableError, UsageError

FILTER_OPS = ("upfirdn2d", "filter2d", "upsample2d", "downsample2d")
F4 = ops.setup_filter([1, 3, 3, 1])
F12 = ops.setup_filter(list(range(1, 13)))  # 1-D
F_FULL = torch.tensor([[1.0, 2.0, -1.0], [0.5, 3.0, 1.0], [0.0, 1.0, 2.0], [1.0, -2.0, 4.0], [0.2, 0.1, 0.7]])

# One per path of the kernel: blur, up, down, both, long separable, not separable (F_FULL), unequal factors, crop.
SETTINGS = {
    "blur": dict(f=F4, padding=(2, 1, 2, 1)),
    "up": dict(f=F4, up=2, padding=(2, 1, 2, 1), gain=4),
    "down": dict(f=F4, down=2, padding=1),
    "both": dict(f=F4, up=3, down=2, padding=(3, 2, 1, 4)),
    "long": dict(f=F12, padding=6),
    "long up": dict(f=F12, up=2, padding=(6, 5, 6, 5), gain=4),
    "full": dict(f=F_FULL, padding=2),
    "full up": dict(f=F_FULL, up=(2, 3), down=(3, 1), padding=(1, 2, 3, 4), flip_filter=True),
    "crop": dict(f=F4, padding=(-2, -1, -1, 1)),
    "identity": dict(f=None, up=2, padding=(0, 1, 1, 0)),
    "far": dict(f=F4, padding=(9, -1, 8, 0)),
}


def settings():
    return pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())


def call(setting):
    return lambda x, impl: ops.upfirdn2d(x, **setting, impl=impl)


@pytest.mark.parametrize("impl", ["native", "ref"])
@pytest.mark.parametrize("case", **contract.golden_cases(*FILTER_OPS))
def test_golden(case, impl):
    contract.check_golden(getattr(ops, case["op"]), case, impl)


@pytest.mark.parametrize("dtype", contract.DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@settings()
def test_precision(setting, dtype, channels_last):
    torch.manual_seed(0)
    x = torch.randn(2, 24, 13, 35)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    contract.check_precision(call(setting), [x], dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 17, 16, 33)])
@pytest.mark.parametrize("channels_last", [False, True])
@settings()
def test_odd_sizes(setting, shape, channels_last):
    """Sizes that fill no vector, and pictures smaller than the filter."""
    torch.manual_seed(0)
    setting = setting | ({"padding": 6} if shape[2] == 1 else {})
    x = torch.randn(shape, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for actual, wanted in zip(
        contract.with_gradients(call(setting), [x], "native"), contract.with_gradients(call(setting), [x], "ref")
    ):
        assert contract.relative_error(actual, wanted) <= 1e-12


@pytest.mark.parametrize("name", ["up", "down", "full up", "crop"])
def test_derivatives(name):
    torch.manual_seed(0)
    contract.check_derivatives(call(SETTINGS[name]), torch.randn(1, 2, 5, 8))


@pytest.mark.parametrize("name", ["blur", "up", "down", "full"])
def test_layouts(name):
    torch.manual_seed(0)
    contract.check_layouts(call(SETTINGS[name]), torch.randn(3, 4, 6, 5, dtype=torch.float64))


def test_empty_batch_and_no_channels():
    contract.check_empty(call(SETTINGS["up"]), torch.randn(2, 3, 4, 5))
    assert ops.upfirdn2d(torch.zeros(2, 0, 4, 4), F4, down=2, padding=1, impl="native").shape == (2, 0, 2, 2)


@pytest.mark.parametrize("channels_last", [False, True])
def test_threads(channels_last):
    x = torch.randn(2, 32, 40, 50)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    contract.check_threads(call(SETTINGS["up"]), x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last):
    x = torch.randn(2, 3, 5, 6)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    arguments = (x.requires_grad_(True), F4, 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0)
    torch.library.opcheck(torch.ops.fastinv.upfirdn2d.default, arguments)
    x, *others = arguments
    arguments = (x.detach(), *others, torch.ops.fastinv.upfirdn2d(*arguments).detach())
    torch.library.opcheck(torch.ops.fastinv.upfirdn2d_out.default, arguments)


def test_compile():
    contract.check_compile(call(SETTINGS["up"]), torch.randn(2, 3, 4, 5, dtype=torch.float64))


def test_float32_products_are_found_separable_and_others_are_not_forced():
    """A filter that is a product only nearly keeps every digit in float64."""
    f = F4.clone()
    f[0, 0] *= 1 + 1e-5
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    y = ops.upfirdn2d(x, f, padding=2, impl="native")
    assert contract.relative_error(y, ops.upfirdn2d(x, f, padding=2, impl="ref")) <= 1e-12


def test_one_large_row_of_images():
    """More rows than a thread takes at once, rows longer than the scratch that stays in cache."""
    x = torch.randn(1, 2, 3, 9001, dtype=torch.float64)
    for setting in (SETTINGS["blur"], SETTINGS["up"]):
        assert contract.relative_error(call(setting)(x, "native"), call(setting)(x, "ref")) <= 1e-12


def test_setup_filter_golden():
    stored = contract.golden_tensors()
    entries = json.loads((contract.GOLDEN / "ops.json").read_text())["setup_filter"]
    assert len(entries) == 8
    for entry in entries:
        f = ops.setup_filter(entry["f"], **entry["args"])
        assert f.dtype == torch.float32
        assert contract.relative_error(f, stored[entry["output"]]) <= 1e-7, entry["name"]


def test_the_wrappers_accept_no_filter_and_keep_size():
    x = torch.randn(1, 2, 6, 8)
    assert ops.filter2d(x, F4, impl="native").shape == x.shape
    assert ops.upsample2d(x, F4, impl="native").shape == (1, 2, 12, 16)
    assert ops.downsample2d(x, F4, impl="native").shape == (1, 2, 3, 4)
    assert torch.equal(ops.filter2d(x, None, impl="native"), x)
    ones = torch.ones(1, 1, 16, 16)
    assert torch.allclose(ops.upsample2d(ones, F4, impl="native")[..., 4:-4, 4:-4], torch.ones(()))


def test_half_precision_goes_to_the_reference_and_native_says_why():
    x = torch.randn(1, 2, 4, 4).half()
    assert ops.upfirdn2d(x, F4, padding=2).dtype == torch.float16
    with pytest.raises(NativeUnavailableError, match="float16"):
        ops.upfirdn2d(x, F4, padding=2, impl="native")


def test_a_filter_with_gradient_goes_to_the_reference():
    f = F4.clone().requires_grad_(True)
    x = torch.randn(1, 2, 4, 4)
    (grad,) = torch.autograd.grad(ops.upfirdn2d(x, f, padding=2).square().sum(), f)
    assert grad.shape == f.shape and grad.abs().max() > 0
    with pytest.raises(NativeUnavailableError, match="filter needs a gradient"):
        ops.upfirdn2d(x, f, padding=2, impl="native")
    with pytest.raises(NotImplementedError, match="no gradient for the filter"):
        torch.ops.fastinv.upfirdn2d(x, f, 1, 1, 1, 1, 2, 2, 2, 2, False, 1.0).sum().backward()


X = torch.zeros(1, 2, 4, 4)
WRONG = {
    "x must be a tensor": lambda up: up(torch.zeros(4, 4), F4),
    "x must be floating point": lambda up: up(torch.zeros(1, 1, 4, 4, dtype=torch.int64), F4),
    "x must not be empty": lambda up: up(torch.zeros(1, 1, 0, 4), F4, padding=4),
    "f must be a non-empty": lambda up: up(X, [1.0, 2.0]),
    "f must be float32": lambda up: up(X, F4.double()),
    "up must be at least 1": lambda up: up(X, F4, up=0),
    "down must be an integer": lambda up: up(X, F4, down=1.5),
    "up must be an integer or": lambda up: up(X, F4, up=(1, 2, 3)),
    "padding must be an integer": lambda up: up(X, F4, padding=(1, 2, 3)),
    r"padding \(-3, -3\) leaves no output": lambda up: up(X, F4, padding=-3),
    "gain must be": lambda up: up(X, F12, padding=6, gain=-1.0),
}


@pytest.mark.parametrize("function", [ops.upfirdn2d, ops.upfirdn2d_ref, partial(ops.upfirdn2d, impl="native")])
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message, function):
    with pytest.raises(UsageError, match=f"^upfirdn2d: {message}") as caught:
        WRONG[message](function)
    assert "\n" not in str(caught.value)


def test_wrong_impl_and_wrong_filters():
    with pytest.raises(UsageError, match="impl must be"):
        ops.upfirdn2d(X, F4, impl="cuda")
    with pytest.raises(UsageError, match="separable needs a 1-D f"):
        ops.setup_filter([[1, 2], [3, 4]], separable=True)
    with pytest.raises(UsageError, match="sum to zero"):
        ops.setup_filter([1, -1])
    with pytest.raises(UsageError, match="f must be a number"):
        ops.setup_filter([])


@needs_native
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("channels", (16, 37, 64, 100))
@pytest.mark.parametrize("up, down, padding", ((1, 1, (2, 1, 2, 1)), (2, 1, (2, 1, 1, 2)), (1, 2, (1, 1, -1, 2))))
def test_columns_kept_in_registers(up, down, padding, channels, dtype):
    """channels_last pictures and four taps: whole, overlapping and single vectors of channels, every width."""
    f = ops.setup_filter([1, 3, 2, -1])
    bound = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    for width in range(2, 9):
        x = torch.randn(2, channels, 7, width).to(dtype).contiguous(memory_format=torch.channels_last)
        expected = ops.upfirdn2d_ref(x.double(), f, up, down, padding, gain=1.5)
        actual = ops.upfirdn2d(x, f, up, down, padding, gain=1.5, impl="native")
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert float((actual - expected).abs().max()) <= bound * float(expected.abs().max())


@needs_native
@pytest.mark.parametrize("width", (4, 31, 32, 33, 66, 127))
def test_every_second_column_of_rows(width):
    x, f = torch.randn(2, 3, 9, width), ops.setup_filter([1, 3, 2, -1])
    torch.testing.assert_close(
        ops.upfirdn2d(x, f, down=2, padding=1, impl="native").double(),
        ops.upfirdn2d_ref(x.double(), f, down=2, padding=1), rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@needs_native
@pytest.mark.parametrize("dtype, width", ((torch.float32, 640), (torch.bfloat16, 1280), (torch.float32, 648)))
@pytest.mark.parametrize("channels_last", (False, True))
def test_a_result_beyond_the_caches_agrees_with_its_parts(dtype, width, channels_last):
    """The whole is 40 MB and goes past the caches, the parts do not; rows of 648 are no whole cache lines."""
    x = torch.randn(2, 16, 512, width).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for part, up, down, taps in ((512, 1, 1, 4), (256, 2, 1, 4), (512, 1, 2, 4), (512, 1, 1, 3), (512, 1, 1, 9)):
        source = x[:, :, :part, : part * width // 512] if down == 1 else torch.cat([x, x], 2).repeat(1, 1, 1, 2)
        f = torch.randn(taps)
        run = partial(ops.upfirdn2d, f=f, up=up, down=down, padding=taps // 2, impl="native")
        whole = run(source)
        assert whole.numel() * whole.element_size() >= 32 << 20
        assert torch.equal(whole, torch.cat([run(source[:1]), run(source[1:])]))


@pytest.mark.parametrize("impl", ("ref", pytest.param("native", marks=needs_native)))
@pytest.mark.parametrize("memory_format", (torch.contiguous_format, torch.channels_last))
def test_out(impl, memory_format):
    x, f = torch.randn(2, 20, 8, 6).contiguous(memory_format=memory_format), ops.setup_filter([1, 3, 3, 1])
    expected = ops.upfirdn2d(x, f, up=2, padding=(2, 1), impl=impl)
    out = torch.full_like(expected, torch.nan)
    assert ops.upfirdn2d(x, f, up=2, padding=(2, 1), impl=impl, out=out) is out
    assert torch.equal(out, expected)


def test_out_is_checked():
    x, f = torch.randn(1, 4, 8, 8), ops.setup_filter([1, 3, 3, 1])

    def refused(match, out, x=x):
        with pytest.raises(UsageError, match=match):
            ops.upfirdn2d(x, f, padding=(2, 1, 2, 1), out=out)

    refused("without autograd", torch.empty(1, 4, 8, 8), x.clone().requires_grad_())
    refused("out must be torch.float32", torch.empty(1, 4, 8, 9))
    refused("out must be torch.float32", torch.empty(1, 4, 8, 8, dtype=torch.float64))
    refused("dense in the memory format", torch.empty(1, 4, 8, 8).contiguous(memory_format=torch.channels_last))
    refused("must not overlap", x)
    refused("must not overlap", x.view(4, 1, 8, 8).view(1, 4, 8, 8))
    with torch.no_grad():
        ops.upfirdn2d(x.clone().requires_grad_(), f, padding=(2, 1, 2, 1), out=torch.empty(1, 4, 8, 8))
