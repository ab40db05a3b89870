"""How a cache lies on disk: `cache.json` and files of records, written beside and renamed: each is whole."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

INDEX = "cache.json"
BATCH_DIMS = {"levels": 1, "feature": 0, "entering": 0}  # of the tensors of FrozenFeatures


class StaleCacheError(ValueError):
    """The cache was made with another model, other clips or another preprocessing, or is incomplete or damaged."""


class CacheLimitError(ValueError):
    """The cache would need more disk than it may have, or than there is."""


@dataclass(frozen=True)
class Layout:
    """What lies in a cache; also `cache.json`, together with the fingerprints."""

    num_clips: int
    views: int
    dtype: str
    shapes: dict[str, list[int]]  # of a record's tensors
    records_per_file: int
    first_block: int | None = None
    image_size: list[int] | None = None

    @property
    def record_bytes(self) -> int:
        size = getattr(torch, self.dtype).itemsize
        return sum(size * torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def total_bytes(self) -> int:
        return self.record_bytes * self.num_clips * self.views

    def files(self) -> Iterator[tuple[str, int, range]]:
        """Name, view and clips of every file."""
        for view in range(self.views):
            for start in range(0, self.num_clips, self.records_per_file):
                clips = range(start, min(start + self.records_per_file, self.num_clips))
                yield self.name(view, start), view, clips

    def name(self, view: int, clip: int) -> str:
        """The file that has this record."""
        return f"view{view}-{clip // self.records_per_file:06d}.safetensors"


def read_index(folder: Path, expected: dict[str, str]) -> Layout | None:
    """The layout of the cache in a folder; None if there is none.

    Raises:
        StaleCacheError: it is of something else, or not to be read.
    """
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
        layout, found = Layout(**saved["layout"]), saved["fingerprints"]
    except (ValueError, TypeError, KeyError) as error:
        raise StaleCacheError(f"{path} is damaged ({error}). Build the cache again in an empty folder.") from error
    changed = [part for part, value in expected.items() if found.get(part) != value]
    if changed:
        raise StaleCacheError(
            f"The cache in {folder} was made with other {' and other '.join(changed)}. Build it again in an empty "
            "folder."
        )
    return layout


def checksum(record: dict[str, torch.Tensor]) -> int:
    """CRC-32 of a record's tensors."""
    value = 0
    for name in sorted(record):
        value = zlib.crc32(record[name].contiguous().view(torch.uint8).numpy(), value)
    return value
