"""Load a finished model where neither hf_i2v nor peft can be imported, or an adapter where they can.

python load.py FOLDER EXPECTED [MODULE]: prints the largest difference from the logits in EXPECTED."""

import importlib
import sys
from pathlib import Path

folder, expected, *module = sys.argv[1:]
if not module:
    sys.modules["hf_i2v"] = sys.modules["peft"] = None  # any import of them fails from here on

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForVideoClassification  # noqa: E402

torch.set_num_threads(1)
tensors = load_file(expected)
if module:
    sys.path.insert(0, str(Path(__file__).parent))
    importlib.import_module(module[0])
    from hf_i2v import AutoPeftModelForVideoClassification

    model = AutoPeftModelForVideoClassification.from_pretrained(folder)
else:
    model = AutoModelForVideoClassification.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    differences = model.eval()(tensors["pixel_values"]).logits - tensors["logits"]
    if model.config.causal:  # frame by frame too
        state = model.new_stream(batch_size=len(tensors["pixel_values"]), image_size=24)
        for frames_SChw in tensors["pixel_values"].unbind(1):
            logits, state = model.step(frames_SChw, state)
        differences = torch.cat((differences, logits - tensors["logits"]))
    print(differences.abs().max().item())
