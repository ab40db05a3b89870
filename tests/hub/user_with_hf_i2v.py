"""Load what was pushed, with hf_i2v installed: arguments are the folder with the logits, and a video."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, pipeline

import hf_i2v
from hf_i2v.data import VideoReader, eval_transform, preprocessing_from_pretrained, uniform_indices

torch.set_num_threads(1)
folder, video = map(Path, sys.argv[1:])
expected = load_file(folder / "logits.safetensors")
pixels = expected["pixels"]
differences = {}
for name in ("merged", "baked"):
    assert type(AutoConfig.from_pretrained(f"tester/{name}")) is hf_i2v.I2VConfig
    model = AutoModelForVideoClassification.from_pretrained(f"tester/{name}", trust_remote_code=True)
    assert type(model) is hf_i2v.I2VForVideoClassification  # what is installed comes first
    differences[name] = (model(pixels).logits - expected[name]).abs().max().item()
    feature = AutoModel.from_pretrained(f"tester/{name}")(pixels).pooler_output
    assert torch.equal(model.classifier(feature), expected[name])
adapter = hf_i2v.AutoPeftModelForVideoClassification.from_pretrained("tester/adapter").eval()
differences["adapter"] = (adapter(pixels).logits - expected["adapter"]).abs().max().item()

model = AutoModelForVideoClassification.from_pretrained("tester/merged").eval()
transform = eval_transform(**vars(preprocessing_from_pretrained("tester/merged")))
with VideoReader(video) as reader:
    clip = transform(reader.frames(uniform_indices(num_video_frames=reader.num_frames, num_frames=4)))
probabilities = model(clip[None]).logits.softmax(-1)[0].tolist()
rows = pipeline("video-classification", model="tester/merged")(str(video))
script = {model.config.id2label[i]: p for i, p in enumerate(probabilities)}
print(json.dumps({"differences": differences, "pipeline": {r["label"]: r["score"] for r in rows}, "script": script}))
