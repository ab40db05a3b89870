"""Train a video classifier from an image model, on folders of videos.

    accelerate launch examples/run_video_cls.py --model_name_or_path openai/clip-vit-base-patch16 \
        --train_dir data/train --validation_dir data/validation --tuner zeroi2v --num_frames 8 --output_dir runs/first

The folders hold one sub-folder of videos per class. `--output_dir` gets the adapter (`adapter/`, with peft's
`save_pretrained`), the image processor and the results (`all_results.json`).
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import get_peft_model
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import SchedulerType, get_scheduler

from hf_i2v import METHODS, I2VForVideoClassification, I2VTunerConfig
from hf_i2v.cost import cost
from hf_i2v.data import (
    VideoClips,
    collate,
    eval_transform,
    load_video_folder,
    preprocessing_from_pretrained,
    train_transform,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    # the model
    add("--model_name_or_path", required=True, help="image checkpoint, a folder or a Hub repository")
    add("--allow_random_base", action="store_true", help="accept a checkpoint that leaves backbone weights random")
    add(
        "--tuner",
        default="zeroi2v",
        help=f"linear_probe (the head only), or some of {', '.join(METHODS)}, joined by +",
    )
    add("--tuner_config", nargs="*", default=[], metavar="KEY=VALUE", help="options of the tuner's configuration")
    add("--num_frames", type=int, default=8, help="frames per clip")
    # the data
    add("--train_dir", required=True, help="folder with one sub-folder of videos per class")
    add("--validation_dir", required=True, help="the same for validation")
    add(
        "--flip",
        type=float,
        default=0.0,
        help="probability of mirroring a training clip; 0 where left and right matter",
    )
    add("--crop_scale", type=float, nargs=2, default=(0.5, 1.0), help="share of the frame that a training crop covers")
    add("--dataloader_num_workers", type=int, default=0, help="processes that decode")
    # the optimisation
    add("--per_device_train_batch_size", type=int, default=8, help="clips")
    add("--per_device_eval_batch_size", type=int, default=8, help="clips")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--learning_rate", type=float, default=1e-3)
    add("--weight_decay", type=float, default=0.05, help="of matrices; biases, norms and embeddings have none")
    add("--num_train_epochs", type=int, default=10)
    add("--max_train_steps", type=int, default=None, help="overrides --num_train_epochs")
    add("--lr_scheduler_type", type=SchedulerType, default="cosine", choices=list(SchedulerType))
    add("--num_warmup_steps", type=int, default=0)
    add("--classifier_dropout", type=float, default=0.5)
    add("--seed", type=int, default=0)
    # the result
    add("--output_dir", type=Path, required=True)
    return parser.parse_args(argv)


def tuner_config(tuner: str, pairs: list[str]) -> I2VTunerConfig:
    """`"st_adapter+inti"` and `["adapter_width=128", "insert_before=[3]"]` as a configuration; values are YAML.

    An option goes to every method of the tuner that has it.
    """
    names = tuner.split("+")
    if unknown := [name for name in names if name not in METHODS]:
        raise SystemExit(f"--tuner {tuner}: {unknown} is not among linear_probe, {', '.join(METHODS)}")
    options = {name: {} for name in names}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        takers = [name for name in names if key in {field.name for field in dataclasses.fields(METHODS[name])}]
        if not equals or not takers:
            raise SystemExit(f"--tuner_config takes KEY=VALUE with options of {tuner}, not {pair!r}")
        for name in takers:
            options[name][key] = yaml.safe_load(value)
    first, *others = [METHODS[name](**options[name]) for name in names]
    return sum(others, start=first)


def build_model(args: argparse.Namespace, names: list[str]) -> torch.nn.Module:
    """The image model as a video classifier, with the tuner attached."""
    model = I2VForVideoClassification.from_image_model(
        args.model_name_or_path,
        num_frames=args.num_frames,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        allow_random_base=args.allow_random_base,
        classifier_dropout=args.classifier_dropout,
    )
    if args.tuner == "linear_probe":
        model.i2v.requires_grad_(False)
        return model
    return get_peft_model(model, tuner_config(args.tuner, args.tuner_config))


def build_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    no_decay = [p for name, p in trained if p.ndim < 2 or "temporal_embedding" in name]
    decay = [p for name, p in trained if not (p.ndim < 2 or "temporal_embedding" in name)]
    groups = [{"params": decay, "weight_decay": args.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate)


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    """Top-1 accuracy; every video counts once, whatever the number of processes."""
    model.eval()
    right = total = 0
    for batch in tqdm(loader, desc="evaluate", unit="batch", disable=not accelerator.is_local_main_process):
        predicted = model(pixel_values=batch["pixel_values"]).logits.argmax(-1)
        predicted, labels = accelerator.gather_for_metrics((predicted, batch["labels"]))
        right += (predicted == labels).sum().item()
        total += len(labels)
    return right / total


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    set_seed(args.seed)

    # data: file → frames → clip
    videos = load_video_folder(args.train_dir, args.validation_dir)
    names = videos["train"].features["label"].names
    image_preprocessing = preprocessing_from_pretrained(args.model_name_or_path)
    preprocessing = dataclasses.asdict(image_preprocessing)
    train_clips = VideoClips(
        videos["train"],
        num_frames=args.num_frames,
        transform=train_transform(**preprocessing, flip=args.flip, scale=tuple(args.crop_scale)),
        train=True,
        seed=args.seed,
    )
    eval_clips = VideoClips(
        videos["validation"], num_frames=args.num_frames, transform=eval_transform(**preprocessing), train=False
    )
    workers = {"num_workers": args.dataloader_num_workers, "collate_fn": collate}
    train_loader = DataLoader(train_clips, batch_size=args.per_device_train_batch_size, shuffle=True, **workers)
    eval_loader = DataLoader(eval_clips, batch_size=args.per_device_eval_batch_size, **workers)

    # model and optimiser
    model = build_model(args, names)
    optimizer = build_optimizer(args, model)
    size = preprocessing["size"]
    model_cost = cost(model, (1, args.num_frames, 3, size, size))
    model, optimizer, train_loader, eval_loader = accelerator.prepare(model, optimizer, train_loader, eval_loader)
    steps_per_epoch = math.ceil(len(train_loader) / args.gradient_accumulation_steps)
    max_train_steps = args.max_train_steps or args.num_train_epochs * steps_per_epoch
    num_train_epochs = math.ceil(max_train_steps / steps_per_epoch)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.num_warmup_steps * accelerator.num_processes,
        num_training_steps=max_train_steps * accelerator.num_processes,
    )
    scheduler = accelerator.prepare(scheduler)

    batch_size = args.per_device_train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
    accelerator.print(
        f"{args.tuner}: {model_cost} per clip of {args.num_frames}x{size}x{size}\n"
        f"{len(train_clips)} videos to train on, {len(eval_clips)} to validate, {len(names)} classes; "
        f"{batch_size} clips per step, {max_train_steps} steps in {num_train_epochs} epochs"
    )

    progress = tqdm(total=max_train_steps, desc="train", unit="step", disable=not accelerator.is_local_main_process)
    for epoch in range(num_train_epochs):
        model.train()
        train_clips.set_epoch(epoch)
        for batch in train_loader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", epoch=epoch)
                if progress.n == max_train_steps:
                    break
    progress.close()
    top1 = evaluate(accelerator, model, eval_loader)
    accelerator.print(f"top-1 {100 * top1:.1f} %")

    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        folder = args.output_dir / ("model" if args.tuner == "linear_probe" else "adapter")
        model.save_pretrained(folder)
        image_preprocessing.image_processor().save_pretrained(folder)
        results = {"tuner": args.tuner, "eval_accuracy": top1, **dataclasses.asdict(model_cost)}
        (args.output_dir / "all_results.json").write_text(json.dumps(results, indent=2) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    main()
