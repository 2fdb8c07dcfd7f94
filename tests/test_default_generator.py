"""The embedded generator, its discriminator and the attribute network, as shipped. Full numbers: benchmarks/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastinv
from fastinv.checkpoints import BUNDLED
from fastinv.data import faces
from fastinv.training.sources import faces_attributes


@pytest.fixture(scope="module")
def G():
    return fastinv.load_generator("faces64")


def test_files_are_small():
    for model in BUNDLED.values():
        assert all(model.file(kind).stat().st_size <= 8e6 for kind in model.kinds)


def test_samples_have_the_attributes_of_their_latents(G):
    """Through the attribute network: eyes, mouths and glasses included. An average face would have errors near 0.85."""
    z = torch.randn(64, G.z_dim, generator=torch.Generator().manual_seed(0))
    network = fastinv.load_attribute_network()
    truth = faces_attributes(z)
    with torch.no_grad():
        predicted = network(G(z).clamp(-1, 1))
    errors = {
        name: float((predicted[name] - truth[name]).abs().mean() / std)
        for name, std in zip(faces.NAMES, network.stds, strict=True)
    }
    assert sum(errors.values()) / len(errors) < 0.3
    assert max(errors[name] for name in ("eye_open", "glasses", "smile")) < 0.6, errors


def test_inversion_of_held_out_renders(G):
    images, _ = faces.sample(2, seed=5, split="heldout")
    result = fastinv.invert(G, images, steps=60, trunk="attributes", progress=False)
    assert min(result.metrics["psnr"]) > 24
    assert result.settings["trunk"]["name"] == "attributes"


def test_discriminator_prefers_renders_to_samples(G):
    """What it was trained for. It is not a judge of other pictures, such as noise, which it has never seen."""
    D = fastinv.load_discriminator("faces64")
    images, _ = faces.sample(256, seed=3, split="heldout")
    with torch.no_grad():
        samples = G(torch.randn(256, G.z_dim, generator=torch.Generator().manual_seed(1)))
        assert D(images).mean() > D(samples).mean()


def test_the_example_of_the_readme(tmp_path):
    """In a process of its own, where nothing else has imported the submodules."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    example = readme.split("```python")[1].split("```")[0]
    assert "steps=300" in example and 'save("results")' in example
    code = example.replace("steps=300", "steps=2") + "\nprint(list(picture.shape))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.strip().endswith("[4, 3, 64, 64]"), done.stderr
    assert (tmp_path / "results").is_dir()


def test_loading_does_not_import_torchs_compiler(run_python):
    """Which takes two seconds, and which nothing needs that only inverts pictures."""
    code = "import sys, fastinv; fastinv.load_generator('faces64'); fastinv.load_encoder('faces64-psp'); "
    assert run_python(code + "print('torch._dynamo' in sys.modules)").stdout.strip() == "False"
