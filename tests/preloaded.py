"""Imported once by the fork server of `processes`; what it forks has imported already what a training run needs."""

import gc
import importlib
import os
import tempfile
from pathlib import Path

import peft
import torch
from tiny import tiny_image_model
from tqdm import tqdm
from training import load_script

import hf_i2v
from hf_i2v.counting import count_macs

REGISTERED = frozenset(peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING)  # by `import hf_i2v` alone
torch.set_num_threads(1)
load_script("run_video_cls")
for late in ("matplotlib.figure", "matplotlib.backends.backend_agg", "transformers.models.clip.modeling_clip"):
    importlib.import_module(late)
tqdm.monitor_interval = 0  # no thread that looks after progress bars
with tempfile.TemporaryDirectory() as folder:  # what transformers and torch prepare when they first need it
    tiny_image_model("clip", num_hidden_layers=1).save_pretrained(folder)
    model = hf_i2v.I2VForVideoClassification.from_image_model(folder, num_frames=1, num_labels=1)
    count_macs(model, (1, 1, 3, 16, 16))

SERVER = os.getpid()
THREADS = Path("/proc/self/task")
if THREADS.exists() and (count := len(list(THREADS.iterdir()))) > 1:  # a fork copies the locks that threads hold
    raise RuntimeError(f"the imports of the training script start {count - 1} threads; the fork server may have none")
gc.freeze()  # no fork looks through it
