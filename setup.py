"""Builds the native library with CMake: CMakeLists.txt is the one build description; metadata is in pyproject.toml.

Environment: FASTINV_CUDA=0|1 (default: built when nvcc is found and torch is a CUDA build), TORCH_CUDA_ARCH_LIST (e.g.
"9.0" or "8.0;9.0+PTX"), MAX_JOBS (parallel compile jobs), CXX (the C++ compiler).
"""

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
BUILD = ROOT / "build" / "native"


def torch_folder() -> str:
    """Where torch is. An isolated build (`pip install .`) hides it, but runs with the Python of the environment, and
    the stable ABI lets us build against any torch >= 2.10: so look into that environment as well.
    """
    spec = importlib.util.find_spec("torch")
    if spec is not None:
        return spec.submodule_search_locations[0]
    for kind in ("purelib", "platlib"):
        folder = Path(sysconfig.get_path(kind)) / "torch"
        if (folder / "version.py").is_file():
            return str(folder)
    sys.exit(
        "fastinv: no torch found to build against. Install torch >= 2.10 (see https://pytorch.org), "
        "then type: pip install --no-build-isolation ."
    )


def tool(name: str) -> str:
    """Path of cmake or ninja: the one of the Python package of that name, else from PATH."""
    if importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
        return str(Path(getattr(module, "CMAKE_BIN_DIR", None) or module.BIN_DIR) / name)
    found = shutil.which(name)
    if found is None:
        sys.exit(f"fastinv: {name} is missing; type: {sys.executable} -m pip install cmake ninja")
    return found


def run(*command: str) -> None:
    if subprocess.run(command).returncode != 0:
        sys.exit("fastinv: the native build failed, see the messages above; the failed command: " + " ".join(command))


def put(source: Path, target: Path) -> None:
    """Copy under a temporary name and rename: a process that has the old library loaded keeps it whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    shutil.copy(source, temporary)
    os.replace(temporary, target)


class CMakeBuild(build_ext):
    """Configures and builds with CMake and Ninja, then puts the libraries and _build.json into the package."""

    def run(self) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        with open(BUILD / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two builds in one tree take turns
            self.build()

    def build(self) -> None:
        options = {"FASTINV_PYTHON": sys.executable, "FASTINV_TORCH_DIR": torch_folder()}
        options["CMAKE_MAKE_PROGRAM"] = tool("ninja")
        # Always said, so that a value that an earlier build cached cannot linger.
        options |= {name: os.environ.get(name, "") for name in ("FASTINV_CUDA", "TORCH_CUDA_ARCH_LIST")}
        cmake = tool("cmake")
        run(cmake, "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items()))
        jobs = os.environ.get("MAX_JOBS")
        run(cmake, "--build", str(BUILD), *(["-j", jobs] if jobs else []))

        package = ROOT / "fastinv" if self.inplace else Path(self.build_lib) / "fastinv"
        notes = json.loads((BUILD / "_build.json").read_text())
        for name, built in {"_native.so": True, "_native_cuda.so": notes["cuda"]["built"]}.items():
            if built:
                put(BUILD / name, package / name)
            else:  # left over from an earlier build with another FASTINV_CUDA
                (package / name).unlink(missing_ok=True)
        put(BUILD / "_build.json", package / "_build.json")

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Wheel(bdist_wheel):
    """No Python symbols in the library, and LibTorch's stable ABI: one wheel serves every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("fastinv._native", [])],  # no sources: says that the wheel is not pure Python
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
