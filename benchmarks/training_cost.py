"""Memory and time of a training step of every method, against training the whole model.

    python benchmarks/training_cost.py        # writes benchmarks/training_cost.md; twenty minutes on one core

ViT-B/16, 224², clips of 8 frames, float32, random weights. Memory: bytes that autograd keeps between forward and
backward pass, counted on the meta device, and 12 bytes a trained parameter (gradient and AdamW's two moments). Time:
CPU seconds of forward, backward and AdamW, of all methods in turns in one process, as ratios to full fine-tuning in
the same round; the median over the rounds. "From a cache": the same step given what the frozen part makes of the clip,
where the method allows it (`–`: it trains something before the blocks); reading it from disk is not in it.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn
from transformers import CLIPVisionConfig

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification
from hf_i2v.backbones import find_backbone
from hf_i2v.caching.part import cached_part
from hf_i2v.counting import activation_bytes, count_parameters

FULL, CACHED = "full fine-tuning", "cached"
LAST = {"layers_to_transform": [9, 10, 11]}
TRAINED = {
    FULL: "full",
    **{config.title: config for config in METHODS.values()},
    "ST-Adapter, last 3 of 12": lambda: METHODS["st_adapter"](**LAST),
    "Frame2Freq, last 3 of 12": lambda: METHODS["frame2freq"](**LAST),
    "linear probe": None,
}
B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP = (8, 3, 224, 224)


def video_model(method) -> nn.Module:
    image_config = CLIPVisionConfig(**B16, image_size=224, patch_size=16)
    base = I2VForVideoClassification(I2VConfig(image_config=image_config, num_frames=8, num_labels=174))
    if method == "full":
        return base.train()
    base.i2v.requires_grad_(False)
    return (base if method is None else get_peft_model(base, method())).train()


def memory(method) -> tuple[float, float]:
    """MiB that autograd keeps of one clip, and MiB of gradients and moments."""
    with torch.device("meta"):
        model = video_model(method)
    return activation_bytes(model, (1, *CLIP)) / 2**20, 12 * count_parameters(model)[1] / 2**20


class Step:
    """A training step: forward, backward, AdamW."""

    def __init__(self, method, pixels_BTChw: torch.Tensor):
        self.model = video_model(method)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        self.inputs = {"pixel_values": pixels_BTChw}
        self.cached = None
        if method != "full":
            frozen = find_backbone(self.model).model.eval()
            try:
                with torch.no_grad():
                    features = frozen.frozen_features(pixels_BTChw, first_block=cached_part(self.model))
                self.cached = {"frozen_features": features}
            except ValueError:  # trained before the blocks: a temporal embedding
                pass
            self.model.train()

    def seconds(self, inputs: dict) -> float:
        """CPU seconds."""
        labels = torch.zeros(1, dtype=torch.int64)
        started = time.process_time()
        self.model(**inputs, labels=labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started


def table(rounds: list[dict]) -> str:
    """The page, from the seconds of each round."""

    def ratio(key) -> float:
        return statistics.median(times[key] / times[FULL] for times in rounds)

    lines = [
        "| method | trained M | activations MiB | gradients, moments MiB | memory, of full | time of a step, of full "
        "| from a cache, of full |",
        "|---|---|---|---|---|---|---|",
    ]
    kept = {name: memory(method) for name, method in TRAINED.items()}
    for name, (activations, optimizer) in kept.items():
        cached = ratio((name, CACHED)) if (name, CACHED) in rounds[0] else None
        cached = "–" if cached is None else f"{cached:.2f}" if cached >= 0.01 else "< 0.01"
        lines.append(
            f"| {name} | {optimizer / 12 * 2**20 / 1e6:.2f} | {activations:.0f} | {optimizer:.0f} | "
            f"{(activations + optimizer) / sum(kept[FULL]):.2f} | {ratio(name):.2f} | {cached} |"
        )
    seconds = statistics.median(times[FULL] for times in rounds)
    lines += [
        "",
        f"Made by `python benchmarks/training_cost.py --rounds {len(rounds)}`. ViT-B/16, 224², one clip of 8 frames, "
        "float32. Memory is counted; the weights, 327 MiB, are not in it. Time: one CPU thread; a step of full "
        f"fine-tuning took {seconds:.1f} s. A cache of what enters the first block spares nothing.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels = torch.randn(1, *CLIP)
    steps = {name: Step(method, pixels) for name, method in TRAINED.items()}
    rounds = []
    for number in range(1 + args.rounds):
        times = {name: step.seconds(step.inputs) for name, step in steps.items()}
        times |= {(name, CACHED): step.seconds(step.cached) for name, step in steps.items() if step.cached}
        rounds.append(times)
        print(f"round {number}:", {str(name): round(value, 2) for name, value in times.items()}, flush=True)
    text = table(rounds[1:])  # the first warms up
    Path(__file__).with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
