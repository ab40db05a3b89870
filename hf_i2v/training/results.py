"""What a run leaves beside its weights, and what it says at its end."""

import csv
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_files import write_text_whole
from .confusion import confusion_matrix, draw_confusion_matrix
from .evaluation import Predictions, as_text, write_predictions

logger = logging.getLogger(__name__)


def claim(output_dir: Path, configuration: dict[str, Any], differences: Callable[[dict, dict], list[str]]) -> None:
    """Take an output folder for a run, which its `run.json` then names.

    Args:
        output_dir: made if it is not there.
        configuration: what makes the run what it is.
        differences: compares the configuration in the folder with this one, and gives what differs.

    Raises:
        ValueError: the folder holds another run, or does not say which.
    """
    record = output_dir / "run.json"
    if record.exists():
        if found := differences(read_json(record, "It says which run the folder holds"), configuration):
            raise ValueError(
                f"{output_dir} holds another run: {'; '.join(found)}. Choose another --output_dir, or remove "
                "that folder to start anew."
            )
        return
    kept = ("adapter", "model", "all_results.json", "train_results.json")
    if found := [p.name for p in output_dir.glob("*") if p.name in kept or p.name.startswith("checkpoint-")]:
        raise ValueError(f"{output_dir} holds another run ({', '.join(sorted(found))}). Choose another --output_dir.")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(record, configuration)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """An object of a json file.

    Raises:
        ValueError: it is empty or damaged; `what` it is for is said.
    """
    text = path.read_text(errors="replace")
    try:
        content = json.loads(text)
    except ValueError as error:
        content, text = None, f"{text!r:.60} ({error})" if text.strip() else "nothing"
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged: it holds {text:.120}, expected a json object. {what}; put a copy of it back (a run "
            "that has ended keeps one beside its weights), or remove the folder to start anew."
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text_whole(path, json.dumps(content, indent=2) + "\n")


def write_results(
    folder: Path, predictions: Predictions, videos: Sequence[str], names: Sequence[str], results: dict[str, Any]
) -> dict[str, Any]:
    """`predictions.csv`, `per_class.csv`, `confusion_matrix.png`, and `all_results.json` with `results` and what was
    measured.

    Args:
        folder: where to write them.
        predictions: of the videos that could be read.
        videos: the names of all videos that were to be evaluated.
        names: of the classes.
        results: further values.
    """
    if warning := predictions.alike():
        logger.warning(warning)
    write_predictions(folder / "predictions.csv", predictions, videos, names)
    counts_KK = confusion_matrix(predictions, len(names))
    write_class_table(folder / "per_class.csv", counts_KK, names)
    try:
        draw_confusion_matrix(counts_KK, names, folder / "confusion_matrix.png")
    except ImportError as error:
        logger.warning('confusion_matrix.png is left out (%s): pip install "hf_i2v[train]"', error)
    metrics = {f"eval_{key}": value for key, value in predictions.metrics().items()}
    failures = len(videos) - metrics["eval_num_videos"]
    results = {**results, **metrics, "eval_loss": predictions.loss(), "eval_failures": failures}
    write_json(folder / "all_results.json", results)
    return results


def write_class_table(path: Path, counts_KK: np.ndarray, names: Sequence[str]) -> None:
    """A csv table of each class: its videos, the share that was recognised, and what it was most often taken for.

    Args:
        path: where to write it.
        counts_KK: as of `confusion_matrix`.
        names: of the classes.
    """
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "videos", "accuracy", "most_often_taken_for", "times"])
        for k, count_K in enumerate(counts_KK):
            wrong_K = np.where(np.arange(len(names)) == k, 0, count_K)
            other = int(wrong_K.argmax())
            taken_for = [as_text(names[other]), wrong_K[other]] if wrong_K[other] else ["", 0]
            accuracy = f"{count_K[k] / count_K.sum():.4f}" if count_K.sum() else ""
            table.writerow([as_text(names[k]), count_K.sum(), accuracy, *taken_for])


def last_words(folder: Path, weights: Path, results: dict[str, Any]) -> str:
    """The last lines of a run: how good it is, where everything lies, and how to use it."""
    top5 = f", top-5 {100 * results['eval_top5_accuracy']:.1f} %" if results["num_labels"] >= 10 else ""
    failures = f" ({results['eval_failures']} more could not be read)" if results["eval_failures"] else ""
    files = [name for name in ("predictions.csv", "per_class.csv", "confusion_matrix.png") if (folder / name).exists()]
    return (
        f"top-1 {100 * results['eval_accuracy']:.1f} %{top5} of {results['eval_num_videos']} videos{failures}\n"
        f"results: {', '.join([str(folder / 'all_results.json'), *files])}\n"
        f"weights: {weights}\n"
        f"use:     hf-i2v predict {weights} clip.mp4"
    )
