"""The order of imports, and what may be included where, read from the source text."""

import ast
import re
from pathlib import Path

import pytest

import fastinv

ROOT = Path(__file__).parent.parent
# Each part may import itself and what stands before it. "" is fastinv/__init__.py itself.
ORDER = (
    "errors files devices _ext ops info data models checkpoints latents losses inversion training editing evaluation "
    "report ui cli"
).split()
RANK = {"": -1} | {part: rank for rank, part in enumerate(ORDER)}
FILES = sorted((ROOT / "fastinv").rglob("*.py"))


def imported_modules(path: Path, tree: ast.AST):
    """(line, dotted module) of every import in the file, wherever it stands; relative ones are resolved."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                if base == ["fastinv"]:  # `from . import ops` means a module, or a lazy public name of one
                    yield node.lineno, "fastinv." + fastinv._LAZY.get(alias.name, alias.name)
                else:
                    yield node.lineno, ".".join(base)


def part_of(module: str) -> str:
    """"fastinv.ops.bias_act" -> "ops"; plain attributes of the package, as __version__, are part ""."""
    name = (module.split(".") + [""])[1]
    return "" if name.startswith("__") or name in dir(fastinv.errors) else name


def violations(path: Path, source: str):
    own = path.relative_to(ROOT / "fastinv").parts[0].removesuffix(".py")
    own = "" if own == "__init__" else own
    for line, module in imported_modules(path, ast.parse(source)):
        if module.split(".")[0] != "fastinv":
            continue
        part = part_of(module)
        if part not in RANK:
            yield f"{path.name}:{line}: {module} is in no layer; add it to ORDER"
        elif own == "" and part not in ("", "errors"):
            yield f"{path.name}:{line}: fastinv/__init__.py must import {module} lazily"
        elif own != "" and RANK[part] > RANK[own]:
            yield f"{path.name}:{line}: {own} must not import {module}"


def test_every_part_has_a_place():
    parts = {path.relative_to(ROOT / "fastinv").parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert parts <= set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    assert list(violations(path, path.read_text())) == []


@pytest.mark.parametrize(
    "file, source",
    [
        ("ops/x.py", "from ..models import stylegan2"),
        ("ops/x.py", "from fastinv import load_generator"),
        ("models/x.py", "def f():\n    import fastinv.inversion.loop"),
        ("latents.py", "from . import inversion"),
        ("__init__.py", "from . import ops"),
        ("ops/x.py", "import fastinv.nonesuch"),
    ],
)
def test_a_wrong_import_is_noticed(file, source):
    assert list(violations(ROOT / "fastinv" / file, source))


def test_what_must_not_be_imported():
    # torchvision breaks where its torch differs, and lpips imports it.
    for path in FILES:
        names = {module.split(".")[0] for _, module in imported_modules(path, ast.parse(path.read_text()))}
        assert not names & {"torchvision", "lpips"}, path


def test_the_library_is_loaded_in_one_place():
    users = [path.name for path in FILES if "load_library" in path.read_text()]
    assert users == ["_ext.py"]


def test_import_is_light(run_python):
    result = run_python("import sys, fastinv; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_lazy_names_resolve():
    for name in fastinv.__all__:
        assert getattr(fastinv, name) is not None, name
    assert set(fastinv.__all__) <= set(dir(fastinv))
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        fastinv.nonesuch  # noqa: B018


def test_torch_headers_are_included_in_common_only():
    # Kernels that are compiled per instruction set, or by nvcc, must not see torch headers.
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cpp", ".cu", ".cuh") and path.parent.name != "common":
            assert not re.search(r"#include\s*[<\"](torch|ATen|c10)/", path.read_text()), path
    for path in [*(ROOT / "csrc").rglob("*_kernel.cpp"), *(ROOT / "csrc/cuda").glob("*.cu*")]:
        assert not re.search(r"#include.*(stable|cuda_stream)\.h", path.read_text()), path
