"""Read every video of a data set ahead of training, in parallel, and list those that cannot be used.

    python examples/check_videos.py --train_dir data/train --validation_dir data/validation --num_workers 8

Each video is opened, its frames are counted, and those of a clip over its whole length are decoded (`--all_frames`:
all of them); where a list says start and end, those between. `--output_file` gets a JSON line per bad video as it is
found; training leaves the listed ones out with `--exclude bad_videos.jsonl`. A video that kills the process that
decodes it is one, too, and so is one that FFmpeg does not come back from. The exit status is 1 if there is any.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from hf_i2v.data import ReadLimits, VideoDecodeError, add_data_arguments, open_video, uniform_indices, videos_from_args
from hf_i2v.data.clips import frames_between
from hf_i2v.data.failures import bad_video
from hf_i2v.data.fingerprints import common_folder
from hf_i2v.data.in_processes import in_processes, watched, why_lost


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_data_arguments(parser)
    parser.add_argument("--num_frames", type=int, default=8, help="frames per video to decode")
    parser.add_argument("--all_frames", action="store_true", help="decode every frame, which takes longer")
    parser.add_argument("--num_workers", type=int, default=4, help="processes")
    parser.add_argument(
        "--video_timeout", type=float, default=300.0, help="seconds; a video that takes longer to read is a bad one"
    )
    parser.add_argument("--output_file", type=Path, default=Path("bad_videos.jsonl"), help="where to list bad videos")
    return parser.parse_args(argv)


def check(row: dict, num_frames: int | None, seconds: float) -> str | None:
    """What is wrong with a video, or None; frames are decoded in parts, so that long videos fit in memory. Opening
    and each part may take so many seconds; where FFmpeg does not come back, the process ends after twice as many."""
    try:
        with watched(seconds) as watch, open_video(row, limits=ReadLimits(seconds=seconds)) as video:
            first, length = 0, video.num_frames
            if row.get("start") is not None or row.get("end") is not None:
                first, length = frames_between(video, row["start"], row["end"])
            wanted = range(length)
            if num_frames is not None:
                wanted = uniform_indices(num_video_frames=length, num_frames=num_frames)
            for start in range(0, len(wanted), 32):
                watch()
                video.frames([first + number for number in wanted[start : start + 32]])
    except VideoDecodeError as error:
        return str(error)
    except Exception as error:  # a scan goes on, whatever a file makes a library do
        return f"{row['video']['path']}: {type(error).__name__}: {error}"
    return None


def bad_videos(rows, how: tuple[int | None, float], num_workers: int, title: str) -> Iterator[dict]:
    """Bad videos as they are found; `how` are the other arguments of `check`."""
    root = common_folder(rows)
    with tqdm(total=len(rows), desc=title, unit="video") as progress:
        for index, reason, is_lost in in_processes(
            check, range(len(rows)), lambda number: (rows[number], *how), num_workers
        ):
            progress.update()
            if is_lost:
                reason = why_lost(rows[index]["video"]["path"], how[1])
            if reason is not None:
                yield bad_video(rows[index], index, reason, root)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    how = (None if args.all_frames else args.num_frames, args.video_timeout)
    counts = {}
    with open(args.output_file, "w", encoding="utf-8") as file:
        for split, rows in videos_from_args(args).items():
            count = 0
            for count, bad in enumerate(bad_videos(rows, how, args.num_workers, split), start=1):  # noqa: B007
                file.write(json.dumps({"split": split, **bad}, ensure_ascii=False) + "\n")
                file.flush()
            counts[split] = (count, len(rows))
    for split, (bad, total) in counts.items():
        print(f"{split}: {bad} of {total} videos cannot be used ({100 * bad / total:.2f} %)")
    any_bad = any(bad for bad, _ in counts.values())
    print(f"listed in {args.output_file}" if any_bad else "all videos can be read")
    return int(any_bad)


if __name__ == "__main__":
    raise SystemExit(main())
