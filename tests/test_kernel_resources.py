"""The compile gate of .ci/kernel_resources.py: how it reads nvcc, and what it calls worse. nvcc is not needed here."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
gate = runpy.run_path(str(ROOT / ".ci" / "kernel_resources.py"))
Kernel, Resources = gate["Kernel"], gate["Resources"]

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPKfPf' for 'sm_80'
ptxas info    : Function properties for _Z3addPKfPf
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 1 barriers, 768 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 4.217 ms
ptxas info    : Compiling entry function '_Z5solvePd' for 'sm_80'
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    40 bytes stack frame, 0 bytes spill stores, 4 bytes spill loads
ptxas info    : Function properties for _Z5solvePd
    0 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z3addPKfPf' for 'sm_120'
ptxas info    : Function properties for _Z3addPKfPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem
"""

PTX = """\
.visible .entry _Z3addPKfPf(
	.param .u64 _Z3addPKfPf_param_0
)
{
	ld.global.nc.u32 	%r1, [%rd1];
	ld.global.nc.v4.u32 	{%r2, %r3, %r4, %r5}, [%rd4];
	ld.global.v4.u64 	{%rd2, %rd3, %rd4, %rd5}, [%rd4];
	{  st.shared.v4.u32 	[%r9], {%r2, %r3, %r4, %r5}; }
	st.global.v2.f32 	[%rd9+256], {%f1, %f2};
}
	// .globl	_Z5solvePd
.visible .entry _Z5solvePd(
	.param .u64 _Z5solvePd_param_0
)
.maxntid 64
{
	ld.global.nc.u16 	%rs1, [%rd1];
	cp.async.cg.shared.global [%r1], [%rd2], 16, %r3;
	st.global.f64 	[%rd9], %fd1;
}
"""


def test_parse_ptxas():
    assert gate["parse_ptxas"](PTXAS) == {
        ("_Z3addPKfPf", "sm_80"): Resources(registers=30, shared=768, stack=16, spills=0),
        ("_Z5solvePd", "sm_80"): Resources(registers=255, shared=0, stack=0, spills=24),
        ("_Z3addPKfPf", "sm_120"): Resources(registers=32, shared=1024, stack=0, spills=0),
    }


def test_parse_ptx():
    assert gate["parse_ptx"](PTX) == {"_Z3addPKfPf": (16, 8), "_Z5solvePd": (16, 8)}


def test_demangle():
    names = {"_ZN7fastinv4cuda10mma_kernelI6__halfEEvPKT_S5_Pf", "_ZN7fastinv4cuda10sum_kernelEPKfPfi", "copy"}
    assert sorted(gate["demangle"](names).values()) == ["copy", "mma_kernel<__half>", "sum_kernel"]


def kernels(**changes):
    resources = {
        name: Resources(**{"registers": 40, "shared": 768, "stack": 0} | changes.get(name, {}))
        for name in gate["ARCHITECTURES"]
    }
    return {("add.cu", "add_kernel<float, 4>"): Kernel(changes.get("load", 16), changes.get("store", 16), resources)}


def test_table_round_trip():
    text = gate["write_table"](kernels(sm_90={"registers": 32}), "13.0.88")
    assert gate["read_table"](text) == ("13.0.88", kernels(sm_90={"registers": 32}))


@pytest.mark.parametrize(
    "changes, line",
    [
        ({}, None),
        ({"sm_90": {"registers": 39}}, None),
        ({"sm_90": {"registers": 41}}, "add.cu: add_kernel<float, 4> on sm_90: registers 40 -> 41"),
        ({"sm_120": {"shared": 1024}}, "add.cu: add_kernel<float, 4> on sm_120: shared 768 -> 1024"),
        ({"sm_80": {"stack": 8}}, "add.cu: add_kernel<float, 4> on sm_80: stack 0 -> 8"),
        ({"load": 4}, "add.cu: add_kernel<float, 4>: widest load 16 -> 4 bytes"),
        ({"store": 8}, "add.cu: add_kernel<float, 4>: widest store 16 -> 8 bytes"),
    ],
)
def test_regressions(changes, line):
    assert gate["regressions"](kernels(**changes), kernels()) == ([line] if line else [])


def test_kernels_missing_and_vanished():
    assert gate["regressions"](kernels(), {}) == ["add.cu: add_kernel<float, 4> is not in the table"]
    assert gate["regressions"]({}, kernels()) == ["add.cu: add_kernel<float, 4> is in the table and was not compiled"]


def test_spills():
    found = kernels(sm_86={"spills": 12})
    assert gate["spills"](found) == ["add.cu: add_kernel<float, 4> on sm_86 spills 12 bytes of registers"]
    assert gate["spills"](kernels()) == []
