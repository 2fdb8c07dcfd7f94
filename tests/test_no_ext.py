"""Without the native library everything works on the reference path, and says why."""

import json

import pytest

# One call of each op, forward and backward; prints a checksum of each result.
USE_EVERY_OP = """
import json, sys, torch
from fastinv import ops, _ext
torch.manual_seed(0)
f = ops.setup_filter([1, 3, 3, 1])
x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
w = torch.randn(4, 4, 3, 3, dtype=torch.float64)
s = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
b = torch.randn(4, dtype=torch.float64)
results = {
    "upfirdn2d": ops.upfirdn2d(x, f, up=2, padding=1),
    "filter2d": ops.filter2d(x, f),
    "upsample2d": ops.upsample2d(x, f),
    "downsample2d": ops.downsample2d(x, f),
    "bias_act": ops.bias_act(x, b, act="lrelu", clamp=1.0),
    "conv2d_resample": ops.conv2d_resample(x, w, f, up=2, padding=1),
    "modulated_conv2d": ops.modulated_conv2d(x, w, s, up=2, padding=1, resample_filter=f),
    "styled_conv": ops.styled_conv(x, w, s, bias=b, up=2, resample_filter=f),
}
sums = {}
for name, y in results.items():
    (gradient,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    sums[name] = [y.square().sum().item(), gradient.square().sum().item()]
print(json.dumps({"available": _ext.available(), "sums": sums}))
"""


def test_every_op_works_without_the_library(run_python):
    hidden = run_python(USE_EVERY_OP, FASTINV_DISABLE_NATIVE="1")
    assert hidden.returncode == 0, hidden.stderr
    hidden = json.loads(hidden.stdout)
    assert hidden["available"] is False
    shown = run_python(USE_EVERY_OP)
    assert shown.returncode == 0, shown.stderr
    shown = json.loads(shown.stdout)
    assert shown["available"] is True
    assert len(hidden["sums"]) == 8
    for name, sums in hidden["sums"].items():
        assert sums == pytest.approx(shown["sums"][name], rel=1e-10), name


def test_info_says_why(run_python):
    result = run_python("from fastinv import info; info.main()", FASTINV_DISABLE_NATIVE="1")
    assert result.returncode == 0, result.stderr
    assert "no: switched off by FASTINV_DISABLE_NATIVE" in result.stdout


def test_native_is_refused_with_the_reason(run_python):
    code = """
import torch, fastinv
try:
    fastinv.ops.bias_act(torch.zeros(1, 2, 3, 3), impl="native")
except fastinv.NativeUnavailableError as error:
    print(error)
"""
    result = run_python(code, FASTINV_DISABLE_NATIVE="1")
    assert "bias_act: impl='native' cannot be used" in result.stdout, result.stderr
    assert "FASTINV_DISABLE_NATIVE" in result.stdout


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "folder"])
def test_a_library_that_does_not_load_is_one_line(run_python, tmp_path, kind):
    library = tmp_path / "_native.so"
    if kind == "folder":
        library.mkdir()
    elif kind != "missing":
        library.write_text("" if kind == "empty" else "this is not a library")
    code = "from fastinv import _ext, info; info.main(); assert not _ext.available(); print('WHY', _ext.why_not())"
    result = run_python(code, FASTINV_LIBRARY=str(library))
    assert result.returncode == 0, result.stderr
    (why,) = [line for line in result.stdout.splitlines() if line.startswith("WHY")]
    assert str(library) in why and "make native" in why
