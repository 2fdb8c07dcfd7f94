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
    """w_plus [N, num_ws, w_dim] -> picture [N, 3, R, R], differentiable once in w_plus and in noise maps.

    Args:
        network: the layers and small operands, not float16.
        forms: layer name -> (forward, gradient) kinds of `fastinv.ops.frozen_conv`; see `fastinv.models.kinds`.
        impl: of all layers, "auto", "native" or "ref".
    """

    def __init__(self, network: FrozenSynthesis, forms: dict | None = None, impl: str = "auto"):
        self.network, self.impl = network, impl
        self.native = impl != "ref" and not obstacle(network.dtype)
        self.forms: list[Form] = [
            kinds.choose(layer.convolution, layer.resolution, (forms or {}).get(layer.name)) for layer in network.layers
        ]
        self._arguments = network, forms, impl
        self.arena = Arena()
        self._plans: dict[tuple[int, int], Plan] = {}

    def __reduce__(self):
        return FusedSynthesis, self._arguments  # a pickle may come to a machine with other kernels

    def __call__(self, w_plus: torch.Tensor, noise: list[torch.Tensor | None]) -> torch.Tensor:
        """w_plus [N, num_ws, w_dim]; per layer a noise map [N or 1, 1, R, R], not yet times the strength, or None."""
        noise = [None if m is None else m.contiguous() for m in noise]
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (w_plus, *noise)):
            return _Synthesize.apply(self, w_plus, *noise)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self.forward(w_plus, noise, keep=False)[0]

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
        const = self.network.const
        sums = [(n, bands(*shape[2:]), SUMS, shape[1]) for shape in shapes]
        sums.append((n, bands(*const.shape[2:]), SUMS, const.shape[1]))
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

    def forward(self, w_plus, noise, keep: bool):
        """The picture, and what backward needs: small operands, and y and rgb of each layer if they are kept."""
        net, plan = self.network, self.plan(len(w_plus))
        operands = net.modulation(w_plus)
        keep = keep or self.arena.has_free("kept", plan.kept)  # that of the steps before: no memory for two maps more
        lease = self.arena.lease("kept", plan.kept) if keep else self.arena.lease("passing", plan.passing)
        ys, rgbs = [], []
        for index, (layer, shape) in enumerate(zip(net.layers, plan.shapes, strict=True)):
            ys.append(lease.feature_map(plan.y[index] if keep else plan.pair[index % 2], shape, net.dtype))
            place, size = plan.rgb[index] if keep else plan.picture, (shape[0], 3, *shape[2:])
            rgbs.append(lease.tensor(place, size, net.compute) if layer.rgb_clamp >= 0 else None)
        return self.run(operands, noise, ys, rgbs), operands, ys, rgbs

    def run(self, operands, noise, ys, rgbs) -> torch.Tensor:
        """The picture; writes y and the clamped rgb of each layer."""
        net, plan = self.network, self.plan(len(ys[0]))
        styles, d, _ = operands
        scratch = self.arena.lease("scratch", plan.scratch)
        work = scratch.tensor(0, (plan.work,), torch.uint8) if plan.work else None
        x, picture = net.const, None
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

    def backward(self, dimage, operands, noise, ys, rgbs, need_w: bool, need_noise: list[bool]):
        """Gradient of w_plus, or None, and of each noise map, or None, from that of the picture. Overwrites ys."""
        net, n = self.network, len(dimage)
        styles, d, scales = operands
        plan, count = self.plan(n), len(net.layers)
        scratch = self.arena.lease("scratch", plan.scratch)
        work = scratch.tensor(0, (plan.work,), torch.uint8) if plan.work else None
        sums = [None] * (count + 1)
        if need_w:
            places = torch.empty(sum(map(_numel, plan.sums)), dtype=net.compute).split([*map(_numel, plan.sums)])
            sums = [place.view(shape) for place, shape in zip(places, plan.sums, strict=True)]
        dimage, du, dnoise = dimage.contiguous(), None, [None] * count
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
        if not need_w:
            return None, dnoise
        frozen_conv_backward(du, self._weight(0, True), net.const, None, sums[count], work=work, impl=self.impl)
        return net.latent_gradient(sums, styles, d, scales), dnoise


def _numel(shape) -> int:
    return torch.Size(shape).numel()


def _unversioned(y: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor that autograd does not watch: what is written to it is no misuse of a saved y."""
    return torch.empty(0, dtype=y.dtype).set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride())


class _Synthesize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fused: FusedSynthesis, w_plus, *noise):
        with torch.autocast("cpu", enabled=False):
            picture, operands, ys, rgbs = fused.forward(w_plus, noise, keep=True)
        ctx.fused, ctx.spent = fused, False
        ctx.save_for_backward(*operands, *noise, *ys, *rgbs)
        return picture

    @staticmethod
    def backward(ctx, dimage):
        refuse_second_derivatives()
        operands, rest, count = ctx.saved_tensors[:3], ctx.saved_tensors[3:], len(ctx.fused.forms)
        noise, ys, rgbs = rest[:count], rest[count : 2 * count], rest[2 * count :]
        _, need_w, *need_noise = ctx.needs_input_grad
        ys = [_unversioned(y) for y in ys]
        with torch.autocast("cpu", enabled=False):
            if ctx.spent:  # the graph was retained
                ctx.fused.run(operands, noise, ys, rgbs)
            ctx.spent = True
            dw, dnoise = ctx.fused.backward(dimage, operands, noise, ys, rgbs, need_w, need_noise)
        return None, dw, *dnoise
