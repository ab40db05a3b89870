"""Load what was pushed where neither hf_i2v nor peft can be imported. Arguments as in user_with_hf_i2v.py."""

import json
import sys
from pathlib import Path

sys.modules["hf_i2v"] = sys.modules["peft"] = None  # any import of them fails from here on

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
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
for name in ("merged", "baked"):
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
            "loaded_as_image_model": len(set(plain) - set(info["missing_keys"]) - {"embeddings.position_ids"}),
        }
    )
)
