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
import contextlib
import dataclasses
import json
import logging
import math
import os
import re
import sys
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast_object_list,
    set_seed,
)
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoConfig, get_scheduler
from transformers.integrations import unset_hf_deepspeed_config

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification
from hf_i2v.architectures import video_config
from hf_i2v.cards import CardFacts, dataset_fingerprint, write_card
from hf_i2v.checkpoints import CheckpointFolder, configuration_differences, write_atomically
from hf_i2v.configuration_i2v import hub_name
from hf_i2v.cost import Cost, cost, merged_macs
from hf_i2v.data import (
    ClipLoader,
    Mix,
    VideoClips,
    add_data_arguments,
    eval_transform,
    preprocessing_from_pretrained,
    train_transform,
    videos_from_args,
)
from hf_i2v.evaluation import confusion_matrix, draw_confusion_matrix, predict, write_predictions
from hf_i2v.hub import CheckpointUploads, push_folder
from hf_i2v.merging import merge_difference
from hf_i2v.meter import Meter
from hf_i2v.options import tuner_config, tuner_options
from hf_i2v.training_state import (
    ExponentialMovingAverage,
    TrainingState,
    frozen_fingerprint,
    trained_parameters,
    videos_fingerprint,
)

logger = logging.getLogger(__name__)

# What concerns this machine and this start only; it is not saved beside the weights.
HERE = {
    *("config", "dry_run", "output_dir", "train_dir", "validation_dir", "train_file", "validation_file", "video_dir"),
    *("class_names_file", "resume_from_checkpoint", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo"),
}
# What may differ when a run goes on: places, and what changes nothing in the result.
MAY_CHANGE = HERE | {
    *("model_name_or_path", "dataset_name", "dataset_config_name", "streaming"),
    *("dataloader_num_workers", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "num_train_epochs", "checkpointing_steps", "checkpoints_total_limit"),
    *("eval_steps", "logging_steps", "with_tracking", "report_to"),
}
# transformers' schedules that need no more than the numbers of steps
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
RESULTS = ("run.json", "adapter", "model", "all_results.json")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    add("--config", type=Path, help="yaml file with any of the options below; the command line overrides it")
    add("--dry_run", **switch, help="resolve everything, build the model without memory, print the numbers and stop")
    # the model
    add("--model_name_or_path", required=True, help="image checkpoint or finished video model: folder or Hub id")
    add("--allow_random_base", **switch, help="accept a checkpoint that leaves backbone weights random")
    add(
        "--tuner",
        default="zeroi2v",
        help=f"linear_probe (the head only), full (all weights), or some of lora, {', '.join(METHODS)}, joined by +",
    )
    pairs = "options of the tuner's configuration; they add to those of --config, if that is for the same tuner"
    add("--tuner_config", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help=pairs)
    add("--num_frames", type=positive, default=8, help="frames per clip")
    add("--num_labels", type=positive, help="classes that the data set must have; needed for --dry_run without data")
    add("--classifier_dropout", type=float, default=0.5, help="probability, before the classifier")
    add("--gradient_checkpointing", **switch, help="less memory, about a third slower")
    # the data
    add_data_arguments(parser)
    add("--shots_per_class", type=positive, help="train on this many videos of each class, drawn with --seed")
    add("--sampling", choices=["uniform", "dense"], default="uniform", help="over the whole video, or neighbours")
    add("--frame_stride", type=positive, default=1, help="distance of a clip's frames in dense sampling")
    add(
        "--short_video_policy",
        choices=["repeat_last", "wrap", "error"],
        default="repeat_last",
        help="below --num_frames",
    )
    add("--crop_scale", type=float, nargs=2, default=(0.5, 1.0), help="share of the frame that a training crop covers")
    add("--short_side", type=int, nargs=2, help="jitter of the short side in pixels, in place of --crop_scale")
    add("--flip", type=float, default=0.0, help="probability of mirroring a training clip")
    add("--flip_labels", type=json_pairs, help="{class: class that it becomes when mirrored}: a json file, or json")
    add("--color_jitter", type=float, default=0.0, help="of brightness, contrast and saturation; 0.4 is usual")
    add("--rand_augment", type=float, nargs=2, metavar=("OPERATIONS", "MAGNITUDE"))
    add("--random_erasing", type=float, default=0.0, help="probability")
    add("--mixup_alpha", type=float, default=0.0, help="0: no mixup")
    add("--cutmix_alpha", type=float, default=0.0, help="0: no cutmix; with both, each batch gets one of them")
    add("--shuffle_buffer_size", type=int, help="keep the shuffling local to this many videos; for parquet shards")
    add("--on_bad_video", choices=["error", "skip", "substitute"], help="default: substitute, in evaluation skip")
    add("--max_bad_fraction", type=float, default=0.01, help="stop above this share of unreadable videos")
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode")
    # the optimisation
    add("--per_device_train_batch_size", type=positive, default=8, help="clips")
    add("--gradient_accumulation_steps", type=positive, default=1, help="batches of a step")
    add("--learning_rate", type=float, default=1e-3, help="the highest, after warming up")
    add("--head_learning_rate", type=float, help="of the classifier; default --learning_rate")
    add("--weight_decay", type=float, default=0.05, help="of matrices; biases, norms and embeddings have none")
    add("--adam_beta2", type=float, default=0.999, help="of AdamW")
    add("--max_grad_norm", type=float, help="clip the gradient's norm")
    add("--label_smoothing", type=float, default=0.0, help="share of the target given to all classes alike")
    add("--ema_decay", type=float, help="evaluate and save an exponential moving average of the trained weights")
    add("--num_train_epochs", type=positive, default=10, help="passes over the training videos")
    add("--max_train_steps", type=positive, help="overrides --num_train_epochs")
    add("--lr_scheduler_type", default="cosine", choices=SCHEDULES, help="transformers' schedules")
    add("--num_warmup_steps", type=float, default=0.0, help="below 1: a share of all steps")
    add("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: as accelerate is configured")
    add("--seed", type=int, default=0, help="of everything that is drawn")
    # the evaluation
    add("--per_device_eval_batch_size", type=positive, default=8, help="clips that go through the model at once")
    add("--eval_views", default="1x1", help="clips x crops of each video: 3x1, 1x3, …")
    add("--eval_steps", type=positive, help="evaluate every so many steps, and not at the end only")
    # the result
    add("--output_dir", type=Path, required=True, help="the same folder and command go on where a run stopped")
    add("--checkpointing_steps", default="epoch", help="a number of steps, 'epoch', or 'no'")
    add("--checkpoints_total_limit", type=positive, default=2, help="checkpoints to keep")
    add("--resume_from_checkpoint", type=Path, help="start from this one, as long as --output_dir has none of its own")
    add("--logging_steps", type=positive, default=10, help="steps between two lines of the log")
    add("--with_tracking", **switch, help="log to --report_to")
    add("--report_to", default="tensorboard", help="any tracker of accelerate, or all")
    add("--push_to_hub", **switch, help="upload checkpoints while training, and the result with its card")
    add("--hub_model_id", help="user/name on the Hub; default: the name of --output_dir")
    add("--hub_token", help="default: that of `hf auth login`")
    add("--hub_private_repo", **switch, help="if the repository is new")

    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=Path)
    config_parser.add_argument("--tuner")
    argv = sys.argv[1:] if argv is None else [str(a) for a in argv]
    given = config_parser.parse_known_args(argv)[0]
    args = parser.parse_args([*(recipe_arguments(parser, given.config, given.tuner) if given.config else []), *argv])
    args.tuner_config = list({pair.partition("=")[0]: pair for pair in args.tuner_config}.values())  # the last counts
    if args.tuner in ("full", "linear_probe") and args.tuner_config:
        parser.error(f"--tuner {args.tuner} has no options, but --tuner_config is {' '.join(args.tuner_config)}")
    if args.ema_decay is not None and not 0 < args.ema_decay < 1:
        parser.error(f"--ema_decay ({args.ema_decay}) must lie between 0 and 1")
    if args.streaming and not args.max_train_steps:
        parser.error("--streaming needs --max_train_steps: how long an epoch is, a stream cannot promise")
    if not re.fullmatch(r"epoch|no|[1-9]\d*", args.checkpointing_steps):
        parser.error(f"--checkpointing_steps ({args.checkpointing_steps}) is a number of steps, 'epoch' or 'no'")
    if not re.fullmatch(r"[1-9]\d*x[13]", args.eval_views):
        parser.error(f"--eval_views ({args.eval_views}) is clips x crops with 1 or 3 crops, such as 3x1")
    return args


def recipe_arguments(parser: argparse.ArgumentParser, path: Path, tuner: str | None) -> list[str]:
    """The options of a yaml file as a command line, so that they are checked like one; without those of the file's
    tuner where the command line names another `tuner`."""
    options = yaml.safe_load(path.read_text()) or {}
    if not isinstance(options, dict):
        parser.error(f"{path} holds {options!r:.60}, expected lines 'option: value'")
    if tuner not in (None, options.get("tuner", parser.get_default("tuner"))):
        options.pop("tuner_config", None)
    arguments = []
    for key, value in options.items():
        action = parser._option_string_actions.get(f"--{key}")
        if action is None:
            parser.error(f"{path}: {key!r} is no option of this script; see --help")
        if isinstance(action, (argparse.BooleanOptionalAction, argparse._StoreTrueAction)):
            if not isinstance(value, bool):
                parser.error(f"{path}: {key} is {value!r}, but must be true or false, without quotes")
            arguments += [f"--{key}"] if value else []
        elif isinstance(value, dict) and action.nargs:  # tuner_config
            arguments += [f"--{key}", *(f"{k}={json.dumps(v)}" for k, v in value.items())]
        elif isinstance(value, dict):  # flip_labels
            arguments += [f"--{key}", json.dumps(value)]
        elif value is not None:
            arguments += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def json_pairs(text: str) -> dict[str, str]:
    """The content of the file, not its place, becomes a part of the configuration."""
    pairs = json.loads(text if text.startswith("{") else Path(text).read_text())
    if not isinstance(pairs, dict):
        raise argparse.ArgumentTypeError(f"{text} holds {pairs!r:.60}, expected {{class: class}}")
    return pairs


# ---------------------------------------------------------------------------------------------------- the model


def build_model(args: argparse.Namespace, names: list[str]) -> nn.Module:
    """The image model as a video classifier, or a finished video model with a classifier for these names, with the
    tuner attached; for a dry run without memory."""
    options = {
        "num_frames": args.num_frames,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "classifier_dropout": args.classifier_dropout,
    }
    if args.dry_run:
        with torch.device("meta"):
            return attach_tuner(args, I2VForVideoClassification(video_config(args.model_name_or_path, **options)))
    # however it is stored: small steps of what is trained would be lost in half precision
    options["dtype"] = torch.float32
    name = args.model_name_or_path
    if (
        AutoConfig.from_pretrained(name).model_type == I2VConfig.model_type
    ):  # a finished video model, for other classes
        return attach_tuner(
            args, I2VForVideoClassification.from_pretrained(name, ignore_mismatched_sizes=True, **options)
        )
    model = I2VForVideoClassification.from_image_model(name, allow_random_base=args.allow_random_base, **options)
    return attach_tuner(args, model)


def attach_tuner(args: argparse.Namespace, model: I2VForVideoClassification) -> nn.Module:
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.tuner == "full":
        return model.requires_grad_(True)
    if args.tuner == "linear_probe":
        model.i2v.requires_grad_(False)
        return model
    methods = args.tuner.split("+")
    if "lora" not in methods:
        return get_peft_model(model, tuner_config(args.tuner, args.tuner_config))
    # LoRA is peft's own; STDHA is native to the model, so that it can ride on it
    if not set(methods) <= {"lora", "stdha"}:
        raise SystemExit(f"--tuner {args.tuner}: lora goes alone or as stdha+lora")
    options = tuner_options(args.tuner, {"lora": LoraConfig, "stdha": METHODS["stdha"]}, args.tuner_config)
    if "stdha" in methods:
        model.with_stdha(**options["stdha"])
    lora = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], **options["lora"]}
    return get_peft_model(model, LoraConfig(**lora))


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases, norms and embeddings without decay, the head with its own learning rate."""
    groups = {}
    for name, parameter in trained_parameters(model).items():
        rate = args.head_learning_rate if args.head_learning_rate and "classifier" in name else args.learning_rate
        is_embedding = re.search(r"\.temporal\.|temporal_embedding|position_embedding|class_embedding|cls_token", name)
        decay = 0.0 if parameter.ndim < 2 or is_embedding else args.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2))


# ----------------------------------------------------------------------------------------------------- the data


def few_shot(videos: Dataset, shots: int, seed: int) -> Dataset:
    """`shots` videos of each class, drawn with the seed."""
    rows, labels = [], torch.tensor(videos["label"])
    for label, name in enumerate(videos.features["label"].names):
        of_class = (labels == label).nonzero().flatten()
        if len(of_class) < shots:
            raise ValueError(f"--shots_per_class {shots}: the class {name!r} has {len(of_class)} videos")
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
        rows += of_class[torch.randperm(len(of_class), generator=generator)[:shots]].tolist()
    return videos.select(sorted(rows))


def build_clips(args: argparse.Namespace, videos, preprocessing) -> tuple[VideoClips, VideoClips]:
    """Clips for training and evaluation: file → frames → clip."""
    pixels = dataclasses.asdict(preprocessing)
    num_clips, num_crops = map(int, args.eval_views.split("x"))
    sampling = {
        "num_frames": args.num_frames,
        "frame_stride": args.frame_stride if args.sampling == "dense" else None,
        "policy": args.short_video_policy,
    }
    augmentation = train_transform(
        **pixels,
        flip=args.flip,
        scale=tuple(args.crop_scale),
        short_side=args.short_side,
        color_jitter=args.color_jitter,
        rand_augment=args.rand_augment and (int(args.rand_augment[0]), args.rand_augment[1]),
        erase=args.random_erasing,
    )
    train_clips = VideoClips(
        videos["train"], transform=augmentation, train=True, seed=args.seed, flip_labels=args.flip_labels, **sampling
    )
    transform = eval_transform(**pixels, num_crops=num_crops)
    eval_clips = VideoClips(videos["validation"], transform=transform, train=False, num_clips=num_clips, **sampling)
    return train_clips, eval_clips


def build_loaders(args: argparse.Namespace, train_clips: VideoClips, eval_clips: VideoClips, accelerator: Accelerator):
    """Batches of the clips for this process."""
    common = {
        "num_workers": args.dataloader_num_workers,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "on_bad_video": args.on_bad_video,
        "max_bad_fraction": args.max_bad_fraction,
        "bad_videos_file": args.output_dir / "bad_videos.jsonl",
        "pin_memory": accelerator.device.type == "cuda",
        "device": accelerator.device,
    }
    mixes = args.mixup_alpha or args.cutmix_alpha
    train_loader = ClipLoader(
        train_clips,
        batch_size=args.per_device_train_batch_size,
        shuffle=True,
        shuffle_buffer_size=args.shuffle_buffer_size,
        drop_last=True,
        mix=Mix(args.num_labels, args.mixup_alpha, args.cutmix_alpha) if mixes else None,
        **common,
    )
    views = math.prod(map(int, args.eval_views.split("x")))
    eval_loader = ClipLoader(eval_clips, batch_size=max(1, args.per_device_eval_batch_size // views), **common)
    return train_loader, eval_loader


def check_labels(args: argparse.Namespace, videos) -> list[str]:
    names = videos["train"].features["label"].names
    if "validation" not in videos:
        raise ValueError("there are no videos for validation; give --validation_dir or --validation_file")
    if (validation := videos["validation"].features["label"].names) != names:
        differ = sorted(set(names) ^ set(validation)) or "the same names in another order"
        raise ValueError(f"the labels of train and validation differ: {differ}. Give both the same classes.")
    train, validation = (set(videos[split]["label"]) for split in ("train", "validation"))
    if unknown := [names[label] for label in sorted(validation - train)]:
        raise ValueError(
            f"validation has videos of {unknown[:5]} ({len(unknown)} classes in all), but there are none to train on. "
            "Add such videos to --train_dir or --train_file, or take them out of the validation."
        )
    if missing := [names[label] for label in sorted(train - validation)]:
        logger.warning("validation has no videos of %s (%s classes in all)", missing[:5], len(missing))
    if args.num_labels not in (None, len(names)):
        raise ValueError(f"--num_labels is {args.num_labels}, but the data set has {len(names)} classes")
    return names


# ------------------------------------------------------------------------------------------------------ the loop


def batch_loss(args: argparse.Namespace, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss of a batch; clips that stand for an unreadable video count nothing."""
    logits = model(pixel_values=batch["pixel_values"]).logits.float()
    loss_B = F.cross_entropy(logits, batch["labels"], label_smoothing=args.label_smoothing, reduction="none")
    return (loss_B * ~batch["is_padding"]).mean()


def check_distribution(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Refuse what accelerate would pass over without a word."""
    if accelerator.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(f"{os.environ['WORLD_SIZE']} processes were started, but accelerate sees only one")
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        wanted = os.environ.get(f"ACCELERATE_USE_{kind.value}") == "true"
        if wanted and accelerator.distributed_type != kind:
            raise RuntimeError(
                f"accelerate is configured for {kind.value}, but uses it on GPUs only; use ddp.yaml here"
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


def resume(args, accelerator: Accelerator, checkpoints: CheckpointFolder, state: TrainingState) -> int:
    """Take the output folder for this run, and go on from its last checkpoint if there is one."""
    checkpoint = None
    if accelerator.is_main_process:
        claim(args.output_dir, checkpoints.configuration)
        start, own = args.resume_from_checkpoint, checkpoints.steps()
        if start and own:
            print(f"{args.output_dir} has checkpoints of its own: going on from the last of them, not from {start}")
        checkpoint = checkpoints.load(start) if start and not own else checkpoints.load_last()
    (found,) = broadcast_object_list([checkpoint is not None])
    if not found:
        return 0
    step = state.restore(checkpoint)
    accelerator.print(f"going on after step {step}")
    return step


def run_configuration(
    args: argparse.Namespace, names: list[str], batch_size: int, frozen_weights: str, train_videos: Dataset
) -> dict:
    """What makes a run what it is; it goes on only with the same."""
    options = {key: value for key, value in resolved_options(args).items() if key not in MAY_CHANGE}
    facts = {"batch_size": batch_size, "labels": names, "frozen_weights": frozen_weights}
    return options | facts | {"training_videos": videos_fingerprint(train_videos)}


def claim(output_dir: Path, configuration: dict) -> None:
    """Refuse an output folder that holds another run."""
    record = output_dir / "run.json"
    if record.exists():
        differences = configuration_differences(json.loads(record.read_text()), configuration)
        if differences:
            raise ValueError(
                f"{output_dir} holds another run: {'; '.join(differences)}. Choose another --output_dir, or remove "
                "that folder to start anew."
            )
        return
    if found := [p.name for p in output_dir.glob("*") if p.name in RESULTS or p.name.startswith("checkpoint-")]:
        raise ValueError(f"{output_dir} holds another run ({', '.join(sorted(found))}). Choose another --output_dir.")
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(configuration, indent=2) + "\n")


def save_checkpoint(accelerator, checkpoints, state: TrainingState, step: int, uploads: CheckpointUploads | None):
    weights, values = state.collect()
    if accelerator.is_main_process:
        path = checkpoints.save(step, weights, values, spare=uploads and uploads.under_way)
        if uploads:
            uploads.start(path, f"step {step}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.dry_run:
        print("\n".join(dry_run(args)))
        return
    logs = ProjectConfiguration(project_dir=str(args.output_dir), logging_dir=str(args.output_dir / "logs"))
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other
        mixed_precision=args.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=args.report_to if args.with_tracking else None,
        project_config=logs,
        # ST-Adapter's last adapter under CLS read-out, and parts of a fully trained model, get no gradient
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=args.tuner == "full" or "st_adapter" in args.tuner)
        ],
    )
    check_distribution(accelerator, args)
    args.mixed_precision = accelerator.mixed_precision
    set_seed(args.seed)

    # data
    videos = videos_from_args(args)
    names = check_labels(args, videos)
    args.num_labels = len(names)
    if args.shots_per_class:
        videos["train"] = few_shot(videos["train"], args.shots_per_class, args.seed)
    preprocessing = preprocessing_from_pretrained(args.model_name_or_path)
    train_loader, eval_loader = build_loaders(args, *build_clips(args, videos, preprocessing), accelerator)

    # model, optimiser, schedule
    model = build_model(args, names)
    model_cost = cost(model, (1, args.num_frames, 3, preprocessing.size, preprocessing.size))
    frozen_weights = frozen_fingerprint(model)
    optimizer = build_optimizer(args, model)
    epochs_in_batches = args.num_train_epochs * len(train_loader)
    args.max_train_steps = args.max_train_steps or max(1, epochs_in_batches // args.gradient_accumulation_steps)
    num_warmup_steps = int(args.num_warmup_steps * (args.max_train_steps if args.num_warmup_steps < 1 else 1))
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps, args.max_train_steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    ema = ExponentialMovingAverage(model, args.ema_decay) if args.ema_decay else None
    set_seed(args.seed, device_specific=True)  # dropout differs between processes

    # where the run stands: what it is, and what it has to go on from
    batch_size = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    configuration = run_configuration(args, names, batch_size, frozen_weights, videos["train"])
    checkpoints = CheckpointFolder(args.output_dir, configuration, args.checkpoints_total_limit)
    state = TrainingState(
        accelerator.unwrap_model(model), optimizer.optimizer, scheduler, train_loader, ema, accelerator.scaler
    )
    step = resume(args, accelerator, checkpoints, state)
    simple = {key: value for key, value in configuration.items() if isinstance(value, str | int | float)}
    accelerator.init_trackers("run_video_cls", simple)
    accelerator.print(
        f"{args.tuner}: {model_cost} per clip of {args.num_frames}x{preprocessing.size}x{preprocessing.size}\n"
        f"{len(train_loader.clips)} videos to train on, {len(eval_loader.clips)} to validate, {len(names)} classes; "
        f"{batch_size} clips per step, {args.max_train_steps} steps\n"
        f"evaluation: {eval_loader.clips.view_plan()}"
    )

    uploads = None
    if args.push_to_hub and accelerator.is_main_process:
        repository = args.hub_model_id or args.output_dir.absolute().name
        uploads = CheckpointUploads(repository, private=args.hub_private_repo, token=args.hub_token)

    averaged = ema.applied if ema else contextlib.nullcontext

    def evaluate():
        with averaged():
            predictions = predict(accelerator, model, eval_loader, args.per_device_eval_batch_size)
        if predictions:
            metrics = predictions.metrics()
            accelerator.log({f"eval_{key}": value for key, value in metrics.items()}, step=step)
            accelerator.print(f"step {step}: top-1 {100 * metrics['accuracy']:.1f} %")
        return predictions

    is_main = accelerator.is_local_main_process
    progress = tqdm(total=args.max_train_steps, initial=step, desc="train", unit="step", disable=not is_main)
    meter = Meter(accelerator)
    saved_epoch = train_loader.state_dict()["epoch"]
    while step < args.max_train_steps:
        model.train()
        epoch = train_loader.epoch
        for batch in meter.waiting(train_loader):
            with accelerator.accumulate(model):
                loss = batch_loss(args, model, batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.max_grad_norm:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(loss, len(batch["labels"]))
            if not accelerator.sync_gradients:
                continue
            step += 1
            if not accelerator.optimizer_step_was_skipped:  # as after an overflow in fp16
                scheduler.step()
                if ema:
                    ema.update()
            progress.update()
            is_last = step == args.max_train_steps
            if step % args.logging_steps == 0 or is_last:
                values = meter.read() | {"learning_rate": scheduler.get_last_lr()[0], "epoch": epoch}
                progress.set_postfix({key: f"{value:.3g}" for key, value in values.items()})
                accelerator.log(values, step=step)
            every, now = args.checkpointing_steps, train_loader.state_dict()["epoch"]
            # with accumulation an epoch may end between two steps: the next one saves
            if every != "no" and (is_last or (now > saved_epoch if every == "epoch" else step % int(every) == 0)):
                save_checkpoint(accelerator, checkpoints, state, step, uploads)
                saved_epoch = now
            if is_last:
                break
            if args.eval_steps and step % args.eval_steps == 0:
                evaluate()
    progress.close()

    predictions = evaluate()
    folder = result_folder(args)
    trained = accelerator.unwrap_model(model)
    with averaged():
        weights = accelerator.get_state_dict(model)  # gathered where it is sharded
        if accelerator.is_main_process:
            trained.save_pretrained(folder, state_dict=weights)
    if accelerator.is_main_process:
        preprocessing.image_processor().save_pretrained(folder)
        write_configuration(folder, args, configuration)
        results = {"step": step, **dataclasses.asdict(model_cost)}
        write_results(args, predictions, eval_loader, names, results)
        options = resolved_options(args) | {"batch_size": batch_size}
        facts = card_facts(args, predictions, train_loader, eval_loader, options, model_cost)
        is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if isinstance(trained, PeftModel) and not is_sharded and len(predictions.ids_N):
            clip = eval_loader.clips[int(predictions.ids_N[0])]["pixel_values"]  # (T, C, h, w), or views of that
            facts.merge_error = merge_difference(trained, clip[None] if clip.ndim == 4 else clip)
        write_card(trained, folder, facts, uploads.repo_id if uploads else None)
        if uploads:
            uploads.wait()
            push_folder(folder, uploads.repo_id, token=args.hub_token)
    accelerator.wait_for_everyone()  # the first process still writes
    accelerator.end_training()


# -------------------------------------------------------------------------------------------------- the results


def result_folder(args: argparse.Namespace) -> Path:
    return args.output_dir / ("model" if args.tuner in ("linear_probe", "full") else "adapter")


def resolved_options(args: argparse.Namespace) -> dict:
    """Every option as it was used, in the form that `--config` takes, without the places of this machine."""
    options = {key: plain(value) for key, value in vars(args).items() if key not in HERE}
    names = {"model_name_or_path": base_name(args.model_name_or_path), "dataset_name": hub_name(args.dataset_name)}
    return options | names


def write_configuration(folder: Path, args: argparse.Namespace, configuration: dict) -> None:
    """Beside the weights: the options, for another run, and what they came to in this one."""
    (folder / "training_config.yaml").write_text(yaml.safe_dump(resolved_options(args)))
    (folder / "run.json").write_text(json.dumps(configuration, indent=2) + "\n")


def write_results(args, predictions, eval_loader: ClipLoader, names: list[str], facts: dict) -> None:
    """`all_results.json`, the table of predictions and the picture of the confusion matrix."""
    videos = [eval_loader.clips.name(i) for i in range(len(eval_loader.clips))]
    write_predictions(args.output_dir / "predictions.csv", predictions, videos, names)
    counts = confusion_matrix(predictions, len(names))
    draw_confusion_matrix(counts, names).save(args.output_dir / "confusion_matrix.png")
    metrics = {f"eval_{key}": value for key, value in predictions.metrics().items()}
    results = {"tuner": args.tuner, **metrics, "eval_failures": len(videos) - metrics["eval_num_videos"], **facts}
    write_atomically(args.output_dir / "all_results.json", json.dumps(results, indent=2) + "\n")


def card_facts(
    args, predictions, train_loader: ClipLoader, eval_loader: ClipLoader, options: dict, model_cost: Cost
) -> CardFacts:
    """What the card says about this training."""
    metrics = predictions.metrics()
    num_eval_videos = len(eval_loader.clips)
    files = [train_loader.clips.name(i) for i in range(len(train_loader.clips))]
    return CardFacts(
        method=args.tuner,
        dataset=args.dataset_name and base_name(args.dataset_name),
        dataset_id=hub_name(args.dataset_name),
        fingerprint=dataset_fingerprint(files),
        trained_parameters=model_cost.trainable_parameters,
        cost=model_cost,
        num_train_videos=len(files),
        num_eval_videos=num_eval_videos,
        failures=num_eval_videos - metrics.pop("num_videos") + train_loader.num_bad_videos(),
        metrics=metrics,
        view_protocol=f"{args.eval_views} (clips x crops) of {args.num_frames} frames",
        arguments=options,
        measure_latency=args.push_to_hub,
    )


def plain(value):
    """For json and yaml."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def base_name(model_name_or_path: str) -> str:
    """A Hub id, or the name of a folder without the places of this machine."""
    return hub_name(model_name_or_path) or Path(model_name_or_path).name


def dry_run(args: argparse.Namespace) -> list[str]:
    """What the options come to, line by line: the model in its full size, but without memory."""
    if not args.num_labels:
        raise SystemExit("--dry_run needs --num_labels, the number of classes")
    model = build_model(args, [str(i) for i in range(args.num_labels)])
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


if __name__ == "__main__":
    main()
