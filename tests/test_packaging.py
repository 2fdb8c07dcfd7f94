"""Metadata, the wheel and the sdist, and what the native library needs from torch."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import fastinv
from fastinv import _ext

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
OBJECTS = ROOT / "build" / "native" / "CMakeFiles"


def toml_list(name):
    """The strings of a list in pyproject.toml (tomllib is not in Python 3.10)."""
    return re.findall(r'"([^"]+)"', re.search(rf"^{name} = \[(.*?)\]", PYPROJECT, re.S | re.M)[1])


def test_version_is_the_same_everywhere():
    assert re.search(r'^version = "(.+)"$', PYPROJECT, re.M)[1] == fastinv.__version__


def test_dependencies_are_ranges_and_few():
    dependencies = toml_list("dependencies")
    assert "torch>=2.10" in dependencies
    assert len(dependencies) <= 6
    assert not any("==" in dependency or "~=" in dependency for dependency in dependencies)
    assert not any(re.match("torchvision|lpips|torch==", dependency) for dependency in dependencies)


def test_the_build_asks_for_no_torch():
    # An isolated build would download a torch other than the installed one.
    assert not any(requirement.startswith("torch") for requirement in toml_list("requires"))


def test_constraints_pin_every_dependency():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.match(r"[\w-]+==[\w.]+(;|$)", line) for line in lines), lines
    pinned = {line.split("==")[0] for line in lines}
    wanted = {re.match(r"[\w-]+", dependency)[0] for name in ("dependencies", "dev") for dependency in toml_list(name)}
    assert wanted <= pinned


def symbols(*arguments):
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not here")
    return subprocess.run(["nm", *arguments], check=True, capture_output=True, text=True).stdout


def newer_symbols():
    """Functions of torch's stable headers that torch 2.10 does not have, by the version guards around them."""
    include = Path(torch.__path__[0]) / "include" / "torch" / "csrc"
    text = (include / "stable/c/shim.h").read_text() + (include / "inductor/aoti_torch/c/shim.h").read_text()
    newer = set()
    for minor, block in re.findall(r"#if TORCH_FEATURE_VERSION >= TORCH_VERSION_2_(\d+)_0(.*?)#endif", text, re.S):
        if int(minor) > 10:
            newer |= set(re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", block))
    return newer


@pytest.mark.parametrize("library", ["_native.so", "_native_cuda.so"])
def test_library_loads_in_torch_2_10_and_any_python(library):
    path = _ext.library_path().with_name(library)
    if not path.is_file():
        assert library == "_native_cuda.so", _ext.why_not()
        pytest.skip("the CUDA part was not built")
    needed = {line.split()[-1] for line in symbols("-D", "--undefined-only", path).splitlines()}
    newer = newer_symbols()
    assert "torch_exception_get_what" in newer  # else the headers were not understood
    assert not needed & newer
    assert not [name for name in needed if re.match("_?Py[A-Z_]", name)]
    assert not [name for name in needed if re.search("3c10|2at6|5torch", name)]  # C++ symbols of torch are not stable
    if library == "_native_cuda.so":
        line = next(line for line in symbols("-D", path).splitlines() if "aoti_torch_get_current_cuda_stream" in line)
        assert line.split()[0] == "w"  # weak, so that it loads in a CPU torch


CALL_EVERY_CUDA_KERNEL = """
import sys, torch
for path in sys.argv[1:]:
    torch.ops.load_library(path)

def example(kind):
    if kind.kind() == "ListType":
        return [example(kind.getElementType())] * 2
    return {"TensorType": torch.zeros(1, 1, 1, 1), "IntType": 4, "FloatType": 1.0, "BoolType": False}.get(kind.kind())

for name in sorted(torch._C._dispatch_get_all_op_names()):
    if name.startswith("fastinv::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
        op = getattr(torch.ops.fastinv, name.removeprefix("fastinv::")).default
        arguments = [example(argument.type) for argument in op._schema.arguments]
        try:
            op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)
            print(name, "ran")
        except RuntimeError as error:
            print(name, str(error).splitlines()[0])
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_library_loads_in_a_cpu_torch(run_python):
    """It loads and registers its kernels, and a call of any of them ends in an error, not in a crash."""
    library = _ext.library_path().with_name("_native_cuda.so")
    if not library.is_file():
        pytest.skip("the CUDA part was not built")
    result = run_python(CALL_EVERY_CUDA_KERNEL, str(_ext.library_path()), str(library))
    assert result.returncode == 0, result.stderr
    messages = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert "fastinv::bias_act" in messages
    assert "ran" not in messages.values()


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_kernels_emit_nothing_outside_their_namespace(isa):
    objects = sorted((OBJECTS / f"kernels_{isa}.dir").rglob("*.o"))
    if not objects:
        pytest.skip("not built here, or not for this processor")
    inside = f"N7fastinv{len(isa)}{isa}"
    for path in objects:
        emitted = [line.split()[-1] for line in symbols("--defined-only", "--extern-only", path).splitlines() if line]
        assert emitted, path
        assert [name for name in emitted if inside not in name] == [], path


def test_torch_target_is_2_10():
    assert "TORCH_TARGET_VERSION=0x020a000000000000" in (ROOT / "CMakeLists.txt").read_text()


def run(*command, cwd, **environment):
    result = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """(sdist, wheel built from nothing but that sdist)."""
    folder = tmp_path_factory.mktemp("wheel")
    make_sdist = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", make_sdist, str(folder), cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    source = folder / sdist.name.removesuffix(".tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    run(*pip, str(source), cwd=folder, FASTINV_CUDA="0")
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_is_whole(wheel):
    with tarfile.open(wheel[0]) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "tests/conftest.py"} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith(("build/", ".venv/"))]


@pytest.mark.slow
def test_wheel(wheel, tmp_path):
    path = wheel[1]
    assert re.fullmatch(rf"fastinv-{fastinv.__version__}-py3-none-\w+\.whl", path.name)
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
        archive.extractall(tmp_path)
    assert {"fastinv/_native.so", "fastinv/_build.json", "fastinv/ops/upfirdn2d.py"} <= set(sizes)
    for data in (ROOT / "fastinv").rglob("*.*"):
        if data.suffix not in (".safetensors", ".png", ".html", ".css"):
            continue
        assert str(data.relative_to(ROOT)) in sizes
    assert {name.split("/")[0] for name in sizes} == {"fastinv", f"fastinv-{fastinv.__version__}.dist-info"}
    assert sum(size for name, size in sizes.items() if not name.startswith("fastinv/weights/")) < 5e6
    (metadata,) = tmp_path.glob("*.dist-info/METADATA")
    required = re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(), re.M)
    assert "torch>=2.10" in required and not any(re.match("torch *==", line) for line in required)
    # What was unpacked works by itself, from another folder.
    code = "import fastinv, torch; from fastinv import _ext, ops; assert _ext.available(), _ext.why_not(); "
    code += "print(fastinv.__file__, ops.bias_act(torch.ones(1, 1, 2, 2), impl='native').sum().item())"
    output = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert output.split() == [str(tmp_path / "fastinv/__init__.py"), "4.0"]


@pytest.mark.slow
def test_without_torch_the_build_says_what_to_type(tmp_path):
    # A Python that sees setuptools but no torch, as an isolated build in an environment without torch does.
    code = f"""
import importlib.util, runpy, sys, sysconfig
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
sysconfig.get_path = lambda *_: {str(tmp_path)!r}
sys.argv = ["setup.py", "-q", "build_ext"]
runpy.run_path("setup.py", run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "type: pip install --no-build-isolation ." in result.stderr
    assert "Traceback" not in result.stderr
