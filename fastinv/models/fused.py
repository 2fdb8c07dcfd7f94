"""StyleGAN2's synthesis network with frozen weights on a CPU: each layer one op, forward and backward.

The same network and numbers as `fastinv.models.frozen`, which runs where these ops have no kernels. Here an op is the
convolution and all that stands before the next one (`fastinv.ops.frozen_conv`), and everything large is written into
kept memory (`fastinv.models.arena`): the outputs y of all layers into a lease that the autograd graph holds, all else
into one that is given back before the call returns. Backward writes the gradient of a layer's convolution over the
layer's y, which nothing needs any more; a second pass through the same graph computes the y again first.
"""

from dataclasses import dataclass

import torch

from fastinv.models import kinds
from fastinv.models.arena import Arena, padded
from fastinv.models.convolution import Form
from fastinv.models.frozen import GAIN, SLOPE, FrozenLayer, FrozenSynthesis, refuse_second_derivatives
from fastinv.ops import upfirdn2d
from fastinv.ops.frozen_conv import KINDS, SUMS, bands, frozen_conv, frozen_conv_backward, obstacle

UPSAMPLED = (2, 1, 2, 1)  # padding of the filter that doubles a picture; its adjoint has 1 on all sides


class _Layout:
    """Places in a lease, one after the other."""

    def __init__(self):
        self.size = 0

    def place(self, size: int) -> int:
        offset, self.size = self.size, self.size + padded(size)
        return offset


@dataclass
class Plan:
    """Where everything is for one batch size: offsets in the two leases."""

    shapes: list[tuple[int, int, int, int]]  # of y, layer by layer
    y: list[int]
    rgb: list[int]
    kept: int  # bytes of the lease with y and rgb of all layers
    work: int  # bytes, at the beginning of the scratch lease
    scratch: int
    pair: tuple[int, int]  # y of every other layer, where nothing is kept
    picture: int
    passing: int  # bytes of the lease with these
    sums: list[tuple[int, int, int, int]]  # shapes, the last of the constant


class FusedSynthesis:
    """w_plus [N, num_ws, w_dim] or style channels [N, S] -> picture [N, 3, R, R], differentiable once in all inputs.

    Args:
        network: the layers and small operands, not float16; of the whole network or of a part.
        forms: layer name -> (forward, gradient) kinds of `fastinv.ops.frozen_conv`; see `fastinv.models.kinds`.
        impl: of all layers, "auto", "native" or "ref".
        arena: of the network that this is a part of; None makes one.
    """

    def __init__(
        self, network: FrozenSynthesis, forms: dict | None = None, impl: str = "auto", arena: Arena | None = None
    ):
        self.network, self.impl = network, impl
        self.native = impl != "ref" and not obstacle(network.dtype)
        self.forms: list[Form] = [
            kinds.choose(layer.convolution, layer.resolution, (forms or {}).get(layer.name)) for layer in network.layers
        ]
        self._arguments = network, forms, impl
        self.arena = arena or Arena()
        self._plans: dict[tuple[int, int], Plan] = {}
        self._parts: dict[tuple[int, int], FusedSynthesis] = {}

    def __reduce__(self):
        return FusedSynthesis, self._arguments  # a pickle may come to a machine with other kernels

    def part(self, first: int, last: int) -> "FusedSynthesis":
        """The blocks of the resolutions ``first`` to ``last`` alone, see `FrozenSynthesis.part`; memory is shared."""
        network = self.network.part(first, last)
        if network is self.network:
            return self
        if (first, last) not in self._parts:
            _, forms, impl = self._arguments
            self._parts[first, last] = FusedSynthesis(network, forms, impl, self.arena)
        return self._parts[first, last]

    def __call__(
        self, code: torch.Tensor, noise: list[torch.Tensor | None], x=None, picture=None, with_x: bool = False
    ):
        """The picture, or (features after the last layer, picture); arguments as for `FrozenSynthesis`."""
        noise = [None if m is None else m.contiguous() for m in noise]
        if x is not None:
            x = x.to(self.network.dtype).contiguous(memory_format=torch.channels_last)
        inputs = (code, x, picture, *noise)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            picture, last = _Synthesize.apply(self, code, x, picture, with_x, *noise)
        else:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                picture, last, *_ = self.forward(code, noise, x, picture, with_x, keep=False)
        return (last, picture) if with_x else picture

    def plan(self, n: int) -> Plan:
        """For n pictures with the present number of threads."""
        key = n, torch.get_num_threads()
        if key not in self._plans:
            self._plans[key] = self._plan(n)
        return self._plans[key]

    def _plan(self, n: int) -> Plan:
        layers, item = self.network.layers, self.network.dtype.itemsize
        shapes = [(n, layer.outputs, layer.resolution, layer.resolution) for layer in layers]
        sizes = [item * torch.Size(shape).numel() for shape in shapes]
        pixel = 3 * n * self.network.compute.itemsize
        pictures = [pixel * layer.resolution**2 if layer.rgb_clamp >= 0 else 0 for layer in layers]
        kept, scratch = _Layout(), _Layout()
        y = [kept.place(size) for size in sizes]
        rgb = [kept.place(size) for size in pictures]
        work = max(self._work_bytes(n, layer, form) for layer, form in zip(layers, self.forms, strict=True))
        scratch.place(work)
        passing = _Layout()
        pair = passing.place(max(sizes[::2])), passing.place(max(sizes[1::2], default=0))
        picture = passing.place(max(pictures))
        shapes_of_sums = [*shapes, (n, *self.network.start_shape)]
        sums = [(n, bands(height, width), SUMS, channels) for _, channels, height, width in shapes_of_sums]
        return Plan(shapes, y, rgb, kept.size, work, scratch.size, pair, picture, passing.size, sums)

    def _work_bytes(self, n: int, layer: FrozenLayer, form: Form) -> int:
        """Work memory of a layer, forward, backward, and of the passes without convolution."""
        if not self.native:
            return 0
        r, up = layer.resolution, layer.convolution.up
        return max(
            torch.ops.fastinv.frozen_conv_work(KINDS[kind], self.network.dtype, n, *channels, size, size)
            for kind, channels, size in (
                (form.forward, (layer.inputs, layer.outputs), r // up),
                (form.gradient, (layer.outputs, layer.inputs), r),
                ("none", (layer.outputs, layer.outputs), r),
            )
        )

    def _weight(self, index: int, adjoint: bool):
        """The weight of a layer, or that of its gradient, laid out when it is first used."""
        form = self.forms[index]
        return self.network.layers[index].convolution.packed(form[adjoint], adjoint, self.native)

    def pack(self) -> None:
        """Lay out all weights now, so that the kernels need nothing else any more."""
        if self.native:
            for index in range(len(self.forms)):
                for adjoint in (False, True):
                    self._weight(index, adjoint)

    def forward(self, code, noise, x, picture, with_x: bool, keep: bool):
        """The picture, the last features or None, and what backward needs: operands, and y and rgb of each layer if
        they are kept."""
        net, plan = self.network, self.plan(len(code))
        operands = net.modulation(code)
        keep = keep or self.arena.has_free("kept", plan.kept)  # that of the steps before: no memory for two maps more
        lease = self.arena.lease("kept", plan.kept) if keep else self.arena.lease("passing", plan.passing)
        ys, rgbs = [], []
        for index, (layer, shape) in enumerate(zip(net.layers, plan.shapes, strict=True)):
            ys.append(lease.feature_map(plan.y[index] if keep else plan.pair[index % 2], shape, net.dtype))
            place, size = plan.rgb[index] if keep else plan.picture, (shape[0], 3, *shape[2:])
            rgbs.append(lease.tensor(place, size, net.compute) if layer.rgb_clamp >= 0 else None)
        picture = self.run(operands, noise, x, picture, ys, rgbs)
        return picture, ys[-1].to(net.compute, copy=True) if with_x else None, operands, ys, rgbs

    def run(self, operands, noise, x, picture, ys, rgbs) -> torch.Tensor:
        """The picture; writes y and the clamped rgb of each layer."""
        net, plan = self.network, self.plan(len(ys[0]))
        styles, d, _ = operands
        scratch = self.arena.lease("scratch", plan.scratch)
        work = scratch.tensor(0, (plan.work,), torch.uint8) if plan.work else None
        x = net.const if x is None else x
        for index, layer in enumerate(net.layers):
            rgb_weight, rgb_styles, rgb_bias = layer.rgb_operands(styles)
            if rgb_weight is not None and picture is None:
                n, _, height, width = plan.shapes[index]
                picture = torch.zeros((n, 3, height, width), dtype=net.compute)
            elif rgb_weight is not None:
                picture = upfirdn2d(picture, net.image_filter, up=2, padding=UPSAMPLED, flip_filter=True)
            frozen_conv(
                x, self._weight(index, False), ys[index], net.styles_after(index - 1, styles),
                d[:, layer.output_slice], noise[index], layer.strength, layer.bias, rgb_weight, rgb_styles, rgb_bias,
                None if rgb_weight is None else picture, rgbs[index], SLOPE, GAIN, layer.clamp, layer.rgb_clamp, work,
                self.impl,
            )  # fmt: skip
            x = ys[index]
        return picture

    def backward(self, dimage, du, operands, noise, start, ys, rgbs, need_code, need_start, need_picture, need_noise):
        """The sums of all layers for the gradient of the code, and the gradients of the features and the picture to
        begin with and of each noise map; None for what is not needed. Overwrites ys.

        dimage, du: gradients of the picture and, or None, of the last features. start: the features to begin with.
        """
        net, n = self.network, len(dimage)
        styles, d, scales = operands
        plan, count = self.plan(n), len(net.layers)
        scratch = self.arena.lease("scratch", plan.scratch)
        work = scratch.tensor(0, (plan.work,), torch.uint8) if plan.work else None
        sums = [None] * (count + 1)
        if need_code:
            places = torch.empty(sum(map(_numel, plan.sums)), dtype=net.compute).split([*map(_numel, plan.sums)])
            sums = [place.view(shape) for place, shape in zip(places, plan.sums, strict=True)]
        dimage, dstart, dnoise = dimage.contiguous(), None, [None] * count
        # Step by step from the output of a layer to that of the one before it; the first without a convolution.
        for index in reversed(range(count)):
            layer, shape = net.layers[index], plan.shapes[index]
            weight = next_styles = None
            if index + 1 < count:
                weight = self._weight(index + 1, True)
                next_styles = net.styles_after(index, styles)
                if layer.rgb_weight is not None:  # the picture came from this resolution, doubled
                    dimage = upfirdn2d(dimage, net.image_filter, down=2, padding=1)
            rgb_weight, rgb_styles, _ = layer.rgb_operands(styles)
            dmap = torch.empty(n, 1, *shape[2:], dtype=net.compute) if need_noise[index] else None
            frozen_conv_backward(
                du, weight, ys[index], ys[index], sums[index], None if rgb_weight is None else dimage, rgbs[index],
                d[:, layer.output_slice], noise[index], layer.strength, next_styles, rgb_weight, rgb_styles, dmap,
                SLOPE, GAIN, layer.clamp, layer.rgb_clamp, work, self.impl,
            )  # fmt: skip
            if dmap is not None:
                dnoise[index] = dmap if len(noise[index]) == n else dmap.sum(0, keepdim=True)
            du = ys[index]
        if need_start:
            dstart = torch.empty_like(start)
        if need_code or need_start:
            frozen_conv_backward(
                du, self._weight(0, True), net.const if start is None else start, dstart, sums[count],
                next_styles=None if dstart is None else net.styles_after(-1, styles), work=work, impl=self.impl,
            )  # fmt: skip
        if need_picture:  # it was doubled before anything was added
            dimage = upfirdn2d(dimage, net.image_filter, down=2, padding=1)
        return sums, dstart, dimage if need_picture else None, dnoise


def _numel(shape) -> int:
    return torch.Size(shape).numel()


def _unversioned(y: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that autograd does not watch: what is written to it is no misuse of a saved y."""
    return torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())


class _Synthesize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fused: FusedSynthesis, code, x, picture, with_x, *noise):
        with torch.autocast("cpu", enabled=False):
            result, last, operands, ys, rgbs = fused.forward(code, noise, x, picture, with_x, keep=True)
        ctx.fused, ctx.spent, ctx.of_styles, ctx.with_x = fused, False, code.ndim == 2, with_x
        ctx.save_for_backward(*operands, x, picture, *noise, *ys, *rgbs)
        return result, last

    @staticmethod
    def backward(ctx, dimage, dlast):
        refuse_second_derivatives()
        (*operands, x, picture), rest, count = ctx.saved_tensors[:5], ctx.saved_tensors[5:], len(ctx.fused.forms)
        noise, ys, rgbs = rest[:count], rest[count : 2 * count], rest[2 * count :]
        needs, need_noise = ctx.needs_input_grad[1:4], ctx.needs_input_grad[5:]
        ys = [_unversioned(y) for y in ys]
        dlast = dlast.to(ctx.fused.network.dtype).contiguous(memory_format=torch.channels_last) if ctx.with_x else None
        with torch.autocast("cpu", enabled=False):
            if ctx.spent:  # the graph was retained
                ctx.fused.run(operands, noise, x, picture, ys, rgbs)
            ctx.spent = True
            sums, dx, dpicture, dnoise = ctx.fused.backward(
                dimage, dlast, operands, noise, x, ys, rgbs, *needs, need_noise
            )
            dcode = ctx.fused.network.code_gradient(ctx.of_styles, sums, *operands) if needs[0] else None
        return None, dcode, dx, dpicture, None, *dnoise
