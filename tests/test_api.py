"""The API pages: they name all that is public, and each of these names has a docstring that says what it takes, gives
and raises."""

import ast
import importlib
import inspect
import re
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path

import torch

import hf_i2v

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
NAMES = [name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)]
SHAPE = re.compile(r"\((?:[A-ZS]\b|B·T|M\b|…|num_|length)[^()]*(?:\([^()]*\)[^()]*)*\)|scalar")
AXES = re.compile(r"_[A-Z][A-Za-z0-9]*$")


def resolve(name: str):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def callables(name: str):
    """The functions, methods and classes that a name of the pages shows, with their own names."""
    found = resolve(name)
    if inspect.isclass(found):
        yield name, found
        for member, value in vars(found).items():
            value = inspect.unwrap(getattr(value, "__func__", value))
            is_ours = isinstance(value, property) or (inspect.isfunction(value) and value.__module__[:7] == "hf_i2v.")
            if is_ours and not member.startswith("_"):
                yield f"{name}.{member}", value
    elif callable(found):
        yield name, inspect.unwrap(found)


SHOWN = {name: value for shown in NAMES for name, value in callables(shown)}


def documentation(name: str, value) -> str:
    """Its docstring; where it has none, that of the method of hf_i2v which it overrides."""
    if inspect.isclass(value):
        bases = [base for base in value.__mro__ if base.__module__.partition(".")[0] == "hf_i2v"]
        return "\n\n".join(filter(None, (inspect.cleandoc(base.__doc__ or "") for base in bases)))
    if value.__doc__:
        return inspect.cleandoc(value.__doc__)
    owner, _, member = name.rpartition(".")
    for base in resolve(owner).__mro__[1:]:
        if base.__module__.partition(".")[0] == "hf_i2v" and (above := vars(base).get(member)) is not None:
            return inspect.cleandoc(inspect.unwrap(getattr(above, "__func__", above)).__doc__ or "")
    return ""


def parameters(value) -> dict[str, inspect.Parameter]:
    if isinstance(value, property):
        return {}
    if is_dataclass(value):
        own = {field.name for field in fields(value) if not any(field.name in _of_libraries(b) for b in value.__mro__)}
        return {name: p for name, p in inspect.signature(value).parameters.items() if name in own}
    if inspect.isclass(value):
        if "__init__" not in vars(value) or value.__module__.partition(".")[0] != "hf_i2v":
            return {}
        value = vars(value)["__init__"]
    kept = inspect.signature(value).parameters.items()
    return {n: p for n, p in kept if n not in ("self", "cls", "_") and p.kind is not p.VAR_POSITIONAL}


def _of_libraries(base: type) -> set[str]:
    """The fields of a dataclass that is not of hf_i2v: its documentation is elsewhere."""
    return set() if base.__module__.partition(".")[0] == "hf_i2v" else set(getattr(base, "__dataclass_fields__", {}))


def raised(value) -> set[str]:
    """The exceptions that its own lines raise."""
    value = value.fget if isinstance(value, property) else value
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    if inspect.isclass(value):
        body = tree.body[0].body
        tree = next((node for node in body if getattr(node, "name", "") == "__init__"), ast.Module(body=[]))
    raises = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None)
    names = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in raises}
    return {name for name in names if name.endswith("Error")} - {"NotImplementedError", "AssertionError"}


def lacking(name: str, value) -> list[str]:
    """What the docstring of a public name does not say."""
    text = documentation(name, value)
    summary = text.partition("\n")[0]
    found = [] if summary and not re.match(r"(Args|Returns|Raises):", summary) else ["a summary"]
    signature = parameters(value)
    if not summary.startswith("As "):  # in peft, everywhere in transformers, …
        unsaid = [p for p in signature if not AXES.search(p) and not re.search(rf"\b{p}\b", text)]
        found += [f"the argument {parameter}" for parameter in unsaid]
    annotated = {n: p.annotation for n, p in signature.items()}
    if inspect.isfunction(value):
        annotated["the result"] = inspect.signature(value).return_annotation
    shapes = SHAPE.search(text)
    for parameter, annotation in annotated.items():
        is_tensor = annotation in (torch.Tensor, torch.Tensor | None)
        if is_tensor and not shapes and not AXES.search(parameter):
            found.append(f"the shape of {parameter}")
    found += [f"when it raises {error}" for error in sorted(raised(value)) if error.rpartition(".")[2] not in text]
    if (
        inspect.isclass(value)
        and (paper := getattr(value, "paper", None))
        and value.__module__ != "hf_i2v.methods.config"
    ):
        number = re.search(r"[\d.:]{6,}", paper)
        found += [] if number is None or number[0] in text else [f"its paper, {paper}"]
    return found


def test_the_pages_name_all_that_is_public():
    public = {f"hf_i2v.{name}" for name in hf_i2v.__all__ if name != "__version__"}
    for room in ("data", "visualize"):
        module = importlib.import_module(f"hf_i2v.{room}")
        public |= {f"hf_i2v.{room}.{name}" for name in module.__all__ if name != "main"}
    assert public <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_what_other_pages_import_is_on_the_api_pages():
    own = {id(resolve(name)) for name in NAMES}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "hf_i2v":
                    module = importlib.import_module(node.module)
                    values = [getattr(module, alias.name) for alias in node.names]
                    unknown = [v for v in values if id(v) not in own and not inspect.ismodule(v)]
                    assert not unknown, f"{page.name} imports {unknown}"


def untyped(body: list[ast.stmt], prefix: str = "") -> list[str]:
    """Public functions and methods with an argument or a result that has no type."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += untyped(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            args = node.args
            every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
            names = [a.arg for a in every if a is not None and a.annotation is None]
            names = [name for name in names if name not in ("self", "cls")]
            if names or (node.returns is None and node.name != "__init__"):
                found.append(f"{prefix}{node.name}({', '.join(names)})")
    return found


def test_every_public_signature_is_typed():
    assert not [name for path in (ROOT / "hf_i2v").rglob("*.py") for name in untyped(ast.parse(path.read_text()).body)]


def test_a_public_name_says_all():
    assert {name: found for name, value in SHOWN.items() if (found := lacking(name, value))} == {}
