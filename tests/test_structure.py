"""Imports inside the package: they run one way."""

import ast
import graphlib
from pathlib import Path

import hf_i2v

PACKAGE = Path(hf_i2v.__file__).parent
MACHINERY = {f"hf_i2v.{name}" for name in ("block", "video", "tuner", "modeling_i2v", "merging", "registration")}


def imports(path: Path, name: str, names: set[str]) -> set[str]:
    """Modules of the package that a file imports, also inside functions, with the packages around them."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            inside = {f"{module}.{alias.name}" for alias in node.names} & names
            found |= inside or {module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    around = {module.rpartition(".")[0] for module in found}  # Python runs a package's __init__ first
    return {other for other in (found | around) & names if not f"{name}.".startswith(f"{other}.")}


def import_graph() -> dict[str, set[str]]:
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: imports(path, name, set(files)) for name, path in files.items()}


def test_no_import_circle():
    graph = import_graph()
    assert {"hf_i2v.video", "hf_i2v.methods", "hf_i2v.methods.config"} <= graph["hf_i2v.tuner"] and len(graph) > 50
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_upward_import():
    """Videos know no model, methods no machinery, models no training."""
    for name, imported in import_graph().items():
        room = name.split(".")[1:2]
        if room == ["data"]:
            assert all(other.startswith("hf_i2v.data") for other in imported - {"hf_i2v.untrusted"}), name
        if room == ["methods"]:
            assert not imported & MACHINERY, name
        on_top = (["training"], ["train"], ["archives"], ["predict"], ["prepare"], ["visualize"])
        if room not in on_top:
            assert not any(other.startswith("hf_i2v.training") for other in imported), name
