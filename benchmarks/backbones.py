"""The table of image backbones: which can be adapted, and why the others cannot.

    python benchmarks/backbones.py      # writes docs/backbones.md; seconds, on tiny models

Each model is of transformers' own class, built from a tiny configuration, adapted with AIM (which acts before, in
and after the attention and beside the MLP) and run on one clip. What is refused is left unchanged; the reason is that
of the message.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import get_peft_model
from torch import nn

from hf_i2v import AIMConfig, UnsupportedBackboneError

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SQUARE = {**TINY, "image_size": 16, "patch_size": 8}
PAIRS = {**TINY, "image_size": [16, 16], "patch_size": [8, 8]}
DINO = {key: value for key, value in SQUARE.items() if key != "intermediate_size"}


def _of(name: str, config: str, values: dict) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**values))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "CLIP, OpenCLIP, MetaCLIP": _of("CLIPVisionModel", "CLIPVisionConfig", SQUARE),
    "MetaCLIP 2": _of("MetaClip2VisionModel", "MetaClip2VisionConfig", SQUARE),
    "SigLIP, SigLIP 2 of a fixed size": _of("SiglipVisionModel", "SiglipVisionConfig", SQUARE),
    "SigLIP 2 NaFlex": _of("Siglip2VisionModel", "Siglip2VisionConfig", {**TINY, "patch_size": 8, "num_patches": 4}),
    "AIMv2": _of("Aimv2VisionModel", "Aimv2VisionConfig", SQUARE),
    "ViT": _of("ViTModel", "ViTConfig", SQUARE),
    "DeiT": _of("DeiTModel", "DeiTConfig", SQUARE),
    "DINOv2": _of("Dinov2Model", "Dinov2Config", DINO),
    "DINOv2 with registers": _of("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO),
    "DINOv3 (RoPE)": _of("DINOv3ViTModel", "DINOv3ViTConfig", SQUARE),
    "I-JEPA": _of("IJepaModel", "IJepaConfig", SQUARE),
    "MSN": _of("ViTMSNModel", "ViTMSNConfig", SQUARE),
    "Pixio": _of("PixioModel", "PixioConfig", SQUARE),
    "ViT-MAE": _of("ViTMAEModel", "ViTMAEConfig", SQUARE),
    "InternViT": _of("InternVLVisionModel", "InternVLVisionConfig", PAIRS),
    "BEiT": _of("BeitModel", "BeitConfig", {**SQUARE, "use_relative_position_bias": True}),
    "Data2Vec-vision": _of(
        "Data2VecVisionModel", "Data2VecVisionConfig", {**SQUARE, "use_relative_position_bias": True}
    ),
    "ViTPose's ViT": _of("VitPoseBackbone", "VitPoseBackboneConfig", PAIRS),
}
NOTES = {  # what a user can do instead, checked by test_backbones.py where it can be
    "SigLIP 2 NaFlex": "Take a checkpoint of a fixed size (`siglip2-base-patch16-224`, …), which is a `SiglipModel`.",
    "ViT-MAE": "It masks patches at random. Its encoder's weights have a `ViTModel`'s names: load them there.",
    "DINOv3 (RoPE)": "In training its positions are scaled at random (`pos_embed_rescale`), in a cache not.",
}
UNCHECKED = {  # not in transformers by itself
    "Perception Encoder": "only through timm (`TimmWrapperModel`), whose attention has one projection `qkv`",
}


def outcome(build: Callable[[], nn.Module]) -> str:
    """ "works", or the reason of the refusal."""
    torch.manual_seed(0)
    model = build().eval()
    try:
        adapted = get_peft_model(model, AIMConfig(num_frames=2))
    except UnsupportedBackboneError as error:
        return _reason(str(error))
    feature_BD = adapted(torch.randn(1, 2, 3, 16, 16)).pooler_output
    return "works" if feature_BD.shape == (1, 32) and feature_BD.isfinite().all() else f"gives {feature_BD.shape}"


def _reason(message: str) -> str:
    inside = re.search(r"\((its .*?)\)\.|\((its [^()]*)\)\.$|(has no final norm)", message)
    return next(filter(None, inside.groups())) if inside else message


def table() -> str:
    lines = [
        "# Image backbones",
        "",
        "A backbone is found by its structure, not by its name: pre-norm blocks with three projections for queries,",
        "keys and values, a convolution that embeds patches, a final norm. What does not fit is refused.",
        f"transformers {transformers.__version__}, made by `python benchmarks/backbones.py`.",
        "",
        "| backbone | class | works | otherwise why not; notes |",
        "|---|---|---|---|",
    ]
    for name, build in MODELS.items():
        found = outcome(build)
        works = found == "works"
        notes = ". ".join(filter(None, ("" if works else found, NOTES.get(name, "").removesuffix("."))))
        lines.append(f"| {name} | `{type(build()).__name__}` | {'yes' if works else 'no'} | {notes} |")
    lines += [f"| {name} | not in transformers | not checked | {why} |" for name, why in UNCHECKED.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table()
    (Path(__file__).parent.parent / "docs" / "backbones.md").write_text(text)
    print(text, end="")
