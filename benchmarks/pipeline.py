"""Do transformers' pipeline and the evaluation see the same pixels? Scores of one model on videos made here.

    python benchmarks/pipeline.py                   # 20 videos of 180×132

The pipeline resizes with Pillow, or with torchvision where that is installed; the evaluation as `eval_transform` does.
"""

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import torch
from peft import get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel, pipeline

from hf_i2v import I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.data import Preprocessing, VideoClips, eval_transform, load_video_folder


def write_video(path: Path, seed: int) -> None:
    """30 frames of a moving texture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = np.random.default_rng(seed).integers(0, 255, (66, 90, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.bit_rate = 180, 132, 4_000_000
        for t in range(30):
            frame = np.roll(texture, 2 * t, axis=1).repeat(2, 0).repeat(2, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def video_model(folder: Path) -> I2VForVideoClassification:
    """A small ZeroI2V model with weights large enough that pixels matter."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**size, image_size=64, patch_size=16)).save_pretrained(folder / "image")
    Preprocessing(64, (0.48, 0.45, 0.40), (0.26, 0.26, 0.27), "bicubic").image_processor().save_pretrained(
        folder / "image"
    )
    model = I2VForVideoClassification.from_image_model(folder / "image", num_frames=8, num_labels=5)
    adapted = get_peft_model(model, ZeroI2VConfig())
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return adapted.merge_and_unload().eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_videos", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for seed in range(args.num_videos):
            write_video(folder / "videos" / "any" / f"{seed:03d}.mp4", seed)
        model = video_model(folder)
        model.save_pretrained(folder / "model")
        classify = pipeline("video-classification", model=str(folder / "model"))
        transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
        clips = VideoClips(
            load_video_folder(folder / "videos")["train"], num_frames=8, transform=transform, train=False
        )
        same, largest = 0, 0.0
        for i in range(len(clips)):
            score_K = model(clips[i]["pixel_values"][None]).logits.softmax(-1)[0]
            rows = {row["label"]: row["score"] for row in classify(clips.name(i))}
            other_K = torch.tensor([rows[name] for name in model.config.id2label.values()])
            same += (score_K.argmax() == other_K.argmax()).item()
            largest = max(largest, (score_K - other_K).abs().max().item())
    resized = "torchvision" if find_spec("torchvision") else "Pillow"
    print(f"{resized}: same top-1 on {same} of {len(clips)} videos, scores differ by {largest:.1e} at most")


if __name__ == "__main__":
    main()
