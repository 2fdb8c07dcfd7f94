"""Encoders: networks that read a picture's latent code off its pixels in one pass (ReStyle: in a few).

All have ``encode(images) -> w_plus``, see `fastinv.models.encoders.base.Encoder`. State-dict names are those of the
public checkpoints, which `fastinv.checkpoints.families` reads.
"""

from fastinv.models.encoders.alae import ALAEEncoder
from fastinv.models.encoders.base import Encoder
from fastinv.models.encoders.idinvert import IDInvertEncoder
from fastinv.models.encoders.psp import Encoder4Editing, GradualStyleEncoder, WEncoder, WPlusEncoder
from fastinv.models.encoders.restyle import ReStyleE4E, ReStylePSP

# Name of the model in our files -> its class; ``ENCODERS[name](**encoder.config)`` builds the same architecture.
ENCODERS = {
    "psp": GradualStyleEncoder,
    "e4e": Encoder4Editing,
    "w_encoder": WEncoder,
    "w_plus_encoder": WPlusEncoder,
    "restyle_psp": ReStylePSP,
    "restyle_e4e": ReStyleE4E,
    "idinvert": IDInvertEncoder,
    "alae": ALAEEncoder,
}
__all__ = ["ENCODERS", "Encoder", *(cls.__name__ for cls in ENCODERS.values())]
