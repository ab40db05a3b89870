"""Everything that has to be seen on a GPU, in one command: is it right, is it fast, does it train.

    bash benchmarks/gpu.sh                     # on a machine with a GPU; at most 8 minutes on one H100
    python benchmarks/gpu.py --small           # the same on tiny models, also on a CPU: seconds
    python benchmarks/gpu.py --sections forward training --released path/to/checkouts

Each section stands alone: one that fails is a row of the table, with its error, and the others go on. A row is `ok`,
`failed`, or `left out` with a reason; the exit status is 1 if any failed. The table, with the card's name, is
`benchmarks/gpu-<card>.csv`, and is written anew after each section. Ratios are medians over rounds in turns, in one
process (`interleaved.py`).
"""

import argparse
import csv
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gpu_checks import equality, golden, graphs, kernels, pixels
from gpu_runs import resume, script
from gpu_setting import NAMES, Result, Setting
from gpu_speed import forward, training, utilisation

SECTIONS = {  # with seconds that each may take on one H100, about
    equality: 50,
    golden: 15,
    kernels: 30,
    graphs: 80,
    pixels: 10,
    forward: 60,
    training: 80,
    utilisation: 15,
    script: 60,
    resume: 70,
}
COLUMNS = ("section", "what", "value", "unit", "status", "note", "card", "torch")


@dataclass
class Table:
    """The rows so far; each section's are written when it ends, however it ends."""

    file: Path
    card: str
    rows: list[dict] = field(default_factory=list)

    def add(self, section: str, result: Result) -> None:
        value = "" if result.value is None else f"{result.value:.4g}"
        facts = (section, result.what, value, result.unit, result.status, result.note, self.card, torch.__version__)
        self.rows.append(dict(zip(COLUMNS, facts, strict=True)))
        print(f"{section}: {result.what}: {value} {result.unit} {result.status} {result.note}".rstrip(), flush=True)

    def write(self) -> None:
        with self.file.open("w", newline="") as out:
            writer = csv.DictWriter(out, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def num_failed(self) -> int:
        return sum(row["status"] == "failed" for row in self.rows)


def run_section(section, seconds: float, setting: Setting, table: Table) -> None:
    name, began = section.__name__, time.perf_counter()
    setting.ends = began + seconds
    try:
        results: Iterator[Result] = section(setting)
        for result in results:
            table.add(name, result)
    except Exception as error:  # whatever it is, the other sections run
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".strip().replace("\n", " ")
        table.add(name, Result("the section", None, status="failed", note=reason[:400]))
    took = time.perf_counter() - began
    table.add(name, Result("seconds of the section", took, "s"))
    table.write()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument(
        "--sections", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names)
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny models; without a GPU always")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, metavar="METHOD", help=", ".join(NAMES))
    parser.add_argument("--released", type=Path, help="folder with checkouts of the released code, see released.py")
    parser.add_argument("--output_file", type=Path)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    is_small = args.small or device.type == "cpu"
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    file = args.output_file or Path(__file__).parent / f"gpu-{card.replace(' ', '-')}.csv"
    table, setting = Table(file, card), Setting(device, is_small, args.released, args.methods)
    for section, seconds in SECTIONS.items():
        if section.__name__ in args.sections:
            run_section(section, seconds, setting, table)
    print(f"{len(table.rows)} rows, {table.num_failed()} failed: {file}")
    return int(table.num_failed() > 0)


if __name__ == "__main__":
    sys.exit(main())
