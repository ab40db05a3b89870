"""Modules that have moved: `import hf_i2v.evaluation` still gives `hf_i2v.training.evaluation`, loaded when asked."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader

MOVED = {
    "hf_i2v.checkpoints": "hf_i2v.training.checkpoints",
    "hf_i2v.composition": "hf_i2v.methods.config",
    "hf_i2v.config": "hf_i2v.methods.config",
    "hf_i2v.evaluation": "hf_i2v.training.evaluation",
    "hf_i2v.meter": "hf_i2v.training.meter",
    "hf_i2v.metrics": "hf_i2v.training.metrics",
    "hf_i2v.training_state": "hf_i2v.training.state",
}


class _Moved(MetaPathFinder, Loader):
    def find_spec(self, fullname, path, target=None):
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec):
        return None  # Python's own empty one

    def exec_module(self, module):
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])  # the import system returns this one


sys.meta_path.insert(0, _Moved())
