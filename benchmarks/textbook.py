"""StyleGAN2's synthesis and LPIPS in plain torch, the yardsticks of the benchmarks.

`Textbook` is what public code bases do, written from the paper: weights modulated and demodulated per sample, a grouped
convolution, the 2-D FIR filter as a depthwise convolution, noise, bias and activation as operations of their own, NCHW.
`Plain` is the best algebra without a kernel: styles scale activations, frozen weights, separable FIR, channels_last.
"""

import math

import torch
import torch.nn.functional as F

from fastinv.losses.lpips import SCALE, SHIFT
from fastinv.models.stylegan2 import Generator


def _layers(G: Generator):
    """(conv layers of the block, its toRGB), from 4x4 on."""
    for resolution in G.synthesis.resolutions:
        block = getattr(G.synthesis, f"b{resolution}")
        yield ([block.conv1] if block.first else [block.conv0, block.conv1]), block.torgb


def _zeros_between(image: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, 2 H, 2 W], each pixel followed by zeros."""
    n, channels, height, width = image.shape
    spread = image.new_zeros(n, channels, height, 2, width, 2)
    spread[:, :, :, 0, :, 0] = image
    return spread.reshape(n, channels, 2 * height, 2 * width)


class _Synthesis:
    """Common to both: the order of the layers. G is frozen, in the dtype of its parameters."""

    def __init__(self, G: Generator, dtype: torch.dtype):
        self.G, self.dtype = G, dtype
        self.blocks = list(_layers(G))

    def synthesis(self, w_plus: torch.Tensor) -> torch.Tensor:
        """w_plus [N, num_ws, w_dim] -> [N, 3, R, R] with the stored noise."""
        x = self.start(len(w_plus))
        image, index = None, 0
        for layers, torgb in self.blocks:
            for layer in layers:
                x = self.layer(x, layer, layer.affine(w_plus[:, index]))
                index += 1
            rgb = self.torgb(x, torgb, torgb.affine(w_plus[:, index]) * torgb.weight_gain).float()
            image = rgb if image is None else self.upsample(image) + rgb
        return image

    def start(self, n: int) -> torch.Tensor:
        return self.G.synthesis.b4.const.to(self.dtype).expand(n, -1, -1, -1)


class Textbook(_Synthesis):
    def modulated(self, x, weight, styles, demodulate, up, padding):
        n, inputs, height, width = x.shape
        w = weight * styles[:, None, :, None, None]
        if demodulate:
            w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        w, x = w.to(x.dtype), x.reshape(1, n * inputs, height, width)
        if up:
            w = w.transpose(1, 2).reshape(n * inputs, len(weight), *weight.shape[2:])
            x = F.conv_transpose2d(x, w, stride=2, groups=n)
        else:
            x = F.conv2d(x, w.flatten(0, 1), padding=padding, groups=n)
        return x.reshape(n, len(weight), *x.shape[2:])

    def fir(self, x, layer, padding):
        f = (4 * layer.resample_filter.flip(0, 1)).to(x.dtype)
        return F.conv2d(F.pad(x, padding), f.expand(x.shape[1], 1, 4, 4), groups=x.shape[1])

    def layer(self, x, layer, styles):
        x = self.modulated(x, layer.weight, styles, True, layer.up == 2, 1)
        if layer.up == 2:
            x = self.fir(x, layer, (1, 1, 1, 1))
        x = x + (layer.noise_const * layer.noise_strength).to(x.dtype)
        x = F.leaky_relu(x + layer.bias.to(x.dtype)[:, None, None], 0.2) * math.sqrt(2)
        return x if layer.conv_clamp is None else x.clamp(-layer.conv_clamp, layer.conv_clamp)

    def torgb(self, x, torgb, styles):
        return self.modulated(x, torgb.weight, styles, False, False, 0) + torgb.bias.to(x.dtype)[:, None, None]

    def upsample(self, image):
        return self.fir(_zeros_between(image), self.blocks[1][0][0], (2, 1, 2, 1))


class Plain(_Synthesis):
    """With ``sums`` the filter is a sum of shifted pictures, which a compiler can fuse, instead of a convolution."""

    def __init__(self, G: Generator, dtype: torch.dtype, sums: bool = False):
        super().__init__(G, dtype)
        self.sums = sums
        f = G.synthesis.b8.conv0.resample_filter
        self.taps = 2 * f.sum(1).flip(0) / f.sum().sqrt()
        self.prepared = {}
        for layers, torgb in self.blocks:
            for layer in [*layers, torgb]:
                w = layer.weight.transpose(0, 1) if getattr(layer, "up", 1) == 2 else layer.weight
                w = w.to(dtype).contiguous(memory_format=torch.channels_last)
                self.prepared[layer] = w, layer.weight.square().sum((2, 3))

    def start(self, n: int) -> torch.Tensor:
        return super().start(n).contiguous(memory_format=torch.channels_last)

    def fir(self, x, padding):
        taps = self.taps.to(x.dtype)
        if self.sums:
            x = F.pad(x, padding)
            x = sum(taps[i] * x[:, :, i : x.shape[2] - 3 + i] for i in range(4))
            return sum(taps[i] * x[:, :, :, i : x.shape[3] - 3 + i] for i in range(4))
        kernel = taps.view(1, 1, -1, 1).expand(x.shape[1], 1, -1, 1)
        x = F.conv2d(F.pad(x, padding), kernel, groups=x.shape[1])
        return F.conv2d(x, kernel.transpose(2, 3), groups=x.shape[1])

    def layer(self, x, layer, styles):
        w, sumsq = self.prepared[layer]
        # In float16 the styles are brought below 1, which the demodulation cancels.
        d = (styles.square() @ sumsq.t() + 1e-8).rsqrt()
        if self.dtype == torch.float16:
            largest = styles.detach().abs().amax(1, keepdim=True)
            styles, d = styles / largest, d * largest
        x = x * styles.to(x.dtype)[:, :, None, None]
        if layer.up == 2:
            x = self.fir(F.conv_transpose2d(x, w, stride=2), (1, 1, 1, 1))
        else:
            x = F.conv2d(x, w, padding=1)
        added = layer.noise_const * layer.noise_strength + layer.bias[:, None, None]
        x = torch.addcmul(added.to(x.dtype), x, d.to(x.dtype)[:, :, None, None])
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
        return x if layer.conv_clamp is None else x.clamp(-layer.conv_clamp, layer.conv_clamp)

    def torgb(self, x, torgb, styles):
        w, _ = self.prepared[torgb]
        return F.conv2d(x * styles.to(x.dtype)[:, :, None, None], w) + torgb.bias.to(x.dtype)[:, None, None]

    def upsample(self, image):
        return self.fir(_zeros_between(image), (2, 1, 2, 1))


class PlainLPIPS:
    """LPIPS of `fastinv.losses.lpips` in plain torch; the target's features are computed once."""

    def __init__(self, target: torch.Tensor, network, dtype: torch.dtype, channels_last: bool):
        format = torch.channels_last if channels_last else torch.contiguous_format
        device = target.device
        self.dtype, self.format = dtype, format
        self.shift = torch.tensor(SHIFT, device=device)[:, None, None]
        self.scale = torch.tensor(SCALE, device=device)[:, None, None]
        self.heads = [head.to(device)[:, None, None] for head in network.heads]
        self.stages = [
            [
                (layer.weight.detach().to(device, dtype, memory_format=format), layer.bias.detach().to(device, dtype))
                for layer in stage
            ]
            for stage in network.convolutions
        ]
        with torch.no_grad():
            self.target = self.features(target)

    def features(self, x):
        if x.shape[-1] > 256:
            x = F.avg_pool2d(x, x.shape[-1] // 256)
        x = ((x - self.shift) / self.scale).to(self.dtype).contiguous(memory_format=self.format)
        found = []
        for index, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if index else x
            for weight, bias in stage:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            h = x.float()
            found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def __call__(self, x):
        pairs = zip(self.features(x), self.target, self.heads)
        return sum(((h - t).square() * head).sum(1).mean((1, 2)) for h, t, head in pairs)
