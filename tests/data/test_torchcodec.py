"""The other backend: with a stand-in for torchcodec always, and with itself where it is installed."""

import sys
import types

import pytest
import torch
from datasets import Dataset, Features, Value, Video

from hf_i2v.data import VideoClips, VideoDecodeError, VideoReader, decode_frames, eval_transform
from hf_i2v.data.torchcodec_reader import TorchcodecReader


@pytest.fixture
def path(tmp_path, write_video):
    return str(write_video(tmp_path / "clip.mp4", num_frames=9, bf="2"))


def make_clips(path, backend):
    rows = {"video": [{"path": path, "bytes": None}], "label": [1]}
    dataset = Dataset.from_dict(rows, features=Features(video=Video(decode=False), label=Value("int64")))
    look = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    return VideoClips(dataset, num_frames=4, transform=eval_transform(**look), train=False, backend=backend)


class StandIn:
    """The part of torchcodec's VideoDecoder that is used."""

    def __init__(self, source, *, num_ffmpeg_threads, seek_mode):
        assert (num_ffmpeg_threads, seek_mode) == (1, "exact")
        try:
            self.video = VideoReader(source)
        except VideoDecodeError as error:
            raise ValueError("no valid stream") from error

    def __len__(self):
        return self.video.num_frames

    def get_frames_at(self, indices):
        if max(indices) >= len(self):
            raise IndexError(f"index {max(indices)}")
        times = torch.tensor(self.video.times())[indices] + 5
        return types.SimpleNamespace(data=self.video.frames(indices), pts_seconds=times)


@pytest.fixture
def stand_in(monkeypatch):
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = StandIn
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)


def test_backend(path, stand_in, tmp_path):
    assert torch.equal(make_clips(path, "torchcodec")[0]["pixel_values"], make_clips(path, "pyav")[0]["pixel_values"])
    with TorchcodecReader(path) as video:
        assert video.num_frames == 9 and video.times() == pytest.approx([i / 10 for i in range(9)])
        assert torch.equal(video.frames([7, 2]), decode_frames(path, [7, 2]))
        with pytest.raises(VideoDecodeError, match=r"clip\.mp4: torchcodec cannot read it \(index 9\)"):
            video.frames([9])
    (tmp_path / "clip.mp4").write_bytes(b"torn")
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4: not a video file, or a damaged one"):
        make_clips(path, "torchcodec")[0]


def test_times_cost_no_decoding(path, stand_in, monkeypatch):
    with TorchcodecReader(path) as video:
        pixels = video._decoder.get_frames_at
        monkeypatch.setattr(video._decoder, "get_frames_at", None)
        assert video.times() == pytest.approx([i / 10 for i in range(9)])
        monkeypatch.setattr(video._decoder, "get_frames_at", pixels)
        video.num_frames = 7  # as where the two number frames otherwise
        assert video.times() == pytest.approx([i / 10 for i in range(7)])


def test_missing_torchcodec_and_unknown_backend(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match="backend 'torchcodec' needs torchcodec and FFmpeg"):
        make_clips(path, "torchcodec")[0]
    with pytest.raises(ValueError, match=r"backend \('decord'\) must be one of \['pyav', 'torchcodec'\]"):
        make_clips(path, "decord")[0]


def test_torchcodec_itself(path):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec does not import: {error}")
    with TorchcodecReader(path) as video:
        assert video.num_frames == 9
        difference = video.frames([0, 5]).int() - decode_frames(path, [0, 5]).int()
        assert difference.abs().float().mean() < 3
