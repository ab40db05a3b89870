"""The code that is saved with a model, for machines without hf_i2v.

Two flat files are made from the package's own source. Each holds the definitions that a loaded model (or the pipeline)
can reach, in the order in which Python imports them, and nothing that attaches, trains or merges adapters. A model on
the Hub then needs torch and transformers only.

The file of an outside method is copied, and its imports of hf_i2v are changed to imports of the flat file. Such a file
may use those definitions of hf_i2v that a loaded model needs, and imports nothing from its neighbours.
"""

import ast
import inspect
import json
import os
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .version import __version__

PACKAGE = Path(__file__).parent
FILES = {  # flat file: (module of the package, definition) that it must hold
    "modeling_i2v": [
        *(("modeling_i2v", name) for name in ("I2VConfig", "I2VModel", "I2VForVideoClassification")),
        ("registration", "register_method"),
    ],
    "pipeline_i2v": [("pipeline", "I2VVideoClassificationPipeline"), ("video_processor", "I2VVideoProcessor")],
}
AUTO_MAP = {
    "AutoConfig": "modeling_i2v.I2VConfig",
    "AutoModel": "modeling_i2v.I2VModel",
    "AutoModelForVideoClassification": "modeling_i2v.I2VForVideoClassification",
}
CUSTOM_PIPELINES = {
    "video-classification": {
        "impl": "pipeline_i2v.I2VVideoClassificationPipeline",
        "pt": ["AutoModelForVideoClassification"],
        "type": "multimodal",
    }
}
LEFT_OUT = {  # functions that a loaded model does not need
    "I2VConfig": {"save_pretrained"},
    "I2VPreTrainedModel": {"with_stdha", "save_pretrained", "_upload_modified_files"},
    "I2VModel": {"from_video_backbone"},
    "I2VForVideoClassification": {"from_image_model"},
    "I2VTunerConfig": {"__add__", "describe_model", "to_dict", "save_pretrained", "target_modules"},
    "VideoBlock": {"bake"},
}
STAND_INS = {  # in place of definitions that need peft or accelerate
    "PeftConfig": """
@dataclass
class PeftConfig:  # all of peft's class that a saved model needs
    def __post_init__(self):
        pass
""",
    "register_peft_type": """
def register_peft_type(name: str) -> str:
    return name.upper()
""",
    "register_method": """
def register_method(config_class):
    METHODS[config_class.method_name] = config_class
    return config_class
""",
    "_without_hook": """
@contextmanager
def _without_hook(module):  # accelerate adds its hooks after the model is built
    yield
""",
}
HEADER = '''# Copyright the authors of hf_i2v. Licensed under the Apache License, Version 2.0; no warranty of any kind.
"""Made by hf_i2v {version} from its own source; do not edit.

A Hugging Face image transformer as a video model: see https://arxiv.org/abs/2310.01324 for heads that look along time.
"""
'''
SIBLING = """\

if TYPE_CHECKING:  # never run: transformers also copies the files that this one imports
    from .pipeline_i2v import I2VVideoClassificationPipeline
"""
COMES_WITH_TRANSFORMERS = {"torch", "transformers", "numpy", "huggingface_hub", *sys.stdlib_module_names}


def write_remote_code(folder: str | os.PathLike, methods: Sequence[type] = ()) -> None:
    """Write the flat files beside a saved `config.json`, and name them in it.

    Args:
        methods: configuration classes of the methods whose modules are a part of the model.
    """
    outside = {method: file for method in methods if not _is_own(method) and (file := _outside_file(method))}
    for name in FILES:
        (Path(folder) / f"{name}.py").write_text(flat_file(name, tuple(methods)))
    for file in outside.values():
        (Path(folder) / file.path.name).write_text(file.text())
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    config |= {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@cache
def flat_file(name: str, methods: tuple[type, ...] = ()) -> str:
    """The text of one of `FILES`, for a model with these methods."""
    bundle = _Bundle()
    for module, root in FILES[name]:
        bundle.take(module, root)
    header = HEADER.format(version=__version__)
    if name != "modeling_i2v":
        return header + bundle.text()
    own = [method for method in methods if _is_own(method)]
    for method in own:
        bundle.take(method.__module__.removeprefix(f"{__package__}."), method.__name__)
    files = [file for method in methods if not _is_own(method) and (file := _outside_file(method))]
    for module, root in (needed for file in files for needed in file.needed):
        bundle.take(module, root)
    bundle.imports["TYPE_CHECKING"] = "from typing import TYPE_CHECKING"
    registered = "".join(f"\nregister_method({method.__name__})\n" for method in own)
    # at the end, because the methods' files import this one
    registered += "".join(f"\nfrom .{file.path.stem} import {file.method} as {file.method}\n" for file in files)
    return header + bundle.text() + registered + SIBLING


def _is_own(method: type) -> bool:
    return method.__module__.partition(".")[0] == __package__


class _OutsideFile:
    """The file of an outside method, which is saved with a model that needs it.

    Attributes:
        needed: its imports of hf_i2v, as (module, name).
    """

    def __init__(self, method: type, path: Path):
        self.method, self.path = method.__name__, path
        self.lines = path.read_text().splitlines()
        self.needed: list[tuple[str, str]] = []
        self.replaced: dict[int, tuple[int, str]] = {}  # first line of an import → its last line, the new text
        tree = ast.parse("\n".join(self.lines))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                raise ValueError(f"it imports {ast.unparse(node)!r} from its neighbours")
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == __package__:
                module = node.module.partition(".")[2]
                self.needed += [(module, alias.name) for alias in node.names]
                self._replace(node, ast.unparse(ast.ImportFrom("modeling_i2v", node.names, 1)))
            elif isinstance(node, ast.Import) and (name := _imported_as(node)):
                used = (n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name))
                self.needed += [("", n.attr) for n in used if n.value.id == name]
                self._replace(node, f"from . import modeling_i2v as {name}")

    def _replace(self, node: ast.stmt, text: str) -> None:
        self.replaced[node.lineno] = node.end_lineno, " " * node.col_offset + text

    def text(self) -> str:
        lines, number = [], 1
        while number <= len(self.lines):
            last, line = self.replaced.get(number, (number, self.lines[number - 1]))
            lines.append(line)
            number = last + 1
        return "\n".join(lines) + "\n"


def _imported_as(node: ast.Import) -> str | None:
    """The name that an `import` statement gives to this package."""
    return next((alias.asname or alias.name for alias in node.names if alias.name == __package__), None)


@cache
def _outside_file(method: type) -> _OutsideFile | None:
    """The file of an outside method; None, with a warning, if it cannot be saved with the model."""
    try:
        path = Path(inspect.getsourcefile(method))
        if not path.exists() or path.stem in FILES or not path.stem.isidentifier():
            raise ValueError("its file cannot be found" if not path.exists() else f"its file is called {path.name}")
        return _OutsideFile(method, path)
    except (OSError, TypeError, ValueError) as error:
        warnings.warn(
            f"The code of {method.__name__} is not saved with the model ({error}). To load the model, install "
            f"hf_i2v and first import the module that registers the method {method.method_name!r}.",
            stacklevel=2,
        )
        return None


class _Module:
    """Source of one module of the package, by top-level name."""

    def __init__(self, name: str):
        path = PACKAGE / (name.replace(".", "/") + ".py")
        if not path.exists():
            path = PACKAGE / name.replace(".", "/") / "__init__.py"
        self.package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        self.lines = path.read_text().splitlines()
        self.definitions: dict[str, ast.stmt] = {}
        self.ours: dict[str, tuple[str, str]] = {}  # imported name → module of the package, name there
        self.foreign: dict[str, str] = {}  # imported name → the statement that imports it
        self.actions: list[ast.stmt] = []  # statements that register something
        for node in ast.parse("\n".join(self.lines)).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.definitions[node.name] = node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    names = target.elts if isinstance(target, ast.Tuple) else [target]
                    self.definitions |= {name.id: node for name in names}
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self.read_import(node)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self.actions.append(node)

    def read_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            name = alias.asname or alias.name
            if isinstance(node, ast.Import):
                self.foreign[name.partition(".")[0]] = ast.unparse(ast.Import([alias]))
            elif node.level == 0:
                self.foreign[name] = ast.unparse(ast.ImportFrom(node.module, [alias], 0))
            else:
                above = self.package[: len(self.package) - node.level + 1]
                self.ours[name] = (".".join([*above, *(node.module or "").split(".")]).strip("."), alias.name)

    def source(self, node: ast.stmt) -> str:
        """The text of a definition with the comments above it, without the methods that are left out."""
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        skipped = set()
        for method in _left_out(node):
            start = min([method.lineno, *(d.lineno for d in method.decorator_list)])
            skipped |= set(range(start - 2, method.end_lineno))  # and the empty line above
        return "\n".join(self.lines[i] for i in range(first, node.end_lineno) if i not in skipped)


_module = cache(_Module)  # models with other methods share most of their files


class _Bundle:
    """Definitions that are needed together, with what they import."""

    def __init__(self):
        self.modules: dict[str, _Module] = {}
        self.taken: dict[tuple[str, str], None] = {}
        self.imports: dict[str, str] = {}

    def take(self, module_name: str, name: str) -> None:
        """Add a definition, and those that it uses."""
        module = self.modules[module_name] = _module(module_name)
        if (module_name, name) in self.taken:
            return
        if name in STAND_INS:
            self.taken[module_name, name] = None
            for used in _names(ast.parse(STAND_INS[name])):
                self.take(module_name, used)
        elif name in module.ours:
            self.take(*module.ours[name])
        elif name in module.definitions:
            self.taken[module_name, name] = None
            for used in _names(module.definitions[name]):
                self.take(module_name, used)
            for action in module.actions:
                if name in (names := _names(action)):
                    for used in names:
                        self.take(module_name, used)
        elif name in module.foreign:
            statement = module.foreign[name]
            if self.imports.setdefault(name, statement) != statement:
                raise ValueError(f"two imports of the name {name}: {statement} and {self.imports[name]}")

    def text(self) -> str:
        """The imports, then every definition once.

        Raises:
            ValueError: two modules mean different things by one name.
        """
        texts, owners = [], {}
        for module_name in self.import_order():
            module = self.modules[module_name]
            here: dict[int, str] = {}  # by line
            for name in [name for taken, name in self.taken if taken == module_name]:
                node = module.definitions.get(name)
                text = STAND_INS.get(name) or module.source(node)
                if name in owners and owners[name] != text:
                    raise ValueError(f"two definitions of the name {name}, one of them in hf_i2v.{module_name}")
                if name in owners:
                    continue
                owners[name] = text
                if name in STAND_INS:
                    texts.append(text)
                else:
                    here[node.lineno] = text if isinstance(node, (ast.Assign, ast.AnnAssign)) else f"\n\n{text}\n"
            for action in module.actions:
                if _names(action) <= owners.keys() | self.imports.keys() and _names(action) & owners.keys():
                    here[action.lineno] = module.source(action)
            texts += [here[line] for line in sorted(here)]
        return "\n".join([*self.import_statements(), "", *texts]) + "\n"

    def import_statements(self) -> list[str]:
        """Imports of further packages come last, in a `try`: before transformers loads a model it demands all packages
        that are imported outside of one, and a model needs none of the pipeline's."""
        statements = sorted(set(self.imports.values()))
        optional = [s for s in statements if s.split()[1].partition(".")[0] not in COMES_WITH_TRANSFORMERS]
        if not optional:
            return statements
        return [
            *[s for s in statements if s not in optional],
            *["try:", *(f"    {s}" for s in optional), "except ImportError as error:"],
            '    raise ImportError(f"{error}: reading videos needs `pip install av`") from error',
        ]

    def import_order(self) -> list[str]:
        """The modules in the order in which Python finishes importing them: each after those that it imports."""
        order: dict[str, None] = {}

        def visit(name: str, above: tuple[str, ...]) -> None:
            if name not in order and name not in above and name in self.modules:
                for needed, _ in self.modules[name].ours.values():
                    visit(needed, (*above, name))
                order[name] = None

        for name in self.modules:
            visit(name, ())
        return list(order)


def _left_out(node: ast.stmt) -> list[ast.FunctionDef]:
    if not isinstance(node, ast.ClassDef) or node.name not in LEFT_OUT:
        return []
    return [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name in LEFT_OUT[node.name]]


@cache
def _names(node: ast.AST) -> frozenset[str]:
    """Names that a statement reads, without the methods that are left out."""
    left_out = _left_out(node)
    names, todo = set(), [node]
    while todo:
        current = todo.pop()
        if isinstance(current, ast.Name) and isinstance(current.ctx, ast.Load):
            names.add(current.id)
        todo += [child for child in ast.iter_child_nodes(current) if child not in left_out]
    return frozenset(names)
