"""What several test files share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]  # not keywords: tests/gpu is one, too
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def mapped(monkeypatch):
    """Sizes of all blocks of memory that `fastinv.models.arena` made."""
    from fastinv.models import arena

    sizes, original = [], arena._mapped

    def counting(size):
        sizes.append(size)
        return original(size)

    monkeypatch.setattr(arena, "_mapped", counting)
    return sizes


@pytest.fixture(scope="module")
def generator_file(tmp_path_factory):
    """A file with a small generator of 16 pixels, for encoders to be trained for."""
    import torch

    from fastinv.checkpoints import save_network
    from fastinv.models.stylegan2 import Generator

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("generator") / "g.safetensors"
    save_network(Generator(16, 8, 8, channels={4: 8, 8: 8, 16: 8}, mapping_layers=2), path)
    return path


@pytest.fixture
def run_python(tmp_path):
    """run_python(code, *arguments, VARIABLE=value...) runs Python code in a fresh process, in an empty folder.

    The process sees this source tree's fastinv. Returns the CompletedProcess; stdout and stderr are text.
    """

    def run(code, *arguments, **environment):
        environment = {name: value for name, value in environment.items() if value is not None}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTINV_")}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run
