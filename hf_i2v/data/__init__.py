"""Video in: decode, sample, transform, batch."""

from .datasets import VideoClips, collate, load_video_folder
from .decode import VideoDecodeError, VideoInfo, VideoReader, decode_frames, probe
from .sampling import uniform_indices
from .transforms import (
    CenterCrop,
    Compose,
    Normalize,
    Preprocessing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeShortSide,
    eval_transform,
    preprocessing_from_pretrained,
    train_transform,
)

__all__ = [
    "CenterCrop",
    "Compose",
    "Normalize",
    "Preprocessing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "ResizeShortSide",
    "VideoClips",
    "VideoDecodeError",
    "VideoInfo",
    "VideoReader",
    "collate",
    "decode_frames",
    "eval_transform",
    "load_video_folder",
    "preprocessing_from_pretrained",
    "probe",
    "train_transform",
    "uniform_indices",
]
