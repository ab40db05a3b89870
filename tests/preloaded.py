"""Imported once by the fork server of `processes`; what it forks has the training script imported already."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

import torch

torch.set_num_threads(1)

import run_video_cls

__all__ = ["SERVER", "run_video_cls"]

SERVER = os.getpid()
THREADS = Path("/proc/self/task")
if THREADS.exists() and (count := len(list(THREADS.iterdir()))) > 1:  # a fork copies the locks that threads hold
    raise RuntimeError(f"the imports of the training script start {count - 1} threads; the fork server may have none")
