"""What the frozen part of a model makes of clips, computed once and kept on disk: training without that part.

    cache = FeatureCache.build("cache", model, clips, dtype="float16")       # or opens the one that is there
    for batch in DataLoader(cache, collate_fn=collate_features): model(**batch)
    for batch in ClipLoader(cache, batch_size=8, shuffle=True): model(frozen_features=batch["frozen_features"])

| what is trained                                          | what is kept of a clip                                |
|----------------------------------------------------------|-------------------------------------------------------|
| a side branch (attentive probe, STEP, M-adapter)         | what the branch reads, and the frozen clip feature    |
| nothing of the vision model (linear probe)               | the frozen clip feature                               |
| adapters from block k on (`layers_to_transform`)         | what enters block k                                   |

On disk: `cache.json`, which says what the cache was made of and with, and files of some records each, written beside
and renamed, so that a file is whole. A build that was broken off goes on where it stopped; several processes share it.
"""

import copy
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.utils.data import Dataset, default_collate

from .caching.build import Builder
from .caching.layout import BATCH_DIMS, CacheLimitError, StaleCacheError, checksum, read_index
from .caching.part import fingerprints
from .data.media import VideoDecodeError
from .data.transforms import ClipTransform
from .methods.branch import FrozenFeatures

__all__ = ["CacheLimitError", "FeatureCache", "StaleCacheError", "collate_features"]

OPEN_FILES = 64


class FeatureCache(Dataset):
    """The cached clips: items with `frozen_features` of one clip and `labels`. Takes the place of `VideoClips` in a
    `ClipLoader`, whose batches then have `frozen_features` in the place of `pixel_values`.

    With several views, augmented copies of each clip, an epoch has one of each clip, and as many epochs as there are
    views have each once.

    Args:
        folder: where `build` has put the features.
        model: the model that will be trained.
        clips: the data set that was cached: `VideoClips`, or any with a `fingerprint()`.

    Raises:
        StaleCacheError: the cache does not belong to this model and these clips, or is not complete.
    """

    def __init__(self, folder: str | os.PathLike, model: nn.Module, clips: Dataset):
        self.folder = Path(folder)
        layout = read_index(self.folder, fingerprints(model, clips))
        missing = [name for name, _, _ in layout.files() if not (self.folder / name).exists()] if layout else []
        if layout is None or missing:
            raise StaleCacheError(
                f"{folder} holds no finished cache{f': {len(missing)} files are missing' if missing else ''}. Make it "
                "with FeatureCache.build(...), which goes on where it stopped."
            )
        self.layout = layout
        self.clips = clips
        # what a ClipLoader asks of clips
        self.train, self.seed = getattr(clips, "train", False), getattr(clips, "seed", 0)
        self.dataset, self.limits = getattr(clips, "dataset", None), getattr(clips, "limits", None)
        self.transform = ClipTransform()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._open: OrderedDict[str, tuple] = OrderedDict()
        self._indices = range(layout.num_clips)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike,
        model: nn.Module,
        clips: Dataset,
        *,
        batch_size: int = 1,
        num_workers: int = 0,
        dtype: str = "float32",
        views: int = 1,
        limit_bytes: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        wait: Callable[[], None] = lambda: None,
    ) -> "FeatureCache":
        """Run the frozen part of the model over all clips, as far as that is not done, and open the cache.

        Args:
            folder: new, empty, or with a cache of the same model and clips, finished or not.
            batch_size: clips at a time. Results of a batch may differ from those of single clips by rounding.
            num_workers: processes that decode.
            dtype: of what is kept: float32, bfloat16 or float16.
            views: augmented copies of each clip: those of the epochs 0, 1, … of clips for training.
            limit_bytes: of disk that the cache may take.
            rank, world_size: this process among those that share the work.
            wait: waits until all of them are here.

        Raises:
            CacheLimitError: it would take more than `limit_bytes`, or than is free. Nothing is written.
            StaleCacheError: the folder holds a cache of something else.
            FileExistsError: the folder holds something that is no cache.
            ValueError: an argument out of range, or a model of which nothing is frozen.
        """
        folder, builder = Path(folder), Builder(model, clips, dtype, views, batch_size)
        layout = builder.layout(folder, limit_bytes, first=rank == 0)
        wait()  # nobody writes before all have looked
        if rank == 0:
            builder.note(folder, layout)
        wait()  # records only where the index says of what
        own = list(layout.files())[rank::world_size]
        missing = [file for file in own if not (folder / file[0]).exists()]
        builder.write(folder, layout, missing, num_workers, show=rank == 0)
        wait()
        return cls(folder, model, clips)

    def __len__(self) -> int:
        return len(self._indices)

    def part(self, indices: Sequence[int]) -> "FeatureCache":
        """The cache of the clips with these `indices` only."""
        part = copy.copy(self)
        part._indices, part._open = [self._indices[index] for index in indices], OrderedDict()
        if hasattr(part.dataset, "select"):
            part.dataset = part.dataset.select(indices)
        return part

    def labels(self) -> list:
        """The labels of all clips, in their first view."""
        places = (divmod(index, self.layout.records_per_file) for index in self._indices)
        per_file = self.layout.records_per_file
        return [self._file(self.layout.name(0, file * per_file))[1]["labels"][place] for file, place in places]

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose views `cache[index]` gives."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict:
        return self.clip(index, epoch=int(self._epoch))

    def clip(self, index: int, *, epoch: int, normalize: bool = True) -> dict:
        """`frozen_features` (without a batch dimension) and `labels` of clip `index`, in an epoch.

        Args:
            index: of the clip.
            epoch: which of the cached views it is.
            normalize: not used; for `ClipLoader`, which says it of pixels.

        Raises:
            VideoDecodeError: the video could not be read when the cache was made.
            StaleCacheError: the record is damaged.
        """
        index = self._indices[index]
        view = (epoch + index) % self.layout.views
        name = self.layout.name(view, index)
        file, facts = self._file(name)
        place = index % self.layout.records_per_file
        if reason := facts["bad"].get(str(place)):
            raise VideoDecodeError(reason)
        tensors = {key: file.get_slice(key)[place] for key in self.layout.shapes}
        if checksum(tensors) != facts["checksums"][place]:
            raise StaleCacheError(
                f"{self.folder / name} is damaged. Remove that file and build the cache again, which makes this file "
                "anew and keeps the others."
            )
        size = self.layout.image_size
        features = FrozenFeatures(
            **tensors, first_block=self.layout.first_block, image_size=None if size is None else tuple(size)
        )
        return {"frozen_features": features, "labels": facts["labels"][place]}

    def name(self, index: int) -> str:
        """What to call clip `index` in messages."""
        index = self._indices[index]
        return self.clips.name(index) if hasattr(self.clips, "name") else f"clip {index}"

    def _file(self, name: str) -> tuple:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        try:
            file = safe_open(self.folder / name, "pt")
            facts = json.loads(file.metadata()["facts"])
        except Exception as error:  # whatever safetensors says of a file that is cut off
            raise StaleCacheError(f"{self.folder / name} is damaged ({error}). Remove it and build again.") from error
        self._open[name] = file, facts
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)
        return file, facts

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}

    @staticmethod
    def collate(items: Sequence[dict]) -> dict:
        """Batch items: `frozen_features` for the model's forward, and `labels` (B,)."""
        return collate_features(items)


def collate_features(items: Sequence[dict]) -> dict:
    """Batch items of a `FeatureCache`: `frozen_features` for the model's forward, and `labels` (B,)."""
    features = [item["frozen_features"] for item in items]
    batched = {
        name: torch.stack([getattr(feature, name) for feature in features], dim=batch_dim)
        for name, batch_dim in BATCH_DIMS.items()
        if getattr(features[0], name) is not None
    }
    labels = default_collate([item["labels"] for item in items])
    return {"frozen_features": features[0]._replace(**batched), "labels": labels}
