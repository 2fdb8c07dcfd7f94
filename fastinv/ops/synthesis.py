"""The passes around the convolutions of a frozen StyleGAN2 synthesis network, forward and backward.

With frozen weights W one layer of the network is, in the notation of Karras et al. 2020, section 2.2::

    u = conv(x, W)                            x already holds this layer's styles: x = y_before * styles
    v = u * d + strength * noise + bias       d = 1 / sqrt(sum_i styles_i^2 sum_k W_ik^2 + eps), see `demodulation`
    y = clamp(gain * max(v, alpha * v))       leaky ReLU; alpha 0 is ReLU, 1 is linear
    next = y * next_styles                    the input of the next convolution
    image = upsample(image) + clamp(sum_c rgb_weight[k, c] * rgb_styles[c] * y_c + rgb_bias[k])

`epilogue` is all of it after the convolution; the pass of an up-sampling layer begins with the FIR filter. Backward,
given dnext = dL/dnext and dimage = dL/dimage, `epilogue_backward` makes in one pass, with y all that was kept::

    q = sum_k rgb_weight[k] dimage[k]                     (0 where rgb was clamped)
    dy = (dnext * next_styles + q * rgb_styles) * [|y| < clamp]
    dv = dy * gain * (1 if y > 0 else alpha);  du = dv * d
    sums over the pixels: dnext * y, q * y, dy * y, dv * strength * noise, dv

The activation is positively homogeneous, so sum dy * y = sum dv * v, from which `style_gradients` tells the gradient of
d without u: ``dd = (sum dy y - sum dv strength noise - bias sum dv) / d``. All small operands (styles, d, bias, noise,
rgb_*) are in the compute dtype: float64 for float64 feature maps, float32 for all others. Nothing here has an autograd
formula: the whole network is one autograd node, `fastinv.models.frozen`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import _dispatch

# How the convolution of a layer left its result, for a layer output of [N, C, H, W] (h, w = H / 2, W / 2).
SAME = 0  # [N, C, H, W]
TRANSPOSED = 1  # [N, C, H + 1, W + 1]: transposed convolution of stride 2; the FIR filter follows
PHASES = 2  # [N, 4 C, h + 1, w + 1]: the same values, channel (2 a + b) C + c at (i, j) is (2 i + a, 2 j + b)
SHUFFLED = 3  # [N, 4 C, h, w]: ordered likewise; the FIR filter is part of the weights
FORMS = {"same": SAME, "transposed": TRANSPOSED, "phases": PHASES, "shuffled": SHUFFLED}

SUMS = 5  # planes of the sums of `epilogue_backward`


def epilogue_size(u, form: int) -> tuple[int, int, int]:
    """(C, H, W) of the layer whose convolution left u."""
    channels, height, width = u.shape[1:]
    if form == TRANSPOSED:
        return channels, height - 1, width - 1
    if form == PHASES:
        return channels // 4, 2 * height - 2, 2 * width - 2
    return (channels // 4, 2 * height, 2 * width) if form == SHUFFLED else (channels, height, width)


def sum_tiles(form: int, height: int, width: int) -> int:
    """Number of partial sums per sample and channel; csrc/common/synthesis_tiles.h has the twin. Shapes alone decide,
    so that results are the same bits on every device of a kind.
    """
    pixels = height * width
    if form in (SAME, SHUFFLED):
        return max(1, -(-pixels // min(256, max(8, pixels // 128))))
    return max(1, -(-height // min(32, max(4, height // 16))) * -(-width // 64))


def _wide(tensor, compute):
    return None if tensor is None else tensor.to(compute)[:, :, None, None]


def resampled_ref(u, taps, form: int):
    """u [see the forms] -> [N, C, H, W] before the demodulation: phases put in place, FIR filter applied."""
    channels, height, width = epilogue_size(u, form)
    if form in (PHASES, SHUFFLED):
        n, _, h, w = u.shape
        u = u.reshape(n, 2, 2, channels, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, channels, 2 * h, 2 * w)
    if form in (SAME, SHUFFLED):
        return u
    u = u[:, :, : height + 1, : width + 1]
    taps = torch.tensor(taps, dtype=u.dtype, device=u.device)
    kernel = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    u = F.conv2d(u, kernel, padding=(1, 0), groups=channels)
    return F.conv2d(u, kernel.transpose(2, 3), padding=(0, 1), groups=channels)


def upsampled_image_ref(image, taps):
    """image [N, 3, h, w] -> [N, 3, 2 h, 2 w]: zeros put between the pixels, then the FIR filter."""
    n, channels, height, width = image.shape
    spread = image.new_zeros(n, channels, height, 2, width, 2)
    spread[:, :, :, 0, :, 0] = image
    spread = F.pad(spread.reshape(n, channels, 2 * height, 2 * width), (2, 1, 2, 1))
    taps = torch.tensor(taps, dtype=image.dtype, device=image.device)
    kernel = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    return F.conv2d(F.conv2d(spread, kernel, groups=channels), kernel.transpose(2, 3), groups=channels)


def epilogue_ref(
    u, d, noise, strength, bias, next_styles, rgb_weight, rgb_styles, rgb_bias, image, taps, form, alpha, gain, clamp,
    rgb_clamp,
):  # fmt: skip
    """`epilogue` in plain torch. It computes in the compute dtype throughout and rounds y and next once, at the end."""
    compute = torch.promote_types(u.dtype, torch.float32)
    v = resampled_ref(u.to(compute), taps, form)
    if d is not None:
        v = v * _wide(d, compute)
    if noise is not None:
        v = v + strength * noise.to(compute)
    if bias is not None:
        v = v + bias.to(compute)[:, None, None]
    y = torch.where(v > 0, v, v * alpha) * gain
    if clamp >= 0:
        y = y.clamp(-clamp, clamp)
    y = y.to(u.dtype)
    following = None if next_styles is None else (y.to(compute) * _wide(next_styles, compute)).to(u.dtype)
    rgb = None
    if rgb_weight is not None:
        rgb = torch.einsum("kc,nc,nchw->nkhw", rgb_weight.to(compute), rgb_styles.to(compute), y.to(compute))
        rgb = rgb + rgb_bias.to(compute)[:, None, None]
        rgb = rgb.clamp(-rgb_clamp, rgb_clamp) if rgb_clamp >= 0 else rgb
        image = rgb if image is None else rgb + upsampled_image_ref(image, taps)
    empty = u.new_empty([0])
    return (
        y, empty if following is None else following, u.new_empty([0], dtype=compute) if rgb is None else image,
        rgb if rgb is not None and rgb_clamp >= 0 else u.new_empty([0], dtype=compute),
    )  # fmt: skip


def epilogue(
    u, d=None, noise=None, strength=1.0, bias=None, next_styles=None, rgb_weight=None, rgb_styles=None, rgb_bias=None,
    image=None, taps=(), form=SAME, alpha=0.2, gain=2**0.5, clamp=-1.0, rgb_clamp=-1.0, impl="auto",
):  # fmt: skip
    """Everything of a synthesis layer after its convolution, in one pass; the formula is at the head of this file.

    Args:
        u: what the convolution left, in one of the four forms; channels_last is fastest.
        d: [N, C] demodulation, None for 1.
        noise: [1 or N, 1, H, W] or None; strength: its factor.
        bias: [C] or None.
        next_styles: [N, C] or None where no convolution follows.
        rgb_weight, rgb_styles, rgb_bias: [3, C], [N, C], [3], or all None for a layer without a picture.
        image: [N, 3, H / 2, W / 2] of the resolution before, or None.
        taps: the four taps of the separable FIR filter with its gain (2 per axis), as a correlation; needed by the
            forms TRANSPOSED and PHASES, and with image.
        alpha, gain: slope below zero and factor of the activation.
        clamp, rgb_clamp: bounds of y and of the picture's part; negative for none.

    Returns:
        y [N, C, H, W] and next (or empty) in the dtype of u; image [N, 3, H, W] (or empty) in the compute dtype; rgb,
        the clamped part of this layer in the picture, where rgb_clamp is set (else empty).
    """
    arguments = (
        u, d, noise, strength, bias, next_styles, rgb_weight, rgb_styles, rgb_bias, image, list(taps), form, alpha,
        gain, clamp, rgb_clamp,
    )  # fmt: skip
    if _dispatch.choose("synthesis_epilogue", impl, u) == "ref":
        return epilogue_ref(*arguments)
    return torch.ops.fastinv.synthesis_epilogue(*arguments)


def resampled_adjoint_ref(dv, taps, form: int):
    """The adjoint of `resampled_ref`: [N, C, H, W] -> the form's layout."""
    n, channels, height, width = dv.shape
    if form in (TRANSPOSED, PHASES):
        taps = torch.tensor(taps, dtype=dv.dtype, device=dv.device)
        kernel = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
        dv = F.conv_transpose2d(dv, kernel, padding=(1, 0), groups=channels)
        dv = F.conv_transpose2d(dv, kernel.transpose(2, 3), padding=(0, 1), groups=channels)
    if form == PHASES:
        dv = F.pad(dv, (0, 1, 0, 1))
    if form in (PHASES, SHUFFLED):
        h, w = dv.shape[2] // 2, dv.shape[3] // 2
        dv = dv.reshape(n, channels, h, 2, w, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * channels, h, w)
    return dv


def epilogue_backward_ref(
    dnext, dimage, y, rgb, d, noise, strength, next_styles, rgb_weight, rgb_styles, taps, form, alpha, gain, clamp,
    rgb_clamp, need_noise,
):  # fmt: skip
    """`epilogue_backward` in plain torch, with a single tile."""
    compute = torch.promote_types(y.dtype, torch.float32)
    kept = y.to(compute)
    zero = torch.zeros_like(kept)
    sums = [zero.sum((2, 3))] * 2
    dy = zero
    if dnext is not None:
        g = dnext.to(compute)
        sums[0] = (g * kept).sum((2, 3))
        dy = g if next_styles is None else g * _wide(next_styles, compute)
    if dimage is not None:
        visible = dimage.to(compute)
        if rgb_clamp >= 0:
            visible = torch.where(rgb.abs() < rgb_clamp, visible, 0.0)
        q = torch.einsum("kc,nkhw->nchw", rgb_weight.to(compute), visible)
        sums[1] = (q * kept).sum((2, 3))
        dy = dy + q * _wide(rgb_styles, compute)
    if clamp >= 0:
        dy = torch.where(kept.abs() < clamp, dy, 0.0)
    dv = torch.where(kept > 0, dy, dy * alpha) * gain
    sums.append((dy * kept).sum((2, 3)))
    sums.append(zero.sum((2, 3)) if noise is None else (dv * (strength * noise.to(compute))).sum((2, 3)))
    sums.append(dv.sum((2, 3)))
    dnoise = strength * dv.sum(1, keepdim=True) if need_noise else dv.new_empty([0])
    du = resampled_adjoint_ref(dv if d is None else dv * _wide(d, compute), taps, form)
    return du.to(y.dtype).contiguous(memory_format=torch.channels_last), torch.stack(sums, 1)[:, None], dnoise


def epilogue_backward(
    dnext, dimage, y, rgb=None, d=None, noise=None, strength=1.0, next_styles=None, rgb_weight=None, rgb_styles=None,
    taps=(), form=SAME, alpha=0.2, gain=2**0.5, clamp=-1.0, rgb_clamp=-1.0, need_noise=False, impl="auto",
):  # fmt: skip
    """Gradient of u and all the sums that the gradients of the small operands need, in one pass.

    Args:
        dnext: gradient of next (of y where next_styles is None), in the dtype of y; or None.
        dimage: [N, 3, H, W] gradient of image, compute dtype; or None. One of the two must be given.
        y, rgb: results of `epilogue`. need_noise: whether the gradient of the noise is wanted.
        others: as for `epilogue`.

    Returns:
        du in the form's layout and the dtype of y; sums [N, tiles, 5, C] (compute dtype), to be added over the tiles,
        see the head of this file for the five; dnoise [N, 1, H, W] (or empty), one map for each sample.
    """
    arguments = (
        dnext, dimage, y, rgb, d, noise, strength, next_styles, rgb_weight, rgb_styles, list(taps), form, alpha, gain,
        clamp, rgb_clamp, need_noise,
    )  # fmt: skip
    if _dispatch.choose("synthesis_epilogue", impl, y) == "ref":
        return epilogue_backward_ref(*arguments)
    return torch.ops.fastinv.synthesis_epilogue_backward(*arguments)


def styles_ref(w_plus, weight, bias, rows):
    """`styles` in plain torch."""
    parts = [
        torch.addmm(bias[first:last], w_plus[:, index], weight[first:last].t())
        for index, (first, last) in enumerate(zip(rows[:-1], rows[1:], strict=True))
    ]
    return torch.cat(parts, 1)


def styles(w_plus, weight, bias, rows, impl="auto"):
    """All styles of the network in one launch: ``styles[n, r] = weight[r] . w_plus[n, l] + bias[r]``, l the input of r.

    Args:
        w_plus: [N, num_ws, w_dim], compute dtype.
        weight, bias: [R, w_dim] and [R], the affine layers one below the other, gains included.
        rows: num_ws + 1 row numbers from 0 to R; the rows of style input l are rows[l] to rows[l + 1].

    Returns:
        [N, R].
    """
    if _dispatch.choose("synthesis_styles", impl, w_plus) == "ref":
        return styles_ref(w_plus, weight, bias, rows)
    return torch.ops.fastinv.synthesis_styles(w_plus, weight, bias, rows)


def styles_backward_ref(dstyles, weight, rows):
    """`styles_backward` in plain torch."""
    bounds = zip(rows[:-1], rows[1:], strict=True)
    return torch.stack([dstyles[:, first:last] @ weight[first:last] for first, last in bounds], 1)


def styles_backward(dstyles, weight, rows, impl="auto"):
    """Gradient [N, num_ws, w_dim] of w_plus from the gradient [N, R] of `styles`."""
    if _dispatch.choose("synthesis_styles", impl, dstyles) == "ref":
        return styles_backward_ref(dstyles, weight, rows)
    return torch.ops.fastinv.synthesis_styles_backward(dstyles, weight, rows)


def demodulation_ref(styles, weight_sumsq, rows, inputs, outputs, epsilons, scale):
    """`demodulation` in plain torch."""
    scaled, coefficients, scales = styles.clone(), [], []
    first = 0
    for row, count, outs, epsilon in zip(rows, inputs, outputs, epsilons, strict=True):
        sumsq = weight_sumsq[first : first + count * outs].view(outs, count)
        first += count * outs
        factor = torch.ones_like(styles[:, :1])
        if scale:
            largest = styles[:, row : row + count].abs().amax(1, keepdim=True)
            largest = torch.where(largest.isfinite() & (largest > 0), largest, 0.5)
            factor = torch.ldexp(factor, -torch.frexp(largest)[1].clamp(-120, 120))
        s = styles[:, row : row + count] * factor
        scaled[:, row : row + count] = s
        coefficients.append((s.square() @ sumsq.t() + epsilon * factor.square()).rsqrt())
        scales.append(factor)
    return scaled, torch.cat(coefficients, 1), torch.cat(scales, 1)


def demodulation(styles, weight_sumsq, rows, inputs, outputs, epsilons, scale=False, impl="auto"):
    """All demodulation coefficients of the network in one launch, and styles scaled for half precision.

    For each convolution l, with its styles s = styles[:, rows[l] : rows[l] + inputs[l]] times a power of two f that
    makes the largest of a sample lie in [0.5, 1) (exponents limited to 120; f = 1 without ``scale``, and for styles
    that are all zero or not finite)::

        d[n, o] = 1 / sqrt(sum_i s[n, i]^2 weight_sumsq[o, i] + epsilons[l] f[n]^2)

    The factor cancels exactly in s * d, so nothing but the range of the convolution's input changes by it.

    Args:
        styles: [N, R] of `styles`.
        weight_sumsq: flat; for each convolution [outputs[l], inputs[l]], the sums of its squared weights over the taps.
        rows, inputs, outputs, epsilons: one number per convolution.

    Returns:
        scaled styles [N, R] (rows of no convolution, those of toRGB, as they were), d [N, sum of outputs] one
        convolution after the other, and the factors f [N, convolutions].
    """
    arguments = (styles, weight_sumsq, rows, inputs, outputs, epsilons, scale)
    if _dispatch.choose("synthesis_demodulation", impl, styles) == "ref":
        return demodulation_ref(*arguments)
    return torch.ops.fastinv.synthesis_demodulation(*arguments)


def demodulation_backward_ref(dstyles, q, styles, scales, weight_sumsq, rows, inputs, outputs):
    """`demodulation_backward` in plain torch."""
    result = dstyles.clone()
    first = first_output = 0
    for index, (row, count, outs) in enumerate(zip(rows, inputs, outputs, strict=True)):
        sumsq = weight_sumsq[first : first + count * outs].view(outs, count)
        s = styles[:, row : row + count]
        through_d = s * (q[:, first_output : first_output + outs] @ sumsq)
        result[:, row : row + count] = (dstyles[:, row : row + count] - through_d) * scales[:, index : index + 1]
        first += count * outs
        first_output += outs
    return result


def demodulation_backward(dstyles, q, styles, scales, weight_sumsq, rows, inputs, outputs, impl="auto"):
    """Gradient of `styles` from that of the scaled styles: ``(dstyles - s * sum_o q[o] weight_sumsq[o]) * f``.

    Args:
        dstyles: [N, R] gradient of the scaled styles, without what goes through d.
        q: [N, sum of outputs], dL/dd * d^3, see `style_gradients`.
        styles, scales: the scaled styles and factors that `demodulation` returned; others as there.
    """
    arguments = (dstyles, q, styles, scales, weight_sumsq, rows, inputs, outputs)
    if _dispatch.choose("synthesis_demodulation", impl, dstyles) == "ref":
        return demodulation_backward_ref(*arguments)
    return torch.ops.fastinv.synthesis_demodulation_backward(*arguments)


def style_gradients_ref(sums, d, bias, unscale, next_rows, rgb_rows, first_outputs, count):
    """`style_gradients` in plain torch."""
    dstyles, q = d.new_zeros(len(d), count), torch.zeros_like(d)
    for part, next_row, rgb_row, first in zip(sums, next_rows, rgb_rows, first_outputs, strict=True):
        channels = part.shape[-1]
        total = part.double().sum(1)
        if unscale is not None:
            total = total * unscale[:, None, None]
        if next_row >= 0:
            dstyles[:, next_row : next_row + channels] = total[:, 0].to(d.dtype)
        if rgb_row >= 0:
            dstyles[:, rgb_row : rgb_row + channels] = total[:, 1].to(d.dtype)
        if first >= 0:
            rows = slice(first, first + channels)
            dd_times_d = total[:, 2] - total[:, 3] - bias[rows] * total[:, 4]
            q[:, rows] = (dd_times_d * d[:, rows].double().square()).to(d.dtype)
    return dstyles, q


def style_gradients(sums, d, bias, unscale, next_rows, rgb_rows, first_outputs, count, impl="auto"):
    """Adds the tiles of every layer's sums, in float64 and in a fixed order, and sorts the totals into style gradients.

    Args:
        sums: of each layer [N, tiles, 5, C] from `epilogue_backward`, or [N, tiles, 1, C], the first of the five alone.
        d, bias: [N, D] and [D], of all convolutions one after the other.
        unscale: [N] factors on all sums (the inverse of `gradient_scale`'s), or None.
        next_rows, rgb_rows: per layer the row of the styles whose gradient the first and second sum are; -1 for none.
        first_outputs: per layer the place of its first channel in d; -1 for a layer without convolution.
        count: R, number of rows of the styles.

    Returns:
        dstyles [N, R], zero where no sum belongs, and q = dL/dd * d^3 [N, D].
    """
    arguments = (sums, d, bias, unscale, next_rows, rgb_rows, first_outputs, count)
    if _dispatch.choose("synthesis_style_gradients", impl, d) == "ref":
        return style_gradients_ref(*arguments)
    return torch.ops.fastinv.synthesis_style_gradients(*arguments)


def gradient_scale_ref(dimage):
    """`gradient_scale` in plain torch."""
    largest = dimage.abs().amax((1, 2, 3))
    largest = torch.where(largest.isfinite() & (largest > 0), largest, 0.5)
    exponent = torch.frexp(largest)[1].clamp(-120, 120)
    one = torch.ones_like(largest)
    factor, inverse = torch.ldexp(one, -exponent), torch.ldexp(one, exponent)
    return dimage * factor[:, None, None, None], inverse


def gradient_scale(dimage, impl="auto"):
    """Power-of-two scaling of the image gradient, so that float16 gradients of it do not underflow.

    Returns:
        dimage [N, 3, H, W] times, for each sample, the power of two that brings its largest magnitude into [0.5, 1)
        (exponents limited to 120; a gradient of zeros, infinities or NaN is left alone), and the inverse factors [N].
    """
    if _dispatch.choose("synthesis_gradient_scale", impl, dimage) == "ref":
        return gradient_scale_ref(dimage)
    return torch.ops.fastinv.synthesis_gradient_scale(dimage)


def _fake_epilogue(
    u, d, noise, strength, bias, next_styles, rgb_weight, rgb_styles, rgb_bias, image, taps, form, alpha, gain, clamp,
    rgb_clamp,
):  # fmt: skip
    channels, height, width = epilogue_size(u, form)
    y = u.new_empty(len(u), channels, height, width).to(memory_format=torch.channels_last)
    picture = torch.empty(
        (len(u), 3, height, width), dtype=torch.promote_types(u.dtype, torch.float32), device=u.device
    )
    following = u.new_empty([0]) if next_styles is None else torch.empty_like(y)
    rgb = torch.empty_like(picture) if rgb_weight is not None and rgb_clamp >= 0 else picture.new_empty([0])
    return y, following, picture.new_empty([0]) if rgb_weight is None else picture, rgb


def _fake_epilogue_backward(
    dnext, dimage, y, rgb, d, noise, strength, next_styles, rgb_weight, rgb_styles, taps, form, alpha, gain, clamp,
    rgb_clamp, need_noise,
):  # fmt: skip
    n, channels, height, width = y.shape
    sizes = {
        SAME: (channels, height, width), TRANSPOSED: (channels, height + 1, width + 1),
        PHASES: (4 * channels, height // 2 + 1, width // 2 + 1), SHUFFLED: (4 * channels, height // 2, width // 2),
    }  # fmt: skip
    compute = torch.promote_types(y.dtype, torch.float32)
    sums = y.new_empty((n, sum_tiles(form, height, width), SUMS, channels), dtype=compute)
    dnoise = sums.new_empty((n, 1, height, width) if need_noise else [0])
    return y.new_empty(n, *sizes[form]).to(memory_format=torch.channels_last), sums, dnoise


_FAKES = {
    "epilogue": _fake_epilogue,
    "epilogue_backward": _fake_epilogue_backward,
    "styles": lambda w_plus, weight, bias, rows: w_plus.new_empty(len(w_plus), len(weight)),
    "styles_backward": lambda dstyles, weight, rows: weight.new_empty(len(dstyles), len(rows) - 1, weight.shape[1]),
    "demodulation": lambda styles, weight_sumsq, rows, inputs, outputs, epsilons, scale: (
        torch.empty_like(styles), styles.new_empty(len(styles), sum(outputs)), styles.new_empty(len(styles), len(rows)),
    ),
    "demodulation_backward": lambda dstyles, *others: torch.empty_like(dstyles),
    "style_gradients": lambda sums, d, bias, unscale, next_rows, rgb_rows, first_outputs, count: (
        d.new_empty(len(d), count), torch.empty_like(d),
    ),
    "gradient_scale": lambda dimage: (torch.empty_like(dimage), dimage.new_empty(len(dimage))),
}  # fmt: skip
for _name, _fake in _FAKES.items():
    if "synthesis_" + _name in _dispatch.KERNELS:
        torch.library.register_fake("fastinv::synthesis_" + _name, _fake)
