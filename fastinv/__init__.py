"""fastinv turns a real picture into a StyleGAN latent code and back, fast.

Three layers, each usable alone: `fastinv.ops` (compiled ops with a plain torch reference of each), `fastinv.models`
(StyleGAN2 generator and discriminator) and `fastinv.inversion`. Names are looked up on first use, so that
`import fastinv` stays quick and does not import torch.
"""

import importlib

from .errors import CheckpointError, FastinvError, NativeUnavailableError, PictureError, UsageError

__version__ = "0.1.0"

_LAZY = {  # public name -> module that defines it
    "load_generator": "checkpoints",
    "load_discriminator": "checkpoints",
    "load_encoder": "checkpoints",
    "load_attribute_network": "models.attributes",
    "invert": "inversion",
    "translate": "inversion.translate",
    "InversionResult": "inversion",
    "METHODS": "inversion",
    "edit": "editing",
    "mix": "editing",
    "interpolate": "editing",
    "diffuse": "editing",
    "evaluate": "evaluation",
}
_SUBMODULES = (
    "ops", "info", "data", "models", "checkpoints", "latents", "losses", "inversion", "training", "editing",
    "evaluation", "report",
)  # fmt: skip

__all__ = [
    "CheckpointError",
    "FastinvError",
    "NativeUnavailableError",
    "PictureError",
    "UsageError",
    *_LAZY,
    *_SUBMODULES,
]


def __getattr__(name: str):
    if name in _SUBMODULES:
        return importlib.import_module(f"fastinv.{name}")
    if name in _LAZY:
        value = getattr(importlib.import_module(f"fastinv.{_LAZY[name]}"), name)
        globals()[name] = value  # found once, then an ordinary attribute
        return value
    raise AttributeError(f"module 'fastinv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
