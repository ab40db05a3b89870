"""A page to try a video model on: pick a video, see the frames that count, the answers, and what speaks for them.

    pip install "hf_i2v[gradio]"
    python examples/demo.py --model my-video-model

A webcam can be used where the browser has one; a causal model also answers live, while the camera runs. Nothing is
shared: the page is served on this machine only.
"""

import argparse
import base64
import html
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from hf_i2v.data import Preprocessing, VideoDecodeError, VideoReader, eval_transform, uniform_indices
from hf_i2v.live import LiveClassifier
from hf_i2v.predict import load_model
from hf_i2v.training.command import run_as_command
from hf_i2v.training.evaluation import scores

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr  # reads its settings when it is imported
import pandas as pd

STYLE = """
.frames {display: grid; gap: 8px; padding-top: 24px; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr))}
.frames figure {margin: 0; text-align: center}
.frames img {width: 100%}
#video video {object-fit: contain; max-height: 240px}
"""


@torch.no_grad()
def look_at(path: str, model: nn.Module, transform):
    """A video file → its sampled frames with their evidence, the top classes, and the evidence as a table.

    The evidence of a frame is what the winner's probability loses when the frame is replaced by a neighbour.

    Raises:
        VideoDecodeError: the video cannot be read.
    """
    T = model.config.num_frames
    with VideoReader(path, name=Path(path).name) as video:
        indices = uniform_indices(num_video_frames=video.num_frames, num_frames=T)
        frames_TChw = video.frames(indices)
    clip_TChw = transform(frames_TChw)
    clips = [clip_TChw]
    for t in range(T):
        neighbour = t - 1 if t else min(1, T - 1)
        clips.append(clip_TChw[[neighbour if i == t else i for i in range(T)]])
    probabilities = scores(model, torch.stack(clips).to(model.device, model.dtype), clips_per_forward=4)
    winner = int(probabilities[0].argmax())
    evidence = (probabilities[0, winner] - probabilities[1:, winner]).tolist()

    labels = model.config.id2label
    answers = {labels[i]: p for i, p in enumerate(probabilities[0].tolist())}
    frames = [f"{index:0{len(str(indices[-1]))}}" for index in indices]  # as text, sorts like the numbers
    pictures = pictures_as_html(frames_TChw, [f"{100 * share:+.1f} %" for share in evidence])
    return pictures, answers, pd.DataFrame({"frame": frames, "evidence": evidence})


def pictures_as_html(frames_TChw: torch.Tensor, captions: Sequence[str]) -> str:
    """Small whole pictures, each with a line of text below it."""
    figures = []
    for frame_Chw, caption in zip(frames_TChw, captions, strict=True):
        picture, file = Image.fromarray(frame_Chw.permute(1, 2, 0).numpy()), io.BytesIO()
        picture.thumbnail((320, 320))
        picture.save(file, "JPEG")
        data = base64.b64encode(file.getvalue()).decode()
        figures.append(f'<figure><img src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>')
    return f'<div class="frames">{"".join(figures)}</div>'


def build_page(model: nn.Module, fps: float | None = None) -> gr.Blocks:
    """The page for a model of `hf_i2v.predict.load_model`.

    Args:
        fps: frames a second that the live tab takes, see `LiveClassifier`.
    """
    with gr.Blocks(title="hf_i2v") as page:
        with gr.Tab("a video"):
            _video_tab(model)
        with gr.Tab("live"):
            _live_tab(model, fps)
    return page


def _video_tab(model: nn.Module) -> None:
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    T = model.config.num_frames
    gr.Markdown(f"## What happens in this video?\n{T} frames, spread over the whole video.")
    with gr.Row():
        video = gr.Video(label="video", sources=["upload", "webcam"], height=300, elem_id="video")
        answers = gr.Label(label="top classes", num_top_classes=5)
    frames = gr.HTML(label="the frames it looks at, and their evidence", show_label=True, container=True)
    evidence = gr.BarPlot(x="frame", y="evidence", sort="x", label="evidence of each frame", height=180)

    def show(path: str | None):
        if path is None:
            return None, None, None
        try:
            return look_at(path, model, transform)
        except VideoDecodeError as error:
            return f'<p role="alert">This video cannot be read. {html.escape(str(error))}</p>', None, None

    video.change(show, video, [frames, answers, evidence])


def _live_tab(model: nn.Module, fps: float | None) -> None:
    """The camera of the browser, frame by frame. Each visitor has a `LiveClassifier` and so a stream of their own."""
    try:
        taken = LiveClassifier(model, fps=fps).fps
    except ValueError as error:
        gr.HTML(f'<p role="alert">{html.escape(str(error))}</p>')
        return
    gr.Markdown(f"## What happens now?\nThe model takes {taken:g} frames a second.")
    with gr.Row():
        camera = gr.Image(label="camera", sources=["webcam"], streaming=True, type="numpy", height=300)
        with gr.Column():
            answer = gr.Textbox(label="now", elem_id="now")
            classes = gr.Label(label="top classes", num_top_classes=5)
    smoothing = gr.Slider(0, 5, 1, label="smoothing (seconds)")
    threshold = gr.Slider(0, 1, 0.3, label="threshold, below which there is no action")
    session = gr.State(None)

    def see(picture_hwC: np.ndarray | None, live: LiveClassifier | None, smoothing: float, threshold: float):
        live = live or LiveClassifier(model, fps=fps)
        live.smoothing, live.threshold = smoothing, threshold
        picture_Chw = None if picture_hwC is None else torch.from_numpy(picture_hwC).permute(2, 0, 1)
        seen = None if picture_Chw is None else live.see(picture_Chw, time.monotonic())
        if seen is None:
            return gr.skip(), gr.skip(), live
        said = f"{seen.label}  ({100 * seen.score:.0f} %, frame {live.num_steps})"
        return said, dict(zip(live.labels, seen.scores_K.tolist(), strict=True)), live

    camera.stream(
        see,
        [camera, session, smoothing, threshold],
        [answer, classes, session],
        stream_every=1 / taken,
        time_limit=None,
        show_progress="hidden",
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="finished video model or adapter: a folder or a Hub repository")
    parser.add_argument("--fps", type=float, help="frames a second that the live tab takes, as in training")
    parser.add_argument("--server_port", type=int, default=None)
    args = parser.parse_args(argv)
    page = build_page(load_model(args.model), args.fps)
    page.launch(server_port=args.server_port, max_file_size="200mb", share=False, css=STYLE)


if __name__ == "__main__":
    raise SystemExit(run_as_command(main))
