"""Kill training runs at random moments until they are through, and compare the weights with those of a run left alone.

    python benchmarks/kill_and_resume.py --rounds 25        # four kinds of run, about 15 s a round and kind

Unlike the test in tests/test_run_resume.py, the moment of each kill is uniform over the time that a run takes, so that
it also hits the start, the writing of checkpoints, the evaluation and the saving at the end. Writes
`kill_and_resume.csv` beside this script.
"""

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_run_resume import arguments  # noqa: E402
from tiny import tiny_image_model  # noqa: E402
from training import command_line, load_script, start_forked, write_shards, write_video_folders  # noqa: E402

FILES = ("adapter/adapter_model.safetensors", "checkpoint-12/weights.safetensors", "predictions.csv")


def run_through(argv: list[str], log: Path, seconds: float, chance: random.Random, kills: int) -> int:
    """Gives how many kills hit a run that had not ended."""
    hit = 0
    for attempt in range(kills + 1):
        process = start_forked(argv, log)
        if attempt < kills:
            time.sleep(chance.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        hit += status == signal.SIGKILL
        if attempt == kills and status:
            raise SystemExit(log.read_text()[-3000:])
    return hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--kills", type=int, default=3, help="per round")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    load_script("run_video_cls")  # its imports take longer than a run
    chance = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tiny_image_model("clip").save_pretrained(place / "image")
        write_shards(write_video_folders(place / "videos", train=7, validation=3), place / "shards")
        for source in ("map", "streaming"):
            for workers in (0, 2):
                common = arguments(place, source, workers)
                alone = place / f"alone-{source}-{workers}"
                started = time.monotonic()
                run_through(command_line(common | {"output_dir": alone}), place / "log", 0, chance, 0)
                seconds = time.monotonic() - started
                hits = equal = 0
                for round_number in range(args.rounds):
                    killed = place / f"killed-{source}-{workers}-{round_number}"
                    argv = command_line(common | {"output_dir": killed})
                    hits += run_through(argv, place / "log", seconds, chance, args.kills)
                    equal += all((killed / f).read_bytes() == (alone / f).read_bytes() for f in FILES)
                rows.append([source, workers, args.rounds, hits, equal])
                print(
                    f"{source}, {workers} workers: {equal} of {args.rounds} runs bit-identical after {hits} kills",
                    flush=True,
                )
    with open(Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        csv.writer(file).writerows([["source", "workers", "runs", "kills", "bit_identical"], *rows])


if __name__ == "__main__":
    main()
