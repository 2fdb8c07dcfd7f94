"""Latent spaces of an optimisation: which variables there are, and the codes that they stand for.

Codes are what a generator synthesises from, and all that a result keeps: a dict with

    w_plus     [N, num_ws, w_dim]   of every space but S
    styles     [N, S]               style channels (space S), in the place of w_plus
    features   [N, C, r, r]         feature maps after a block (space F+W+), with
    picture    [N, 3, r, r]         the picture summed up to there
    z          [N, z_dim]           what was mapped (space Z)
    noise      layer name -> map [N, 1, r, r], where noise maps are optimised

Variables are optimised; from them ``Space.codes`` makes the codes, differentiably.
"""

from typing import Any

import torch

from fastinv.devices import one_thread
from fastinv.errors import UsageError
from fastinv.latents import expand, mapped_samples, times

NOISE = "noise."  # prefix of noise maps where codes or variables lie flat in one dict
SAMPLES = 1000  # latents among which the start in Z is chosen


def synthesize(network, codes: dict[str, Any], noise="const", resolution: int | None = None) -> torch.Tensor:
    """The pictures [N, 3, R, R] of codes, by a generator or a prepared one.

    Args:
        network: has ``synthesis``.
        codes: see the head of this file.
        noise: mode of the noise maps that the codes do not hold, "const", "random" or "none".
        resolution: stop at this block, for a smaller picture; None is the whole network.
    """
    options = {} if resolution is None else {"resolution": resolution}
    if "features" in codes:
        options["features"] = codes["features"], codes["picture"]
    code = codes["styles"] if "styles" in codes else codes["w_plus"]
    return network.synthesis(code, noise=codes.get("noise") or noise, **options)


def flat(codes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Codes with the noise maps beside the others, named ``noise.<layer>``, as files hold them."""
    maps = {NOISE + layer: value for layer, value in codes.get("noise", {}).items()}
    return {name: value for name, value in codes.items() if name != "noise"} | maps


def nested(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The inverse of ``flat``."""
    codes = {name: value for name, value in tensors.items() if not name.startswith(NOISE)}
    maps = {name.removeprefix(NOISE): value for name, value in tensors.items() if name.startswith(NOISE)}
    return codes | ({"noise": maps} if maps else {})


class Space:
    """W+: one vector per style input. The others derive from it.

    Args:
        G: the generator.
        optimise_noise: whether the noise maps are variables too.
        features_at: resolution of the block whose features are variables, for F+W+.
        basis: what the vectors of W are written in, see ``principal_basis``; None is their own coordinates.
    """

    name = "w+"
    vectors: int | None = None  # of a code; None is one per style input
    needs: tuple[str, ...] = ()  # methods that the generator must have

    def __init__(self, G, optimise_noise: bool = False, features_at: int = 16, basis: torch.Tensor | None = None):
        self.G, self.optimise_noise, self.features_at, self.basis = G, optimise_noise, features_at, basis
        missing = [name for name in self.needs if not hasattr(G, name)]
        if missing:
            kind = type(G).__name__
            raise UsageError(f"space {self.name!r} needs a StyleGAN2 generator; a {kind} has no {missing[0]}")

    def start(self, w_plus: torch.Tensor, noise: dict[str, torch.Tensor] | None, seed: int) -> dict[str, torch.Tensor]:
        """Variables [N, ...] to start from.

        Args:
            w_plus: [N, num_ws, w_dim], the code to start near.
            noise: layer -> map to start from, [1 or N, 1, r, r], where they are optimised; None takes those of G.
            seed: of everything random.
        """
        with one_thread():  # so that the bits do not depend on their number
            variables = self._start(w_plus, seed)
        if self.optimise_noise:
            for layer, side in self.G.synthesis.noise_layers().items():
                given = _noise_const(self.G, layer) if noise is None else noise[layer]
                given = given.to(w_plus).reshape(-1, 1, side, side)
                variables[NOISE + layer] = given.expand(len(w_plus), -1, -1, -1)
        return {name: value.detach().clone().contiguous() for name, value in variables.items()}

    def codes(self, variables: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The codes of variables."""
        noise = nested(variables).get("noise")
        return self._codes(variables) | ({"noise": noise} if noise else {})

    def finish(self, variables: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The codes to keep: ``codes``, and w_plus in any case."""
        return self.codes(variables)

    def frozen_variables(self) -> tuple[str, ...]:
        """Variables that are carried along, one row for each picture, but not changed."""
        return () if self.basis is None else ("start",)

    def _start(self, w_plus: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        w = w_plus if self.vectors is None else w_plus.mean(1, keepdim=True)
        if self.basis is None:
            return {"w": w}
        # What is optimised is the distance from the start, so that the start itself is met exactly.
        return {"start": w, "v": torch.zeros_like(w)}

    def _codes(self, variables) -> dict[str, Any]:
        if self.basis is None:
            return {"w_plus": expand(variables["w"], self.G.num_ws)}
        w = variables["start"] + times(variables["v"], self.basis.to(variables["v"]))
        return {"w_plus": expand(w, self.G.num_ws)}


class W(Space):
    """One vector for all style inputs."""

    name = "w"
    vectors = 1


class Z(Space):
    """Gaussian latents, mapped by the generator (which scales them to a mean square of one)."""

    name = "z"

    def __init__(self, G, *arguments):
        super().__init__(G, *arguments)
        if getattr(G, "c_dim", 0):
            raise UsageError("space 'z' needs an unconditional generator: the labels of pictures are not known")

    def _start(self, w_plus: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        """Mapping has no inverse: of ``SAMPLES`` random latents the one whose w is nearest."""
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(SAMPLES, self.G.z_dim, generator=random).to(w_plus)
        with torch.no_grad():
            w = self.G.mapping(z).to(w_plus)
        distances = [(w - code).square().sum((1, 2)) for code in w_plus]
        nearest = torch.stack([distance.argmin() for distance in distances])
        return {"z": z[nearest]}

    def _codes(self, variables) -> dict[str, Any]:
        z = variables["z"]
        # On a CPU picture by picture: the bits of a product of several rows depend on the number of threads.
        parts = z.split(1) if z.device.type == "cpu" else [z]
        return {"w_plus": torch.cat([self.G.mapping(part) for part in parts]).to(z.dtype), "z": z}


class S(Space):
    """Style channels: what the affine layers make of w (StyleSpace, Wu et al. 2021)."""

    name = "s"
    needs = ("styles", "w_plus_of_styles")

    def _start(self, w_plus: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {"styles": self.G.styles(w_plus.to(self.G.w_avg.dtype)).to(w_plus.dtype)}

    def _codes(self, variables) -> dict[str, Any]:
        return {"styles": variables["styles"]}

    def finish(self, variables) -> dict[str, Any]:
        """With the w_plus whose style channels are nearest, which does not make quite the same picture."""
        styles = variables["styles"]
        with one_thread():
            return self.codes(variables) | {"w_plus": self.G.w_plus_of_styles(styles).to(styles.dtype)}


class FW(Space):
    """Feature maps after a block, and W+ for the blocks above it (Barbershop's FS space, Zhu et al. 2021)."""

    name = "f+w+"
    needs = ("features",)

    def _start(self, w_plus: torch.Tensor, seed: int) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            x, picture = self.G.features(w_plus.to(self.G.w_avg.dtype), self.features_at)
        maps = {"features": x.to(w_plus.dtype), "picture": picture.to(w_plus.dtype)}
        return super()._start(w_plus, seed) | maps

    def _codes(self, variables) -> dict[str, Any]:
        return super()._codes(variables) | {name: variables[name] for name in ("features", "picture")}

    def frozen_variables(self) -> tuple[str, ...]:
        return (*super().frozen_variables(), "picture")


SPACES = {space.name: space for space in (Z, W, Space, S, FW)}
NAMES = ("z", "w", "w+", "s", "w+noise", "f+w+")


def make_space(name: str, G, noise: str = "const", features_at: int = 16, precondition: float = 0.0) -> Space:
    """A space by name for a generator; "w+noise" is W+ with the noise maps.

    ``precondition`` above 0 writes vectors of W in their ``principal_basis`` of that power.

    Raises:
        UsageError: the generator lacks what the space needs.
    """
    optimise_noise = noise == "optimize" or name == "w+noise"
    basis = principal_basis(G, precondition) if precondition and name not in ("z", "s") else None
    return SPACES["w+" if name == "w+noise" else name](G, optimise_noise, features_at, basis)


@torch.no_grad()
def principal_basis(G, power: float, samples: int = 10_000, least: float = 0.02) -> torch.Tensor:
    """The principal axes of W, each times its standard deviation to some power, as rows [w_dim, w_dim].

    A mapping network stretches W along few directions. Adam takes steps of one size in every coordinate; in these
    coordinates it takes longer ones where W is wide, and the coordinates do not disturb each other, so that it needs
    several times fewer. The mean square of the scales is 1, so that learning rates keep their meaning.

    Args:
        power: 0 only turns the axes, 1 makes the samples' deviation equal along all.
        samples: of W, drawn with a fixed seed.
        least: smaller deviations, relative to the largest, count as this.
    """
    with one_thread():
        variances, axes = torch.linalg.eigh(torch.cov(mapped_samples(G, samples).T, correction=0))
    scales = variances.clamp_min(0).sqrt()
    scales = scales.clamp_min(least * scales.max()) ** power
    return (axes * (scales / scales.square().mean().sqrt())).T


def _noise_const(G, layer: str) -> torch.Tensor:
    """The stored noise map of a layer."""
    return G.synthesis.get_submodule(layer).noise_const.detach()
