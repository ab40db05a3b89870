"""Video in: decode, sample, transform, batch."""

from .augment import ColorJitter, RandAugment, RandomErasing
from .crops import CenterCrop, RandomResizedCrop, ResizeShortSide, ShortSideJitter, ThreeCrops
from .datasets import VideoClips, collate
from .decode import VideoInfo, VideoReader, decode_frames, probe
from .failures import TooManyBadVideosError
from .folders import load_video_folder
from .frame_folder import FrameFolder
from .lists import read_class_names, read_list
from .loader import ClipLoader, epoch_order, rank_batches
from .media import ReadLimits, VideoDecodeError
from .mixing import Mix
from .references import open_video
from .sampling import dense_indices, uniform_clips, uniform_indices
from .sources import add_data_arguments, load_videos, videos_from_args
from .transforms import (
    Compose,
    Normalize,
    Preprocessing,
    RandomHorizontalFlip,
    eval_transform,
    preprocessing_from_pretrained,
    train_transform,
)

__all__ = [
    "CenterCrop",
    "ClipLoader",
    "ColorJitter",
    "Compose",
    "FrameFolder",
    "Mix",
    "Normalize",
    "Preprocessing",
    "RandAugment",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "ReadLimits",
    "ResizeShortSide",
    "ShortSideJitter",
    "ThreeCrops",
    "TooManyBadVideosError",
    "VideoClips",
    "VideoDecodeError",
    "VideoInfo",
    "VideoReader",
    "add_data_arguments",
    "collate",
    "decode_frames",
    "dense_indices",
    "epoch_order",
    "eval_transform",
    "load_video_folder",
    "load_videos",
    "open_video",
    "preprocessing_from_pretrained",
    "probe",
    "rank_batches",
    "read_class_names",
    "read_list",
    "train_transform",
    "uniform_clips",
    "uniform_indices",
    "videos_from_args",
]
