"""The kernels of every instruction set that this machine has, not only of the best one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastinv import _ext

TESTS = Path(__file__).parent
PRODUCTS = "matrix frozen_conv".split()  # all that depends on the bfloat16 arithmetic
OPS = [*PRODUCTS, *"upfirdn2d bias_act conv2d_resample modulated_conv2d styled_conv synthesis".split()]


def run(isa, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        env=os.environ | {"FASTINV_CPU_ISA": isa, "PYTHONPATH": str(TESTS.parent)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )


def test_the_best_is_in_use():
    if "FASTINV_CPU_ISA" not in os.environ:
        assert (_ext.cpu_matrix() or _ext.cpu_isa()) == _ext.cpu_isas()[-1]


@pytest.mark.parametrize("isa", [isa for isa in _ext.cpu_isas() if isa != (_ext.cpu_matrix() or _ext.cpu_isa())])
def test_numbers_with_a_lower_instruction_set(isa):
    ops = PRODUCTS if isa in ("avx512", "avx512_bf16") and _ext.cpu_isa() == "avx512" else OPS
    files = [TESTS / f"test_{op}.py" for op in ops]
    which = "matrix or frozen or golden or precision or odd or walk or agrees"
    result = run(isa, "-k", which, *[str(file) for file in files if file.exists()])
    assert result.returncode == 0, result.stdout[-3000:]
    code = "from fastinv import _ext; print(_ext.cpu_matrix() or _ext.cpu_isa())"
    environment = os.environ | {"FASTINV_CPU_ISA": isa, "PYTHONPATH": str(TESTS.parent)}
    used = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert used.stdout.strip() == isa
