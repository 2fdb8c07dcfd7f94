"""Directions: what to add to codes for one change of the picture, and the files that hold them.

A file is safetensors of the kind "edit directions": one vector for each direction, and in the metadata what belongs to
it. Files of other projects: see ``fastinv.editing.formats``.
"""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fastinv.checkpoints import network_hash
from fastinv.editing.formats import PUBLIC, read_public
from fastinv.errors import CheckpointError, UsageError
from fastinv.files import load_tensors, save_tensors, shown

SPACES = ("w", "w+", "s")
KIND = "edit directions"  # of a file
WEIGHTS = Path(__file__).parents[1] / "weights"
BUNDLED_END = "-directions.safetensors"
ABOUT = ("name", "space", "layers", "strength", "source", "generator_sha256", "facts")  # in the metadata of a file
# A name is that of a folder, too, in the results of `fastinv edit`.
NAME = re.compile(r"\w[\w .,+-]{0,63}")


@dataclass(frozen=True, eq=False)
class Direction:
    """A displacement of codes; ``fastinv.editing.edit`` adds so many of it.

    Attributes:
        name: letters, digits, "_", "-", ".", "+", "," and spaces, at most 64.
        space: "w", "w+" or "s".
        vector: [w_dim] of "w", [num_ws, w_dim] of "w+", [S] style channels of "s" (in the order of ``G.style_layers``).
            Strength 1 adds it once: that is one standard deviation of the attribute, or of the component, where it is
            known.
        layers: (first, end) of the style inputs that it acts on, counted from 0, ``end`` not included; None is to the
            last one.
        strength: one that shows well.
        source: how it was found: "sefa", "ganspace", "interfacegan", "regression", "stylespace", or where its file is
            from.
        generator_sha256: of the generator that it is for, see ``network_hash``; None if nobody knows.
        facts: whatever else is known, as JSON.

    Raises:
        UsageError: one of them cannot be.
    """

    name: str
    space: str
    vector: torch.Tensor
    layers: tuple[int, int | None] = (0, None)
    strength: float = 3.0
    source: str = "unknown"
    generator_sha256: str | None = None
    facts: dict = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise UsageError(
                f"a direction cannot be called {str(self.name)[:80]!r}: letters, digits, '_-.,+' and spaces, "
                "64 at most, the first a letter, a digit or '_'"
            )
        what = f"direction {self.name!r}"
        if self.space not in SPACES:
            raise UsageError(f"{what}: the space must be one of {', '.join(SPACES)}, not {str(self.space)[:40]!r}")
        dimensions = 2 if self.space == "w+" else 1
        if not isinstance(self.vector, torch.Tensor) or self.vector.ndim != dimensions or not len(self.vector):
            shape = list(getattr(self.vector, "shape", ()))
            raise UsageError(f"{what}: a vector of space {self.space} must have {dimensions} dimension(s), not {shape}")
        if not self.vector.is_floating_point() or not self.vector.isfinite().all() or not self.vector.any():
            raise UsageError(f"{what}: the vector must be of finite numbers, not all of them zero")
        object.__setattr__(self, "layers", _checked_layers(self.layers, what))
        number = isinstance(self.strength, int | float) and math.isfinite(self.strength) and self.strength > 0
        if not number:
            raise UsageError(f"{what}: the typical strength must be a number above 0, not {str(self.strength)[:40]}")
        sha256 = self.generator_sha256
        known = sha256 is None or (isinstance(sha256, str) and sha256.isalnum())
        if not known or not isinstance(self.source, str) or not isinstance(self.facts, dict):
            raise UsageError(f"{what}: the source, the generator's hash or the facts are not what they should be")

    def for_generator(self, G) -> "Direction":
        """The same with ``layers`` as two numbers, if its vector fits the generator.

        Raises:
            UsageError: it is for a generator of another kind or size, or has layers that G lacks.
        """
        what = f"direction {self.name!r}"
        if self.space == "s" and not hasattr(G, "style_layers"):
            raise UsageError(f"{what} is of style channels, which need a StyleGAN2 generator, not {type(G).__name__}")
        if self.space == "s":
            shape = [list(G.style_layers().values())[-1].stop]
        else:
            shape = [G.w_dim] if self.space == "w" else [G.num_ws, G.w_dim]
        if list(self.vector.shape) != shape:
            raise UsageError(
                f"{what} has a vector {list(self.vector.shape)}, and this generator takes {shape} in space "
                f"{self.space}: is it for another generator?"
            )
        first, end = self.layers
        end = G.num_ws if end is None else end
        if end > G.num_ws:
            raise UsageError(f"{what} acts on layers {first} to {end}; this generator has {G.num_ws}")
        return replace(self, layers=(first, end))


def _checked_layers(layers, what: str) -> tuple[int, int | None]:
    numbers = isinstance(layers, tuple | list) and len(layers) == 2 and type(layers[0]) is int
    if not numbers or (layers[1] is not None and type(layers[1]) is not int):
        raise UsageError(f"{what}: the layers must be (first, end), not {str(layers)[:40]}")
    if layers[0] < 0 or (layers[1] is not None and layers[1] <= layers[0]):
        raise UsageError(f"{what}: the layers must be (first, end) with 0 <= first < end, not {str(layers)[:40]}")
    return tuple(layers)


def save_directions(path: str | Path, directions: list[Direction], facts: dict | None = None) -> None:
    """Write directions, in float32, and JSON-serialisable facts about all of them; complete or not at all.

    Raises:
        UsageError: none, two of one name, or the file cannot be written.
    """
    names = [direction.name for direction in directions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise UsageError(f"two directions are called {twice[0]!r}" if twice else "there is no direction to write")
    about = [{key: getattr(direction, key) for key in ABOUT} for direction in directions]
    tensors = {direction.name: direction.vector.float() for direction in directions}
    save_tensors(path, tensors, KIND, {"directions": about, "facts": facts or {}})


def load_directions(path: str | Path) -> dict[str, Direction]:
    """Read what ``save_directions`` wrote: {name: direction}, in the order of writing.

    Raises:
        CheckpointError: missing, damaged, or no file of directions.
    """
    tensors, facts = load_tensors(path, KIND)
    try:
        found = [
            Direction(vector=tensors[about["name"]], **{key: about[key] for key in ABOUT})
            for about in facts["directions"]
        ]
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise CheckpointError(f"{shown(path)} is no file of directions, or damaged: {error}") from error
    if not found or len({direction.name for direction in found}) != len(found):
        raise CheckpointError(f"{shown(path)} holds no directions, or two of one name; the file is damaged")
    return {direction.name: direction for direction in found}


def bundled() -> dict[str, Path]:
    """The sets of directions that come with the package: name -> file."""
    files = sorted(WEIGHTS.glob(f"*{BUNDLED_END}"))
    return {path.name.removesuffix(BUNDLED_END): path for path in files}


def find_directions(name_or_path: str | Path, G=None) -> dict[str, Direction]:
    """Directions of a bundled set ("faces64"), of a file of ours, or of one in a public format.

    Args:
        name_or_path: a bundled name, or a file: .safetensors, .npz of GANSpace, .npy of InterFaceGAN or IDInvert, .pt
            of e4e. Nothing in a file is run. A file that has the name comes first.
        G: the generator that they have to fit; some public files cannot be read without it.

    Returns:
        {name: direction}; with G their ``layers`` are numbers.

    Raises:
        CheckpointError: no such file or name, damaged, harmful, or of another kind. UsageError: not for G by its shape
        (its hash is looked at by ``edit``).
    """
    path = Path(name_or_path)
    if not _is_file(path):
        known = bundled()
        if str(name_or_path) not in known:
            raise CheckpointError(
                f"no directions {shown(name_or_path)!r}: neither a file nor a bundled set ({', '.join(known)})"
            )
        path = known[str(name_or_path)]
    if path.suffix in PUBLIC:
        try:
            read = read_public(path, None if G is None else G.num_ws)
            found = {fields["name"]: Direction(**fields) for fields in read}
        except UsageError as error:
            raise CheckpointError(f"{shown(path)}: {error}") from error
    else:
        found = load_directions(path)
    return found if G is None else {name: direction.for_generator(G) for name, direction in found.items()}


def _is_file(path: str | Path) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # a name that is too long, a folder that must not be looked into
        return False


def find_direction(what: str, G) -> Direction:
    """One direction, as commands name it: NAME (of a bundled set for G), FILE (that holds one), SET:NAME or FILE:NAME.

    Raises:
        UsageError: no such name, or a file of several. CheckpointError: as for ``find_directions``.
    """
    if _is_file(what):
        found = find_directions(what, G)
        if len(found) > 1:
            raise UsageError(f"{shown(what)} holds several directions; name one, as {what}:{next(iter(found))}")
        return next(iter(found.values()))
    place, colon, name = what.rpartition(":")
    if colon:
        found = find_directions(place, G)
        if name not in found:
            raise UsageError(f"{shown(place)} has no direction {name!r}; there are {', '.join(found)}")
        return found[name]
    sets = {place: load_directions(path) for place, path in bundled().items()}
    own = network_hash(G)
    others = []
    for place, directions in sets.items():
        if what in directions and directions[what].generator_sha256 == own:
            return directions[what].for_generator(G)
        others += [place] if what in directions else []
    if others:
        raise UsageError(
            f"direction {what!r} of {others[0]} is for another generator than this one; give {others[0]}:{what} with "
            "--force to use it all the same"
        )
    known = [name for directions in sets.values() for name in directions]
    raise UsageError(
        f"no direction {what!r}: neither a file (FILE or FILE:NAME) nor one of {', '.join(known)}; "
        "`fastinv directions list` shows them"
    )
