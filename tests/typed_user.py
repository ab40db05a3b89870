"""What a user writes, for the type checker (`make lint`); nothing runs it. An untyped result would be `Any` here."""

from dataclasses import dataclass
from typing import assert_type

import torch

import hf_i2v
from hf_i2v.counting import Cost, cost, count_macs
from hf_i2v.data import VideoClips, eval_transform, load_video_folder
from hf_i2v.export import export_onnx, export_program
from hf_i2v.feature_cache import FeatureCache
from hf_i2v.hub import CheckpointUploads


class Shift(hf_i2v.SiteModule):
    def forward(self, x_MND: torch.Tensor, *, num_frames: int, **context: object) -> torch.Tensor:
        return x_MND.roll(num_frames)


@hf_i2v.register_method
@dataclass
class ShiftConfig(hf_i2v.I2VTunerConfig):
    method_name, title, paper = "typed_shift", "Shift", "none"
    share: float = 0.25

    def site_modules(self, backbone: hf_i2v.Backbone, layer: int) -> dict[str, hf_i2v.SiteModule]:
        return {"before": Shift()}


model = hf_i2v.I2VForVideoClassification.from_image_model("a/model", num_frames=8, id2label={0: "run"})
assert_type(model, hf_i2v.I2VForVideoClassification)
assert_type(model.with_stdha({-1: 1, 1: 1}), hf_i2v.I2VForVideoClassification)
assert_type(model.config.num_frames, int)
assert_type(model.config.time_offsets, list | None)
assert_type(hf_i2v.ZeroI2VConfig(num_frames=8).adapter_scale, float)
assert_type(hf_i2v.STAdapterConfig(adapter_width=64) + hf_i2v.InTIConfig(), hf_i2v.I2VTunerConfig)
assert_type(ShiftConfig(share=0.5).parts(), list[hf_i2v.I2VTunerConfig])
assert_type(hf_i2v.METHODS["aim"], type[hf_i2v.I2VTunerConfig])
assert_type(hf_i2v.to_released_state_dict(hf_i2v.load_released_checkpoint("file.pt", "aim")), dict[str, torch.Tensor])
assert_type(cost(model, (1, 8, 3, 224, 224)), Cost)
assert_type(count_macs(model, (1, 8, 3, 224, 224)), int)
export_onnx(export_program(model), "model.onnx", opset=20)

transform = eval_transform(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
clips = VideoClips(load_video_folder("videos")["train"], num_frames=8, transform=transform, train=False)
assert_type(len(FeatureCache.build("cache", model, clips, batch_size=2)), int)
assert_type(CheckpointUploads("user/name", private=True).start("checkpoint-1", "step 1"), bool)

hf_i2v.ZeroI2VConfig(num_frames="8")  # type: ignore[arg-type]  # a wrong type is an error
