"""What a video model sees in a camera, a stream or a file, frame by frame: label, score and a timeline on the picture.

    python examples/live.py my-causal-model 0 --smoothing 1 --threshold 0.5             # the first camera, in a window
    python examples/live.py my-causal-model rtsp://192.168.0.7/stream --headless --output_dir door
    python examples/live.py my-causal-model recording.mp4 --headless

A causal model (`causal=True` of its method) takes each frame once. `--headless` writes `live.mp4`, the annotated
pictures, and `live.csv`, a row for each answer. Ctrl-C ends it, and what was written so far can be read.
"""

import argparse
import csv
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_i2v.data import LiveFrame, LiveFrames, ReadLimits
from hf_i2v.live import LiveAnswer, LiveClassifier
from hf_i2v.predict import load_model
from hf_i2v.training.command import run_as_command
from hf_i2v.training.evaluation import as_text

TIMELINE_SECONDS = 10.0
COLOURS = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"]  # Okabe and Ito
NO_ACTION_COLOUR = "#888888"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("model", help="finished video model or adapter: a folder or a Hub repository")
    add("source", nargs="?", default="0", help="number or path of a camera, an rtsp:// or http(s):// URL, or a file")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--fps", type=float, help="frames a second that the model takes, as in training; so many that a clip lasts 2 s"
    )
    rate.add_argument("--stride", type=int, help="take every frame of this distance, as training with --frame_stride")
    add("--smoothing", type=float, default=0.5, help="seconds over which scores are smoothed; 0: not at all")
    add("--threshold", type=float, default=0.0, help="score below which no class is named")
    add("--no_action", default="no action", help="what is named then; may be one of the model's classes")
    add("--sliding_clips", action="store_true", help="also run a model that is not causal, at the cost of whole clips")
    add("--headless", action="store_true", help="no window; write live.mp4 and live.csv")
    add("--output_dir", type=Path, default=Path("live_output"), help="where --headless writes")
    add("--realtime", action="store_true", help="play a file at its own speed and drop frames, as of a camera")
    add("--max_reconnects", type=int, default=5, help="attempts in a row to connect to a broken stream anew")
    add("--video_timeout", type=float, default=10.0, help="seconds without a picture after which a stream is broken")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


class Annotator:
    """Draws the last answer and the answers of the last seconds on pictures."""

    def __init__(self):
        self._answers: deque[LiveAnswer] = deque()

    def add(self, answer: LiveAnswer) -> None:
        self._answers.append(answer)
        # the one that is on show at the left edge stays
        while len(self._answers) > 1 and self._answers[1].seconds < answer.seconds - TIMELINE_SECONDS:
            self._answers.popleft()

    def draw(self, frame: LiveFrame) -> Image.Image:
        """The picture with a label above and the timeline below, as wide as the last ten seconds."""
        picture = Image.fromarray(frame.picture_Chw.permute(1, 2, 0).numpy())
        canvas, (width, height) = ImageDraw.Draw(picture, "RGBA"), picture.size
        strip = max(height // 10, 4)
        canvas.rectangle((0, height - strip, width, height), fill="#000000a0")
        ends = [*[answer.seconds for answer in self._answers][1:], frame.seconds]
        for answer, end in zip(self._answers, ends, strict=True):
            left, right = (width * (1 - (frame.seconds - s) / TIMELINE_SECONDS) for s in (answer.seconds, end))
            left = max(left, 0)
            if right >= left:
                top = height - max(strip * answer.score, 1)
                canvas.rectangle((left, top, right, height), fill=_colour(answer))
        if self._answers:
            self._write(canvas, self._answers[-1], width, height)
        return picture

    @staticmethod
    def _write(canvas: ImageDraw.ImageDraw, answer: LiveAnswer, width: int, height: int) -> None:
        font = ImageFont.load_default(max(height // 16, 9))
        label, score = answer.label, f"  {100 * answer.score:.0f} %"
        while len(label) > 1 and font.getlength(label + score) > width:
            label = label[:-2] + "…"
        box = canvas.textbbox((4, 2), label + score, font=font)
        canvas.rectangle((0, 0, box[2] + 4, box[3] + 4), fill="#000000a0")
        canvas.rectangle((0, box[3] + 4, (box[2] + 4) * answer.score, box[3] + 7), fill=_colour(answer))
        canvas.text((4, 2), label + score, font=font, fill="white")


def _colour(answer: LiveAnswer) -> str:
    return NO_ACTION_COLOUR if answer.number is None else COLOURS[answer.number % len(COLOURS)]


class Recording:
    """`live.mp4` and `live.csv`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._csv = open(folder / "live.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._table = csv.writer(self._csv)
        self._table.writerow(["seconds", "frame", "connection", "label", "score"])
        # fragments while it is written, which a kill leaves and which take no memory; in the end an ordinary mp4
        as_it_grows = {"movflags": "hybrid_fragmented+frag_keyframe", "flush_packets": "1"}
        self._video = av.open(str(folder / "live.mp4"), "w", options=as_it_grows)
        self._stream, self._pts = None, -1

    def answer(self, answer: LiveAnswer, frame: LiveFrame) -> None:
        row = [f"{answer.seconds:.3f}", frame.number, frame.connection, as_text(answer.label), f"{answer.score:.4f}"]
        self._table.writerow(row)
        self._csv.flush()

    def show(self, picture: Image.Image, frame: LiveFrame) -> None:
        if self._stream is None:
            self._stream = self._video.add_stream(_encoder(), rate=30)
            self._stream.width, self._stream.height = (max(side // 2 * 2, 16) for side in picture.size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, 1000)
            self._stream.codec_context.gop_size = 30
        size = (self._stream.width, self._stream.height)
        image = av.VideoFrame.from_image(picture if picture.size == size else picture.resize(size))
        self._pts = max(self._pts + 1, round(1000 * frame.seconds))
        image.pts, image.time_base = self._pts, Fraction(1, 1000)
        self._video.mux(self._stream.encode(image))

    def close(self) -> None:
        if self._stream is not None:
            self._video.mux(self._stream.encode())
        self._video.close()
        self._csv.close()


def _encoder() -> str:
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


class Window:
    """A window on the screen, through Tk, which most Pythons have.

    Raises:
        RuntimeError: there is no Tk, or no screen.
    """

    def __init__(self, title: str, when_closed: Callable[[], None]):
        try:
            import tkinter

            from PIL import ImageTk

            self._root = tkinter.Tk()
        except Exception as error:  # no tkinter, or its TclError
            raise RuntimeError(
                f"no window can be opened ({error}); --headless writes a video and a table instead"
            ) from error
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", when_closed)
        self._as_tk, self._label = ImageTk.PhotoImage, tkinter.Label(self._root)
        self._label.pack()

    def show(self, picture: Image.Image, frame: LiveFrame) -> None:
        self._shown = self._as_tk(picture)  # Tk keeps no reference of its own
        self._label.configure(image=self._shown)
        self.update()

    def update(self) -> None:
        self._root.update()

    def close(self) -> None:
        self._root.destroy()


@contextmanager
def ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C, or the signal that ends services, calls `stop`; the second has its usual effect."""

    def once(number, _):
        stop()
        signal.signal(number, before[number])

    before = {number: signal.signal(number, once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    frames = LiveFrames(
        args.source,
        realtime=args.realtime,
        max_reconnects=args.max_reconnects,
        limits=ReadLimits(seconds=args.video_timeout),
    )
    live = LiveClassifier(
        load_model(args.model, args.device),
        fps=args.fps,
        stride=args.stride,
        smoothing=args.smoothing,
        threshold=args.threshold,
        no_action=args.no_action,
        sliding_clips=args.sliding_clips,
    )
    taken = f"every frame of distance {live.stride}" if live.stride else f"{live.fps:g} frames a second"
    print(f"{args.source}: the model takes {taken}; Ctrl-C ends it", flush=True)
    window = None if args.headless else Window(f"{args.source} · {args.model}", frames.stop)
    recording = Recording(args.output_dir) if args.headless else None
    screen = window or recording
    try:
        with ended_by_signals(frames.stop), frames:
            watch(frames, live, screen, recording, while_waiting=window.update if window else bool)
    finally:
        screen.close()
        print(
            f"{frames.num_read} frames, {live.num_steps} answers, {frames.num_dropped} frames dropped, "
            f"{frames.num_reconnects} reconnections, {frames.num_damaged} damaged"
        )
        if args.headless:
            print(f"written to {args.output_dir / 'live.mp4'} and {args.output_dir / 'live.csv'}")


def watch(
    frames: LiveFrames,
    live: LiveClassifier,
    screen: Window | Recording,
    recording: Recording | None,
    while_waiting: Callable[[], object],
) -> None:
    """Go through the frames until they end; a line for each change of the answer."""
    annotator, shown, connection = Annotator(), None, 0
    for frame in frames.each(while_waiting):
        if frame.connection != connection:  # what was seen before the break is another scene
            live.reset()
            connection = frame.connection
        if answer := live.see(frame.picture_Chw, frame.seconds, number=frame.number):
            annotator.add(answer)
            if recording:
                recording.answer(answer, frame)
            if answer.label != shown:
                print(f"{answer.seconds:8.2f} s  {100 * answer.score:3.0f} %  {answer.label}", flush=True)
                shown = answer.label
        screen.show(annotator.draw(frame), frame)


if __name__ == "__main__":
    raise SystemExit(run_as_command(main))
