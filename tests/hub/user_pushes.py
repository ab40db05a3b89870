"""Push all that can be pushed; leaves pixels and logits in the folder that is the argument."""

import json
import sys
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError
from peft import get_peft_model
from safetensors.torch import save_file
from tiny import randomize_adapter, tiny_image_model

from hf_i2v import (
    AttentiveProbeConfig,
    Frame2FreqConfig,
    I2VForVideoClassification,
    InTIConfig,
    STAdapterConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from hf_i2v.cards import CardFacts
from hf_i2v.data import Preprocessing
from hf_i2v.hub import CheckpointUploads, push_folder, push_to_hub
from hf_i2v.merging import merge_error

torch.set_num_threads(1)
folder = Path(sys.argv[1])
labels = {0: "left", 1: "right", 2: "up"}
pixels = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def adapted(config):
    model = I2VForVideoClassification.from_image_model("tester/image", num_frames=4, id2label=labels)
    return randomize_adapter(get_peft_model(model, config)).eval()


tiny_image_model("clip").push_to_hub("tester/image")
Preprocessing(16, (0.5,) * 3, (0.5,) * 3, "bilinear").image_processor().push_to_hub("tester/image")

adapter = adapted(ZeroI2VConfig())
logits = {"adapter": adapter(pixels).logits}
push_to_hub(adapter, "tester/adapter", facts=CardFacts(dataset="moving shapes"))
tiny_image_model("clip").save_pretrained(folder / "secret" / "image")
local = I2VForVideoClassification.from_image_model(folder / "secret" / "image", num_frames=4, num_labels=2)
local = get_peft_model(local, ZeroI2VConfig())
local.save_pretrained(folder / "adapter")
push_to_hub(local, "tester/of-a-local-base")
(folder / "adapter" / ".cache").mkdir()
(folder / "adapter" / ".cache" / "lock").write_text(str(folder))
push_folder(folder / "adapter", "tester/folder")
merged, error = merge_error(adapter, pixels)
facts = CardFacts(
    method="zeroi2v", metrics={"accuracy": 0.75}, merge_error=error, arguments={"train_dir": str(folder)}
)
push_to_hub(merged, "tester/merged", facts=facts)
push_to_hub(merged, "tester/private", private=True)
logits["merged"] = merged(pixels).logits
baked = adapted(STAdapterConfig(adapter_width=8) + InTIConfig(insert_before=[1])).base_model.bake()
baked.push_to_hub("tester/baked")  # transformers' own way
logits["baked"] = baked(pixels).logits
for name, config in (
    ("frame2freq", Frame2FreqConfig(adapter_width=8)),
    ("attentive_probe", AttentiveProbeConfig(num_blocks=1)),
    ("step", STEPConfig()),
):
    baked = adapted(config).base_model.bake()
    push_to_hub(baked, f"tester/{name}")
    logits[name] = baked(pixels).logits
save_file({"pixels": pixels, **{k: v.detach().contiguous() for k, v in logits.items()}}, folder / "logits.safetensors")

try:
    push_to_hub(merged, "somebody-else/merged")
    refused = None
except HfHubHTTPError as error:
    refused = error.response.status_code

# a run that uploads its checkpoints; the connection breaks once
checkpoint = folder / "checkpoint-10"
checkpoint.mkdir()
for i in range(3):
    save_file({"weight": torch.full((1000,), float(i))}, checkpoint / f"{i}.safetensors")
uploads = CheckpointUploads("tester/run", private=True)
started = uploads.start(checkpoint, "step 10")
uploads.wait()
print(json.dumps({"refused": refused, "started": started}))
