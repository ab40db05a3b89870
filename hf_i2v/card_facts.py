"""What a card says beyond the model itself, and its results in three forms: table, `model-index`, `.eval_results/`."""

import re
from dataclasses import dataclass, field

from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from .counting import Cost

MIN_CLASSES_FOR_TOP5 = 10  # among fewer classes the best five say little


@dataclass
class CardFacts:
    """What a card says beyond the model itself. The card leaves out unknown facts.

    Args:
        method: name of the method ("zeroi2v", "st_adapter+inti"), for a model whose configuration does not name it.
        dataset: the data set's name; `dataset_id`: its name on the Hub; `task_id`: of its leaderboard there.
        fingerprint: of the training files, see `dataset_fingerprint`.
        num_train_videos, num_eval_videos: numbers of videos; `failures`: how many of them could not be read.
        metrics: measured on the evaluation videos, "accuracy" and so on, as shares of 1.
        published: rows (metric, value, source) quoted from papers.
        view_protocol: clips and crops per video in the evaluation.
        trained_parameters: number of trained parameters, for a merged model, from which it cannot be counted.
        cost: of the model, counted before it was sharded.
        merge_error: largest difference of a logit before and after merging, see `merge_error`.
        arguments: further resolved settings; local paths among them are left out.
        license: of the weights, as the Hub calls it ("apache-2.0"). None: the base model's, which the Hub is asked for
            when the card is for a repository.
        recipe: the file, for the card of a recipe that was not run.
        measure_latency: time a forward pass of this model and of the plain image model, a few seconds each. A model
            that is sharded or on the meta device is not timed.
        relative_latency: a benchmark's figure instead: this model's latency over the plain image model's.
    """

    method: str | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    task_id: str = "default"
    fingerprint: str | None = None
    num_train_videos: int | None = None
    num_eval_videos: int | None = None
    failures: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    published: list[tuple[str, str, str]] = field(default_factory=list)
    view_protocol: str | None = None
    trained_parameters: int | None = None
    cost: Cost | None = None
    merge_error: float | None = None
    arguments: dict = field(default_factory=dict)
    license: str | None = None
    measure_latency: bool = True
    relative_latency: str | None = None
    recipe: str | None = None


def one_line(text: object) -> str:
    """Text from outside (names, labels) for Markdown: one line without characters of Markdown or HTML."""
    return re.sub(r"[\x00-\x1f\x7f`|<>{}\[\]]+", " ", str(text)).strip()[:300]


def shown_metrics(metrics: dict[str, float], num_labels: int) -> dict[str, float]:
    """The metrics that say something with so many classes."""
    left_out = set() if num_labels >= MIN_CLASSES_FOR_TOP5 else {"top5_accuracy"}
    return {key: value for key, value in metrics.items() if key not in left_out}


def eval_result_files(facts: CardFacts, repo_id: str | None = None) -> dict[str, list[dict]]:
    """What was measured on a data set of the Hub, as the Hub's leaderboards read it: the content of the files in
    `.eval_results/`, by name. Without a data set on the Hub there are none."""
    if not facts.dataset_id or "accuracy" not in facts.metrics:
        return {}
    entry = EvalResultEntry(
        dataset_id=facts.dataset_id,
        task_id=facts.task_id,
        value=round(float(facts.metrics["accuracy"]), 4),
        source_url=f"https://huggingface.co/{repo_id}" if repo_id else None,
        source_name="Model card" if repo_id else None,
        notes=one_line(facts.view_protocol) if facts.view_protocol else None,
    )
    return {f"{facts.dataset_id.split('/')[-1]}.yaml": eval_result_entries_to_yaml([entry])}


def model_index(facts: CardFacts, metrics: dict[str, float]) -> list[EvalResult]:
    """The results as the metadata of a card has them."""
    dataset = one_line(facts.dataset or facts.dataset_id or "the evaluation videos")
    return [
        EvalResult(
            task_type="video-classification",
            dataset_type=facts.dataset_id or "other",
            dataset_name=dataset,
            metric_type=metric,
            metric_value=round(float(value), 4),
        )
        for metric, value in metrics.items()
    ]


def result_rows(facts: CardFacts, metrics: dict[str, float]) -> list[dict]:
    """The results as the table of a card has them: what was measured, then what is quoted."""
    measured = [
        (metric, f"{100 * value:.2f} %", "measured by the training script") for metric, value in metrics.items()
    ]
    return [
        dict(zip(("name", "value", "source"), map(one_line, row), strict=True)) for row in measured + facts.published
    ]
