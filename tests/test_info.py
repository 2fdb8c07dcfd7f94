"""fastinv info: true, complete, and not in need of the library."""

import json

import pytest
import torch

from fastinv import NativeUnavailableError, UsageError, _ext, info, ops
from fastinv.ops import _dispatch

REPORT = "from fastinv import info; info.main()"


def test_facts_are_complete_and_fit_for_json():
    facts = json.loads(json.dumps(info.collect()))
    assert facts["torch"]["version"] == torch.__version__
    assert facts["library"]["loaded"] == _ext.available()
    named = {entry["op"] for entry in facts["ops"]}
    assert {"upfirdn2d", "filter2d", "bias_act", "conv2d_resample", "modulated_conv2d", "styled_conv"} <= named
    for entry in facts["ops"]:
        assert entry["backend"] == ("ref" if entry["reason"] else "native"), entry


def test_library_is_built_here():
    """Every other test of native code relies on it: fail here, with the reason, and not by silent fallbacks."""
    assert _ext.available(), _ext.why_not()
    assert _ext.cpu_isa() in _ext.cpu_isas()
    assert info.collect()["build"]["torch_target"] == "2.10"


def test_all_ops_are_native_on_the_cpu():
    for entry in info.op_backends():
        if entry["device"] == "cpu" and entry["dtype"] != "float16" and entry["op"] != "adam":  # its design
            assert entry["backend"] == "native", entry


def test_module_prints_the_report(run_python):
    result = run_python("import runpy; runpy.run_module('fastinv.info', run_name='__main__')")
    assert result.returncode == 0, result.stderr
    for word in ("fastinv", "torch", "library", "cpu kernels", "upfirdn2d", "why the reference", "float16"):
        assert word in result.stdout
    assert "native cpu kernels take float32, float64, bfloat16, not float16" in result.stdout


@pytest.mark.parametrize("isa", _ext.cpu_isas())
def test_instruction_set_can_be_lowered(run_python, isa):
    result = run_python("from fastinv import _ext; print(_ext.cpu_matrix() or _ext.cpu_isa())", FASTINV_CPU_ISA=isa)
    assert result.stdout.strip() == isa, result.stderr


def test_wrong_instruction_set_is_said(run_python):
    result = run_python(REPORT, FASTINV_CPU_ISA="sse9")
    assert result.returncode == 0, result.stderr
    assert "FASTINV_CPU_ISA=sse9: must be portable, avx2, avx512, avx512_bf16 or amx" in result.stdout


def test_fallbacks_are_remembered(monkeypatch):
    monkeypatch.setattr(_dispatch, "fallbacks", {})
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float16)
    assert _dispatch.choose("upfirdn2d", "auto", x) == _dispatch.choose("upfirdn2d", "auto", x) == "ref"
    (fallback,) = info.collect()["fallbacks"]
    assert fallback["op"] == "upfirdn2d" and fallback["calls"] == 2 and "float16" in fallback["reason"]


def test_choose():
    x = torch.zeros(1, 1, 2, 2)
    assert _dispatch.choose("upfirdn2d", "ref", x) == "ref"
    assert _dispatch.choose("upfirdn2d", "native", x, (True, "unused")) == "native"
    assert _dispatch.choose("upfirdn2d", "auto", x, (True, "unused"), (False, "too odd")) == "ref"
    with pytest.raises(NativeUnavailableError, match="upfirdn2d: impl='native' cannot be used: too odd"):
        _dispatch.choose("upfirdn2d", "native", x, (False, "too odd"))
    with pytest.raises(NativeUnavailableError, match="no native kernels for device meta"):
        _dispatch.choose("upfirdn2d", "native", x.to("meta"))
    with pytest.raises(UsageError, match="impl must be 'auto', 'native' or 'ref', got 'cuda'"):
        _dispatch.choose("upfirdn2d", "cuda", x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the native and the reference path
def test_choosing_does_not_break_the_graph_of_torch_compile(dtype):
    x = torch.randn(2, 3, 4, 4).to(dtype)
    compiled = torch.compile(lambda x: ops.bias_act(x, act="lrelu"), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), ops.bias_act(x, act="lrelu"))


def test_an_op_needs_its_backward_too(monkeypatch):
    monkeypatch.setattr(_dispatch, "_obstacles", {})
    monkeypatch.setitem(_dispatch.KERNELS, "some_op", frozenset({"cpu"}))
    assert _dispatch.obstacle("some_op", "cpu", torch.float32) == ""
    monkeypatch.setattr(_dispatch, "_obstacles", {})
    monkeypatch.setitem(_dispatch.KERNELS, "some_op_backward", frozenset())
    assert _dispatch.obstacle("some_op", "cpu", torch.float32) == "there is no native cpu kernel of some_op_backward"


def test_public_ops_have_references():
    public = [name for name in ops.__all__ if not name.endswith("_ref") and name not in ("setup_filter", "compat")]
    assert len(public) >= 8 and all(f"{name}_ref" in ops.__all__ for name in public)
