"""Videos for validation out of those for training, where a data set has no split of its own."""

import hashlib
import logging
import os

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict

logger = logging.getLogger(__name__)


def split_validation(videos: Dataset, *, fraction: float, seed: int = 0) -> DatasetDict:
    """Hold videos out for validation: the same share of every class, drawn with a seed.

    A draw looks at the seed and the last two parts of a video's path. It is the same wherever the videos are, in
    whatever order they are listed, and a video that is removed or added hardly changes it.

    Args:
        videos: rows as `load_videos` gives.
        fraction: share of a class's videos to hold out, rounded, but at least one video and not all of them.
        seed: other seeds draw other videos.

    Returns:
        "train" and "validation", each in the order of `videos`. A class with one video keeps it for training.

    Raises:
        ValueError: a fraction outside (0, 1), labels that are no classes, no class with two videos.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the share of videos for validation ({fraction}) must lie between 0 and 1, e.g. 0.2")
    feature = videos.features["label"]
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"the labels must be classes, they are {feature}; load the videos with load_videos")
    rows_by_class: dict[int, list[int]] = {}
    for row, label in enumerate(videos["label"]):
        rows_by_class.setdefault(label, []).append(row)
    paths = pc.struct_field(videos.with_format("arrow")[:]["video"], "path").to_pylist()
    names = ["/".join((path or "").replace(os.sep, "/").split("/")[-2:]) for path in paths]

    def drawn(row: int) -> tuple[str, int]:
        return hashlib.sha256(f"{seed} {names[row]}".encode()).hexdigest(), row

    held_out: list[int] = []
    for rows in rows_by_class.values():
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held_out += sorted(rows, key=drawn)[:count]
    if not held_out:
        raise ValueError(f"no class has two videos, of which one could be held out ({len(videos)} videos in all)")
    if single := [feature.names[label] for label, rows in rows_by_class.items() if len(rows) == 1]:
        logger.warning("%s classes have one video, which stays in training: %s", len(single), single[:5])
    training = sorted(set(range(len(videos))) - set(held_out))
    return DatasetDict(train=videos.select(training), validation=videos.select(sorted(held_out)))
