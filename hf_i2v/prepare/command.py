"""Make videos quick to read for training: small, with a key frame every 16 frames, without sound.

hf-i2v prepare --train_dir data/train --validation_dir data/validation --output_dir prepared
hf-i2v prepare --train_file train.csv --validation_file val.csv --video_dir videos --output_dir prepared
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from datasets import DatasetDict
from tqdm import tqdm

from ..data import add_data_arguments, videos_from_args
from ..data.failures import bad_video
from ..data.fingerprints import common_folder, video_fingerprint
from ..data.in_processes import in_processes, why_lost
from ..training.checkpoints import configuration_differences
from ..training.options import positive
from ..training.results import claim
from ..whole_files import write_text_whole
from .layout import Layout, layout_of
from .video import KEY_FRAME_EVERY, Form, encoder, prepare_video, sample_video

_SAMPLES = 8  # videos that the estimate looks at


def main(argv: list[str] | None = None) -> int:
    """The command line; see the text of this module. The status is 1 where videos could not be read."""
    args = _parse(argv)
    form = Form(args.short_side, args.crf)
    videos = videos_from_args(args)
    folders = {"train": args.train_dir, "validation": args.validation_dir}
    layout = layout_of(videos, args.output_dir, folders, args.video_dir)
    if not args.dry_run:
        made_by = {**vars(form), "key_frame_every": KEY_FRAME_EVERY, "encoder": encoder()}
        claim(args.output_dir, made_by, configuration_differences)
        for unfinished in args.output_dir.rglob(".*.part"):
            unfinished.unlink()
    bad_videos = BadVideos(args.output_dir / "bad_videos.jsonl", videos)
    left = [(split, row) for split, row in layout.missing() if not bad_videos.has(split, row)]
    total = len({path for paths in layout.paths.values() for path in paths})
    there = f", {total - len(left)} of them done" if len(left) < total else ""
    print(f"{total} videos{there}; they go to {args.output_dir}, the shorter side {form.short_side} pixels at most")
    if left:
        print(_what_it_takes(args, form, layout, left))
    if args.dry_run:
        return 0
    try:
        _prepare(args, form, layout, left, bad_videos)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped. The same command goes on with the videos that are left.") from None
    layout.finish()
    print(f"to train on them: {layout.flags()}")
    if bad := len(bad_videos.listed):
        print(f"{bad} of the {total} cannot be read and are left out; {bad_videos.file} says why")
    return int(bool(bad))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_data_arguments(parser)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="the same folder and command go on where it was stopped")
    add("--short_side", type=int, default=Form.short_side, help="pixels; smaller videos keep their size")
    add("--crf", type=int, default=Form.crf, help="quality of x264, from 0 (lossless) to 51")
    add("--num_workers", type=positive, default=len(os.sched_getaffinity(0)), help="processes")
    add("--video_timeout", type=float, default=300.0, help="seconds; a video that takes longer to read is a bad one")
    add("--dry_run", action="store_true", help="say what it takes and stop")
    return parser.parse_args(argv)


def _what_it_takes(args: argparse.Namespace, form: Form, layout: Layout, left: list[tuple[str, int]]) -> str:
    """Disk and time, estimated from a few frames of a few videos.

    Raises:
        ValueError: there is less disk.
    """

    def arguments(number: int) -> tuple:
        split, row = left[number]
        return layout.videos[split][row], form, args.video_timeout

    chosen = range(0, len(left), -(-len(left) // _SAMPLES))
    found = in_processes(sample_video, chosen, arguments, args.num_workers)
    samples = {number: sample for number, sample, _ in found if sample is not None}
    if not samples:
        return f"what it takes cannot be said: none of the {len(chosen)} videos that were looked at can be read"
    sizes_of = {split: layout.sizes(split) for split in layout.videos}
    sizes = [sizes_of[split][row] for split, row in left]
    scale = len(left) / len(samples)
    if None not in sizes:  # a longer one takes more
        scale = sum(sizes) / sum(sizes[number] for number in samples)
    need = scale * sum(sample.bytes for sample in samples.values())
    minutes = scale * sum(sample.seconds for sample in samples.values()) / args.num_workers / 60
    free = shutil.disk_usage(next(filter(Path.exists, [args.output_dir, *args.output_dir.absolute().parents]))).free
    if need > free:
        raise ValueError(
            f"about {need / 1e9:.3g} GB of disk are needed, but in {args.output_dir} {free / 1e9:.3g} GB are free; "
            "choose another --output_dir, a smaller --short_side or a larger --crf"
        )
    return (
        f"about {need / 1e9:.3g} GB of disk ({free / 1e9:.3g} GB are free) and {minutes:.3g} minutes in "
        f"{args.num_workers} processes, estimated from {len(samples)} videos"
    )


def _prepare(
    args: argparse.Namespace, form: Form, layout: Layout, left: list[tuple[str, int]], bad_videos: "BadVideos"
) -> None:
    def arguments(number: int) -> tuple:
        split, row = left[number]
        return layout.videos[split][row], layout.paths[split][row], form, args.video_timeout

    with tqdm(total=len(left), desc="prepare", unit="video", disable=not left) as progress:
        for number, reason, is_lost in in_processes(prepare_video, range(len(left)), arguments, args.num_workers):
            progress.update()
            split, row = left[number]
            if is_lost:
                reason = why_lost(layout.videos[split][row]["video"]["path"], args.video_timeout)
            if reason is not None:
                layout.paths[split][row].unlink(missing_ok=True)  # what was made of it before it went bad
                bad_videos.add(split, row, reason)


class BadVideos:
    """The list of videos that cannot be read. One that has not changed since is not tried again.

    Args:
        file: JSON lines; what is there already counts.
        videos: of all splits.
    """

    def __init__(self, file: Path, videos: DatasetDict):
        self.file, self.videos = file, videos
        self._roots = {split: common_folder(rows) for split, rows in videos.items()}
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self.listed = {(bad["split"], bad["id"]): bad for bad in map(json.loads, lines)}

    def has(self, split: str, row: int) -> bool:
        """Whether a video is listed; one that has changed is taken off the list."""
        bad = self.listed.get((split, row))
        if bad and bad["fingerprint"] != video_fingerprint(self.videos[split][row], self._roots[split]):
            del self.listed[split, row]
        return (split, row) in self.listed

    def add(self, split: str, row: int, reason: str) -> None:
        """List a video, and write the list."""
        bad = bad_video(self.videos[split][row], row, reason, self._roots[split])
        self.listed[split, row] = {"split": split, **bad}
        lines = "".join(json.dumps(bad, ensure_ascii=False) + "\n" for bad in self.listed.values())
        write_text_whole(self.file, lines)
