"""Finished runs side by side.

    python -m hf_i2v.training.compare runs/*

One row a run: its result, its cost and its speed, then every option that is not the same in all of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .results import read_json

COLUMNS = {  # title: (key of all_results.json, factor, digits)
    "top-1 %": ("eval_accuracy", 100, 1),
    "top-5 %": ("eval_top5_accuracy", 100, 1),
    "class mean %": ("eval_mean_class_accuracy", 100, 1),
    "loss": ("eval_loss", 1, 3),
    "videos": ("eval_num_videos", 1, 0),
    "train loss": ("train_loss", 1, 3),
    "trainable M": ("trainable_parameters", 1e-6, 2),
    "GMACs": ("macs", 1e-9, 1),
    "steps": ("step", 1, 0),
    "minutes": ("train_runtime", 1 / 60, 1),
    "clips/s": ("train_clips_per_second", 1, 1),
    "peak GiB": ("peak_memory_gib", 1, 2),
}


def compare(folders: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """The table of some runs: titles, and a row for each folder that holds results.

    Raises:
        ValueError: none of the folders holds results.
    """
    runs = {folder: folder / "all_results.json" for folder in folders}
    runs = {folder: read_json(path, "It holds the results") for folder, path in runs.items() if path.is_file()}
    if not runs:
        raise ValueError(f"no all_results.json in {', '.join(map(str, folders))}; give the --output_dir of some runs")
    options = {folder: _options(folder) for folder in runs}
    keys = sorted({key for values in options.values() for key in values} - {"tuner", "batch_size", "num_labels"})
    differing = [key for key in keys if len({repr(values.get(key)) for values in options.values()}) > 1]
    titles = [title for title, (key, *_) in COLUMNS.items() if any(key in results for results in runs.values())]
    rows = []
    for folder, results in runs.items():
        figures = [_figure(results.get(COLUMNS[title][0]), *COLUMNS[title][1:]) for title in titles]
        values = [_cell(options[folder].get(key)) for key in differing]
        rows.append([str(folder), results.get("tuner", ""), *figures, *values])
    return ["run", "tuner", *titles, *differing], rows


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """The table, with columns of one width."""
    table = [titles, *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


def _options(folder: Path) -> dict[str, Any]:
    found = [path for path in (folder / "adapter", folder / "model") if (path / "training_config.yaml").is_file()]
    return yaml.safe_load((found[0] / "training_config.yaml").read_text()) if found else {}


def _figure(value: float | None, factor: float, digits: int) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _cell(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="the --output_dir of each run")
    print(markdown(*compare(parser.parse_args(argv).runs)))


if __name__ == "__main__":
    from .command import run_as_command

    raise SystemExit(run_as_command(main))
