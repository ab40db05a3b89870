"""Fingerprints of videos: of names, sizes and labels; not of pixels, because those would have to be read.

| function | changes with | is kept in |
|---|---|---|
| `video_version` | path, size and time of change of a video | feature caches, through `VideoClips.fingerprint` |
| `videos_fingerprint` | names, sizes, labels and order of a data set's videos | the record of a run |
| `dataset_fingerprint` | names and sizes of files | cards |
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.compute as pc
from datasets import Dataset

_OTHER_COLUMNS = ("label", "shard", "size", "position", "row_group", "start", "end")


def video_version(row: Mapping[str, Any]) -> str:
    """Changes when the video of a row does: by its bytes, or by path, size and time of change."""
    if row["video"]["bytes"] is not None:
        return fsspec.utils.tokenize(row["video"]["bytes"])
    path = row.get("shard") or row["video"]["path"]
    return f"{path} {row.get('position')} {_file_version(path)}"


def shard_versions(shards: list[str]) -> list[tuple[str, str]]:
    """(path, version) of shards, so that an index kept on disk is made anew when a shard changes."""
    return [(shard, _file_version(shard)) for shard in shards]


def _file_version(path: str) -> str:
    filesystem, path = fsspec.url_to_fs(path)
    return filesystem.ukey(path)


def videos_fingerprint(
    videos: Dataset, *, before: str | None = None, bad_videos: Iterable[str | os.PathLike] = ()
) -> str:
    """Changes with the videos of a data set, their order and labels; not with the folder, nor with streaming.

    A video counts with its path below the folder of all videos (the last two parts), its label, its place in a shard,
    and its size: bytes of the file or tar member; of a parquet shard, or the etag of one whose size is unknown; of a
    folder of frames the number of files, and the bytes of the first and the last. A URL in a list has no size.

    Args:
        videos: rows as `load_videos` gives.
        before: fingerprint that the run has kept. It is given back where the videos are still those of the run, but
            for listed bad ones that were removed, repaired or excluded; or where an earlier version of this function
            made it of the same names.
        bad_videos: lists of bad videos, those of the run and of `examples/check_videos.py`. A missing file is an
            empty list.
    """
    table = videos.with_format("arrow")[:]
    paths = pc.struct_field(table["video"], "path").to_pylist()
    lengths = pc.binary_length(pc.struct_field(table["video"], "bytes").cast("large_binary")).to_pylist()
    columns = [
        table[name].to_pylist() if name in table.column_names else [None] * len(paths) for name in _OTHER_COLUMNS
    ]
    root, size_of_shard = common_folder(videos), functools.cache(_size_of_shard)
    rows = [_digests(*row, root, size_of_shard) for row in zip(paths, lengths, *columns, strict=True)]
    listed = _listed(bad_videos)
    present = dict(rows)
    changed = {which: state for which, state in listed.items() if present.get(which) != state}
    total = sum(int(changed.get(which, state), 16) for which, state in rows)
    total += sum(int(state, 16) for which, state in changed.items() if which not in present)
    order = hashlib.sha256("".join(state for _, state in rows).encode()).hexdigest()[:16]
    own = f"{len(rows)} videos, sha256 {order}, sum {total % 2**64:016x}"
    if before is None or before == own:
        return own
    only_bad_ones_changed = bool(changed) and before.rpartition(" sum ")[2] == own.rpartition(" sum ")[2]
    return before if only_bad_ones_changed or before == _names_fingerprint(videos) else own


def common_folder(videos: Dataset) -> str:
    """The folder that all videos are in, with a slash at its end; "" if there is none."""
    paths = pc.struct_field(videos.with_format("arrow")[:]["video"], "path")
    if paths.null_count:
        return ""
    ends = pc.min_max(paths).as_py()
    prefix = os.path.commonprefix([ends["min"], ends["max"]]).replace(os.sep, "/")  # noqa: RUF071, cut at a slash
    return prefix[: prefix.rfind("/") + 1]


def video_fingerprint(row: Mapping[str, Any], root: str) -> str:
    """Of one video, for a list of bad ones: which one it is below `root`, and how it was when it was bad."""
    content = row["video"]["bytes"]
    length = None if content is None else len(content)
    return "-".join(_digests(row["video"]["path"], length, *map(row.get, _OTHER_COLUMNS), root, _size_of_shard))


def _digests(path, length, label, shard, size, position, row_group, start, end, root, size_of_shard):
    """Which video it is, and that with its size; neither depends on the other videos."""
    if shard is not None:
        size = size_of_shard(shard) if size is None else size
    elif length is not None:
        size = length
    else:
        size = None if "://" in path else _size_on_disk(path)
    name = "/".join((path or "").replace(os.sep, "/").removeprefix(root).split("/")[-2:])
    which = (name, label, position, row_group, start, end)
    return _digest(which), _digest((which, size))


def _listed(files: Iterable[str | os.PathLike]) -> dict[str, str]:
    """Training videos of lists of bad ones: how each was when it was found bad, by which one it is."""
    listed: dict[str, str] = {}
    for file in filter(os.path.exists, files):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            bad = json.loads(line)
            if "fingerprint" in bad and bad.get("train", bad.get("split") == "train"):
                which, _, state = bad["fingerprint"].partition("-")
                listed.setdefault(which, state)
    return listed


def _size_of_shard(shard: str) -> int | str | None:
    filesystem, path = fsspec.url_to_fs(shard)
    info = filesystem.info(path)
    return next((info[key] for key in ("size", "ETag", "etag") if info.get(key) is not None), None)


def _size_on_disk(path: str) -> int | tuple[int, ...] | None:
    try:
        if not os.path.isdir(path):
            return os.path.getsize(path)
        files = sorted(os.listdir(path))
        return (len(files), *(os.path.getsize(os.path.join(path, file)) for file in files[:1] + files[-1:]))
    except OSError:
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _names_fingerprint(videos: Dataset) -> str:
    """As `videos_fingerprint` was before it looked at sizes."""
    table = videos.with_format("arrow")[:]
    paths = [(path or "").replace(os.sep, "/") for path in pc.struct_field(table["video"], "path").to_pylist()]
    start = len(common_folder(videos))
    names = ("label", "position", "row_group", "start", "end")
    columns = [table[name].to_pylist() for name in names if name in table.column_names]
    digest = hashlib.sha256()
    for path, *row in zip(paths, *columns, strict=True):
        digest.update(repr((path[start:], row)).encode())
    return f"{len(paths)} videos, sha256 {digest.hexdigest()[:16]}"


def dataset_fingerprint(files: Iterable[str | os.PathLike], root: str | os.PathLike | None = None) -> str | None:
    """A hash of the files' names and sizes (for a folder of frames their number), the same on every machine and in
    every order, and the number of missing files. None if none of them exists, as in a stream.

    Args:
        files: paths on this machine.
        root: folder that the names are relative to. Default: the deepest one that holds all of them.

    Raises:
        ValueError: a file outside of `root`.
    """
    files = [Path(os.path.abspath(file)) for file in files]
    found = [file for file in files if file.exists()]
    if not found:
        return None
    root = Path(os.path.abspath(root) if root else os.path.commonpath([file.parent for file in files]))
    sizes = ((file, len(os.listdir(file)) if file.is_dir() else file.stat().st_size) for file in found)
    rows = sorted(f"{file.relative_to(root).as_posix()}\0{size}\n" for file, size in sizes)
    digest = hashlib.sha256("".join(rows).encode()).hexdigest()[:16]
    return digest if len(found) == len(files) else f"{digest}, {len(files) - len(found)} of {len(files)} files missing"
