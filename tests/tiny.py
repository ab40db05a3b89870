"""Tiny models built in code, and how tests fill an adapter with weights that matter."""

from pathlib import Path

import av
import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
TINY_DINO = {**{key: value for key, value in TINY.items() if key != "intermediate_size"}, "mlp_ratio": 2}

IMAGE_MODELS = {
    "clip": (CLIPVisionModel, CLIPVisionConfig, TINY),
    "vit": (ViTModel, ViTConfig, TINY),
    "deit": (DeiTModel, DeiTConfig, TINY),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, TINY),
    "dinov2": (Dinov2Model, Dinov2Config, TINY_DINO),
    "dinov2_swiglu": (Dinov2Model, Dinov2Config, {**TINY_DINO, "use_swiglu_ffn": True}),
    "dinov2_registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, TINY_DINO),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig, TINY),
}


def tiny_image_model(name: str, **changes) -> torch.nn.Module:
    """A tiny image model with random weights, none of them zero, in eval mode."""
    model_class, config_class, config = IMAGE_MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**config, **changes}))
    return randomize(model, model.named_parameters(), std=0.1).eval()


@torch.no_grad()
def randomize(model: torch.nn.Module, named_parameters, std: float = 0.2) -> torch.nn.Module:
    """Shift parameters by random amounts, so that every one of them shows in the output."""
    generator = torch.Generator().manual_seed(1)
    for _, parameter in named_parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(std * noise.to(parameter.dtype))
    return model


def randomize_adapter(model: torch.nn.Module) -> torch.nn.Module:
    """Random values for all trainable parameters."""
    return randomize(model, [(n, p) for n, p in model.named_parameters() if p.requires_grad])


def per_frame_feature(image_model: torch.nn.Module, pixels_BTChw: torch.Tensor) -> torch.Tensor:
    """What the untouched image model gives, averaged over the frames, (B, D)."""
    outputs = image_model(pixels_BTChw.flatten(0, 1))
    return outputs.pooler_output.unflatten(0, pixels_BTChw.shape[:2]).mean(1)


def write_video(path: Path) -> Path:
    """A video of 24 frames, 16×16, dark in its first half and light in its second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 16
        for t in range(24):
            frame = np.full((16, 16, 3), 20 if t < 12 else 200, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_moving_texture(path: Path) -> Path:
    """A video of 30 frames, 44×28, whose texture moves and gets lighter: the filter, the crop and the order of the
    frames all show in its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texture = np.random.default_rng(0).integers(0, 160, (14, 22, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.bit_rate = 44, 28, 4_000_000
        for t in range(30):
            frame = np.roll(texture, t, axis=1).repeat(2, 0).repeat(2, 1) + np.uint8(3 * t)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path
