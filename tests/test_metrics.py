"""The metrics against scikit-image, scipy, closed forms and references of our own in float64.

LPIPS against the lpips package: tests/test_lpips.py. Fréchet distance against closed forms: tests/test_evaluation.py.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.stats
import torch
from skimage import metrics as skimage_metrics

import fastinv
from fastinv.errors import CheckpointError, UsageError
from fastinv.evaluation import (
    MEASURES,
    attribute_change,
    evaluate,
    frechet_distance,
    identity_similarity,
    ms_ssim,
    networks,
    sliced_wasserstein,
    swd,
)
from fastinv.evaluation import inception as inception_module
from fastinv.evaluation.inception import FIDInception
from fastinv.evaluation.measures import cut, few
from fastinv.evaluation.sliced import collapse, laplacian_pyramid, pyramid_patches
from fastinv.losses import mse, psnr, ssim
from fastinv.models.attributes import load_attribute_network

BASIC = ["mse", "psnr", "ssim", "ms-ssim"]


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with some noise, float64 in [-1, 1]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=random, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (0.5 * smooth + 0.05 * torch.randn(smooth.shape, generator=random, dtype=torch.float64)).clamp(-1, 1)


def pairs(height: int = 45, width: int = 52):
    a = pictures(3, height, width)
    return a, (a + 0.1 * pictures(3, height, width, 1)).clamp(-1, 1)


def channels_last(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


# ------------------------------------------------------------------------------------------- against public libraries


def test_mse_and_psnr_agree_with_scikit_image():
    """To 1e-12, relative: both are one sum in float64."""
    a, b = pairs()
    for row, (x, y) in enumerate(zip(a.numpy(), b.numpy())):
        expected = skimage_metrics.mean_squared_error(x, y)
        assert mse(b, a)[row].item() == pytest.approx(expected, rel=1e-12)
        expected = skimage_metrics.peak_signal_noise_ratio(x, y, data_range=2)
        assert psnr(b, a)[row].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("height, width", [(45, 52), (64, 64)])
def test_ssim_agrees_with_scikit_image(height, width):
    """To 1e-7, because our window is kept in float32. Wang's settings; pictures brought to [0, 1], as ours does."""
    a, b = pairs(height, width)
    options = dict(win_size=11, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
    for row in range(len(a)):
        x, y = ((channels_last(image[row]) + 1) / 2 for image in (a, b))
        expected = skimage_metrics.structural_similarity(x, y, channel_axis=2, **options)
        assert ssim(b, a)[row].item() == pytest.approx(expected, abs=1e-7)


def reference_ms_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Wang, Simoncelli, Bovik 2003 of two [H, W], with scipy, in float64."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    places = np.arange(11) - 5
    taps = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    sides, scales = list(x.shape), 0
    while scales < 5 and min(sides) >= 11:
        scales, sides = scales + 1, [(side + 1) // 2 for side in sides]
    product = 1.0
    for scale in range(scales):

        def mean(z):
            return scipy.ndimage.correlate(z, window)[5:-5, 5:-5]

        mx, my = mean(x), mean(y)
        vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        similarity = (2 * vxy + c2) / (vx + vy + c2)
        if scale == scales - 1:
            similarity = similarity * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
        product *= similarity.mean() ** (weights[scale] / weights[:scales].sum())
        if scale < scales - 1:
            x, y = (z.reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2).mean((1, 3)) for z in (x, y))
    return product


@pytest.mark.parametrize("side, scales", [(16, 1), (64, 3), (176, 5)])
def test_ms_ssim_agrees_with_the_formula(side, scales):
    """To 1e-7, because our window is kept in float32."""
    a, b = pairs(side, side)
    found = ms_ssim(b, a)
    for row in range(len(a)):
        ranges = [((x + 1) / 2).numpy() for x in (a[row], b[row])]
        expected = np.mean([reference_ms_ssim(x, y, 1.0) for x, y in zip(*ranges)])
        assert found[row].item() == pytest.approx(expected, abs=1e-7)
    assert evaluate(a, b, ["ms-ssim"]).row("ms-ssim").settings["scales"] == scales


@pytest.mark.parametrize("n, m", [(300, 200), (9, 200), (300, 7), (5, 6)])
def test_frechet_distance_agrees_with_the_published_formula(n, m):
    """Heusel et al. 2017 through scipy's matrix root, to 1e-6, relative: of singular covariances the root is not exact;
    where there are more pictures than features, to 1e-9.
    """
    random = np.random.default_rng(0)
    a = random.normal(size=(n, 12)) @ random.normal(size=(12, 12))
    b = random.normal(size=(m, 12)) @ random.normal(size=(12, 12)) + random.normal(size=12)
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(ca @ cb).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    found = frechet_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-9 if min(n, m) > 12 else 1e-6)


# --------------------------------------------------------------------------------------- sliced Wasserstein distance


def test_sliced_wasserstein_of_a_shift():
    """Moving all points by v makes every projection move by <u, v>, whose mean size over the sphere is known."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(200, 5, generator=random, dtype=torch.float64)
    v = torch.tensor([3.0, -1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    assert sliced_wasserstein(a, a[torch.randperm(200, generator=random)]) == pytest.approx(0, abs=1e-12)
    mean = math.gamma(2.5) / (math.sqrt(math.pi) * math.gamma(3)) * v.norm().item()
    assert sliced_wasserstein(a, a + v, directions=20_000) == pytest.approx(mean, rel=0.02)


def test_sliced_wasserstein_of_one_dimension_agrees_with_scipy():
    random = torch.Generator().manual_seed(1)
    a, b = torch.randn(300, 1, generator=random).double(), 2 * torch.rand(300, 1, generator=random).double()
    expected = scipy.stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert sliced_wasserstein(a, b, directions=3) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_sets_of_different_sizes_and_of_bad_ones():
    random = torch.Generator().manual_seed(2)
    a, b = torch.randn(4000, 3, generator=random), torch.randn(2500, 3, generator=random)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a, b) < 0.06  # of one distribution
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b)
    for bad in (torch.zeros(3), torch.zeros(3, 4), torch.zeros(0, 3)):
        with pytest.raises(UsageError, match="samples must be"):
            sliced_wasserstein(a, bad)
    with pytest.raises(UsageError, match="at least one direction is needed, not 0"):
        sliced_wasserstein(a, b, directions=0)


@pytest.mark.parametrize("height, width", [(64, 64), (33, 46), (16, 20)])
def test_laplacian_pyramid(height, width):
    x = pictures(2, height, width)
    levels = laplacian_pyramid(x)
    assert [min(level.shape[2:]) for level in levels][-1] >= 16 > min(levels[-1].shape[2:]) / 2
    torch.testing.assert_close(collapse(levels), x, rtol=0, atol=1e-12)
    # The coarse level against scipy: binomial taps with mirrored edges, every second pixel.
    taps = np.array([1, 4, 6, 4, 1]) / 16
    if len(levels) > 1:
        low = scipy.ndimage.convolve(x[0, 0].numpy(), np.outer(taps, taps), mode="mirror")[::2, ::2]
        half = collapse(levels[1:])[0, 0].numpy()
        np.testing.assert_allclose(half, low, rtol=0, atol=1e-12)
    flat = laplacian_pyramid(torch.full((1, 3, 64, 64), 0.3, dtype=torch.float64))
    assert max(level[..., 4:-4, 4:-4].abs().max() for level in flat[:-1]) < 1e-12  # no detail


def test_patches_are_parts_of_the_pyramid():
    x = torch.arange(2 * 3 * 20 * 24, dtype=torch.float64).view(2, 3, 20, 24)
    patches = pyramid_patches(x)
    assert {side: list(part.shape) for side, part in patches.items()} == {20: [256, 3, 7, 7]}
    for number, patch in enumerate(patches[20]):
        picture = number // 128
        row, column = divmod(int(patch[0, 0, 0]) - picture * 3 * 480, 24)
        assert torch.equal(patch, x[picture, :, row : row + 7, column : column + 7])
    with pytest.raises(UsageError, match="at least 16 pixels a side"):
        pyramid_patches(torch.zeros(1, 3, 15, 15))


def test_swd_of_pictures():
    a = pictures(6, 64, 64).float()
    assert set(swd(a, a).values()) == {0.0}
    assert list(swd(a, a)) == [64, 32, 16]
    # Colours are normalised: brightness and contrast of the whole set do not count, detail does.
    assert max(swd(a, 0.5 * a + 0.2).values()) < 1e-2
    noisy = a + 0.02 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    found = swd(a, noisy)
    assert found[64] > 5 * found[16] > 0
    with pytest.raises(UsageError, match="bring them to one size"):
        swd(a, a[..., ::2, ::2])


# ------------------------------------------------------------------------------------------------- networks from files


def test_identity_and_attribute_distances_follow_their_formulas():
    a, b = (torch.randn(4, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = (a.double() * b).sum(1) / (a.double().norm(dim=1) * b.double().norm(dim=1))
    torch.testing.assert_close(identity_similarity(a, b), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(identity_similarity(a, 3 * a), torch.ones(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(attribute_change(a, b), (a.double() - b).abs().sum(1) / 7, rtol=1e-12, atol=0)
    for function in (identity_similarity, attribute_change):
        with pytest.raises(UsageError, match="of the same shape"):
            function(a, b[:2])


@pytest.fixture(scope="module")
def inception() -> FIDInception:
    network, random = FIDInception(), torch.Generator().manual_seed(0)
    for value in network.parameters():
        if value.ndim == 4:  # so that the maps keep their size from layer to layer
            value.copy_(torch.randn(value.shape, generator=random) * (2 / value[0].numel()) ** 0.5)
    return network


def test_inception_is_the_published_architecture(inception):
    """Without its last layer (2048 x 1008 + 1008), Inception v3 has 21,785,568 parameters in 94 convolutions."""
    assert sum(value.numel() for value in inception.parameters()) == 21_785_568
    assert sum(isinstance(module, torch.nn.Conv2d) for module in inception.modules()) == 94
    state = inception.state_dict()
    assert state["Mixed_5b.branch5x5_2.conv.weight"].shape == (64, 48, 5, 5)
    assert state["Mixed_6c.branch7x7dbl_4.conv.weight"].shape == (160, 160, 7, 1)
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert inception(torch.zeros(1, 3, 64, 40)).shape == (1, 2048)
    with pytest.raises(UsageError, match=r"takes pictures \[N, 3, H, W\]"):
        inception(torch.zeros(1, 1, 64, 64))


def test_average_pools_of_inception_leave_padding_out(inception):
    block = inception.Mixed_5b
    x = torch.ones(1, 192, 5, 5)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(block(x)[:, -32:], block.branch_pool(pooled))
    assert torch.equal(pooled, x)  # so the edge is as bright as the middle


class Textbook(torch.nn.Module):
    """ArcFace's IR-SE network from its tensors, in plain functions."""

    def __init__(self, state, strides):
        super().__init__()
        self.state, self.strides = {name: value.double() for name, value in state.items()}, strides

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f"{name}.{part}"].view(1, -1, *[1] * (x.ndim - 2))
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(self, x, name, stride=1, padding=1):
        return torch.nn.functional.conv2d(x, self.state[name], stride=stride, padding=padding)

    def prelu(self, x, name):
        return torch.where(x > 0, x, x * self.state[name].view(1, -1, 1, 1))

    def forward(self, x):
        x = self.prelu(self.norm(self.conv(x, "input_layer.0.weight"), "input_layer.1"), "input_layer.2.weight")
        for unit, stride in enumerate(self.strides):
            name = f"body.{unit}"
            y = self.conv(self.norm(x, f"{name}.res_layer.0"), f"{name}.res_layer.1.weight")
            y = self.conv(self.prelu(y, f"{name}.res_layer.2.weight"), f"{name}.res_layer.3.weight", stride)
            y = self.norm(y, f"{name}.res_layer.4")
            scale = y.mean((2, 3), keepdim=True)
            scale = self.conv(scale, f"{name}.res_layer.5.fc1.weight", padding=0).relu()
            y = y * self.conv(scale, f"{name}.res_layer.5.fc2.weight", padding=0).sigmoid()
            if f"{name}.shortcut_layer.0.weight" in self.state:
                x = self.conv(x, f"{name}.shortcut_layer.0.weight", stride, padding=0)
                x = self.norm(x, f"{name}.shortcut_layer.1")
            else:
                x = x[:, :, ::stride, ::stride]
            x = x + y
        x = self.norm(x, "output_layer.0").flatten(1)
        x = x @ self.state["output_layer.3.weight"].T + self.state["output_layer.3.bias"]
        return self.norm(x, "output_layer.4")


def randomised(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its state with statistics that do something."""
    random = torch.Generator().manual_seed(0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=random) + 0.5)
        elif name.endswith(("running_mean", "bias")):
            value.copy_(0.1 * torch.randn(value.shape, generator=random))
    return state


def test_arcface_agrees_with_the_textbook():
    torch.manual_seed(0)
    network = networks.ArcFace(units=(2, 1, 1), channels=(4, 6, 16), width=5)
    state = randomised(network)
    networks.fit(network, state, "file")
    x = pictures(2, 112, 112)
    expected = Textbook(state, [2, 1, 2, 2])(x)
    torch.testing.assert_close(network.double()(x), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(UsageError, match="takes pictures"):
        network(torch.zeros(1, 3, 64, 64).double())


def test_full_arcface_has_the_tensors_of_the_published_file():
    """24 units; embeddings of 512 from 512 maps of 7 x 7, see systems.md appendix B for the body."""
    with torch.device("meta"):
        network = networks.ArcFace()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes["output_layer.3.weight"] == (512, 512 * 7 * 7)
    assert shapes["body.23.res_layer.5.fc2.weight"] == (512, 32, 1, 1)
    shortcuts = [name for name in shapes if name.endswith("shortcut_layer.0.weight")]
    assert shortcuts == [f"body.{unit}.shortcut_layer.0.weight" for unit in (3, 7, 21)]


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """A cache folder with nothing in it."""
    for name in ("FASTINV_INCEPTION", "FASTINV_ARCFACE", "FASTINV_VGG16"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FASTINV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def test_rows_of_missing_networks_say_what_to_put_where(no_files):
    a, b = pairs()
    found = evaluate(a, b, ["fid", "identity", "lpips", "psnr"])
    assert [row.value is None for row in found.rows] == [True, True, True, False]
    assert "pt_inception-2015-12-05-6726825d.pth" in found.row("fid").missing
    assert str(no_files / "cache") in found.row("fid").missing and "FASTINV_INCEPTION" in found.row("fid").missing
    assert "model_ir_se50.pth" in found.row("identity").missing and "FASTINV_ARCFACE" in found.row("identity").missing
    assert "VGG-16" in found.row("lpips").missing or "lpips package" in found.row("lpips").missing
    assert "not measured:" in found.table()


def test_identity_from_a_file(no_files, monkeypatch):
    small = {"units": (1, 1), "channels": (4, 8), "width": 6}
    torch.manual_seed(0)
    state = randomised(networks.ArcFace(**small))
    file = no_files / "model.pth"
    torch.save(state, file)
    original = networks.ArcFace
    monkeypatch.setattr(networks, "ArcFace", lambda: original(**small))
    monkeypatch.setenv("FASTINV_ARCFACE", str(file))
    a, b = (x.float() for x in pairs(256, 256))
    row = evaluate(a, b, ["identity"]).row("identity")
    assert row.settings["file"] == str(file) and len(row.settings["sha256"]) == 64 and row.settings["crop"] == "face"
    face = [torch.nn.functional.adaptive_avg_pool2d(x[:, :, 35:223, 32:220], 112) for x in (a, b)]
    expected = torch.cosine_similarity(*(Textbook(state, [2, 2])(x.double()) for x in face))
    assert row.each == pytest.approx(expected.tolist(), abs=1e-5)
    del state["output_layer.3.weight"]
    torch.save(state, file)
    assert "output_layer.3.weight is missing" in evaluate(a, b, ["identity"]).row("identity").missing
    monkeypatch.setenv("FASTINV_ARCFACE", str(no_files / "nothing"))
    assert "which is not a file" in evaluate(a, b, ["identity"]).row("identity").missing


def test_fid_from_a_file_is_held_to_the_hash_in_its_name(no_files, inception, monkeypatch):
    file = no_files / "cache" / "pt_inception-2015-12-05-6726825d.pth"
    file.parent.mkdir()
    torch.save({"nothing": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="is damaged: its sha256 starts with"):
        networks.load_inception()
    other = no_files / "inception.pth"
    torch.save(inception.state_dict(), other)
    monkeypatch.setenv("FASTINV_INCEPTION", str(other))
    monkeypatch.setattr(inception_module, "RESOLUTION", 107)  # the architecture takes it, and it is quick
    a, b = (x[:2] for x in pairs(32, 32))
    row = evaluate(a, b, ["fid"]).row("fid")
    with torch.no_grad():
        expected = frechet_distance(inception(a.float()), inception(b.float()))
    assert row.value == pytest.approx(expected, rel=1e-3) and row.std is None and row.n == 2
    assert expected > 1e-3 and row.settings["note"] == "biased upwards: 2 pictures, 2048 features"


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_evaluate_gives_means_deviations_and_each_picture():
    a, b = pairs()
    found = fastinv.evaluate(a, b, BASIC, batch=2, names=["x", "y", "z"])
    for name, function in {"mse": mse, "psnr": psnr, "ssim": ssim, "ms-ssim": ms_ssim}.items():
        row, values = found.row(name), function(b, a)
        assert row.each == pytest.approx(values.tolist(), rel=1e-12) and row.n == 3
        assert row.value == pytest.approx(values.mean().item()) and row.std == pytest.approx(values.std().item())
        assert row.settings["resolution"] == "52x45" and row.settings["range"] in ("[-1, 1]", "[0, 1]")
    assert found.settings["pairs"] == 3
    with pytest.raises(UsageError, match="no row 'swd'"):
        found.row("swd")


def test_the_same_pictures_are_perfect():
    a = pictures(5, 64, 64).float()
    found = evaluate(a, a)
    perfect = {
        "mse": 0, "psnr": 100, "ssim": 1, "ms-ssim": 1, "features": 0, "identity-attributes": 1, "attributes": 0,
        "frechet-attributes": 0, "swd": 0, "swd.64": 0, "swd.32": 0, "swd.16": 0,
    }  # fmt: skip
    for name, value in perfect.items():
        assert found.row(name).value == pytest.approx(value, abs=1e-4), name
    assert {row.metric.split(".")[0] for row in found.rows} == set(MEASURES)
    assert "give" not in (found.row("edits").missing or "") or "--generator" in found.row("edits").missing
    assert "--encoder" in found.row("lec").missing


def test_attribute_rows_agree_with_the_network():
    a, b = (x.float() for x in pairs(64, 64))
    network = load_attribute_network()
    found = evaluate(a, b, ["identity-attributes", "attributes", "frechet-attributes"])
    expected = torch.cosine_similarity(network.embedding(a), network.embedding(b))
    assert found.row("identity-attributes").each == pytest.approx(expected.tolist(), abs=1e-5)
    expected = (network.standardised(a) - network.standardised(b)).abs().mean(1)
    assert found.row("attributes").each == pytest.approx(expected.tolist(), rel=1e-4)
    expected = frechet_distance(network.embedding(a), network.embedding(b))
    assert found.row("frechet-attributes").value == pytest.approx(expected, rel=1e-4)
    assert "procedural faces only; biased upwards: 3 pictures" in found.row("frechet-attributes").settings["note"]


def test_a_crop_measures_that_part():
    a, b = pairs(256, 256)
    face = evaluate(a, b, ["mse"], crop="face")
    expected = mse(b[:, :, 35:223, 32:220], a[:, :, 35:223, 32:220])
    assert face.row("mse").each == pytest.approx(expected.tolist())
    assert face.row("mse").settings["crop"] == "face" and face.row("mse").settings["resolution"] == "188x188"
    half = evaluate(a, b, ["mse"], crop=(0, 0, 0.5, 1))
    assert half.row("mse").each == pytest.approx(mse(b[..., :128], a[..., :128]).tolist())
    assert half.settings["crop"] == "0 0 0.5 1"
    assert cut(a, (0, 0, 0.001, 0.001)).shape == (3, 3, 1, 1)
    for bad in ("middle", (0, 0, 1), (0.5, 0, 0.5, 1), (0, 0, 1.5, 1), ("0", "0", "1", "1")):
        with pytest.raises(UsageError, match="crop must be none, face"):
            evaluate(a, b, ["mse"], crop=bad)


def test_unpaired_pictures_count_in_distances_of_sets_only():
    a, b = pictures(5, 32, 32).float(), pictures(4, 32, 32, 1).float()
    found = evaluate(a, b, ["mse", "swd"], pairs=3, batch=2)
    assert found.row("mse").n == 3 and found.row("swd").n == 5 and found.row("swd").settings["n of b"] == 4
    whole = evaluate(a, b, ["mse", "swd"], pairs=0, batch=64)
    assert whole.row("mse").value is None and "pairs" in whole.row("mse").missing
    assert whole.row("swd").value == evaluate(a, b, ["swd"], pairs=0, batch=64).row("swd").value  # of the seed alone
    assert whole.row("swd").value != evaluate(a, b, ["swd"], pairs=0, batch=64, seed=1).row("swd").value
    assert whole.row("swd").value == evaluate(a, b, ["swd"], pairs=0, batch=1).row("swd").value
    single = evaluate(a[:1], b[:1], ["swd", "psnr"])
    assert "two at least" in single.row("swd").missing and single.row("psnr").std is None


def test_small_pictures_say_which_metrics_they_are_too_small_for():
    a, b = pairs(9, 30)
    found = evaluate(a, b, ["mse", "ssim", "ms-ssim", "swd", "lpips"])
    assert found.row("mse").value > 0
    for name, least in {"ssim": 11, "ms-ssim": 11, "swd": 16, "lpips": 16}.items():
        assert f"at least {least} pixels a side, not 9" in found.row(name).missing


def test_bad_arguments_are_refused():
    a, b = pairs()
    for arguments, says in [
        ((a, b[:2]), "3 and 2 pictures are no pairs"),
        ((a[:0], b[:0]), "nothing to evaluate"),
        ((a, b, ["psrn"]), "no metric is called 'psrn'"),
        ((a, b, []), "no metric is called ''"),
        ((a, b[..., 1:], ["mse"]), "must have one size"),
        ((127 * a, b, ["mse"]), "a must lie in"),
        ((a * math.nan, b, ["mse"]), "not finite"),
        ((a[:, :1], b, ["mse"]), r"a must be pictures \[N, 3, H, W\]"),
        ((a, b.int(), ["mse"]), "must be floating point"),
    ]:
        with pytest.raises(UsageError, match=says):
            evaluate(*arguments)
    for options, says in [
        ({"pairs": 4}, "pairs must be 0 to 3"),
        ({"batch": 0}, "batch must be"),
        ({"codes": [1]}, "1 codes for 3 pairs"),
    ]:
        with pytest.raises(UsageError, match=says):
            evaluate(a, b, ["mse"], **options)


def test_fewer_pictures_than_features_are_noted():
    assert few(torch.zeros(3, 4), torch.zeros(9, 4)) == "biased upwards: 3 pictures, 4 features"
    assert few(torch.zeros(5, 4), torch.zeros(9, 4)) == ""
