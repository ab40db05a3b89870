"""A video model from nothing but this checkout: videos, an image model, ZeroI2V, merged, used.

    python examples/quickstart.py --output_dir quickstart_output

Everything that a real project does happens here at toy size: the videos are real mp4 files, the image model is an
ordinary transformers checkpoint, training is the real script, and the result is loaded in a new process.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModel

from hf_i2v import I2VForVideoClassification
from hf_i2v.cost import cost
from hf_i2v.data import VideoClips, collate, eval_transform, load_video_folder, preprocessing_from_pretrained

EXAMPLES = Path(__file__).parent
NUM_FRAMES = 8
EPOCHS = 8

USE_IT = """
import sys
import hf_i2v
from transformers import AutoModelForVideoClassification, pipeline

folder, video = sys.argv[1:]
model = AutoModelForVideoClassification.from_pretrained(folder)
print(f"{type(model).__name__}, {model.config.num_frames} frames, time offsets {model.config.time_offsets}")
for row in pipeline("video-classification", model=folder)(video, top_k=2):
    print(f"{row['label']}: {row['score']:.3f}")
"""


def step(number: int, title: str) -> None:
    print(f"\n== {number}. {title}", flush=True)


def run(*command) -> None:
    """Run a command, shown as one would type it."""
    print("$", " ".join(str(part) for part in command), flush=True)
    # threads that wait for one another on busy cores cost far more than they give
    environment = {"OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false", **os.environ}
    subprocess.run([str(part) for part in command], check=True, env=environment)


def train(tuner: str, image_model: Path, videos: Path, output_dir: Path) -> dict:
    """Run the training script and return its results."""
    accelerate = Path(sys.executable).with_name("accelerate")
    run(
        *(accelerate, "launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--num_cpu_threads_per_process", os.cpu_count()),
        *(EXAMPLES / "run_video_cls.py", "--model_name_or_path", image_model),
        *("--train_dir", videos / "train", "--validation_dir", videos / "validation"),
        *("--tuner", tuner, "--num_frames", NUM_FRAMES, "--output_dir", output_dir),
        *("--num_train_epochs", EPOCHS, "--per_device_train_batch_size", 16, "--learning_rate", 3e-3),
        *("--crop_scale", 1, 1, "--classifier_dropout", 0, "--dataloader_num_workers", 1),
    )
    return json.loads((output_dir / "all_results.json").read_text())


@torch.no_grad()
def all_logits(model: torch.nn.Module, clips: VideoClips) -> torch.Tensor:
    """Logits of all clips, (number of clips, number of classes)."""
    loader = DataLoader(clips, batch_size=16, collate_fn=collate)
    return torch.cat([model.eval()(batch["pixel_values"]).logits for batch in tqdm(loader, unit="batch")])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder for all that is made")
    output_dir = parser.parse_args(argv).output_dir
    if output_dir.exists():
        parser.error(f"{output_dir} is there already; remove it or choose another --output_dir")
    started = time.monotonic()
    videos, image_model = output_dir / "videos", output_dir / "image_model"

    step(1, "videos: digits that move left, right, up or down")
    run(sys.executable, EXAMPLES / "make_moving_digits.py", "--output_dir", videos)

    step(2, "an image model: a tiny ViT, trained on still digits")
    run(sys.executable, EXAMPLES / "pretrain_digits.py", "--output_dir", image_model)

    step(3, "a video model: the frozen image model with a linear probe, and with ZeroI2V")
    results = {t: train(t, image_model, videos, output_dir / t) for t in ("linear_probe", "zeroi2v")}

    step(4, "what the two are worth")
    print(f"{'':14}{'top-1':>8}{'trainable':>12}{'MACs per clip':>15}")
    for tuner, result in results.items():
        top1, trained, macs = (result[key] for key in ("eval_accuracy", "trainable_parameters", "macs"))
        print(f"{tuner:14}{100 * top1:6.1f} %{trained:12,}{macs / 1e6:13.1f} M")

    step(5, "merged: the image model's cost, the video model's answers")
    preprocessing = preprocessing_from_pretrained(image_model)
    data = load_video_folder(videos / "train", videos / "validation")
    transform = eval_transform(**vars(preprocessing))
    clips = VideoClips(data["validation"], num_frames=NUM_FRAMES, transform=transform, train=False)
    names = data["validation"].features["label"].names
    base = I2VForVideoClassification.from_image_model(
        image_model, num_frames=NUM_FRAMES, id2label=dict(enumerate(names))
    )
    model = PeftModel.from_pretrained(base, output_dir / "zeroi2v" / "adapter")
    unmerged = all_logits(model, clips)
    merged = model.merge_and_unload()
    difference = (all_logits(merged, clips) - unmerged).abs().max().item()
    size = preprocessing.size
    plain = cost(AutoModel.from_pretrained(image_model, add_pooling_layer=False), (NUM_FRAMES, 3, size, size))
    video = cost(merged, (1, NUM_FRAMES, 3, size, size))
    temporal = NUM_FRAMES * merged.config.hidden_size
    head = sum(p.numel() for p in merged.classifier.parameters())
    print(f"largest logit difference, merged and unmerged: {difference:.1e} (logits up to {unmerged.abs().max():.1f})")
    print(f"plain image model: {plain.total_parameters:,} parameters, {plain.macs:,} MACs for {NUM_FRAMES} frames")
    print(f"merged video model: {video.total_parameters:,} parameters, {video.macs:,} MACs for a clip")
    print(
        f"that is {video.total_parameters - plain.total_parameters:+,} parameters "
        f"(temporal embedding {temporal:,}, head {head:,}) and {video.macs - plain.macs:+,} MACs (head)"
    )
    merged.save_pretrained(output_dir / "merged")

    step(6, "used: in a new process, by people who only know transformers")
    video_file = sorted((videos / "validation" / "moves_left").glob("*.mp4"))[0]
    run(sys.executable, "-c", USE_IT, output_dir / "merged", video_file)
    print(f"\nDone in {time.monotonic() - started:.0f} s. The video model is in {output_dir / 'merged'}.")


if __name__ == "__main__":
    main()
