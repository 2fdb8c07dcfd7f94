"""Drop-in: the op imports of the public StyleGAN2 code bases resolve to fastinv, and nothing is compiled.

Two lines at the top of the script that is run, before the code base's own imports::

    from fastinv.ops import compat
    compat.install()

Two families of ops are answered, under the names that their code bases import: ``torch_utils.ops.*`` of
stylegan2-ada-pytorch and StyleGAN3, and ``op`` (``models.stylegan2.op``, ...) of rosinality/stylegan2-pytorch, pSp,
e4e, ReStyle and HyperStyle; docs/drop-in has a page for each code base. The files below ``torch_utils`` and ``op`` here
are run under those public names, so that a pickled module is one of ``op.fused_act`` and loads with or without fastinv.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from fastinv.errors import UsageError

__all__ = ["PACKAGES", "install", "uninstall"]

# Always answered. PTI is stylegan2-ada-pytorch with copies of e4e and StyleCLIP inside.
PACKAGES = (
    "torch_utils",
    "op",
    "stylegan2.op",
    "models.stylegan2.op",
    "models.e4e.stylegan2.op",
    "models.StyleCLIP.models.stylegan2.op",
)

# Module below the package -> file here that is run in its place.
_TORCH_UTILS = {"custom_ops": "torch_utils/custom_ops.py"} | {
    f"ops.{op}": f"torch_utils/{op}.py"
    for op in (
        "bias_act", "conv2d_gradfix", "conv2d_resample", "filtered_lrelu", "fma", "grid_sample_gradfix", "upfirdn2d"
    )
}  # fmt: skip
_OP = {
    "": "op/__init__.py",
    "fused_act": "op/fused_act.py",
    "upfirdn2d": "op/upfirdn2d.py",
    "conv2d_gradfix": "torch_utils/conv2d_gradfix.py",
}
_HERE = Path(__file__).parent


def install(*packages: str) -> None:
    """Let the public names of the ops resolve to fastinv's; only modules that are imported afterwards see it.

    Replaced are exactly the modules of the two families, in every package of `PACKAGES` and in those given; any other
    module of these packages is still the user's own. A package that the user does not have is made up, empty. Modules
    of these names that had been imported are exchanged, but what was taken out of them before stays what it was; a
    UserWarning names them. A second call adds packages, or does nothing.

    Args:
        packages: further packages of a fork: "my.fork.torch_utils" (last part torch_utils: that family), or any other
            name for one like ``op``, as "my.fork.op".

    Raises:
        UsageError: a package is not a dotted name.
    """
    names = {}
    for package in (*PACKAGES, *packages):
        if not isinstance(package, str) or not all(part.isidentifier() for part in package.split(".")):
            raise UsageError(f"compat.install: packages are dotted names such as 'my.fork.op', got {package!r}")
        modules = _TORCH_UTILS if package.split(".")[-1] == "torch_utils" else _OP
        names |= {f"{package}.{module}".rstrip("."): str(_HERE / file) for module, file in modules.items()}
    with _lock:
        new = {name: file for name, file in names.items() if name not in _replacements.files}
        _replacements.files |= new
        _made_up.names |= {parent for name in new for parent in _parents(name)} - set(_replacements.files)
        sys.meta_path[:] = [_replacements, *_other_finders(), _made_up]
        loaded = _evict(new)
        for name in loaded:
            importlib.import_module(name)
        for name in loaded:
            _bind_submodules(name)
    if loaded:
        warnings.warn(
            f"fastinv.ops.compat.install: {', '.join(loaded)} had been imported already, and what was taken out of "
            "them stays as it was; call install() before the code base is imported",
            stacklevel=2,
        )


def uninstall() -> None:
    """Undo `install`: the public names mean what they meant before. Without an `install` it does nothing.

    What was imported meanwhile keeps working where it is held; imported anew it comes from the user's own files.
    """
    with _lock:
        sys.meta_path[:] = _other_finders()
        gone = [name for name in (*_replacements.files, *_made_up.names) if _is_ours(sys.modules.get(name))]
        removed = {name: sys.modules.pop(name) for name in gone}
        for name, module in removed.items():
            parent, _, child = name.rpartition(".")
            if parent in sys.modules and vars(sys.modules[parent]).get(child) is module:
                delattr(sys.modules[parent], child)
        sys.modules.update(_evicted)
        for holder, child, value in _attributes:
            setattr(holder, child, value)
        for package in removed:
            if package in sys.modules:
                _bind_submodules(package)
            else:  # the user's own modules below a package of ours: they are imported anew, below the user's package
                for name in [name for name in sys.modules if name.startswith(package + ".")]:
                    del sys.modules[name]
        _evicted.clear()
        _attributes.clear()
        _replacements.files.clear()
        _made_up.names.clear()


class _Replacements:
    """First in sys.meta_path: answers the replaced modules."""

    def __init__(self):
        self.files: dict[str, str] = {}

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        file = self.files.get(name)
        if file is None:
            return None
        spec = importlib.util.spec_from_file_location(name, file)
        if spec.submodule_search_locations is not None:  # a package: its other modules are those of the user's
            theirs = next(filter(None, (_ask(finder, name, path, target) for finder in _other_finders())), None)
            spec.submodule_search_locations = list(theirs and theirs.submodule_search_locations or [])
        return spec


class _MadeUp:
    """Last in sys.meta_path: an empty package where the user has none, so that the names below it can be imported."""

    def __init__(self):
        self.names: set[str] = set()

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, None, origin=__name__, is_package=True) if name in self.names else None


_lock = threading.RLock()
_replacements, _made_up = _Replacements(), _MadeUp()
_evicted: dict[str, ModuleType] = {}  # the user's modules that ours stand for
_attributes: list[tuple[ModuleType, str, ModuleType]] = []  # (package, name, module) where they were bound


def _other_finders() -> list:
    return [finder for finder in sys.meta_path if finder not in (_replacements, _made_up)]


def _ask(finder, name: str, path, target) -> ModuleSpec | None:
    find_spec = getattr(finder, "find_spec", None)  # old finders have none
    return find_spec and find_spec(name, path, target)


def _parents(name: str) -> list[str]:
    """"a.b.c" -> ["a", "a.b"]."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _is_ours(module: ModuleType | None) -> bool:
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return origin == __name__ or origin in _replacements.files.values()


def _evict(names) -> list[str]:
    """Take the user's modules of these names out of sys.modules, and note where they are bound; which there were."""
    loaded = []
    for name in names:
        parent, _, child = name.rpartition(".")
        module = sys.modules.pop(name, None)
        if module is not None:
            _evicted[name] = module
        holder = sys.modules.get(parent)
        bound = vars(holder).get(child) if holder and parent not in _replacements.files else None
        if isinstance(bound, ModuleType):  # not so where the package has made the name a function, say
            _attributes.append((holder, child, bound))  # and is bound to ours when that is imported
            module = bound
        if module is not None:
            loaded.append(name)
    return loaded


def _bind_submodules(package: str) -> None:
    """Python binds a submodule on its package once, when it loads it: do it again after the package was exchanged."""
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition(".")
        if parent == package and not hasattr(sys.modules[package], child):
            setattr(sys.modules[package], child, module)
