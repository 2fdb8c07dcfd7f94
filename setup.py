"""Builds the native library by calling CMake (CMakeLists.txt is the one build description); metadata is in pyproject.toml.

Environment: FASTINV_CUDA=0|1 (default: built when nvcc is found and torch is a CUDA build), TORCH_CUDA_ARCH_LIST (e.g.
"9.0" or "8.0;9.0+PTX"), MAX_JOBS (parallel compile jobs), CXX (the C++ compiler).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
LIBRARIES = ("_native.so", "_native_cuda.so")


def tool(name: str) -> str:
    """Path of cmake or ninja: from this Python's environment if installed there, else from PATH."""
    here = Path(sys.executable).parent / name
    found = str(here) if here.is_file() else shutil.which(name)
    if found is None:
        sys.exit(f"fastinv: {name} is missing; type: {sys.executable} -m pip install cmake ninja")
    return found


def put(source: Path, target: Path) -> None:
    """Copy under a temporary name and rename: a process that has the old library loaded keeps it whole."""
    temporary = target.with_name(target.name + f".{os.getpid()}.tmp")
    shutil.copy2(source, temporary)
    os.replace(temporary, target)


class CMakeBuild(build_ext):
    """Configures and builds with CMake and Ninja, then puts the libraries and _build.json into the package."""

    def run(self) -> None:
        if importlib.util.find_spec("torch") is None:
            sys.exit(
                "fastinv: no torch in the build environment (pip builds in isolation by default); "
                "install torch >= 2.10 first, then type: pip install --no-build-isolation ."
            )
        build = ROOT / "build" / "native"
        configure = [tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DFASTINV_PYTHON={sys.executable}"]
        # Always said, so that a value cached by an earlier build cannot linger.
        configure += [f"-D{name}={os.environ.get(name, '')}" for name in ("FASTINV_CUDA", "TORCH_CUDA_ARCH_LIST")]
        jobs = os.environ.get("MAX_JOBS")
        for command in (configure, [tool("cmake"), "--build", str(build)] + (["-j", jobs] if jobs else [])):
            if subprocess.run(command).returncode != 0:
                sys.exit("fastinv: the native build failed; the compiler's message is above. Failed: " + " ".join(command))
        package = ROOT / "fastinv" if self.inplace else Path(self.build_lib) / "fastinv"
        package.mkdir(parents=True, exist_ok=True)
        put(build / "_build.json", package / "_build.json")
        for name in LIBRARIES:
            if (build / name).is_file() and self.is_current(build, name):
                put(build / name, package / name)
            else:
                (package / name).unlink(missing_ok=True)

    @staticmethod
    def is_current(build: Path, name: str) -> bool:
        """False for a CUDA library left over from an earlier build with another FASTINV_CUDA."""
        return name != "_native_cuda.so" or '"built": true' in (build / "_build.json").read_text()


class Wheel(bdist_wheel):
    """The library has no Python symbols and LibTorch's stable ABI: one wheel for every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("fastinv._native", [])],  # tells setuptools that the wheel is not pure Python
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
