"""What a finished model sees in videos: the best classes of each, with their scores.

    hf-i2v predict my-video-model clip.mp4
    hf-i2v predict runs/first/adapter videos/ --top_k 3 --format csv > answers.csv

A video that cannot be read is named with the reason, and the others get their answers; the exit status is then 1.
"""

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers.utils import find_adapter_config_file

from .auto import AutoPeftModelForVideoClassification
from .data import FrameFolder, Preprocessing, VideoDecodeError, VideoReader, eval_transform, uniform_indices
from .data.folders import videos_in
from .modeling_i2v import I2VForVideoClassification
from .training.evaluation import as_text, scores


@dataclass
class Prediction:
    """The best classes of a video; or why it has none.

    Attributes:
        video: its path.
        labels: the best classes, best first.
        scores: their probabilities.
        error: why the video could not be read; None: it could.
    """

    video: str
    labels: list[str]
    scores: list[float]
    error: str | None = None


def load_model(name_or_path: str, device: str | torch.device = "cpu") -> nn.Module:
    """A finished video model, or an adapter on its base, ready to predict.

    Args:
        name_or_path: folder or Hub repository.
        device: where it runs.

    Raises:
        OSError: there is no such model.
        ValueError: it does not say how its pixels are made.
    """
    is_adapter = find_adapter_config_file(name_or_path) is not None
    model_class = AutoPeftModelForVideoClassification if is_adapter else I2VForVideoClassification
    model = model_class.from_pretrained(name_or_path).to(device).eval()
    if model.config.preprocessing is None:
        raise ValueError(
            f"{name_or_path} does not say how its pixels are made (preprocessing in its config.json). Make it of an "
            "image model that has a preprocessor_config.json, and save it again."
        )
    return model


@torch.no_grad()
def predict_videos(
    model: nn.Module, videos: Iterable[str], *, top_k: int = 5, batch_size: int = 8
) -> Iterator[Prediction]:
    """Classify videos with the frames that the evaluation of a training takes: spread over the whole video.

    Args:
        model: of `load_model`.
        videos: paths of files, or of folders of pictures.
        top_k: classes to name; all of them, if there are fewer.
        batch_size: clips that go through the model at once.

    Yields:
        A prediction for each video, in their order.
    """
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    waiting: list[tuple[str, torch.Tensor | str]] = []  # a clip (T, C, h, w), or what is wrong
    for video in videos:
        try:
            waiting.append((video, transform(sampled_frames(video, model.config.num_frames))))
        except VideoDecodeError as error:
            waiting.append((video, str(error)))
        if len(waiting) == batch_size:
            yield from _predict(model, waiting, top_k)
            waiting = []
    yield from _predict(model, waiting, top_k)


def sampled_frames(video: str | os.PathLike, num_frames: int) -> torch.Tensor:
    """Frames spread over the whole video, a file or a folder of pictures: uint8 (T, C, h, w)."""
    with FrameFolder(video) if os.path.isdir(video) else VideoReader(video) as reader:
        return reader.frames(uniform_indices(num_video_frames=reader.num_frames, num_frames=num_frames))


def _predict(model: nn.Module, waiting: list[tuple[str, torch.Tensor | str]], top_k: int) -> Iterator[Prediction]:
    clips = [clip for _, clip in waiting if not isinstance(clip, str)]
    if clips:
        pixels_BTChw = torch.stack(clips).to(model.device, model.dtype)
        score_BK = scores(model, pixels_BTChw)
        best = score_BK.topk(min(top_k, score_BK.shape[1]))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    for video, clip in waiting:
        if isinstance(clip, str):
            yield Prediction(video, [], [], clip)
        else:
            classes, values = next(rows)
            yield Prediction(video, [model.config.id2label[k] for k in classes], values)


def _files(paths: Sequence[str]) -> list[str]:
    return [video for path in paths for video in (videos_in(path) if os.path.isdir(path) else [path])]


def _print_table(predictions: Sequence[Prediction]) -> None:
    width = max((len(one.video) for one in predictions), default=0)
    for one in predictions:
        best = zip(one.labels, one.scores, strict=True)
        answer = "   ".join(f"{100 * score:5.1f} % {label}" for label, score in best)
        print(f"{one.video:{width}}  {answer or 'cannot be read'}")


def _print_csv(predictions: Sequence[Prediction]) -> None:
    numbers = range(1, max((len(one.labels) for one in predictions), default=0) + 1)
    table = csv.writer(sys.stdout)
    table.writerow(["video", *(f"{column}{i}" for i in numbers for column in ("class", "score")), "error"])
    for one in predictions:
        best = [cell for k, s in zip(one.labels, one.scores, strict=True) for cell in (as_text(k), f"{s:.4f}")]
        best += [""] * (2 * len(numbers) - len(best))
        table.writerow([as_text(one.video), *best, as_text(one.error or "")])


def _print_json(predictions: Sequence[Prediction]) -> None:
    print(json.dumps([asdict(one) for one in predictions], indent=2, ensure_ascii=False))


FORMATS = {"table": _print_table, "csv": _print_csv, "json": _print_json}


def main(argv: list[str] | None = None) -> int:
    """The command line; see the text of this module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("model", help="finished video model or adapter: a folder or a Hub repository")
    add("videos", nargs="+", metavar="video", help="video files, or folders with videos at any depth")
    add("--top_k", type=int, default=5, help="classes to name (default: %(default)s)")
    add("--format", choices=FORMATS, default="table", help="of what is printed (default: %(default)s)")
    add("--batch_size", type=int, default=8, help="clips that go through the model at once (default: %(default)s)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if min(args.top_k, args.batch_size) < 1:
        parser.error(f"--top_k ({args.top_k}) and --batch_size ({args.batch_size}) must be 1 or more")
    videos = _files(args.videos)
    model = load_model(args.model, args.device)
    predictions = []
    with tqdm(total=len(videos), unit="video", disable=None) as progress:  # shown on terminals
        for one in predict_videos(model, videos, top_k=args.top_k, batch_size=args.batch_size):
            predictions.append(one)
            progress.update()
            if one.error:
                progress.write(one.error, file=sys.stderr)
    FORMATS[args.format](predictions)
    return int(any(one.error for one in predictions))


if __name__ == "__main__":
    from .training.command import run_as_command

    raise SystemExit(run_as_command(main))
