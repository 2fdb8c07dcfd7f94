"""From pictures to pictures in one pass, as pSp does (Richardson et al. 2021, arXiv 2008.00951, section 4)."""

import torch

from fastinv.errors import UsageError
from fastinv.inversion.objective import find_encoder
from fastinv.inversion.task import check_generator, whole_number
from fastinv.latents import expand


def translate(
    G,
    encoder,
    images: torch.Tensor,
    outputs: int = 1,
    mix_from: int = 8,
    strength: float = 1.0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures of an encoder's codes, ``G(E(images))``, and variants of them by style mixing.

    What the source leaves open, such as the colours of a sketch, is chosen by the fine layers: from layer ``mix_from``
    on, further outputs move from the encoder's code w towards that of a random latent z, ``w + strength (f(z) - w)``.
    Output k of every picture uses the same z, so that a picture's outputs do not depend on the others.

    Args:
        G: a generator, see ``fastinv.load_generator``.
        encoder: a module with ``encode``, a bundled name or a file.
        images: [N, input_nc, R, R] in [-1, 1], what the encoder was trained to see: pictures, sketches (one channel,
            dark on white) or one-hot maps of labels (a channel each, 0 or 1).
        outputs: pictures for each source; the first is the plain one.
        mix_from: first layer that is mixed, 0 to num_ws - 1. The paper has 8 of 18 at 1024 pixels; small generators
            have fewer layers (10 at 64 pixels) and need a smaller one.
        strength: 1 replaces these layers, 0 leaves them.
        seed: of the random latents.

    Returns:
        pictures [N, outputs, 3, R', R'], nominally in [-1, 1], R' the generator's resolution, and their codes w_plus
        [N, outputs, num_ws, w_dim].

    Raises:
        UsageError: a wrong argument, or an encoder for codes of another shape.
    """
    check_generator(G)
    outputs, seed = whole_number("outputs", outputs, least=1), whole_number("seed", seed, least=0)
    if outputs > 1:
        mix_from = whole_number("mix_from", mix_from, least=0)
        if mix_from >= G.num_ws:
            raise UsageError(
                f"mix_from is {mix_from}, but the generator has only layers 0 to {G.num_ws - 1}; give a smaller one"
            )
        if G.c_dim:
            raise UsageError("a conditional generator has no random codes without labels; only outputs=1 is possible")
    if not 0 <= strength <= 1:
        raise UsageError(f"strength must be from 0 to 1, not {strength}")
    return variants(G, find_encoder(encoder, G).to(G.w_avg.device), images, outputs, mix_from, strength, seed)


@torch.no_grad()
def variants(G, E, images, outputs: int, mix_from: int, strength: float, seed: int):
    """``translate`` for arguments that it has accepted, E being what ``find_encoder`` gives, on G's device."""
    w_avg = G.w_avg
    plain = expand(E.encode(images.to(w_avg.device)), G.num_ws).to(w_avg.dtype)
    random = torch.Generator().manual_seed(seed)
    codes = [plain]
    for _ in range(outputs - 1):  # one by one: the first do not depend on how many there are
        style = G.mapping(torch.randn(1, G.z_dim, generator=random).to(w_avg))
        mixed = torch.lerp(plain, style.expand_as(plain), strength)
        codes.append(torch.cat([plain[:, :mix_from], mixed[:, mix_from:]], 1))
    pictures = [G.synthesis(code, noise="const") for code in codes]  # a set at a time needs the least memory
    return torch.stack(pictures, 1), torch.stack(codes, 1)
