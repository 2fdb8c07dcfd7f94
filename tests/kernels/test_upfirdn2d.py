"""The CUDA kernels of upfirdn2d against the reference in float64."""

import itertools
import sys

import ops_contract as contract
import pytest
import torch

from fastinv import ops

from . import host

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
# Sums are in float32 (float64 for float64) and rounded once, to half a unit in the last place.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float64: 1e-14}
F4 = ops.setup_filter([1, 3, 3, 1])
ROWS = {taps: torch.arange(1.0, taps + 1) / taps for taps in range(1, 41)}  # 1-D, unsymmetric


def full(height, width):
    """A 2-D filter that is no outer product."""
    torch.manual_seed(height * 100 + width)
    return torch.randn(height, width)


@pytest.fixture(scope="module")
def kernels():
    return host.load("upfirdn2d")


def axis_arguments(size, up, down, pad0, pad1, taps):
    return (size, (size * up + pad0 + pad1 - taps) // down + 1, up, down, pad0, taps)


def pairs(value):
    return tuple(value) if isinstance(value, (list, tuple)) else (value, value)


def run(
    kernels, x, f, up=1, down=1, padding=0, flip_filter=False, gain=1.0, channels_last=False, order="forward", skew=0
):
    """(y, name of the kernel) of the simulated kernels; `skew` elements lie before x and y in their memory."""
    kernels.set_order(order)
    f = torch.ones(1, 1) if f is None else f.contiguous()
    (up_x, up_y), (down_x, down_y) = pairs(up), pairs(down)
    padding = padding if isinstance(padding, (list, tuple)) else [padding]
    pad_x0, pad_x1, pad_y0, pad_y1 = padding if len(padding) == 4 else [padding[0]] * 2 + [padding[-1]] * 2
    n, channels, height, width = x.shape
    axis_x = axis_arguments(width, up_x, down_x, pad_x0, pad_x1, f.shape[-1])
    axis_y = axis_arguments(height, up_y, down_y, pad_y0, pad_y1, f.shape[0])
    shape = [n, channels, axis_y[1], axis_x[1]]
    if channels_last:
        x, shape = x.permute(0, 2, 3, 1), [n, axis_y[1], axis_x[1], channels]
    else:
        x, shape = x.reshape(n * channels, height, width, 1), [n * channels, axis_y[1], axis_x[1], 1]
    source = torch.zeros(x.numel() + skew, dtype=x.dtype)[skew:].view(x.shape)
    source.copy_(x)
    result = torch.full([skew + torch.Size(shape).numel()], float("nan"), dtype=x.dtype)[skew:].view(shape)
    name = kernels.upfirdn2d(
        host.to_numpy(source), f.numpy(), host.to_numpy(result), axis_x, axis_y, flip_filter, float(gain)
    )
    if channels_last:
        return result.permute(0, 3, 1, 2), name
    return result.view(n, channels, axis_y[1], axis_x[1]), name


def check(kernels, x, expected_kernel, **arguments):
    setting = {k: v for k, v in arguments.items() if k not in ("channels_last", "order", "skew")}
    expected = ops.upfirdn2d_ref(x.double(), **setting)
    y, name = run(kernels, x, **arguments)
    assert contract.relative_error(y, expected) <= TOLERANCE[x.dtype]
    assert name == expected_kernel
    return y


def picture(dtype, channels_last, channels=None, size=(7, 11)):
    torch.manual_seed(0)
    channels = channels or (8 if channels_last else 3)
    return torch.randn(2, channels, *size).to(dtype)


def marched(dtype, channels_last):
    return "direct" if dtype == torch.float64 else "channels" if channels_last else "planes"


RESAMPLINGS = {
    "blur": dict(padding=(2, 1, 1, 2)),
    "up": dict(up=2, padding=(2, 1, 2, 1), gain=4),
    "up, odd padding": dict(up=2, padding=(1, 2, 3, 0)),
    "down": dict(down=2, padding=1),
    "crop": dict(padding=(-2, 3, 3, -3)),
    "up and crop": dict(up=2, padding=(-3, 2, 2, -3)),
    "down and crop": dict(down=2, padding=(-1, 3, 4, -2)),
    "far": dict(padding=(17, -1, 11, 0), flip_filter=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("order", host.ORDERS)
@pytest.mark.parametrize("resampling", ["blur", "up", "up, odd padding", "down"])
def test_orders(kernels, resampling, order, channels_last, dtype):
    x = picture(dtype, channels_last)
    setting = RESAMPLINGS[resampling] | dict(f=F4, channels_last=channels_last)
    y = check(kernels, x, marched(dtype, channels_last), order=order, **setting)
    assert torch.equal(y, run(kernels, x, **setting)[0])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS.keys())
@pytest.mark.parametrize("f", [F4, F4[:3, 1:], full(4, 4), full(3, 2), ROWS[4], ROWS[3], F4 - F4.mean()])
def test_four_taps(kernels, f, resampling, channels_last):
    for dtype in (torch.float32, torch.float16):
        x = picture(dtype, channels_last)
        check(kernels, x, marched(dtype, channels_last), f=f, channels_last=channels_last, **resampling)


@pytest.mark.parametrize("order", host.ORDERS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resampling", ["blur", "up", "down"])
def test_an_outer_product_is_found(kernels, resampling, channels_last, order):
    """The same bits as from the 1-D filter, which other orders of summation would not give."""
    x = picture(torch.float32, channels_last)
    setting = RESAMPLINGS[resampling] | dict(channels_last=channels_last, order=order)
    row = ops.setup_filter([1, 3, 3, 1], separable=True)
    assert torch.equal(run(kernels, x, F4, **setting)[0], run(kernels, x, row, **setting)[0])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS.keys())
@pytest.mark.parametrize("taps", [5, 6, 7, 8])
def test_five_to_eight_taps(kernels, taps, resampling, channels_last):
    """The public kernels drop taps of 5- and 6-tap filters in channels_last."""
    for f, dtype in itertools.product(
        [ROWS[taps], torch.outer(ROWS[taps], ROWS[taps].flip(0)), full(taps, taps), full(3, taps), full(taps, 4)],
        [torch.float32, torch.float16],
    ):
        x = picture(dtype, channels_last)
        check(kernels, x, marched(dtype, channels_last), f=f, channels_last=channels_last, **resampling)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS.keys())
@pytest.mark.parametrize("taps", [9, 12])
def test_long_rows(kernels, taps, resampling, channels_last):
    for dtype in (torch.float32, torch.float16):
        x = picture(dtype, channels_last, size=(17, 19))
        check(kernels, x, marched(dtype, channels_last), f=ROWS[taps], channels_last=channels_last, **resampling)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "setting",
    [
        dict(f=ROWS[13], padding=6),
        dict(f=ROWS[32], up=2, padding=(16, 15, 17, 14)),
        dict(f=ROWS[40], down=2, padding=20, flip_filter=True),
        dict(f=ROWS[4], up=(3, 2), down=(2, 3), padding=(5, 4, 6, 3)),
        dict(f=ROWS[4], up=2, down=2, padding=3),
        dict(f=ROWS[1], up=2, padding=(1, 0, 0, 1), gain=9.0),
        dict(f=full(9, 5), padding=(3, 4, 1, 8)),
        dict(f=full(32, 32), up=2, padding=(20, 11, 9, 30), gain=-3.0),
        dict(f=full(70, 60), padding=40),  # too large for shared memory
        dict(f=full(5, 3), up=(4, 1), down=(1, 3), padding=(-1, 6, 7, -2)),
        dict(f=F4, up=(2, 1), padding=(2, 1, 2, 1)),
        dict(f=None, up=2, padding=(1, 0, 0, 1)),
        dict(f=None, padding=(-3, 4, 5, -2), gain=0.5),
    ],
)
def test_everything_else(kernels, setting, dtype, channels_last):
    x = picture(dtype, channels_last, channels=3)
    f = setting["f"]
    expected = "two_passes" if f is not None and f.ndim == 1 else "direct"
    check(kernels, x, expected, channels_last=channels_last, order="random", **setting)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("resampling", ["blur", "up", "down", "crop"])
def test_few_channels(kernels, resampling, dtype, channels):
    """channels_last pictures whose pixels fill no vector."""
    x = picture(dtype, True, channels)
    for f in (F4, full(4, 3), ROWS[6]):
        _, name = run(kernels, x, f=f, channels_last=True, **RESAMPLINGS[resampling])
        check(kernels, x, name, f=f, channels_last=True, **RESAMPLINGS[resampling])
        if channels == 3 and dtype != torch.float64:
            assert name == ("two_passes" if f.ndim == 1 else "pixels")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 31), (33, 7), (6, 64)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("down", [1, 2])
def test_odd_sizes(kernels, down, channels_last, size):
    for dtype, f in itertools.product((torch.float32, torch.bfloat16), (F4, full(4, 4), ROWS[8], ROWS[12])):
        pad = f.shape[0] // 2
        x = picture(dtype, channels_last, size=size)
        setting = dict(f=f, down=down, padding=(pad, pad, pad, pad + 1), channels_last=channels_last)
        check(kernels, x, marched(dtype, channels_last), **setting)
        setting = dict(f=f, up=2, padding=(pad, pad, pad - 1, pad + 1), channels_last=channels_last)
        check(kernels, x, marched(dtype, channels_last), **setting)


@pytest.mark.parametrize("skew", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("resampling", ["blur", "up", "down"])
def test_misaligned_pointers(kernels, resampling, dtype, skew):
    x = picture(dtype, False, size=(7, 32))
    check(kernels, x, "planes", f=F4, skew=skew, **RESAMPLINGS[resampling])
    x = picture(dtype, True, 8)
    aligned = skew * x.element_size() % 16 == 0
    setting = dict(f=F4, channels_last=True, skew=skew) | RESAMPLINGS[resampling]
    check(kernels, x, "channels" if aligned else "pixels", **setting)


def test_several_blocks_chunks_and_images(kernels):
    """More threads than a block has, and images and chunks of rows that begin in the middle of one."""
    for channels_last, order in itertools.product([False, True], host.ORDERS):
        torch.manual_seed(0)
        x = torch.randn(3, 8, 23, 13).half()
        for resampling in ("blur", "up", "down"):
            setting = dict(f=F4, channels_last=channels_last, order=order) | RESAMPLINGS[resampling]
            check(kernels, x, marched(x.dtype, channels_last), **setting)


@pytest.mark.parametrize("channels_last", [False, True])
def test_empty(kernels, channels_last):
    for shape in [(0, 8, 5, 6), (2, 0, 5, 6)]:
        y, _ = run(kernels, torch.randn(shape), F4, padding=2, channels_last=channels_last)
        assert y.shape == (*shape[:2], 6, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infinite_values_stay_near(kernels, dtype):
    """Values that are not finite reach a tap further than the filter at most (missing taps count as zeros)."""
    x = torch.zeros(1, 8, 20, 20, dtype=dtype)
    x[:, :, 10, 10] = torch.inf
    for channels_last in (False, True):
        y, _ = run(kernels, x, F4, padding=(2, 1, 2, 1), channels_last=channels_last)
        assert not y[:, :, 9:13, 9:13].isfinite().any()
        y[:, :, 8:14, 8:14] = 0
        assert torch.equal(y, torch.zeros_like(y))


@pytest.mark.parametrize("case", **contract.golden_cases("upfirdn2d", "filter2d", "upsample2d", "downsample2d"))
def test_golden(kernels, case, monkeypatch):
    """The golden numbers, and their gradients: the kernels stand in for the reference in the public functions."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, f, *settings):
            up_x, up_y, down_x, down_y, *padding, flip_filter, gain = settings
            channels_last = not x.is_contiguous()
            y, _ = run(kernels, x, f, (up_x, up_y), (down_x, down_y), padding, flip_filter, gain, channels_last)
            ctx.saved = (f, settings, x.shape, y.shape)
            return y

        @staticmethod
        def backward(ctx, dy):
            f, (up_x, up_y, down_x, down_y, x0, _, y0, _, flip_filter, gain), in_shape, out_shape = ctx.saved
            x1 = in_shape[3] * up_x - out_shape[3] * down_x + x0 - up_x + 1
            y1 = in_shape[2] * up_y - out_shape[2] * down_y + y0 - up_y + 1
            before = (f.shape[-1] - 1 - x0, x1, f.shape[0] - 1 - y0, y1)
            settings = (down_x, down_y, up_x, up_y, *before, not flip_filter, gain)
            return Kernel.apply(dy, f, *settings), *[None] * 11

    module = sys.modules["fastinv.ops.upfirdn2d"]  # fastinv.ops.upfirdn2d is the function
    monkeypatch.setattr(module._dispatch, "choose", lambda *_: "native")
    monkeypatch.setattr(torch.ops.fastinv, "upfirdn2d", Kernel.apply)
    contract.check_golden(getattr(ops, case["op"]), case, "native")

    stored = contract.golden_tensors()
    x, f = stored[case["inputs"]["x"]], stored[case["inputs"]["f"]] if "f" in case["inputs"] else None
    for channels_last in (False, True):  # in float32, which is marched where float64 is not
        x = x.float().contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        y = getattr(ops, case["op"])(x, f, **case["args"], impl="native")
        assert contract.relative_error(y, stored[case["output"]]) <= 1e-6


SMALL_AXIS, LONG_AXIS = (64, 64, 1, 1, 2, 4), (2**17, 2**17, 1, 1, 2, 4)


def test_large_tensors(kernels):
    """Index arithmetic beyond 2^31 elements, which need not be allocated for it."""
    # A batch beyond it: marched, with 64-bit offsets of images, and no more threads in a launch than fit.
    assert kernels.kernel_of(2**14, 512, SMALL_AXIS, SMALL_AXIS, True) == "channels"
    assert kernels.row_offset(2**20, 63, 64, 2**16) == (2**20 * 64 + 63) * 2**16
    for threads in (1, 3, 1000, 2**29 + 1, 2**30):
        assert 2**29 <= threads * kernels.images_at_once(threads) <= 2**30
    # An image beyond it: not marched.
    assert kernels.kernel_of(1, 8, LONG_AXIS, LONG_AXIS, False) == "direct"
    assert kernels.kernel_of(1, 8, LONG_AXIS, LONG_AXIS, True) == "two_passes"
    assert kernels.kernel_of(1, 8, SMALL_AXIS, SMALL_AXIS, False) == "channels"
    # Paddings that would overflow 32 bits.
    far = (64, 64, 1, 1, 2**40, 4)
    assert kernels.kernel_of(1, 8, far, SMALL_AXIS, False) == "direct"
    # Grids stay within what CUDA takes.
    assert kernels.direct_grid(2**30, 1, LONG_AXIS, LONG_AXIS) == [2**12, 2**14, 65535]
    assert kernels.direct_grid(1, 3, SMALL_AXIS, (2**30, 2**30, 1, 1, 2, 4)) == [6, 65535, 1]


@pytest.mark.parametrize("up, down, pad0, taps", [(1, 1, 2, 4), (2, 1, 3, 4), (3, 2, -4, 5), (2, 3, 2**34, 7)])
def test_sample_span_is_the_definition(kernels, up, down, pad0, taps):
    size = 11
    axis = (size, 64, up, down, pad0, taps)
    starts = range(64) if pad0 < 2**30 else range(pad0 // down - 8, pad0 // down + 8)
    for out in starts:
        reads = [(out * down + k - pad0, k) for k in range(taps)]
        wanted = [(i // up, k) for i, k in reads if i % up == 0 and 0 <= i // up < size]
        first, tap, count = kernels.sample_span(axis, out)
        assert [(first + i, tap + i * up) for i in range(count)] == wanted
