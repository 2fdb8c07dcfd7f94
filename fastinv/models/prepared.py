"""Frozen synthesis for inversion: the weights are prepared once, then only latents and noise maps get gradients."""

import copy

import torch

from fastinv.devices import DTYPES
from fastinv.errors import UsageError
from fastinv.models.stylegan2 import Generator, SynthesisLayer


class PreparedGenerator:
    """A frozen copy of a generator whose layers are the fused ``styled_conv``, with squared weights summed once.

    Made by ``G.prepare(dtype)``; G itself is left as it is, and later changes to G do not show here. Same attributes
    and signatures as ``Generator``; first derivatives only, with respect to w_plus and noise maps.

    Args:
        G: the generator.
        dtype: arithmetic of the feature maps (styles and the summed picture stay float32 at least); None is G's own.
    """

    def __init__(self, G: Generator, dtype: torch.dtype | None = None):
        if dtype is not None and dtype not in DTYPES.values():
            raise UsageError(f"dtype must be one of {', '.join(str(d) for d in DTYPES.values())} or None, not {dtype}")
        own = G.w_avg.dtype
        self.dtype = dtype or own
        frozen = copy.deepcopy(G).eval().requires_grad_(False)
        frozen = frozen.to(torch.promote_types(torch.promote_types(own, self.dtype), torch.float32))
        for layer in frozen.modules():
            if isinstance(layer, SynthesisLayer):
                layer.weight_sumsq = layer.weight.square().sum((2, 3))
                layer.weight.data = layer.weight.to(self.dtype, memory_format=torch.channels_last)
        self.mapping = frozen.mapping
        self._synthesis = frozen.synthesis
        self.resolution, self.z_dim, self.w_dim = G.resolution, G.z_dim, G.w_dim
        self.c_dim, self.num_ws, self.config = G.c_dim, G.num_ws, G.config

    @property
    def w_avg(self) -> torch.Tensor:
        """Mean of the mapped latents [w_dim]."""
        return self.mapping.w_avg

    def synthesis(self, w_plus: torch.Tensor, noise="const") -> torch.Tensor:
        """w_plus [N, num_ws, w_dim] -> [N, 3, R, R]; arguments as for ``Generator.synthesis``."""
        return self._synthesis(w_plus, noise=noise, dtype=self.dtype)
