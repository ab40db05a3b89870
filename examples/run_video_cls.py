"""Train a video classifier from an image model.

    accelerate launch examples/run_video_cls.py --model_name_or_path openai/clip-vit-base-patch16 \
        --train_dir data/train --validation_dir data/validation --tuner zeroi2v --num_frames 8 --output_dir runs/first
    accelerate launch examples/run_video_cls.py --config zeroi2v_b16_k400 \
        --train_file k400/train.csv --validation_file k400/val.csv --output_dir runs/k400

Where hf_i2v is installed, `accelerate launch -m hf_i2v.train` is this script. Started again after it was stopped, in
whatever way, the same command goes on from the last checkpoint. `--output_dir` gets the checkpoints, the adapter
(`adapter/`) or model (`model/`) with its image processor and resolved configuration, `predictions.csv`,
`confusion_matrix.png` and `all_results.json`. See docs/training.md.
"""

import argparse
import contextlib
import dataclasses
import logging
import math
import os
import re
import time
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
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoConfig, get_scheduler

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification
from hf_i2v.architectures import video_config
from hf_i2v.cards import CardFacts, dataset_fingerprint, write_card
from hf_i2v.configuration_i2v import hub_name
from hf_i2v.cost import Cost, cost
from hf_i2v.data import (
    ClipLoader,
    Mix,
    ReadLimits,
    VideoClips,
    add_data_arguments,
    default_num_workers,
    eval_transform,
    preprocessing_from_pretrained,
    train_transform,
    videos_fingerprint,
)
from hf_i2v.feature_cache import FeatureCache
from hf_i2v.hub import CheckpointUploads, push_folder
from hf_i2v.merging import merge_difference
from hf_i2v.options import (
    default_learning_rate,
    default_temporal_embedding_learning_rate,
    tuner_config,
    tuner_options,
)
from hf_i2v.probe_sweep import VJEPA2, probe_sweep, sweep_settings, write_table
from hf_i2v.training.best import Evaluations
from hf_i2v.training.checkpoints import CheckpointFolder
from hf_i2v.training.command import interrupts_explained, run_as_command
from hf_i2v.training.distribution import check_distribution
from hf_i2v.training.evaluation import predict
from hf_i2v.training.finite import FiniteCheck
from hf_i2v.training.meter import Meter
from hf_i2v.training.options import RunOptions, json_pairs, positive
from hf_i2v.training.plan import memory_plan, plan
from hf_i2v.training.results import claim, last_words, read_json, write_json, write_results
from hf_i2v.training.state import (
    ExponentialMovingAverage,
    TrainingState,
    frozen_fingerprint,
    trained_parameters,
)
from hf_i2v.training.videos import videos_of_run

logger = logging.getLogger(__name__)

# --------------------------------------------------------------------------------------------------- the options
# fixed: makes the run what it is. free: may have another value when the run goes on. here: free, and not saved.

OPTIONS = RunOptions(description=__doc__.split("\n\n")[0], recipes=Path(__file__).parent / "recipes")
fixed, free, here = OPTIONS.fixed, OPTIONS.free, OPTIONS.here
switch = {"action": argparse.BooleanOptionalAction, "default": False}
# Of a new classifier. The first loss is near ln K, also on DINOv2, whose features have a norm of 40. With weights of
# zero an adapter would get no gradient until the head has found a direction, which takes hundreds of clips.
HEAD_STD = 0.005
SCHEDULES = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
SCHEDULES += ["inverse_sqrt"]  # those of transformers that need no more than the numbers of steps

here("--config", type=Path, help="yaml file with any of these options, or the name of a recipe; the command line wins")
here("--dry_run", **switch, help="resolve everything, build the model without memory, print the numbers and stop")
here("--evaluate_only", **switch, help="evaluate what this command has trained, and train no further")
here("--debug", **switch, help="show where an error comes from")

# the model
free("--model_name_or_path", required=True, help="image checkpoint or finished video model: folder or Hub id")
free("--allow_random_base", **switch, help="accept a checkpoint that leaves backbone weights random")
fixed("--tuner", default="zeroi2v", help=f"linear_probe, full, or some of lora, {', '.join(METHODS)}, joined by +")
pairs = "options of the tuner; they add to those of --config, if that is for the same tuner"
fixed("--tuner_config", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help=pairs)
fixed("--num_frames", type=positive, default=8, help="frames per clip")
fixed("--num_labels", type=positive, help="classes that the data set must have; needed for --dry_run without data")
fixed("--classifier_dropout", type=float, default=0.5, help="probability, before the classifier")
free("--gradient_checkpointing", **switch, help="less memory, about a third slower")

# the data; a run goes on with the same videos and labels only, wherever they lie
add_data_arguments(OPTIONS)
OPTIONS.are_here(
    "train_dir", "validation_dir", "train_file", "validation_file", "video_dir", "class_names_file", "exclude"
)
free("--validation_split", type=float, help="hold this share of each class out for validation, drawn with --seed")
fixed("--shots_per_class", type=positive, help="train on this many videos of each class, drawn with --seed")
fixed("--sampling", choices=["uniform", "dense"], default="uniform", help="over the whole video, or neighbours")
fixed("--frame_stride", type=positive, default=1, help="distance of a clip's frames in dense sampling")
policies = ["repeat_last", "wrap", "error"]
fixed("--short_video_policy", choices=policies, default="repeat_last", help="where a video is shorter than a clip")
fixed("--crop_scale", type=float, nargs=2, default=(0.5, 1.0), help="share of the frame that a training crop covers")
fixed("--short_side", type=int, nargs=2, help="jitter of the short side in pixels, in place of --crop_scale")
fixed("--flip", type=float, default=0.0, help="probability of mirroring a training clip")
fixed("--flip_labels", type=json_pairs, help="{class: class that it becomes when mirrored}: a json file, or json")
fixed("--color_jitter", type=float, default=0.0, help="of brightness, contrast and saturation; 0.4 is usual")
fixed("--rand_augment", type=float, nargs=2, metavar=("OPERATIONS", "MAGNITUDE"), help="per clip; 2 9 is usual")
fixed("--random_erasing", type=float, default=0.0, help="probability")
fixed("--mixup_alpha", type=float, default=0.0, help="0: no mixup")
fixed("--cutmix_alpha", type=float, default=0.0, help="0: no cutmix; with both, each batch gets one of them")
fixed("--shuffle_buffer_size", type=int, help="keep the shuffling local to this many videos; for parquet shards")
free("--video_timeout", type=float, default=300.0, help="seconds; a video that takes longer to read is a bad one")
free("--on_bad_video", choices=["error", "skip", "substitute"], help="default: substitute, in evaluation skip")
free("--max_bad_fraction", type=float, default=0.01, help="stop above this share of unreadable videos,")
free("--min_bad_videos", type=positive, default=5, help="but never below so many; all are listed in bad_videos.jsonl")
here("--dataloader_num_workers", type=int, help="processes that decode; default: 0 on a CPU, else docs/training.md")
here("--dataloader_prefetch_factor", type=positive, help="batches that each of them makes in advance; default: 2")

# training without the frozen part of the model: probes, M-adapter, and adapters of the last blocks only
here("--cache_features", type=Path, help="keep what the frozen part gives in this folder, and train from there")
fixed("--cache_views", type=positive, help="augmented copies of each clip to keep; epochs take turns. Default: 1")
free("--cache_dtype", choices=["float32", "bfloat16", "float16"], default="float16", help="of what is kept")
free("--cache_limit", type=float, help="GB of disk that the cache may take")
pairs = "try a probe with all pairs of RATES x DECAYS in one pass over the cache; without a value those of V-JEPA 2"
fixed("--probe_sweep", nargs="?", const=VJEPA2, metavar="1e-3,1e-4x0.01,0.1", help=pairs)
fixed("--sweep_held_out", type=float, default=0.1, help="share of the training videos that the best pair is chosen on")

# the optimisation; a step has per_device_train_batch_size x processes x gradient_accumulation_steps clips
free("--per_device_train_batch_size", type=positive, default=8, help="clips")
free("--gradient_accumulation_steps", type=positive, default=1, help="batches of a step")
fixed("--learning_rate", type=float, help="the highest, after warming up; default: the tuner's own, docs/training.md")
fixed("--head_learning_rate", type=float, help="of the classifier; default --learning_rate")
where = "of what tells a frame's place in the clip; default --learning_rate, or without one the tuner's own"
fixed("--temporal_embedding_learning_rate", type=float, help=where)
fixed("--weight_decay", type=float, default=0.05, help="of matrices; biases, norms and embeddings have none")
fixed("--adam_beta2", type=float, default=0.999, help="of AdamW")
fixed("--max_grad_norm", type=float, help="clip the gradient's norm")
fixed("--label_smoothing", type=float, default=0.0, help="share of the target given to all classes alike")
fixed("--ema_decay", type=float, help="evaluate and save an exponential moving average of the trained weights")
free("--num_train_epochs", type=positive, default=10, help="passes over the training videos")
free("--max_train_steps", type=positive, help="overrides --num_train_epochs")
fixed("--lr_scheduler_type", default="cosine", choices=SCHEDULES, help="transformers' schedules")
fixed("--num_warmup_steps", type=float, default=0.0, help="below 1: a share of all steps")
fixed("--mixed_precision", choices=["no", "fp16", "bf16"], help="default: as accelerate is configured")
fixed("--seed", type=int, default=0, help="of everything that is drawn")

# the evaluation
free("--per_device_eval_batch_size", type=positive, default=8, help="clips that go through the model at once")
free("--eval_views", default="1x1", help="clips x crops of each video: 3x1, 1x3, …")
free("--eval_steps", type=positive, help="evaluate every so many steps, and not at the end only")
fixed("--load_best_model_at_end", **switch, help="the result is the best evaluated step, by top-1, and not the last")
fixed("--early_stopping_patience", type=positive, help="stop after so many evaluations that were no better")

# the result
here("--output_dir", type=Path, required=True, help="the same folder and command go on where a run stopped")
free("--checkpointing_steps", default="epoch", help="a number of steps, 'epoch', or 'no'")
free("--checkpoints_total_limit", type=positive, default=2, help="checkpoints to keep")
here("--resume_from_checkpoint", type=Path, help="start from this one, as long as --output_dir has none of its own")
free("--logging_steps", type=positive, default=10, help="steps between two lines of the log")
free("--with_tracking", **switch, help="log to --report_to")
free("--report_to", default="tensorboard", help="any tracker of accelerate, or all")
here("--push_to_hub", **switch, help="upload checkpoints while training, and the result with its card")
here("--hub_model_id", help="user/name on the Hub; default: the name of --output_dir")
here("--hub_token", help="default: that of `hf auth login`")
here("--hub_private_repo", **switch, help="if the repository is new")
here(
    "--license", help='of the weights, for the card, such as "apache-2.0"; default: the base model\'s, if the Hub says'
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    args = OPTIONS.parse(argv)
    args.tuner_config = list({pair.partition("=")[0]: pair for pair in args.tuner_config}.values())  # the last counts
    if args.tuner in ("full", "linear_probe") and args.tuner_config:
        OPTIONS.error(f"--tuner {args.tuner} has no options, but --tuner_config is {' '.join(args.tuner_config)}")
    if not args.learning_rate:
        args.learning_rate = default_learning_rate(args.tuner)
        args.temporal_embedding_learning_rate = (
            args.temporal_embedding_learning_rate or default_temporal_embedding_learning_rate(args.tuner)
        )
    if (args.load_best_model_at_end or args.early_stopping_patience) and not args.eval_steps:
        OPTIONS.error("--load_best_model_at_end and --early_stopping_patience need --eval_steps, how often to look")
    if args.ema_decay is not None and not 0 < args.ema_decay < 1:
        OPTIONS.error(f"--ema_decay ({args.ema_decay}) must lie between 0 and 1")
    if args.streaming and not args.max_train_steps:
        OPTIONS.error("--streaming needs --max_train_steps: the length of an epoch of a stream is not known")
    if args.cache_features:
        args.cache_views = args.cache_views or 1
        if args.mixup_alpha or args.cutmix_alpha:
            OPTIONS.error("--cache_features keeps no pixels, so --mixup_alpha and --cutmix_alpha cannot mix them")
    elif args.cache_views or args.probe_sweep:
        OPTIONS.error("--cache_views and --probe_sweep need --cache_features, a folder")
    if args.probe_sweep:
        try:
            sweep_settings(args.probe_sweep)
        except ValueError as error:
            OPTIONS.error(f"--probe_sweep {error}")
    if not re.fullmatch(r"epoch|no|[1-9]\d*", args.checkpointing_steps):
        OPTIONS.error(f"--checkpointing_steps ({args.checkpointing_steps}) is a number of steps, 'epoch' or 'no'")
    if not re.fullmatch(r"[1-9]\d*x[13]", args.eval_views):
        OPTIONS.error(f"--eval_views ({args.eval_views}) is clips x crops with 1 or 3 crops, such as 3x1")
    return args


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
    if AutoConfig.from_pretrained(name).model_type == I2VConfig.model_type:  # a finished one, for other classes
        model = I2VForVideoClassification.from_pretrained(name, ignore_mismatched_sizes=True, **options)
    else:
        model = I2VForVideoClassification.from_image_model(name, allow_random_base=args.allow_random_base, **options)
        nn.init.normal_(model.classifier.weight, std=HEAD_STD)
    return attach_tuner(args, model)


def attach_tuner(args: argparse.Namespace, model: I2VForVideoClassification) -> nn.Module:
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.tuner == "full":
        return model.requires_grad_(True)
    if args.tuner == "linear_probe":
        model.i2v.requires_grad_(False)
        return model
    if "lora" not in args.tuner.split("+"):
        return get_peft_model(model, tuner_config(args.tuner, args.tuner_config))
    options = tuner_options(args.tuner, METHODS | {"lora": LoraConfig}, args.tuner_config)
    lora = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], **options.pop("lora")}
    for name, values in options.items():  # LoRA is peft's own: another method must become a part of the model first
        if name not in METHODS:
            raise SystemExit(f"--tuner {args.tuner}: {name!r} is not among lora, {', '.join(METHODS)}")
        adapted = get_peft_model(model, METHODS[name](**values))
        if any(p.requires_grad and "modules_to_save" not in n for n, p in adapted.named_parameters()):
            raise SystemExit(f"--tuner {args.tuner}: lora goes alone, or with methods without weights, as stdha+lora")
        model = adapted.merge_and_unload() if adapted.active_peft_config.merges else adapted.base_model.bake()
    return get_peft_model(model, LoraConfig(**lora))


def may_lack_gradients(model: nn.Module) -> bool:
    """Whether parameters that are trained may get no gradient, which DDP has to know."""
    if isinstance(model, PeftModel):
        return getattr(model.active_peft_config, "unused_parameters", False)
    return all(p.requires_grad for p in model.parameters())  # trained in full, such as parts that the head never reads


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases, norms and embeddings without decay, the head and the temporal embedding with their own rates."""
    groups = {}
    own_rates = {"classifier": args.head_learning_rate, ".i2v_embedding": args.temporal_embedding_learning_rate}
    for name, parameter in trained_parameters(model).items():
        rate = next((rate for part, rate in own_rates.items() if rate and part in name), args.learning_rate)
        is_embedding = re.search(r"\.temporal\.|temporal_embedding|position_embedding|class_embedding|cls_token", name)
        decay = 0.0 if parameter.ndim < 2 or is_embedding else args.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, args.adam_beta2))


# ----------------------------------------------------------------------------------------------------- the data


def build_clips(args: argparse.Namespace, videos, preprocessing) -> tuple[VideoClips, VideoClips]:
    """Clips for training and evaluation: file → frames → clip."""
    pixels = dataclasses.asdict(preprocessing)
    num_clips, num_crops = map(int, args.eval_views.split("x"))
    sampling = {
        "num_frames": args.num_frames,
        "frame_stride": args.frame_stride if args.sampling == "dense" else None,
        "policy": args.short_video_policy,
        "limits": ReadLimits(seconds=args.video_timeout),
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


def cached_clips(args: argparse.Namespace, model: nn.Module, clips: VideoClips, accelerator: Accelerator):
    """What the frozen part of the model makes of the training clips, from disk; the processes share the making."""
    model.to(accelerator.device)
    with accelerator.autocast():
        return FeatureCache.build(
            args.cache_features,
            model,
            clips,
            batch_size=args.per_device_train_batch_size,
            num_workers=args.dataloader_num_workers,
            dtype=args.cache_dtype,
            views=args.cache_views,
            limit_bytes=args.cache_limit and int(args.cache_limit * 1e9),
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
        )


def build_loaders(args: argparse.Namespace, train_clips, eval_clips: VideoClips, accelerator: Accelerator):
    """Batches of the clips for this process; those to train on may be a cache."""
    common = {
        "num_workers": args.dataloader_num_workers,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
        "on_bad_video": args.on_bad_video,
        "max_bad_fraction": args.max_bad_fraction,
        "min_bad_videos": args.min_bad_videos,
        "bad_videos_file": args.output_dir / "bad_videos.jsonl",
        "prefetch_factor": args.dataloader_prefetch_factor,
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


# ------------------------------------------------------------------------------------------------------ the loop


def batch_loss(args: argparse.Namespace, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss of a batch; clips that stand for an unreadable video count nothing."""
    inputs = {name: batch[name] for name in ("pixel_values", "frozen_features") if name in batch}
    logits = model(**inputs).logits.float()
    loss_B = F.cross_entropy(logits, batch["labels"], label_smoothing=args.label_smoothing, reduction="none")
    return (loss_B * ~batch["is_padding"]).mean()


def sweep(args: argparse.Namespace, model: nn.Module, cache: FeatureCache, accelerator: Accelerator) -> None:
    """Train many heads in one pass, give the model the best, and write the table of all."""
    if accelerator.num_processes > 1:
        raise ValueError("--probe_sweep runs in one process. The cache may be made by several: leave it out for that.")
    results = probe_sweep(
        model,
        cache,
        sweep_settings(args.probe_sweep),
        num_epochs=args.num_train_epochs,
        batch_size=args.per_device_train_batch_size,
        held_out=args.sweep_held_out,
        label_smoothing=args.label_smoothing,
        seed=args.seed,
        num_workers=args.dataloader_num_workers,
    )
    write_table(args.output_dir / "probe_sweep.csv", results)
    best = next(result for result in results if result.best)
    print(
        f"the best of {len(results)} heads: learning rate {best.learning_rate:g}, weight decay {best.weight_decay:g}, "
        f"top-1 {100 * best.held_out_accuracy:.1f} % on the held-out part; all are in probe_sweep.csv"
    )


def resume(args, accelerator: Accelerator, checkpoints: CheckpointFolder, state: TrainingState) -> int:
    """Go on from the last checkpoint of the output folder, if there is one."""
    checkpoint = None
    if accelerator.is_main_process:
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
    """What makes a run what it is; it goes on only with the same. Listed bad videos may be repaired or left out."""
    record, before = args.output_dir / "run.json", None
    if record.exists():
        before = read_json(record, "It says which run the folder holds").get("training_videos")
    bad_videos = [args.output_dir / "bad_videos.jsonl", *([args.exclude] if args.exclude else [])]
    facts = {"batch_size": batch_size, "labels": names, "frozen_weights": frozen_weights}
    facts["training_videos"] = videos_fingerprint(train_videos, before=before, bad_videos=bad_videos)
    return OPTIONS.identity(args) | facts


def save_checkpoint(accelerator, checkpoints, state: TrainingState, step: int, uploads: CheckpointUploads | None):
    weights, values = state.collect()
    if accelerator.is_main_process:
        path = checkpoints.save(step, weights, values, spare=uploads and uploads.under_way)
        if uploads:
            uploads.start(path, f"step {step}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.dry_run:
        if not args.num_labels:
            raise SystemExit("--dry_run needs --num_labels, the number of classes")
        print("\n".join(plan(build_model(args, [str(i) for i in range(args.num_labels)]), args)))
        return
    ddp = DistributedDataParallelKwargs()
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other
        mixed_precision=args.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=args.report_to if args.with_tracking else None,
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / "logs")),
        kwargs_handlers=[ddp],
    )
    check_distribution(accelerator, args)
    args.mixed_precision = accelerator.mixed_precision
    set_seed(args.seed)

    # data
    videos, names = videos_of_run(args)
    args.num_labels = len(names)
    preprocessing = preprocessing_from_pretrained(args.model_name_or_path)
    train_clips, eval_clips = build_clips(args, videos, preprocessing)
    if args.dataloader_num_workers is None:
        clips = max(args.per_device_train_batch_size, args.per_device_eval_batch_size)
        args.dataloader_num_workers = default_num_workers(
            accelerator.device.type,
            batch_bytes=clips * args.num_frames * 3 * preprocessing.size**2,
            processes=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
        )

    # model, optimiser, schedule
    model = build_model(args, names)
    if args.evaluate_only:
        load_result(model, result_folder(args))
    elif args.cache_features:
        train_clips = cached_clips(args, model, train_clips, accelerator)
    train_loader, eval_loader = build_loaders(args, train_clips, eval_clips, accelerator)
    clip_shape = (args.num_frames, 3, preprocessing.size, preprocessing.size)
    model_cost = cost(model, (1, *clip_shape))
    if accelerator.is_main_process and not (args.evaluate_only or args.cache_features):
        batch = (args.per_device_train_batch_size, *clip_shape)
        print(memory_plan(model, batch, mixed_precision=args.mixed_precision, device=accelerator.device))
    frozen_weights = frozen_fingerprint(model)
    optimizer = build_optimizer(args, model)
    epochs_in_batches = args.num_train_epochs * len(train_loader)
    args.max_train_steps = args.max_train_steps or max(1, epochs_in_batches // args.gradient_accumulation_steps)
    num_warmup_steps = int(args.num_warmup_steps * (args.max_train_steps if args.num_warmup_steps < 1 else 1))
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps, args.max_train_steps)
    ddp.find_unused_parameters = may_lack_gradients(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    trained = accelerator.unwrap_model(model)
    ema = ExponentialMovingAverage(model, args.ema_decay) if args.ema_decay else None
    averaged = ema.applied if ema and not args.evaluate_only else contextlib.nullcontext
    set_seed(args.seed, device_specific=True)  # dropout differs between processes

    # what the run is, and where it stands
    batch_size = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    configuration = run_configuration(args, names, batch_size, frozen_weights, videos["train"])
    if accelerator.is_main_process:
        claim(args.output_dir, configuration, OPTIONS.differences)
    checkpoints = CheckpointFolder(
        args.output_dir, configuration, args.checkpoints_total_limit, differences=OPTIONS.differences
    )
    meter = Meter(accelerator)
    state = TrainingState(trained, optimizer.optimizer, scheduler, train_loader, ema, accelerator.scaler, meter)
    nothing_to_train = args.evaluate_only or args.probe_sweep
    first = step = args.max_train_steps if nothing_to_train else resume(args, accelerator, checkpoints, state)
    options = resolved_options(args) | {"batch_size": batch_size}
    accelerator.init_trackers("run_video_cls", {k: v for k, v in options.items() if isinstance(v, str | int | float)})
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

    def evaluate():
        with averaged(), meter.paused():
            predictions = predict(accelerator, model, eval_loader, args.per_device_eval_batch_size)
        if predictions:
            metrics = predictions.metrics()
            accelerator.log({f"eval_{key}": value for key, value in metrics.items()}, step=step)
        return predictions

    def evaluate_on_the_way() -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        predictions = evaluate()
        with averaged():
            weights = accelerator.get_state_dict(model) if args.load_best_model_at_end else None
            if predictions:
                values = {"accuracy": predictions.metrics()["accuracy"], "loss": predictions.loss()}
                accelerator.print(f"step {step}: top-1 {100 * values['accuracy']:.1f} %")
                is_best = evaluations.add(step, **values, train_loss=meter.total["loss"])
                if is_best and args.load_best_model_at_end:
                    trained.save_pretrained(evaluations.weights(step), state_dict=weights)
                    evaluations.forget_worse(max(checkpoints.steps(), default=step))
                for warning in filter(None, (evaluations.drift(), predictions.alike())):
                    logger.warning(warning)

    def early_stop() -> bool:
        patience = args.early_stopping_patience
        return patience and broadcast_object_list([evaluations.without_progress() >= patience])[0]

    # training
    if args.probe_sweep and not args.evaluate_only:
        sweep(args, trained, train_clips, accelerator)
    evaluations = Evaluations(args.output_dir, step)
    is_due = args.eval_steps and 0 < step < args.max_train_steps and step % args.eval_steps == 0
    if is_due and not broadcast_object_list([evaluations.has(step)])[0]:  # it was stopped before it could
        evaluate_on_the_way()
    check = FiniteCheck(trained_parameters(trained).values())
    bar = {"total": args.max_train_steps, "initial": step, "desc": "train", "unit": "step"}
    bar["disable"] = nothing_to_train or not accelerator.is_local_main_process
    saved_epoch = train_loader.state_dict()["epoch"]
    with interrupts_explained(checkpoints), tqdm(**bar) as progress:
        while step < args.max_train_steps and not early_stop():
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
                skipped = accelerator.optimizer_step_was_skipped  # as after an overflow in fp16
                check.after_step(step, loss, skipped)
                if not skipped:
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
                    check.now()
                    save_checkpoint(accelerator, checkpoints, state, step, uploads)
                    saved_epoch = now
                if is_last:
                    break
                if args.eval_steps and step % args.eval_steps == 0:
                    evaluate_on_the_way()
                    if early_stop():
                        break

    # the result: what was trained first, so that nothing that follows can lose it
    folder = result_folder(args)
    if args.load_best_model_at_end and not nothing_to_train:
        if not broadcast_object_list([evaluations.has(step)])[0]:
            evaluate_on_the_way()
        (best,) = broadcast_object_list([evaluations.best()])
        load_result(trained, evaluations.weights(best["step"]))
        averaged = contextlib.nullcontext  # they are averages already
        accelerator.print(f"the best step is {best['step']}: top-1 {100 * best['eval_accuracy']:.1f} %")
    if not args.evaluate_only:
        check.now()
        with averaged():
            weights = accelerator.get_state_dict(model)  # gathered where it is sharded
            if accelerator.is_main_process:
                trained.save_pretrained(folder, state_dict=weights)
        if accelerator.is_main_process:
            preprocessing.image_processor().save_pretrained(folder)
            write_configuration(folder, args, configuration)
            if step > first or not (args.output_dir / "train_results.json").exists():
                write_json(args.output_dir / "train_results.json", {"step": step, **meter.results()})
    began = time.perf_counter()
    try:
        predictions = evaluate()
    except Exception as error:
        error.add_note(f"Trained weights are in {folder}. The same command with --evaluate_only evaluates them again.")
        raise
    if accelerator.is_main_process:
        trained_so_far = read_json(args.output_dir / "train_results.json", "It holds the results of the training")
        facts = {"tuner": args.tuner, "num_labels": len(names), **trained_so_far, **dataclasses.asdict(model_cost)}
        facts["eval_runtime"] = round(time.perf_counter() - began, 3)
        evaluated = [eval_loader.clips.name(i) for i in range(len(eval_loader.clips))]
        results = write_results(args.output_dir, predictions, evaluated, names, facts)
        facts = card_facts(args, predictions, train_loader, eval_loader, options, model_cost)
        is_sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if isinstance(trained, PeftModel) and not is_sharded and len(predictions.ids_N):
            clip = eval_loader.clips[int(predictions.ids_N[0])]["pixel_values"]  # (T, C, h, w), or views of that
            facts.merge_error = merge_difference(trained, clip[None] if clip.ndim == 4 else clip)
        write_card(trained, folder, facts, uploads.repo_id if uploads else None)
        if uploads:
            uploads.wait()
            push_folder(folder, uploads.repo_id, token=args.hub_token)
        print(last_words(args.output_dir, folder, results))
    accelerator.wait_for_everyone()  # the first process still writes
    accelerator.end_training()


# -------------------------------------------------------------------------------------------------- the results


def result_folder(args: argparse.Namespace) -> Path:
    return args.output_dir / ("model" if args.tuner in ("linear_probe", "full") else "adapter")


def load_result(model: nn.Module, folder: Path) -> None:
    """The weights that a training has left, for `--evaluate_only`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--evaluate_only: there is no {folder}. Train first, with the same command.")
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder)))
    else:
        model.load_state_dict(I2VForVideoClassification.from_pretrained(folder).state_dict())


def resolved_options(args: argparse.Namespace) -> dict:
    """Every option as it was used, in the form that `--config` takes, without the places of this machine."""
    names = {"model_name_or_path": base_name(args.model_name_or_path), "dataset_name": hub_name(args.dataset_name)}
    return OPTIONS.saved(args) | names


def write_configuration(folder: Path, args: argparse.Namespace, configuration: dict) -> None:
    """Beside the weights: the options, for another run, and what they came to in this one."""
    (folder / "training_config.yaml").write_text(yaml.safe_dump(resolved_options(args)))
    write_json(folder / "run.json", configuration)


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
        license=args.license,
        measure_latency=args.push_to_hub,
    )


def base_name(model_name_or_path: str) -> str:
    """A Hub id, or the name of a folder without the places of this machine."""
    return hub_name(model_name_or_path) or Path(model_name_or_path).name


if __name__ == "__main__":
    raise SystemExit(run_as_command(main))
