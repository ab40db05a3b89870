"""M-adapter against ST-Adapter: peak memory of a training step; and an epoch from the cache against one without.

    python benchmarks/m_adapter.py            # ViT-B/16, 224², 8 frames, float32, CPU; about three minutes

Memory is the peak of a process's resident memory over what it held before the model was made, one process per method
in one run. Random weights: values do not change memory or time.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import get_peft_model
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPVisionConfig

from hf_i2v import I2VConfig, I2VForVideoClassification, MAdapterConfig, STAdapterConfig
from hf_i2v.feature_cache import FeatureCache, collate_features

SIZE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
NUM_FRAMES = 8
METHODS = {"st_adapter": STAdapterConfig, "m_adapter": MAdapterConfig}


def video_model(method: str) -> torch.nn.Module:
    torch.manual_seed(0)
    image_config = CLIPVisionConfig(**SIZE, image_size=224, patch_size=16)
    base = I2VForVideoClassification(I2VConfig(image_config=image_config, num_frames=NUM_FRAMES, num_labels=400))
    return get_peft_model(base, METHODS[method]()).train()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def training_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict) -> None:
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def measure_memory(method: str, batch_size: int) -> dict:
    """In a process of its own: bytes over what was held before the model was made."""
    before = peak_bytes()
    model = video_model(method)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    batch = {"pixel_values": torch.randn(batch_size, NUM_FRAMES, 3, 224, 224), "labels": torch.arange(batch_size)}
    started = time.perf_counter()
    training_step(model, optimizer, batch)
    return {"bytes": peak_bytes() - before, "seconds": time.perf_counter() - started}


class RandomClips(Dataset):
    """Fixed clips of noise."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(NUM_FRAMES, 3, 224, 224, generator=generator), "labels": index}

    def fingerprint(self) -> str:
        return "random clips"


def measure_cache(repeats: int) -> tuple[float, float]:
    """Median seconds of an epoch without and with the cache, batch 1, interleaved."""
    model = video_model("m_adapter")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    clips = RandomClips()
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache.build(Path(folder) / "cache", model, clips)
        loaders = DataLoader(clips, batch_size=1), DataLoader(cache, batch_size=1, collate_fn=collate_features)
        seconds = ([], [])
        for _ in range(repeats):
            for loader, times in zip(loaders, seconds, strict=True):
                started = time.perf_counter()
                for batch in loader:
                    training_step(model, optimizer, batch)
                times.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--batch_size", type=int, default=4, help="clips in the memory measurement")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each kind")
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure_memory(args.only, args.batch_size)))
        return
    results = {}
    for method in METHODS:
        command = [sys.executable, __file__, "--only", method, "--batch_size", str(args.batch_size)]
        results[method] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"{method}: peak {results[method]['bytes'] / 2**30:.2f} GiB, step {results[method]['seconds']:.1f} s")
    for unit in ("bytes", "seconds"):
        print(f"M-adapter / ST-Adapter, {unit}: {results['m_adapter'][unit] / results['st_adapter'][unit]:.2f}")
    without, cached = measure_cache(args.repeats)
    print(f"epoch of 4 clips: {without:.2f} s, from the cache {cached:.2f} s: {without / cached:.1f} times faster")


if __name__ == "__main__":
    main()
