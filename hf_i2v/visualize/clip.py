"""The frames that a model gets of a video, as pixels and as pictures to draw on."""

import os
from typing import NamedTuple

import torch
from torch import nn

from ..backbones import Backbone, find_backbone
from ..data import CenterCrop, Preprocessing, ResizeShortSide, eval_transform
from ..predict import sampled_frames

LARGEST_PICTURE = 336  # pixels along one side


class Clip(NamedTuple):
    """A clip of one video, as in evaluation: T frames spread over the whole video, the middle square of each.

    Attributes:
        pictures_TChw: the squares, uint8, in the video's own resolution or less.
        pixels_BTChw: the model's `pixel_values`, B = 1.
    """

    pictures_TChw: torch.Tensor
    pixels_BTChw: torch.Tensor


def read_clip(model: nn.Module, video: str | os.PathLike) -> Clip:
    """The clip of a video, a file or a folder of pictures.

    Raises:
        VideoDecodeError: the video cannot be read.
    """
    frames_TChw = sampled_frames(video, model.config.num_frames)
    pixels_TChw = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))(frames_TChw)
    side = min(*frames_TChw.shape[-2:], LARGEST_PICTURE)
    pictures_TChw = CenterCrop(side)(ResizeShortSide(side)(frames_TChw))
    return Clip(pictures_TChw, pixels_TChw[None].to(model.device, model.dtype))


def video_backbone(model: nn.Module) -> Backbone:
    """The backbone of a model that can be looked into.

    Raises:
        ValueError: it is no video classifier, or does not say how its pixels are made.
    """
    config = getattr(model, "config", None)
    if not (hasattr(config, "num_frames") and hasattr(config, "id2label") and hasattr(config, "preprocessing")):
        raise ValueError(
            f"{type(model).__name__} is no video classifier of hf_i2v. Pass an I2VForVideoClassification, or a "
            "PeftModel around one, as hf_i2v.predict.load_model gives it."
        )
    if config.preprocessing is None:
        raise ValueError("The model does not say how its pixels are made (preprocessing in its config.json).")
    return find_backbone(model)
