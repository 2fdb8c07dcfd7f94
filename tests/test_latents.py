"""Latent spaces: statistics, truncation, conversion, files."""

import pytest
import torch
from safetensors.torch import save_file

from fastinv import latents
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import save_tensors
from fastinv.models.stylegan2 import Generator


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    return Generator(8, z_dim=4, w_dim=6, channels={4: 4, 8: 4}, mapping_layers=2).eval()


class AffineGenerator:
    """w = A z + b: mean b and covariance A A^T are known."""

    c_dim, z_dim, num_ws = 0, 2, 3
    w_avg = torch.zeros(2)
    A, b = torch.tensor([[2.0, 0.0], [1.0, 0.5]]), torch.tensor([1.0, -3.0])

    def mapping(self, z, c=None):
        return (z @ self.A.T + self.b).unsqueeze(1).expand(-1, self.num_ws, -1)


def test_statistics_match_a_known_distribution():
    statistics = latents.w_statistics(AffineGenerator(), samples=100_000)
    variance = AffineGenerator.A.square().sum(1)
    torch.testing.assert_close(statistics.mean, AffineGenerator.b, atol=0.02, rtol=0)
    torch.testing.assert_close(statistics.std, variance.sqrt(), atol=0, rtol=0.01)
    assert statistics.radius == pytest.approx(variance.sum().sqrt().item(), rel=0.01)


def test_statistics_depend_on_the_seed_alone(G):
    first = latents.w_statistics(G, samples=300, seed=1)
    torch.manual_seed(5)
    second = latents.w_statistics(G, samples=300, seed=1)
    assert torch.equal(first.mean, second.mean) and torch.equal(first.std, second.std)
    assert not torch.equal(first.mean, latents.w_statistics(G, samples=300, seed=2).mean)


def test_statistics_are_the_same_in_any_batch_size(G):
    whole, parts = (latents.w_statistics(G, samples=300, batch=batch) for batch in (300, 77))
    torch.testing.assert_close(whole.mean, parts.mean)


def test_statistics_of_a_conditional_generator():
    torch.manual_seed(0)
    G = Generator(8, z_dim=4, w_dim=6, c_dim=3, channels={4: 4, 8: 4}, mapping_layers=2)
    assert latents.w_statistics(G, samples=50).std.min() > 0
    more, fewer = latents.mapped_samples(G, 48), latents.mapped_samples(G, 40)
    assert torch.equal(more[:40], fewer)  # a table of scores may leave out the last ones


def test_too_few_samples(G):
    with pytest.raises(UsageError, match="at least 2 samples, not 1"):
        latents.w_statistics(G, samples=1)


def test_mean_latent_is_the_tracked_one_or_measured():
    G = AffineGenerator()
    torch.testing.assert_close(latents.mean_latent(G), G.b, atol=0.1, rtol=0)
    G.w_avg = torch.tensor([7.0, 8.0])
    assert torch.equal(latents.mean_latent(G), G.w_avg)


def test_truncation():
    w, mean = torch.randn(2, 3, 4), torch.randn(4)
    torch.testing.assert_close(latents.truncate(w, mean, 1.0), w)
    torch.testing.assert_close(latents.truncate(w, mean, 0.0), mean.expand(2, 3, 4))
    half = latents.truncate(w, mean, 0.5, cutoff=2)
    torch.testing.assert_close(half[:, :2], (w[:, :2] + mean) / 2)
    assert torch.equal(half[:, 2:], w[:, 2:])
    with pytest.raises(UsageError, match="cutoff"):
        latents.truncate(w[:, 0], mean, 0.5, cutoff=2)


def test_truncation_agrees_with_the_mapping_network(G):
    G.mapping.w_avg.copy_(torch.randn(6))
    z = torch.randn(3, 4)
    expected = G.mapping(z, truncation_psi=0.7, truncation_cutoff=2)
    torch.testing.assert_close(latents.truncate(G.mapping(z), G.w_avg, 0.7, 2), expected)


def test_expand():
    w = torch.randn(2, 6)
    for given in (w, w.unsqueeze(1), w.unsqueeze(1).repeat(1, 4, 1)):
        assert torch.equal(latents.expand(given, 4), w.unsqueeze(1).repeat(1, 4, 1))
    with pytest.raises(UsageError, match=r"\[N, 4, w_dim\], not \[2, 3, 6\]"):
        latents.expand(torch.randn(2, 3, 6), 4)


def test_conversion_to_w_plus(G):
    z = torch.randn(2, 4)
    w_plus = G.mapping(z)
    assert torch.equal(latents.to_w_plus(G, z, "z"), w_plus)
    assert torch.equal(latents.to_w_plus(G, w_plus[:, 0], "w"), w_plus)
    assert torch.equal(latents.to_w_plus(G, w_plus, "w+"), w_plus)
    with pytest.raises(UsageError, match=r"w\+ code must have shape \[N, 4, 6\], not \[2, 6\]"):
        latents.to_w_plus(G, w_plus[:, 0], "w+")
    with pytest.raises(UsageError, match="unknown latent space 's'; known are z, w, w\\+"):
        latents.to_w_plus(G, z, "s")


def test_latent_file_round_trip(tmp_path):
    w_plus = torch.randn(2, 4, 6)[:, ::2]  # not contiguous
    latents.save_latent(tmp_path / "a.safetensors", w_plus, {"space": "w+"})
    assert torch.equal(latents.load_latent(tmp_path / "a.safetensors"), w_plus)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_bad_latent_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        latents.load_latent(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="cannot read .*broken"):
        latents.load_latent(tmp_path / "broken.safetensors")
    save_file({"w_plus": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a latent code: it was not written by fastinv"):
        latents.load_latent(tmp_path / "other.safetensors")
    save_tensors(tmp_path / "network.safetensors", {"w_plus": torch.zeros(1, 4, 6)}, "generator", {})
    with pytest.raises(CheckpointError, match="holds a generator, not a latent code"):
        latents.load_latent(tmp_path / "network.safetensors")
    for tensors in ({"w": torch.zeros(1, 4, 6)}, {"w_plus": torch.zeros(6)}):
        save_tensors(tmp_path / "odd.safetensors", tensors, latents.KIND, {})
        with pytest.raises(CheckpointError, match="holds no w_plus of shape"):
            latents.load_latent(tmp_path / "odd.safetensors")
