"""The videos of a run: which of them are trained on, and whether training and validation fit together."""

import argparse
import logging

import torch
from datasets import Dataset, DatasetDict

from ..data import split_validation, videos_from_args

logger = logging.getLogger(__name__)


def videos_of_run(args: argparse.Namespace) -> tuple[DatasetDict, list[str]]:
    """The videos to train on and to validate with, and the names of the classes, from the script's options.

    Raises:
        ValueError: see `check_labels`, `few_shot` and `hf_i2v.data.split_validation`.
    """
    videos = videos_from_args(args)
    if args.validation_split is not None:
        if "validation" in videos:
            raise ValueError(
                f"--validation_split {args.validation_split} is for data without videos for validation, but there are "
                f"{len(videos['validation'])}. Leave it out."
            )
        videos = split_validation(videos["train"], fraction=args.validation_split, seed=args.seed)
    names = check_labels(videos, args.num_labels)
    if args.shots_per_class:
        videos["train"] = few_shot(videos["train"], args.shots_per_class, args.seed)
    return videos, names


def check_labels(videos: DatasetDict, num_labels: int | None) -> list[str]:
    """The names of the classes.

    Raises:
        ValueError: no videos for validation, other classes there, or not as many as `num_labels`.
    """
    names = videos["train"].features["label"].names
    if "validation" not in videos:
        raise ValueError(
            "there are no videos for validation; give --validation_dir or --validation_file, or hold some of the "
            "training videos out with --validation_split 0.2"
        )
    if (validation := videos["validation"].features["label"].names) != names:
        differ = sorted(set(names) ^ set(validation)) or "the same names in another order"
        raise ValueError(f"the labels of train and validation differ: {differ}. Give both the same classes.")
    train, validation = (set(videos[split]["label"]) for split in ("train", "validation"))
    if unknown := [names[label] for label in sorted(validation - train)]:
        raise ValueError(
            f"validation has videos of {unknown[:5]} ({len(unknown)} classes in all), but there are none to train on. "
            "Add such videos to --train_dir or --train_file, or take them out of the validation."
        )
    if missing := [names[label] for label in sorted(train - validation)]:
        logger.warning("validation has no videos of %s (%s classes in all)", missing[:5], len(missing))
    if num_labels not in (None, len(names)):
        raise ValueError(f"--num_labels is {num_labels}, but the data set has {len(names)} classes")
    return names


def few_shot(videos: Dataset, shots: int, seed: int) -> Dataset:
    """`shots` videos of each class, drawn with the seed."""
    rows, labels = [], torch.tensor(videos["label"])
    for label, name in enumerate(videos.features["label"].names):
        of_class = (labels == label).nonzero().flatten()
        if len(of_class) < shots:
            raise ValueError(f"--shots_per_class {shots}: the class {name!r} has {len(of_class)} videos")
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
        rows += of_class[torch.randperm(len(of_class), generator=generator)[:shots]].tolist()
    return videos.select(sorted(rows))
