"""Style mixing: some layers of a picture's code from another (Karras et al. 2019, arXiv 1812.04948, section 3.1)."""

import re
from collections.abc import Iterable

import torch

from fastinv.editing.codes import codes_of, edited
from fastinv.errors import UsageError
from fastinv.inversion.task import check_generator


@torch.no_grad()
def mix(
    G, content, style, layers: str | Iterable[int], strength: float = 1.0, noise: str = "const"
) -> dict[str, torch.Tensor]:
    """Codes of the content with some layers of the style: ``w_i + strength (v_i - w_i)`` for these layers i of W+.

    Coarse layers decide on pose and shapes, fine ones on colours and texture; docs/editing.md says which do what in the
    embedded generator.

    Args:
        G: the generator.
        content: codes w of N pictures, see ``fastinv.editing.codes.codes_of``: a dict, w_plus, an InversionResult ...
        style: codes v of N pictures, or of one for all; or of many for one content.
        layers: style inputs, counted from 0: "4-9", "0-3,7" (both ends included) or numbers.
        strength: 1 replaces them, 0 leaves the content, other values lie on the line through both.
        noise: mode of the noise maps that the codes do not hold, for F+W+.

    Returns:
        The content's codes with another w_plus; what else is in them stays or moves along, see ``edited``.

    Raises:
        UsageError: a layer that the generator does not have, or codes that do not go together.
    """
    check_generator(G)
    chosen = list(layers_of(layers, G.num_ws))
    content, style = codes_of(content, G), codes_of(style, G)
    w, v = content["w_plus"], style["w_plus"].to(content["w_plus"])
    count = max(len(w), len(v))
    if {len(w), len(v)} - {1, count}:
        raise UsageError(f"{len(w)} codes of content and {len(v)} of style cannot be mixed; give one, or as many")
    if not -100 < strength < 100:
        raise UsageError(f"strength must be a number, 1 for all of the style, not {strength}")
    mixed = w.repeat(count // len(w), 1, 1)
    mixed[:, chosen] = torch.lerp(mixed[:, chosen], v[:, chosen].expand(count, -1, -1), strength)
    return edited(G, content, mixed, noise)


def layers_of(layers: str | Iterable[int], count: int) -> tuple[int, ...]:
    """Style inputs of a generator that has ``count``: of "0-3,7" 0, 1, 2, 3 and 7; in order, each once.

    Raises:
        UsageError: something else, or one that it does not have.
    """
    known = f"layers are counted from 0 to {count - 1}, such as 4-{count - 1} or 0-3,{count - 1}"
    if isinstance(layers, str):
        found = []
        for part in layers.replace(" ", "").split(","):
            match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
            if match is None:
                raise UsageError(f"no layers: {layers!r}; {known}")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise UsageError(f"the layers {part} end before they begin; {known}")
            if last >= count:
                raise UsageError(f"the generator has no layer {last}; {known}")
            found += range(first, last + 1)
    else:
        found = list(layers) if isinstance(layers, Iterable) else [layers]
        for layer in found:
            if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
                raise UsageError(f"the generator has no layer {layer!r}; {known}")
    if not found:
        raise UsageError(f"no layers are given; {known}")
    return tuple(sorted(set(found)))
