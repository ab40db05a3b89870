"""Makes the records of a cache: runs the frozen part of a model over clips."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..backbones import find_backbone
from ..data.media import VideoDecodeError
from ..methods.branch import FrozenFeatures
from ..whole_files import write_text_whole, write_whole
from .layout import BATCH_DIMS, INDEX, CacheLimitError, Layout, StaleCacheError, checksum, read_index
from .part import cached_part, fingerprints

DTYPES = ("float32", "bfloat16", "float16")
FILE_BYTES = 64 * 2**20  # the most of a file
FILE_CLIPS = 64  # the most: processes share files, also where records are small


class Builder:
    """Makes the records of a cache."""

    def __init__(self, model: nn.Module, clips: Dataset, dtype: str, views: int, batch_size: int):
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} must be one of {list(DTYPES)}")
        if views < 1 or (views > 1 and not getattr(clips, "train", False)):
            raise ValueError(f"views ({views}) must be 1, or more for clips for training, which are augmented")
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be >= 1")
        self.model, self.clips, self.dtype, self.views, self.batch_size = model, clips, dtype, views, batch_size
        self.fingerprints = fingerprints(model, clips)
        self.first_block = cached_part(model)
        self.backbone = find_backbone(model).model

    def layout(self, folder: Path, limit_bytes: int | None, *, first: bool) -> Layout:
        """That of the cache in the folder, else a new one; the first process prints what it needs."""
        there = read_index(folder, self.fingerprints)
        if there is None and folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty and holds no cache. Choose another folder, or empty it.")
        layout = there or self._new_layout()
        for name in ("views", "dtype"):
            if getattr(layout, name) != getattr(self, name):
                raise StaleCacheError(
                    f"The cache in {folder} has {name} {getattr(layout, name)}, not {getattr(self, name)}. Ask for "
                    "that, or build another in an empty folder."
                )
        done = sum(1 for name, _, _ in layout.files() if (folder / name).exists())
        need = f"{layout.total_bytes / 1e9:.3g} GB of disk ({layout.num_clips} clips x {layout.views} views x "
        need += f"{layout.record_bytes / 1e6:.3g} MB, {layout.dtype})"
        if first:
            print(f"feature cache: {need} in {folder}" + (f", {done} files are there" if done else ""))
        if limit_bytes is not None and layout.total_bytes > limit_bytes:
            raise CacheLimitError(
                f"The cache would take {need}, more than the limit of {limit_bytes / 1e9:.3g} GB. Raise the limit, or "
                "take fewer views, float16, or fewer tokens (a smaller image, or M-adapter's token_pooling)."
            )
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not done and layout.total_bytes > (free := shutil.disk_usage(existing).free):
            raise CacheLimitError(f"The cache would take {need}, but only {free / 1e9:.3g} GB are free there.")
        return layout

    def note(self, folder: Path, layout: Layout) -> None:
        """Say in the folder what its cache is, if nothing says so yet."""
        if not (folder / INDEX).exists():
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"fingerprints": self.fingerprints, "layout": asdict(layout)}, indent=1)
            write_text_whole(folder / INDEX, text)

    def _new_layout(self) -> Layout:
        """Found by running the model on one clip."""
        clips = (_Keyed(self.clips)[0, index] for index in range(len(self.clips)))
        clip = next((clip for clip in clips if "reason" not in clip), None)
        if clip is None:
            raise ValueError("There is no clip that can be read, so there is nothing to cache.")
        features = self._features(clip["pixel_values"][None])
        shapes = {name: list(tensor.shape) for name, tensor in self._record(features, 0).items()}
        layout = Layout(
            num_clips=len(self.clips),
            views=self.views,
            dtype=self.dtype,
            shapes=shapes,
            records_per_file=1,
            first_block=self.first_block,
            image_size=features.image_size and list(features.image_size),
        )
        # whole batches, so that the same clips go through the model together however the build is shared
        fitting = min(FILE_CLIPS, FILE_BYTES // layout.record_bytes) // self.batch_size * self.batch_size
        return Layout(**{**asdict(layout), "records_per_file": max(self.batch_size, fitting)})

    def write(
        self, folder: Path, layout: Layout, files: list[tuple[str, int, range]], num_workers: int, *, show: bool
    ) -> None:
        """Make the given files, see `Layout.files`."""
        batches = [
            [(view, index) for index in clips[start : start + self.batch_size]]
            for _, view, clips in files
            for start in range(0, len(clips), self.batch_size)
        ]
        clips_of = {"batch_sampler": batches, "collate_fn": list, "num_workers": num_workers}
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            loader = iter(DataLoader(_Keyed(self.clips), **clips_of))
            bar = {"total": sum(map(len, batches)), "desc": "frozen features", "unit": "clip"}
            with tqdm(**bar, disable=not (show and files)) as progress:
                for name, _, clips in files:
                    records, labels, bad = [], [], {}
                    while len(labels) < len(clips):
                        items = next(loader)
                        self._add(items, layout, records, labels, bad)
                        progress.update(len(items))
                    self._save(folder / name, records, labels, bad)
        finally:
            for module, training in modes:
                module.training = training

    def _add(self, items: list[dict], layout: Layout, records: list, labels: list, bad: dict) -> None:
        """One batch: run the model on the clips that could be read."""
        good = [item for item in items if "reason" not in item]
        features = self._features(torch.stack([item["pixel_values"] for item in good])) if good else None
        dtype, places = getattr(torch, layout.dtype), iter(range(len(good)))
        for item in items:
            if "reason" in item:
                bad[str(len(labels))] = item["reason"]
                records.append({name: torch.zeros(shape, dtype=dtype) for name, shape in layout.shapes.items()})
            else:
                records.append(self._record(features, next(places)))
            label = item["labels"]
            labels.append(label.tolist() if isinstance(label, torch.Tensor) else label)

    @torch.no_grad()
    def _features(self, pixels_BTChw: torch.Tensor) -> FrozenFeatures:
        weight = next(self.backbone.parameters())
        return self.backbone.frozen_features(
            pixels_BTChw.to(weight.device, self.backbone.dtype), first_block=self.first_block
        )

    def _record(self, features: FrozenFeatures, place: int) -> dict[str, torch.Tensor]:
        """One clip's tensors, as they are kept."""
        record = {}
        for name, batch_dim in BATCH_DIMS.items():
            if (batch := getattr(features, name)) is not None:
                kept = batch.select(batch_dim, place).to("cpu", getattr(torch, self.dtype)).contiguous()
                if not kept.isfinite().all():
                    raise ValueError(f"The frozen model's {name} is not finite in {self.dtype}. Use dtype bfloat16.")
                record[name] = kept
        return record

    @staticmethod
    def _save(path: Path, records: list[dict], labels: list, bad: dict) -> None:
        facts = json.dumps({"labels": labels, "bad": bad, "checksums": [checksum(record) for record in records]})
        tensors = {name: torch.stack([record[name] for record in records]) for name in records[0]}
        write_whole(path, lambda beside: save_file(tensors, beside, {"facts": facts}))


class _Keyed(Dataset):
    """Clips by (view, index); this is what runs in the workers. A clip that cannot be read says why."""

    def __init__(self, clips: Dataset):
        self.clips = clips

    def __getitem__(self, key: tuple[int, int]) -> dict:
        view, index = key
        if not hasattr(self.clips, "clip"):
            return self.clips[index]
        try:
            return self.clips.clip(index, epoch=view)
        except VideoDecodeError as error:
            return {"reason": str(error), "labels": self.clips.dataset[index]["label"]}
