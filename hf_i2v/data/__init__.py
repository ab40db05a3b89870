"""Video in: decode, sample, transform, batch."""

from .augment import ColorJitter, RandAugment, RandomErasing
from .clips import VideoClips, collate
from .crops import CenterCrop, RandomResizedCrop, ResizeShortSide, ShortSideJitter, ThreeCrops
from .decode import VideoInfo, VideoReader, decode_frames, probe
from .failures import TooManyBadVideosError
from .fingerprints import videos_fingerprint
from .folders import load_video_folder
from .frame_folder import FrameFolder
from .lists import read_class_names, read_list
from .live_frames import LiveFrame, LiveFrames
from .loader import ClipLoader
from .media import ReadLimits, VideoDecodeError
from .mixing import Mix
from .order import epoch_order, rank_batches
from .references import open_video
from .sampling import dense_indices, uniform_clips, uniform_indices
from .sources import add_data_arguments, load_videos, videos_from_args
from .splits import split_validation
from .transforms import (
    ClipTransform,
    Compose,
    Normalize,
    Preprocessing,
    RandomHorizontalFlip,
    eval_transform,
    preprocessing_from_pretrained,
    train_transform,
)
from .workers import default_num_workers

__all__ = [
    "CenterCrop",
    "ClipLoader",
    "ClipTransform",
    "ColorJitter",
    "Compose",
    "FrameFolder",
    "LiveFrame",
    "LiveFrames",
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
    "default_num_workers",
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
    "split_validation",
    "train_transform",
    "uniform_clips",
    "uniform_indices",
    "videos_fingerprint",
    "videos_from_args",
]
