"""Load what outside methods leave behind, and print how far the logits are from those in EXPECTED.

python load.py FOLDER EXPECTED …: finished models, each in a process where neither hf_i2v nor peft can be imported and
which has not seen the others."""

import importlib
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.modules["hf_i2v"] = sys.modules["peft"] = None  # any import of them fails from here on

import torch
from safetensors.torch import load_file
from transformers import AutoModelForVideoClassification, Dinov2Model  # noqa: F401  for all forks at once


@torch.no_grad()
def print_difference(model, expected: str) -> None:
    tensors = load_file(expected)
    differences = model.eval()(tensors["pixel_values"]).logits - tensors["logits"]
    if model.config.causal:  # frame by frame too
        state = model.new_stream(batch_size=len(tensors["pixel_values"]), image_size=24)
        for frames_SChw in tensors["pixel_values"].unbind(1):
            logits, state = model.step(frames_SChw, state)
        differences = torch.cat((differences, logits - tensors["logits"]))
    print(f"difference {differences.abs().max().item()}", flush=True)


def load_adapter(folder: Path, expected: Path, module: str) -> None:
    """An adapter, once the file of its method is imported."""
    assert module not in sys.modules
    importlib.import_module(module)
    from hf_i2v import AutoPeftModelForVideoClassification

    print_difference(AutoPeftModelForVideoClassification.from_pretrained(folder), expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder, expected in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        if os.fork() == 0:
            print_difference(AutoModelForVideoClassification.from_pretrained(folder, trust_remote_code=True), expected)
            sys.exit()
        if os.wait()[1] != 0:
            sys.exit(f"{folder} did not load")
