"""Memory and time of a training step of every method, against training the whole model.

    python benchmarks/training_cost.py        # writes benchmarks/training_cost.md; DINOv2-small's size at 70 px

Memory: bytes that autograd keeps between forward and backward pass, counted on the meta device (ViT-B/16, 224², 8
frames, one clip), and the optimiser's 12 bytes a trained parameter (gradient and two moments). Time: CPU seconds of a
step, of all methods in turns in one process, as ratios; the median over the rounds.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn
from transformers import CLIPVisionConfig, Dinov2Config

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification
from hf_i2v.counting import activation_bytes, count_parameters

TRAINED = {
    "full fine-tuning": "full",
    "linear probe": None,
    **{config.title: config for config in METHODS.values()},
    "ST-Adapter, last 3 of 12": lambda: METHODS["st_adapter"](layers_to_transform=[9, 10, 11]),
}
B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def video_model(image_config, method) -> nn.Module:
    base = I2VForVideoClassification(I2VConfig(image_config=image_config, num_frames=8, num_labels=174))
    if method == "full":
        return base.train()
    base.i2v.requires_grad_(False)
    return (base if method is None else get_peft_model(base, method())).train()


def memory(method) -> tuple[float, float]:
    """MiB that autograd keeps, and MiB of gradients and moments."""
    with torch.device("meta"):
        model = video_model(CLIPVisionConfig(**B16, image_size=224, patch_size=16), method)
    return activation_bytes(model, (1, 8, 3, 224, 224)) / 2**20, 12 * count_parameters(model)[1] / 2**20


def step_seconds(model: nn.Module, pixels: torch.Tensor) -> float:
    started = time.process_time()
    model(pixels, labels=torch.zeros(len(pixels), dtype=torch.int64)).loss.backward()
    for parameter in model.parameters():
        parameter.grad = None
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    small = Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=70)
    models = {name: video_model(small, method) for name, method in TRAINED.items()}
    pixels = torch.randn(args.batch_size, 8, 3, 70, 70)
    rounds = [{name: step_seconds(model, pixels) for name, model in models.items()} for _ in range(1 + args.rounds)][
        1:
    ]
    lines = [
        "| method | activations MiB | gradients, moments MiB | both, of full fine-tuning | time of a step, of full |",
        "|---|---|---|---|---|",
    ]
    kept = {name: memory(method) for name, method in TRAINED.items()}
    whole = sum(kept["full fine-tuning"])
    for name, (activations, optimiser) in kept.items():
        ratio = statistics.median(times[name] / times["full fine-tuning"] for times in rounds)
        lines.append(
            f"| {name} | {activations:.0f} | {optimiser:.0f} | {(activations + optimiser) / whole:.2f} | {ratio:.2f} |"
        )
    lines += [
        "",
        "Made by `python benchmarks/training_cost.py`. Memory: ViT-B/16, 224², 8 frames, one clip, float32, counted; "
        "frozen weights are not in it. Time: DINOv2-small's size at 70 px, one CPU thread, "
        f"{args.batch_size} clips of 8 frames, median of {args.rounds} rounds. From a cache, see `from_cache.csv`.",
    ]
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
