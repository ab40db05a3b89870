"""One function for every source of videos, and the script flags that decide which.

All of them end as HF Datasets of references with the columns `video` (`Video(decode=False)`: a dict with `path` and
`bytes`) and `label` (`ClassLabel`); `start` and `end` in seconds where a list has them, and the place in a shard where
videos are in shards.
"""

import argparse
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DownloadManager,
    Features,
    IterableDataset,
    Value,
    Video,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
    load_dataset_builder,
)
from datasets.exceptions import DatasetGenerationError

from .failures import without_bad_videos
from .fingerprints import shard_versions
from .folders import load_video_folder
from .lists import read_class_names, read_list, references_of, refuse_column_names
from .references import SHARD_READERS, column_flags, parquet_features, parquet_references, tar_references

logger = logging.getLogger(__name__)

Chosen = Callable[[str, dict[str, Any]], dict[str, Any]]  # from a data set's name and its splits to those wanted

_SHARD_FEATURES = Features(
    path=Value("string"),
    label=Value("string"),
    shard=Value("string"),
    position=Value("int64"),  # in a tar: of the first byte; in parquet: row of the row group
    size=Value("int64"),
    row_group=Value("int32"),
    column=Value("string"),
)


def load_videos(
    dataset_name: str | os.PathLike | None = None,
    dataset_config_name: str | None = None,
    *,
    train_dir: str | os.PathLike | None = None,
    validation_dir: str | os.PathLike | None = None,
    train_file: str | os.PathLike | None = None,
    validation_file: str | os.PathLike | None = None,
    video_dir: str | os.PathLike | None = None,
    class_names_file: str | os.PathLike | None = None,
    video_column_name: str = "video",
    label_column_name: str = "label",
    streaming: bool = False,
    exclude: str | os.PathLike | None = None,
) -> DatasetDict:
    """The videos of a data set, as references; nothing is decoded.

    Exactly one of these names the source; the other arguments are the flags that `add_data_arguments` adds.

    - `dataset_name`: a data set on the Hub, or whatever else `load_dataset` takes; with `streaming`, nothing of its
      videos is downloaded before it is needed.
    - `train_dir`: class folders of video files or of folders of frames (jpg), see `load_video_folder`; or a folder of
      WebDataset tars or parquet files.
    - `train_file`: a list of videos, see `read_list` for its forms.

    Args:
        dataset_name: see above.
        dataset_config_name: configuration of the data set on the Hub.
        train_dir: see above.
        validation_dir: the same for validation.
        train_file: see above.
        validation_file: the same for validation.
        video_dir: folder that the paths of a list are relative to; default the folder of the list.
        class_names_file: names of the classes in the order of their numbers, see `read_class_names`; without it,
            sorted, or the numbers themselves. Classes that have names already are numbered anew.
        video_column_name: column of the videos; for tars their suffix, where it is unusual.
        label_column_name: column of the labels, class numbers or names; for tars a suffix or a key of the json.
        streaming: leave shards on the Hub where they are and read from them what is needed.
        exclude: list of bad videos to leave out, as `examples/check_videos.py` and training write it.

    Returns:
        "train" and, where there is one, "validation" (a Hub data set's "test" where it has no "validation").

    Raises:
        ValueError: not exactly one source, an argument that means nothing to it, columns or labels that are not
            there, classes that differ, a split without videos.
        FileNotFoundError: no such folder or file.
    """
    sources = {"dataset_name": dataset_name, "train_dir": train_dir, "train_file": train_file}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"exactly one of {', '.join(sources)} must name the videos, got {given or 'none'}")
    for name, (value, needs) in {
        "dataset_config_name": (dataset_config_name, "dataset_name"),
        "streaming": (streaming or None, "dataset_name"),
        "validation_dir": (validation_dir, "train_dir"),
        "validation_file": (validation_file, "train_file"),
        "video_dir": (video_dir, "train_file"),
    }.items():
        if value is not None and needs not in given:
            raise ValueError(f"{name} ({value}) goes with {needs}, but the videos come from {given[0]}; leave it out")
    columns = {"video_column_name": video_column_name, "label_column_name": label_column_name}
    names = None if class_names_file is None else read_class_names(class_names_file)

    if train_dir is not None:
        folders = _splits(train_dir, validation_dir)
        shards = {split: shards_in(folder) for split, folder in folders.items()}
        if not any(shards.values()):
            refuse_column_names(train_dir, **columns)
            splits = load_video_folder(train_dir, validation_dir)
        else:
            kind = Path(shards["train"][0]).suffix if shards["train"] else ".parquet"
            splits = from_shards(shards, SHARD_READERS[kind], **columns)
    elif train_file is not None:
        splits = {
            split: references_of(read_list(file, video_dir=video_dir, split=split, **columns))
            for split, file in _splits(train_file, validation_file).items()
        }
    else:
        splits = from_hub(
            os.fspath(dataset_name), dataset_config_name, streaming, **columns, chosen=_train_and_validation
        )
    videos = DatasetDict(_with_classes(splits, names))
    return videos if exclude is None else without_bad_videos(videos, exclude)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a `parser` flags for every argument of `load_videos`; see `videos_from_args`."""
    group = parser.add_argument_group("videos", "one of --dataset_name, --train_dir and --train_file")
    add = group.add_argument
    add("--dataset_name", help="data set on the Hub, or a folder that load_dataset takes")
    add("--dataset_config_name", help="configuration of that data set")
    add("--train_dir", help="class folders of videos or frame folders, or a folder of tar or parquet shards")
    add("--validation_dir", help="the same for validation")
    add("--train_file", help="list of videos: 'path label', csv, Kinetics csv, SSv2 json, UCF101 or HMDB51 split")
    add("--validation_file", help="the same for validation")
    add("--video_dir", help="folder that the paths in the lists are relative to")
    add("--class_names_file", help="names of the classes in the order of their numbers")
    add("--video_column_name", default="video", help="column of the videos")
    add("--label_column_name", default="label", help="column of the labels")
    add("--streaming", action="store_true", help="read shards from the Hub as they are needed")
    add("--exclude", help="list of bad videos to leave out, such as bad_videos.jsonl of examples/check_videos.py")


def videos_from_args(args: argparse.Namespace, load: Callable[..., Any] = load_videos) -> Any:
    """What `load_videos` gives for the flags of `add_data_arguments`.

    Args:
        args: what the parser made of the command line.
        load: another function with flags for all its arguments.
    """
    return load(**{name: getattr(args, name) for name in inspect.signature(load).parameters})


def _splits(train: Any, validation: Any) -> dict[str, Any]:
    return {"train": train} if validation is None else {"train": train, "validation": validation}


def shards_in(folder: str | os.PathLike) -> list[str]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    shards = sorted(str(file) for file in Path(folder).rglob("*") if file.suffix in SHARD_READERS)
    if len({Path(shard).suffix for shard in shards}) > 1:
        raise ValueError(f"{folder} holds both tar and parquet files; keep one kind")
    return [os.path.abspath(shard) for shard in shards]


def from_shards(
    shards: dict[str, list[str]],
    references: Callable[..., Iterator[dict]],
    video_column_name: str,
    label_column_name: str | None,
) -> dict[str, Dataset]:
    splits = {}
    for split, files in shards.items():
        if not files:
            raise ValueError(f"no tar or parquet files for the split {split!r}")
        columns = {"video_column_name": video_column_name, "label_column_name": label_column_name}
        try:
            rows = Dataset.from_generator(  # which keeps the index on disk
                references, features=_SHARD_FEATURES, gen_kwargs={"shards": shard_versions(files), **columns}
            )
        except DatasetGenerationError as error:
            raise (error.__cause__ or error) from None  # what is wrong with which shard
        videos = [{"path": path, "bytes": None} for path in rows["path"]]
        rows = rows.remove_columns("path").add_column("video", videos, feature=Video(decode=False))
        if references is parquet_references and label_column_name is not None:
            label = parquet_features(files[0])[label_column_name]
            if isinstance(label, ClassLabel):
                if "-1" in rows["label"]:
                    raise ValueError(f"{files[0]}: the split {split!r} has videos without a label (-1)")
                rows = _set_labels(rows, [int(number) for number in rows["label"]], label.names)
        splits[split] = rows
    return splits


def from_hub(
    name: str,
    config: str | None,
    streaming: bool,
    video_column_name: str,
    label_column_name: str | None,
    chosen: Chosen,
) -> dict[str, Dataset]:
    if not os.path.isdir(name):
        return _loaded(name, config, streaming, video_column_name, label_column_name, chosen)
    are_shown = not are_progress_bars_disabled()
    disable_progress_bars()  # HF Datasets shows "Downloading data" for local files too
    try:
        return _loaded(name, config, streaming, video_column_name, label_column_name, chosen)
    finally:
        if are_shown:
            enable_progress_bars()


def _loaded(
    name: str,
    config: str | None,
    streaming: bool,
    video_column_name: str,
    label_column_name: str | None,
    chosen: Chosen,
) -> dict[str, Dataset]:
    builder = load_dataset_builder(name, config)
    files = {split: list(found) for split, found in (builder.config.data_files or {}).items()}
    kind = type(builder).__module__.rpartition(".")[2]
    if kind in ("webdataset", "parquet"):
        files = chosen(name, files)
        references = tar_references if kind == "webdataset" else parquet_references
        shards = files if streaming else DownloadManager().download(files)
        return from_shards(shards, references, video_column_name, label_column_name)
    loaded = chosen(name, load_dataset(name, config, streaming=streaming))
    return {
        split: _standard_columns(name, rows, video_column_name, label_column_name) for split, rows in loaded.items()
    }


def _train_and_validation(name: str, splits: dict[str, Any]) -> dict[str, Any]:
    if "train" not in splits:
        raise ValueError(f"{name} has no split 'train', it has {list(splits)}")
    validation = next((split for split in ("validation", "val", "test") if split in splits), None)
    if validation in (None, "validation"):
        return {split: splits[split] for split in ("train", "validation") if split in splits}
    logger.warning("%s has no split 'validation', its split %r is taken", name, validation)
    return {"train": splits["train"], "validation": splits[validation]}


def _standard_columns(name: str, rows, video_column_name: str, label_column_name: str | None) -> Dataset:
    found = rows.column_names or list(next(iter(rows)))  # a stream of csv does not know before it reads
    wanted = [column for column in (video_column_name, label_column_name) if column is not None]
    if missing := [column for column in wanted if column not in found]:
        raise ValueError(f"{name} has no column {' or '.join(missing)}, it has {found}; see {column_flags(wanted)}")
    rows = rows.select_columns(wanted)
    if isinstance(rows, IterableDataset):
        rows = _references_of_stream(name, rows, video_column_name)
    kind = rows.features[video_column_name]
    if kind in (Value("large_string"), Value("large_binary")):  # from pandas; Video takes the small ones only
        rows = rows.cast_column(video_column_name, Value(kind.dtype.removeprefix("large_")))
    rows = rows.cast_column(video_column_name, Video(decode=False))
    rows = rows.rename_columns(dict(zip(wanted, ("video", "label"), strict=False)))
    if label_column_name is None:
        rows = rows.add_column("label", [""] * len(rows))
    elif not isinstance(rows.features["label"], ClassLabel):
        rows = rows.cast_column("label", Value("string"))
    _check_filled(name, rows, ["video"] if label_column_name is None else ["video", "label"])
    return rows


def _check_filled(name: str, rows: Dataset, columns: Sequence[str]) -> None:
    table = rows.with_format("arrow")[:]
    path, content = (pc.struct_field(table["video"], part) for part in ("path", "bytes"))
    empty = {"video": pc.and_(pc.equal(pc.fill_null(path, ""), ""), pc.is_null(content))}
    missing = -1 if isinstance(rows.features["label"], ClassLabel) else ""  # HF Datasets' way to say "no label"
    empty["label"] = pc.equal(pc.fill_null(table["label"], missing), missing)
    for column in columns:
        if places := np.flatnonzero(empty[column].to_numpy()).tolist():
            raise ValueError(f"{name}: no {column} in rows {places[:5]} ({len(places)} in all); remove or fill them")


def _references_of_stream(name: str, rows: IterableDataset, video_column_name: str) -> Dataset:
    """A stream of paths and labels is small: read it once, and it is a list of references."""
    if rows.features is not None and isinstance(rows.features[video_column_name], Video):
        rows = rows.cast_column(video_column_name, Video(decode=False))
    listed = []
    for row in rows:
        video = row[video_column_name]
        if isinstance(video, bytes) or (isinstance(video, dict) and video["bytes"] is not None):
            raise ValueError(
                f"{name} streams the bytes of its videos in a format that cannot be read at random; use WebDataset "
                "tars or parquet, or leave streaming out"
            )
        listed.append(row)
    return Dataset.from_list(listed, features=rows.features)


def _with_classes(splits: dict[str, Dataset], names: list[str] | None) -> dict[str, Dataset]:
    """Labels that are names, or numbers as text, become a `ClassLabel`, the same in all splits."""
    features = {split: rows.features["label"] for split, rows in splits.items()}
    if any(isinstance(feature, ClassLabel) for feature in features.values()):
        are_classes = all(isinstance(feature, ClassLabel) for feature in features.values())
        if names is not None and are_classes:
            return {split: _numbered_anew(rows, names) for split, rows in splits.items()}
        if len({repr(feature) for feature in features.values()}) > 1:
            raise ValueError(f"the splits have different classes: {features}")
        return splits
    labels = {split: list(rows["label"]) for split, rows in splits.items()}
    found = sorted({label for values in labels.values() for label in values})
    if all(label.isdecimal() for label in found):
        numbered = {split: [int(label) for label in values] for split, values in labels.items()}
        largest = max(int(label) for label in found)
        names = names or [str(number) for number in range(largest + 1)]
        if largest >= len(names):
            raise ValueError(f"label {largest} is out of range, there are {len(names)} class names")
        return {split: _set_labels(rows, numbered[split], names) for split, rows in splits.items()}
    names = names or sorted(set(labels["train"]))
    if unknown := [label for label in found if label not in set(names)]:
        raise ValueError(
            f"labels {unknown[:5]} ({len(unknown)} in all) are not among the {len(names)} classes "
            f"{names[:5]}…, which are those of --class_names_file or of the training videos"
        )
    number = {name: i for i, name in enumerate(names)}
    return {
        split: _set_labels(rows, [number[label] for label in labels[split]], names) for split, rows in splits.items()
    }


def _numbered_anew(rows: Dataset, names: list[str]) -> Dataset:
    own = rows.features["label"].names
    if unknown := sorted(set(own) - set(names)):
        raise ValueError(
            f"classes {unknown[:5]} ({len(unknown)} in all) of the videos are not among the {len(names)} of "
            f"--class_names_file ({names[:5]}…); make the names agree, or leave the file out"
        )
    if own == names:
        return rows
    number = [names.index(name) for name in own]
    return _set_labels(rows, [number[label] for label in rows["label"]], names)


def _set_labels(rows: Dataset, labels: list[int], names: list[str]) -> Dataset:
    return rows.remove_columns("label").add_column("label", labels, feature=ClassLabel(names=names))
