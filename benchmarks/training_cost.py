"""Memory and time of a training step of every method, against training the whole model.

    python benchmarks/training_cost.py        # writes benchmarks/training_cost.md; twenty minutes on one core

ViT-B/16, 224², clips of 8 frames, random weights. Memory: what `hf_i2v.cost` says of a step on 4 clips in float32; the
largest batches follow from steps on 4 and 8 clips. Time: CPU seconds of forward, backward and AdamW on one clip in
float32, of all methods in turns in one process, as ratios to full fine-tuning in the same round; the median over the
rounds. "From a cache": the same step given what the frozen part makes of the clip, where the method allows it (`–`: it
trains something before the blocks); reading it from disk is not in it.
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
from hf_i2v.cost import count_parameters, training_memory

FULL, CACHED, PREFIX = "full fine-tuning", "cached", "frozen first blocks"
LAST_3 = "ST-Adapter, last 3 of 12"
LAST = {"layers_to_transform": [9, 10, 11]}
TRAINED = {
    FULL: "full",
    **{config.title: config for config in METHODS.values()},
    LAST_3: lambda: METHODS["st_adapter"](**LAST),
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


def memory(model: nn.Module) -> dict:
    """What a step takes: trained parameters, MiB kept and at the peak for 4 clips, and the largest batches."""
    found, largest = {}, {}
    for dtype in (None, torch.bfloat16):
        four, eight = (training_memory(model, (n, *CLIP), autocast=dtype) for n in (4, 8))
        a_clip = (eight.peak - four.peak) / 4
        largest[dtype] = [int(4 + (size * 1e9 - four.peak) / a_clip) for size in (24, 80)]
        found[dtype] = four
    return {"trained": count_parameters(model)[1], "four": found[None], "largest": largest}


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

    @torch.no_grad()
    def prefix_seconds(self, pixels_BTChw: torch.Tensor) -> float:
        """CPU seconds of the frozen blocks alone."""
        frozen = find_backbone(self.model).model
        started = time.process_time()
        frozen.frozen_features(pixels_BTChw, first_block=cached_part(self.model))
        return time.process_time() - started

    def seconds(self, inputs: dict) -> float:
        """CPU seconds."""
        labels = torch.zeros(1, dtype=torch.int64)
        started = time.process_time()
        self.model(**inputs, labels=labels).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - started


def table(rounds: list[dict], models: dict[str, nn.Module]) -> str:
    """The page, from the seconds of each round."""

    def ratio(key) -> float:
        return statistics.median(times[key] / times[FULL] for times in rounds)

    lines = [
        "| method | trained M | kept MiB | peak MiB | peak, of full | time of a step, of full | from a cache, of full "
        "| largest batch, 24 GB: float32, bf16 | 80 GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found = {name: memory(model) for name, model in models.items()}
    for name, facts in found.items():
        four, largest = facts["four"], facts["largest"].values()
        cached = ratio((name, CACHED)) if (name, CACHED) in rounds[0] else None
        cached = "–" if cached is None else f"{cached:.2f}" if cached >= 0.01 else "< 0.01"
        small, large = (", ".join(str(batch[i]) for batch in largest) for i in (0, 1))
        lines.append(
            f"| {name} | {facts['trained'] / 1e6:.2f} | {four.kept / 2**20:.0f} | {four.peak / 2**20:.0f} | "
            f"{four.peak / found[FULL]['four'].peak:.2f} | {ratio(name):.2f} | {cached} | {small} | {large} |"
        )
    seconds = statistics.median(times[FULL] for times in rounds)
    bound = statistics.median(times[LAST_3] / (times[PREFIX] + times["ST-Adapter"] * 3 / 12) for times in rounds)
    lines += [
        "",
        f"Made by `python benchmarks/training_cost.py --rounds {len(rounds)}`. ViT-B/16, 224², clips of 8 frames. "
        "Memory of a step on 4 clips, float32, weights (327 MiB) and batch among it; what a GPU needs besides "
        "(context, fragments: 1 to 2 GB) is not. Time: one clip, one CPU thread; a step of full fine-tuning took "
        f"{seconds:.1f} s. A cache of what enters the first block spares nothing.",
        "",
        f"Frozen first blocks: a step of ST-Adapter in the last 3 of 12 blocks takes {bound:.2f} of the forward pass "
        "of the other 9 without a graph and 3/12 of a step of ST-Adapter in all (asked: ≤ 1.05).",
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
    for number in range(args.rounds):
        times = {name: step.seconds(step.inputs) for name, step in steps.items()}
        times[PREFIX] = steps[LAST_3].prefix_seconds(pixels)
        times |= {(name, CACHED): step.seconds(step.cached) for name, step in steps.items() if step.cached}
        rounds.append(times)
        print(f"round {number}:", {str(name): round(value, 2) for name, value in times.items()}, flush=True)
    text = table(rounds, {name: step.model for name, step in steps.items()})
    Path(__file__).with_suffix(".md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
