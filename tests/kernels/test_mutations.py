"""Proof that the tests of kernels can fail: kernels with one mistake each, and the check that must notice it."""

import os
import re
import subprocess
import sys

import pytest

from . import host
from .selftest_checks import check_double, check_mma, check_neighbours, check_sum

selftest = host.load("selftest")

WRONG = "AssertionError"  # the kernel runs, but its result is wrong in at least one order


@pytest.mark.parametrize(
    "check, mutation, expected",
    [
        (check_sum, "sum_removed_barrier", WRONG),
        (check_sum, "sum_divergent_barrier", r"divergent barrier in block \(2, 0, 0\) of 64 threads: .*42 ended"),
        (check_sum, "sum_divergent_shuffle", r"divergent barrier in block \(2, 0, 0\) .* 10 at shuffle_down"),
        (check_sum, "sum_wrong_lane", WRONG),
        (check_double, "double_out_of_bounds_read", r"load: out of bounds: .* byte 800 of x, which has 800"),
        (check_double, "double_out_of_bounds_write", r"store: out of bounds: .* byte 800 of y, which has 800"),
        (check_double, "double_misaligned_access", r"load: .* not aligned to 16 bytes, byte 4 of x.*selftest.cuh:\d+"),
        (check_double, "double_write_race", r"store: write race: thread \d+ of block 0 has written .* byte \d+ of y"),
        (check_double, "double_plain_write_race", WRONG),
        (check_double, "double_read_of_written", r"load: reads byte 0 of y, which this launch has written"),
        (check_neighbours, "neighbours_removed_barrier", WRONG),
        (check_neighbours, "neighbours_missing_wait", WRONG),
        (check_neighbours, "neighbours_late_barrier", WRONG),
        (check_neighbours, "neighbours_out_of_bounds_shared", r"copy_async16: 16 bytes at .* not in the shared memory"),
        (check_mma, "mma_removed_barrier", WRONG),
        (check_mma, "mma_wrong_lane", WRONG),
        (check_mma, "mma_misaligned_access", r"load_matrix_x4: .* not aligned to 16 bytes"),
    ],
)
def test_mutation_is_noticed(check, mutation, expected):
    unbroken = getattr(selftest, mutation.split("_")[0])
    notices = []
    for order in host.ORDERS:
        selftest.set_order(order)
        try:
            check(getattr(selftest, mutation))
        except (AssertionError, RuntimeError) as error:
            notices.append(f"{type(error).__name__}: {error}")
        check(unbroken)  # a launch that failed leaves nothing behind
    assert notices, f"no order noticed {mutation}"
    assert any(re.search(expected, notice) for notice in notices), notices


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted({path.stem[5:] for path in host.SOURCES.glob("bind_*.cpp")} - {"selftest"}))
def test_every_operation_is_needed(op):
    """Each barrier, shuffle and wait of the real kernels, left out, makes a test of the op fail."""
    result = subprocess.run(
        [sys.executable, "-m", "kernels.omissions", op],
        env=os.environ | {"PYTHONPATH": f"{host.ROOT}:{host.ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},  # it forks
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(not host.SANITIZED, reason="needs the sanitizers' build; .ci/run runs it")
@pytest.mark.parametrize(
    "mutation, expected",
    [
        ("double_out_of_bounds_plain_read", "AddressSanitizer: heap-buffer-overflow"),
        ("double_misaligned_plain_read", "misaligned address"),
    ],
)
def test_sanitizers_notice(mutation, expected, run_python):
    """A plain read p[i] passes by the simulator's checks; the sanitizers end the process, and name the line."""
    code = """
import importlib.util, sys, numpy
spec = importlib.util.spec_from_file_location("_host_selftest", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x = numpy.ones(200, numpy.float32)
getattr(module, sys.argv[2])(x, numpy.empty_like(x))
print("survived")
"""
    unbroken = run_python(code, selftest.__file__, "double")
    assert "survived" in unbroken.stdout, unbroken.stderr
    broken = run_python(code, selftest.__file__, mutation)
    assert broken.returncode != 0 and "survived" not in broken.stdout
    assert expected in broken.stderr and "selftest.cuh" in broken.stderr
