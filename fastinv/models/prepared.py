"""Frozen synthesis for inversion: the weights are prepared once, then only latents and noise maps get gradients."""

import copy

import torch

from fastinv.devices import DTYPES
from fastinv.errors import UsageError
from fastinv.models import entries
from fastinv.models.frozen import FrozenSynthesis, unsupported
from fastinv.models.fused import FusedSynthesis
from fastinv.models.stylegan2 import Generator, SynthesisLayer
from fastinv.ops import frozen_conv, synthesis


class PreparedGenerator:
    """A frozen copy of a generator with a fast synthesis, made by ``G.prepare(dtype)``.

    Networks of the skip architecture run as one autograd node: on a CPU in float32 and bfloat16 with each layer one op
    (`fastinv.models.fused`; ``unfused`` says why not), else `fastinv.models.frozen`. Others run layer by layer, each a
    ``styled_conv`` (``layerwise`` says why). G itself is left as it is, and later changes to G do not show here. Same
    attributes and signatures as ``Generator``; first derivatives only, with respect to codes, features and noise maps.
    Parts of the network, for smaller pictures and from features on, take the same fast path and weights. A retained
    graph may be run backward again, which costs a forward pass more, but not in two threads at once.

    On a CPU the kernels have all weights in a layout of their own, and what else might need them borrows G's: a copy or
    pickle of this, which is refused after an in-place change of G, and torch.compile, which takes the library's
    convolutions whatever ``forms`` says, and would use the changed weights.

    Args:
        G: the generator.
        dtype: arithmetic of the feature maps (styles and the summed picture stay float32 at least); None is G's own.
        forms: layer name such as "b64.conv0" -> (forward, gradient), how its convolution is computed; that of the other
            layers is chosen, see `fastinv.models.convolution` and `fastinv.models.kinds`.

    Raises:
        UsageError: an unknown dtype, or forms for layers that do not exist or run layer by layer.
    """

    @torch.inference_mode(False)  # or its tensors could not be kept for a backward pass later
    def __init__(self, G: Generator, dtype: torch.dtype | None = None, forms: dict | None = None):
        if dtype is not None and dtype not in DTYPES.values():
            raise UsageError(f"dtype must be one of {', '.join(str(d) for d in DTYPES.values())} or None, not {dtype}")
        own = G.w_avg.dtype
        self.dtype = dtype or own
        frozen = copy.deepcopy(G).eval().requires_grad_(False)
        frozen = frozen.to(torch.promote_types(torch.promote_types(own, self.dtype), torch.float32))
        self.mapping = frozen.mapping
        self._network = frozen.synthesis
        self.resolution, self.z_dim, self.w_dim = G.resolution, G.z_dim, G.w_dim
        self.c_dim, self.num_ws, self.config = G.c_dim, G.num_ws, G.config
        self.layerwise = unsupported(self._network)
        if self.layerwise:
            if forms:
                raise UsageError(f"forms cannot be chosen for this generator: {self.layerwise}")
            _fuse_layers(self._network, self.dtype)
        else:
            self._make_fast(G, forms or {})

    def _make_fast(self, G: Generator, forms: dict) -> None:
        own_kinds = {name for name, form in forms.items() if set(form) <= set(frozen_conv.KINDS)}
        self.unfused = frozen_conv.obstacle(self.dtype, self.w_avg.device.type)
        if len(own_kinds) < len(forms):
            self.unfused = self.unfused or "forms asks for convolutions of the library"
        if self.unfused and own_kinds:
            name = min(own_kinds)
            raise UsageError(f"forms: {name!r} cannot be {tuple(forms[name])}: {self.unfused}")
        self._fast, self._fused = FrozenSynthesis(self._network, self.dtype, forms), None
        if not self.unfused:
            self._fast.forms = {}
            self._fused = FusedSynthesis(self._fast, forms)
            self._fused.pack()
            for layer in self._fast.layers:  # what only torch.compile needs from here on
                layer.convolution.borrow(G.synthesis.get_submodule(layer.name).weight)
        self._network.to("meta")  # only its checks are used from here on

    @property
    def w_avg(self) -> torch.Tensor:
        """Mean of the mapped latents [w_dim]."""
        return self.mapping.w_avg

    def synthesis(
        self, code: torch.Tensor, noise="const", resolution: int | None = None,
        features: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """w_plus [N, num_ws, w_dim] or style channels [N, S] -> [N, 3, R, R]; arguments as for ``Generator.synthesis``.

        First derivatives in the code, the noise maps and both features.
        """
        if self.layerwise:
            return self._network(code, noise, resolution, self.dtype, features=features)
        return self._run(code, noise, resolution, features)

    def features(
        self, w_plus: torch.Tensor, resolution: int, noise="const",
        features: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The state after a block, float32 at least; see ``Generator.features``."""
        if self.layerwise:
            x, picture = self._network.features(w_plus, resolution, noise, self.dtype, features)
            return x.to(self.w_avg.dtype), picture
        entries.check_resolution(self._network, resolution)
        return self._run(w_plus, noise, resolution, features, with_x=True)

    def styles(self, w_plus: torch.Tensor) -> torch.Tensor:
        """Style channels [N, S] of w_plus; see ``Generator.styles``."""
        if self.layerwise:
            return self._network.styles(w_plus)
        self._network.check(w_plus)
        fast, w_plus = self._fast, w_plus.to(self._fast.compute)
        # The reference, which autograd differentiates.
        return synthesis.styles(w_plus, fast.affine_weight, fast.affine_bias, fast.rows, impl="ref") / fast.style_gain

    def style_layers(self) -> dict[str, slice]:
        """Which of all style channels are whose; see ``Generator.style_layers``."""
        return entries.style_layers(self._network)

    def w_plus_of_styles(self, styles: torch.Tensor) -> torch.Tensor:
        """The w_plus whose style channels are nearest; see ``Generator.w_plus_of_styles``."""
        if self.layerwise:
            weight, bias = self._network.affines()
        else:
            weight, gain = self._fast.affine_weight, self._fast.style_gain
            weight, bias = weight / gain[:, None], self._fast.affine_bias / gain
        return entries.w_plus_of_styles(self._network, styles, weight, bias, self.w_avg)

    def _run(self, code, noise, resolution, features=None, with_x=False):
        """The picture, or (x, picture) after the last block that runs, on the fast path."""
        n, fast = len(code), self._fast
        blocks = entries.blocks_to_run(self._network, code, resolution, features)
        noise = self._network.noise_per_layer(noise, n)
        x = None if features is None else features[0].to(fast.compute)
        picture = None if features is None else features[1].to(fast.compute).contiguous()
        if blocks:
            whole = fast if self._fused is None or torch.compiler.is_compiling() else self._fused
            part, fast = whole.part(blocks[0], blocks[-1]), fast.part(blocks[0], blocks[-1])
            maps = [_map_of(layer, noise[layer.name], n, fast.compute) for layer in fast.layers]
            result = part(fast.own_code(code), maps, x, picture, with_x)
        else:
            result = (x, picture) if with_x else picture
        left = entries.unused(blocks, code, noise, features)
        if with_x:
            return tuple(entries.with_zero_gradients(t, left) for t in result)
        return entries.with_zero_gradients(result, left)


def _map_of(layer, noise, batch: int, compute: torch.dtype) -> torch.Tensor | None:
    """The unscaled map [N or 1, 1, R, R] of a layer for a noise mode or a given map; None for no noise."""
    if isinstance(noise, torch.Tensor):
        return noise.to(compute).reshape(-1, 1, layer.resolution, layer.resolution)
    if noise == "random":
        shape = (batch, 1, layer.resolution, layer.resolution)
        return torch.randn(shape, dtype=compute, device=layer.noise_const.device)
    return layer.noise_const if noise == "const" else None


def _fuse_layers(network, dtype: torch.dtype) -> None:
    for layer in network.modules():
        if isinstance(layer, SynthesisLayer):
            layer.weight_sumsq = layer.weight.square().sum((2, 3))
            layer.weight.data = layer.weight.to(dtype, memory_format=torch.channels_last)
