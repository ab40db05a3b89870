"""What the options of a run come to, before it is started."""

import argparse
import math

from peft import PeftModel
from torch import nn

from ..cost import cost, merged_macs
from .state import trained_parameters


def plan(model: nn.Module, args: argparse.Namespace) -> list[str]:
    """Clips, schedule, parameters and MACs, line by line.

    Args:
        model: in its full size, on the meta device.
        args: the options of the training script.
    """
    shape = model.config.clip_shape()
    model_cost = cost(model, shape)
    head = sum(p.numel() for n, p in trained_parameters(model).items() if "classifier" in n)
    merged = merged_macs(model, shape) if isinstance(model, PeftModel) else None
    macs, kind = (model_cost.macs, "as trained") if merged is None else (merged, "merged")
    views = math.prod(map(int, args.eval_views.split("x")))
    clips = args.per_device_train_batch_size * args.gradient_accumulation_steps
    length = f"{args.max_train_steps} steps" if args.max_train_steps else f"{args.num_train_epochs} epochs"
    warmup = f"{args.num_warmup_steps:g}{' of the' if 0 < args.num_warmup_steps < 1 else ''} steps"
    return [
        f"clips of a step: {clips} on each process",
        f"schedule: {length}, {args.lr_scheduler_type}, the first {warmup} warming up",
        f"trainable parameters: {model_cost.trainable_parameters / 1e6:.2f} M, of which the head {head / 1e6:.2f} M",
        f"parameters while training: {model_cost.total_parameters / 1e6:.2f} M",
        f"MACs of a view in training: {model_cost.macs / 1e9:.1f} G",
        f"MACs of a view in use: {macs / 1e9:.1f} G ({kind})",
        f"MACs of a video: {views * macs / 1e9:.0f} G ({args.eval_views} views of {args.num_frames} frames)",
    ]
