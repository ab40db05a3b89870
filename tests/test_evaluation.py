"""Metrics, views, and what is written about an evaluation."""

import csv

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn
from training import write_video_folders

from hf_i2v.data import ClipLoader, VideoClips, eval_transform, load_videos
from hf_i2v.training.confusion import confusion_matrix, draw_confusion_matrix, fonts_for
from hf_i2v.training.evaluation import Predictions, as_text, predict, scores, write_predictions
from hf_i2v.training.metrics import VideoClassificationMetric, top_classes


def test_metric_needs_no_hub(tmp_path, monkeypatch):
    for place in ("HF_EVALUATE_CACHE", "HF_METRICS_CACHE", "HF_MODULES_CACHE"):  # what was downloaded before
        monkeypatch.setattr(f"evaluate.config.{place}", tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *address: pytest.fail(f"connects to {address[1:]}"))
    assert VideoClassificationMetric().compute(predictions=[[0.1, 0.9]], references=[1])["accuracy"] == 1.0


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
        self.trained_last = self.training
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
    assert model.training and not model.trained_last
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


def test_a_name_is_no_formula(predictions, tmp_path):
    names = ['=HYPERLINK("http://x")', "-1"]
    write_predictions(tmp_path / "p.csv", predictions, ["@a.mp4", "b.mp4", "c.mp4", "+d.mp4"], names)
    with open(tmp_path / "p.csv") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == ["'@a.mp4", "b.mp4", "'+d.mp4"]
    assert {cell for row in rows[1:] for cell in row if "HYPERLINK" in cell} == {"'" + names[0]}
    assert [as_text(name) for name in ("-1", "+2.5", "-1+1", "\t=1", "a=b", "")] == [
        *("-1", "+2.5", "'-1+1", "'\t=1", "a=b", "")
    ]


def test_loss(predictions):
    assert predictions.loss() == pytest.approx(-np.log([0.8, 0.7, 0.4]).mean())


def test_a_model_that_answers_all_alike_is_named():
    logits_NK = np.random.default_rng(0).normal([0.3, 0.0, 0.0], 0.01, (12, 3))  # what an AIM that had collapsed gave

    def said(logits_NK) -> str | None:
        scores_NK = torch.tensor(logits_NK).softmax(-1).numpy()
        return Predictions(np.arange(len(scores_NK)), np.zeros(len(scores_NK), int), scores_NK).alike()

    assert "all 12 videos alike" in said(logits_NK) and "--learning_rate" in said(logits_NK)
    assert said(6 * logits_NK) is None  # a model that has hardly begun
    assert said(logits_NK[:9]) is None  # too few to say so
    assert said(100 * np.eye(12)) is None


def test_substitute_is_not_taken_in_evaluation(tmp_path):
    """Another video in place of a bad one would count twice."""
    folders = write_video_folders(tmp_path, train=1, validation=2)
    (folders / "validation/light/1.mp4").write_bytes(b"no video")
    videos = load_videos(train_dir=folders / "train", validation_dir=folders / "validation")["validation"]
    transform = eval_transform(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", num_crops=1)
    clips = VideoClips(videos, num_frames=2, train=False, transform=transform)
    loader = ClipLoader(clips, batch_size=2, on_bad_video="substitute", max_bad_fraction=1)
    found = predict(Accelerator(cpu=True), Brightness(), loader)
    assert found.ids_N.tolist() == [0, 1, 2] and found.labels_N.tolist() == [0, 0, 1]


def test_confusion_matrix(predictions):
    counts_KK = confusion_matrix(predictions, 3)
    assert counts_KK.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("num_classes", [2, 40])
def test_picture_of_the_confusion_matrix(predictions, num_classes, tmp_path, monkeypatch):
    """Counts in the cells, the diagonal blue, the axes named; nothing is cut off."""
    Figure = pytest.importorskip("matplotlib.figure").Figure
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    names = [f"class ${k}$" for k in range(num_classes)]
    draw_confusion_matrix(confusion_matrix(predictions, num_classes), names, tmp_path / "c.png")
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "labelled class")
    assert [
        label.get_text() for label in axes.get_yticklabels()
    ] == names and axes.get_title() == "2 of 3 videos right"
    numbers = {tuple(place) for line in axes.lines for place in line.get_xydata().tolist()}
    assert numbers == {(0, 0), (1, 0), (1, 1)}  # (predicted, labelled)
    (cells,) = (part for part in axes.collections if part.get_facecolors().size)
    red, _, blue, _ = cells.get_facecolors()[2]
    assert blue > 4 * red and cells.get_paths()[2].vertices[:4].mean(0).tolist() == [1, 1]
    pixels = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    assert min(pixels.shape) > 150 and all(edge.min() == 255 for edge in (pixels[0], pixels[-1], pixels[:, 0]))


def test_a_name_without_a_font_is_a_number():
    pytest.importorskip("matplotlib")
    families = fonts_for(["jump", "прыжок", "\U00013000"])  # a hieroglyph
    assert families["jump"] == families["прыжок"] == ["DejaVu Sans"] and families["\U00013000"] is None
