"""Damage real video files in many ways and read them: what is refused, and what comes out of the rest.

    python benchmarks/fuzz_videos.py --num_files 10000 --seed 0

Files of every container and codec below that PyAV writes here are made on the spot, and damaged one after another;
file `i` depends on the seed and `i` only. Worker processes with a limit on memory read them; one that dies or does not
answer is replaced. Writes `fuzz_videos.csv` beside this script: a row for each kind of file, a column for each
verdict.

- refused: a VideoDecodeError.
- equal: the clip is what decoding everything gives at these frames.
- apart: decoding everything fails or marks damage, but in frames that the clip does not need; the clip is frames of
  the undamaged file.
- unmarked: as before, but the clip has damage that FFmpeg did not mark in these frames.
- different: decoding everything succeeds and gives something else, although nothing was marked.
- unstable: `frames(some)` is not `frames(all)[some]`, or not what it was when asked a second time.
- raised: any other exception. died: the process. late: no answer in time.
"""

import argparse
import csv
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np

from hf_i2v.data import ReadLimits, VideoDecodeError, VideoReader, uniform_indices
from hf_i2v.data.media import Clock, open_media, video_stream

GROUPS = {"g": "6", "bf": "2"}
HEVC = {"x265-params": "log-level=none:keyint=6"}
KINDS = {  # suffix: codecs and their options
    "mp4": {
        "libx264": GROUPS,
        "libx265": {"x265-params": "log-level=none:keyint=6"},
        "mpeg4": GROUPS,
        "libsvtav1": {},
    },
    "mov": {"libx264": GROUPS, "prores_ks": {}, "qtrle": {}, "png": {}},
    "mkv": {"libx264": GROUPS, "ffv1": {}, "rawvideo": {}, "mpeg2video": GROUPS, "mjpeg": {}},
    "webm": {"libvpx": {"g": "6"}, "libvpx-vp9": {"g": "6", "cpu-used": "8"}},
    "avi": {
        "mpeg4": GROUPS,
        "libx264": GROUPS,
        "mjpeg": {},
        "huffyuv": {},
        "utvideo": {},
        "msmpeg4v2": {},
        "ffv1": {},
    },
    "ts": {"libx264": GROUPS, "mpeg2video": GROUPS, "libx265": HEVC},
    "mpg": {"mpeg1video": GROUPS, "mpeg2video": GROUPS},
    "wmv": {"wmv1": {}, "wmv2": {"g": "6"}, "msmpeg4": {}},
    "asf": {"mpeg4": GROUPS},
    "flv": {"flv": {"g": "6"}, "libx264": GROUPS},
    "nut": {"ffv1": {}, "mpeg4": GROUPS, "snow": {}},
    "mxf": {"mpeg2video": GROUPS},
    "wtv": {"mpeg2video": GROUPS},
    "3gp": {"h263": {}, "mpeg4": GROUPS},
    "ivf": {"libvpx": {"g": "6"}},
    "h264": {"libx264": GROUPS},
    "gif": {"gif": {}},
}
VERDICTS = ("refused", "equal", "apart", "unmarked", "different", "unstable", "raised", "died", "late")
NUM_FRAMES, HEIGHT, WIDTH = 24, 48, 64
CLIP = 5
LIMITS = ReadLimits(seconds=20.0, packets=100_000, pixels=4_000_000, bytes=2**28)
WORKER_BYTES = 6 * 2**30  # of address space, most of it the libraries'
ANSWER_SECONDS = 120


def make_files(folder: Path) -> list[Path]:
    """A small video of each kind that can be written here, named `codec.suffix`."""
    made = []
    for suffix, codecs in KINDS.items():
        for codec, options in codecs.items():
            path = folder / f"{codec}.{suffix}"
            try:
                write(path, codec, options)
                with av.open(str(path)) as container:
                    assert sum(1 for _ in container.decode(video=0)) > NUM_FRAMES // 2
                made.append(path)
            except (av.error.FFmpegError, ValueError, AssertionError) as error:
                print(f"not written here: {path.name} ({error})", file=sys.stderr)
    return made


def write(path: Path, codec: str, options: dict[str, str]) -> None:
    height, width = (96, 128) if codec.startswith("h26") else (HEIGHT, WIDTH)
    rng = np.random.default_rng(0)
    backdrop_hwC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.options = height, width, options
        formats = [f.name for f in stream.codec_context.codec.video_formats or []]
        stream.pix_fmt = next(
            (f for f in ("yuv420p", "yuvj420p") if f in formats), formats[0] if formats else "yuv420p"
        )
        for number in range(NUM_FRAMES):
            frame_hwC = np.roll(backdrop_hwC, 3 * number, axis=1)
            frame_hwC[:8] = number * 255 // NUM_FRAMES
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_hwC, format="rgb24")))
        container.mux(stream.encode())


def damaged(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """A file with one to three kinds of damage."""
    for _ in range(draw.randint(1, 3)):
        content = draw.choice(DAMAGES)(bytearray(content), other, draw)
    return bytes(content)


def flip_bits(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    for _ in range(2 ** draw.randrange(8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def overwrite_header(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 20)):
        content[draw.randrange(min(3000, len(content)))] = draw.randrange(256)
    return content


def write_extreme_numbers(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    for _ in range(draw.randint(1, 4)):
        number = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0", b"\0\x98\x96\x80"])
        place = draw.randrange(min(draw.choice([3000, 2**30]), len(content)))
        content[place : place + 4] = number
    return content


def cut_off(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    return content[: draw.randrange(1, len(content) + 1)]


def change_block(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    start = draw.randrange(len(content))
    stop = min(len(content), start + 2 ** draw.randrange(4, 12))
    block = content[start:stop]
    new = draw.choice([b"", block + block, bytes(len(block)), draw.randbytes(len(block)), other[start:stop]])
    return content[:start] + new + content[stop:] or bytearray(1)


def join(content: bytearray, other: bytes, draw: random.Random) -> bytearray:
    return content + other if draw.random() < 0.5 else bytearray(other[: len(other) // 2]) + content


DAMAGES = (flip_bits, flip_bits, overwrite_header, write_extreme_numbers, cut_off, change_block, change_block, join)


def verdict(source: Path | bytes, whole_ThwC: np.ndarray) -> str:
    """What comes of reading a file; `whole_ThwC` are the frames of the undamaged one."""
    try:
        with VideoReader(source, limits=LIMITS) as video:
            indices = uniform_indices(num_video_frames=video.num_frames, num_frames=CLIP)
            clip_ThwC = video.frames(indices).permute(0, 2, 3, 1).numpy()
            same = np.array_equal(video.frames(indices).permute(0, 2, 3, 1).numpy(), clip_ThwC)
            try:
                if video.num_frames < 1000:
                    all_ThwC = video.frames(range(video.num_frames)).permute(0, 2, 3, 1).numpy()
                    same = same and np.array_equal(all_ThwC[indices], clip_ThwC)
            except VideoDecodeError:
                pass  # damage in frames that the clip does not need
    except VideoDecodeError:
        return "refused"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "raised"
    if not same:
        return "unstable"
    every = decode_everything(source)
    if (
        every is not None
        and len(every) > max(indices)
        and all(np.array_equal(every[index], frame_hwC) for index, frame_hwC in zip(indices, clip_ThwC, strict=True))
    ):
        return "equal"
    if every is not None:
        return "different"
    known = {frame_hwC.tobytes() for frame_hwC in whole_ThwC}
    return "apart" if all(frame_hwC.tobytes() in known for frame_hwC in clip_ThwC) else "unmarked"


def decode_everything(source: Path | bytes) -> list[np.ndarray] | None:
    """Every frame in PyAV's plainest way, or None where that fails or a frame is marked as damaged."""
    clock, frames = Clock("decoding everything", LIMITS.seconds), []
    try:
        with open_media(source, clock, LIMITS) as container:
            stream = video_stream(container, "decoding everything", LIMITS)
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    return None
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
    except IndexError:
        pass  # see Packets
    except Exception:
        return None
    return frames


def work(folder: Path, seed: int, questions: Connection) -> None:
    """Answer each number with a verdict."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    av.logging.set_level(av.logging.PANIC)
    paths = sorted(path for path in folder.iterdir() if path.stem != "damaged")
    contents = {path: path.read_bytes() for path in paths}
    whole = {path: np.stack(decode_everything(path)) for path in paths}
    while True:
        number = questions.recv()
        path = paths[number % len(paths)]
        draw = random.Random(f"{seed} {number}")
        alike = [other for other in paths if other.suffix == path.suffix]
        source = damaged(contents[path], contents[draw.choice(alike)], draw)
        if number // len(paths) % 2:
            file = Path(tempfile.gettempdir()) / f"damaged-{number}{path.suffix}"
            file.write_bytes(source)
            source = file
        try:
            questions.send(verdict(source, whole[path]))
        finally:
            if isinstance(source, Path):
                source.unlink()


class Worker:
    """A process that reads damaged files; started anew after it died or was late."""

    def __init__(self, folder: Path, seed: int):
        self._arguments = (folder, seed)
        self._process = None

    def ask(self, number: int) -> str:
        if self._process is None:
            self._answers, questions = multiprocessing.Pipe()
            self._process = multiprocessing.Process(target=work, args=(*self._arguments, questions), daemon=True)
            self._process.start()
            questions.close()
        self._answers.send(number)
        try:
            if self._answers.poll(ANSWER_SECONDS):
                return self._answers.recv()
            found = "late"
        except EOFError:
            found = "died"
        self.stop()
        return found

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._answers.close()
            self._process = None


def main(argv: list[str] | None = None) -> Counter:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_files", type=int, default=10_000, help="damaged files to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args(argv)
    counts, started = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        names = sorted(path.name for path in make_files(Path(folder)))
        worker = Worker(Path(folder), args.seed)
        for number in range(args.num_files):
            name = names[number % len(names)]
            found = worker.ask(number)
            counts.setdefault(name, Counter())[found] += 1
            if found not in ("refused", "equal", "apart", "unmarked", "different"):
                print(f"file {number} ({name}): {found}", file=sys.stderr, flush=True)
        worker.stop()
    total = sum(counts.values(), Counter())
    with open(args.output_file, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "read", *VERDICTS])
        for name, count in [*sorted(counts.items()), ("all", total)]:
            writer.writerow([name, count.total(), *(count[verdict] for verdict in VERDICTS)])
    print(dict(total), f"PyAV {av.__version__}, {time.monotonic() - started:.0f} s")
    return total


if __name__ == "__main__":
    main()
