"""A page to try a video model on: pick a video, see the frames that count, the answers, and what speaks for them.

    pip install "hf_i2v[gradio]"
    python examples/demo.py --model my-video-model

A webcam can be used where the browser has one. Nothing is shared: the page is served on this machine only.
"""

import argparse
import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from hf_i2v.data import Preprocessing, VideoDecodeError, VideoReader, eval_transform, uniform_indices
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


def build_page(model: nn.Module) -> gr.Blocks:
    """The page for a model of `hf_i2v.predict.load_model`."""
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    T = model.config.num_frames
    with gr.Blocks(title="hf_i2v") as page:
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
    return page


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="finished video model or adapter: a folder or a Hub repository")
    parser.add_argument("--server_port", type=int, default=None)
    args = parser.parse_args(argv)
    page = build_page(load_model(args.model))
    page.launch(server_port=args.server_port, max_file_size="200mb", share=False, css=STYLE)


if __name__ == "__main__":
    raise SystemExit(run_as_command(main))
