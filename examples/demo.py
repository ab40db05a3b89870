"""A page to try a video model on: pick a video, see the frames that count, the answers, and what speaks for them.

    pip install -e ".[gradio]"
    python examples/demo.py --model my-video-model

A webcam can be used where the browser has one. Nothing is shared: the page is served on this machine only.
"""

import argparse
import os

import torch

from hf_i2v import I2VForVideoClassification
from hf_i2v.data import Preprocessing, VideoDecodeError, VideoReader, eval_transform, uniform_indices

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr  # reads its settings when it is imported
import pandas as pd


@torch.no_grad()
def look_at(path: str, model: I2VForVideoClassification, transform):
    """A video file → its sampled frames with their evidence, the top classes, and the evidence as a table.

    The evidence of a frame is what the winner's probability loses when the frame is replaced by a neighbour.
    """
    T = model.config.num_frames
    try:
        with VideoReader(path) as video:
            indices = uniform_indices(num_video_frames=video.num_frames, num_frames=T)
            frames_TCHW = video.frames(indices)
    except VideoDecodeError as error:
        raise gr.Error(f"This video cannot be read: {str(error).rpartition(': ')[2]}") from None
    clip_TCHW = transform(frames_TCHW)
    clips = [clip_TCHW]
    for t in range(T):
        neighbour = t - 1 if t else min(1, T - 1)
        clips.append(clip_TCHW[[neighbour if i == t else i for i in range(T)]])
    probabilities = model(torch.stack(clips)).logits.softmax(-1)
    winner = int(probabilities[0].argmax())
    evidence = (probabilities[0, winner] - probabilities[1:, winner]).tolist()

    pictures = [
        (frame_CHW.permute(1, 2, 0).numpy(), f"{100 * share:+.1f} %")
        for frame_CHW, share in zip(frames_TCHW, evidence, strict=True)
    ]
    labels = model.config.id2label
    answers = {labels[i]: p for i, p in enumerate(probabilities[0].tolist())}
    frames = [f"{index:0{len(str(indices[-1]))}}" for index in indices]  # as text, sorts like the numbers
    return pictures, answers, pd.DataFrame({"frame": frames, "evidence": evidence})


def build_page(model: I2VForVideoClassification) -> gr.Blocks:
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    with gr.Blocks(title="hf_i2v") as page:
        gr.Markdown(f"## What happens in this video?\n{model.config.num_frames} frames, spread over the whole video.")
        with gr.Row():
            video = gr.Video(label="video", sources=["upload", "webcam"], height=260)
            answers = gr.Label(label="top classes", num_top_classes=5)
        frames = gr.Gallery(label="the frames it looks at, and their evidence", columns=8, height=180)
        evidence = gr.BarPlot(x="frame", y="evidence", sort="x", label="evidence of each frame", height=180)

        def show(path: str | None):
            return look_at(path, model, transform) if path else (None, None, None)

        video.change(show, video, [frames, answers, evidence])
    return page


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="merged or baked video model: a folder or a Hub repository")
    parser.add_argument("--server_port", type=int, default=None)
    args = parser.parse_args(argv)
    model = I2VForVideoClassification.from_pretrained(args.model).eval()
    if model.config.preprocessing is None:
        parser.error(f"{args.model} does not say how its pixels are made; save it again from a model that does")
    build_page(model).launch(server_port=args.server_port, max_file_size="200mb", share=False)


if __name__ == "__main__":
    main()
