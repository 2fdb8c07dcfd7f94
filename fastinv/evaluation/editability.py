"""How well codes can be edited, where a network reads attributes from pictures: what was asked for should change, all
else should stay, and an encoder should find the edited code again.
"""

from collections.abc import Callable

import torch

from fastinv.errors import UsageError
from fastinv.latents import expand, mapped_samples, w_statistics

BATCH = 250  # pictures rendered at a time
MOVED, LEAKED = 0.5, 0.25  # an edit counts as done from so much of the asked change, and up to so much of the others'


@torch.no_grad()
def attribute_directions(G, network, samples: int = 4000, seed: int = 0) -> torch.Tensor:
    """Directions in W that change one attribute and leave the others.

    A linear regression of codes on the attributes of their pictures: the mean code of pictures with attributes a is
    taken to be mean + sum_k a_k d_k, so that d_k is what to add to a code for one more standard deviation of attribute
    k, the others being equal.

    Args:
        G: a generator, unconditional.
        network: with ``standardised(pictures [N, 3, R, R]) -> [N, attributes]``: mean 0 and deviation 1 over its data.
        samples: codes that are looked at.
        seed: of the codes.

    Returns:
        [attributes, w_dim].

    Raises:
        UsageError: fewer than twice as many samples as attributes.
    """
    w = mapped_samples(G, samples, seed)
    parts = w.to(G.w_avg.dtype).split(BATCH)
    read = torch.cat([network.standardised(G.synthesis(expand(part, G.num_ws))) for part in parts])
    if samples < 2 * read.shape[1]:
        raise UsageError(f"directions of {read.shape[1]} attributes need {2 * read.shape[1]} samples, not {samples}")
    known = torch.cat([torch.ones_like(read[:, :1]), read], dim=1).double()
    return torch.linalg.lstsq(known, w).solution[1:].to(G.w_avg.dtype)


@torch.no_grad()
def edit_scores(
    render: Callable[[torch.Tensor], torch.Tensor],
    w_plus: torch.Tensor,
    directions: torch.Tensor,
    network,
    strength: float = 1.5,
) -> dict[str, torch.Tensor]:
    """Edit every code along every direction, away from what its picture already has more of than the average.

    Args:
        render: codes [N, num_ws, w_dim] -> pictures [N, 3, R, R].
        w_plus: the codes [N, num_ws, w_dim].
        directions: [attributes, w_dim], for one standard deviation each, see ``attribute_directions``.
        network: as there; its attributes are in the same order.
        strength: of an edit, in standard deviations of the attribute.

    Returns:
        [N, attributes] each: "moved", the change of the attribute asked for divided by ``strength`` (1: as asked);
        "leaked", the mean absolute change of the other attributes, in their standard deviations; "done", whether moved
        is at least 0.5 and leaked at most 0.25.

    Raises:
        UsageError: a strength that is not above 0.
    """
    if not strength > 0:
        raise UsageError(f"strength must be above 0, not {strength}")
    before = network.standardised(render(w_plus))
    moved, leaked = torch.empty_like(before), torch.empty_like(before)
    for index, direction in enumerate(directions):
        sign = torch.where(before[:, index] > 0, -1.0, 1.0)
        change = network.standardised(render(w_plus + (strength * sign)[:, None, None] * direction)) - before
        moved[:, index] = change[:, index] * sign / strength
        change[:, index] = 0
        leaked[:, index] = change.abs().sum(1) / (change.shape[1] - 1)
    return {"moved": moved, "leaked": leaked, "done": (moved >= MOVED) & (leaked <= LEAKED)}


@torch.no_grad()
def latent_editing_consistency(
    find: Callable[[torch.Tensor], torch.Tensor],
    render: Callable[[torch.Tensor], torch.Tensor],
    w_plus: torch.Tensor,
    edits: torch.Tensor,
    G,
) -> torch.Tensor:
    """LEC of e4e (Tov et al. 2021, arXiv 2102.02766): edit a code, find the code of its picture, take the edit back.

    Args:
        find: pictures [N, 3, R, R] -> codes [N, num_ws, w_dim], the method that is measured.
        render: codes -> pictures.
        w_plus: what ``find`` made of the original pictures, [N, num_ws, w_dim].
        edits: what is added to every style vector of a code, [N, w_dim].
        G: the generator.

    Returns:
        [N]: the Euclidean distance over styles and dimensions between the code and what comes back, in units of the
        root mean square distance of two independent codes in W, so that generators can be compared. 0 is perfect; about
        1 says that the code that comes back has nothing to do with the first.
    """
    change = edits.unsqueeze(1)
    again = find(render(w_plus + change)) - change
    spread = (2 * G.num_ws * w_statistics(G).std.double().square().sum()).sqrt()
    return (again - w_plus).double().square().sum((1, 2)).sqrt() / spread
