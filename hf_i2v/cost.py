"""What a model costs: parameters, multiply-accumulates (MACs, which papers print as "GFLOPs"), memory and latency.

python -m hf_i2v.cost --model openai/clip-vit-base-patch16 --tuner zeroi2v st_adapter aim --views 3x1
python -m hf_i2v.cost --model path/to/model --tuner st_adapter+inti --latency 5 --format json
"""

import argparse
import copy
import csv
import json
import sys
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from .architectures import video_config
from .configuration_i2v import I2VConfig
from .counting import (
    Cost,
    cost,
    count_macs,
    count_parameters,
    latency,
    merged_macs,
    on_meta,
)
from .modeling_i2v import I2VForVideoClassification
from .options import tuner_config
from .step_memory import TrainingMemory, training_memory

__all__ = ["Cost", "TrainingMemory", "cost", "count_macs", "count_parameters", "latency", "merged_macs", "on_meta"]
__all__ += ["training_memory"]


@dataclass
class Row:
    """One line of the table: a model with a tuner, on one clip unless it says views."""

    tuner: str
    total_parameters: int
    trainable_parameters: int
    clip_macs: int
    merged_clip_macs: int | None  # None: cannot be merged
    views: str
    video_macs: int
    activation_bytes: int  # that autograd keeps of a batch in training
    training_bytes: int  # the peak of a training step with AdamW
    latency_seconds: float | None = None
    latency_spread_seconds: float | None = None


def _row(tuner: str, config: I2VConfig, args: argparse.Namespace) -> Row:
    def model(device: str) -> nn.Module:
        with torch.device(device):
            return _adapted(tuner, config, args)

    on_the_meta_device = model("meta")
    shape = config.clip_shape(args.batch_size)
    if args.image_size:
        shape = (*shape[:3], args.image_size, args.image_size)
    clips, crops = _views(args.views)
    macs = count_macs(on_the_meta_device, (1, *shape[1:]))
    memory = training_memory(on_the_meta_device, shape)
    row = Row(
        tuner,
        *count_parameters(on_the_meta_device),
        macs,
        None,
        args.views,
        macs * clips * crops,
        memory.kept,
        memory.peak,
    )
    if isinstance(on_the_meta_device, PeftModel):
        row.merged_clip_macs = merged_macs(on_the_meta_device, (1, *shape[1:]))
    if args.latency:
        row.latency_seconds, row.latency_spread_seconds = latency(model(args.device), shape, args.latency)
    return row


def _adapted(tuner: str, config: I2VConfig, args: argparse.Namespace) -> nn.Module:
    base = I2VForVideoClassification(copy.deepcopy(config))  # merging writes into it
    if tuner == "none":
        return base.requires_grad_(False)
    return get_peft_model(base, tuner_config(tuner, args.tuner_config))


def _views(text: str) -> tuple[int, int]:
    clips, _, crops = text.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise SystemExit(f"--views {text!r} must be CLIPSxCROPS, as 3x1")
    return int(clips), int(crops)


def _table(rows: list[Row]) -> str:
    heads = (
        "tuner",
        "params M",
        "trainable M",
        "GMACs/clip",
        "merged",
        "views",
        "GMACs/video",
        "activations MiB",
        "training MiB",
        "latency s",
    )
    lines = [heads]
    for row in rows:
        seconds = (
            "" if row.latency_seconds is None else f"{row.latency_seconds:.3f} ± {row.latency_spread_seconds:.3f}"
        )
        lines.append(
            (
                row.tuner,
                f"{row.total_parameters / 1e6:.2f}",
                f"{row.trainable_parameters / 1e6:.2f}",
                f"{row.clip_macs / 1e9:.1f}",
                "" if row.merged_clip_macs is None else f"{row.merged_clip_macs / 1e9:.1f}",
                row.views,
                f"{row.video_macs / 1e9:.1f}",
                f"{row.activation_bytes / 2**20:.0f}",
                f"{row.training_bytes / 2**20:.0f}",
                seconds,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def main(argv: list[str] | None = None) -> None:
    """The command line; see the text of this module."""
    parser = argparse.ArgumentParser(prog="python -m hf_i2v.cost", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="openai/clip-vit-base-patch16", help="an image model: folder or Hub id")
    parser.add_argument("--tuner", nargs="+", default=["none"], help="methods, several joined by +; none: no tuner")
    parser.add_argument("--tuner_config", nargs="*", default=[], metavar="KEY=VALUE", help="options of the tuner")
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--num_labels", type=int, default=400)
    parser.add_argument("--image_size", type=int, help="pixels; default: what the image model's preprocessing says")
    parser.add_argument("--batch_size", type=int, default=1, help="clips, for activations and latency")
    parser.add_argument("--views", default="1x1", metavar="CLIPSxCROPS")
    parser.add_argument("--latency", type=int, default=0, metavar="ROUNDS", help="also time so many forward passes")
    parser.add_argument("--device", default="cpu", help="where the latency is measured")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    args = parser.parse_args(argv)
    config = video_config(args.model, num_frames=args.num_frames, num_labels=args.num_labels)
    rows = [_row(tuner, config, args) for tuner in args.tuner]
    if args.format == "table":
        print(_table(rows))
    elif args.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        writer = csv.DictWriter(sys.stdout, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
