"""The same training with `transformers.Trainer`, for those who have their callbacks and habits there.

    accelerate launch examples/run_video_cls_trainer.py --model_name_or_path openai/clip-vit-base-patch16 \
        --train_dir data/train --validation_dir data/validation --tuner zeroi2v --num_frames 8 --output_dir runs/first

Options, model, optimiser and clips are those of run_video_cls.py. What the Trainer does its own way: its checkpoints
(`--resume_from_checkpoint` takes one) read the data again up to where they were, the last incomplete batch of an epoch
is trained on, evaluation is of one view, an unreadable video stops it, and mixup, cutmix, the averaging of weights and
the Hub (where the Trainer would put its arguments in a pickle) are left to run_video_cls.py.
"""

import torch
from run_video_cls import (
    OPTIONS,
    build_clips,
    build_model,
    build_optimizer,
    parse_args,
    result_folder,
    run_configuration,
    write_configuration,
)
from transformers import EvalPrediction, Trainer, TrainingArguments, set_seed

from hf_i2v.data import collate, preprocessing_from_pretrained
from hf_i2v.training.command import run_as_command
from hf_i2v.training.metrics import VideoClassificationMetric
from hf_i2v.training.results import claim, last_words, write_json
from hf_i2v.training.state import frozen_fingerprint
from hf_i2v.training.videos import videos_of_run

NOT_HERE = {
    **{"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "ema_decay": None, "eval_views": "1x1", "dry_run": False},
    **{"cache_features": None, "cache_views": None, "probe_sweep": None},
    **{"shuffle_buffer_size": None, "max_bad_fraction": 0.01, "push_to_hub": False, "hub_model_id": None},
    **{"hub_token": None, "hub_private_repo": False, "evaluate_only": False, "min_bad_videos": 5},
    **{"load_best_model_at_end": False, "early_stopping_patience": None},
}


def training_arguments(args) -> TrainingArguments:
    checkpointing = {"save_strategy": args.checkpointing_steps}
    if args.checkpointing_steps.isdecimal():
        checkpointing = {"save_strategy": "steps", "save_steps": int(args.checkpointing_steps)}
    return TrainingArguments(
        output_dir=str(args.output_dir),
        per_device_train_batch_size=args.per_device_train_batch_size,
        per_device_eval_batch_size=args.per_device_eval_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_train_steps or -1,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.num_warmup_steps,
        max_grad_norm=args.max_grad_norm or 0.0,
        label_smoothing_factor=args.label_smoothing,
        bf16=args.mixed_precision == "bf16",
        fp16=args.mixed_precision == "fp16",
        eval_strategy="steps" if args.eval_steps else "no",
        eval_steps=args.eval_steps,
        logging_steps=args.logging_steps,
        report_to=args.report_to if args.with_tracking else "none",
        save_total_limit=args.checkpoints_total_limit,
        dataloader_num_workers=args.dataloader_num_workers or 0,
        remove_unused_columns=False,  # clips are no rows of a table
        label_names=["labels"],
        use_cpu=not torch.accelerator.is_available(),
        seed=args.seed,
        **({"save_strategy": "no"} if args.checkpointing_steps == "no" else checkpointing),
    )


def compute_metrics(outputs: EvalPrediction) -> dict[str, float]:
    logits = torch.from_numpy(outputs.predictions)
    return VideoClassificationMetric().compute(predictions=logits.softmax(-1).numpy(), references=outputs.label_ids)


def main(argv: list[str] | None = None) -> Trainer:
    args = parse_args(argv)
    if used := [name for name, off in NOT_HERE.items() if getattr(args, name) != off]:
        raise SystemExit(f"--{', --'.join(used)}: only with run_video_cls.py")
    if args.on_bad_video not in (None, "error"):
        raise SystemExit(f"--on_bad_video {args.on_bad_video}: only with run_video_cls.py, here it is always 'error'")
    set_seed(args.seed)
    videos, names = videos_of_run(args)
    preprocessing = preprocessing_from_pretrained(args.model_name_or_path)
    train_clips, eval_clips = build_clips(args, videos, preprocessing)
    model = build_model(args, names)
    frozen = frozen_fingerprint(model)

    trainer = Trainer(
        model=model,
        args=training_arguments(args),
        train_dataset=train_clips,  # the Trainer tells it the epoch
        eval_dataset=eval_clips,
        data_collator=collate,
        compute_metrics=compute_metrics,
        optimizers=(build_optimizer(args, model), None),
    )
    args.num_labels, args.mixed_precision = len(names), trainer.accelerator.mixed_precision
    configuration = run_configuration(args, names, trainer.args.train_batch_size, frozen, videos["train"])
    configuration["script"] = "run_video_cls_trainer"
    if trainer.is_world_process_zero():
        claim(args.output_dir, configuration, OPTIONS.differences)
        print(f"evaluation: {eval_clips.view_plan()}")
    start = args.resume_from_checkpoint
    trained = trainer.train(resume_from_checkpoint=str(start) if start else None).metrics
    folder = result_folder(args)
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with paths
        write_configuration(folder, args, configuration)
        preprocessing.image_processor().save_pretrained(folder)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        facts = {"tuner": args.tuner, "num_labels": len(names), "step": trainer.state.global_step}
        facts["eval_failures"] = len(eval_clips) - metrics["eval_num_videos"]
        results = {**facts, **trained, **metrics}
        write_json(args.output_dir / "all_results.json", results)
        print(last_words(args.output_dir, folder, results))
    return trainer


if __name__ == "__main__":
    raise SystemExit(run_as_command(main))
