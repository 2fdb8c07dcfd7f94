"""StyleGAN2 generator (Karras et al. 2020, arXiv 1912.04958), with the label conditioning and naming of StyleGAN2-ADA.

Tensor names in the state dict (``mapping.fc0.weight``, ``synthesis.b8.conv0.affine.bias`` ...) follow the ADA PyTorch
naming, so reading a public checkpoint is a copy. Style input i of the ``num_ws = 2 log2(R) - 2`` inputs drives, in
order: 4x4 conv1 (0), then per resolution conv0 and conv1; each toRGB shares its input with the next block's conv0.
"""

import math

import torch
from torch import nn

from fastinv.errors import UsageError
from fastinv.models import entries
from fastinv.models.layers import (
    ARCHITECTURES,
    Conv2d,
    FullyConnected,
    activation_gain,
    block_resolutions,
    channel_table,
    mapping_layers,
    normalize_second_moment,
    truncated,
)
from fastinv.ops import bias_act, modulated_conv2d, setup_filter, styled_conv, upsample2d

NOISE_MODES = ("const", "random", "none")


class MappingNetwork(nn.Module):
    """z [N, z_dim] (and a label c [N, c_dim]) -> w repeated to [N, num_ws, w_dim]."""

    def __init__(self, z_dim, c_dim, w_dim, num_ws, num_layers=8, lr_multiplier=0.01):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers = num_layers
        if c_dim:
            self.embed = FullyConnected(c_dim, w_dim)
        in_features = z_dim + (w_dim if c_dim else 0)
        for name, layer in mapping_layers(in_features, w_dim, num_layers, lr_multiplier).items():
            setattr(self, name, layer)
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
            c: [N, c_dim] labels (one-hot or continuous), only for a conditional generator.
            truncation_psi: 1 leaves w alone, 0 gives the mean latent: ``w_avg + psi (w - w_avg)``.
            truncation_cutoff: truncate only the first so many style inputs; None truncates all.

        Returns:
            w_plus [N, num_ws, w_dim], one w repeated.

        Raises:
            UsageError: wrong shape of z or c, or c missing or superfluous.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise UsageError(f"z must have shape [N, {self.z_dim}], not {list(z.shape)}")
        x = normalize_second_moment(z.to(self.w_avg.dtype))
        if self.c_dim:
            if c is None or c.shape != (len(z), self.c_dim):
                found = "none was given" if c is None else f"not {list(c.shape)}"
                raise UsageError(f"this generator is conditional: c must have shape [{len(z)}, {self.c_dim}], {found}")
            x = torch.cat([x, normalize_second_moment(self.embed(c.to(x.dtype)))], dim=1)
        elif c is not None and c.shape[-1] != 0:
            raise UsageError("this generator is not conditional: leave c out")
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        w_plus = x.unsqueeze(1).expand(-1, self.num_ws, -1)
        return truncated(w_plus, self.w_avg, truncation_psi, truncation_cutoff)


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU; conv0 of a block doubles the resolution."""

    def __init__(
        self, in_channels, out_channels, w_dim, resolution, up=1, resample_filter=(1, 3, 3, 1), conv_clamp=None
    ):
        super().__init__()
        self.resolution, self.up, self.conv_clamp = resolution, up, conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        self.register_buffer("weight_sumsq", None, persistent=False)  # set by PreparedGenerator: the layer is frozen

    def noise_map(self, noise, batch: int) -> torch.Tensor | None:
        """The unscaled map [R, R] or [N, 1, R, R] for a noise mode or a given map; None for no noise."""
        if isinstance(noise, torch.Tensor):
            return noise
        if noise == "random":
            shape = (batch, 1, self.resolution, self.resolution)
            return torch.randn(shape, dtype=self.noise_const.dtype, device=self.noise_const.device)
        return self.noise_const if noise == "const" else None

    def forward(
        self, x: torch.Tensor, styles: torch.Tensor, noise="const", gain: float = 1.0, once: bool = False
    ) -> torch.Tensor:
        noise = self.noise_map(noise, len(x))
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        gain = activation_gain("lrelu") * gain
        resample_filter = self.resample_filter.float()
        if once or self.weight_sumsq is not None:
            return styled_conv(
                x, self.weight, styles, self.bias, noise, self.noise_strength, up=self.up,
                resample_filter=resample_filter, gain=gain, clamp=clamp, weight_sumsq=self.weight_sumsq,
            )  # fmt: skip
        if noise is not None:
            noise = (noise * self.noise_strength).to(x.dtype)
            noise = noise if noise.ndim == 4 else noise[None, None]
        x = modulated_conv2d(
            x, self.weight, styles, noise=noise, up=self.up, padding=1, resample_filter=resample_filter,
            flip_weight=self.up == 1, fused_modconv=False,
        )  # fmt: skip
        return bias_act(x, self.bias.to(x.dtype), act="lrelu", gain=gain, clamp=clamp)


class ToRGBLayer(nn.Module):
    """Modulated 1x1 convolution to RGB without demodulation."""

    def __init__(self, in_channels, out_channels, w_dim, conv_clamp=None):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
        x = modulated_conv2d(x, self.weight, styles * self.weight_gain, demodulate=False, fused_modconv=False)
        return bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    """Everything at one resolution: (constant or conv0), conv1, and toRGB where the architecture has one."""

    def __init__(self, in_channels, out_channels, w_dim, resolution, architecture, last, resample_filter, conv_clamp):
        super().__init__()
        self.architecture, self.first = architecture, in_channels == 0
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        options = {"resample_filter": resample_filter, "conv_clamp": conv_clamp}
        if self.first:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2, **options)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, **options)
        self.has_torgb = last or architecture == "skip"
        if self.has_torgb:
            self.torgb = ToRGBLayer(out_channels, 3, w_dim, conv_clamp=conv_clamp)
        if architecture == "resnet" and not self.first:
            self.skip = Conv2d(in_channels, out_channels, 1, bias=False, up=2, resample_filter=resample_filter)

    def forward(self, x, image, styles: dict, noise: dict, name: str, dtype, once: bool = False):
        """One block. styles and noise map layer names to style channels [N, C], and to a noise mode or map."""
        if self.first:
            n = len(styles[f"{name}.conv1"])
            x = self.const.to(dtype).expand(n, -1, -1, -1).contiguous(memory_format=torch.channels_last)
            x = self.conv1(x, styles[f"{name}.conv1"], noise[f"{name}.conv1"], once=once)
        else:
            residual = self.skip(x, gain=math.sqrt(0.5)) if self.architecture == "resnet" else None
            x = self.conv0(x, styles[f"{name}.conv0"], noise[f"{name}.conv0"], once=once)
            gain = 1.0 if residual is None else math.sqrt(0.5)
            x = self.conv1(x, styles[f"{name}.conv1"], noise[f"{name}.conv1"], gain, once)
            x = x if residual is None else residual + x
        if image is not None:
            image = upsample2d(image, self.resample_filter.float())
        if self.has_torgb:
            rgb = self.torgb(x, styles[f"{name}.torgb"])
            # The picture is summed in float32 at least: eight small bfloat16 roundings would show.
            rgb = rgb.to(torch.promote_types(torch.float32, rgb.dtype))
            image = rgb if image is None else image + rgb
        return x, image


class SynthesisNetwork(nn.Module):
    """w_plus [N, num_ws, w_dim], or style channels [N, S], -> image [N, 3, R, R]."""

    def __init__(self, w_dim, resolution, channels, architecture, resample_filter, conv_clamp):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UsageError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        self.w_dim, self.resolution = w_dim, resolution
        self.resolutions = block_resolutions(resolution)
        self.num_ws = 2 * len(self.resolutions)
        self.architecture = architecture
        in_channels = 0
        for r in self.resolutions:
            last = r == resolution
            block = SynthesisBlock(in_channels, channels[r], w_dim, r, architecture, last, resample_filter, conv_clamp)
            setattr(self, f"b{r}", block)
            in_channels = channels[r]

    def noise_layers(self) -> dict[str, int]:
        """Names of the layers that take a noise map, with their resolution: {"b4.conv1": 4, "b8.conv0": 8, ...}."""
        names = {"b4.conv1": 4}
        for r in self.resolutions[1:]:
            names |= {f"b{r}.conv0": r, f"b{r}.conv1": r}
        return names

    def check(self, w_plus: torch.Tensor) -> None:
        """Refuse latents of another shape than [N, num_ws, w_dim]."""
        if w_plus.ndim != 3 or w_plus.shape[1:] != (self.num_ws, self.w_dim):
            raise UsageError(f"w_plus must have shape [N, {self.num_ws}, {self.w_dim}], not {list(w_plus.shape)}")

    def noise_per_layer(self, noise, batch: int) -> dict:
        """Check ``noise`` and spread it over the layers: layer name -> mode or map."""
        layers = self.noise_layers()
        if isinstance(noise, str):
            if noise not in NOISE_MODES:
                raise UsageError(f"noise must be one of {', '.join(NOISE_MODES)} or a dict of maps, not {noise!r}")
            return dict.fromkeys(layers, noise)
        if not isinstance(noise, dict):
            raise UsageError(f"noise must be a mode or a dict of maps, not {type(noise).__name__}")
        unknown = sorted(set(noise) - set(layers))
        if unknown:
            raise UsageError(f"no layer takes the noise map {unknown[0]!r}; the layers are {', '.join(layers)}")
        for name, given in noise.items():
            r = layers[name]
            if given.shape not in ((r, r), (1, 1, r, r), (batch, 1, r, r)):
                raise UsageError(
                    f"noise map {name!r} must have shape [{r}, {r}] or [{batch}, 1, {r}, {r}], not {list(given.shape)}"
                )
        return {name: noise.get(name, "const") for name in layers}

    def layer_styles(self, code: torch.Tensor, blocks: list[int]) -> dict[str, torch.Tensor]:
        """Name of each layer of these blocks -> its style channels [N, C], of a code [N, num_ws, w_dim] or [N, S]."""
        code = code.to(self.b4.const.dtype)
        places = entries.style_layers(self) if code.ndim == 2 else entries.style_inputs(self)
        parts = {name: code[:, place] for name, place in places.items() if entries.block_of(name) in blocks}
        if code.ndim == 2:
            return parts
        return {name: self.get_submodule(name).affine(w) for name, w in parts.items()}

    def styles(self, w_plus: torch.Tensor) -> torch.Tensor:
        """See ``Generator.styles``."""
        self.check(w_plus)
        return torch.cat([*self.layer_styles(w_plus, self.resolutions).values()], 1)

    def affines(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [S, w_dim] and bias [S] of all affine layers, gains included, one below the other."""
        layers = [self.get_submodule(name).affine for name in entries.style_inputs(self)]
        weight = torch.cat([layer.weight.detach() * layer.weight_gain for layer in layers])
        return weight, torch.cat([layer.bias.detach() * layer.bias_gain for layer in layers])

    def forward(
        self,
        code: torch.Tensor,
        noise="const",
        resolution: int | None = None,
        dtype: torch.dtype | None = None,
        once: bool = False,
        features: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Synthesise pictures.

        Args:
            code: w_plus [N, num_ws, w_dim], one style vector per layer; or style channels [N, S], see
                ``Generator.styles``.
            noise: "const" (the stored maps), "random", "none", or a dict from a layer name such as "b8.conv0" to a map
                [R, R] or [N, 1, R, R]; layers that are not in the dict use their stored map. Maps are multiplied by
                the layer's learned strength.
            resolution: stop at this block (skip architecture only) and return its smaller picture; progressive
                training uses it.
            dtype: arithmetic of the feature maps, for mixed precision; None takes the generator's own.
            once: only first derivatives will be asked for; each layer is then one op (`styled_conv`), which is faster.
            features: (x [N, C, r, r], picture [N, 3, r, r]) of ``Generator.features``: only the blocks above r run, and
                only their part of the code and their noise maps matter (skip architecture only).

        Returns:
            [N, 3, R, R], RGB, nominally in [-1, 1] (values may go beyond), float32 at least.

        Raises:
            UsageError: a shape or resolution that does not fit, or an unknown noise mode or layer.
        """
        return self._run(code, noise, resolution, dtype, once, features)[1]

    def features(
        self, code: torch.Tensor, resolution: int, noise="const", dtype: torch.dtype | None = None, features=None
    ):
        """See ``Generator.features``."""
        entries.check_resolution(self, resolution)
        return self._run(code, noise, resolution, dtype, features=features)

    def _run(self, code, noise, resolution, dtype, once=False, features=None):
        """The feature maps and the picture after the last block that runs."""
        blocks = entries.blocks_to_run(self, code, resolution, features)
        noise = self.noise_per_layer(noise, len(code))
        styles = self.layer_styles(code, blocks)
        dtype = dtype or self.b4.const.dtype
        left = entries.unused(blocks, code, noise, features)
        x, image = (None, None) if features is None else features
        if features is not None:
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            image = image.to(torch.promote_types(torch.float32, dtype))
        for r in blocks:
            x, image = getattr(self, f"b{r}")(x, image, styles, noise, f"b{r}", dtype, once)
        return entries.with_zero_gradients(x, left), entries.with_zero_gradients(image, left)


class Generator(nn.Module):
    """StyleGAN2 generator: ``mapping`` takes z to w_plus, ``synthesis`` takes w_plus, or style channels, to pictures.

    Args:
        resolution: power of two, at least 8.
        z_dim, w_dim: widths of the latent spaces.
        c_dim: width of the label; 0 for an unconditional generator.
        channels: feature maps per block resolution, ``{4: 256, 8: 256, ...}``; None takes
            ``min(channel_base / r, channel_max)``, the papers' rule.
        mapping_layers, mapping_lr_multiplier: depth and learning-rate multiplier of the mapping network.
        architecture: "skip" (StyleGAN2's), "resnet" or "orig".
        resample_filter: taps of the separable low-pass filter.
        conv_clamp: clamp of every convolution's output, for half-precision generators; None for none.
    """

    def __init__(
        self,
        resolution: int,
        z_dim: int = 512,
        w_dim: int = 512,
        c_dim: int = 0,
        channels: dict[int, int] | None = None,
        channel_base: int = 32768,
        channel_max: int = 512,
        mapping_layers: int = 8,
        mapping_lr_multiplier: float = 0.01,
        architecture: str = "skip",
        resample_filter: tuple[float, ...] = (1, 3, 3, 1),
        conv_clamp: float | None = None,
    ):
        super().__init__()
        self.resolution, self.z_dim, self.w_dim, self.c_dim = resolution, z_dim, w_dim, c_dim
        table = channel_table(resolution, channels, channel_base, channel_max)
        self.config = {
            "resolution": resolution, "z_dim": z_dim, "w_dim": w_dim, "c_dim": c_dim, "channels": table,
            "mapping_layers": mapping_layers, "mapping_lr_multiplier": mapping_lr_multiplier,
            "architecture": architecture, "resample_filter": list(resample_filter), "conv_clamp": conv_clamp,
        }  # fmt: skip
        self.synthesis = SynthesisNetwork(w_dim, resolution, table, architecture, resample_filter, conv_clamp)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, mapping_layers, mapping_lr_multiplier)

    @property
    def w_avg(self) -> torch.Tensor:
        """Mean of the mapped latents [w_dim], as tracked in training."""
        return self.mapping.w_avg

    def forward(self, z, c=None, truncation_psi=1.0, truncation_cutoff=None, noise="const") -> torch.Tensor:
        """z [N, z_dim] -> pictures [N, 3, R, R]; see ``mapping`` and ``synthesis``."""
        return self.synthesis(self.mapping(z, c, truncation_psi, truncation_cutoff), noise=noise)

    def styles(self, w_plus: torch.Tensor) -> torch.Tensor:
        """Style channels [N, S] of w_plus [N, num_ws, w_dim]: space S (StyleSpace, Wu et al. 2021, arXiv 2011.12799).

        The outputs of all affine layers, in the order of ``style_layers``; 9088 for config-f at 1024x1024.
        ``synthesis`` takes them in the place of w_plus.
        """
        return self.synthesis.styles(w_plus)

    def style_layers(self) -> dict[str, slice]:
        """Which of all style channels are whose: {"b4.conv1": slice(0, 512), "b4.torgb": ..., "b8.conv0": ..., ...}."""
        return entries.style_layers(self.synthesis)

    def w_plus_of_styles(self, styles: torch.Tensor) -> torch.Tensor:
        """The w_plus [N, num_ws, w_dim] whose style channels are nearest to ``styles`` [N, S]; without gradients.

        Least squares for each style input, in float64. Styles of a w_plus come back as they were, and so does the
        w_plus, but for inputs that have fewer channels than w_dim: of all that fit these get the nearest to w_avg.
        """
        return entries.w_plus_of_styles(self.synthesis, styles, *self.synthesis.affines(), self.w_avg)

    def features(
        self, w_plus: torch.Tensor, resolution: int, noise="const",
        features: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The state of the synthesis after a block: space F of F+W+ (Barbershop, Zhu et al. 2021, arXiv 2106.01505).

        Args:
            w_plus: [N, num_ws, w_dim], or style channels [N, S]; noise: as for ``synthesis``.
            resolution: r, of a block; the generator must be of the skip architecture.
            features: the state after an earlier block, to go on from; None begins with the constant.

        Returns:
            x [N, C, r, r], the feature maps before the styles of the next layer, and picture [N, 3, r, r], summed up to
            here. ``synthesis(w_plus, features=(x, picture))`` goes on from there.
        """
        return self.synthesis.features(w_plus, resolution, noise, features=features)

    def prepare(self, dtype: torch.dtype | None = None, forms: dict | None = None):
        """Frozen, fast synthesis for inversion; see ``fastinv.models.prepared.PreparedGenerator``."""
        from fastinv.models.prepared import PreparedGenerator

        return PreparedGenerator(self, dtype, forms)
