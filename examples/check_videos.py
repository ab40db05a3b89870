"""Read every video of a data set ahead of training, in parallel, and list those that cannot be used.

    python examples/check_videos.py --train_dir data/train --validation_dir data/validation --num_workers 8

Each video is opened, its frames are counted, and those of a clip over its whole length are decoded (`--all_frames`:
all of them). `--output_file` gets a JSON line per bad video. The exit status is 1 if there is any.
"""

import argparse
import json
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from hf_i2v.data import (
    VideoDecodeError,
    add_data_arguments,
    open_video,
    uniform_indices,
    videos_from_args,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_data_arguments(parser)
    parser.add_argument("--num_frames", type=int, default=8, help="frames per video to decode")
    parser.add_argument("--all_frames", action="store_true", help="decode every frame, which takes longer")
    parser.add_argument("--num_workers", type=int, default=4, help="processes")
    parser.add_argument("--output_file", type=Path, default=Path("bad_videos.jsonl"), help="where to list bad videos")
    return parser.parse_args(argv)


_rows = None  # of the split at hand; forked workers inherit it


def check(job: tuple[int, int | None]) -> dict | None:
    """What is wrong with a video, or None; frames are decoded in parts, so that long videos fit in memory."""
    index, num_frames = job
    row = _rows[index]
    try:
        with open_video(row) as video:
            wanted = range(video.num_frames)
            if num_frames is not None:
                wanted = uniform_indices(num_video_frames=video.num_frames, num_frames=num_frames)
            for start in range(0, len(wanted), 32):
                video.frames(wanted[start : start + 32])
    except VideoDecodeError as error:
        return {"id": index, "path": row["video"]["path"], "reason": str(error)}
    return None


def bad_videos(rows, num_frames: int | None, num_workers: int, title: str) -> Iterator[dict]:
    global _rows
    _rows = rows
    jobs = [(index, num_frames) for index in range(len(rows))]
    with get_context("fork").Pool(num_workers) as pool:
        for bad in tqdm(pool.imap_unordered(check, jobs, chunksize=4), total=len(jobs), desc=title, unit="video"):
            if bad is not None:
                yield bad


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    num_frames = None if args.all_frames else args.num_frames
    counts = {}
    with open(args.output_file, "w", encoding="utf-8") as file:
        for split, rows in videos_from_args(args).items():
            found = sorted(bad_videos(rows, num_frames, args.num_workers, split), key=lambda bad: bad["id"])
            for bad in found:
                file.write(json.dumps({"split": split, **bad}, ensure_ascii=False) + "\n")
            counts[split] = (len(found), len(rows))
    for split, (bad, total) in counts.items():
        print(f"{split}: {bad} of {total} videos cannot be used ({100 * bad / total:.2f} %)")
    any_bad = any(bad for bad, _ in counts.values())
    print(f"listed in {args.output_file}" if any_bad else "all videos can be read")
    return int(any_bad)


if __name__ == "__main__":
    raise SystemExit(main())
