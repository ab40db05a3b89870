"""Tables and plots of what `run.py` has measured, put into README.md between its two marks.

python benchmarks/compare/report.py
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from cells import METHODS, NUM_CLASSES, TASKS
from matplotlib.figure import Figure
from run import RESULTS

PAGE = Path(__file__).with_name("README.md")
MARKS = ("<!-- made by report.py -->", "<!-- until here -->")
FORMS = {"reversed": "reversed", "shuffled": "shuffled", "middle": "middle frame", "unshifted": "offsets zeroed"}
COSTS = {  # in all_results.json: axis, unit
    "trainable_parameters": ("trained parameters", 1e6, "M"),
    "macs": ("MACs of a clip, as trained", 1e9, "G"),
    "peak_memory_gib": ("peak memory of the training", 1, "GiB"),
    "train_runtime": ("time of the training", 60, "min"),
}


def read() -> dict[str, dict[str, list[dict]]]:
    """{task: {method: [result of each seed]}}."""
    found = defaultdict(dict)
    for task in TASKS:
        for method in METHODS:
            paths = sorted((RESULTS / task).glob(f"{method}-[0-9]*.json"))
            if paths:
                found[task][method] = [json.loads(path.read_text()) for path in paths]
    return found


def percent(values: list[float]) -> str:
    """Mean ± half the range over the seeds, in %."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else mean


def table(task: str, methods: dict[str, list[dict]]) -> list[str]:
    chance = 100 / NUM_CLASSES[TASKS[task].folder]
    on_gpu = {cell["card"]: cell for cells in methods.values() for cell in cells if "card" in cell}
    where = "".join(
        f" Trained on one {card} with `{' '.join(cell['options'])}`, {cell['jobs']} cells of the task at a time."
        for card, cell in on_gpu.items()
    )
    lines = [
        f"### {TASKS[task].title}",
        "",
        f"Top-1 in % of the validation videos; {TASKS[task].clips_seen} clips seen; chance {chance:.1f} %. "
        f"To the right: the same model on clips without their time.{where}",
        "",
        f"| method | seeds | top-1 | {' | '.join(FORMS.values())} | trained, M | G MACs, as trained | GiB | min "
        "| learning rate |",
        "|---|---|---|" + "---|" * (len(FORMS) + 5),
    ]
    fitted = methods.get("late_minus_early")
    if fitted:
        for name, title in (("mean_only", "linear fit on the mean"), ("as_it_is", METHODS["late_minus_early"].title)):
            values = [cell["accuracy"][name] for cell in fitted]
            lines.append(f"| {title} | {len(values)} | {percent(values)} |" + " |" * (len(FORMS) + 5))
    rows = {name: cells for name, cells in methods.items() if name != "late_minus_early"}
    for name in sorted(rows, key=lambda n: -statistics.mean(cell["accuracy"]["as_it_is"] for cell in rows[n])):
        cells = rows[name]
        forms = [
            percent([cell["accuracy"][form] for cell in cells]) if form in cells[0]["accuracy"] else ""
            for form in FORMS
        ]
        costs = [
            f"{statistics.mean(cell['results'].get(key) or 0 for cell in cells) / unit:.3g}"
            for key, (_, unit, _) in COSTS.items()
        ]
        top1 = percent([cell["accuracy"]["as_it_is"] for cell in cells])
        rates = ", ".join(sorted({f"{cell['learning_rate']:g}" for cell in cells}))
        lines.append(f"| {METHODS[name].title} | {len(cells)} | {top1} | {' | '.join([*forms, *costs, rates])} |")
    return [*lines, ""]


def draw_costs(task: str, methods: dict[str, list[dict]], path: Path) -> None:
    """Accuracy against each cost, a point a method."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (key, (title, unit, name)) in zip(
        figure.subplots(1, len(COSTS), sharey=True), COSTS.items(), strict=True
    ):
        for method, cells in methods.items():
            x = statistics.mean(cell["results"].get(key) or 0 for cell in cells) / unit
            y = 100 * statistics.mean(cell["accuracy"]["as_it_is"] for cell in cells)
            axes.plot(x, y, "o", color="tab:gray" if METHODS[method].cached else "tab:blue")
            axes.annotate(METHODS[method].title, (x, y), (3, 3), textcoords="offset points", fontsize=6)
        axes.set_xlabel(f"{title}, {name}")
        if name in ("M", "min"):  # over several powers of ten
            axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("top-1, %")
    figure.suptitle(TASKS[task].title)
    figure.savefig(path, dpi=100)


def draw_curves(task: str, methods: dict[str, list[dict]], path: Path) -> None:
    """Training loss over the clips seen, a line a method (its first seed)."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for method, cells in methods.items():
        rows = [row for row in cells[0].get("history", []) if "train_loss" in row]
        if rows:
            scale = TASKS[task].clips_seen / rows[-1]["step"]
            x, y = [scale * row["step"] for row in rows], [row["train_loss"] for row in rows]
            axes.plot(x, y, "--" if METHODS[method].cached else "-", label=METHODS[method].title)
    axes.set_xlabel("clips seen")
    axes.set_ylabel("training loss")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    axes.set_title(TASKS[task].title)
    figure.savefig(path, dpi=100)


def main() -> None:
    lines = []
    for task, methods in read().items():
        lines += table(task, methods)
        trained = {name: cells for name, cells in methods.items() if name != "late_minus_early"}
        pictures = {"costs": draw_costs, "curves": draw_curves} if trained else {}
        for name, draw in pictures.items():
            draw(task, trained, RESULTS / task / f"{name}.png")
        lines += [f"![{TASKS[task].title}: {name}](results/{task}/{name}.png)\n" for name in pictures]
    head, rest = PAGE.read_text().split(MARKS[0])
    PAGE.write_text(f"{head}{MARKS[0]}\n\n" + "\n".join(lines) + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
