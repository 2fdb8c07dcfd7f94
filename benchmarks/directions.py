"""Directions for faces64 from every source: what they change, and what else changes. Chooses those that are shipped.

    python benchmarks/directions.py --ship                       finds, compares and writes the bundled file
    python benchmarks/directions.py [--rows NAME,...]            measures on held-out portraits
    python benchmarks/directions.py --table                      the tables of what was measured

Learned from 8000 random codes of faces64 (seed 0) and what the attribute network reads from their pictures. SeFa and
GANSpace give components without a name, 40 here: an attribute gets the one that changes it most, relative to the mean
of the others, on 16 other codes. Those of SeFa, GANSpace and StyleSpace (64 codes) are scaled there to one standard
deviation of the attribute for a strength of 1, by a factor of 10 at most. ``--ship`` takes for each attribute the
source in W with the least relative change of the others on these 64 codes, of seed 1. (Channels of S are no candidates:
so far out they blur mouths and eyes, which the attribute network does not mind.) None of them is a held-out portrait.
What was found or measured is not done again: --kept holds the one, --out the other, to be removed for a new start.

Measured on ``--count`` held-out portraits, with codes of the shipped pSp encoder, in standard deviations of the
attributes, as the attribute network reads them:

    moved     change of the attribute for a strength of 1: half of that from -1 to 1, mean over the pictures
    others    mean absolute change of the other 15, relative to that of the attribute, at strengths -1 and 1
    worst     the same for the one of them that changes most
    curve     mean of the attribute at strengths -2, -1, 0, 1, 2
    steps     share of the steps from one strength to the next at which the attribute rises, of those that have room: of
              the change of 1 that a step asks for at least a half lies within the attribute's range, counted from what
              the picture has
    pictures  share of pictures that rise at all steps with room, and fall by less than a tenth at the others
    strictly  share of pictures that rise at all four steps
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from harness import ROOT, facts, markdown, write

import fastinv
from fastinv.data import faces
from fastinv.editing import edit
from fastinv.editing.direction import BUNDLED_END, WEIGHTS, Direction, load_directions, save_directions
from fastinv.editing.ganspace import ganspace
from fastinv.editing.interfacegan import interfacegan
from fastinv.editing.regression import regression
from fastinv.editing.samples import Samples, effects, read_samples, scaled
from fastinv.editing.sefa import sefa
from fastinv.editing.stylespace import stylespace
from fastinv.latents import expand, mapped_samples
from fastinv.models.attributes import load_attribute_network

OUT = ROOT / "benchmarks" / "results" / "directions"
SAMPLES, COMPONENTS, CHOOSING, FEW = 8000, 40, 64, 16
STRENGTHS = (-2, -1, 0, 1, 2)
ROOM, FALL = 0.5, 0.1  # see ``steps`` and ``pictures`` above
TYPICAL = {"glasses": 2.0}  # strengths of the shipped ones; of glasses less often changes nothing
BATCH = 100
SHIPPED = "shipped"
SOURCES = {
    "regression": lambda G, samples: regression(G, samples),
    "interfacegan": lambda G, samples: interfacegan(G, samples),
    "conditional": lambda G, samples: interfacegan(G, samples, conditions=samples.names),
    "stylespace 1": lambda G, samples: stylespace(G, samples),
    "stylespace 5": lambda G, samples: stylespace(G, samples, channels=5),
    "sefa": lambda G, samples: sefa(G, COMPONENTS),
    "ganspace": lambda G, samples: ganspace(G, COMPONENTS),
}
UNNAMED = ("sefa", "ganspace")
NEW_LENGTH = ("stylespace 1", "stylespace 5", *UNNAMED)  # what is scaled to the attribute
CANDIDATES = ("regression", "interfacegan", "conditional")  # to be shipped


class Judge:
    """Directions, edits of the same codes and what the attribute network reads from them."""

    def __init__(self, kept: Path):
        self.G, self.network, self.kept = fastinv.load_generator("faces64"), load_attribute_network(), kept
        self.prepared = self.G.prepare()
        self.choosing = expand(mapped_samples(self.G, CHOOSING, seed=1).float(), self.G.num_ws)

    def samples(self) -> Samples:
        path = self.kept / "samples.pt"
        if not path.exists():
            found = read_samples(self.G, self.network, SAMPLES)
            torch.save({"w": found.w, "scores": found.scores}, path)
        return Samples(**torch.load(path, weights_only=True), names=faces.NAMES)

    def portraits(self, count: int) -> torch.Tensor:
        """Codes of held-out portraits."""
        path = self.kept / f"portraits-{count}.pt"
        if not path.exists():
            images, _ = faces.sample(count, seed=0, split="heldout")
            torch.save(fastinv.invert(self.G, images, method="psp", progress=False).w_plus, path)
        return torch.load(path, weights_only=True)

    def directions(self, source: str) -> list[Direction]:
        """One for each attribute, in the order of faces.NAMES."""
        path = WEIGHTS / f"faces64{BUNDLED_END}" if source == SHIPPED else self.kept / f"{source}.safetensors"
        if not path.exists():
            save_directions(path, self.found(source))
        found = load_directions(path)
        return [found[name] for name in faces.NAMES]

    def found(self, source: str) -> list[Direction]:
        found, w_plus = SOURCES[source](self.G, self.samples()), self.choosing
        if source in UNNAMED:
            w_plus = w_plus[:FEW]
            found = self.best_components(found, w_plus)
        if source in NEW_LENGTH:
            found = [scaled(one, self.G, self.network, index, w_plus, rounds=1) for index, one in enumerate(found)]
        return found

    def best_components(self, components: list[Direction], w_plus: torch.Tensor) -> list[Direction]:
        changes = torch.stack([effects(self.G, one, self.network, w_plus) for one in components]).abs()
        others = (changes.sum(1, keepdim=True) - changes) / (changes.shape[1] - 1)
        best = (changes / others).argmax(0).tolist()
        return [replace(components[index], name=name) for index, name in zip(best, faces.NAMES, strict=True)]

    @torch.no_grad()
    def read(self, w_plus: torch.Tensor, direction: Direction, strength: float) -> torch.Tensor:
        """[N, attributes], in standard deviations."""
        codes = edit(self.G, w_plus, direction, strength)
        parts = codes.get("styles", codes["w_plus"]).split(BATCH)
        return torch.cat([self.network.standardised(self.prepared.synthesis(part)) for part in parts]).double()


def changed(ends: list[torch.Tensor], index: int) -> dict:
    each = torch.stack(ends).abs().mean((0, 1))
    own, others = float(each[index]), each.clone()
    others[index] = 0
    return {
        "moved": float((ends[1] - ends[0])[:, index].mean()) / 2,
        "others": float(others.sum()) / (len(each) - 1) / own,
        "worst": float(others.max()) / own,
        "which": faces.NAMES[int(others.argmax())],
    }


def measured(judge: Judge, w_plus, before: torch.Tensor, direction: Direction, index: int, strengths: tuple) -> dict:
    """The columns of a direction; curve and what follows it where all strengths are there."""
    read = {strength: judge.read(w_plus, direction, strength) if strength else before for strength in strengths}
    row = changed([read[strength] - before for strength in (-1, 1)], index)
    if strengths != STRENGTHS:
        return row
    attribute = faces.ATTRIBUTES[faces.NAMES[index]]
    mean, std = float(judge.network.means[index]), float(judge.network.stds[index])
    low, high = (attribute.low - mean) / std, (attribute.high - mean) / std
    own = torch.stack([read[strength][:, index] for strength in strengths])
    asked = (own[strengths.index(0)].clamp(low, high) + torch.tensor(strengths)[:, None]).clamp(low, high)
    room, steps = asked.diff(dim=0) >= ROOM, own.diff(dim=0)
    return row | {
        "curve": own.mean(1).tolist(),
        "pictures": float(torch.where(room, steps > 0, steps > -FALL).all(0).double().mean()),
        "strictly": float((steps > 0).all(0).double().mean()),
        "with room": float(room.double().mean()),
        "steps": float((steps > 0)[room].double().mean()),
    }


def measure(judge: Judge, row: str, w_plus: torch.Tensor, strengths: tuple, path: Path) -> dict:
    """All directions of a row, written one by one: what is there is not measured again."""
    result = json.loads(path.read_text()) if path.exists() else {"row": row, "count": len(w_plus), "each": {}}
    result |= {"strengths": strengths, "facts": facts(torch.device("cpu"))}
    directions, each = judge.directions(row), result["each"]
    before = judge.read(w_plus, directions[0], 0)
    for index, direction in enumerate(directions):
        if direction.name in each:
            continue
        each[direction.name] = measured(judge, w_plus, before, direction, index, strengths)
        each[direction.name] |= {"source": direction.facts.get("chosen from", row)}
        print(row, direction.name, each[direction.name], flush=True)
        write(path, result)
    return result


def ship(judge: Judge, out: Path) -> None:
    """Choose among the candidates and write the bundled file."""
    table = {}
    for source in CANDIDATES:
        path = judge.kept / f"{source}.json"
        table[source] = measure(judge, source, judge.choosing, (-1, 0, 1), path)["each"]
    found = {source: judge.directions(source) for source in CANDIDATES}
    chosen = []
    for index, name in enumerate(faces.NAMES):
        best = min(CANDIDATES, key=lambda source: table[source][name]["others"])
        about = {key: round(table[best][name][key], 4) for key in ("moved", "others")}
        facts_ = found[best][index].facts | {"chosen from": best, "on 64 codes": about}
        chosen.append(replace(found[best][index], strength=TYPICAL.get(name, 1.5), facts=facts_))
    command = "python benchmarks/directions.py --ship"
    save_directions(WEIGHTS / f"faces64{BUNDLED_END}", chosen, {"command": command, "generator": "faces64"})
    write(out / "choice.json", {"chosen": {one.name: one.facts["chosen from"] for one in chosen}, "table": table})


def tables(folder: Path) -> str:
    """Markdown: the shipped directions, and all sources side by side."""
    found = {}
    for row in (SHIPPED, *SOURCES):
        path = folder / f"{row.replace(' ', '_')}.json"
        result = json.loads(path.read_text()) if path.exists() else {"each": {}}
        if len(result["each"]) == len(faces.NAMES):  # else it is not finished
            found[row] = result
    text = "# benchmarks/directions.py\n"
    if SHIPPED in found:
        rows = [
            {
                "direction": name, "source": row["source"], "moved": row["moved"], "others": row["others"],
                "worst": f"{row['worst']:.2f} {row['which']}",
                "curve": " ".join(f"{value:+.2f}" for value in row["curve"]),
                **{name: f"{100 * row[name]:.1f} %" for name in ("steps", "pictures", "strictly")},
            }
            for name, row in found[SHIPPED]["each"].items()
        ]  # fmt: skip
        text += f"\nThe shipped directions, {found[SHIPPED]['count']} held-out portraits:\n\n{markdown(rows)}"
    sources = [row for row in SOURCES if row in found]
    if sources:
        rows = [
            {"moved / others": name}
            | {row: f"{found[row]['each'][name]['moved']:.2f} / {found[row]['each'][name]['others']:.3f}"
               for row in sources}
            for name in faces.NAMES
        ]  # fmt: skip
        text += f"\nThe sources, {found[sources[0]]['count']} held-out portraits:\n\n{markdown(rows)}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join([SHIPPED, *SOURCES]), help="what to measure, separated by commas")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--kept", type=Path, default=Path("build/directions"), help="what is found and used again")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--ship", action="store_true", help="choose the shipped directions and write their file")
    parser.add_argument("--table", action="store_true", help="only make the tables of what was measured")
    options = parser.parse_args()
    for folder in (options.out, options.kept):
        folder.mkdir(parents=True, exist_ok=True)
    if options.ship:
        return ship(Judge(options.kept), options.out)
    if not options.table:
        judge = Judge(options.kept)
        w_plus = judge.portraits(options.count)
        for row in options.rows.split(","):
            if row not in (SHIPPED, *SOURCES):
                parser.error(f"no row is called {row!r}; the rows are {', '.join([SHIPPED, *SOURCES])}")
            path = options.out / f"{row.replace(' ', '_')}.json"
            measure(judge, row, w_plus, STRENGTHS if row == SHIPPED else (-1, 0, 1), path)
    page = tables(options.out)
    (options.out / "table.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
