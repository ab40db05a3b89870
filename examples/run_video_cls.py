"""Train a video classifier from an image model.

    accelerate launch examples/run_video_cls.py --model_name_or_path openai/clip-vit-base-patch16 \
        --train_dir data/train --validation_dir data/validation --tuner zeroi2v --num_frames 8 --output_dir runs/first
    accelerate launch examples/run_video_cls.py --config examples/recipes/zeroi2v_b16_k400.yaml \
        --train_file k400/train.csv --validation_file k400/val.csv --output_dir runs/k400

Started again after it was stopped, in whatever way, the same command goes on from the last checkpoint. `--output_dir`
gets the checkpoints, the adapter (`adapter/`) or model (`model/`) with its image processor and resolved configuration,
`predictions.csv`, `confusion_matrix.png` and `all_results.json`. See docs/training.md.
"""

import argparse
import dataclasses
import itertools
import json
import resource
import time
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, ProjectConfiguration, set_seed
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import SchedulerType, get_scheduler

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification, I2VTunerConfig
from hf_i2v.architectures import image_config
from hf_i2v.checkpoints import CheckpointFolder, configuration_differences, write_atomically
from hf_i2v.cost import cost
from hf_i2v.data import (
    ClipLoader,
    VideoClips,
    eval_transform,
    load_video_folder,
    preprocessing_from_pretrained,
    train_transform,
)
from hf_i2v.evaluation import confusion_matrix, draw_confusion_matrix, predict, write_predictions
from hf_i2v.mixing import mix
from hf_i2v.training_state import ExponentialMovingAverage, TrainingState, frozen_fingerprint, trained_parameters

# What may differ when a run goes on: places, and what changes nothing in the result.
MAY_CHANGE = {
    *("config", "output_dir", "model_name_or_path", "train_dir", "validation_dir"),
    *("dataloader_num_workers", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "num_train_epochs", "checkpointing_steps", "checkpoints_total_limit"),
    *("resume_from_checkpoint", "eval_steps", "logging_steps", "with_tracking", "report_to", "dry_run"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    add("--config", type=Path, help="yaml file with any of the options below; the command line overrides it")
    add("--dry_run", **switch, help="resolve everything, build the model without memory, print the numbers and stop")
    # the model
    add("--model_name_or_path", required=True, help="image checkpoint, a folder or a Hub repository")
    add("--allow_random_base", **switch, help="accept a checkpoint that leaves backbone weights random")
    add(
        "--tuner",
        default="zeroi2v",
        help=f"linear_probe (the head only), full (all weights), or some of lora, {', '.join(METHODS)}, joined by +",
    )
    add("--tuner_config", nargs="*", default=[], metavar="KEY=VALUE", help="options of the tuner's configuration")
    add("--num_frames", type=int, default=8, help="frames per clip")
    add("--num_labels", type=int, help="classes that the data set must have; needed for --dry_run without data")
    add("--classifier_dropout", type=float, default=0.5)
    add("--gradient_checkpointing", **switch, help="less memory, about a third slower")
    # the data
    add("--train_dir", help="folder with one sub-folder of videos per class")
    add("--validation_dir", help="the same for validation")
    add("--shots_per_class", type=int, help="train on this many videos of each class, drawn with --seed")
    add("--crop_scale", type=float, nargs=2, default=(0.5, 1.0), help="share of the frame that a training crop covers")
    add("--flip", type=float, default=0.0, help="probability of mirroring a training clip")
    add("--mixup_alpha", type=float, default=0.0, help="0: no mixup")
    add("--cutmix_alpha", type=float, default=0.0, help="0: no cutmix; with both, each batch gets one of them")
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode")
    # the optimisation
    add("--per_device_train_batch_size", type=int, default=8, help="clips")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=1e-3)
    add("--head_learning_rate", type=float, help="of the classifier; default --learning_rate")
    add("--weight_decay", type=float, default=0.05, help="of matrices; biases, norms and embeddings have none")
    add("--adam_beta2", type=float, default=0.999)
    add("--max_grad_norm", type=float, help="clip the gradient's norm")
    add("--label_smoothing", type=float, default=0.0)
    add("--ema_decay", type=float, help="evaluate and save an exponential moving average of the trained weights")
    add("--num_train_epochs", type=int, default=10)
    add("--max_train_steps", type=int, help="overrides --num_train_epochs")
    add("--lr_scheduler_type", type=SchedulerType, default="cosine", choices=list(SchedulerType))
    add("--num_warmup_steps", type=float, default=0, help="below 1: a share of all steps")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: as accelerate is configured")
    add("--seed", type=int, default=0)
    # the evaluation
    add("--per_device_eval_batch_size", type=int, default=8, help="clips that go through the model at once")
    add("--eval_steps", type=int, help="evaluate every so many steps, and not at the end only")
    # the result
    add("--output_dir", type=Path, required=True)
    add("--checkpointing_steps", default="epoch", help="a number of steps, 'epoch', or 'no'")
    add("--checkpoints_total_limit", type=int, default=2, help="checkpoints to keep")
    add("--resume_from_checkpoint", type=Path, help="go on from this one; default: the last in --output_dir")
    add("--logging_steps", type=int, default=10)
    add("--with_tracking", **switch, help="log to --report_to")
    add("--report_to", default="tensorboard", help="any tracker of accelerate, or all")

    config = parser.parse_known_args(argv)[0].config if argv is None or "--config" in argv else None
