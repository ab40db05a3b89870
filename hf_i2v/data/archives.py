"""Videos to predict: the sources of training, but nobody has to know a label, a split or a class folder."""

import argparse
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from .failures import without_bad_videos
from .folders import videos_in
from .lists import ListedVideo, read_list, references_of, refuse_column_names
from .references import SHARD_READERS, VIDEO_SUFFIXES
from .sources import from_hub, from_shards, shards_in


def load_archive(
    videos: str | os.PathLike | None = None,
    dataset_name: str | os.PathLike | None = None,
    dataset_config_name: str | None = None,
    *,
    dataset_split: str | None = None,
    streaming: bool = False,
    video_dir: str | os.PathLike | None = None,
    video_column_name: str = "video",
    exclude: str | os.PathLike | None = None,
) -> Dataset:
    """The videos of an archive, as references; nothing is decoded.

    Args:
        videos: a folder with videos at any depth, or with WebDataset tars or parquet files; one video or shard; or a
            list: a path a line, csv with a header (columns `start` and `end` in seconds are used), or any form of
            `read_list`. Labels are passed over.
        dataset_name: instead, a data set on the Hub, or whatever else `load_dataset` takes.
        dataset_config_name: its configuration.
        dataset_split: which of its splits, where it has several.
        streaming: leave its shards on the Hub and read from them what is needed.
        video_dir: folder that the paths of a list are relative to; default the folder of the list.
        video_column_name: column of the videos; for tars their suffix, where it is unusual.
        exclude: list of bad videos to leave out, as `examples/check_videos.py`, training and prediction write it.

    Returns:
        Rows `video` (a dict with `path` and `bytes`); `start` and `end` where a list has them, and the place in a
        shard where videos are in shards.

    Raises:
        ValueError: not exactly one source, an argument that means nothing to it, a source without videos.
        FileNotFoundError: no such folder or file.
    """
    if (videos is None) == (dataset_name is None):
        raise ValueError(f"exactly one of videos ({videos}) and dataset_name ({dataset_name}) must name the videos")
    for name, value in {
        "dataset_config_name": dataset_config_name,
        "dataset_split": dataset_split,
        "streaming": streaming or None,
    }.items():
        if value is not None and dataset_name is None:
            raise ValueError(f"{name} ({value}) goes with dataset_name, but the videos are {videos}; leave it out")
    if dataset_name is not None:

        def chosen(name: str, splits: dict[str, Any]) -> dict[str, Any]:
            split = next(iter(splits)) if dataset_split is None and len(splits) == 1 else dataset_split
            if split not in splits:
                asked = "name one" if split is None else f"{split!r} is none of them"
                raise ValueError(f"{name} has the splits {list(splits)}; {asked} (dataset_split)")
            return {"videos": splits[split]}

        rows = from_hub(
            os.fspath(dataset_name), dataset_config_name, streaming, video_column_name, None, chosen=chosen
        )["videos"]
    else:
        rows = _from_disk(Path(videos), video_dir, video_column_name)
    rows = rows.remove_columns("label")
    if exclude is not None:
        rows = without_bad_videos(DatasetDict(videos=rows), exclude)["videos"]
    return rows


def _from_disk(videos: Path, video_dir: str | os.PathLike | None, video_column_name: str) -> Dataset:
    if not videos.is_dir() and videos.suffix not in SHARD_READERS and videos.suffix[1:].lower() not in VIDEO_SUFFIXES:
        listed = read_list(
            videos,
            video_dir=video_dir,
            split="validation",
            video_column_name=video_column_name,
            label_column_name=None,
        )
        return references_of(listed)
    if video_dir is not None:
        raise ValueError(f"video_dir ({video_dir}) goes with a list, but {videos} is none; leave it out")
    if not videos.exists():
        raise FileNotFoundError(f"no such file or folder: {videos}")
    shards = shards_in(videos) if videos.is_dir() else [os.path.abspath(videos)] * (videos.suffix in SHARD_READERS)
    if shards:
        if videos.is_dir() and (beside := _videos_beside(videos)):
            raise ValueError(
                f"{videos} holds both shards ({shards[0]}) and videos ({beside[0]}); move one kind elsewhere, or name "
                "the videos in a list"
            )
        references = SHARD_READERS[Path(shards[0]).suffix]
        return from_shards({"videos": shards}, references, video_column_name, None)["videos"]
    refuse_column_names(videos, video_column_name, None)
    paths = videos_in(videos) if videos.is_dir() else [os.path.abspath(videos)]
    return references_of([ListedVideo(path, "") for path in paths])


def _videos_beside(folder: Path) -> list[str]:
    try:
        return videos_in(folder)
    except FileNotFoundError:
        return []


def add_archive_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of a script for every argument of `load_archive`, for `videos_from_args(args, load_archive)`."""
    group = parser.add_argument_group("videos", "one of --videos and --dataset_name")
    add = group.add_argument
    add("--videos", help="folder of videos at any depth or of tar or parquet shards, a list (txt, csv), or one video")
    add("--dataset_name", help="data set on the Hub, or a folder that load_dataset takes")
    add("--dataset_config_name", help="configuration of that data set")
    add("--dataset_split", help="its split, where it has several")
    add("--streaming", action="store_true", help="read its shards from the Hub as they are needed")
    add("--video_dir", help="folder that the paths in a list are relative to")
    add("--video_column_name", default="video", help="column of the videos")
    add("--exclude", help="list of bad videos to leave out, such as bad_videos.jsonl of an earlier run")
