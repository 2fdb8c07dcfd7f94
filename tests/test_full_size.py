"""Checkpoints with the names and shapes of the public networks, at their full size: seconds, and memory for them."""

import pytest
from full_size_files import FULL_SIZE, measure

SECONDS = 20
SLACK = 100 << 20  # bytes beyond twice the file: code and caches of torch that a first load brings in


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ada", "rosinality", "e4e", "idinvert encoder"])
def test_loads_in_seconds_and_in_twice_its_size(name, tmp_path):
    filename, kinds, write = FULL_SIZE[name]
    path = tmp_path / filename
    try:
        write(path)
        assert path.stat().st_size > 200e6
        for kind in kinds:
            found = measure(path, kind)
            assert found["seconds"] < SECONDS, found
            assert found["tensors_bytes"] > 100e6, found
            assert found["peak_bytes"] < 2 * found["file_bytes"] + SLACK, found
    finally:
        path.unlink(missing_ok=True)
