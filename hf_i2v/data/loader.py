"""Batches of clips for training and evaluation, on any number of processes and workers, resumable at any batch.

What comes when is in `order`. A clip is decoded after it was dealt to a rank, so the whole state is (epoch, samples
taken), and resuming costs nothing, also with another number of workers or ranks.
"""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .clips import VideoClips, collate
from .failures import FailureLog, OnBadVideo, bad_video
from .fingerprints import common_folder
from .media import VideoDecodeError
from .mixing import Mix
from .order import epoch_order, rank_batches, seeded_generator

logger = logging.getLogger(__name__)

# Substitutes tried for one bad video; more in a row means that something else is wrong.
_MAX_SUBSTITUTES = 32

# Of a batch, what workers send as it is: a tensor goes through a file of shared memory, which takes longer than this.
_SMALL = ("labels", "ids", "is_padding")


class _BatchKey(NamedTuple):
    """What a worker needs to make one batch."""

    epoch: int
    indices: list[int]
    is_padding: list[bool]


class ClipLoader:
    """Iterate over batches of clips.

    ```python
    loader = ClipLoader(clips, batch_size=8, shuffle=True, rank=accelerator.process_index, world_size=...)
    for epoch in range(loader.epoch, num_epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            ...
            state = loader.state_dict()  # at any batch; load_state_dict continues after it
    ```

    A batch is a dictionary: `pixel_values` (B, T, C, h, w), or (B, V, T, C, h, w) where a video has several views;
    `labels` (B,) int64; `ids` (B,) int64, the row of the data set that each clip is of; `is_padding` (B,) bool. A clip
    with `is_padding` is a repetition that fills up the last step or stands for a skipped video; leave it out of
    losses and metrics.

    Args:
        clips: what to decode; its `seed` also decides the order unless `seed` is given.
        batch_size: clips a rank takes per step.
        shuffle: a new order in each epoch; False for the order of the data set.
        seed: of the order; default the seed of `clips`.
        num_workers: processes that decode; 0 decodes in this one. It changes no batch.
        rank: this process.
        world_size: number of processes.
        drop_last: leave out the incomplete last step (of all ranks together). Otherwise it is shared out evenly, and
            every video comes exactly once without `is_padding`.
        shuffle_buffer_size: see `epoch_order`; worth setting for parquet shards.
        on_bad_video: "error" raises; "skip" marks the clip as padding; "substitute" takes the next good video of the
            data set, in clips for evaluation it skips. None: "substitute" where `clips` are for training, else "skip".
        max_bad_fraction: raise `TooManyBadVideosError` once more than this share of the videos was bad,
        min_bad_videos: but not below so many bad videos: in a small data set a few are a large share.
        bad_videos_file: where to list failures as JSON lines; ranks share one file. None: only in `failures`.
        mix: mixup and CutMix; `labels` are then (B, K) float32.
        device: where batches go, before they are normalised and mixed; None leaves them on the CPU.
        pin_memory: see torch's DataLoader. None: where `device` is CUDA's, for copying to it does not wait then.
        prefetch_factor: batches that each worker makes in advance, see torch's DataLoader; default 2.

    Raises:
        ValueError: an argument out of range, or a data set too small for one step with `drop_last`.
        VideoDecodeError: while iterating, under "error".
        TooManyBadVideosError: while iterating.
        RuntimeError: a worker gave no batch in the time that reading its videos may take, one after another; it does
            not come back from a call of FFmpeg, or was stopped.
    """

    def __init__(
        self,
        clips: VideoClips,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        shuffle_buffer_size: int | None = None,
        on_bad_video: OnBadVideo | None = None,
        max_bad_fraction: float = 0.01,
        min_bad_videos: int = 5,
        bad_videos_file: str | os.PathLike | None = None,
        mix: Mix | None = None,
        device: torch.device | str | None = None,
        pin_memory: bool | None = None,
        prefetch_factor: int | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank ({rank}) must be in [0, world_size), world_size is {world_size}")
        if shuffle_buffer_size is not None and shuffle_buffer_size < 1:
            raise ValueError(f"shuffle_buffer_size ({shuffle_buffer_size}) must be at least 1, or None")
        if len(clips) < (batch_size * world_size if drop_last else 1):
            raise ValueError(
                f"the data set has {len(clips)} videos, a step takes {batch_size} on each of {world_size} processes: "
                "no batch would be left; use a smaller batch_size or drop_last=False"
            )
        self.clips = clips
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = clips.seed if seed is None else seed
        self.rank, self.world_size = rank, world_size
        self.drop_last = drop_last
        self.shuffle_buffer_size = shuffle_buffer_size
        self.mix = mix
        self.device = device
        self.epoch = 0
        self._taken = 0  # samples of the epoch that all ranks together have taken
        self._start = 0  # where the next iteration starts
        self._log = FailureLog(
            bad_videos_file,
            num_videos=len(clips),
            train=clips.train,
            max_bad_fraction=max_bad_fraction,
            min_bad_videos=min_bad_videos,
        )
        if on_bad_video is None:
            on_bad_video = "substitute" if clips.train else "skip"
        readers = world_size * max(1, num_workers)
        columns = clips.dataset.column_names
        if rank == 0 and readers > 1 and "row_group" in columns and clips.dataset[0]["row_group"] is not None:
            logger.warning(
                "parquet: a row group is read whole, and its videos are dealt out to %s processes, each of which may "
                "read it; tar shards are read video by video",
                readers,
            )
        self._sampler = _Keys()
        self._loader = DataLoader(
            _Batches(clips, on_bad_video),
            sampler=self._sampler,
            batch_size=None,  # a key is a whole batch
            collate_fn=_as_it_is,  # torch's own would make tensors of all numbers
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device is not None and torch.device(device).type == "cuda"
            if pin_memory is None
            else pin_memory,
            prefetch_factor=prefetch_factor if num_workers else None,
            # a worker that was stopped, or that does not come back from one call of FFmpeg, is not waited for any more
            timeout=min(clips.limits.seconds * (1 + batch_size), threading.TIMEOUT_MAX) if num_workers else 0,
            generator=torch.Generator(),  # leaves torch's global random state to the model
        )

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch; the same on every rank."""
        step = self.batch_size * self.world_size
        return len(self.clips) // step if self.drop_last else -(-len(self.clips) // step)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The videos that this rank could not read: `id`, `path`, `reason`, `epoch` and `train` of each failure."""
        return self._log.failures

    def num_bad_videos(self) -> int:
        """How many videos could not be read, over all ranks and epochs: those in `bad_videos_file`, which a run that
        goes on adds to, or without a file those of this rank since it started."""
        return self._log.num_bad_videos()

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration goes through; without it, iterations count up by themselves. Setting the
        epoch that a loaded state is in leaves its place in it alone."""
        if epoch != self.epoch:
            self.epoch, self._start, self._taken = epoch, 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._sampler.keys = self._keys()
        self._taken, self._start = self._start, 0  # another iteration, after this one was left, starts anew
        try:
            for batch in self._loader:
                self._taken = min(self._taken + self.batch_size * self.world_size, len(self.clips))
                self._log.record(batch.pop("failures"))
                yield self._finished(batch)
        finally:  # also when the loop over the batches is left, as after the last step of a training
            self._log.report(self.epoch)
        self.epoch, self._start, self._taken = self.epoch + 1, 0, 0

    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What is better done here than in a worker: floats are four times the bytes, and a device is faster."""
        key = batch.pop("key")
        batch |= {name: torch.from_numpy(batch[name]) for name in _SMALL}
        if self.device is not None:
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        if (normalize := self.clips.transform.normalize) is not None:
            batch["pixel_values"] = normalize(batch["pixel_values"])
        if self.mix is not None:
            generator = seeded_generator("mix", self.clips.seed, key.epoch, key.indices)
            batch["pixel_values"], batch["labels"] = self.mix(batch["pixel_values"], batch["labels"], generator)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch comes from: a few plain values, the same on every rank."""
        done = self._taken + (self.batch_size * self.world_size if self.drop_last else 1) > len(self.clips)
        return {
            "epoch": self.epoch + done,
            "samples_taken": 0 if done else self._taken,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "shuffle_buffer_size": self.shuffle_buffer_size,
            "num_videos": len(self.clips),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state_dict` was called, whatever the numbers of workers and ranks now.

        Where bad videos were taken out of the data set since then, the epoch goes on at the same place of a new order.
        The caller checks with `videos_fingerprint` that it is the same data set.

        Raises:
            ValueError: a state of another seed or kind of shuffling.
        """
        own = self.state_dict()
        if state.get("num_videos") != own["num_videos"]:
            logger.warning(
                "there were %s videos, now there are %s: the rest of epoch %s has a new order, some videos may come "
                "twice in it or not at all",
                *(state.get("num_videos"), own["num_videos"], state["epoch"]),
            )
        facts = ("seed", "shuffle", "shuffle_buffer_size")
        differ = {key: (state.get(key), own[key]) for key in facts if state.get(key) != own[key]}
        if differ:
            found = "; ".join(f"{key} was {then!r}, is {now!r}" for key, (then, now) in differ.items())
            raise ValueError(f"the saved state of the data loader does not fit: {found}")
        self.epoch, self._start = state["epoch"], min(state["samples_taken"], len(self.clips))
        self._taken = self._start

    def _keys(self) -> Iterator[_BatchKey]:
        order = epoch_order(
            len(self.clips),
            seed=self.seed,
            epoch=self.epoch,
            shuffle=self.shuffle,
            shuffle_buffer_size=self.shuffle_buffer_size,
        )
        batches = rank_batches(
            len(self.clips),
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            drop_last=self.drop_last,
            start=self._start,
        )
        return _batch_keys(self.epoch, order, batches)


def _batch_keys(epoch: int, order: torch.Tensor, batches: Iterator[list[int]]) -> Iterator[_BatchKey]:
    num_samples = len(order)
    for positions in batches:
        indices = [int(order[position % num_samples]) for position in positions]
        yield _BatchKey(epoch, indices, [position >= num_samples for position in positions])


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


class _Keys(Sampler):
    """The keys of the next iteration. It holds no reference to the ClipLoader: in a reference cycle, the end of
    persistent workers takes seconds."""

    def __init__(self):
        self.keys: Iterator[_BatchKey] = iter(())

    def __iter__(self) -> Iterator[_BatchKey]:
        return self.keys


class _Batches(Dataset):
    """Keys to batches; this is what runs in the workers."""

    def __init__(self, clips: VideoClips, on_bad_video: OnBadVideo):
        if on_bad_video not in ("error", "skip", "substitute"):
            raise ValueError(f"on_bad_video ({on_bad_video!r}) must be 'error', 'skip' or 'substitute'")
        self.clips = clips
        self._root: str | None = None  # folder of all videos, as soon as one of them is bad
        self.on_bad_video = "skip" if on_bad_video == "substitute" and not clips.train else on_bad_video

    def __getitem__(self, key: _BatchKey) -> dict[str, Any]:
        failures: list[dict[str, Any]] = []
        items = []
        for index, is_padding in zip(key.indices, key.is_padding, strict=True):
            item = None if is_padding else self._item(index, key.epoch, failures, substitute=False)
            items.append({"ids": index, "is_padding": item is None, **(item or {})})
        if all(item["is_padding"] for item in items):  # then one clip is needed for the shape of the others
            tried = list(failures)  # failures of videos of other batches are recorded there
            items[0] |= self._item(key.indices[0], key.epoch, tried, substitute=True)
        filled = next(item for item in items if "labels" in item)
        items = [{**filled, **item} for item in items]
        batch = getattr(self.clips, "collate", collate)(items)
        batch["key"] = key
        batch["ids"] = torch.tensor([item["ids"] for item in items], dtype=torch.int64)
        batch["is_padding"] = torch.tensor([item["is_padding"] for item in items])
        batch["failures"] = failures
        return batch | {name: batch[name].numpy() for name in _SMALL}

    def _item(self, index: int, epoch: int, failures: list[dict[str, Any]], *, substitute: bool) -> dict | None:
        """The clip of a video, or of its substitute (the data set's next good video, whatever the epoch's order, so
        that it does not depend on what is remembered), or None where bad videos are skipped."""
        substitute = substitute or self.on_bad_video == "substitute"
        for attempt in range(min(_MAX_SUBSTITUTES + 1, len(self.clips))):
            candidate = (index + attempt) % len(self.clips)
            if any(failure["id"] == candidate for failure in failures):  # counted and known to be bad in this batch
                continue
            try:
                return {"ids": candidate, **self.clips.clip(candidate, epoch=epoch, normalize=False)}
            except VideoDecodeError as error:
                if self.on_bad_video == "error":
                    raise
                self._root = common_folder(self.clips.dataset) if self._root is None else self._root
                row = self.clips.dataset[candidate]
                failures.append(bad_video(row, candidate, str(error), self._root) | {"epoch": epoch})
                if not substitute:
                    return None
        listed = "\n".join(failure["reason"] for failure in failures)
        raise VideoDecodeError(f"no video could be read in place of number {index}:\n{listed}")
