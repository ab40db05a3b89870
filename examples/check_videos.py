"""Read every video of a data set ahead of training, in parallel, and list those that cannot be used.

    python examples/check_videos.py --train_dir data/train --validation_dir data/validation --num_workers 8

Each video is opened, its frames are counted, and those of a clip over its whole length are decoded (`--all_frames`:
all of them); where a list says start and end, those between. `--output_file` gets a JSON line per bad video as it is
found; training leaves the listed ones out with `--exclude bad_videos.jsonl`. A video that kills the process that
decodes it is one, too, and so is one that FFmpeg does not come back from. The exit status is 1 if there is any.
"""

import argparse
import faulthandler
import json
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from hf_i2v.data import ReadLimits, VideoDecodeError, add_data_arguments, open_video, uniform_indices, videos_from_args
from hf_i2v.data.clips import frames_between
from hf_i2v.data.failures import bad_video
from hf_i2v.data.fingerprints import common_folder


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

    def watch() -> None:
        faulthandler.dump_traceback_later(min(2 * seconds, threading.TIMEOUT_MAX), exit=True)

    watch()
    try:
        with open_video(row, limits=ReadLimits(seconds=seconds)) as video:
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
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def bad_videos(rows, how: tuple[int | None, float], num_workers: int, title: str) -> Iterator[dict]:
    """Bad videos as they are found; `how` are the other arguments of `check`."""
    waiting, root = list(range(len(rows)))[::-1], common_folder(rows)
    with tqdm(total=len(rows), desc=title, unit="video") as progress:
        while waiting:
            suspects = []
            for index, reason in _checked(rows, waiting, how, num_workers, suspects):
                progress.update()
                if reason is not None:
                    yield bad_video(rows[index], index, reason, root)
            for index in suspects:  # each in a process of its own, one of them dies again
                lost = []
                reasons = [reason for _, reason in _checked(rows, [index], how, 1, lost)]
                progress.update()
                if lost:
                    reasons = [
                        f"{rows[index]['video']['path']}: decoding it kills the process, or one step of it takes "
                        f"longer than twice the {how[1]:g} seconds of --video_timeout"
                    ]
                if reasons[0] is not None:
                    yield bad_video(rows[index], index, reasons[0], root)


def _checked(
    rows, waiting: list[int], how: tuple[int | None, float], num_workers: int, lost: list[int]
) -> Iterator[tuple[int, str | None]]:
    """Take videos from the end of `waiting` and give each with what is wrong with it, until none is left or a worker
    dies; then `lost` are those that were under way."""
    at_work: dict[Future, int] = {}
    context = get_context("forkserver")  # a fork of this process would copy locks that its threads hold
    context.set_forkserver_preload(["hf_i2v.data"])
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        while waiting or at_work:
            try:
                while waiting and len(at_work) < 2 * num_workers:
                    future = pool.submit(check, rows[waiting[-1]], *how)
                    at_work[future] = waiting.pop()
                for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                    reason = future.result()
                    yield at_work.pop(future), reason
            except BrokenProcessPool:
                lost += sorted(at_work.values())
                return


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
