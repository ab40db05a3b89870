"""Features of a frozen model on fixed clips, computed once and kept on disk. An M-adapter trains from them alone.

    cache = FeatureCache.build("cache", model, clips)        # runs the frozen model once over the clips
    for batch in DataLoader(FeatureCache("cache", model, clips), collate_fn=collate_features): model(**batch)

One safetensors file per clip, and `index.json` with a fingerprint of the frozen weights, the clips and their
preprocessing. A cache of another model or other clips is refused.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .backbones import find_backbone
from .video import FrozenFeatures

INDEX = "index.json"


class StaleCacheError(ValueError):
    """The cache was made with another model, other clips or another preprocessing, or is incomplete."""


class FeatureCache(Dataset):
    """The cached clips: items with `levels` (L, T, P, D), `feature` (D,) and `labels`.

    Args:
        folder: written by `build`.
        model: the model with an active M-adapter.
        clips: the cached data set (`VideoClips` with `train=False`, or any with a `fingerprint()`).

    Raises:
        StaleCacheError: the cache does not belong to this model and these clips.
    """

    def __init__(self, folder: str | os.PathLike, model: nn.Module, clips: Dataset):
        self.folder = Path(folder)
        index = self.folder / INDEX
        if not index.exists():
            raise StaleCacheError(f"{folder} holds no finished cache. Make one with FeatureCache.build(...).")
        saved, expected = json.loads(index.read_text()), _fingerprints(model, clips)
        changed = [part for part, value in expected.items() if saved["fingerprints"].get(part) != value]
        if changed:
            raise StaleCacheError(
                f"The cache in {folder} was made with other {' and other '.join(changed)}. Build it again in an empty "
                "folder."
            )
        self.labels = saved["labels"]

    @classmethod
    @torch.no_grad()
    def build(
        cls, folder: str | os.PathLike, model: nn.Module, clips: Dataset, *, batch_size: int = 1, num_workers: int = 0
    ) -> "FeatureCache":
        """Run the frozen model over all clips, with a progress bar, and open the cache.

        Args:
            folder: new or empty. `index.json` is written last, so an interrupted build is never opened as a cache.
            batch_size: clips at a time. Features may differ by rounding between batch sizes.
            num_workers: processes that decode.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty. Choose another folder for the cache, or empty it.")
        fingerprints = _fingerprints(model, clips)
        backbone = find_backbone(model).model
        was_training = model.training
        model.eval()
        labels = []
        for batch in tqdm(DataLoader(clips, batch_size=batch_size, num_workers=num_workers), desc="frozen features"):
            pixel_values = batch["pixel_values"].to(next(backbone.parameters()).device)
            levels_LBTPD, feature_BD = backbone.frozen_features(pixel_values)
            for b, label in enumerate(batch["labels"].tolist()):
                tensors = {"levels": levels_LBTPD[:, b], "feature": feature_BD[b]}
                save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, folder / f"{len(labels)}.safetensors")
                labels.append(label)
        model.train(was_training)
        (folder / INDEX).write_text(json.dumps({"fingerprints": fingerprints, "labels": labels}))
        return cls(folder, model, clips)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return {**load_file(self.folder / f"{index}.safetensors"), "labels": self.labels[index]}


def collate_features(items: Sequence[dict]) -> dict:
    """Batch items of a `FeatureCache`: `frozen_features` for the model's forward, and `labels` (B,)."""
    levels_LBTPD = torch.stack([item["levels"] for item in items], dim=1)
    feature_BD = torch.stack([item["feature"] for item in items])
    labels = torch.tensor([item["labels"] for item in items])
    return {"frozen_features": FrozenFeatures(levels_LBTPD, feature_BD), "labels": labels}


def _fingerprints(model: nn.Module, clips: Dataset) -> dict[str, str]:
    if not hasattr(clips, "fingerprint"):
        raise TypeError(f"{type(clips).__name__} has no fingerprint(), so a stale cache could not be detected.")
    found = find_backbone(model)
    backbone = found.model
    branch = backbone.working_branch()
    if branch is None:
        raise ValueError("The model has no active M-adapter, so there is nothing to cache features for.")
    weights = hashlib.sha256()
    for name, parameter in sorted(backbone.named_parameters()):
        if not name.startswith(("clip_head.", "baked_branch.")):
            weights.update(name.encode())
            weights.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    offsets = [list(block.time_offsets) for block in found.blocks.values()]
    how = json.dumps([offsets, backbone.working_pooling()])
    return {
        "model weights": hashlib.sha256(weights.digest() + how.encode()).hexdigest(),
        "levels": json.dumps([branch.levels, branch.token_pooling]),
        "clips or preprocessing": clips.fingerprint(),
    }
