"""`pipeline("video-classification")` on a saved model, with the frames and pixels that training uses."""

import dataclasses

import pytest
import torch
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model, write_moving_texture
from transformers import (
    VideoClassificationPipeline,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    pipeline,
)

from hf_i2v import I2VConfig, I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.data import Preprocessing, VideoClips, eval_transform, load_video_folder
from hf_i2v.pipeline import I2VVideoClassificationPipeline


@pytest.fixture
def video(tmp_path):
    """A video in the layout of a data set."""
    return write_moving_texture(tmp_path / "data" / "down" / "clip.mp4")


def test_pipeline_and_training_see_the_same_clip(tmp_path, video):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    preprocessing = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    preprocessing.image_processor().save_pretrained(tmp_path / "image")
    labels = {0: "left", 1: "right", 2: "up"}
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, id2label=labels)
    merged = randomize_adapter(get_peft_model(model, ZeroI2VConfig())).eval().merge_and_unload()
    merged.save_pretrained(tmp_path / "model")

    classify = pipeline("video-classification", model=str(tmp_path / "model"))
    scores = {row["label"]: row["score"] for row in classify(str(video))}

    transform = eval_transform(**dataclasses.asdict(preprocessing))
    clips = VideoClips(load_video_folder(video.parent.parent)["train"], num_frames=4, transform=transform, train=False)
    probabilities = merged(clips[0]["pixel_values"][None]).logits.softmax(-1)[0]
    assert scores == {name: pytest.approx(probabilities[i].item(), abs=1e-3) for i, name in labels.items()}
    if classify.video_processor is None:  # with torchvision, transformers' own needs torchcodec for the rest
        first_frames = {row["label"]: row["score"] for row in classify(str(video), frame_sampling_rate=1)}
        assert scores["left"] != pytest.approx(first_frames["left"], abs=4e-3)  # those do not show the second half


def test_pixels_with_torchvision(tmp_path, video):
    pytest.importorskip("torchvision")
    model = I2VForVideoClassification(I2VConfig(image_config=tiny_image_model("clip").config, num_frames=4))
    model.config.preprocessing = {"size": 16, "mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bicubic"}
    model.save_pretrained(tmp_path / "model")
    classify = pipeline("video-classification", model=str(tmp_path / "model"))
    assert classify.video_processor is not None
    transform = eval_transform(**model.config.preprocessing)
    clips = VideoClips(load_video_folder(video.parent.parent)["train"], num_frames=4, transform=transform, train=False)
    pixels = classify.preprocess(str(video))["pixel_values"][0]
    assert torch.allclose(pixels, clips[0]["pixel_values"], atol=0.02)  # one step of a pixel, in units of std


def test_other_models_keep_transformers_own_pipeline(tmp_path, video):
    size = {"height": 16, "width": 16}
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = VideoMAEForVideoClassification(VideoMAEConfig(**tiny, image_size=16, patch_size=8, num_frames=4)).eval()
    processor = VideoMAEImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    ours, theirs = (
        kind(model=model, image_processor=processor)(str(video))
        for kind in (I2VVideoClassificationPipeline, VideoClassificationPipeline)
    )
    assert ours == theirs
