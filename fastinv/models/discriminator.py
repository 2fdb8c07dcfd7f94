"""StyleGAN2 discriminator (Karras et al. 2020, arXiv 1912.04958), with the naming of StyleGAN2-ADA."""

import math

import torch
from torch import nn

from fastinv.errors import UsageError
from fastinv.models.layers import (
    ARCHITECTURES,
    Conv2d,
    FullyConnected,
    block_resolutions,
    channel_table,
    mapping_layers,
    normalize_second_moment,
)
from fastinv.ops import downsample2d, setup_filter


class LabelMapping(nn.Module):
    """c [N, c_dim] -> [N, width]: what the score is projected on in a conditional discriminator."""

    def __init__(self, c_dim, width, num_layers):
        super().__init__()
        self.num_layers = num_layers
        self.embed = FullyConnected(c_dim, width)
        for name, layer in mapping_layers(width, width, num_layers, lr_multiplier=0.01).items():
            setattr(self, name, layer)

    def forward(self, c):
        x = normalize_second_moment(self.embed(c))
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions at one resolution; the second halves it."""

    def __init__(self, in_channels, out_channels, architecture, has_fromrgb, resample_filter, conv_clamp):
        super().__init__()
        self.architecture = architecture
        self.register_buffer("resample_filter", setup_filter(list(resample_filter)))
        options = {"resample_filter": resample_filter, "conv_clamp": conv_clamp}
        if has_fromrgb:
            self.fromrgb = Conv2d(3, in_channels, 1, activation="lrelu", **options)
        self.conv0 = Conv2d(in_channels, in_channels, 3, activation="lrelu", **options)
        self.conv1 = Conv2d(in_channels, out_channels, 3, activation="lrelu", down=2, **options)
        if architecture == "resnet":
            self.skip = Conv2d(in_channels, out_channels, 1, bias=False, down=2, resample_filter=resample_filter)

    def forward(self, x, image):
        if x is None or self.architecture == "skip":
            features = self.fromrgb(image)
            x = features if x is None else x + features
        if self.architecture == "skip":
            image = downsample2d(image, self.resample_filter.float())
        if self.architecture == "resnet":
            residual = self.skip(x, gain=math.sqrt(0.5))
            return residual + self.conv1(self.conv0(x), gain=math.sqrt(0.5)), image
        return self.conv1(self.conv0(x)), image


def minibatch_stddev(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """Append one channel with the mean standard deviation over groups of the batch (Karras et al. 2018)."""
    n, _, height, width = x.shape
    if n == 0:
        return torch.cat([x, x.new_zeros(0, 1, height, width)], dim=1)
    group = max(size for size in range(1, min(group_size, n) + 1) if n % size == 0)
    # Sample i is in the group of i modulo n/group: neighbours in the batch are in different groups.
    deviation = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    deviation = deviation.reshape(group, n // group, *x.shape[1:])
    deviation = (deviation.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return torch.cat([x, deviation.to(x.dtype).repeat(group).view(n, 1, 1, 1).expand(n, 1, height, width)], dim=1)


class DiscriminatorEpilogue(nn.Module):
    """4x4 features -> minibatch standard deviation, 3x3 convolution, two fully connected layers."""

    def __init__(self, channels, out_features, architecture, group_size, resample_filter, conv_clamp):
        super().__init__()
        self.architecture, self.group_size = architecture, group_size
        if architecture == "skip":
            self.fromrgb = Conv2d(3, channels, 1, activation="lrelu")
        self.conv = Conv2d(
            channels + 1, channels, 3, activation="lrelu", resample_filter=resample_filter, conv_clamp=conv_clamp
        )
        self.fc = FullyConnected(channels * 16, channels, activation="lrelu")
        self.out = FullyConnected(channels, out_features)

    def forward(self, x, image):
        if self.architecture == "skip":
            x = x + self.fromrgb(image)
        x = self.conv(minibatch_stddev(x, self.group_size))
        x = x.contiguous().to(self.fc.weight.dtype)
        return self.out(self.fc(x.flatten(1)))


class Discriminator(nn.Module):
    """StyleGAN2 discriminator: pictures [N, 3, R, R] in [-1, 1] -> realness logits [N, 1].

    Args:
        resolution, c_dim, channels, channel_base, channel_max, resample_filter, conv_clamp: as for ``Generator``.
        architecture: "resnet" (StyleGAN2's), "skip" or "orig".
        mapping_layers: depth of the label mapping of a conditional discriminator.
        group_size: pictures per group of the minibatch standard deviation.
        progressive: give every block a fromRGB layer, so that smaller pictures enter at their own block.
    """

    def __init__(
        self,
        resolution: int,
        c_dim: int = 0,
        channels: dict[int, int] | None = None,
        channel_base: int = 32768,
        channel_max: int = 512,
        architecture: str = "resnet",
        mapping_layers: int = 8,
        group_size: int = 4,
        resample_filter: tuple[float, ...] = (1, 3, 3, 1),
        conv_clamp: float | None = None,
        progressive: bool = False,
    ):
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UsageError(f"architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}")
        self.resolution, self.c_dim = resolution, c_dim
        self.resolutions = block_resolutions(resolution)
        table = channel_table(resolution, channels, channel_base, channel_max)
        self.config = {
            "resolution": resolution, "c_dim": c_dim, "channels": table, "architecture": architecture,
            "mapping_layers": mapping_layers, "group_size": group_size, "resample_filter": list(resample_filter),
            "conv_clamp": conv_clamp, "progressive": progressive,
        }  # fmt: skip
        for r in reversed(self.resolutions[1:]):
            has_fromrgb = r == resolution or architecture == "skip" or progressive
            block = DiscriminatorBlock(
                table[r], table[r // 2], architecture, has_fromrgb, resample_filter, conv_clamp
            )
            setattr(self, f"b{r}", block)
        width = table[4]
        self.b4 = DiscriminatorEpilogue(
            width, width if c_dim else 1, architecture, group_size, resample_filter, conv_clamp
        )
        if c_dim:
            self.mapping = LabelMapping(c_dim, width, mapping_layers)

    def forward(
        self, images: torch.Tensor, c: torch.Tensor | None = None, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Score pictures.

        Args:
            images: [N, 3, R, R] in [-1, 1]; smaller powers of two where the network was built progressive.
            c: [N, c_dim] labels of a conditional discriminator.
            dtype: arithmetic of the feature maps, for mixed precision; None takes the network's own.

        Returns:
            logits [N, 1], larger for more real.
        """
        size = images.shape[-1] if images.ndim == 4 else 0
        block = getattr(self, f"b{size}", None)
        if block is None or not hasattr(block, "fromrgb") or images.shape[1:] != (3, size, size):
            raise UsageError(
                f"images must have shape [N, 3, {self.resolution}, {self.resolution}], not {list(images.shape)}"
            )
        if self.c_dim and (c is None or c.shape != (len(images), self.c_dim)):
            found = "none was given" if c is None else f"not {list(c.shape)}"
            raise UsageError(
                f"this discriminator is conditional: c must have shape [{len(images)}, {self.c_dim}], {found}"
            )
        if not self.c_dim and c is not None and c.shape[-1] != 0:
            raise UsageError("this discriminator is not conditional: leave c out")
        master = self.b4.fc.weight.dtype
        images = images.to(dtype or master, memory_format=torch.channels_last)
        x = None
        for r in reversed([r for r in self.resolutions[1:] if r <= size]):
            x, images = getattr(self, f"b{r}")(x, images)
        x = self.b4(x, images)
        if self.c_dim:
            label = self.mapping(c.to(master))
            x = (x * label).sum(dim=1, keepdim=True) / math.sqrt(label.shape[1])
        return x
