"""transformers' video-classification pipeline, sampling frames as the model was trained: over the whole video."""

import logging
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, VideoClassificationPipeline
from transformers.image_processing_utils import BatchFeature

from .data.decode import VideoDecodeError
from .data.transforms import Preprocessing, preprocessing_of_processor
from .video_processor import I2VVideoProcessor, as_list, is_frames, read_frames

logger = logging.getLogger(__name__)


class I2VVideoClassificationPipeline(VideoClassificationPipeline):
    """For an I2V model, the middle frames of `num_frames` equal segments of the video, which may be a path, a URL, the
    bytes of a file or decoded frames (`hf_i2v.video_processor.FORMS`); transformers' own takes the first frames of a
    path or URL. Any other model gets what transformers does.

    Calls take `on_bad_video`: "error" stops at a video that cannot be read and names it; "skip" gives an empty list
    for it, and a warning. All other arguments, of calls and of the class, are transformers' own (`model`, and
    in kwargs `top_k`, `num_workers`, `batch_size`, …).
    """

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        if model.config.model_type == "i2v":
            kwargs["video_processor"] = _processor(model.config, **kwargs)
        super().__init__(model, *args, **kwargs)
        if self.image_processor is None and model.config.model_type == "i2v":
            self.image_processor = self.video_processor  # transformers asks for one to make batches

    def check_model_type(self, supported_models: Any) -> None:
        """As in transformers; I2V models are supported."""
        if self.model.config.model_type != "i2v":  # transformers knows its own models only
            super().check_model_type(supported_models)

    def __call__(self, inputs: Any, **kwargs: Any) -> list:
        if self.model.config.model_type == "i2v":
            if is_frames(inputs):  # one video, not a list of videos
                return super().__call__([inputs], **kwargs)[0]
            if isinstance(inputs, tuple) or getattr(inputs, "ndim", 0) == 5:
                inputs = as_list(inputs)
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(self, on_bad_video: Literal["error", "skip"] | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if on_bad_video not in (None, "error", "skip"):
            raise ValueError(f"on_bad_video is {on_bad_video!r}, expected 'error' or 'skip'")
        if on_bad_video is not None:
            preprocess["on_bad_video"] = on_bad_video
        return preprocess, forward, postprocess

    def preprocess(
        self,
        video: Any,
        num_frames: int | None = None,
        frame_sampling_rate: int | None = None,
        on_bad_video: Literal["error", "skip"] = "error",
    ) -> BatchFeature:
        """As in transformers: the pixels (1, T, C, h, w) of a video."""
        if self.model.config.model_type != "i2v":
            return super().preprocess(video, num_frames, frame_sampling_rate or 1)
        num_frames = num_frames or self.model.config.num_frames
        try:
            if frame_sampling_rate is None:
                inputs = self.video_processor(video, num_frames=num_frames, return_tensors="pt")
            else:  # as transformers does
                numbers = np.linspace(0, num_frames * frame_sampling_rate - 1, num=num_frames, dtype=np.int64)
                frames_TChw = read_frames(video, lambda total: np.minimum(numbers, total - 1).tolist())
                inputs = self.video_processor(frames_TChw, do_sample_frames=False, return_tensors="pt")
            readable = True
        except (VideoDecodeError, ValueError) as error:
            if on_bad_video == "error":
                raise
            logger.warning("A video is left out: %s", error)
            black_ThwC = np.zeros((num_frames, 16, 16, 3), np.uint8)
            inputs, readable = self.video_processor(black_ThwC, do_sample_frames=False, return_tensors="pt"), False
        inputs["is_readable"] = torch.tensor([readable])
        return inputs.to(self.dtype)

    def _forward(self, model_inputs):
        readable = model_inputs.pop("is_readable", None)
        outputs = super()._forward(model_inputs)
        if readable is not None:
            outputs["is_readable"] = readable
        return outputs

    def postprocess(self, model_outputs: dict, **kwargs: Any) -> list[dict]:
        """As in transformers; [] for a video that was skipped."""
        if not model_outputs.get("is_readable", True):
            return []
        return super().postprocess(model_outputs, **kwargs)


def _processor(config, video_processor=None, image_processor=None, **kwargs) -> I2VVideoProcessor | None:
    """The processor that was saved with the model or handed in, else one as the model's configuration says."""
    if isinstance(video_processor, I2VVideoProcessor):
        return video_processor
    if given := video_processor or image_processor:
        preprocessing = preprocessing_of_processor(given)
    elif config.preprocessing:
        preprocessing = Preprocessing(**config.preprocessing)
    else:
        return None
    return I2VVideoProcessor(num_frames=config.num_frames, **preprocessing.processor_arguments())
