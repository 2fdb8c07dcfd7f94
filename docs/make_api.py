"""Write docs/api.md, the reference of the public names, from their docstrings: python docs/make_api.py

Signatures are read from the source, as they are written there, so that no version of Python shows them otherwise.
"""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).parent / "api.md"
HEAD = """# Reference

Made of the docstrings by `python docs/make_api.py`; a test says when it is out of date. Pictures are [N, 3, R, R] in
[-1, 1] where nothing else is said.
"""
# module -> public names; None: those of __all__ or, without one, all functions and classes that the module defines
SECTIONS: dict[str, list[str] | None] = {
    "fastinv": None,
    "fastinv.models.stylegan2": ["Generator"],
    "fastinv.models.prepared": ["PreparedGenerator"],
    "fastinv.models.stylegan1": ["StyleGAN1Generator"],
    "fastinv.models.discriminator": ["Discriminator"],
    "fastinv.models.encoders.base": ["Encoder"],
    "fastinv.models.attributes": ["AttributeNetwork"],
    "fastinv.ops": None,
    "fastinv.losses": None,
    "fastinv.latents": None,
    "fastinv.inversion": None,
    "fastinv.inversion.local_edits": None,
    "fastinv.editing": None,
    "fastinv.evaluation": None,
    "fastinv.data.faces": None,
    "fastinv.data.pictures": None,
    "fastinv.data.grid": ["grid"],
    "fastinv.report": None,
    "fastinv.checkpoints": None,
}


def page() -> str:
    """The text of docs/api.md."""
    parts, contents, known = [], [], set()
    for module_name, names in SECTIONS.items():
        module = importlib.import_module(module_name)
        entries, elsewhere, references, values = [], [], [], []
        for name in names or public_names(module):
            value = getattr(module, name)
            if inspect.ismodule(value):
                continue
            if name.endswith("_ref"):
                references.append(f"`{name}`")
            elif not (inspect.isclass(value) or inspect.isfunction(value)):
                values.append(f"- `{name}`: {constant(value)}")
            elif value in known:
                elsewhere.append(f"[`{name}`](#{name.lower()})")
            else:
                known.add(value)
                entries.append(entry(name, value))
        contents.append(f"[{module_name}](#{module_name.replace('.', '')})")
        parts.append(f"## {module_name}\n\n{first_paragraph(text_of(module))}")
        parts += ["\n".join(values)] if values else []
        parts += [f"Also here: {', '.join(elsewhere)}."] if elsewhere else []
        parts += [f"In plain PyTorch, with the same arguments: {', '.join(references)}."] if references else []
        parts += entries
    return "\n\n".join([HEAD.strip(), " · ".join(contents), *(part for part in parts if part)]) + "\n"


def public_names(module) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if inspect.isclass(value) or inspect.isfunction(value)
    ]


def entry(name: str, value) -> str:
    """Heading, signature and docstring of a function or class; of a class the public methods, too."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if not inspect.isclass(value):
        return f"### {name}\n\n{code(name, *arguments(tree))}\n\n{body(text_of(value))}"
    parts = [f"### {name}", code(name, class_arguments(tree)), body(text_of(value))]
    methods = []
    for member in tree.body:
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and ast.get_docstring(member):
            shown, decorators = member.name, {ast.unparse(decorator) for decorator in member.decorator_list}
            if "property" not in decorators:
                own, returns = arguments(member)
                own = own if "staticmethod" in decorators else own[1:]  # without self or cls
                shown += f"({', '.join(own)})" + (f" -> {returns}" if returns else "")
            methods.append(f"- `{shown}`: {joined(first_paragraph(ast.get_docstring(member)))}")
    parts += ["Methods:", "\n".join(methods)] if methods else []
    return "\n\n".join(part for part in parts if part)


def arguments(tree: ast.FunctionDef) -> tuple[list[str], str]:
    """(arguments as they are written, what is returned or "")."""
    given, shown = tree.args, []
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    for index, (argument, default) in enumerate(zip(positional, defaults)):
        shown.append(argument_text(argument, default))
        if index + 1 == len(given.posonlyargs):
            shown.append("/")
    if given.vararg or given.kwonlyargs:
        shown.append("*" + (argument_text(given.vararg) if given.vararg else ""))
    shown += [argument_text(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults)]
    if given.kwarg:
        shown.append("**" + argument_text(given.kwarg))
    return shown, ast.unparse(tree.returns) if tree.returns else ""


def argument_text(argument: ast.arg, default: ast.expr | None = None) -> str:
    text = argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
    return text + (f"{' = ' if argument.annotation else '='}{ast.unparse(default)}" if default else "")


def class_arguments(tree: ast.ClassDef) -> list[str]:
    """As it is called: the arguments of __init__, or the fields of a dataclass."""
    for member in tree.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return arguments(member)[0][1:]
    if any("dataclass" in ast.unparse(decorator) for decorator in tree.decorator_list):
        return [ast.unparse(member) for member in tree.body if isinstance(member, ast.AnnAssign)]
    return []


def constant(value) -> str:
    if isinstance(value, dict):
        return "a dict with " + ", ".join(f"`{key}`" for key in value)
    return f"`{value!r}`" if isinstance(value, (int, float, str, tuple)) else f"a {type(value).__name__}"


def code(name: str, arguments: list[str], returns: str = "") -> str:
    """A call as a block of Python, with a line for each argument where it is long."""
    end = f") -> {returns}" if returns else ")"
    text = f"{name}({', '.join(arguments)}{end}"
    if len(text) > 110:
        text = f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + end
    return f"```python\n{text}\n```"


def text_of(value) -> str:
    """Its own docstring, not one that it inherits."""
    return inspect.cleandoc(value.__doc__ or "")


def first_paragraph(text: str) -> str:
    return escaped(text.split("\n\n")[0])


def joined(text: str) -> str:
    return " ".join(text.split())


def body(text: str) -> str:
    """A docstring as Markdown: its sections become lists."""
    parts = []
    for block in re.split(r"\n\n(?=\S)", text):
        heading, _, rest = block.partition("\n")
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", heading):
            items = re.split(r"\n(?=\S)", textwrap.dedent(rest))
            bullet = "- " if heading in ("Args:", "Attributes:") else ""
            parts.append(f"{heading}\n\n" + "\n".join(bullet + item_text(item, bool(bullet)) for item in items))
        else:
            parts.append(escaped(block.replace("::\n", ":\n")))
    return "\n\n".join(parts)


def item_text(item: str, named: bool) -> str:
    item = joined(item)
    return escaped(re.sub(r"^([\w*, ]+):", r"`\1`:", item) if named else item)


def escaped(text: str) -> str:
    """Angle brackets outside of code would be taken for HTML."""
    return re.sub(r"(`+[^`]+`+)|<", lambda match: match[1] or "&lt;", text)


if __name__ == "__main__":
    PAGE.write_text(page())
