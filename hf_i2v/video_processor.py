"""A video in any form becomes `pixel_values` as in training: frames spread over the whole video, then the pixels.

Its pixels are made by the package's own transforms, so they are those of training on every machine, and neither
torchvision nor torchcodec is needed.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from huggingface_hub.utils import httpx
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from .data.crops import CenterCrop, ResizeShortSide
from .data.decode import VideoDecodeError, VideoReader
from .data.sampling import uniform_indices
from .data.transforms import Normalize, preprocessing_of_processor

MAX_URL_BYTES = 2**30
MAX_URL_SECONDS = 300.0
FORMS = (
    "a path, a file:// or http(s):// URL, the bytes of a file, a list of PIL images or of arrays (h, w, C), or an "
    "array or tensor (T, h, w, C) or (T, C, h, w), uint8"
)


class I2VVideoProcessor(BaseVideoProcessor):
    """For videos, one or a list of them: a path, a URL, the bytes of a file, or decoded frames."""

    model_input_names = ["pixel_values"]
    size = {"shortest_edge": 224}
    crop_size = {"height": 224, "width": 224}
    image_mean, image_std, resample = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 2
    do_resize = do_center_crop = do_rescale = do_normalize = do_sample_frames = True
    num_frames = 8

    def sample_frames(self, metadata: Any, num_frames: int | None = None, **kwargs: Any) -> np.ndarray:
        """The numbers of the middle frames of `num_frames` equal segments of the video, as in evaluation.

        Args:
            metadata: `total_num_frames` is read from it.
            num_frames: default: the processor's.
            kwargs: of transformers; not used.
        """
        num_frames = num_frames or self.num_frames
        return np.array(uniform_indices(num_video_frames=metadata.total_num_frames, num_frames=num_frames))

    def preprocess(
        self,
        videos: Any,
        num_frames: int | None = None,
        do_sample_frames: bool | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Videos → pixels.

        Args:
            videos: one video or a list of them; see `FORMS`.
            num_frames: frames of a clip; default: the processor's.
            do_sample_frames: False takes all frames of each video.
            return_tensors: "pt" or "np".
            kwargs: none other is taken; what differs is set on the processor itself.

        Returns:
            `pixel_values` (B, T, C, h, w).

        Raises:
            VideoDecodeError: a video that cannot be read; the message names it.
            ValueError: something that is no video, or an unknown argument.
        """
        if unknown := sorted(key for key, value in kwargs.items() if value is not None):
            raise ValueError(f"a call does not take {unknown}; set what differs on the processor itself")
        num_frames = num_frames or self.num_frames
        take_all = not (self.do_sample_frames if do_sample_frames is None else do_sample_frames)

        def sample(total: int) -> Sequence[int]:
            return range(total) if take_all else uniform_indices(num_video_frames=total, num_frames=num_frames)

        clips = [self.pixels(read_frames(video, sample)) for video in as_list(videos)]
        return BatchFeature({"pixel_values": torch.stack(clips)}, tensor_type=return_tensors)

    def pixels(self, frames_TChw: torch.Tensor) -> torch.Tensor:
        """uint8 frames → float32 (T, C, h, w)."""
        wanted = preprocessing_of_processor(self)
        frames_TChw = ResizeShortSide(wanted.size, wanted.interpolation)(frames_TChw)
        return Normalize(wanted.mean, wanted.std)(CenterCrop(wanted.size)(frames_TChw))


def as_list(videos: Any) -> list:
    """One video or several, as a list of videos."""
    if isinstance(videos, (list, tuple)) and not is_frames(videos):
        return list(videos)
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    return [videos]


def is_frames(video: Any) -> bool:
    """Whether a list is the frames of one video."""
    return isinstance(video, (list, tuple)) and len(video) > 0 and all(map(_is_frame, video))


def _is_frame(frame) -> bool:
    return _is_pil_image(frame) or (isinstance(frame, (np.ndarray, torch.Tensor)) and frame.ndim in (2, 3))


def _is_pil_image(frame) -> bool:
    return hasattr(frame, "convert")  # known by what is needed of it: the code that travels needs no Pillow


def read_frames(video: Any, sample: Callable[[int], Sequence[int]]) -> torch.Tensor:
    """Frames of one video in any of the `FORMS`, uint8 (T, C, h, w).

    Args:
        sample: from the number of frames of the video to the numbers of those that are wanted.

    Raises:
        VideoDecodeError: a video that cannot be read; the message names it.
        ValueError: something that is no video.
    """
    if isinstance(video, Mapping):  # as data sets hold undecoded videos
        video = video.get("bytes") or video.get("path")
    if is_frames(video):
        chosen = [video[i] for i in sample(len(video))]
        arrays = [np.asarray(f.convert("RGB") if _is_pil_image(f) else f) for f in chosen]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(f"the frames of a video must be of one size, got {sorted({a.shape for a in arrays})}")
        return _as_TChw(torch.from_numpy(np.stack(arrays)))
    if isinstance(video, (np.ndarray, torch.Tensor)) and video.ndim == 4 and len(video):
        return _as_TChw(torch.as_tensor(video[list(sample(len(video)))]))
    if not isinstance(video, (str, os.PathLike, bytes)) and not hasattr(video, "read"):
        shape = f" of shape {tuple(video.shape)}" if hasattr(video, "shape") else ""
        raise ValueError(f"a {type(video).__name__}{shape} is no video; expected {FORMS}")
    name = None
    if isinstance(video, str) and video.startswith(("http://", "https://")):
        name, video = video, download(video)
    elif isinstance(video, str) and video.startswith("file://"):
        video = url2pathname(urlsplit(video).path)
    with VideoReader(video, name=name) as reader:
        return reader.frames(sample(reader.num_frames))


def _as_TChw(frames: torch.Tensor) -> torch.Tensor:
    if frames.dtype != torch.uint8:
        raise ValueError(f"decoded frames must be uint8 from 0 to 255, got {frames.dtype}")
    if frames.shape[-1] == 3:
        return frames.permute(0, 3, 1, 2)
    if frames.ndim == 4 and frames.shape[1] == 3:
        return frames
    raise ValueError(f"decoded frames must be (T, h, w, 3) or (T, 3, h, w), got {tuple(frames.shape)}")


def download(url: str, *, max_bytes: int = MAX_URL_BYTES, seconds: float = MAX_URL_SECONDS) -> bytes:
    """What a URL gives.

    Args:
        max_bytes: the most that is fetched.
        seconds: for all of it; for a single answer of the server a tenth of that.

    Raises:
        VideoDecodeError: the server does not give it, or it takes more than that.
    """
    end, content = time.monotonic() + seconds, bytearray()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=seconds / 10) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > max_bytes:
                    raise VideoDecodeError(f"{url}: more than {max_bytes} bytes, the most that are fetched")
                if time.monotonic() > end:
                    raise VideoDecodeError(f"{url}: fetching it takes longer than {seconds:g} seconds")
    except httpx.TimeoutException as error:
        raise VideoDecodeError(
            f"{url}: fetching it takes longer than {seconds:g} seconds (no answer within {seconds / 10:g})"
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise VideoDecodeError(f"{url}: cannot be fetched ({type(error).__name__}: {error})") from error
    return bytes(content)
