"""Evaluation: several views of every video, on all processes, every video once; and what is written about it.

Shape suffixes: N video, B video of a batch, V view, K class.
"""

import csv
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw
from torch import nn
from tqdm import tqdm

from .metrics import VideoClassificationMetric, top_classes


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
    accelerator: Accelerator, model: nn.Module, loader, clips_per_forward: int | None = None
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
    """A csv table: video, label, then the five best classes with their scores."""
    best_N5 = top_classes(predictions.scores_NK, 5)
    numbers = range(1, best_N5.shape[1] + 1)
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["video", "label", *(f"{column}{i}" for i in numbers for column in ("class", "score"))])
        for row, label, classes, score_K in zip(
            predictions.ids_N, predictions.labels_N, best_N5, predictions.scores_NK, strict=True
        ):
            best = (cell for k in classes for cell in (names[k], f"{score_K[k]:.4f}"))
            table.writerow([videos[row], names[label], *best])


def confusion_matrix(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Counts (K, K): row the label, column the prediction."""
    counts_KK = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts_KK, (predictions.labels_N, predictions.scores_NK.argmax(1)), 1)
    return counts_KK


def draw_confusion_matrix(counts_KK: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Share of each label's videos (row) that got each prediction (column): white 0, black 1, the diagonal in blue.
    Rows and columns are named where there is room for it."""
    num_classes = len(names)
    share_KK = counts_KK / counts_KK.sum(1, keepdims=True).clip(1)
    cell = max(1, min(24, 1200 // num_classes))
    dark = np.zeros((num_classes, num_classes, 3))
    dark[np.arange(num_classes), np.arange(num_classes)] = (0.1, 0.3, 0.8)
    pixels = 255 * (1 - share_KK[..., None] * (1 - dark))
    matrix = Image.fromarray(pixels.round().astype(np.uint8)).resize(
        (cell * num_classes,) * 2, Image.Resampling.NEAREST
    )
    named = cell >= 12
    margin = 8 + (max(int(ImageDraw.Draw(matrix).textlength(name[:40])) for name in names) if named else 0)
    picture = Image.new("RGB", (margin + matrix.width + 8, margin + matrix.height + 8), "white")
    picture.paste(matrix, (margin, margin))
    ImageDraw.Draw(picture).rectangle(
        (margin - 1, margin - 1, margin + matrix.width, margin + matrix.height), outline="grey"
    )
    if named:
        for x, anchor, turn, place in ((margin - 4, "rm", 0, (0, margin)), (4, "lm", 90, (margin, 0))):
            text = Image.new("RGB", (margin - 1, matrix.height), "white")
            for i, name in enumerate(names):
                ImageDraw.Draw(text).text((x, cell * i + cell // 2), name[:40], fill="black", anchor=anchor)
            picture.paste(text.rotate(turn, expand=True), place)
    return picture
