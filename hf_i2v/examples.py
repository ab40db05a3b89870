"""The scripts of examples/ from wherever hf_i2v is installed: a wheel has them as hf_i2v/_examples, a checkout beside
the package."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = next(
    folder
    for folder in (Path(__file__).parent / "_examples", Path(__file__).parent.parent / "examples")
    if folder.is_dir()
)


def load_example(name: str) -> ModuleType:
    """The script `name` of examples/ as a module, such as `load_example("run_video_cls").main(argv)`."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)
