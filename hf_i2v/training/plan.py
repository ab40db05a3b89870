"""What the options of a run come to, before it is started."""

import argparse
import logging
import math

import psutil
import torch
from peft import PeftModel
from torch import nn

from ..cost import cost, merged_macs
from ..step_memory import training_memory
from .state import trained_parameters

logger = logging.getLogger(__name__)
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def memory_plan(model: nn.Module, shape: tuple[int, ...], *, mixed_precision: str, device: torch.device) -> str:
    """What a training step takes of each process's memory, as a line to print. Warns if the device has less free.

    Args:
        model: on the CPU, as it will be trained.
        shape: of a batch, (B, T, C, h, w).
        mixed_precision: accelerate's name for it.
    """
    memory = training_memory(model, shape, autocast=PRECISIONS.get(mixed_precision))
    if device.type == "cuda":
        needed, free = memory.peak, torch.cuda.mem_get_info(device)[0]
    else:
        needed, free = memory.peak - memory.weights, psutil.virtual_memory().available  # the weights are there already
    if needed > free:
        logger.warning(
            "A training step needs about %.1f GiB more, but %s has %.1f GiB free. Lower --per_device_train_batch_size "
            "(and raise --gradient_accumulation_steps to match), or use --gradient_checkpointing.",
            needed / 2**30,
            device,
            free / 2**30,
        )
    return f"memory of a training step: {memory}; free on {device}: {free / 2**30:.2f} GiB"
