"""What a row of a data set refers to, and how to get at it: a file, a folder of frames, bytes, a member of a tar
shard, or a cell of a parquet shard. Shards are indexed once, without reading a video, and then read at random, so that
a stream of shards is a list of references like any other.
"""

import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from .decode import VideoReader
from .frame_folder import FrameFolder
from .media import DEFAULT_LIMITS, ReadLimits, VideoDecodeError
from .torchcodec_reader import TorchcodecReader

Backend = Literal["pyav", "torchcodec"]
_READERS = {"pyav": VideoReader, "torchcodec": TorchcodecReader}

# FFmpeg reads more, but in a shard a sample's other files must be told from its video.
VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "mov", "m4v", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "ogv")

_HEADER_BLOCK = 2**16  # bytes fetched at a time from a remote tar, to hop from header to header
_ROW_GROUP_BYTES = 2**28  # compressed videos that a process keeps of the parquet row groups it read last


def open_video(
    row: Mapping[str, Any], backend: Backend = "pyav", limits: ReadLimits = DEFAULT_LIMITS
) -> VideoReader | TorchcodecReader | FrameFolder:
    """The video of a row, opened.

    Args:
        row: `video` (a dict with `path` and `bytes`), and for shards what the functions below say.
        backend: who decodes video files.
        limits: what reading it may take.

    Raises:
        VideoDecodeError: it cannot be read.
        ValueError: no such backend.
    """
    if backend not in _READERS:
        raise ValueError(f"backend ({backend!r}) must be one of {list(_READERS)}")
    reader = _READERS[backend]
    path, content = row["video"]["path"], row["video"]["bytes"]
    if content is not None:
        return reader(content, name=path, limits=limits)
    if row.get("shard") is not None:
        read = _read_member if row["row_group"] is None else _read_cell
        return reader(_reading(row["shard"], read, row), name=f"{row['shard']}: {path}", limits=limits)
    if "://" in path:
        return reader(_reading(path, _read_url, row, limits.bytes), name=path, limits=limits)
    if os.path.isdir(path):
        return FrameFolder(path, limits=limits)
    return reader(path, limits=limits)


def tar_references(
    shards: list[tuple[str, str]], video_column_name: str, label_column_name: str | None
) -> Iterator[dict]:
    """Rows for the samples of WebDataset tars: files whose names agree up to the first dot. Only headers and labels
    are read. The label is the content of `<sample>.<label_column_name>`, the value of that name in `<sample>.json`, or
    the content of `<sample>.cls`.

    Args:
        shards: (path or URL, version) of the tars.
        video_column_name: suffix of the videos where it is none of the usual.
        label_column_name: see above. None: labels are not read, each is "".

    Raises:
        ValueError: a tar that is compressed or torn, a sample without a video or a label.
    """
    suffixes = {*VIDEO_SUFFIXES, video_column_name}
    for shard, _ in shards:
        sample: dict[str, tuple[str, int, int]] = {}
        sample_key = None
        filesystem, path = fsspec.url_to_fs(shard)
        with filesystem.open(path, "rb", block_size=_HEADER_BLOCK) as file:
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    members = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
            except tarfile.TarError as error:
                raise ValueError(f"{shard}: not an uncompressed tar file, or a torn one ({error})") from error
            _check_end_of_tar(file, tar.offset, shard, members[-1][0] if members else "nothing")
            for name, offset, size in [*members, ("", 0, 0)]:
                folder, _, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if (key := f"{folder}/{stem}") != sample_key and sample:
                    video = next((sample[s] for s in sample if s.rpartition(".")[2] in suffixes), None)
                    if video is None:
                        raise ValueError(f"{shard}: sample {sample_key} has no video, its files are {list(sample)}")
                    try:
                        label = label_column_name and _tar_label(file, sample, label_column_name)
                    except (ValueError, TypeError) as error:
                        raise ValueError(
                            f"{shard}: the label of sample {sample_key} is unreadable ({error})"
                        ) from error
                    if not label and label_column_name:
                        raise ValueError(
                            f"{shard}: sample {sample_key} has no label in .{label_column_name}, .json "
                            f"({label_column_name!r}) or .cls, its files are {list(sample)}; see --label_column_name"
                        )
                    where = {"shard": shard, "position": video[1], "size": video[2]}
                    yield {"path": video[0], "label": label or "", **where}
                    sample = {}
                if stem:  # hidden files are none of the samples'
                    sample_key = key
                    sample[suffix.lower()] = (name, offset, size)


def _check_end_of_tar(file, end: int, shard: str, last: str) -> None:
    """`tarfile` takes a damaged header, or the end of the file, for the end of the archive, without an error."""
    file.seek(end)
    if len(block := file.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise ValueError(f"{shard}: the tar file is torn, it ends behind byte {end} without an end, after {last}")
    while block:
        if block.strip(b"\0"):
            raise ValueError(
                f"{shard}: damaged, or several tar files in one: what stands at byte {end}, after {last}, is neither "
                "a header nor the end of the archive; make the shard anew"
            )
        block = file.read(_HEADER_BLOCK)


def _tar_label(file, sample: dict[str, tuple[str, int, int]], name: str) -> str | None:
    def content(suffix):
        _, offset, size = sample[suffix]
        file.seek(offset)
        return file.read(size).decode("utf-8").strip()

    if name in sample:
        return content(name)
    if "json" in sample and (value := dict(json.loads(content("json"))).get(name)) is not None:
        return str(value)
    return content("cls") if "cls" in sample else None


def parquet_references(
    shards: list[tuple[str, str]], video_column_name: str, label_column_name: str | None
) -> Iterator[dict]:
    """Rows for the rows of parquet files with videos as bytes. Only footers and labels are read.

    Args:
        shards: (path or URL, version) of the files.
        video_column_name: column of bytes, or of `{bytes, path}` as HF Datasets writes it.
        label_column_name: column of class numbers or names. None: labels are not read, each is "".

    Raises:
        ValueError: not a parquet file, or a damaged one, no such columns, a row without a label.
    """
    for shard, _ in shards:
        with _parquet(shard) as parquet:
            columns = parquet.schema_arrow.names
            wanted = [name for name in (video_column_name, label_column_name) if name is not None]
            if missing := [name for name in wanted if name not in columns]:
                raise ValueError(f"{shard} has no column {missing[0]!r}, it has {columns}; see {column_flags(wanted)}")
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=[*wanted[1:], f"{video_column_name}.path"])
                labels = paths = [None] * parquet.metadata.row_group(group).num_rows
                if label_column_name is not None:
                    labels = table[label_column_name].to_pylist()
                if video_column_name in table.column_names:
                    paths = [video and video["path"] for video in table[video_column_name].to_pylist()]
                for row, (label, video) in enumerate(zip(labels, paths, strict=True)):
                    if label_column_name is None:
                        label = ""
                    elif label in (None, ""):
                        raise ValueError(f"{shard}: row {row} of group {group} has no label in {label_column_name!r}")
                    yield {
                        "path": video or f"row {row} of group {group}",
                        "label": str(label),
                        "shard": shard,
                        "position": row,
                        "row_group": group,
                        "column": video_column_name,
                    }


SHARD_READERS = {".tar": tar_references, ".parquet": parquet_references}  # by suffix


def column_flags(columns: Sequence[str]) -> str:
    """The flags that name the column of videos and, where it is wanted, that of labels."""
    return " and ".join(["--video_column_name", "--label_column_name"][: len(columns)])


def parquet_features(shard: str) -> Features:
    """The features of a parquet file, with the names of its classes where HF Datasets wrote it."""
    with _parquet(shard) as parquet:
        return Features.from_arrow_schema(parquet.schema_arrow)


@contextmanager
def _parquet(shard: str) -> Iterator[pq.ParquetFile]:
    try:
        with fsspec.open(shard, "rb") as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{shard}: not a parquet file, or a damaged one ({error})") from error


def _reading(path: str, read, *args) -> bytes:
    try:
        return read(*args)
    except VideoDecodeError:
        raise
    except Exception as error:  # fsspec raises whatever a protocol stumbles over, also that its package is missing
        raise VideoDecodeError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _read_url(row: Mapping[str, Any], max_bytes: int) -> bytes:
    path = row["video"]["path"]
    with fsspec.open(path, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise VideoDecodeError(f"{path}: more than {max_bytes} bytes, the most that are fetched (ReadLimits.bytes)")
    return content


def _read_member(row: Mapping[str, Any]) -> bytes:
    filesystem, path = fsspec.url_to_fs(row["shard"])
    return filesystem.cat_file(path, row["position"], row["position"] + row["size"])


_row_groups: OrderedDict[tuple[str, int], Any] = OrderedDict()  # read last, by this process


def _read_cell(row: Mapping[str, Any]) -> bytes:
    """Parquet gives a whole row group at a time; the last ones are kept, for the order of reading is local."""
    key = (row["shard"], row["row_group"])
    if key not in _row_groups:
        with fsspec.open(row["shard"], "rb") as file, pq.ParquetFile(file) as parquet:
            _row_groups[key] = parquet.read_row_group(row["row_group"], columns=[row["column"]])[row["column"]]
        while len(_row_groups) > 1 and sum(column.nbytes for column in _row_groups.values()) > _ROW_GROUP_BYTES:
            _row_groups.popitem(last=False)
    _row_groups.move_to_end(key)
    video = _row_groups[key][row["position"]].as_py()
    content = video["bytes"] if isinstance(video, dict) else video
    if content is None:
        raise VideoDecodeError(f"{row['shard']}: row {row['position']} of group {row['row_group']} has no bytes")
    return content
