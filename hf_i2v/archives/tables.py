"""What a run leaves: one table of all its rows, and one of events, as parquet or csv."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..training.evaluation import as_text
from ..whole_files import write_text_whole, write_whole
from .events import events_of
from .parts import Parts

FORMATS = ("parquet", "csv")
EVENT_SCHEMA = pa.schema(
    {"video": pa.string(), "start": pa.float64(), "end": pa.float64(), "class": pa.string(), "score": pa.float32()}
)


def answer_columns(*, top_k: int | None, width: int | None, times: bool, shard: bool) -> pa.Schema:
    """The columns of a row.

    Args:
        top_k: classes that are named, as `class1`, `score1`, …;
        width: or instead numbers of an embedding, `feature`.
        times: with `start` and `end` in seconds.
        shard: with the file that the video is in.

    Returns:
        `id`, the row of the data set, comes first; it is in no table that is written.
    """
    columns: dict[str, pa.DataType] = {"id": pa.int64(), "video": pa.string()}
    if shard:
        columns["shard"] = pa.string()
    if times:
        columns |= {"start": pa.float64(), "end": pa.float64()}
    if width is not None:
        columns["feature"] = pa.list_(pa.float32(), width)
    for number in range(1, (top_k or 0) + 1):
        columns |= {f"class{number}": pa.string(), f"score{number}": pa.float32()}
    return pa.schema(columns)


def write_table(path: Path, parts: Parts) -> int:
    """All rows in the order of the videos, without `id`, part by part. Gives their number."""
    schema = parts.schema.remove(0)
    return _write(path, schema, (table.select(schema.names) for table in parts.tables()))


def write_events(path: Path, parts: Parts, *, top_k: int, threshold: float, min_length: float) -> int:
    """The events of every video, see `events_of`. Gives their number."""
    columns = ["id", "video", "start", "end"]
    columns += [f"{column}{number}" for number in range(1, top_k + 1) for column in ("class", "score")]

    def tables() -> Iterator[pa.Table]:
        rows = (
            row for table in parts.tables() for row in zip(*table.select(columns).to_pydict().values(), strict=True)
        )
        for (_, video), group in itertools.groupby(rows, key=lambda row: row[:2]):
            windows = (
                (start, end, dict(zip(best[::2], best[1::2], strict=True))) for _, _, start, end, *best in group
            )
            found = events_of(windows, threshold=threshold, min_length=min_length)
            yield pa.Table.from_pylist(
                [
                    {"video": video, "start": one.start, "end": one.end, "class": one.label, "score": one.score}
                    for one in found
                ],
                schema=EVENT_SCHEMA,
            )

    return _write(path, EVENT_SCHEMA, tables())


def write_bad_videos(path: Path, parts: Parts) -> int:
    """The videos that could not be read, a JSON line each. Gives their number."""
    lines = [json.dumps(bad, ensure_ascii=False) + "\n" for bad in parts.bad()]
    write_text_whole(path, "".join(lines))
    return len(lines)


def _write(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    num_rows = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal num_rows
        for table in tables:
            num_rows += len(table)
            yield table

    write = _write_csv if path.suffix == ".csv" else _write_parquet
    write_whole(path, lambda beside: write(beside, schema, counted()))
    return num_rows


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        for table in tables:
            if len(table):
                writer.write_table(table.replace_schema_metadata(None))


def _write_csv(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """An embedding is spread over columns `feature1`, `feature2`, …"""
    head: list[str] = []
    for field in schema:
        width = field.type.list_size if pa.types.is_fixed_size_list(field.type) else None
        head += [field.name] if width is None else [f"{field.name}{number}" for number in range(1, width + 1)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for table in tables:
            for row in zip(*table.to_pydict().values(), strict=True):
                writer.writerow(
                    [cell for value, field in zip(row, schema, strict=True) for cell in _cells(value, field.type)]
                )


def _cells(value: Any, kind: pa.DataType) -> list[str]:
    if isinstance(value, list):
        return [f"{number:.9g}" for number in value]  # a float32 without loss
    if isinstance(value, float):
        return [f"{value:.6g}" if pa.types.is_float32(kind) else f"{value:.10g}"]  # score or seconds
    return ["" if value is None else as_text(str(value))]
