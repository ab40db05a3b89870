"""Several processes: what accelerate would pass over without a word is refused."""

import argparse
import os

from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers.integrations import unset_hf_deepspeed_config


def check_processes(accelerator: Accelerator) -> None:
    """Compare the number of processes that accelerate sees with that of those that were started.

    Raises:
        RuntimeError: it sees fewer.
    """
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes were started, but accelerate sees only one")


def check_distribution(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Compare what accelerate made of the environment with what was asked for.

    Raises:
        RuntimeError: it sees fewer processes, shards nothing, or the run's options do not go with DeepSpeed.
    """
    check_processes(accelerator)
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        wanted = os.environ.get(f"ACCELERATE_USE_{kind.value}") == "true"
        if wanted and accelerator.distributed_type != kind:
            raise RuntimeError(
                f"accelerate is configured for {kind.value}, but uses it on GPUs only; use ddp.yaml here"
            )
        if accelerator.distributed_type == kind and args.load_best_model_at_end:
            raise RuntimeError(
                f"--load_best_model_at_end puts whole weights back, {kind.value} has shards of them: leave it out"
            )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        if args.checkpointing_steps != "no":
            raise RuntimeError("checkpoints do not cover DeepSpeed's shards: use --checkpointing_steps no, or FSDP")
        if args.ema_decay:
            raise RuntimeError(
                "--ema_decay averages whole weights, DeepSpeed has shards of them: leave it out, or FSDP"
            )
        # accelerate would ask its own DataLoader for the one, and clip at 1.0 for want of the other
        config = accelerator.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = args.per_device_train_batch_size
        config["gradient_clipping"] = args.max_grad_norm or 0.0
        unset_hf_deepspeed_config()  # or transformers would load shards, which no adapter fits; `prepare` makes them
