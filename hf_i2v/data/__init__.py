"""Video in: decode, sample, transform, batch."""

from .datasets import VideoClips, collate, load_video_folder
from .decode import VideoDecodeError, VideoInfo, VideoReader, decode_frames, probe
from .failures import TooManyBadVideosError
from .loader import ClipLoader, epoch_order, rank_batches
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
    "ClipLoader",
    "Compose",
    "Normalize",
    "Preprocessing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "ResizeShortSide",
    "TooManyBadVideosError",
    "VideoClips",
    "VideoDecodeError",
    "VideoInfo",
    "VideoReader",
    "collate",
    "decode_frames",
    "epoch_order",
    "eval_transform",
    "load_video_folder",
    "preprocessing_from_pretrained",
    "probe",
    "rank_batches",
    "train_transform",
    "uniform_indices",
]
