"""What the commands of ``fastinv.cli.editing`` share: where their results go, and how they are written."""

from pathlib import Path

from fastinv.cli.common import command, free_folder
from fastinv.errors import UsageError
from fastinv.files import atomic_folder, check_writable, shown

LATENT, STRIP, PICTURES = "latent.safetensors", "strip.png", "pictures"
EDITS, EDIT = "edits", "edit.json"  # in the folder of an input: what was done with it
NAMED = 3  # inputs, or directions, that the name of a folder says


class StripOfEdits:
    """One strip: directions that are added up, and their strengths."""

    def __init__(self, directions: list, strengths: list[float] | None, mask: Path | None):
        names = [direction.name for direction in directions]
        more = f"+{len(names) - NAMED} more" if len(names) > NAMED else ""
        self.name = "+".join(names[:NAMED]) + more + ("" if mask is None else f"-{mask.stem}")
        self.directions = directions
        typical = min(direction.strength for direction in directions)
        self.strengths = list(dict.fromkeys(strengths or (typical * part for part in (-1, -0.5, 0, 0.5, 1))))

    def write(self, G, source, folder: Path, mask, soften, facts: dict) -> None:
        """Make and write the strip; whether the directions are for G was asked before."""
        import torch

        from fastinv.editing import edit
        from fastinv.editing.blend import blend
        from fastinv.editing.codes import render

        variants = []
        for strength in self.strengths:
            codes = source.codes
            for direction in self.directions:
                codes = edit(G, codes, direction, strength, force=True, noise=source.noise)
            variants.append(codes)
        codes = {name: torch.cat([one[name] for one in variants]) for name in variants[0]}
        if mask is None:
            pictures = render(G, codes, source.noise).cpu()
        else:
            pictures = blend(G, source, codes, mask, soften, source.noise).cpu()
        labels = [f"{strength:+g}" if strength else "0" for strength in self.strengths]
        tiles = dict(zip(labels, pictures, strict=True))
        before = {} if source.picture is None else {"picture": source.picture}
        before |= {} if 0 in self.strengths else {"before": render(G, source.codes, source.noise)[0].cpu()}
        before |= {} if mask is None else {"mask": mask[0].cpu() * 2 - 1}
        shows = before | tiles
        about = [
            {"name": one.name, "space": one.space, "layers": list(one.layers), "source": one.source}
            for one in self.directions
        ]
        name = "+".join(one.name for one in self.directions)
        facts = {"direction": name, "strengths": self.strengths, "directions": about} | facts
        rows = [list(shows.values())], [list(shows)]
        write(folder, EDIT, *rows, f"{source.name}: {name}", tiles, codes, source.noise, [source.path], facts)


def open_generator(name: str, device: str, crop: str, seed: int, out: Path):
    """The generator, when the options that all commands share are right."""
    from fastinv.checkpoints import load_generator
    from fastinv.data.pictures import CROPS
    from fastinv.devices import named_device
    from fastinv.inversion.task import whole_number

    whole_number("--seed", seed, least=0)
    if crop not in CROPS:
        raise UsageError(f"unknown crop {crop!r}; choose one of {', '.join(CROPS)}")
    where = named_device(device)
    check_writable(out)
    return load_generator(name, device=where)


def facts_of(G) -> dict:
    """What the file of an edit says of how it was made."""
    import fastinv
    from fastinv.checkpoints import network_hash

    facts = {"generator": {"sha256": network_hash(G), "resolution": G.resolution}, "command": command()}
    return facts | {"versions": {"fastinv": fastinv.__version__}}


def write(
    folder: Path, document: str, rows: list, labels: list, title: str, pictures: dict, codes: dict, noise: str,
    inputs: list[Path], facts: dict, extra=None,
) -> None:  # fmt: skip
    """Write what a command made into a folder, whole or not at all; what is there is replaced."""
    import json

    from fastinv.data.pictures import save_picture
    from fastinv.latents import save_latent
    from fastinv.report.strip import strip

    facts = facts | {"inputs": [str(path.resolve()) for path in inputs], "noise": noise}
    with atomic_folder(folder) as new:
        strip(rows, labels, title, new / STRIP)
        (new / PICTURES).mkdir()
        for name, picture in pictures.items():
            save_picture(picture, new / PICTURES / f"{name}.png")
        others = {name: value for name, value in codes.items() if name != "w_plus"}
        about = {"generator_sha256": facts["generator"]["sha256"], "noise": noise, "made_by": document}
        save_latent(new / LATENT, codes["w_plus"], about, others)
        if extra is not None:
            extra(new)
        (new / document).write_text(json.dumps(facts, indent=1) + "\n")


def free_place(out: Path, what: str, inputs: list[Path]) -> Path:
    """OUT/WHAT-NAMES; with a number where that is of other inputs."""
    files = [str(path.resolve()) for path in inputs]
    names = [_short(path) for path in inputs]
    more = [f"{len(names) - NAMED}-more"] if len(names) > NAMED else []
    return free_folder(
        out, "-".join([what, *names[:NAMED], *more]), lambda folder: _read(folder / f"{what}.json", "inputs") == files
    )


def _read(path: Path, *keys: str):
    """What a JSON file says under these keys; None where it does not say, or is none."""
    import json

    try:
        value = json.loads(path.read_text())
        for key in keys:
            value = value[key]
        return value
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _short(path: Path) -> str:
    path = path.resolve()
    return (path.parent.name if path.name == LATENT else path.name if path.is_dir() else path.stem)[:60]


def check_once(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two of the {what} are called {shown(name)!r}, and so would be their folders; rename one")


def check_place(folder: Path, document: str) -> None:
    """A UsageError unless a folder is free, or holds what the same command wrote."""
    if folder.exists() and not (folder / document).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{shown(folder)} is there, and no edit: it has no {document}; choose another --out")


def check_input(source, home: Path, document: Path) -> None:
    """A UsageError where an edit of another input of that name is there; home is the folder of the input's results."""
    from fastinv.inversion.result import RESULT

    def of_home(path: str) -> bool:
        return path in (str(home.resolve()), str(home.resolve() / LATENT), _read(home / RESULT, "settings", "picture"))

    found, own = _read(document, "inputs"), str(source.path.resolve())
    before = found[0] if isinstance(found, list) and found and isinstance(found[0], str) else own
    if before == own or ((not source.codes or of_home(own)) and (of_home(before) or not Path(before).exists())):
        return
    raise UsageError(
        f"{shown(document.parent)} is an edit of {shown(before)}, not of {shown(source.path)}; choose another --out"
    )


def check_homes(sources: list, G, method: str | None, out: Path) -> None:
    """A UsageError where the inversion of a picture would replace another result."""
    from fastinv.editing.codes import default_method
    from fastinv.inversion.result import RESULT

    for source in sources:
        file = out / source.name / RESULT
        if source.codes or not file.is_file():
            continue
        mine = _read(file, "settings", "picture") == str(source.path.resolve())
        mine = mine and _read(file, "settings", "method") == (method or default_method(G))
        if not mine:
            raise UsageError(
                f"{shown(file.parent)} holds another inversion; to edit that give it in the place of "
                f"{shown(source.path)}, or choose another --out"
            )


def save_inversion(source, out: Path) -> None:
    if source.result is not None:
        from dataclasses import replace

        from fastinv.cli.batches import save

        settings = {name: value for name, value in source.result.settings.items() if name != "why_eager"}
        result = replace(source.result, settings=settings | {"command": command()})
        save(result, source.picture, out / source.name, shown(source.path.name))


def kind_of(name: str) -> str:
    """What the codes of a name are, for people."""
    kinds = {"noise": "noise maps", "weights": "tuned weights", "styles": "style channels"}
    return kinds.get(name.partition(".")[0], name)
