"""Where a synthesis network of StyleGAN2 can be entered and left, other than by w_plus and with the whole picture.

Style channels (space S; StyleSpace, Wu et al. 2021, arXiv 2011.12799) are the outputs of all affine layers, features
(F of F+W+; Barbershop, Zhu et al. 2021, arXiv 2106.01505) the state after a block. What is here needs of a network its
``resolutions``, ``architecture``, ``num_ws``, ``w_dim`` and the shapes of its weights, which may be on the meta device.
"""

import torch

from fastinv.errors import UsageError


def style_inputs(network) -> dict[str, int]:
    """Names of the layers with styles, in the order in which they run, and the style input of each.

    {"b4.conv1": 0, "b4.torgb": 1, "b8.conv0": 1, "b8.conv1": 2, "b8.torgb": 3, ...}; where a block has no toRGB
    (other architectures than "skip") the name is missing.
    """
    inputs = {}
    for index, r in enumerate(network.resolutions):
        inputs |= {f"b{r}.conv0": 2 * index - 1} if index else {}
        inputs |= {f"b{r}.conv1": 2 * index}
        inputs |= {f"b{r}.torgb": 2 * index + 1} if getattr(network, f"b{r}").has_torgb else {}
    return inputs


def style_layers(network) -> dict[str, slice]:
    """Which of all style channels are whose: layer name -> slice, in the order of `style_inputs`."""
    slices, first = {}, 0
    for name in style_inputs(network):
        slices[name] = slice(first, first + network.get_submodule(name).weight.shape[1])
        first = slices[name].stop
    return slices


def check_code(network, code: torch.Tensor) -> None:
    """Refuse a code that is neither w_plus [N, num_ws, w_dim] nor style channels [N, S]."""
    if code.ndim == 2:
        check_styles(network, code)
    else:
        network.check(code)


def check_styles(network, styles: torch.Tensor) -> None:
    """Refuse style channels of another shape than [N, S]."""
    count = list(style_layers(network).values())[-1].stop
    if styles.ndim != 2 or styles.shape[1] != count:
        raise UsageError(f"style channels must have shape [N, {count}], not {list(styles.shape)}")


@torch.no_grad()
def w_plus_of_styles(
    network, styles: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, w_avg: torch.Tensor
) -> torch.Tensor:
    """The latents whose style channels are nearest, by least squares in float64, for each style input by itself.

    Args:
        styles: [N, S].
        weight, bias: [S, w_dim] and [S] of all affine layers, gains included, one below the other.
        w_avg: [w_dim]. Where an input has fewer channels than w_dim: of all latents that fit, the nearest to it.

    Returns:
        [N, num_ws, w_dim], of the dtype and on the device of styles.
    """
    check_styles(network, styles)
    counts = [0] * network.num_ws
    for index, own in zip(style_inputs(network).values(), style_layers(network).values(), strict=True):
        counts[index] += own.stop - own.start
    center, parts = w_avg.double(), (styles.double().split(counts, 1), weight.split(counts), bias.split(counts))
    found = []
    for own, rows, offset in zip(*parts, strict=True):
        rows = rows.double()
        residual = own - offset.double() - center @ rows.t()
        # The pseudo-inverse takes any rank, and gives of all solutions the one of least norm.
        found.append(center + residual @ torch.linalg.pinv(rows).t())
    return torch.stack(found, 1).to(styles)


def blocks_to_run(network, code: torch.Tensor, resolution: int | None, features) -> list[int]:
    """Resolutions of the blocks between features, or the constant, and the picture; [] where features are the end.

    Args:
        code: [N, num_ws, w_dim] or [N, S].
        resolution: of the last block; None is the network's.
        features: (x, picture) after a block, or None.

    Raises:
        UsageError: a wrong shape or resolution, or an architecture that has no pictures in between.
    """
    check_code(network, code)
    last, first = network.resolutions[-1], 0
    if resolution is not None:
        check_resolution(network, resolution)
        last = resolution
    if features is not None:
        first = _resolution_of(network, len(code), features)
    if first > last:
        raise UsageError(f"features at {first} x {first} are beyond the resolution that is asked for, {last}")
    return [r for r in network.resolutions if first < r <= last]


def check_resolution(network, resolution: int) -> None:
    """Refuse a resolution that is not that of a block, and any where there is no picture after each block."""
    _check_architecture(network, "a smaller picture needs")
    if resolution not in network.resolutions:
        raise UsageError(f"resolution must be one of {', '.join(map(str, network.resolutions))}, not {resolution!r}")


def _check_architecture(network, what: str) -> None:
    if network.architecture != "skip":
        raise UsageError(f"{what} the skip architecture; this generator is {network.architecture!r}")


def _resolution_of(network, n: int, features) -> int:
    _check_architecture(network, "features need")
    if len(features) != 2 or any(not isinstance(t, torch.Tensor) or t.ndim != 4 for t in features):
        raise UsageError("features must be a pair of tensors (x [N, C, r, r], picture [N, 3, r, r])")
    x, picture = features
    r = x.shape[-1]
    if r not in network.resolutions:
        raise UsageError(f"features must have the size of a block, {network.resolutions}, not {list(x.shape)}")
    channels = getattr(network, f"b{r}").conv1.weight.shape[0]
    for name, given, shape in (("x", x, (n, channels, r, r)), ("picture", picture, (n, 3, r, r))):
        if given.shape != shape:
            raise UsageError(f"features: {name} must have shape {list(shape)}, not {list(given.shape)}")
    return r


def block_of(layer: str) -> int:
    """Resolution of the block of a layer: 8 of "b8.conv0"."""
    return int(layer.partition(".")[0].removeprefix("b"))


def unused(blocks: list[int], code: torch.Tensor, noise: dict, features) -> list[torch.Tensor]:
    """What has a zero gradient where only these blocks run: noise maps of other layers; without any block the code and
    the feature maps."""
    maps = [given for name, given in noise.items() if block_of(name) not in blocks]
    others = [] if blocks else [code, features[0]]
    given = [t for t in (*maps, *others) if isinstance(t, torch.Tensor) and t.requires_grad]
    return given if torch.is_grad_enabled() else []


def with_zero_gradients(result: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The result, as if it came from these inputs too: their gradient is zero, and not missing, which is an error to
    ``torch.autograd.grad``."""
    return _WithZeroGradients.apply(result, *inputs) if inputs else result


class _WithZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, result, *inputs):
        ctx.inputs = [(t.shape, {"dtype": t.dtype, "device": t.device}) for t in inputs]
        return result.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, *[torch.zeros(shape, **options) for shape, options in ctx.inputs]
