"""How well codes can be edited, where a network reads attributes from pictures: what was asked for should change, all
else should stay, and an encoder should find the edited code again.
"""

from collections.abc import Callable

import torch

from fastinv.editing.ganspace import ganspace
from fastinv.editing.regression import attribute_directions
from fastinv.errors import UsageError
from fastinv.latents import w_statistics
from fastinv.losses import mse

COMPONENTS = 16
MOVED, LEAKED = 0.5, 0.25  # an edit counts as done from so much of the asked change, and up to so much of the others'


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
        directions: [attributes, w_dim], for one standard deviation each, see
            ``fastinv.editing.regression.attribute_directions``.
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


def away(read: torch.Tensor, directions: torch.Tensor, strength: float, first: int = 0) -> torch.Tensor:
    """One edit for each code, along one direction after the other, away from what there is more of than the average.

    Args:
        read: how much of each direction there is in each picture or code, in standard deviations, [N, directions].
        directions: [directions, w_dim], for one standard deviation each.
        strength: of the edits, in standard deviations.
        first: number of the first code: code i is edited along direction (first + i) mod their number.

    Returns:
        [N, w_dim].
    """
    chosen = (torch.arange(first, first + len(read)) % len(directions)).to(read.device)
    sign = torch.where(read.gather(1, chosen[:, None]) > 0, -1.0, 1.0).to(directions)
    return strength * sign * directions[chosen]


def edit_directions(G, network=None) -> torch.Tensor:
    """What codes of G are edited along in order to measure: [K, w_dim], for one standard deviation each.

    Args:
        G: a generator.
        network: the attribute network, for a direction of each attribute (``attribute_directions``); None, where it
            cannot read G's pictures, for the first 16 principal components of W (``fastinv.editing.ganspace``).
    """
    if network is not None:
        return attribute_directions(G, network)
    components = ganspace(G, min(COMPONENTS, G.w_dim))
    return torch.stack([component.vector for component in components]).to(G.w_avg)


def principal_coordinates(w_plus: torch.Tensor, mean: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Where codes [N, num_ws, w_dim], the mean of their vectors, lie along orthogonal directions [K, w_dim]: [N, K], in
    multiples of these, from the mean [w_dim].
    """
    return (w_plus.mean(1) - mean) @ (directions / directions.square().sum(1, keepdim=True)).T


@torch.no_grad()
def editing_consistency(
    find: Callable[[torch.Tensor], torch.Tensor],
    render: Callable[[torch.Tensor], torch.Tensor],
    w_plus: torch.Tensor,
    edits: torch.Tensor,
    G,
) -> dict[str, torch.Tensor]:
    """Edit a code, find the code of its picture, take the edit back: what has become of code and picture.

    Args:
        find: pictures [N, 3, R, R] -> codes [N, num_ws, w_dim], the method that is measured.
        render: codes -> pictures.
        w_plus: what ``find`` made of the original pictures, [N, num_ws, w_dim].
        edits: what is added to every style vector of a code, [N, w_dim].
        G: the generator.

    Returns:
        [N] each: "latent", LEC as ``latent_editing_consistency`` says it; "pictures", edit consistency, the same for
        what one sees: the mean squared error between the picture of the code and that of the code that comes back.
    """
    change = edits.unsqueeze(1)
    again = find(render(w_plus + change)) - change
    spread = (2 * G.num_ws * w_statistics(G).std.double().square().sum()).sqrt()
    latent = (again - w_plus).double().square().sum((1, 2)).sqrt() / spread
    return {"latent": latent, "pictures": mse(render(again).double(), render(w_plus).double())}


def latent_editing_consistency(
    find: Callable[[torch.Tensor], torch.Tensor],
    render: Callable[[torch.Tensor], torch.Tensor],
    w_plus: torch.Tensor,
    edits: torch.Tensor,
    G,
) -> torch.Tensor:
    """LEC of e4e (Tov et al. 2021, arXiv 2102.02766): edit a code, find the code of its picture, take the edit back.

    Args:
        find, render, w_plus, edits, G: as for ``editing_consistency``.

    Returns:
        [N]: the Euclidean distance over styles and dimensions between the code and what comes back, in units of the
        root mean square distance of two independent codes in W, so that generators can be compared. 0 is perfect; about
        1 says that the code that comes back has nothing to do with the first.
    """
    return editing_consistency(find, render, w_plus, edits, G)["latent"]
