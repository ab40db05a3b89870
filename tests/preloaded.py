"""Imported once by the fork server of `processes`; what it forks has imported already what a training run needs."""

import gc
import importlib
import os
from pathlib import Path

import torch
from training import load_script

torch.set_num_threads(1)
load_script("run_video_cls")
for late in ("matplotlib.figure", "matplotlib.backends.backend_agg", "transformers.models.clip.modeling_clip"):
    importlib.import_module(late)

SERVER = os.getpid()
THREADS = Path("/proc/self/task")
if THREADS.exists() and (count := len(list(THREADS.iterdir()))) > 1:  # a fork copies the locks that threads hold
    raise RuntimeError(f"the imports of the training script start {count - 1} threads; the fork server may have none")
gc.freeze()  # no fork looks through it
