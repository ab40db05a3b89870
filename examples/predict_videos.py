"""What a finished model sees in whole archives and long files, as a table that outlives a kill.

    python examples/predict_videos.py --model my-video-model --videos videos/ --output_dir answers
    python examples/predict_videos.py --model my-video-model --videos day.mp4 --window 2 --stride 1 \
        --event_threshold 0.5 --min_event_length 3 --output_format csv --output_dir day
    accelerate launch examples/predict_videos.py --model my-video-model --videos shards/ --features \
        --output_dir vectors

A row of `predictions.parquet` is a video, or with `--window` a window of one: video, start, end, best classes and
their scores; `features.parquet` has embeddings instead, and `events.parquet` what windows in a row agree on. Videos
that cannot be read are in `bad_videos.jsonl`. Stopped in whatever way and started again, also with another number of
processes, the same command goes on with the rows that are missing. See docs/archives.md.
"""

import argparse
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_i2v.archives import Parts, PartWriter, Streams, answer_columns, units_of, videos_per_unit
from hf_i2v.archives.tables import FORMATS, write_bad_videos, write_events, write_table
from hf_i2v.backbones import find_backbone
from hf_i2v.data import Preprocessing, ReadLimits, eval_transform, videos_fingerprint, videos_from_args
from hf_i2v.data.archives import add_archive_arguments, load_archive
from hf_i2v.data.failures import FailureLog
from hf_i2v.data.streamed import StreamBatches
from hf_i2v.data.windowed import ArchiveBatch, ArchiveBatches, give_memory_back
from hf_i2v.data.windows import Windows
from hf_i2v.predict import load_model
from hf_i2v.training.checkpoints import configuration_differences
from hf_i2v.training.command import run_as_command
from hf_i2v.training.distribution import check_processes
from hf_i2v.training.options import positive
from hf_i2v.training.results import claim, read_json
from hf_i2v.training.state import frozen_fingerprint

DTYPES = ("float32", "bfloat16", "float16")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="finished video model or adapter: a folder or a Hub repository")
    add_archive_arguments(parser)

    # a row
    add("--window", type=float, help="seconds; a row is a window of a video, without it a whole video")
    add("--stride", type=float, help="seconds from one window to the next; default: --window")
    add(
        "--frame_stride", type=positive, help="a causal model takes every frame of this distance; see docs/archives.md"
    )
    add("--top_k", type=positive, default=5, help="classes of a row, best first")
    add("--features", action="store_true", help="embeddings instead of classes")
    add("--event_threshold", type=float, help="make events of windows in a row that score a class as high or higher")
    add("--min_event_length", type=float, default=0.0, help="seconds; shorter events are left out")

    # the work
    add("--dtype", choices=DTYPES, default="float32", help="of the model")
    add("--batch_size", type=positive, default=8, help="clips that go through the model at once")
    add("--dataloader_num_workers", type=int, default=2, help="processes that decode, for each that runs the model")
    add("--video_timeout", type=float, default=300.0, help="seconds; a video that takes longer to read is a bad one")
    add("--on_bad_video", choices=["error", "skip"], default="skip", help="skip: list it in bad_videos.jsonl")
    add("--max_bad_fraction", type=float, default=0.01, help="stop above this share of unreadable videos,")
    add("--min_bad_videos", type=positive, default=5, help="but never below so many")

    # the result
    add("--output_dir", type=Path, required=True, help="the same folder and command go on where a run stopped")
    add("--output_format", choices=FORMATS, default=FORMATS[0], help="of the tables")
    add("--debug", action="store_true", help="show where an error comes from")
    args = parser.parse_args(argv)

    if args.stride is not None and args.window is None:
        parser.error("--stride needs --window, the length of a window in seconds")
    if args.frame_stride is not None and args.window is None:
        parser.error("--frame_stride needs --window: only windows are read off a stream of frames")
    if args.window is not None and args.stride is None:
        args.stride = args.window
    if args.event_threshold is not None:
        if args.window is None or args.features:
            parser.error("--event_threshold makes events of the classes of windows: give --window, no --features")
        if not 0 < args.event_threshold <= 1:
            parser.error(f"--event_threshold ({args.event_threshold}) must be a score in (0, 1]")
    elif args.min_event_length:
        parser.error("--min_event_length needs --event_threshold")
    if args.dataloader_num_workers < 0:
        parser.error(f"--dataloader_num_workers ({args.dataloader_num_workers}) must be 0 or more")
    return args


# ------------------------------------------------------------------------------------------------------- the rows


def schema_of(args: argparse.Namespace, model: nn.Module, videos: Dataset) -> pa.Schema:
    """The columns of a row."""
    config = model.config
    return answer_columns(
        top_k=None if args.features else min(args.top_k, config.num_labels),
        width=config.hidden_size if args.features else None,
        times=args.window is not None or "start" in videos.column_names,
        shard="shard" in videos.column_names,
    )


@torch.inference_mode()
def answers(
    args: argparse.Namespace,
    model: nn.Module,
    batch: ArchiveBatch,
    pixels_BTChw: torch.Tensor,
    streams: Streams | None,
) -> dict[str, list]:
    """The columns of a batch that the model fills."""
    if streams is not None:
        answer_BX = streams.answers(batch, pixels_BTChw)
    elif args.features:
        answer_BX = model.i2v(pixels_BTChw, prefix_only=True).pooler_output
    else:
        answer_BX = model(pixels_BTChw).logits
    if args.features:
        return {"feature": list(answer_BX.float().cpu().numpy())}
    score_BK = answer_BX.float().softmax(-1)
    best = score_BK.topk(min(args.top_k, score_BK.shape[1]))
    columns = {}
    for place, (class_B, best_B) in enumerate(zip(best.indices.T.tolist(), best.values.T.tolist(), strict=True), 1):
        columns |= {f"class{place}": [model.config.id2label[k] for k in class_B], f"score{place}": best_B}
    return columns


def rows_of(batch: ArchiveBatch, columns: dict[str, list], videos: Dataset, schema: pa.Schema) -> pa.Table:
    """The rows of a batch: which clip it is, and what the model says."""
    ids, starts, ends = zip(*batch.windows, strict=True)
    references = {index: videos[index] for index in sorted(set(ids))}
    paths = [references[index]["video"]["path"] or f"row {index}" for index in ids]
    shards = [references[index].get("shard") for index in ids]
    known = {"id": ids, "video": paths, "shard": shards, "start": starts, "end": ends, **columns}
    return pa.table([pa.array(known[field.name], field.type) for field in schema], schema=schema)


# ------------------------------------------------------------------------------------------------------- the run


def identity(args: argparse.Namespace, model: nn.Module, videos: Dataset) -> dict:
    """What makes the rows what they are; a run goes on only with the same."""
    record = args.output_dir / "run.json"
    per_unit = videos_per_unit(len(videos), args.batch_size if args.window is None else 1)
    if record.exists():  # the parts in the folder say what is done by these units
        per_unit = read_json(record, "It says which run the folder holds").get("videos_per_unit", per_unit)
    options = {name: getattr(args, name) for name in ("window", "stride", "frame_stride", "features", "dtype")}
    return {
        **options,
        "top_k": None if args.features else min(args.top_k, model.config.num_labels),
        "num_frames": model.config.num_frames,
        "streamed": streamed(args, model) or None,
        "weights": frozen_fingerprint(model),
        "videos": videos_fingerprint(videos),
        "videos_per_unit": per_unit,
    }


def streamed(args: argparse.Namespace, model: nn.Module) -> bool:
    """Whether windows are read off the stream of a causal model.

    Raises:
        ValueError: a distance of frames for a model that takes clips.
    """
    is_causal = find_backbone(model).model.working_last_frames() is not None
    if args.frame_stride is not None and not is_causal:
        raise ValueError(
            f"--frame_stride ({args.frame_stride}) says which frames a causal model takes, one by one, but "
            f"{args.model} is not causal: it sees clips that are spread over each window. Leave it out."
        )
    return is_causal and args.window is not None


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    windows = None if args.window is None else Windows(args.window, args.stride)
    waits = InitProcessGroupKwargs(timeout=timedelta(days=30))  # for the process that has the longest file
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[waits])
    check_processes(accelerator)
    videos = videos_from_args(args, load_archive)
    model = load_model(args.model).requires_grad_(False)
    are_left_out = args.top_k < model.config.num_labels
    if args.event_threshold and are_left_out and args.event_threshold * (args.top_k + 1) <= 1:
        raise ValueError(
            f"a class may score --event_threshold ({args.event_threshold}) without being among the best --top_k "
            f"({args.top_k}); keep at least {int(1 / args.event_threshold)}"
        )
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))

    # whose turn it is: nobody writes before all have looked
    if accelerator.is_main_process:
        claim(args.output_dir, identity(args, model, videos), configuration_differences)
    accelerator.wait_for_everyone()
    per_unit = read_json(args.output_dir / "run.json", "It says which run the folder holds")["videos_per_unit"]
    parts = Parts(args.output_dir / "parts", schema_of(args, model, videos))
    units = parts.missing(units_of(len(videos), per_unit))
    accelerator.wait_for_everyone()
    left = sum(unit.stop - unit.place.video for unit in units)
    accelerator.print(f"{len(videos)} videos" + (f", going on with the {left} that are left" * (left < len(videos))))

    options = {
        "num_frames": model.config.num_frames,
        "transform": transform,
        "windows": windows,
        "batch_size": args.batch_size,
        "skip_bad": args.on_bad_video == "skip",
        "limits": ReadLimits(seconds=args.video_timeout),
    }
    own = units[accelerator.process_index :: accelerator.num_processes]
    if streamed(args, model):
        batches = StreamBatches(videos, own, frame_stride=args.frame_stride, **options)
    else:
        batches = ArchiveBatches(videos, own, **options)
    predict(args, accelerator, model.to(accelerator.device, getattr(torch, args.dtype)), batches, parts)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(finish(args, parts, len(videos)))
    accelerator.wait_for_everyone()  # the first process still writes
    accelerator.end_training()


def predict(
    args: argparse.Namespace, accelerator: Accelerator, model: nn.Module, batches: ArchiveBatches, parts: Parts
) -> None:
    """Go through the batches of this process and write their rows."""
    videos, writer = batches.videos, PartWriter(parts)
    failures = FailureLog(
        args.output_dir / "bad_videos.jsonl",
        num_videos=len(videos),
        train=False,
        max_bad_fraction=args.max_bad_fraction,
        min_bad_videos=args.min_bad_videos,
    )
    loader = DataLoader(
        batches,
        batch_size=None,  # they are batches already
        num_workers=min(args.dataloader_num_workers, len(batches.units)),
        pin_memory=accelerator.device.type == "cuda",
        in_order=False,  # every batch says what it is
    )
    streams = Streams(model.i2v if args.features else model) if isinstance(batches, StreamBatches) else None
    total = sum(unit.stop - unit.place.video for unit in batches.units)
    with tqdm(total=total, unit="video", disable=not accelerator.is_local_main_process) as progress:
        for batch in loader:
            rows = None
            if batch.pixels_BTChw is not None:
                pixels_BTChw = batch.pixels_BTChw.to(accelerator.device, non_blocking=True)
                pixels_BTChw = batches.transform.normalize(pixels_BTChw).to(model.dtype)
                columns = answers(args, model, batch, pixels_BTChw, streams)
                rows = rows_of(batch, columns, videos, parts.schema) if batch.windows else None
            writer.add(batch.unit, rows, batch.bad, batch.next)
            progress.update(batch.videos_done)
            failures.record(batch.bad)
            give_memory_back()


def finish(args: argparse.Namespace, parts: Parts, num_videos: int) -> str:
    """The tables of all parts; says what there is."""
    parts.sweep()
    table = args.output_dir / f"{'features' if args.features else 'predictions'}.{args.output_format}"
    said = [f"{write_table(table, parts)} rows: {table}"]
    if args.event_threshold is not None:
        events = args.output_dir / f"events.{args.output_format}"
        top_k = sum(name.startswith("class") for name in parts.schema.names)
        num_events = write_events(
            events, parts, top_k=top_k, threshold=args.event_threshold, min_length=args.min_event_length
        )
        said.append(f"{num_events} events: {events}")
    bad_videos = args.output_dir / "bad_videos.jsonl"
    if num_bad := write_bad_videos(bad_videos, parts):
        said.append(f"{num_bad} of {num_videos} videos could not be read: {bad_videos}")
    return "\n".join(said)


if __name__ == "__main__":
    raise SystemExit(run_as_command(main))
