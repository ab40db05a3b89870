import functools
import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

import jinja2
import pytest
import torch
from processes import use_fork_server

torch.set_num_threads(1)  # the models are tiny, and threads that wait for one another on busy cores cost minutes
use_fork_server()
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers would load each tiny model with a pool of threads
# huggingface_hub compiles the template of peft's model card each time that an adapter is saved
jinja2.Environment.compile = functools.lru_cache(jinja2.Environment.compile)

forks: list[int] = []
os.register_at_fork(before=lambda: forks.append(os.getpid()))


def pytest_collection_finish(session):
    """What is imported by now stays; accelerate and torch.compile would otherwise look through all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def never_forked():
    """pytest's process has threads, those of xdist and tqdm among them. A fork copies the locks that they hold."""
    forks.clear()
    yield
    assert os.getpid() not in forks, "the test forked pytest's process; start the process through `processes`"


@pytest.fixture
def clip_pixels() -> torch.Tensor:
    """Two clips of four frames, (2, 4, 3, 16, 16)."""
    return torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
