"""`pipeline("video-classification")` on a saved model, with the frames and pixels that training uses."""

import dataclasses
import json
import logging
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
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
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.video_utils import VideoMetadata

from hf_i2v import I2VConfig, I2VForVideoClassification, I2VVideoProcessor, ZeroI2VConfig
from hf_i2v.data import Preprocessing, VideoClips, VideoDecodeError, eval_transform, load_video_folder
from hf_i2v.pipeline import I2VVideoClassificationPipeline
from hf_i2v.video_processor import download


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
    first_frames = {row["label"]: row["score"] for row in classify(str(video), frame_sampling_rate=1)}
    assert scores["left"] != pytest.approx(first_frames["left"], abs=4e-3)  # those do not show the second half


@pytest.fixture
def model(tmp_path):
    """A model that takes pictures of 24 pixels although its configuration says 40, in a folder."""
    preprocessing = Preprocessing(24, (0.4,) * 3, (0.3,) * 3, "bicubic")
    config = I2VConfig(
        image_config=tiny_image_model("dinov2", image_size=40).config,
        num_frames=4,
        id2label={0: "left", 1: "right", 2: "up"},
        preprocessing=dataclasses.asdict(preprocessing),
    )
    model = I2VForVideoClassification(config).eval()
    randomize_adapter(model).save_pretrained(tmp_path / "model")
    return model


@pytest.fixture
def classify(model, tmp_path):
    return pipeline("video-classification", model=str(tmp_path / "model"))


def test_pixels_are_those_of_training(classify, model, video):
    transform = eval_transform(**model.config.preprocessing)
    clips = VideoClips(load_video_folder(video.parent.parent)["train"], num_frames=4, transform=transform, train=False)
    assert torch.equal(classify.preprocess(str(video))["pixel_values"][0], clips[0]["pixel_values"])


def test_a_video_in_every_form(classify, video):
    expected = classify(str(video))
    with av.open(str(video)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    array_ThwC = np.stack([np.asarray(frame) for frame in frames])
    undecoded = {"path": None, "bytes": video.read_bytes()}
    tensor = torch.from_numpy(array_ThwC)
    arrays = list(array_ThwC)
    forms = [video, video.as_uri(), video.read_bytes(), undecoded, frames, arrays, array_ThwC, tensor]
    for form in [*forms, tensor.permute(0, 3, 1, 2)]:
        assert classify(form) == expected, type(form)
    assert classify(forms) == [expected] * len(forms)
    assert classify(np.stack([array_ThwC, array_ThwC])) == [expected] * 2
    batched = classify([str(video), frames, array_ThwC], batch_size=2)
    assert [row[0]["score"] for row in batched] == pytest.approx([expected[0]["score"]] * 3)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (7, "a int is no video; expected a path"),
        (np.zeros((2, 8, 8, 3), np.float32), "must be uint8 from 0 to 255, got torch.float32"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"must be .T, h, w, 3. or .T, 3, h, w., got .*2"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)] * 2, "must be of one size"),
        ("http://127.0.0.1:9/a.mp4", "http://127.0.0.1:9/a.mp4: cannot be fetched .ConnectError"),
    ],
)
def test_what_is_no_video(classify, video, message):
    with pytest.raises(ValueError, match=message):
        classify(video)


def test_a_bad_file_in_a_list(classify, video, tmp_path, caplog):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    videos = [str(video), str(tmp_path / "bad.mp4"), str(video)]
    with pytest.raises(VideoDecodeError, match=r"bad\.mp4"):
        classify(videos)
    for batch_size in (1, 3):
        first, bad, last = classify(videos, on_bad_video="skip", batch_size=batch_size)
        assert first == last and first[0]["label"] in ("left", "right", "up") and bad == []
    assert "bad.mp4" in caplog.text
    with pytest.raises(ValueError, match="on_bad_video is 'drop'"):
        classify(videos, on_bad_video="drop")


@pytest.fixture
def server(video):
    """The address of a server with a video and a stream that never ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/clip.mp4", "/endless") else 404)
            self.end_headers()
            if self.path == "/clip.mp4":
                self.wfile.write(video.read_bytes())
            with suppress(OSError):
                while self.path == "/endless":
                    self.wfile.write(bytes(1000))

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url(classify, video, server):
    assert classify(f"{server}/clip.mp4") == classify(str(video))
    with pytest.raises(VideoDecodeError, match=r"none\.mp4: cannot be fetched .*404"):
        classify(f"{server}/none.mp4")
    with pytest.raises(VideoDecodeError, match="endless: more than 5000 bytes"):
        download(f"{server}/endless", max_bytes=5000)
    with pytest.raises(VideoDecodeError, match=r"endless: fetching it takes longer than 0\.1 seconds"):
        download(f"{server}/endless", seconds=0.1)


def test_transformers_own_classes_sample_as_trained(model, classify, video, tmp_path):
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "model")  # as on a machine with torchvision
    assert isinstance(processor, I2VVideoProcessor) and processor.num_frames == 4
    assert list(processor.sample_frames(VideoMetadata(total_num_frames=30))) == [3, 11, 18, 26]
    plain = VideoClassificationPipeline.__new__(VideoClassificationPipeline)  # which knows no i2v models by itself
    plain.check_model_type = lambda supported: None
    plain.__init__(model=model, video_processor=processor)
    assert plain(str(video)) == classify(str(video))
    processor.save_pretrained(tmp_path / "saved")
    assert AutoVideoProcessor.from_pretrained(tmp_path / "saved").to_dict() == processor.to_dict()


def test_a_model_saved_before_there_was_an_own_processor(classify, video, tmp_path):
    file = tmp_path / "model" / "video_preprocessor_config.json"
    before = json.loads(file.read_text()) | {"video_processor_type": "VideoMAEVideoProcessor"}
    before.pop("auto_map")
    file.write_text(json.dumps(before))
    assert pipeline("video-classification", model=str(tmp_path / "model"))(str(video)) == classify(str(video))


def test_nothing_is_deprecated(model, video, tmp_path, recwarn, caplog):
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        model.save_pretrained(tmp_path / "again")
        pipeline("video-classification", model=str(tmp_path / "again"))(str(video))
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert not [w for w in recwarn if issubclass(w.category, (FutureWarning, DeprecationWarning))]
    assert "deprecated" not in caplog.text and "torchvision" not in caplog.text


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
