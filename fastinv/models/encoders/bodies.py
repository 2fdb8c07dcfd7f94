"""The residual networks that pSp, e4e and ReStyle read pictures with: IR-SE and ResNet, 50 and 34 layers by default.

IR-SE is the face recognition network of ArcFace (Deng et al. 2019, arXiv 1801.07698) with squeeze and excitation (Hu et
al. 2018, arXiv 1709.01507); ResNet is that of He et al. 2016 (arXiv 1512.03385) without its pooling.
"""

import itertools

from torch import Tensor, nn

from fastinv.errors import UsageError
from fastinv.models.encoders.base import Encoder

UNITS = {"ir_se": (3, 4, 14, 3), "resnet": (3, 4, 6, 3)}  # residual units per stage
CHANNELS = (64, 128, 256, 512)  # feature maps per stage
SE_REDUCTION = 16


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)


class SqueezeExcitation(nn.Module):
    """Scale every feature map by a factor that is computed from the means of all."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // SE_REDUCTION)
        self.fc1 = _conv(channels, hidden, 1)
        self.fc2 = _conv(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IRSEUnit(nn.Module):
    """x [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            _conv(in_channels, out_channels, 3),
            nn.PReLU(out_channels),
            _conv(out_channels, out_channels, 3, stride),
            nn.BatchNorm2d(out_channels),
            SqueezeExcitation(out_channels),
        )
        self.shortcut_layer = None
        if in_channels != out_channels:
            self.shortcut_layer = nn.Sequential(
                _conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut_layer is None:  # a max-pool of kernel 1
            shortcut = x[:, :, :: self.stride, :: self.stride]
        else:
            shortcut = self.shortcut_layer(x)
        return shortcut + self.res_layer(x)


class ResNetUnit(nn.Module):
    """The basic block of ResNet: x [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, out_channels, 3, stride), nn.BatchNorm2d(out_channels)
        self.conv2, self.bn2 = _conv(out_channels, out_channels, 3), nn.BatchNorm2d(out_channels)
        self.downsample = None
        if in_channels != out_channels or stride > 1:
            self.downsample = nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(x)) + shortcut).relu()


class BodyEncoder(Encoder):
    """An encoder with a residual body; every stage halves the size, so the last map is R / 2^stages wide.

    Args:
        num_ws, w_dim, input_nc, input_resolution: see `fastinv.models.encoders.base.Encoder`.
        body: "ir_se" (stem of 3x3 convolution, BN, PReLU) or "resnet" (7x7 with stride 2, BN, PReLU; stage 0 keeps its
            size). State-dict names: ``input_layer``, ``body.{unit}``; or ``conv1``, ``bn1``, ``relu``, ``body.{unit}``.
        units: residual units per stage; None is that of 50 and 34 layers, (3, 4, 14, 3) and (3, 4, 6, 3).
        channels: feature maps per stage; the stem has those of stage 0.
        rows: (first, end) rows of the resized picture that the network looks at; None is all. Encoders of cars, whose
            pictures are 4:3 with black bars to make them square, leave the bars out.

    Attribute ``final_size``: width of the last map.
    """

    def __init__(
        self, num_ws=18, w_dim=512, input_nc=3, input_resolution=256, body="ir_se", units=None, channels=CHANNELS,
        rows=None,
    ):  # fmt: skip
        super().__init__(num_ws, w_dim, input_nc, input_resolution)
        if rows is not None:
            self.rows = tuple(rows)
            if len(self.rows) != 2 or not 0 <= self.rows[0] < self.rows[1] <= input_resolution:
                raise UsageError(f"rows must be (first, end) within 0 to {input_resolution}, not {self.rows}")
        if body not in UNITS:
            raise UsageError(f"body must be one of {', '.join(UNITS)}, not {body!r}")
        self.units, self.channels = tuple(units or UNITS[body]), tuple(channels)
        if len(self.units) != len(self.channels) or min(self.units + self.channels) < 1:
            raise UsageError(
                f"units and channels must be positive, one each per stage, not {self.units} and {self.channels}"
            )
        self.final_size = input_resolution >> len(self.units)
        if self.final_size < 1:
            raise UsageError(f"{len(self.units)} stages are too many for an input_resolution of {input_resolution}")
        self.config |= {"body": body, "units": list(self.units), "channels": list(self.channels)}
        self.config["rows"] = self.rows and list(self.rows)
        stem = self.channels[0]
        if body == "ir_se":
            unit, first_stride = IRSEUnit, 2
            self.input_layer = nn.Sequential(_conv(input_nc, stem, 3), nn.BatchNorm2d(stem), nn.PReLU(stem))
        else:
            unit, first_stride = ResNetUnit, 1
            self.conv1, self.bn1, self.relu = _conv(input_nc, stem, 7, 2), nn.BatchNorm2d(stem), nn.PReLU(stem)
        sequence, width = [], stem
        for stage, (count, out) in enumerate(zip(self.units, self.channels, strict=True)):
            strides = [first_stride if stage == 0 else 2] + [1] * (count - 1)
            for stride in strides:
                sequence.append(unit(width, out, stride))
                width = out
        self.body = nn.Sequential(*sequence)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Output of every stage, [N, channels[i], H / 2^(i+1), W / 2^(i+1)]."""
        x = self.input_layer(x) if hasattr(self, "input_layer") else self.relu(self.bn1(self.conv1(x)))
        maps, sequence = [], iter(self.body)
        for count in self.units:
            for unit in itertools.islice(sequence, count):
                x = unit(x)
            maps.append(x)
        return maps
