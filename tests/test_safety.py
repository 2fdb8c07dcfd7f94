"""Nothing that is read is ever run: no call in fastinv/ that executes data, read from the source text.

`tests/test_pickles.py` shows it of hostile files; this file keeps the ways to do it out of the package.
"""

import ast
import importlib
from pathlib import Path

import pytest

import fastinv

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fastinv").rglob("*.py"))

# Modules whose use is to turn data into objects of any class, or to run source text.
MODULES = (
    "marshal shelve dill cloudpickle joblib jsonpickle imp runpy code codeop _pickle"
).split()
BUILTINS = "eval exec compile __import__".split()  # as such; re.compile and module.eval() are other things
CALLS = (
    "pickle.load pickle.loads pickle.Unpickler pickle._Unpickler pandas.read_pickle yaml.load yaml.load_all "
    "yaml.unsafe_load yaml.full_load torch.jit.load torch.package.PackageImporter torch.hub.load "
    "torch.serialization.add_safe_globals torch.storage._load_from_bytes os.system os.popen builtins.eval "
    "builtins.exec builtins.compile builtins.__import__ importlib.__import__"
).split()
# Names by which modules are imported from files or under names that are not in the source. Each place that has one is
# listed with the reason; another one anywhere fails.
IMPORTS = (
    "importlib.import_module importlib.util.spec_from_file_location importlib.util.module_from_spec exec_module "
    "load_module importlib.machinery.SourceFileLoader importlib.machinery.SourcelessFileLoader"
).split()
ALLOWED_IMPORTS = {
    # The lazy names of the package: a module of fastinv, by a name from a table in that file.
    ("__init__.py", "importlib.import_module"),
    ("cli/training.py", "importlib.import_module"),  # a trainer, likewise
    # The drop-in answers `import torch_utils.ops.bias_act` with files that lie beside it, by names from a table in that
    # file; and imports anew those of these names that had been imported. Nothing of a checkpoint gets there.
    ("ops/compat/__init__.py", "importlib.import_module"),
    ("ops/compat/__init__.py", "importlib.util.spec_from_file_location"),
}
SHELL = "subprocess.run subprocess.Popen subprocess.call subprocess.check_call subprocess.check_output".split()


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local name -> what was imported under it, wherever the import stands."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                found[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """"np.load" -> "numpy.load"; the last attribute alone of what is no plain name, as in `f().exec_module`."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(names.get(node.id, node.id))
    return ".".join(reversed(parts))


def keyword(call: ast.Call, name: str):
    """The constant that a call gives an argument; None where it gives none, or something that is computed."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def violations(file: str, source: str):
    """What a file of the package must not have: lines for people."""
    tree = ast.parse(source)
    names = aliases(tree)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            own = getattr(node, "module", None)
            imported = [own] if own and not node.level else []
            imported += [alias.name if not own else f"{own}.{alias.name}" for alias in node.names]
            for name in imported if not getattr(node, "level", 0) else ():
                if any(name == module or name.startswith(f"{module}.") for module in MODULES):
                    yield f"{file}:{node.lineno}: imports {name}"
        if not isinstance(node, (ast.Name, ast.Attribute)):
            continue
        name, call = dotted(node, names), calls.get(id(node))
        end = name.rpartition(".")[2]
        if name in BUILTINS and isinstance(node, ast.Name):
            yield f"{file}:{node.lineno}: uses the builtin {name}"
        elif name in CALLS:  # also where it is only passed on
            yield f"{file}:{node.lineno}: uses {name}"
        elif name == "torch.load" and not (call and keyword(call, "weights_only") is True):
            yield f"{file}:{node.lineno}: torch.load without weights_only=True"
        elif name in ("numpy.load", "numpy.lib.npyio.load") and not (
            call and all(k.arg for k in call.keywords) and keyword(call, "allow_pickle") in (None, False)
            and not any(k.arg == "allow_pickle" and not isinstance(k.value, ast.Constant) for k in call.keywords)
            and len(call.args) < 3
        ):  # fmt: skip
            yield f"{file}:{node.lineno}: numpy.load that may read pickles"
        elif name in SHELL and call and any(
            k.arg is None or (k.arg == "shell" and not (isinstance(k.value, ast.Constant) and k.value.value is False))
            for k in call.keywords
        ):  # fmt: skip
            yield f"{file}:{node.lineno}: a subprocess by way of a shell"
        elif name in IMPORTS or end in ("exec_module", "load_module"):
            what = name if name in IMPORTS else end
            if (file, what) not in ALLOWED_IMPORTS:
                yield f"{file}:{node.lineno}: imports by {what}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_data(path):
    assert list(violations(str(path.relative_to(ROOT / "fastinv")), path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import load\nload(f)",
        "from pickle import Unpickler as U\nclass Mine(U): pass",
        "import pickle\nread = pickle.loads",
        "import _pickle",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import torch\ntorch.load(f, None, None, weights_only=flag)",
        "import torch\ntorch.load(f, **options)",
        "from torch import load\nload(f, map_location='cpu')",
        "import torch\nread = torch.load",
        "import torch\ntorch.jit.load(f)",
        "import torch.serialization\ntorch.serialization.add_safe_globals([X])",
        "eval('1')",
        "def f(g=eval): pass",
        "exec(text)",
        "code = compile(text, 'x', 'exec')",
        "__import__(name)",
        "import builtins\nbuiltins.exec(text)",
        "import marshal",
        "from marshal import loads",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import numpy as np\nnp.load(f, None, True)",
        "import numpy\nnumpy.load(f, allow_pickle=flag)",
        "import numpy\nnumpy.load(f, **options)",
        "import yaml\nyaml.load(f)",
        "def f():\n    import shelve",
        "import dill",
        "import joblib\njoblib.load(f)",
        "from joblib import load",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import Popen\nPopen('ls', shell=flag)",
        "import subprocess\nsubprocess.check_output('ls', **options)",
        "import os\nos.system('ls')",
        "import runpy\nrunpy.run_path(p)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module\nimport_module(name)",
        "import importlib.util\nimportlib.util.spec_from_file_location('x', p)",
        "spec.loader.exec_module(module)",
        "from importlib.machinery import SourceFileLoader\nSourceFileLoader('x', p)",
    ],
)
def test_a_wrong_line_is_noticed(source):
    assert list(violations("checkpoints/x.py", source))


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "network.eval()",
        "import torch\ntorch.load(f, map_location='cpu', weights_only=True)",
        "import torch\ntorch.compile(f)",
        "import numpy as np\nnp.load(f)",
        "import numpy as np\nnp.load(f, allow_pickle=False)",
        "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass",
        "import pickle\npickle.dumps(x)",
        "import yaml\nyaml.safe_load(f)",
        "import json\njson.load(f)",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "from fastinv.checkpoints.pickles import read_pickle\nread_pickle(data)",
        "from fastinv.checkpoints import load",
        "from . import code",
    ],
)
def test_a_good_line_is_left_alone(source):
    assert list(violations("checkpoints/x.py", source)) == []


def test_the_exceptions_are_needed_and_only_where_they_are_listed():
    for file, name in ALLOWED_IMPORTS:
        source = (ROOT / "fastinv" / file).read_text()
        assert list(violations("elsewhere.py", source)), f"{file} no longer uses {name}"
        module = name.rpartition(".")[2]
        assert module in source


def test_what_the_drop_in_imports_lies_beside_it():
    """The one place that imports files by path takes them from a table: all of them are files of this package."""
    compat = importlib.import_module("fastinv.ops.compat")
    here = Path(fastinv.__file__).parent / "ops/compat"
    listed = {here / file for table in (compat._TORCH_UTILS, compat._OP) for file in table.values()}
    assert listed and all(path.is_file() and path.resolve().is_relative_to(here.resolve()) for path in listed)
