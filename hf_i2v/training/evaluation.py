"""Evaluation: several views of every video, on all processes, every video once; and what is written about it.

Shape suffixes: N video, B video of a batch, V view, K class.
"""

import csv
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

from .metrics import VideoClassificationMetric, top_classes

ALIKE = 0.02  # deviation of a log score over the videos; models that had only begun to learn had 0.05 and more
MIN_VIDEOS = 10  # for such a statement


class Predictions(NamedTuple):
    """Of all videos that could be read, in the order of the data set."""

    ids_N: np.ndarray  # rows of the data set
    labels_N: np.ndarray
    scores_NK: np.ndarray  # softmax, averaged over the views

    def metrics(self) -> dict[str, float]:
        """Top-1, top-5, mean class accuracy and the number of videos."""
        metric = VideoClassificationMetric()
        metric.add_batch(predictions=self.scores_NK, references=self.labels_N)
        return metric.compute()

    def loss(self) -> float:
        """Mean cross-entropy of the averaged scores."""
        return float(-self.log_scores()[np.arange(len(self.labels_N)), self.labels_N].mean())

    def log_scores(self) -> np.ndarray:
        """(N, K), finite where a score is 0."""
        return np.log(np.maximum(self.scores_NK, np.finfo(np.float32).tiny))

    def alike(self) -> str | None:
        """A warning where all videos have the same scores, so that none is told from another."""
        if len(self.ids_N) < MIN_VIDEOS:
            return None
        spread = self.log_scores().std(axis=0).max()
        if spread > ALIKE:
            return None
        return (
            f"the model answers all {len(self.ids_N)} videos alike: the logarithms of their scores deviate by "
            f"{spread:.1g}. Where that stays, what is trained has drowned what the image model sees: start anew in "
            "another --output_dir with a lower --learning_rate, a third or a tenth, or a longer --num_warmup_steps"
        )


def scores(model: nn.Module, pixel_values: torch.Tensor, clips_per_forward: int | None = None) -> torch.Tensor:
    """Class probabilities (B, K), averaged over the views of a video.

    Args:
        model: gives `logits`.
        pixel_values: (B, T, C, h, w), or (B, V, T, C, h, w) with V views.
        clips_per_forward: clips (views of videos) that go through the model at once; default all.
    """
    num_videos = pixel_values.shape[0]
    clips = pixel_values.flatten(0, 1) if pixel_values.ndim == 6 else pixel_values
    chunks = clips.split(clips_per_forward or len(clips))
    probabilities = torch.cat([model(chunk).logits.float().softmax(-1) for chunk in chunks])
    return probabilities.unflatten(0, (num_videos, -1)).mean(1)


@torch.no_grad()
def predict(
    accelerator: Accelerator, model: nn.Module, loader: Iterable[dict], clips_per_forward: int | None = None
) -> Predictions | None:
    """Go through a `ClipLoader` for evaluation, which gives batches on the device, with all processes.

    Returns:
        The predictions on the main process, None on the others.
    """
    was_training = model.training
    model.eval()
    ids, labels, probabilities = [], [], []
    for batch in tqdm(loader, desc="evaluate", unit="batch", disable=not accelerator.is_local_main_process):
        score_BK = scores(model, batch["pixel_values"], clips_per_forward)
        batch = accelerator.gather({key: batch[key] for key in ("ids", "labels", "is_padding")} | {"scores": score_BK})
        keep_B = ~batch["is_padding"]
        ids.append(batch["ids"][keep_B].cpu())
        labels.append(batch["labels"][keep_B].cpu())
        probabilities.append(batch["scores"][keep_B].cpu())
    model.train(was_training)
    if not accelerator.is_main_process:
        return None
    ids_N, labels_N, scores_NK = (torch.cat(parts).numpy() for parts in (ids, labels, probabilities))
    if not len(ids_N):
        raise ValueError("none of the videos for evaluation could be read")
    order = ids_N.argsort(kind="stable")
    return Predictions(ids_N[order], labels_N[order], scores_NK[order])


def write_predictions(
    path: str | os.PathLike, predictions: Predictions, videos: Sequence[str], names: Sequence[str]
) -> None:
    """A csv table: video, label, then the five best classes with their scores.

    A name that a spreadsheet would run as a formula (`=HYPERLINK(…)`) gets an apostrophe in front of it.
    """
    best_N5 = top_classes(predictions.scores_NK, 5)
    numbers = range(1, best_N5.shape[1] + 1)
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "label", *(f"{column}{i}" for i in numbers for column in ("class", "score"))])
        for row, label, classes, score_K in zip(
            predictions.ids_N, predictions.labels_N, best_N5, predictions.scores_NK, strict=True
        ):
            best = (cell for k in classes for cell in (as_text(names[k]), f"{score_K[k]:.4f}"))
            table.writerow([as_text(videos[row]), as_text(names[label]), *best])


def as_text(name: str) -> str:
    """The cell of a table that a spreadsheet opens: no formula, whatever the name."""
    is_formula = name.startswith(("=", "+", "-", "@", "\t", "\r")) and not re.fullmatch(r"[+-]?\d+(\.\d+)?", name)
    return f"'{name}" if is_formula else name
