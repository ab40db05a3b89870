"""Load what was pushed, with hf_i2v installed: arguments are the folder with the logits, and a video."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, pipeline

import hf_i2v
from hf_i2v.data import ClipLoader, VideoClips, eval_transform, load_video_folder, preprocessing_from_pretrained
from hf_i2v.hub import CheckpointUploads, push_to_hub
from hf_i2v.training.evaluation import predict, write_predictions

torch.set_num_threads(1)
folder, video, token = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]  # a token that is stored nowhere
expected = load_file(folder / "logits.safetensors")
pixels = expected["pixels"]
differences = {}
for name in expected.keys() - {"pixels", "adapter"}:
    assert type(AutoConfig.from_pretrained(f"tester/{name}")) is hf_i2v.I2VConfig
    model = AutoModelForVideoClassification.from_pretrained(f"tester/{name}", trust_remote_code=True)
    assert type(model) is hf_i2v.I2VForVideoClassification  # what is installed comes first
    differences[name] = (model(pixels).logits - expected[name]).abs().max().item()
    feature = AutoModel.from_pretrained(f"tester/{name}")(pixels).pooler_output
    assert torch.equal(model.classifier(feature), model(pixels).logits)
adapter = hf_i2v.AutoPeftModelForVideoClassification.from_pretrained("tester/adapter").eval()
differences["adapter"] = (adapter(pixels).logits - expected["adapter"]).abs().max().item()

model = AutoModelForVideoClassification.from_pretrained("tester/merged").eval()
pixels = preprocessing_from_pretrained("tester/merged")
videos = load_video_folder(video.parent.parent)["train"]
clips = VideoClips(videos, num_frames=4, transform=eval_transform(**vars(pixels)), train=False)
predictions = predict(Accelerator(cpu=True), model, ClipLoader(clips, batch_size=1))  # as the training script
write_predictions(folder / "predictions.csv", predictions, [clips.name(0)], list(model.config.id2label.values()))
rows = pipeline("video-classification", model="tester/merged")(str(video))
names = model.config.id2label
backwards = model(clips[0]["pixel_values"].flip(0)[None]).logits.softmax(-1)[0].tolist()
other_filter = eval_transform(**{**vars(pixels), "interpolation": "bicubic"})
clips = VideoClips(videos, num_frames=4, transform=other_filter, train=False)
other_filter = model(clips[0]["pixel_values"][None]).logits.softmax(-1)[0].tolist()

try:
    push_to_hub(model, "tester/without-a-token")
    refused = None
except HfHubHTTPError as error:
    refused = error.response.status_code
push_to_hub(model, "tester/with-a-token", token=token)
checkpoint = folder / "checkpoint-1"
checkpoint.mkdir()
(checkpoint / "state").write_text("1")
uploads = CheckpointUploads("tester/run-with-a-token", token=token)
uploads.start(checkpoint, "step 1")
uploads.wait()
print(
    json.dumps(
        {
            "differences": differences,
            "pipeline": {row["label"]: row["score"] for row in rows},
            "script": {names[i]: float(p) for i, p in enumerate(predictions.scores_NK[0])},
            "backwards": {names[i]: p for i, p in enumerate(backwards)},
            "other_filter": {names[i]: p for i, p in enumerate(other_filter)},
            "refused": refused,
        }
    )
)
