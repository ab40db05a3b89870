"""Rows of measurements in a csv beside a benchmark, whose parts replace their own, and the page made of them."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path


def read_rows(file: Path) -> list[dict[str, str]]:
    """None, where there is no such file."""
    if not file.exists():
        return []
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def replace_rows(file: Path, rows: Sequence[dict], key: Callable[[dict], object]) -> None:
    """Rows with the keys of these ones go, these come."""
    own = {key(row) for row in rows}
    rows = [row for row in read_rows(file) if key(row) not in own] + list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_page(file: Path, title: str, parts: Sequence[str]) -> None:
    """The csv as markdown beside it, a table for each value of its column `part`."""
    rows = read_rows(file)
    lines = [f"# {title}", "", f"Written by `benchmarks/{file.stem}.py report` from {file.name}."]
    for part in parts:
        of_part = [row for row in rows if row["part"] == part]
        columns = [name for name in rows[0] if name != "part" and any(row[name] for row in of_part)]
        lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(row[name] for name in columns) + " |" for row in of_part]
    file.with_suffix(".md").write_text("\n".join(lines) + "\n")
