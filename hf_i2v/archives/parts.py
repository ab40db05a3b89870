"""The rows of a run, as parquet files that each are whole, and from where a run goes on.

    parts/000003-000000.parquet     unit 3 (a few neighbouring videos), its first rows
    parts/000003-000001.parquet     its next rows; the file says where the unit goes on, or that this was its end

A file is written beside and renamed, and holds the rows, the bad videos among them, and the place behind them. So what
is done can be read off the files alone, whatever number of processes writes them: a row is in a file or is not done.
"""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.windowed import Place, Unit
from ..whole_files import write_whole

# What a kill can cost: so many rows of a unit, or what was done in so many seconds.
PART_ROWS = 4096
PART_SECONDS = 60.0

_UNITS = 64  # at least, where there are so many videos: processes and workers share them
_MAX_UNIT = 256


def units_of(num_videos: int, videos_per_unit: int) -> list[Unit]:
    """The units of so many videos."""
    starts = range(0, num_videos, videos_per_unit)
    return [
        Unit(number, Place(start, 0), min(start + videos_per_unit, num_videos)) for number, start in enumerate(starts)
    ]


def videos_per_unit(num_videos: int, batch_size: int) -> int:
    """Videos of a unit: whole batches, so that none is smaller for the sake of a unit's end, and few enough that
    processes and workers have about the same to do. With windows a video is a batch: `batch_size` 1."""
    return batch_size * min(max(num_videos // (_UNITS * batch_size), 1), max(_MAX_UNIT // batch_size, 1))


class Parts:
    """The folder of the parts.

    Args:
        folder: made, where it is not there.
        schema: of the rows.
    """

    def __init__(self, folder: Path, schema: pa.Schema):
        self.folder, self.schema = folder, schema
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self, units: list[Unit]) -> list[Unit]:
        """What is left to do of these units."""
        last = {int(name.split("-")[0]): name for name in self.names()}
        left = []
        for unit in units:
            place = unit.place if unit.number not in last else self.facts(last[unit.number])["next"]
            if place is not None:
                left.append(dataclasses.replace(unit, place=Place(*place)))
        return left

    def facts(self, name: str) -> dict[str, Any]:
        """What a part says beside its rows: `next`, the place behind them, and `bad`, the videos among them that could
        not be read."""
        path = self.folder / name
        try:
            return json.loads(pq.read_schema(path).metadata[b"facts"])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}). Remove it, and the parts of the same unit after it, and start again: "
                "only these are made anew."
            ) from error

    def names(self) -> list[str]:
        """Of all parts, in the order of their rows."""
        return sorted(path.name for path in self.folder.glob("[0-9]*.parquet"))

    def tables(self) -> Iterator[pa.Table]:
        """The rows, part by part."""
        for name in self.names():
            yield pq.read_table(self.folder / name, schema=self.schema)

    def bad(self) -> Iterator[dict[str, Any]]:
        """The videos that could not be read."""
        for name in self.names():
            yield from self.facts(name)["bad"]

    def sweep(self) -> None:
        """Remove what a kill left of unfinished files."""
        for path in self.folder.glob(".*.part"):
            path.unlink()


class PartWriter:
    """Collects the rows of units that one process goes through, and writes them part by part.

    Args:
        parts: the folder.
    """

    def __init__(self, parts: Parts):
        self.parts = parts
        self._open: dict[int, _OpenPart] = {}

    def add(self, unit: int, rows: pa.Table | None, bad: list[dict[str, Any]], place: Place | None) -> None:
        """Rows of a unit, the bad videos among them, and where the unit goes on; None: nowhere, that was all of it."""
        part = self._open.setdefault(unit, _OpenPart())
        if rows is not None:
            part.tables.append(rows)
        part.bad += bad
        num_rows = sum(len(table) for table in part.tables)
        if place is None or num_rows >= PART_ROWS or time.monotonic() - part.began >= PART_SECONDS:
            self._write(unit, part, place)
            del self._open[unit]

    def _write(self, unit: int, part: "_OpenPart", place: Place | None) -> None:
        number = len(list(self.parts.folder.glob(f"{unit:06d}-*.parquet")))
        rows = pa.concat_tables(part.tables) if part.tables else self.parts.schema.empty_table()
        facts = json.dumps({"next": place, "bad": part.bad})
        rows = rows.replace_schema_metadata({"facts": facts})
        path = self.parts.folder / f"{unit:06d}-{number:06d}.parquet"
        write_whole(path, lambda beside: pq.write_table(rows, beside))


class _OpenPart:
    """Rows that are not written yet."""

    def __init__(self):
        self.tables: list[pa.Table] = []
        self.bad: list[dict[str, Any]] = []
        self.began = time.monotonic()
