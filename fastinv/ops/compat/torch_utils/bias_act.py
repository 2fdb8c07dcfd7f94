"""``torch_utils.ops.bias_act``: `fastinv.ops.bias_act`, and the table of activations that networks read gains from."""

from fastinv import ops
from fastinv.ops.bias_act import ACTIVATIONS
from fastinv.ops.compat.torch_utils._impl import backend


class _Entry(dict):
    """A dictionary whose items are attributes as well."""

    def __init__(self, **items):
        super().__init__(items)
        self.__dict__ = self


def _entry(name):
    code, function, alpha, gain = ACTIVATIONS[name]
    return _Entry(
        func=lambda x, alpha=alpha, **_: function(x, alpha),
        def_alpha=alpha,
        def_gain=gain,
        cuda_idx=code + 1,  # the public kernels count from 1
        ref={"linear": "", "swish": "x"}.get(name, "y"),  # what the derivative is made of: input, output or nothing
        has_2nd_grad=name not in ("linear", "relu", "lrelu"),
    )


activation_funcs = {name: _entry(name) for name in ACTIVATIONS}


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    """``clamp(gain * act(x + b))``, b [x.shape[dim]]; see `fastinv.ops.bias_act`. impl: "cuda" or "ref"."""
    return ops.bias_act(x, b, dim, act, alpha, gain, clamp, backend("bias_act", impl))
