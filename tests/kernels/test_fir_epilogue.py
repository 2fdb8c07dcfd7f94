"""The CUDA kernels of synthesis_epilogue and its backward for the forms with a FIR filter, against their references."""

import re
import subprocess
import sysconfig

import pytest
import torch

from fastinv.ops import synthesis
from fastinv.ops.synthesis import PHASES, TRANSPOSED

from . import host

kernels = host.load("fir_epilogue")
TAPS = [0.3, 0.9, 0.7, 0.1]  # neither symmetric nor normalised: an order that is wrong shows
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FORMS = {"transposed": TRANSPOSED, "phases": PHASES}
SHARED = (
    "d", "noise", "next_styles", "rgb_weight", "rgb_styles", "form", "strength", "taps", "alpha", "gain", "clamp",
    "rgb_clamp",
)  # fmt: skip
# (samples, channels, height, width): vectors and single values, channels in one and in several blocks, one tile and
# several, last tiles of one column or of all 64, heights that no tile divides.
SHAPES = [
    (1, 5, 12, 20), (1, 24, 6, 10), (2, 1, 4, 6), (1, 32, 10, 66), (1, 40, 6, 12), (1, 8, 70, 132), (3, 72, 2, 2),
    (1, 16, 34, 64), (2, 33, 4, 4),
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """The references' tensors are small: two threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compute_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def operands(dtype, form, shape, parts, seed=0):
    """Arguments of `synthesis.epilogue`: 'bare', 'layer' (what StyleGAN2's layers have) or 'all' (also a picture)."""
    n, c, h, w = shape
    random = torch.Generator().manual_seed(seed + c)

    def randn(*sizes):
        return torch.randn(sizes, generator=random, dtype=torch.float64).to(compute_dtype(dtype))

    if form == TRANSPOSED:
        u = randn(n, c, h + 1, w + 1)
    else:
        u = randn(n, 2, 2, c, h // 2 + 1, w // 2 + 1)
        u[:, 1, :, :, -1] = u[:, :, 1, :, :, -1] = torch.nan  # beyond what the filter may see
        u = u.view(n, 4 * c, h // 2 + 1, w // 2 + 1)
    wide = randn(n, 3 * c + 2)  # styles and coefficients are slices of a wider tensor
    named = {name: None for name in SHARED} | {
        "u": u.to(dtype), "taps": TAPS, "form": form, "strength": 0.7, "alpha": 0.2, "gain": 1.25, "clamp": -1.0,
        "rgb_clamp": -1.0, "bias": None, "rgb_bias": None, "image": None,
    }  # fmt: skip
    if parts != "bare":
        named |= {
            "d": wide[:, :c].abs() + 0.1, "noise": randn(n, 1, h, w), "bias": randn(c), "clamp": 2.0,
            "next_styles": wide[:, c + 1 : 2 * c + 1],
        }  # fmt: skip
    if parts == "all":
        named |= {
            "rgb_weight": randn(3, c), "rgb_styles": wide[:, 2 * c + 1 : 3 * c + 1], "rgb_bias": randn(3),
            "image": randn(n, 3, h // 2, w // 2), "rgb_clamp": 1.5,
        }  # fmt: skip
    return named


def backward_operands(named, seed=3):
    """Arguments of `synthesis.epilogue_backward` for those of `epilogue`."""
    dtype = named["u"].dtype
    y, _, image, rgb = synthesis.epilogue(**named, impl="ref")
    random = torch.Generator().manual_seed(seed)
    back = {name: named[name] for name in SHARED}
    back["y"] = y
    back["dnext"] = torch.randn(y.shape, generator=random, dtype=torch.float64).to(dtype)
    back["dimage"] = torch.randn(image.shape, generator=random).to(image.dtype) if image.numel() else None
    back["rgb"] = rgb if rgb.numel() else None
    back["need_noise"] = named["noise"] is not None
    return back


def exact(named):
    return {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in named.items()}


def nhwc(x, misaligned=False):
    """The feature map as the kernels take it; misaligned: beginning one value after a multiple of 16 bytes."""
    if x is None:
        return None
    x = x.permute(0, 2, 3, 1)
    place = torch.full((x.numel() + 1,), torch.nan, dtype=x.dtype)[int(misaligned) :][: x.numel()].view(x.shape)
    return place.copy_(x)


def call(module, name, options, *arrays):
    as_array = lambda x: host.to_numpy(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
    getattr(module, name)({key: as_array(options[key]) for key in SHARED}, *map(as_array, arrays))


def forward(named, module=kernels, misaligned=False):
    """The kernel's y, next, image and rgb; None for what it does not write."""
    n, c, h, w = named["u"].shape[0], *synthesis.epilogue_size(named["u"], named["form"])
    dtype, compute = named["u"].dtype, compute_dtype(named["u"].dtype)
    y = nhwc(torch.full((n, c, h, w), torch.nan, dtype=dtype), misaligned)
    following = None if named["next_styles"] is None else torch.full_like(y, torch.nan)
    image = None if named["rgb_weight"] is None else torch.full((n, 3, h, w), torch.nan, dtype=compute)
    rgb = None if image is None or named["rgb_clamp"] < 0 else torch.full_like(image, torch.nan)
    u = nhwc(named["u"], misaligned)
    call(module, "epilogue", named, u, named["bias"], named["rgb_bias"], named["image"], y, following, image, rgb)
    return y.permute(0, 3, 1, 2), None if following is None else following.permute(0, 3, 1, 2), image, rgb


def backward(back, module=kernels, misaligned=False):
    """The kernel's du, sums and dnoise (or None)."""
    n, c, h, w = back["y"].shape
    sizes = (n, c, h + 1, w + 1) if back["form"] == TRANSPOSED else (n, 4 * c, h // 2 + 1, w // 2 + 1)
    y = nhwc(back["y"], misaligned)
    du = nhwc(torch.full(sizes, torch.nan, dtype=y.dtype), misaligned)
    compute = compute_dtype(y.dtype)
    sums = torch.full((n, synthesis.sum_tiles(back["form"], h, w), 5, c), torch.nan, dtype=compute)
    dnoise = torch.full((n, 1, h, w), torch.nan, dtype=compute) if back["need_noise"] else None
    dnext = nhwc(back["dnext"], misaligned)
    call(module, "epilogue_backward", back, dnext, back["dimage"], y, back["rgb"], du, sums, dnoise)
    return du.permute(0, 3, 1, 2), sums, dnoise


def assert_precise(found, plain, truth):
    """At most twice the error of the reference in this dtype, which computes in float32 and rounds once; in float64 at
    most 1e-12. Where the reference happens to be closer than that, half a unit in the last place is allowed in a 16-bit
    result, which is rounded once, and two units in any other."""
    for index, (actual, reference, expected) in enumerate(zip(found, plain, truth, strict=True)):
        if actual is None:
            assert reference.numel() == 0
            continue
        assert actual.shape == expected.shape and actual.isfinite().all(), index
        size = expected.norm()
        units = torch.finfo(actual.dtype).eps * size * (0.5 if actual.dtype.itemsize == 2 else 2)
        allowed = 1e-12 * size if actual.dtype == torch.float64 else 2 * (reference.double() - expected).norm()
        assert (actual.double() - expected).norm() <= max(allowed, units), index


def planes(results):
    """du, the five sums one by one, added over the tiles in float64 as `style_gradients` does, dnoise."""
    du, sums, dnoise = results
    return [du, *sums.double().sum(1).to(sums.dtype).unbind(1), dnoise]


def in_all_orders(function, *arguments, **options):
    """The result, which must be the same bits in whatever order blocks and threads take their turns."""
    results = []
    for order in host.ORDERS:
        kernels.set_order(order)
        results.append(function(*arguments, **options))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is b is None or torch.equal(a, b)
    return results[0]


def check(named, run=lambda function, arguments: function(arguments)):
    """Both directions against their references; `run` calls the kernels."""
    truth, plain = (synthesis.epilogue_ref(**arguments) for arguments in (exact(named), named))
    assert_precise(run(forward, named), plain, truth)
    back = backward_operands(named)
    truth, plain = (synthesis.epilogue_backward_ref(**arguments) for arguments in (exact(back), back))
    assert_precise(planes(run(backward, back)), planes(plain), planes(truth))


@pytest.mark.parametrize("parts", ["bare", "layer", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_parts(form, dtype, parts):
    for shape in ((2, 8, 8, 8), (1, 5, 6, 20)):
        check(operands(dtype, form, shape, parts), in_all_orders)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes(shape, dtype):
    for form, parts in ((TRANSPOSED, "layer"), (PHASES, "layer" if sum(shape) > 100 else "all")):
        check(operands(dtype, form, shape, parts), in_all_orders)


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_vectors_need_aligned_maps(dtype, form):
    """A map that begins anywhere is taken value by value."""
    check(
        operands(dtype, form, (2, 8, 6, 10), "layer"), lambda function, arguments: function(arguments, misaligned=True)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_absent_operands_and_shared_noise(dtype):
    """Each optional operand by itself, one noise map for all samples, either gradient absent."""
    everything = operands(dtype, TRANSPOSED, (2, 4, 4, 6), "all") | {"clamp": -1.0, "rgb_clamp": -1.0}
    everything["noise"] = everything["noise"][:1]
    for absent in ({}, {"d": None}, {"noise": None}, {"bias": None}, {"next_styles": None}, {"image": None}):
        named = everything | absent
        truth, plain = (synthesis.epilogue_ref(**arguments) for arguments in (exact(named), named))
        assert_precise(forward(named), plain, truth)
        for gradients in ({}, {"dnext": None}, {"dimage": None}):
            back = backward_operands(named) | gradients
            truth, plain = (synthesis.epilogue_backward_ref(**arguments) for arguments in (exact(back), back))
            assert_precise(planes(backward(back)), planes(plain), planes(truth))


@pytest.mark.parametrize("dtype, parts", [(torch.float32, "layer"), (torch.float64, "all")], ids=str)
def test_sums_of_each_tile(dtype, parts):
    """A tile's sums are those of its own pixels: what it reads beyond them for the filter is not counted twice."""
    height, width = 72, 68  # tiles of 4 rows and of 64 columns, the last 4 columns wide
    named = operands(dtype, PHASES, (1, 4, height, width), parts)
    back = backward_operands(named)
    _, sums, _ = backward(back)
    rows, columns = 4, 64
    for tile in (0, 1, 2, 17, sums.shape[1] - 2, sums.shape[1] - 1):
        first_row, first_column = tile // 2 * rows, tile % 2 * columns
        mask = torch.zeros(1, 1, height, width, dtype=torch.float64)
        mask[:, :, first_row : first_row + rows, first_column : first_column + columns] = 1
        only = exact(back)
        only |= {name: only[name] * mask for name in ("dnext", "dimage") if only[name] is not None}
        _, expected, _ = synthesis.epilogue_backward_ref(**only)
        error = (sums[:, tile].double() - expected[:, 0]).abs().amax(-1)
        assert (error <= (1e-12 if dtype == torch.float64 else 3e-6) * expected[:, 0].abs().amax(-1)).all()


def test_nothing_to_do():
    empty = operands(torch.float32, TRANSPOSED, (0, 4, 4, 4), "bare")
    assert forward(empty)[0].shape == (0, 4, 4, 4)
    assert backward(backward_operands(empty))[0].shape == (0, 4, 5, 5)


# Mistakes that the tests above must notice, beside those of test_mutations.py: (text of fir_epilogue_backward.cuh, what
# stands there instead).
MUTATIONS = {
    "none": ("", ""),
    "one row of shared memory": ("turn = row & 1;", "turn = 0;"),
    "halo counted": ("const bool owned = inside &&", "const bool owned = inside ||"),
}


def mutant(folder, name, old, new):
    """The test module compiled from a copy of the sources in which `old` is replaced; float32 alone, for speed."""
    sources = host.ROOT / "csrc"
    for part in ("common", "cuda", "host"):
        (folder / part).mkdir()
        for path in (sources / part).iterdir():
            if path.is_file():
                (folder / part / path.name).write_text(path.read_text())
    kernel, launcher = folder / "cuda" / "fir_epilogue_backward.cuh", folder / "cuda" / "fir_epilogue.cu"
    assert kernel.read_text().count(old) == 1 or not old, "the text to be replaced is not there"
    kernel.write_text(kernel.read_text().replace(old, new))
    text, count = re.subn(r"return (forward|backward)<(double|half|bfloat16)>.*;", "break;", launcher.read_text())
    assert count == 6
    launcher.write_text(text)
    pybind11 = pytest.importorskip("pybind11")
    command = ["c++", "-std=c++17", "-O0", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas",
               f"-DFASTINV_HOST_MODULE=_host_{name}", "-I", pybind11.get_include(),
               "-I", sysconfig.get_paths()["include"], "-o", str(folder / f"_host_{name}.so"),
               str(folder / "host" / "bind_fir_epilogue.cpp")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "FOLDER", folder)
        return host.load(name)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_noticed(tmp_path, mutation):
    name = "mutant_" + mutation.replace(" ", "_")  # Python keeps one module of a name
    module = mutant(tmp_path, name, *MUTATIONS[mutation])
    back = backward_operands(operands(torch.float32, TRANSPOSED, (1, 8, 8, 66), "layer"))
    truth, plain = (synthesis.epilogue_backward_ref(**arguments) for arguments in (exact(back), back))
    noticed = []
    for order in host.ORDERS:
        module.set_order(order)
        try:
            assert_precise(planes(backward(back, module)), planes(plain), planes(truth))
        except (AssertionError, RuntimeError) as error:
            noticed.append(f"{order}: {error}")
    assert bool(noticed) == (mutation != "none"), noticed
