"""The first StyleGAN's generator (Karras et al. 2019, arXiv 1812.04948), which IDInvert and ALAE are built on.

Style input i of the ``num_ws = 2 log2(R) - 2`` inputs drives layer conv0 (even i) or conv1 (odd i) of the resolution
``4 * 2 ** (i // 2)``; toRGB has no style. At 4x4 the constant takes the place of conv0's convolution. There is only the
last toRGB: the others serve progressive growing, not the finished generator.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from fastinv.devices import DTYPES
from fastinv.errors import UsageError
from fastinv.models import stylegan2
from fastinv.models.layers import FullyConnected, block_resolutions, channel_table, normalize_second_moment, truncated
from fastinv.ops import bias_act, conv2d_resample, upfirdn2d

HE_GAIN = math.sqrt(2)  # for the leaky ReLU, but in the scale of the weights: biases do not get it, unlike in StyleGAN2
EPSILON = 1e-8  # of the instance normalisation
CHANNEL_BASE, CHANNEL_MAX = 16384, 512  # the paper's feature maps: 512 up to 32x32, 256 at 64x64, ..., 16 at 1024x1024
MAPPING_OUTPUTS = ("w", "w+")


class MappingNetwork(nn.Module):
    """z [N, z_dim] -> w_plus [N, num_ws, w_dim]: one w repeated, or num_ws different ones (``outputs`` "w+")."""

    def __init__(self, z_dim, w_dim, num_ws, num_layers=8, lr_multiplier=0.01, outputs="w"):
        super().__init__()
        if outputs not in MAPPING_OUTPUTS:
            raise UsageError(f"mapping_outputs must be one of {', '.join(MAPPING_OUTPUTS)}, not {outputs!r}")
        if num_layers < 1:
            raise UsageError(f"mapping_layers must be at least 1, not {num_layers}")
        self.z_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, w_dim, num_ws, num_layers
        widths = [z_dim] + [w_dim] * (num_layers - 1) + [w_dim * num_ws if outputs == "w+" else w_dim]
        for i in range(num_layers):
            layer = FullyConnected(widths[i], widths[i + 1], lr_multiplier=lr_multiplier)
            layer.weight_gain *= HE_GAIN
            setattr(self, f"fc{i}", layer)
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> torch.Tensor:
        """Map latents to style vectors.

        Args:
            z: [N, z_dim], standard normal; each row is scaled to a mean square of one.
            c: None; the signature is that of StyleGAN2's mapping, but there are no labels.
            truncation_psi: 1 leaves w alone, 0 gives the mean latent: ``w_avg + psi (w - w_avg)``.
            truncation_cutoff: truncate only the first so many style inputs (the paper: 8); None truncates all.

        Returns:
            w_plus [N, num_ws, w_dim].

        Raises:
            UsageError: wrong shape of z, or labels.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise UsageError(f"z must have shape [N, {self.z_dim}], not {list(z.shape)}")
        if c is not None and c.shape[-1] != 0:
            raise UsageError("this generator is not conditional: leave c out")
        x = normalize_second_moment(z.to(self.w_avg.dtype))
        for i in range(self.num_layers):
            x = bias_act(getattr(self, f"fc{i}")(x), act="lrelu", gain=1)
        w_plus = x.unflatten(1, (-1, self.w_dim)).expand(-1, self.num_ws, -1)
        return truncated(w_plus, self.w_avg, truncation_psi, truncation_cutoff)


def adaptive_instance_norm(x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """``(x - mean) / sqrt(variance + 1e-8) * (s0 + 1) + s1``, over the pixels of each picture and channel.

    Huang and Belongie 2017, arXiv 1703.06868; the variance is the biased one.

    Args:
        x: [N, C, H, W].
        styles: [N, 2 C], s0 and then s1; in the dtype of x, or float32 with a half-precision x.

    Returns:
        [N, C, H, W] in the dtype of x.
    """
    n, channels, height, width = x.shape
    scale, shift = styles.unflatten(1, (2, channels)).unbind(1)
    scale = scale + 1
    if n == 0:  # batch_norm refuses it
        return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)
    # Every channel of every picture as a channel of one picture: batch_norm then does all of it in one op.
    x = x.reshape(1, n * channels, height, width)
    x = F.batch_norm(x, None, None, scale.flatten(), shift.flatten(), training=True, eps=EPSILON)
    return x.view(n, channels, height, width)


class SynthesisLayer(nn.Module):
    """3x3 convolution, noise with a strength per channel, bias, leaky ReLU without gain, instance norm and style.

    With ``up`` the convolution works on the picture enlarged by nearest up-sampling, and a blur [1, 2, 1] follows. The
    published networks do that only below 128x128; from there on they have a transposed convolution of stride 2 by a 4x4
    kernel, the sum of the 3x3 kernel's four one-pixel shifts. Nearest up-sampling is zero insertion and a 2x2 box, and
    the 4x4 kernel is the 3x3 one and that box; so the two are the same map, without a factor and also at the borders,
    except that a transposed convolution flips its kernel in both axes. ``weight`` is not flipped at any resolution, and
    there is one way to compute: a transposed convolution by the 3x3 kernel, then the box. It has 9 multiplications
    where the other two have 36 and 16.

    Args:
        in_channels: 0 for the layer that the constant goes into; it has no convolution.
    """

    def __init__(self, in_channels, out_channels, w_dim, resolution, up=False):
        super().__init__()
        self.resolution, self.up = resolution, up
        self.affine = FullyConnected(w_dim, 2 * out_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3)) if in_channels else None
        self.weight_gain = HE_GAIN / math.sqrt(max(in_channels, 1) * 9)
        self.noise_strength = nn.Parameter(torch.zeros(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("frozen_kernel", None, persistent=False)  # set by freeze

    noise_map = stylegan2.SynthesisLayer.noise_map

    def kernel(self, dtype: torch.dtype) -> torch.Tensor:
        """The scaled weight [out, in, 3, 3], flipped for the transposed convolution."""
        if self.frozen_kernel is not None:
            return self.frozen_kernel
        weight = (self.weight * self.weight_gain).to(dtype)
        return weight.flip(2, 3) if self.up else weight

    def freeze(self, dtype: torch.dtype) -> None:
        """Compute once what depends on the weights only; afterwards they must not change, nor x be of another dtype."""
        affine = nn.Linear(*self.affine.weight.shape[::-1], device="meta")
        affine.weight = nn.Parameter(self.affine.weight * self.affine.weight_gain, requires_grad=False)
        affine.bias = self.affine.bias
        self.affine = affine
        if self.weight is not None:
            kernel = self.kernel(dtype)
            if self.up:  # dense in the order [in, out] in which the transposed convolution reads it
                kernel = kernel.transpose(0, 1).contiguous().transpose(0, 1)
            self.frozen_kernel, self.weight = kernel, None

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise, box: torch.Tensor, blur: torch.Tensor) -> torch.Tensor:
        if self.up:
            x = conv2d_resample(x, self.kernel(x.dtype), f=box, up=2, padding=1, flip_weight=False)
            x = upfirdn2d(x, blur, padding=1)
        elif self.weight is not None or self.frozen_kernel is not None:
            x = conv2d_resample(x, self.kernel(x.dtype), padding=1)
        noise = self.noise_map(noise, len(x))
        if noise is not None:
            x = torch.addcmul(x, noise.to(x.dtype), self.noise_strength.to(x.dtype)[:, None, None])
        x = bias_act(x, self.bias, act="lrelu", gain=1)
        return adaptive_instance_norm(x, self.affine(w))


class ToRGBLayer(nn.Module):
    """1x1 convolution to RGB, with bias and perhaps a tanh; the picture is float32 at least."""

    def __init__(self, in_channels, final_tanh):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.activation = "tanh" if final_tanh else "linear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = conv2d_resample(x, (self.weight * self.weight_gain).to(x.dtype))
        return bias_act(x.to(torch.promote_types(torch.float32, x.dtype)), self.bias, act=self.activation)


class SynthesisBlock(nn.Module):
    """The two layers of a resolution, the constant before the first, toRGB after the last."""

    def __init__(self, in_channels, out_channels, w_dim, resolution, last, final_tanh):
        super().__init__()
        first = in_channels == 0
        if first:
            self.const = nn.Parameter(torch.ones(out_channels, resolution, resolution))
        self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=not first)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution)
        if last:
            self.torgb = ToRGBLayer(out_channels, final_tanh)


class SynthesisNetwork(nn.Module):
    """w_plus [N, num_ws, w_dim] -> image [N, 3, R, R]."""

    def __init__(self, w_dim, resolution, channels, final_tanh=False):
        super().__init__()
        self.w_dim, self.resolution = w_dim, resolution
        self.resolutions = block_resolutions(resolution)
        self.num_ws = 2 * len(self.resolutions)
        in_channels = 0
        for r in self.resolutions:
            block = SynthesisBlock(in_channels, channels[r], w_dim, r, r == resolution, final_tanh)
            setattr(self, f"b{r}", block)
            in_channels = channels[r]

    check = stylegan2.SynthesisNetwork.check
    noise_per_layer = stylegan2.SynthesisNetwork.noise_per_layer

    def noise_layers(self) -> dict[str, int]:
        """Names of the layers, each takes a noise map, with their resolution: {"b4.conv0": 4, "b4.conv1": 4, ...}."""
        return {f"b{r}.{layer}": r for r in self.resolutions for layer in ("conv0", "conv1")}

    def forward(self, w_plus: torch.Tensor, noise="const", dtype: torch.dtype | None = None) -> torch.Tensor:
        """Synthesise pictures.

        Args:
            w_plus: [N, num_ws, w_dim], one style vector per layer.
            noise: "const" (the stored maps), "random", "none", or a dict from a layer name such as "b8.conv0" to a map
                [R, R] or [N, 1, R, R]; layers that are not in the dict use their stored map. Maps are multiplied by
                the layer's learned strengths, one per channel.
            dtype: arithmetic of the feature maps, for mixed precision; None takes the generator's own.

        Returns:
            [N, 3, R, R], RGB, nominally in [-1, 1] (values may go beyond without a final tanh), float32 at least.

        Raises:
            UsageError: wrong shape of w_plus, or noise that does not fit.
        """
        self.check(w_plus)
        noise = self.noise_per_layer(noise, len(w_plus))
        w_plus = w_plus.to(self.b4.const.dtype)
        x = self.b4.const.to(dtype or w_plus.dtype).expand(len(w_plus), -1, -1, -1)
        # Made on the device, here: a copy from the host could not be recorded in a CUDA graph.
        box = torch.full((2, 2), 0.25, device=x.device)
        blur = (2 - torch.arange(-1, 2, device=x.device).abs()) / 4  # [1, 2, 1] / 4
        for name, w in zip(noise, w_plus.unbind(1)):
            x = self.get_submodule(name)(x, w, noise[name], box, blur)
        return self.get_submodule(f"b{self.resolution}.torgb")(x)


class StyleGAN1Generator(nn.Module):
    """StyleGAN generator: ``mapping`` takes z to w_plus, ``synthesis`` takes w_plus to pictures. It takes no labels.

    Args:
        resolution: power of two, at least 8.
        z_dim, w_dim: widths of the latent spaces.
        channels: feature maps per block resolution, ``{4: 512, 8: 512, ...}``; None takes the paper's,
            ``min(16384 / r, 512)``.
        mapping_layers, mapping_lr_multiplier: depth and learning-rate multiplier of the mapping network.
        mapping_outputs: "w", one vector for all style inputs, or "w+": the last layer gives one for each (IDInvert).
        final_tanh: whether the picture goes through a tanh (IDInvert).

    Raises:
        UsageError: one of them is out of range.
    """

    c_dim = 0

    def __init__(
        self,
        resolution: int,
        z_dim: int = 512,
        w_dim: int = 512,
        channels: dict[int, int] | None = None,
        mapping_layers: int = 8,
        mapping_lr_multiplier: float = 0.01,
        mapping_outputs: str = "w",
        final_tanh: bool = False,
    ):
        super().__init__()
        self.resolution, self.z_dim, self.w_dim = resolution, z_dim, w_dim
        table = channel_table(resolution, channels, CHANNEL_BASE, CHANNEL_MAX)
        self.config = {
            "resolution": resolution, "z_dim": z_dim, "w_dim": w_dim, "channels": table,
            "mapping_layers": mapping_layers, "mapping_lr_multiplier": mapping_lr_multiplier,
            "mapping_outputs": mapping_outputs, "final_tanh": final_tanh,
        }  # fmt: skip
        self.synthesis = SynthesisNetwork(w_dim, resolution, table, final_tanh)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, w_dim, self.num_ws, mapping_layers, mapping_lr_multiplier, mapping_outputs)

    @property
    def w_avg(self) -> torch.Tensor:
        """Mean of the mapped latents [w_dim], as tracked in training."""
        return self.mapping.w_avg

    def forward(self, z, c=None, truncation_psi=1.0, truncation_cutoff=None, noise="const") -> torch.Tensor:
        """z [N, z_dim] -> pictures [N, 3, R, R]; see ``mapping`` and ``synthesis``."""
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise=noise)

    def prepare(self, dtype: torch.dtype | None = None, forms: dict | None = None):
        """Frozen synthesis for inversion; see `PreparedStyleGAN1`."""
        return PreparedStyleGAN1(self, dtype, forms)


class PreparedStyleGAN1:
    """A frozen copy of a generator, made by ``G.prepare(dtype)``: what depends on the weights only is computed once.

    G itself is left as it is, and later changes to G do not show here. Same attributes and signatures as G. Gradients
    go to w_plus and noise maps.

    Args:
        G: the generator.
        dtype: arithmetic of the feature maps (styles and the picture stay float32 at least); None is G's own.
        forms: None or {}; the argument is that of ``fastinv.models.prepared.PreparedGenerator``.

    Raises:
        UsageError: an unknown dtype, or forms.
    """

    @torch.inference_mode(False)  # or its tensors could not be kept for a backward pass later
    def __init__(self, G: StyleGAN1Generator, dtype: torch.dtype | None = None, forms: dict | None = None):
        if dtype is not None and dtype not in DTYPES.values():
            raise UsageError(f"dtype must be one of {', '.join(str(d) for d in DTYPES.values())} or None, not {dtype}")
        if forms:
            raise UsageError("forms cannot be chosen for this generator: a StyleGAN's layers have only one")
        own = G.w_avg.dtype
        self.dtype = dtype or own
        frozen = copy.deepcopy(G).eval().requires_grad_(False)
        frozen = frozen.to(torch.promote_types(torch.promote_types(own, self.dtype), torch.float32))
        for layer in frozen.synthesis.modules():
            if isinstance(layer, SynthesisLayer):
                layer.freeze(self.dtype)
        self.mapping, self._network = frozen.mapping, frozen.synthesis
        self.resolution, self.z_dim, self.w_dim = G.resolution, G.z_dim, G.w_dim
        self.c_dim, self.num_ws, self.config = G.c_dim, G.num_ws, G.config

    @property
    def w_avg(self) -> torch.Tensor:
        """Mean of the mapped latents [w_dim]."""
        return self.mapping.w_avg

    def synthesis(self, w_plus: torch.Tensor, noise="const") -> torch.Tensor:
        """w_plus [N, num_ws, w_dim] -> [N, 3, R, R]; arguments as for ``StyleGAN1Generator.synthesis``."""
        return self._network(w_plus, noise=noise, dtype=self.dtype)
