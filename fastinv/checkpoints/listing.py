"""What is known of the bundled and the public checkpoints, for people and as JSON."""

import dataclasses
from pathlib import Path

from fastinv.checkpoints.registry import (
    BUNDLED,
    DEFAULT,
    PUBLIC,
    BundledModel,
    PublicModel,
    by_hand,
    cache_path,
    public_model,
)
from fastinv.files import shown


def overview(cache: str | Path | None = None) -> str:
    """All models in lines for people: the bundled ones, then the public ones by family and licence."""
    lines = []
    width = max(map(len, BUNDLED))
    for model in BUNDLED.values():
        side = f"{model.resolution} x {model.resolution}"
        what = model.description + (f", for {model.of}" if model.of else "") + (", default" * (model.name == DEFAULT))
        lines.append(f"{model.name:{width}}  {side}  {_size(model)}  {model.licence}  {what}")
    lines += ["", "Published by others; `fastinv models NAME` says more, `fastinv models NAME --download` fetches one:"]
    licence = None
    width = max(map(len, PUBLIC))
    for model in PUBLIC.values():
        if licence != (model.family, model.licence):
            licence = (model.family, model.licence)
            lines += ["", f"{model.family}, {model.page}", f"  licence: {model.licence}"]
        state = "on this machine" if _files(model, cache) else "in a browser only" if model.url is None else model.size
        lines.append(f"  {model.name:{width}}  {model.resolution:4}  {state:17}  {model.domain}")
    return "\n".join(lines)


def facts(name: str, cache: str | Path | None = None) -> str:
    """What is known of one model, in lines for people; the licence is among them.

    Raises:
        CheckpointError: neither a bundled nor a public model.
    """
    model = _model(name)
    side = f"{model.resolution} x {model.resolution}"
    use = [f'fastinv.load_{kind}("{name}")' for kind in model.kinds]
    if isinstance(model, BundledModel):
        rows = {"what": model.description, "pictures": side, "networks": ", ".join(model.kinds)}
        rows |= {"for": model.of} if model.of else {}
        rows |= {"licence": model.licence, "size": _size(model).strip()}
        rows["here"] = ", ".join(shown(path) for path in _files(model)) or "no"
        use += [f"fastinv invert PICTURE --method {model.method}"] if model.method else []
    else:
        here = _files(model, cache)
        rows = {
            "pictures": f"{model.domain}, {side}",
            "licence": model.licence,
            "page": model.page,
            "link": model.url or "none that a program may follow",
            "size": model.size if model.size_bytes is None else f"{model.size} ({model.size_bytes:,} bytes)",
            "sha256": model.sha256 or "not known; that of the first download is recorded and later uses are held to it",
            "here": shown(here[0]) if here else "no",
        }
        if not here:
            rows["get"] = f"fastinv models {name} --download" if model.url else by_hand(model, cache)
    rows["use"] = ", ".join(use)
    return "\n".join([name, *(f"  {title:8}  {text}" for title, text in rows.items())])


def records(name: str | None = None, cache: str | Path | None = None) -> list[dict]:
    """The same as JSON can hold it: of each model its fields, whether it is "bundled", and its "files" that are here.

    Args:
        name: of the one model; None is all of them.
        cache: the cache folder; None is ``cache_folder()``.

    Raises:
        CheckpointError: neither a bundled nor a public model.
    """
    models = [*BUNDLED.values(), *PUBLIC.values()] if name is None else [_model(name)]
    return [
        dataclasses.asdict(model)
        | {"bundled": isinstance(model, BundledModel), "files": [str(path) for path in _files(model, cache)]}
        for model in models
    ]


def _model(name: str) -> BundledModel | PublicModel:
    return BUNDLED[name] if name in BUNDLED else public_model(name)


def _files(model: BundledModel | PublicModel, cache: str | Path | None = None) -> list[Path]:
    """Those of its files that are on this machine."""
    if isinstance(model, BundledModel):
        paths = [model.file(kind) for kind in model.kinds]
    else:
        paths = [cache_path(model, cache)]
    try:
        return [path for path in paths if path.is_file()]
    except OSError:  # a folder that must not be looked into
        return []


def _size(model: BundledModel) -> str:
    """Of all its files."""
    files = _files(model)
    return f"{sum(path.stat().st_size for path in files) / 1e6:4.1f} MB" if files else "not installed"
