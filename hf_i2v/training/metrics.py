"""Accuracy of a video classifier as an `evaluate.Metric` that needs no Hub."""

from typing import Any

import datasets
import evaluate
import numpy as np


class VideoClassificationMetric(evaluate.Metric):
    """Top-1, top-5 and mean class accuracy from the scores of all classes.

    ```python
    metric = VideoClassificationMetric()
    metric.add_batch(predictions=scores_BK, references=labels_B)
    metric.compute()  # {"accuracy": …, "top5_accuracy": …, "mean_class_accuracy": …, "num_videos": …}
    ```
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"keep_in_memory": True, **kwargs})  # no files in a cache

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Top-1, top-5 and mean class accuracy.",
            citation="",
            inputs_description="predictions: scores (K,) of all classes for each video; references: the labels.",
            features=datasets.Features(
                predictions=datasets.Sequence(datasets.Value("float32")), references=datasets.Value("int64")
            ),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        scores_NK, labels_N = np.asarray(predictions, np.float32), np.asarray(references)
        hits_N5 = top_classes(scores_NK, 5) == labels_N[:, None]
        right_N = hits_N5[:, 0]
        per_class = [right_N[labels_N == label].mean() for label in np.unique(labels_N)]
        return {
            "accuracy": float(right_N.mean()),
            "top5_accuracy": float(hits_N5.any(1).mean()),
            "mean_class_accuracy": float(np.mean(per_class)),
            "num_videos": len(labels_N),
        }


def top_classes(scores_NK: np.ndarray, k: int) -> np.ndarray:
    """The `k` classes with the highest scores, best first, (N, min(k, K)); of equal scores the first class."""
    return np.argsort(-scores_NK, axis=1, kind="stable")[:, :k]
