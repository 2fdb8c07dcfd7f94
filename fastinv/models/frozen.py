"""StyleGAN2's synthesis network with frozen weights, as one autograd node: only codes and noise maps get gradients.

A code is w_plus, or the style channels in its place, and the features to begin with in the place of the constant.
All styles are one matrix product, all demodulation coefficients another; each layer is a convolution and one pass after
it, which leaves the next layer's input with its styles already multiplied in (formulas: `fastinv.ops.synthesis`).
Backward keeps one tensor a layer. The same Python runs on every device; the ops beneath differ.
"""

import copy
import itertools
import math
from dataclasses import dataclass, replace

import torch

from fastinv.errors import UsageError
from fastinv.models.convolution import FORMS, Form, FrozenConvolution
from fastinv.models.stylegan2 import SynthesisLayer, SynthesisNetwork, ToRGBLayer
from fastinv.ops import synthesis, upfirdn2d
from fastinv.ops.modulated_conv2d import EPSILON

SLOPE, GAIN = 0.2, math.sqrt(2)
# float16: a picture's gradient of one sign everywhere grows by up to 4 with each halving of the resolution, to about
# 4e5 at 4x4 in a network of 1024x1024 if it begins at 1. Begun here it stays far from 65504, and from underflow.
START = 2.0**-8


@dataclass
class FrozenLayer:
    """One synthesis layer: its convolution, and the small operands of the pass after it.

    ``row`` is the place of its styles among all rows, ``first_output`` that of its channels among all demodulation
    coefficients. The rgb_ fields are None in a layer that no toRGB follows.
    """

    name: str
    resolution: int
    convolution: FrozenConvolution
    row: int
    first_output: int
    bias: torch.Tensor
    noise_const: torch.Tensor
    strength: float
    clamp: float
    rgb_row: int = -1
    rgb_weight: torch.Tensor | None = None
    rgb_weight_backward: torch.Tensor | None = None  # times START for float16, which so scales all gradients
    rgb_bias: torch.Tensor | None = None
    rgb_clamp: float = -1.0

    @property
    def inputs(self) -> int:
        return self.convolution.source.shape[1]

    @property
    def outputs(self) -> int:
        return self.convolution.source.shape[0]

    @property
    def output_slice(self) -> slice:
        return slice(self.first_output, self.first_output + self.outputs)

    @property
    def rgb_slice(self) -> slice:
        """The styles of the toRGB that follows."""
        return slice(self.rgb_row, self.rgb_row + self.outputs)

    def rgb_operands(self, styles):
        """Weight, styles and bias of the toRGB that follows; three times None without one."""
        if self.rgb_weight is None:
            return None, None, None
        return self.rgb_weight, styles[:, self.rgb_slice], self.rgb_bias


def unsupported(network: SynthesisNetwork) -> str:
    """Why a network cannot be run by `FrozenSynthesis`; "" if it can."""
    if network.architecture != "skip":
        return f"its architecture is {network.architecture!r}, not 'skip'"
    filters = [m.resample_filter for m in network.modules() if isinstance(m, SynthesisLayer) and m.up > 1]
    if any(f.ndim != 2 or f.shape != (4, 4) or not torch.equal(f, filters[0]) for f in filters):
        return "its resampling filter is not one filter of four taps"
    return "" if _separable(filters[0]) is not None else "its resampling filter is not separable"


def _separable(f: torch.Tensor) -> list[float] | None:
    """Taps t with ``outer(t, t) = 4 f``, flipped: f with up-sampling's gain, as a correlation; None if f has none."""
    f = f.detach().double().cpu().flip(0, 1)
    taps = 2 * f.sum(1) / f.sum().abs().sqrt().clamp_min(1e-12)
    return taps.tolist() if torch.allclose(torch.outer(taps, taps), 4 * f, rtol=1e-6, atol=1e-8) else None


class FrozenSynthesis:
    """w_plus [N, num_ws, w_dim] or style channels [N, S] -> picture [N, 3, R, R], differentiable once in all inputs.

    Args:
        network: frozen synthesis network of the skip architecture, float32 or float64 (see `unsupported`).
        dtype: of the feature maps. Styles, sums and the picture are float32, or float64 for a float64 network.
        forms: layer name -> (forward, gradient) of the convolution, see `fastinv.models.convolution.Form`.

    float16: weights and styles are scaled by powers of two, which the demodulation cancels exactly, and the gradient of
    the picture by others, so that neither leaves the format's range.

    ``part`` makes one of some of the blocks, which shares all weights.
    """

    def __init__(self, network: SynthesisNetwork, dtype: torch.dtype, forms: dict | None = None):
        self.dtype, self.scaled = dtype, dtype == torch.float16
        self.compute = torch.promote_types(dtype, torch.float32)
        first = network.b4
        self.const = first.const.detach().to(dtype)[None].contiguous(memory_format=torch.channels_last)
        self.taps = _separable(network.b8.conv0.resample_filter)
        self.image_filter = torch.tensor(self.taps, dtype=torch.float32, device=self.const.device)
        self.layers: list[FrozenLayer] = []
        self._affines: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.rows = [0]  # of style input l: rows[l] to rows[l + 1]
        self.first_input = 0  # style input of the first layer, and row of its styles, among those of the whole network
        self.first_row = 0
        self._sumsq: list[torch.Tensor] = []
        self.epsilons: list[float] = []
        for r in network.resolutions:
            block = getattr(network, f"b{r}")
            for name in ["conv1"] if block.first else ["conv0", "conv1"]:
                self._add_layer(f"b{r}.{name}", getattr(block, name))
            self._add_torgb(block.torgb)
        self.rows.append(self._row)
        compute = {"dtype": self.compute, "device": self.const.device}
        self.affine_weight = torch.cat([weight for weight, _ in self._affines]).to(**compute).contiguous()
        self.affine_bias = torch.cat([bias for _, bias in self._affines]).to(**compute)
        self.weight_sumsq = torch.cat([sumsq.flatten() for sumsq in self._sumsq]).to(**compute)
        self.bias = torch.cat([layer.bias for layer in self.layers]).to(**compute)
        del self._affines, self._sumsq  # only for building: the concatenated tensors above are what is used
        self.style_gain = torch.ones(self.rows[-1], **compute)  # of toRGB; the affine layers above have it inside
        for layer in self.layers:
            if layer.rgb_weight is not None:
                self.style_gain[layer.rgb_slice] = network.get_submodule(f"b{layer.resolution}.torgb").weight_gain
        self._set_tables()
        unknown = sorted(set(forms or {}) - {layer.name for layer in self.layers})
        if unknown:
            names = ", ".join(layer.name for layer in self.layers)
            raise UsageError(f"forms: there is no layer {unknown[0]!r}; the layers are {names}")
        self.forms = forms or {}
        self._parts: dict[tuple[int, int], FrozenSynthesis] = {}

    def __getstate__(self):
        return vars(self) | {"_parts": {}}

    def _set_tables(self) -> None:
        """What the ops take as lists, one entry a layer."""
        self.conv_rows = [layer.row for layer in self.layers]
        self.inputs = [layer.inputs for layer in self.layers]
        self.outputs = [layer.outputs for layer in self.layers]
        # Whose styles the sums of a layer belong to; the last entry is what the first layer starts from.
        self.next_rows = [*self.conv_rows[1:], -1, self.conv_rows[0]]
        self.rgb_rows = [*[layer.rgb_row for layer in self.layers], -1]
        self.first_outputs = [*[layer.first_output for layer in self.layers], -1]

    def part(self, first: int, last: int) -> "FrozenSynthesis":
        """The blocks of the resolutions ``first`` to ``last`` alone; all of its tensors are views of this one's.

        Without the block at 4x4 it begins with features instead of the constant.
        """
        if (first, last) == (4, self.layers[-1].resolution):
            return self
        if (first, last) not in self._parts:
            self._parts[first, last] = self._part(first, last)
        return self._parts[first, last]

    @torch.inference_mode(False)
    def _part(self, first: int, last: int) -> "FrozenSynthesis":
        part = copy.copy(self)
        indices = [i for i, layer in enumerate(self.layers) if first <= layer.resolution <= last]
        own = slice(indices[0], indices[-1] + 1)
        begin, end = self.layers[own.start], self.layers[own.stop - 1]
        rows, outputs = slice(begin.row, end.rgb_slice.stop), slice(begin.first_output, end.output_slice.stop)
        part.layers = [
            replace(
                layer, row=layer.row - rows.start, first_output=layer.first_output - outputs.start,
                rgb_row=-1 if layer.rgb_weight is None else layer.rgb_row - rows.start,
            )
            for layer in self.layers[own]
        ]  # fmt: skip
        part.const = self.const if first == 4 else None
        part.first_input, part.first_row = own.start, rows.start  # layer l is the first of style input l
        part.rows = [min(max(row, rows.start), rows.stop) - rows.start for row in self.rows[own.start : own.stop + 2]]
        part.affine_weight, part.affine_bias = self.affine_weight[rows], self.affine_bias[rows]
        part.style_gain, part.bias = self.style_gain[rows], self.bias[outputs]
        ends = [0, *itertools.accumulate(a * b for a, b in zip(self.inputs, self.outputs, strict=True))]
        part.weight_sumsq, part.epsilons = self.weight_sumsq[ends[own.start] : ends[own.stop]], self.epsilons[own]
        part._parts = {}
        part._set_tables()
        return part

    @property
    def start_shape(self) -> tuple[int, int, int]:
        """(C, r, r) of what the first layer starts from."""
        layer = self.layers[0]
        r = layer.resolution // layer.convolution.up
        return layer.inputs, r, r

    def own_code(self, code: torch.Tensor) -> torch.Tensor:
        """Of a code of the whole network what belongs to these blocks, in the compute dtype."""
        first, count = (self.first_row, self.rows[-1]) if code.ndim == 2 else (self.first_input, len(self.rows) - 1)
        code = code if code.shape[1] == count else code[:, first : first + count]
        return code.to(self.compute)

    @property
    def _row(self) -> int:
        return sum(len(weight) for weight, _ in self._affines)

    def _add_affine(self, affine, gain: float) -> int:
        row = self._row
        weight, bias = affine.weight.detach().double(), affine.bias.detach().double()
        self._affines.append((weight * affine.weight_gain * gain, bias * affine.bias_gain * gain))
        return row

    def _add_layer(self, name: str, layer: SynthesisLayer) -> None:
        if self.layers and name.endswith("conv1"):
            self.rows.append(self._row)  # conv0 shares its style input with the toRGB before it
        row = self._add_affine(layer.affine, 1.0)
        weight = layer.weight.detach().to(self.compute)
        scale = 1.0
        if self.scaled:  # filters of about unit norm: sums of the convolution stay as large as its inputs
            norm = weight.double().square().sum((1, 2, 3)).mean().sqrt()
            scale = 2.0 ** -round(math.log2(max(float(norm), 1e-30)))
        weight = weight * scale if self.scaled else weight  # else shared with the network
        self._sumsq.append(weight.square().sum((2, 3)))
        self.epsilons.append(EPSILON * scale**2)
        first_output = self.layers[-1].output_slice.stop if self.layers else 0
        self.layers.append(
            FrozenLayer(
                name, layer.resolution, FrozenConvolution(weight, layer.up, self.taps, self.dtype), row, first_output,
                layer.bias.detach().to(self.compute), layer.noise_const.detach().to(self.compute)[None, None],
                float(layer.noise_strength.detach()), self._bound(layer.conv_clamp),
            )
        )  # fmt: skip

    def _bound(self, clamp: float | None) -> float:
        """Rounded as the feature maps are, since backward tells from y whether it was clamped; -1 for none."""
        return -1.0 if clamp is None else float(torch.tensor(clamp, dtype=torch.float64).to(self.dtype))

    def _add_torgb(self, torgb: ToRGBLayer) -> None:
        self.rows.append(self._row)
        layer = self.layers[-1]
        layer.rgb_row = self._add_affine(torgb.affine, torgb.weight_gain)
        layer.rgb_weight = torgb.weight.detach()[:, :, 0, 0].to(self.compute).contiguous()
        layer.rgb_weight_backward = layer.rgb_weight * START if self.scaled else layer.rgb_weight
        layer.rgb_bias = torgb.bias.detach().to(self.compute)
        layer.rgb_clamp = -1.0 if torgb.conv_clamp is None else float(torgb.conv_clamp)

    def __call__(self, code: torch.Tensor, noise: list[torch.Tensor | None], x=None, image=None, with_x: bool = False):
        """The picture, or with_x (features after the last layer, picture).

        Args:
            code: of these blocks, w_plus [N, inputs, w_dim] or style channels [N, rows], compute dtype.
            noise: per layer a map [N or 1, 1, R, R], not yet times the strength, or None.
            x, image: for a part that begins with features: x [N, *start_shape] and picture [N, 3, r, r], compute dtype.

        Returns:
            Both in the compute dtype.
        """
        result, last = _Synthesize.apply(self, code, x, image, with_x, *noise)
        return (last, result) if with_x else result

    def modulation(self, code: torch.Tensor):
        """Styles of all layers, their demodulation coefficients and factors; see `fastinv.ops.synthesis`."""
        if code.ndim == 2:
            styles = code * self.style_gain
        else:
            styles = synthesis.styles(code.contiguous(), self.affine_weight, self.affine_bias, self.rows)
        return synthesis.demodulation(
            styles, self.weight_sumsq, self.conv_rows, self.inputs, self.outputs, self.epsilons, self.scaled
        )

    def code_gradient(self, of_styles: bool, sums: list[torch.Tensor], styles, d, scales, unscale=None) -> torch.Tensor:
        """Gradient of the code from the sums of all layers and, last, those of what the first one starts from."""
        dstyles, q = synthesis.style_gradients(
            sums, d, self.bias, unscale, self.next_rows, self.rgb_rows, self.first_outputs, styles.shape[1]
        )
        dstyles = synthesis.demodulation_backward(
            dstyles, q, styles, scales, self.weight_sumsq, self.conv_rows, self.inputs, self.outputs
        )
        if of_styles:
            return dstyles * self.style_gain
        return synthesis.styles_backward(dstyles, self.affine_weight, self.rows)

    def styles_after(self, index: int, styles: torch.Tensor) -> torch.Tensor | None:
        """The styles of the layer after layer `index` (-1: of the first); None after the last one."""
        if index + 1 == len(self.layers):
            return None
        layer = self.layers[index + 1]
        return styles[:, layer.row : layer.row + layer.inputs]

    def form(self, layer: FrozenLayer, x: torch.Tensor) -> Form:
        """The form of a layer's convolution for this input."""
        return FORMS.choose(layer.convolution, x, self.forms.get(layer.name))


def refuse_second_derivatives() -> None:
    """To be called in a backward: grad mode is on in there exactly when its result is to be differentiated again."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise UsageError(
            "a prepared generator has first derivatives only; take G.synthesis where the gradient itself is "
            "differentiated (create_graph=True)"
        )


class _Synthesize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, net: FrozenSynthesis, code, x, image, with_x, *noise):
        with torch.autocast(code.device.type, enabled=False):
            return _Synthesize._forward(ctx, net, code, x, image, with_x, noise)

    @staticmethod
    def _forward(ctx, net, code, start, image, with_x, noise):
        styles, d, scales = net.modulation(code)
        first_styles = styles[:, : net.layers[0].inputs, None, None]
        if start is None:
            x = net.const * first_styles.to(net.dtype)
        else:
            x = (start.to(net.dtype).to(net.compute) * first_styles).to(net.dtype)  # as `epilogue` multiplies
        x = x.contiguous(memory_format=torch.channels_last)
        forms, kept = [], []
        for index, layer in enumerate(net.layers):
            form = net.form(layer, x)
            rgb_weight, rgb_styles, rgb_bias = layer.rgb_operands(styles)
            y, x, summed, rgb = synthesis.epilogue(
                layer.convolution.forward(x, form), d[:, layer.output_slice], noise[index], layer.strength, layer.bias,
                net.styles_after(index, styles),
                rgb_weight, rgb_styles, rgb_bias, None if rgb_weight is None else image, net.taps,
                synthesis.FORMS[form.forward], SLOPE, GAIN, layer.clamp, layer.rgb_clamp,
            )  # fmt: skip
            image = image if rgb_weight is None else summed
            forms.append(form)
            kept += [y, rgb]
        ctx.net, ctx.forms, ctx.of_styles, ctx.with_x = net, forms, code.ndim == 2, with_x
        ctx.save_for_backward(start, styles, d, scales, *noise, *kept)
        return image, y.to(net.compute, copy=True) if with_x else None

    @staticmethod
    def backward(ctx, dimage, dlast):
        refuse_second_derivatives()
        with torch.autocast(dimage.device.type, enabled=False):
            dcode, dx, dimage, dnoise = _Synthesize._backward(ctx, dimage, dlast if ctx.with_x else None)
        return None, dcode, dx, dimage, None, *dnoise

    @staticmethod
    def _backward(ctx, dimage, dx):
        net, count = ctx.net, len(ctx.net.layers)
        start, styles, d, scales, *rest = ctx.saved_tensors
        noise, kept = rest[:count], rest[count:]
        _, need_code, need_x, need_image, _, *need_noise = ctx.needs_input_grad
        dimage, unscale = dimage.contiguous(), None
        if net.scaled:
            dimage, dx, unscale_image = _scaled(dimage, dx)
            unscale = unscale_image / START
        dx = None if dx is None else dx.to(net.dtype).contiguous(memory_format=torch.channels_last)
        sums, dnoise = [None] * (count + 1), [None] * count
        for index in reversed(range(count)):
            layer, form = net.layers[index], ctx.forms[index]
            _, rgb_styles, _ = layer.rgb_operands(styles)
            rgb_weight = layer.rgb_weight_backward
            du, sums[index], dmap = synthesis.epilogue_backward(
                dx, None if rgb_weight is None else dimage, kept[2 * index], kept[2 * index + 1],
                d[:, layer.output_slice], noise[index], layer.strength,
                net.styles_after(index, styles),
                rgb_weight, rgb_styles, net.taps, synthesis.FORMS[form.forward], SLOPE, GAIN, layer.clamp,
                layer.rgb_clamp, need_noise[index],
            )  # fmt: skip
            kept[2 * index] = None
            if need_noise[index]:
                dmap = dmap if unscale is None else dmap * unscale[:, None, None, None]
                dnoise[index] = dmap if len(noise[index]) == len(dmap) else dmap.sum(0, keepdim=True)
            dx = layer.convolution.gradient(du, form)
            if rgb_weight is not None and index:  # the picture came from the resolution before, doubled
                dimage = upfirdn2d(dimage, net.image_filter, down=2, padding=1)
        dx = dx.to(net.compute)
        sums[count] = (dx * (net.const if start is None else start.to(net.dtype)).to(net.compute)).sum((2, 3))[
            :, None, None
        ]
        dcode = net.code_gradient(ctx.of_styles, sums, styles, d, scales, unscale) if need_code else None
        if need_x:
            dx = dx * styles[:, : net.layers[0].inputs, None, None]
            dx = dx if unscale is None else dx * unscale[:, None, None, None]
        if need_image and net.scaled:
            dimage = dimage * unscale_image[:, None, None, None]
        return dcode, dx if need_x else None, dimage if need_image else None, dnoise


def _scaled(dimage, dx):
    """The gradients of the picture and, unless it is None, of the last features as backward takes them in float16, and
    the inverse [N] of the picture's factor. One factor for both, by the larger of the two.
    """
    if dx is None:
        dimage, inverse = synthesis.gradient_scale(dimage)
        return dimage, None, inverse
    dx = dx.to(dimage.dtype)
    _, inverse = synthesis.gradient_scale(torch.cat([dimage.flatten(1), dx.flatten(1)], 1)[:, None, None])
    factor = (1 / inverse)[:, None, None, None]
    return dimage * factor, dx * (factor * START), inverse
