"""Single style channels (StyleSpace; Wu et al. 2021, arXiv 2011.12799): which belong to an attribute, and where in the
picture they act.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from fastinv.checkpoints import network_hash
from fastinv.editing.direction import Direction
from fastinv.editing.samples import Samples, renderer
from fastinv.errors import UsageError
from fastinv.latents import expand, mapped_samples
from fastinv.losses import resize_mask

SHARE, STRENGTH = 0.02, 5.0
MAP = 32  # pixels of the maps of change
INSIDE = 0.5  # share of a channel's change that must lie in a region
BATCH = 250


@torch.no_grad()
def style_statistics(G, w: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [S] of the style channels of codes w [N, w_dim]; None is 10,000 random ones."""
    w = mapped_samples(G, 10_000) if w is None else w
    std, mean = torch.std_mean(_styles(G, w), 0, correction=0)
    return mean, std


def _styles(G, w: torch.Tensor) -> torch.Tensor:
    """[N, S], float64."""
    parts = w.to(G.w_avg).split(BATCH)
    return torch.cat([G.styles(expand(part, G.num_ws)).double() for part in parts])


def ranking(positives: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """How much of each channel belongs to what some pictures have in common.

    Args:
        positives: styles [P, S] of pictures with the attribute, P of at least 2.
        mean, std: [S], of all styles.

    Returns:
        [S]: the mean of the positives' ``(s - mean) / std`` divided by its standard deviation, with its sign (the paper
        ranks by the absolute value); 0 for a channel that does not vary.
    """
    if len(positives) < 2:
        raise UsageError(f"a ranking of channels needs 2 pictures with the attribute at least, not {len(positives)}")
    varies = std > 1e-9 * std.max()
    normalised = (positives - mean) / torch.where(varies, std, torch.ones_like(std))
    spread, middle = torch.std_mean(normalised, 0)
    return torch.where(varies, middle / spread.clamp_min(1e-9), torch.zeros_like(middle))


@torch.no_grad()
def change_maps(
    G, channels: Sequence[int], std: torch.Tensor, w_plus: torch.Tensor, amount: float = 1.0
) -> torch.Tensor:
    """Where a channel changes pictures: [channels, 32, 32], the mean absolute difference of the pixels.

    The difference of pictures with the channel ``amount`` standard deviations up and down, over the codes w_plus: the
    paper's gradient map, by finite differences.

    Args:
        channels: indices into S.
        std: [S].
        w_plus: [N, num_ws, w_dim].
    """
    synthesis, styles, maps = renderer(G), G.styles(w_plus.to(G.w_avg)), []
    for channel in channels:
        moved = []
        for sign in (1, -1):
            changed = styles.clone()
            changed[:, channel] += sign * amount * float(std[channel])
            moved.append(torch.cat([synthesis(part) for part in changed.split(BATCH)]))
        difference = (moved[0] - moved[1]).abs().mean((0, 1)) / 2
        maps.append(functional.adaptive_avg_pool2d(difference[None, None], MAP)[0, 0])
    return torch.stack(maps)


def inside(maps: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """Share [channels] of the change in maps [channels, 32, 32] that lies in a region [R, R] of weights in [0, 1]."""
    small = resize_mask(region.to(maps)[None, None], MAP)[0, 0]
    return (maps * small).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-12)


@torch.no_grad()
def stylespace(
    G,
    samples: Samples,
    attributes: Sequence[str] | None = None,
    channels: int = 1,
    share: float = SHARE,
    region: torch.Tensor | None = None,
    candidates: int = 30,
) -> list[Direction]:
    """One direction of S for each attribute: the style channels that belong to it most.

    Args:
        G: a StyleGAN2 generator, that of the samples.
        samples: of ``read_samples`` or ``given_samples``.
        attributes: whose; None is all.
        channels: of a direction, those that rank first; the paper's edits move one.
        share: of the samples, those of the highest scores, that count as having the attribute.
        region: weights [R, R] in [0, 1] of the pixels: only channels that change pictures more inside than outside it
            are taken, of the ``candidates`` that rank first.

    Returns:
        Directions named by the attribute. A strength of 1 moves each of its channels by one standard deviation of that
        channel. toRGB's channels are left out, as in the paper: they change colours only.

    Raises:
        UsageError: unknown attributes, too few samples, no such channels, or a StyleGAN generator.
    """
    if not hasattr(G, "style_layers"):
        raise UsageError(f"style channels need a StyleGAN2 generator; a {type(G).__name__} has none")
    layers = G.style_layers()
    places = {name: own for name, own in layers.items() if not name.endswith("torgb")}
    total = sum(own.stop - own.start for own in places.values())
    if not 1 <= channels <= total:
        raise UsageError(f"the number of channels must be from 1 to {total}, not {channels}")
    styles = _styles(G, samples.w)
    std, mean = torch.std_mean(styles, 0, correction=0)
    allowed = torch.zeros_like(std, dtype=torch.bool)
    for own in places.values():
        allowed[own] = True
    count, sha256, found = max(2, round(share * len(styles))), network_hash(G), []
    for name in samples.names if attributes is None else attributes:
        ranks = ranking(styles[samples.of(name).argsort(stable=True)[-count:]], mean, std)
        order = torch.where(allowed, ranks.abs(), -1.0).argsort(descending=True, stable=True).tolist()
        chosen = order[:channels]
        if region is not None:
            tried = order[: max(channels, candidates)]
            w_plus = expand(samples.w[:8], G.num_ws)
            shares = inside(change_maps(G, tried, std, w_plus), region).tolist()
            chosen = [channel for channel, part in zip(tried, shares, strict=True) if part > INSIDE][:channels]
            if len(chosen) < channels:
                raise UsageError(f"{len(chosen)} of the first {len(tried)} channels of {name!r} act in the region")
        vector = torch.zeros_like(std)
        vector[chosen] = std[chosen] * ranks[chosen].sign()
        facts = {
            "attribute": name, "samples": len(styles), "share": share,
            "channels": [_named(channel, layers) | {"rank": float(ranks[channel])} for channel in chosen],
        }  # fmt: skip
        found.append(Direction(name, "s", vector.float(), (0, None), STRENGTH, "stylespace", sha256, facts))
    return found


def _named(channel: int, layers: dict[str, slice]) -> dict:
    """{"layer": "b8.conv0", "channel": its index there}."""
    name = next(name for name, own in layers.items() if own.start <= channel < own.stop)
    return {"layer": name, "channel": channel - layers[name].start}
