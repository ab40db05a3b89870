"""Tables and plots of what `run.py` has measured, put into README.md between its two marks.

python benchmarks/compare/report.py
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from cells import METHODS, NUM_CLASSES, TASKS
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
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
    for name in sorted(rows, key=lambda n: -accuracy(rows[n])):
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


def style(method: str) -> dict:
    """A method's colour in every picture, and whether it trains from a cache."""
    colour = list(METHODS).index(method) % 20
    return {"color": colormaps["tab20"](colour), "marker": "s" if METHODS[method].cached else "o"}


def accuracy(cells: list[dict]) -> float:
    return 100 * statistics.mean(cell["accuracy"]["as_it_is"] for cell in cells)


def draw_costs(task: str, methods: dict[str, list[dict]], path: Path) -> None:
    """Accuracy against each cost, a point a method; the legend goes from the best to the worst."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    every_axes = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (key, (title, unit, name)) in zip(every_axes, COSTS.items(), strict=True):
        for method in sorted(methods, key=lambda m: -accuracy(methods[m])):
            cells = methods[method]
            x = statistics.mean(cell["results"].get(key) or 0 for cell in cells) / unit
            label = f"{accuracy(cells):.1f}  {METHODS[method].title}"
            axes.plot(x, accuracy(cells), linestyle="", markeredgecolor="black", **style(method), label=label)
        axes.set_xlabel(f"{title}, {name}")
        if name in ("M", "min"):  # over several powers of ten
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    every_axes[0].set_ylabel("top-1, %")
    figure.legend(*every_axes[0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    figure.suptitle(TASKS[task].title)
    figure.savefig(path, dpi=100)


def draw_curves(task: str, methods: dict[str, list[dict]], path: Path) -> None:
    """Training loss over the clips seen, a line a method (its first seed)."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for method in sorted(methods, key=lambda m: -accuracy(methods[m])):
        rows = [row for row in methods[method][0].get("history", []) if "train_loss" in row]
        if rows:
            scale = TASKS[task].clips_seen / rows[-1]["step"]
            x, y = [scale * row["step"] for row in rows], [row["train_loss"] for row in rows]
            line = "--" if METHODS[method].cached else "-"
            axes.plot(x, y, line, color=style(method)["color"], label=METHODS[method].title)
    axes.set_xlabel("clips seen")
    axes.set_ylabel("training loss")
    figure.legend(loc="outside right", fontsize=8)
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
