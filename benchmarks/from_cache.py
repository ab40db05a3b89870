"""Training without the frozen part: an epoch from the cache against one without, and what many heads at once cost.

    python benchmarks/from_cache.py                          # DINOv2-small's size at 70 px, random weights
    python benchmarks/from_cache.py --model path/to/dinov2-small --rounds 5 --csv benchmarks/from_cache.csv

All times are of one process, in turns (`interleaved.py`), as ratios. An epoch without the cache decodes nothing: its
clips are random pixels in memory, so what decoding costs would come on top of it.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from interleaved import interleaved
from peft import get_peft_model
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Dinov2Config, Dinov2Model

from hf_i2v import (
    AttentiveProbeConfig,
    Frame2FreqConfig,
    I2VConfig,
    I2VForVideoClassification,
    MAdapterConfig,
    STAdapterConfig,
    STEPConfig,
)
from hf_i2v.feature_cache import FeatureCache, collate_features
from hf_i2v.probe_sweep import Head, StackedHeads, sweep_settings

NUM_FRAMES, NUM_LABELS = 8, 15
LAST = list(range(9, 12))
TRAINED = {
    "linear probe": None,
    "STEP": STEPConfig,
    "attentive probe, 0+1 blocks": lambda: AttentiveProbeConfig(num_blocks=0),
    "attentive probe, 3+1 blocks": AttentiveProbeConfig,
    "M-adapter": MAdapterConfig,
    "ST-Adapter in the last 3 of 12": lambda: STAdapterConfig(layers_to_transform=LAST),
    "Frame2Freq in the last 3 of 12": lambda: Frame2FreqConfig(layers_to_transform=LAST),
}


class Pixels(Dataset):
    """Fixed clips of noise."""

    def __init__(self, num_clips: int, size: int):
        self.pixels = torch.randn(num_clips, NUM_FRAMES, 3, size, size)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": self.pixels[index], "labels": index % NUM_LABELS}

    def fingerprint(self) -> str:
        return "noise"


def video_model(model: str | None, config) -> nn.Module:
    torch.manual_seed(0)
    if model:
        base = I2VForVideoClassification.from_image_model(model, num_frames=NUM_FRAMES, num_labels=NUM_LABELS)
    else:
        image = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518))
        base = I2VForVideoClassification(
            I2VConfig(image_config=image.config, num_frames=NUM_FRAMES, num_labels=NUM_LABELS)
        )
    base.i2v.requires_grad_(False)
    return (base if config is None else get_peft_model(base, config())).train()


def epoch(model: nn.Module, loader: DataLoader) -> None:
    """Forward, backward, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def sweep_epoch(stacked: StackedHeads, loader: DataLoader) -> None:
    """The same for many heads at once."""
    for batch in loader:
        batch |= {"is_padding": torch.zeros(len(batch["labels"]), dtype=torch.bool)}
        stacked.backward(batch)
        stacked.step()


def measure(args: argparse.Namespace) -> list[dict]:
    clips, rows = Pixels(args.num_clips, args.size), []
    for name, config in TRAINED.items():
        model = video_model(args.model, config)
        with tempfile.TemporaryDirectory() as folder:
            cache = FeatureCache.build(folder, model, clips, batch_size=args.batch_size, dtype="float16")
            loader = DataLoader(clips, batch_size=args.batch_size)
            cached = DataLoader(cache, batch_size=args.batch_size, collate_fn=collate_features)
            calls = {
                "without": lambda m=model, loader=loader: epoch(m, loader),
                "cached": lambda m=model, loader=cached: epoch(m, loader),
            }
            times = interleaved(calls, rounds=args.rounds)
            rows.append(_row(f"{name}: epoch without / with cache", times["without"].over(times["cached"]), cache))
            if "in the last" not in name:
                stacked = {n: StackedHeads(Head.of(model), sweep_settings()[:n]).train() for n in (20, 1)}
                calls = {
                    str(n): lambda heads=heads, loader=cached: sweep_epoch(heads, loader)
                    for n, heads in stacked.items()
                }
                times = interleaved(calls, rounds=args.rounds)
                rows.append(
                    _row(f"{name}: 20 heads / 1 head, an epoch from the cache", times["20"].over(times["1"]), cache)
                )
        print(*(f"{row['what']}: {row['ratio']}" for row in rows[-2:]), sep="\n", flush=True)
    return rows


def _row(what: str, ratio: float, cache: FeatureCache) -> dict:
    return {"what": what, "ratio": round(ratio, 2), "kB a clip": round(cache.layout.record_bytes / 1e3, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="image checkpoint; default: random weights of DINOv2-small's size")
    parser.add_argument("--size", type=int, default=70, help="of a frame, pixels")
    parser.add_argument("--num_clips", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    rows = measure(args)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
