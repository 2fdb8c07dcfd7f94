"""The commands, the Python and the links of README.md and docs: valid, and run with the embedded generator.

A command is a line `fastinv ...` of an indented or fenced block. The parser must take each as it is printed. Each is
also run, page by page, in a folder that holds FILES, with few steps where SHORTER says so, unless NOT_RUN has a reason.
A new command needs nothing here as long as it runs like that.
"""

import glob
import importlib.util
import re
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
API = ROOT / "docs/make_api.py"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
)

# (page, command or pattern) -> why it is not run here; it is parsed all the same
NOT_RUN = {
    ("*", "fastinv train psp *"): "hours; test_training_encoders.py trains small ones",
    ("*", "fastinv train e4e *"): "hours; test_training_encoders.py trains small ones",
    ("*", "fastinv train idinvert *"): "hours; test_training_encoders.py trains small ones",
    ("*", "fastinv train alae *"): "hours; test_training_encoders.py trains small ones",
    ("docs/training/faces64.md", "fastinv train generator *"): "hours, and [--resume] ... stands for more options",
    ("*", "fastinv ui*"): "waits for a browser; test_ui_browser.py drives it",
    ("docs/checkpoints.md", "* --download"): "needs the network",
}

# pattern of a command -> what is added to it, so that it takes seconds; later options win
SHORTER = {
    "fastinv invert *--method psp*": "--quiet",
    "fastinv invert *--method e4e*": "--quiet",
    "fastinv invert *--method idinvert-encoder*": "--quiet",
    "fastinv invert *--method alae*": "--quiet",
    "fastinv directions find *--generator faces64-alae*": "--samples 300",
    "fastinv invert *--method image2stylegan++*": "--steps 3 --set noise_steps=3 --quiet",
    "fastinv invert *--method pti*": """--steps 2 --set pivot_options='{"steps": 3}' --quiet""",
    "fastinv invert *": "--steps 3 --quiet",
    "fastinv evaluate *--generator*": "--metrics psnr,ssim",  # edits and lec take minutes
    "fastinv directions find *ganspace*": "--samples 300",
    "fastinv inpaint *": "--steps 3 --set noise_steps=2 --quiet",
    "fastinv diffuse *": "--steps 3 --quiet",
    "fastinv train generator *": "--kimg 0.004 --batch 4 --resolution 16 --channels 8,8,8",
    "fastinv convert ffhq.pkl ffhq.pt --format ada": "--overwrite",  # the other way to write the same file
}

# (page, block of Python) -> why it is not run
PYTHON_NOT_RUN = {
    ("docs/api.md", "*"): "signatures",
    ("*", "*ffhq.pkl*"): "a large published file, under a licence of its own",
    ("*", "*e4e_ffhq_encode.pt*"): "a large published file, under a licence of its own",
}

# page -> {what a block says: what is run in its place}, so that it takes seconds
PYTHON_SHORTER = {
    "README.md": {"steps=300": "steps=3"},
    "docs/inversion.md": {"steps=300": "steps=3", "steps=50": "steps=3"},
    "docs/pti.md": {'method="pti")': 'method="pti", steps=2, pivot_options={"steps": 3})'},
    "docs/editing.md": {"pictures[1], face)": "pictures[1], face, steps=3)"},
    "docs/local-editing.md": {"inpaint(G, pictures, masks)": "inpaint(G, pictures, masks, steps=3, noise_steps=2)"},
    "docs/image-to-image.md": {"runs/sketch/best_encoder.safetensors": "faces64-sketch"},
}


def steps(page: str) -> list[tuple[str, str]]:
    """("command" | "python", text) of a page, in order.

    Commands: continued lines joined, comments and the brackets of what may be left out removed.
    """
    text = re.sub(r"\\\n\s*", " ", (ROOT / page).read_text())
    variables = {name: " ".join(value.split()) for name, value in re.findall(r"where `(\w+)` is `([^`]*)`", text)}
    found, fence, block = [], None, ""
    for line in text.splitlines():
        if line.startswith("```"):
            if fence == "python":
                found.append(("python", block))
            fence, block = line[3:] if fence is None else None, ""
        elif fence == "python":
            block += line + "\n"
        elif re.match(r" {4,}(\$ )?fastinv " if fence is None else r"(\$ )?fastinv ", line):
            line = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line.strip().removeprefix("$ "))
            line = re.sub(r"\[(-.*?)\]", r"\1", line).removesuffix(" ...")
            found.append(("command", shlex.join(shlex.split(line, comments=True))))
    return found


def commands(page: str) -> list[str]:
    return [text for kind, text in steps(page) if kind == "command"]


def python_blocks(page: str) -> list[str]:
    return [text for kind, text in steps(page) if kind == "python"]


def shorter(command: str) -> str:
    """What is added to a command when it is run here."""
    return next((added for pattern, added in SHORTER.items() if fnmatch(command, pattern)), "")


def inline_commands(page: str) -> list[str]:
    """`fastinv ...` within the text."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`(fastinv [^`]+)`", text)]


def exception(table: dict, page: str, text: str) -> tuple | None:
    """The entry of NOT_RUN or PYTHON_NOT_RUN that a command or block of a page falls under."""
    return next((entry for entry in table if fnmatch(page, entry[0]) and fnmatch(text, entry[1])), None)


def check(command: str) -> None:
    """Raise where the parser of `fastinv` does not take a command. Nothing is run."""
    import typer

    from fastinv.cli import app
    from fastinv.cli.training import TRAINERS

    words = shlex.split(command)[1:]
    if words[0] == "train" and words[1] in TRAINERS:  # these have parsers of their own
        importlib.import_module(f"fastinv.training.{words[1]}").parser().parse_args(words[2:])
        return
    group, context = typer.main.get_command(app), None
    while hasattr(group, "commands"):
        assert words and words[0] in group.commands, f"no command {words[:1]} in {command!r}"
        context = group.make_context("fastinv", [words[0]], parent=context, resilient_parsing=True)
        group, words = group.commands[words[0]], words[1:]
    group.make_context(group.name, list(words), parent=context)


def check_names(command: str) -> None:
    """The same for `fastinv command [--option X] ...` within the text: the command and its options are there."""
    import typer

    from fastinv.cli import app
    from fastinv.cli.training import TRAINERS

    words = re.sub(r"[][|]", " ", command).split()[1:]
    group = typer.main.get_command(app)
    options = {"--version", "--help"}
    while hasattr(group, "commands") and words and not words[0].startswith("-") and words[0].islower():
        name = words.pop(0)
        assert name in group.commands, f"no command {name!r} in {command!r}"
        group = group.commands[name]
        options = {option for parameter in group.params for option in parameter.opts} | {"--help"}
        if name in TRAINERS:
            options = set(importlib.import_module(f"fastinv.training.{name}").parser()._option_string_actions)
    unknown = {word.partition("=")[0].rstrip(",.") for word in words if re.match(r"--?[a-z]", word)} - options
    assert not unknown, f"{command!r} has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_valid(page):
    for command in commands(page):
        check(command)
    for command in inline_commands(page):
        check_names(command)


def test_a_wrong_command_is_noticed():
    for command in (
        "fastinv nonesuch", "fastinv invert", "fastinv invert a.png --nonesuch 3", "fastinv invert a.png --seed x",
        "fastinv train psp --data faces --out x --nonesuch", "fastinv train nonesuch",
    ):  # fmt: skip
        with pytest.raises(Exception, match=r"nonesuch|[Mm]issing|valid integer"):
            check(command)
    for command in ("fastinv nonesuch", "fastinv invert A --nonesuch", "fastinv train psp [--nonesuch]"):
        with pytest.raises(AssertionError, match="nonesuch"):
            check_names(command)
    assert "fastinv invert 'portrait.jpg' --steps 500 --out results".replace("'", "") in commands("README.md")


def test_every_exception_is_needed():
    """No reason and no substitute is left from a command that is gone."""
    used = {exception(NOT_RUN, page, command) for page in PAGES for command in commands(page)}
    assert set(NOT_RUN) <= used, set(NOT_RUN) - used
    used = {exception(PYTHON_NOT_RUN, page, block) for page in PAGES for block in python_blocks(page)}
    assert set(PYTHON_NOT_RUN) <= used, set(PYTHON_NOT_RUN) - used
    for page, replaced in PYTHON_SHORTER.items():
        for old in replaced:
            assert any(old in block for block in python_blocks(page)), (page, old)
    everything = [command for page in PAGES for command in commands(page)]
    for pattern in SHORTER:
        assert any(fnmatch(command, pattern) for command in everything), pattern


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            names = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in names, f"{page}: {link}"


def test_the_reference_is_that_of_the_docstrings():
    specification = importlib.util.spec_from_file_location("make_api", API)
    make_api = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_api)
    assert make_api.PAGE.read_text() == make_api.page(), "python docs/make_api.py writes it again"


# Running --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, monkeypatch):
    """FILES: a folder, made the current one, with what the pages call portrait.jpg and so on; and names for Python."""
    import torch
    from PIL import Image

    import fastinv
    from fastinv.data import faces
    from fastinv.data.pictures import save_picture

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTINV_CACHE", str(tmp_path / "cache"))
    images, attributes = faces.sample(2, seed=1, split="heldout")
    for name, image in {"portrait": images[0], "other": images[1], "photo": images[0], "small": images[1]}.items():
        save_picture(image, f"{name}.png")
    for name in ("portrait", "other"):
        Image.open(f"{name}.png").save(f"{name}.jpg", quality=95)
    for folder, pictures in {"originals": images, "reconstructions": images * 0.9, ".": images}.items():
        Path(folder).mkdir(exist_ok=True)
        for name, picture in zip("ab", pictures):
            save_picture(picture, f"{folder}/{name}.png")
    save_picture(faces.sketch({name: values[:1] for name, values in attributes.items()}, 64)[0], "drawing.png")
    known = torch.ones(1, 64, 64)
    known[:, 40:56, 20:44] = -1
    save_picture(known, "known.png")
    shutil.copy(ROOT / "tests/golden/tiny_ada.pkl", "ffhq.pkl")
    for task in ("sketch", "super-resolution"):
        Path("runs", task).mkdir(parents=True)
        shutil.copy(
            ROOT / f"fastinv/weights/faces64-{task}.encoder.safetensors", f"runs/{task}/best_encoder.safetensors"
        )
    names = {
        "fastinv": fastinv,
        "direction": torch.zeros(256),
        "step": 0.5,
        "masks": known.expand(2, 1, 64, 64) / 2 + 0.5,
    }
    return names | {"images": images, "pictures": images, "targets": images, "reconstructions": images * 0.9}


def run_step(kind: str, text: str, names: dict, added: str = "") -> None:
    """Run a command, or a block of Python with these names, as a reader would; an AssertionError where it fails."""
    from fastinv.cli import main

    if kind == "python":
        exec(compile(text, "<block>", "exec"), names)
        return
    words = [name for word in shlex.split(text) for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    status = main([*words[1:], *shlex.split(added)])
    assert status == 0, f"status {status} of: {text} {added}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if steps(page)])
def test_what_a_page_says_runs(page, files):
    """Its commands and its Python, in order."""
    for kind, text in steps(page):
        if exception(NOT_RUN if kind == "command" else PYTHON_NOT_RUN, page, text):
            continue
        if kind == "python":
            for old, new in PYTHON_SHORTER.get(page, {}).items():
                text = text.replace(old, new)
        run_step(kind, text, files, shorter(text) if kind == "command" else "")
