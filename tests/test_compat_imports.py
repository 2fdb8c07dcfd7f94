"""How the drop-in answers imports: user's code on disk, before and after, uninstall, threads; and its pages.

What the ops compute is in test_compat.py.
"""

import json
import re
import sys
import threading
from pathlib import Path

import pytest
from test_compat import OP_PACKAGES, TORCH_UTILS, installed, numbers, ops, public  # noqa: F401

from fastinv.ops import compat

PAGES = sorted((Path(__file__).parent.parent / "docs" / "drop-in").glob("*.md"))


def test_a_name_is_the_same_module_everywhere():
    import torch_utils.ops.bias_act
    from torch_utils.ops import bias_act

    assert bias_act is torch_utils.ops.bias_act is sys.modules["torch_utils.ops.bias_act"]
    assert Path(bias_act.__file__).is_relative_to(Path(compat.__file__).parent)
    compat.install()  # again: nothing happens
    assert sys.modules["torch_utils.ops.bias_act"] is bias_act
    assert sys.meta_path.count(sys.meta_path[0]) == 1


def test_uninstall_takes_the_names_away_and_install_brings_them_back():
    held = public("op").fused_leaky_relu
    compat.uninstall()
    compat.uninstall()
    for name in [*TORCH_UTILS, "torch_utils", *OP_PACKAGES]:
        with pytest.raises(ModuleNotFoundError):
            public(name)
    assert held(numbers(2, 3), numbers(3)).shape == (2, 3)  # what is held goes on working
    compat.install()
    for name in [*TORCH_UTILS, *OP_PACKAGES]:
        public(name)


def test_further_packages():
    compat.install("my.fork.op", "other.torch_utils")
    assert public("my.fork.op.fused_act").fused_leaky_relu(numbers(2, 3)).shape == (2, 3)
    gradfix = public("other.torch_utils.ops.conv2d_gradfix")
    gradfix.enabled = False
    assert public("other.torch_utils.ops.conv2d_resample").conv2d_gradfix is gradfix
    assert ops("conv2d_gradfix").enabled is True  # each code base has flags of its own
    compat.uninstall()
    with pytest.raises(ModuleNotFoundError):
        public("my.fork.op")


def test_threads():
    """Any number of threads may install, import and uninstall at the same time; in the end nothing is left."""
    errors = []

    def work():
        try:
            for _ in range(20):
                compat.install()
                compat.install("my.op")
            public("op.fused_act")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and public("my.op").upfirdn2d


REFUSES = "raise RuntimeError('this would compile')\n"
TREE = {  # the shape of the public repositories; what is replaced must never run
    "torch_utils/__init__.py": "",
    "torch_utils/misc.py": "answer = 'theirs'\n",
    "torch_utils/persistence.py": "from . import misc\nfrom .ops import fma\n",
    "torch_utils/custom_ops.py": REFUSES,
    "torch_utils/ops/__init__.py": "",
    "torch_utils/ops/bias_act.py": REFUSES,
    "torch_utils/ops/upfirdn2d.py": REFUSES,
    "torch_utils/ops/mine.py": "from .. import custom_ops\nfrom . import bias_act\n",
    "op/__init__.py": REFUSES,
    "op/fused_act.py": REFUSES,
    "op/extra.py": "from .fused_act import fused_leaky_relu\nanswer = 'theirs'\n",
    "models/stylegan2/__init__.py": "",
    "models/stylegan2/model.py": "from models.stylegan2.op import FusedLeakyReLU, fused_leaky_relu, upfirdn2d\n",
    "models/stylegan2/op/__init__.py": REFUSES,
    "stylegan2/__init__.py": "",
    "stylegan2/model.py": "from .op import FusedLeakyReLU, fused_leaky_relu, upfirdn2d, conv2d_gradfix\n",
}


def write(folder, tree):
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


USE = """
import sys
before = list(sys.meta_path)
import fastinv, fastinv.ops.compat as compat
assert sys.meta_path == before and "torch_utils" not in sys.modules and "op" not in sys.modules
compat.install()
assert "torch_utils" not in sys.modules  # nothing is imported before it is asked for
import torch
from torch_utils.ops import bias_act, conv2d_resample, conv2d_gradfix, upfirdn2d, fma
import torch_utils.ops.mine, torch_utils.persistence
from torch_utils import misc
assert misc.answer == "theirs" and torch_utils.persistence.fma is fma
assert torch_utils.ops.mine.bias_act is bias_act and "compat" in bias_act.__file__
try:
    torch_utils.ops.mine.custom_ops.get_plugin("mine", [])
except fastinv.NativeUnavailableError as error:
    print("refused:", error)
from models.stylegan2 import model
from stylegan2 import model as relative
import op, op.extra
assert op.extra.answer == "theirs" and op.extra.fused_leaky_relu is op.fused_leaky_relu
assert model.fused_leaky_relu.__module__ == "models.stylegan2.op.fused_act"
assert relative.conv2d_gradfix.__name__ == "stylegan2.op.conv2d_gradfix"
y = bias_act.bias_act(model.upfirdn2d(torch.ones(1, 1, 4, 4), torch.ones(2, 2)), act="lrelu")
assert torch.allclose(y, torch.full((1, 1, 3, 3), 4 * 2**0.5))
assert "torch.utils.cpp_extension" not in sys.modules
compat.uninstall()
assert sys.meta_path == before and misc is sys.modules["torch_utils.misc"]
for name in ("torch_utils.ops.bias_act", "op", "models.stylegan2.op", "op.extra", "torch_utils.custom_ops"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except RuntimeError as error:
        assert str(error) == "this would compile"
    else:
        raise AssertionError(name + " is not the user's own")
assert not hasattr(torch_utils.ops, "bias_act")
print("done")
"""


def test_a_code_base_on_disk(run_python, tmp_path):
    """Its ops are never run, its other modules are its own; uninstall gives everything back."""
    write(tmp_path, TREE)
    for environment in ({}, {"FASTINV_DISABLE_NATIVE": "1"}):
        result = run_python(USE, **environment)
        assert result.returncode == 0 and result.stdout.endswith("done\n"), result.stdout + result.stderr
        assert "refused: custom_ops.get_plugin: 'mine' would have to be compiled" in result.stdout


def test_a_script_that_stays_as_it_is(run_python, tmp_path):
    """The command of the index page, which starts a script with the drop-in."""
    write(tmp_path, TREE | {"train.py": "import sys, op.extra\nprint(__name__, sys.argv, op.extra.answer)\n"})
    index = next(page for page in PAGES if page.name == "README.md").read_text()
    (code,) = re.findall(r'^    python -c "(.+?)" SCRIPT ARGUMENTS$', index, re.M | re.S)
    result = run_python(code.replace("\n    ", "\n"), "train.py", "--batch", "4")
    assert result.stdout == "__main__ ['train.py', '--batch', '4'] theirs\n", result.stderr


LATE = """
import sys, warnings
import torch_utils.misc, torch_utils.ops.bias_act, torch_utils.ops.mine, op.extra, models.stylegan2.model
theirs = {name: sys.modules[name] for name in sys.modules
          if name.split(".")[0] in ("torch_utils", "op", "models")}
functions = op.upfirdn2d, op.fused_act, torch_utils.ops.mine, models.stylegan2.model.upfirdn2d
from fastinv.ops import compat
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    compat.install()
    compat.install()
(warning,) = [str(w.message) for w in seen if "fastinv" in str(w.message)]
assert "torch_utils.ops.bias_act" in warning and "models.stylegan2.op" in warning and "fma" not in warning, warning
from torch_utils.ops import bias_act
assert bias_act is torch_utils.ops.bias_act is not theirs["torch_utils.ops.bias_act"] and bias_act.activation_funcs
import op, op.extra
assert op is not theirs["op"] and op.extra is theirs["op.extra"] and op.FusedLeakyReLU
from op import upfirdn2d
assert upfirdn2d.__module__ == "op.upfirdn2d" and "compat" in sys.modules["op.upfirdn2d"].__file__
import models.stylegan2.op
assert models.stylegan2.op.FusedLeakyReLU and models.stylegan2.model is theirs["models.stylegan2.model"]
import op.later, torch_utils.ops.fma
compat.uninstall()
assert not hasattr(torch_utils.ops, "fma") and sys.modules["op"].later is sys.modules["op.later"]
for name, module in theirs.items():
    assert sys.modules[name] is module, name
    parent, _, child = name.rpartition(".")
    assert not parent or name == "op.upfirdn2d" or getattr(sys.modules[parent], child) is module, name
import op
assert (op.upfirdn2d, op.fused_act, torch_utils.ops.mine, models.stylegan2.model.upfirdn2d) == functions
assert torch_utils.ops.bias_act is theirs["torch_utils.ops.bias_act"]
print("done")
"""


def test_a_code_base_that_was_imported_before(run_python, tmp_path):
    """It is exchanged, with a warning, and put back as it was."""
    harmless = {name: "" if text == REFUSES else text for name, text in TREE.items()}
    harmless |= {
        "op/__init__.py": "from .upfirdn2d import upfirdn2d\nfrom . import fused_act\n",
        "op/upfirdn2d.py": "def upfirdn2d(): pass\n",
        "op/fused_act.py": "def fused_leaky_relu(): pass\n",
        "op/later.py": "",
        "models/stylegan2/op/__init__.py": "FusedLeakyReLU = fused_leaky_relu = upfirdn2d = print\n",
    }
    write(tmp_path, harmless)
    result = run_python(LATE)
    assert result.returncode == 0 and result.stdout == "done\n", result.stdout + result.stderr


SUMS = """
import json, torch
from fastinv.ops import compat
compat.install()
from torch_utils.ops import bias_act, conv2d_resample, upfirdn2d, filtered_lrelu, grid_sample_gradfix
import op
torch.manual_seed(0)
f = upfirdn2d.setup_filter([1, 3, 3, 1])
x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
w = torch.randn(4, 4, 3, 3, dtype=torch.float64, requires_grad=True)
b = torch.randn(4, dtype=torch.float64)
results = [
    upfirdn2d.upfirdn2d(x, f, up=2, padding=1), upfirdn2d.filter2d(x, f), upfirdn2d.upsample2d(x, f),
    upfirdn2d.downsample2d(x, f), bias_act.bias_act(x, b, act="swish", clamp=1.0),
    conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1), filtered_lrelu.filtered_lrelu(x, f, f, b, up=2, down=2),
    grid_sample_gradfix.grid_sample(x, torch.rand(2, 3, 3, 2, dtype=torch.float64)),
    op.fused_leaky_relu(x, b), op.upfirdn2d(x, f.double(), down=2), op.conv2d_gradfix.conv2d(x, w),
]
sums = []
for y in results:
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    sums += [t.square().sum().item() for t in (y, first, second)]
print(json.dumps(sums))
"""


def test_without_the_native_library(run_python):
    shown, hidden = run_python(SUMS), run_python(SUMS, FASTINV_DISABLE_NATIVE="1")
    assert shown.returncode == hidden.returncode == 0, shown.stderr + hidden.stderr
    assert json.loads(hidden.stdout) == pytest.approx(json.loads(shown.stdout), rel=1e-10)


def test_there_is_a_page_for_each_code_base():
    index = next(page for page in PAGES if page.name == "README.md").read_text()
    others = [page for page in PAGES if page.name != "README.md"]
    assert len(others) == 8
    for page in others:
        text = page.read_text()
        assert f"({page.name})" in index
        assert "    from fastinv.ops import compat\n    compat.install()\n" in text, page.name
        for module in re.findall(r"`((?:torch_utils\.ops|[\w.]*\bop)\.\w+)`", text):  # what a page names exists
            public(module)
