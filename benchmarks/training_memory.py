"""Is the memory of a training step what `hf_i2v.cost` says? And what does making tensors again cost in time?

    python benchmarks/training_memory.py peak       # every method; six minutes on one core
    python benchmarks/training_memory.py time       # step with recipes over step that keeps everything; five minutes

ViT-B/16, 224², clips of 8 frames, float32, random weights, `--num_blocks` blocks. A peak is the resident memory of a
step over what the process held before the model was made, each in a process of its own; freed memory goes back to the
system at once, for else the peak is that of malloc's heap and its holes. Each part replaces its rows in
training_memory.csv.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import training_cost
from interleaved import interleaved
from rows import replace_rows
from training_cost import CLIP, TRAINED, video_model

from hf_i2v import block
from hf_i2v.cost import training_memory

CSV = Path(__file__).with_suffix(".csv")


def peak(args) -> list[dict]:
    """Predicted and measured, MiB."""
    rows = []
    for name in TRAINED:
        command = [sys.executable, __file__, "one_peak", "--name", name]
        command += ["--num_blocks", str(args.num_blocks), "--batch_size", str(args.batch_size)]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        predicted, measured = json.loads(done.stdout.splitlines()[-1])
        setting = f"{args.num_blocks} blocks, {args.batch_size} clips, MiB"
        rows.append(row("peak", name, setting, predicted / 2**20, measured / 2**20))
    return rows


def one_peak(args) -> list[dict]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = video_model(TRAINED[args.name])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes the moments
    optimizer.zero_grad()
    model(torch.randn(args.batch_size, *CLIP)).logits.square().mean().backward()
    measured = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps([training_memory(model, (args.batch_size, *CLIP)).peak, measured]))
    return []


def time_(args) -> list[dict]:
    """CPU seconds of a step, with recipes and with everything kept, in turns."""
    rows = []
    for name in ("ZeroI2V", "ST-Adapter", "AIM"):
        model, pixels = video_model(TRAINED[name]), torch.randn(1, *CLIP)

        def step(model=model, pixels=pixels):
            model(pixels).logits.square().mean().backward()
            model.zero_grad(set_to_none=True)

        def keeping_step(step=step):
            remaking, block.remaking = block.remaking, contextlib.nullcontext
            step()
            block.remaking = remaking

        times = interleaved({"remade": step, "kept": keeping_step}, rounds=args.rounds, clock=time.process_time)
        ratio, setting = times["remade"].over(times["kept"]), f"{args.num_blocks} blocks, 1 clip, {args.rounds} rounds"
        rows.append(row("time", name, setting, ratio, 1.0))
    return rows


def row(part: str, name: str, setting: str, value: float, against: float) -> dict:
    found = {"part": part, "method": name, "setting": setting, "value": f"{value:.4g}", "against": f"{against:.4g}"}
    found["ratio"] = f"{value / against:.3f}"
    print(found, flush=True)
    return found


PARTS = {"peak": peak, "one_peak": one_peak, "time": time_}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--num_blocks", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=4, help="clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    args = parser.parse_args()
    training_cost.B16["num_hidden_layers"] = args.num_blocks
    last = list(range(args.num_blocks - 1, args.num_blocks))
    training_cost.LAST["layers_to_transform"] = last
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = PARTS[args.part](args)
    if rows:
        replace_rows(CSV, rows, key=lambda row: row["part"])


if __name__ == "__main__":
    main()
