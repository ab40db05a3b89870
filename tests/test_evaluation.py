"""Metrics, views, and what is written about an evaluation."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training import ROOT

from hf_i2v.training.evaluation import (
    Predictions,
    confusion_matrix,
    draw_confusion_matrix,
    predict,
    scores,
    write_predictions,
)
from hf_i2v.training.metrics import VideoClassificationMetric, top_classes


def test_metric_needs_no_hub(tmp_path):
    program = """if True:
        from hf_i2v.training.metrics import VideoClassificationMetric
        print(VideoClassificationMetric().compute(predictions=[[0.1, 0.9]], references=[1])["accuracy"])"""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True)
    assert run.stdout.strip() == "1.0", run.stderr


def test_metrics():
    rng = np.random.default_rng(0)
    scores_NK, labels_N = rng.random((40, 7), np.float32), rng.integers(0, 6, 40)  # class 6 has no video
    metric = VideoClassificationMetric()
    for half in (slice(0, 20), slice(20, 40)):
        metric.add_batch(predictions=scores_NK[half], references=labels_N[half])
    result = metric.compute()
    rank = (scores_NK > scores_NK[np.arange(40), labels_N][:, None]).sum(1)
    assert result["accuracy"] == pytest.approx(np.mean(rank == 0))
    assert result["top5_accuracy"] == pytest.approx(np.mean(rank < 5))
    assert result["mean_class_accuracy"] == pytest.approx(
        np.mean([(rank[labels_N == k] == 0).mean() for k in range(6)])
    )
    assert result["num_videos"] == 40


def test_fewer_than_five_classes():
    metric = VideoClassificationMetric()
    result = metric.compute(predictions=[[0.1, 0.9], [0.6, 0.4]], references=[1, 1])
    assert (result["accuracy"], result["top5_accuracy"]) == (0.5, 1.0)
    assert top_classes(np.array([[1.0, 1.0, 2.0]]), 5).tolist() == [[2, 0, 1]]


class Brightness(nn.Module):
    """Logits that depend on the clip's mean; remembers how many clips came at once."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(len(pixel_values))
        mean = pixel_values.flatten(1).mean(1)
        return type("Output", (), {"logits": torch.stack([mean, -mean, 0 * mean], 1)})


def test_views_are_averaged_and_chunked():
    views = torch.randn(2, 3, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Brightness()
    got = scores(model, views, clips_per_forward=4)
    assert model.seen == [4, 2]
    expected = torch.stack([scores(model, views[:, v]) for v in range(3)]).mean(0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.sum(1), torch.ones(2))


def test_padding_counts_nothing_and_order_is_that_of_the_data():
    pixels = torch.randn(4, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [
        {"pixel_values": pixels[:2], "labels": torch.tensor([0, 1]), "ids": torch.tensor([3, 1])},
        {"pixel_values": pixels[2:], "labels": torch.tensor([2, 2]), "ids": torch.tensor([2, 3])},
    ]
    batches[0]["is_padding"], batches[1]["is_padding"] = torch.tensor([False, False]), torch.tensor([False, True])
    model = Brightness().train()
    predictions = predict(Accelerator(), model, batches)
    assert predictions.ids_N.tolist() == [1, 2, 3] and predictions.labels_N.tolist() == [1, 2, 0]
    assert model.training
    torch.testing.assert_close(torch.from_numpy(predictions.scores_NK), scores(model, pixels[[1, 2, 0]]))


@pytest.fixture
def predictions() -> Predictions:
    scores_NK = np.array([[0.2, 0.8], [0.7, 0.3], [0.4, 0.6]], np.float32)
    return Predictions(np.array([0, 1, 3]), np.array([1, 0, 0]), scores_NK)


def test_table_of_predictions(predictions, tmp_path):
    write_predictions(tmp_path / "p.csv", predictions, ["a.mp4", "b.mp4", "bad.mp4", "d, e.mp4"], ["up", "down"])
    with open(tmp_path / "p.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == ["a.mp4", "b.mp4", "d, e.mp4"]
    best = {
        "video": "d, e.mp4",
        "label": "up",
        "class1": "down",
        "score1": "0.6000",
        "class2": "up",
        "score2": "0.4000",
    }
    assert rows[2] == best


@pytest.mark.parametrize("num_classes", [2, 400])
def test_confusion_matrix(predictions, num_classes):
    counts_KK = confusion_matrix(predictions, num_classes)
    assert counts_KK[:2, :2].tolist() == [[1, 1], [0, 1]] and counts_KK.sum() == 3
    names = [f"class {k}" for k in range(num_classes)]
    picture = draw_confusion_matrix(counts_KK, names)
    assert max(picture.size) < 1500
    cell = 24 if num_classes == 2 else 3
    left = picture.width - 8 - cell * num_classes  # of the matrix
    assert picture.getpixel((left + cell // 2, left + cell + cell // 2)) == (255, 255, 255)  # down never taken for up
    assert picture.getpixel((left + cell + cell // 2, left + cell // 2)) == (128, 128, 128)  # up in half for down
    red, _, blue = picture.getpixel((left + cell + cell // 2, left + cell + cell // 2))  # down right: blue
    assert blue > 4 * red
