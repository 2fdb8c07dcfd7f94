"""pSp (Richardson et al. 2021, arXiv 2008.00951), e4e (Tov et al. 2021, arXiv 2102.02766) and pSp's two baselines."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastinv.errors import UsageError
from fastinv.models.encoders.bodies import BodyEncoder
from fastinv.models.layers import FullyConnected

# Which level of the feature pyramid a style reads: 0-2 the coarsest, 3-6 the middle one, the others the finest.
COARSE, MIDDLE = 3, 7


class StyleHead(nn.Module):
    """ "map2style": x [N, in, S, S] -> [N, out], by log2 S halvings to ``hidden`` feature maps and one linear layer."""

    def __init__(self, in_channels: int, out_channels: int, halvings: int, hidden: int):
        super().__init__()
        layers = []
        for index in range(halvings):
            layers += [nn.Conv2d(in_channels if index == 0 else hidden, hidden, 3, 2, 1), nn.LeakyReLU()]
        self.convs = nn.Sequential(*layers)
        self.linear = FullyConnected(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convs(x).flatten(1))


class GradualStyleEncoder(BodyEncoder):
    """pSp: a head per style, on the levels of a feature pyramid over the body's last three stages.

    Args:
        num_ws, w_dim, input_nc, input_resolution, body, units, channels, rows: see `BodyEncoder`.
        pyramid: False has all heads on the last stage (ReStyle).
        head_channels: feature maps in the heads; None is w_dim, as in the paper. At full size most weights are there.
    """

    def __init__(self, *args, pyramid: bool = True, head_channels: int | None = None, **options):
        super().__init__(*args, **options)
        self.config["pyramid"] = self.pyramid = pyramid
        if head_channels is not None and (not isinstance(head_channels, int) or head_channels < 1):
            raise UsageError(f"head_channels must be a positive integer or None, not {head_channels!r}")
        self.config["head_channels"] = head_channels
        halvings, width = self.final_size.bit_length() - 1, self.channels[-1]
        if halvings < 1:
            raise UsageError(f"the body's last map is {self.final_size} wide; heads need 2 at least")
        if pyramid:
            if len(self.channels) < 3:
                raise UsageError(f"a feature pyramid needs three stages, not {len(self.channels)}")
            self.latlayer1 = nn.Conv2d(self.channels[-2], width, 1)
            self.latlayer2 = nn.Conv2d(self.channels[-3], width, 1)
        self.styles = nn.ModuleList(
            StyleHead(width, self.w_dim, halvings + self.level(index), head_channels or self.w_dim)
            for index in range(self.num_ws)
        )

    def level(self, style: int) -> int:
        """Level of the pyramid that a style reads: 0 is the last stage, 1 and 2 are twice and four times as wide."""
        return int(style >= COARSE) + int(style >= MIDDLE) if self.pyramid else 0

    def features(self, x: Tensor) -> list[Tensor]:
        """The levels, coarsest first, [N, channels[-1], H, W] each."""
        *_, last = maps = self.feature_maps(x)
        if not self.pyramid:
            return [last]
        middle = _enlarge(last, maps[-2]) + self.latlayer1(maps[-2])
        fine = _enlarge(middle, maps[-3]) + self.latlayer2(maps[-3])
        return [last, middle, fine]

    def forward(self, x: Tensor) -> Tensor:
        levels = self.features(x)
        return torch.stack([head(levels[self.level(index)]) for index, head in enumerate(self.styles)], dim=1)


class Encoder4Editing(GradualStyleEncoder):
    """e4e: pSp's network, but head 0 gives one style for all layers and the other heads give offsets from it.

    Arguments as for `GradualStyleEncoder`. ``forward`` and ``encode`` take a ``stage``: only styles 1 .. stage get
    their offset. Training raises it step by step, from a code in W at 0; None is all, num_ws - 1.
    """

    def forward(self, x: Tensor, stage: int | None = None) -> Tensor:
        last = self.num_ws - 1
        stage = last if stage is None else stage
        if not isinstance(stage, int) or not 0 <= stage <= last:
            raise UsageError(f"stage must be an integer from 0 to {last} or None, not {stage!r}")
        levels = self.features(x)
        first = self.styles[0](levels[0])
        offset = [first + self.styles[index](levels[self.level(index)]) for index in range(1, stage + 1)]
        return torch.stack([first, *offset, *[first] * (last - stage)], dim=1)

    def encode(self, images: Tensor, stage: int | None = None) -> Tensor:
        """Latent codes of pictures; see `Encoder.encode`, and the class for ``stage``."""
        return self(self.fit(images), stage) + self.latent_avg


# The two baselines below, in particular names and layers of the second, are from memory and have not met a public file.


class WEncoder(BodyEncoder):
    """pSp's baseline in W: the mean of the last map, a linear layer, and the result for every layer.

    Publicly ``BackboneEncoderUsingLastLayerIntoW``; HyperStyle calls it ``WEncoder``.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.linear = FullyConnected(self.channels[-1], self.w_dim)

    def forward(self, x: Tensor) -> Tensor:
        w = self.linear(self.feature_maps(x)[-1].mean((2, 3)))
        return w.unsqueeze(1).expand(-1, self.num_ws, -1)


class WPlusEncoder(BodyEncoder):
    """pSp's naive baseline in W+: the last map as one vector, from which a linear layer gives all styles at once.

    Publicly ``BackboneEncoderUsingLastLayerIntoWPlus``.
    """

    pooled = 7

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        width = self.channels[-1]
        self.output_layer_2 = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.AdaptiveAvgPool2d(self.pooled),
            nn.Flatten(),
            nn.Linear(width * self.pooled**2, self.w_dim),
        )
        self.linear = FullyConnected(self.w_dim, self.w_dim * self.num_ws)

    def forward(self, x: Tensor) -> Tensor:
        x = self.output_layer_2(self.feature_maps(x)[-1])
        return self.linear(x).unflatten(1, (self.num_ws, self.w_dim))


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
