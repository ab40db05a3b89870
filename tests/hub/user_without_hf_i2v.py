"""Load what was pushed where neither hf_i2v nor peft can be imported. Arguments as in user_with_hf_i2v.py."""

import json
import sys
from pathlib import Path

sys.modules["hf_i2v"] = sys.modules["peft"] = None  # any import of them fails from here on

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    CLIPVisionModel,
    pipeline,
)

torch.set_num_threads(1)
folder, video = map(Path, sys.argv[1:])
expected = load_file(folder / "logits.safetensors")
differences = {}
for name in expected.keys() - {"pixels", "adapter"}:
    model = AutoModelForVideoClassification.from_pretrained(f"tester/{name}", trust_remote_code=True)
    differences[name] = (model(expected["pixels"]).logits - expected[name]).abs().max().item()
feature = AutoModel.from_pretrained("tester/merged", trust_remote_code=True)(expected["pixels"]).pooler_output
rows = pipeline("video-classification", model="tester/merged", trust_remote_code=True)(str(video))

# saved again, as after further training
AutoModelForVideoClassification.from_pretrained("tester/merged", trust_remote_code=True).save_pretrained(
    folder / "again"
)
AutoImageProcessor.from_pretrained("tester/merged").save_pretrained(folder / "again")
again = pipeline("video-classification", model=str(folder / "again"), trust_remote_code=True)(str(video))

refusals = []
for attempt in (
    lambda: AutoModelForVideoClassification.from_pretrained("tester/merged", trust_remote_code=False),
    lambda: AutoModelForVideoClassification.from_pretrained("tester/private", trust_remote_code=True),
    lambda: AutoModelForImageClassification.from_pretrained("tester/merged", trust_remote_code=True),
):
    try:
        attempt()
    except (ValueError, OSError) as error:
        refusals.append(str(error))
# what hf_i2v refuses, its copy beside the weights refuses too
broken = []
file, config = folder / "again" / "model.safetensors", folder / "again" / "config.json"
whole = file.read_bytes(), config.read_text()


def without_a_bias():
    save_file({key: value for key, value in load_file(file).items() if key != "classifier.bias"}, file)


def with_an_index():
    index = {"metadata": {}, "weight_map": {"classifier.bias": "../model.safetensors"}}
    file.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()


def without_frames():
    config.write_text(json.dumps(json.loads(whole[1]) | {"num_frames": 0}))


for damage in (without_a_bias, with_an_index, without_frames):
    damage()
    try:
        AutoModelForVideoClassification.from_pretrained(folder / "again", trust_remote_code=True)
    except ValueError as error:
        broken.append(str(error))
    file.write_bytes(whole[0])
    config.write_text(whole[1])

# by mistake as a plain image model: none of its weights fit, and transformers says so
_, info = CLIPVisionModel.from_pretrained("tester/merged", output_loading_info=True, ignore_mismatched_sizes=True)
plain = CLIPVisionModel.from_pretrained("tester/image").state_dict().keys()
print(
    json.dumps(
        {
            "differences": differences,
            "feature": list(feature.shape),
            "pipeline": {row["label"]: row["score"] for row in rows},
            "again": {row["label"]: row["score"] for row in again},
            "refusals": refusals,
            "broken": broken,
            "loaded_as_image_model": len(set(plain) - set(info["missing_keys"]) - {"embeddings.position_ids"}),
        }
    )
)
