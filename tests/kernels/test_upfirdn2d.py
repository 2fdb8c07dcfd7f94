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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the reference's threads would wait longer for each other than they have to compute
    yield host.load("upfirdn2d")
    torch.set_num_threads(threads)


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
    channels = channels or (8 if channels_last else 2)
    return torch.randn(2 if channels_last else 1, channels, *size).to(dtype)


def kernel_for(dtype, f, channels_last):
    """With factors 1 and 2, and channels that fill vectors."""
    if dtype == torch.float64 or max(f.shape) > 12:
        return "two_passes" if f.ndim == 1 else "direct"
    return "pixels" if max(f.shape) > 4 else "channels" if channels_last else "planes"


RESAMPLINGS = {
    "blur": dict(padding=(2, 1, 1, 2)),
    "up": dict(up=2, padding=(2, 1, 2, 1), gain=4),
    "down": dict(down=2, padding=1),
    "up, odd padding": dict(up=2, padding=(1, 2, 3, 0)),
    "crop": dict(padding=(-2, 3, 3, -3)),
    "up and crop": dict(up=2, padding=(-3, 2, 2, -3)),
    "down and crop": dict(down=2, padding=(-1, 3, 4, -2)),
    "far": dict(padding=(17, -1, 11, 0), flip_filter=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("f", [F4, ROWS[6], full(5, 5)], ids=["4x4", "6", "5x5"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_orders(kernels, channels_last, f, dtype):
    """Threads meet where they stage the filter only, and blocks nowhere: one resampling to a filter will do."""
    x = picture(dtype, channels_last)
    setting = RESAMPLINGS["down" if f is F4 else "blur"] | dict(f=f, channels_last=channels_last)
    results = [check(kernels, x, kernel_for(dtype, f, channels_last), order=o, **setting) for o in host.ORDERS]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resampling", ["blur", "up", "down"])
def test_every_march(kernels, resampling, channels_last, dtype):
    """Each compiled kernel, with filters that are outer products and with one that is not."""
    x = picture(dtype, channels_last)
    for f in (F4, ROWS[4], full(4, 4), ROWS[12], full(12, 12)):
        setting = dict(f=f, channels_last=channels_last) | RESAMPLINGS[resampling]
        check(kernels, x, kernel_for(dtype, f, channels_last), **setting | dict(padding=f.shape[0] // 2))


@pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS.keys())
@pytest.mark.parametrize("f", [F4, F4[:3, 1:], full(4, 4), full(3, 2), ROWS[4], ROWS[3], F4 - F4.mean()])
def test_four_taps(kernels, f, resampling):
    for channels_last, dtype in itertools.product((False, True), (torch.float32, torch.float16)):
        x = picture(dtype, channels_last)
        setting = dict(f=f, channels_last=channels_last) | resampling
        check(kernels, x, kernel_for(dtype, f, channels_last), **setting)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resampling", ["blur", "up", "down"])
def test_an_outer_product_is_found(kernels, resampling, channels_last):
    """The same bits as from the 1-D filter, which other orders of summation would not give."""
    x = picture(torch.float32, channels_last)
    for taps in ([1, 3, 3, 1], [1, 7, 21, 35, 35, 21, 7, 1]):
        f, row = ops.setup_filter(taps, separable=False), ops.setup_filter(taps, separable=True)
        setting = RESAMPLINGS[resampling] | dict(channels_last=channels_last, padding=4)
        assert torch.equal(run(kernels, x, f, **setting)[0], run(kernels, x, row, **setting)[0])


@pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS.keys())
@pytest.mark.parametrize("taps", [5, 6])
def test_five_and_six_taps(kernels, taps, resampling):
    """The public kernels drop taps of 5- and 6-tap filters in channels_last."""
    x = picture(torch.float32, True)
    for f in (ROWS[taps], torch.outer(ROWS[taps], ROWS[taps].flip(0)), full(taps, taps)):
        check(kernels, x, "pixels", f=f, channels_last=True, **resampling)
    check(kernels, picture(torch.float16, False), "pixels", f=ROWS[taps], **resampling)


@pytest.mark.parametrize("resampling", RESAMPLINGS.values(), ids=RESAMPLINGS.keys())
def test_seven_to_twelve_taps(kernels, resampling):
    filters = [ROWS[7], ROWS[8], full(3, 8), ROWS[9], full(7, 4), ROWS[12], full(12, 9)]
    for i, f in enumerate(filters):
        channels_last, dtype = i % 2 == 0, DTYPES[i % 3]
        x = picture(dtype, channels_last, size=(13, 12))
        check(kernels, x, "pixels", f=f, channels_last=channels_last, **resampling)


EVERYTHING_ELSE = [
    dict(f=ROWS[13], padding=6),
    dict(f=ROWS[32], up=2, padding=(16, 15, 17, 14)),
    dict(f=ROWS[40], down=2, padding=20, flip_filter=True),
    dict(f=ROWS[4], up=(3, 2), down=(2, 3), padding=(5, 4, 6, 3)),
    dict(f=ROWS[4], up=2, down=2, padding=3),
    dict(f=ROWS[1], up=2, padding=(1, 0, 0, 1), gain=9.0),
    dict(f=full(13, 5), padding=(3, 4, 5, 8)),
    dict(f=full(32, 32), up=2, padding=(20, 11, 9, 30), gain=-3.0),
    dict(f=full(5, 3), up=(4, 1), down=(1, 3), padding=(-1, 6, 7, -2)),
    dict(f=F4, up=(2, 1), padding=(2, 1, 2, 1)),
    dict(f=None, up=2, padding=(1, 0, 0, 1)),
    dict(f=None, padding=(-3, 4, 5, -2), gain=0.5),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("i", range(len(EVERYTHING_ELSE)))
def test_everything_else(kernels, i, dtype):
    setting = EVERYTHING_ELSE[i]
    channels_last = (i + DTYPES.index(dtype)) % 2 == 0
    x = picture(dtype, channels_last, channels=3, size=(5, 9))
    one_dimensional = setting["f"] is not None and setting["f"].ndim == 1
    expected = "two_passes" if one_dimensional else "direct"
    check(kernels, x, expected, channels_last=channels_last, order="random", **setting)


def test_a_filter_too_large_for_shared_memory(kernels):
    check(kernels, picture(torch.float16, True, 2, (3, 4)), "direct", f=full(70, 60), padding=34, channels_last=True)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 12])
@pytest.mark.parametrize("resampling", ["blur", "up", "down", "crop"])
def test_few_channels(kernels, resampling, channels):
    """channels_last pictures whose pixels fill no vector; 4 and 12 do in float32."""
    for dtype, f in ((torch.float32, F4), (torch.float16, full(4, 3)), (torch.bfloat16, ROWS[6])):
        vectors = channels % 4 == 0 and dtype == torch.float32
        expected = "pixels" if f.ndim == 1 else "planes" if channels == 1 else "channels" if vectors else "pixels"
        x = picture(dtype, True, channels)
        check(kernels, x, expected, f=f, channels_last=True, **RESAMPLINGS[resampling])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 31), (33, 7), (6, 64)])
@pytest.mark.parametrize("up, down", [(1, 1), (1, 2), (2, 1)])
def test_odd_sizes(kernels, up, down, size):
    cases = [(torch.float32, False, F4), (torch.bfloat16, True, F4), (torch.bfloat16, False, full(4, 4))]
    for dtype, channels_last, f in [*cases, (torch.float32, True, ROWS[12])]:
        pad = f.shape[0] // 2
        x = picture(dtype, channels_last, None if channels_last else 1, size)
        setting = dict(f=f, up=up, down=down, padding=(pad, pad, pad - up + 1, pad + 1), channels_last=channels_last)
        check(kernels, x, kernel_for(dtype, f, channels_last), **setting)


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


@pytest.mark.parametrize("order", host.ORDERS)
def test_several_blocks_chunks_and_images(kernels, order):
    """More threads than a block has, and images and chunks of rows that begin in the middle of one."""
    torch.manual_seed(0)
    x = torch.randn(3, 8, 23, 13).half()
    for channels_last, resampling in ((False, "blur"), (False, "down"), (True, "up"), (True, "down")):
        setting = dict(f=F4, channels_last=channels_last, order=order) | RESAMPLINGS[resampling]
        check(kernels, x, kernel_for(x.dtype, F4, channels_last), **setting)
    check(kernels, x[:, :4], "pixels", f=ROWS[8], padding=4, channels_last=True, order=order)


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
