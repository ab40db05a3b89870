"""The papers' released models at ViT-B/16 and L/14, from checkouts that whoever runs a benchmark has made:

    git clone https://github.com/linziyi96/st-adapter
    git clone https://github.com/taoyang1122/adapt-image-models
    git clone https://github.com/leexinhao/ZeroI2V

Their files import mmaction, timm and more for registries, logging and loading; small stand-ins serve for those names,
so that torch and einops are all that is needed. Weights are random: values change neither time nor memory.
"""

import importlib.util
import logging
import sys
import types
from pathlib import Path

import torch
from torch import nn

SIZES = {
    "B/16": {"input_resolution": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12},
    "L/14": {"input_resolution": 224, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
}


class _DropPath(nn.Module):
    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.probability)
        return x * keep / (1 - self.probability)


class _Registry:
    def register_module(self):
        return lambda cls: cls


def _attention(q, k, v, attn_mask=None, dropout_p=0.0):
    """torch 1.12's private function, which ZeroI2V calls; today's fused kernel stands for it, to its advantage."""
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p), None


def _stand_ins() -> dict[str, types.ModuleType]:
    logger = types.SimpleNamespace(get_current_instance=lambda: logging.getLogger("released"))
    contents = {
        "configs": {"CLIP_VIT_B16_PATH": None, "CLIP_VIT_L14_PATH": None, "DWCONV3D_DISABLE_CUDNN": False},
        "clip": {},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {"DropPath": _DropPath, "to_2tuple": None, "trunc_normal_": nn.init.trunc_normal_},
        "mmcv": {},
        "mmcv.cnn": {},
        "mmcv.cnn.bricks": {"DropPath": _DropPath},
        "mmengine": {},
        "mmengine.model": {},
        "mmengine.model.weight_init": {"trunc_normal_": nn.init.trunc_normal_},
        "mmengine.logging": {"MMLogger": logger},
        "mmaction": {},
        "mmaction.registry": {"MODELS": _Registry()},
        "mmaction.utils": {"get_root_logger": lambda: logging.getLogger("released")},
        "mmaction.models": {},
        "mmaction.models.builder": {"BACKBONES": _Registry()},
        "mmaction.models.backbones": {},
        "mmaction.models.common": {},
    }
    modules = {}
    for name, content in contents.items():
        modules[name] = types.ModuleType(name)
        modules[name].__path__ = []
        vars(modules[name]).update(content)
    return modules


def _load(name: str, file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def trained_parameters(name: str) -> tuple[str, ...]:
    """Parts of the names of the parameters that the released code trains, of a model of `released_models`."""
    return ("dapter", "temporal_embedding", "fc.") if name.startswith("st") else ("dapter", "temporal", "ln_post")


def released_models(folder: Path, num_frames: int, size: str = "B/16") -> dict:
    """Makers of the released models, by the names of our methods; `zeroi2v merged` is what its merge script fills.

    Each takes pixels (B, C, T, h, w). Raises FileNotFoundError where a checkout is missing.
    """
    if not hasattr(nn.functional, "_scaled_dot_product_attention"):
        nn.functional._scaled_dot_product_attention = _attention
    before = dict(sys.modules)
    sys.modules.update(_stand_ins())
    try:
        st_adapter = _load("models_adapter", folder / "st-adapter" / "models_adapter.py")
        aim_files = folder / "adapt-image-models" / "mmaction" / "models" / "backbones"
        aim = _load("mmaction.models.backbones.vit_clip", aim_files / "vit_clip.py")
        zero_files = folder / "ZeroI2V" / "mmaction" / "models"
        stdha = _load("mmaction.models.common.stdha", zero_files / "common" / "stdha.py")
        sys.modules["mmaction.models.common"].STDHA = stdha.STDHA
        zero = _load("mmaction.models.backbones.vit_zero_clip", zero_files / "backbones" / "vit_zero_clip.py")
        merged = _load(
            "mmaction.models.backbones.vit_zero_clip_eval", zero_files / "backbones" / "vit_zero_clip_eval.py"
        )
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in ("configs", "clip", "timm", "mmcv", "mmengine", "mmaction", "models_adapter"):
                del sys.modules[name]

    shape = SIZES[size]

    def make_st_adapter(pre_attn: bool):
        model = st_adapter.VisionTransformer(
            **shape,
            num_classes=400,
            adapter_width=384,
            adapter_layers=shape["layers"],
            adapter_kernel_size=(3, 1, 1),
            adapter_pre_attn=pre_attn,
            adapter_pre_mlp=True,
        )
        return model.float()  # at equal precision: it keeps its frozen weights in half

    shift = {"shift_div": shape["heads"], "divide_head": False}
    aim_options = {**shape, "num_frames": num_frames, "drop_path_rate": 0.2}

    def initialised(model):
        model.init_weights()
        return model

    return {
        "st_adapter": lambda: make_st_adapter(False),
        "st_adapter 24x384": lambda: make_st_adapter(True),
        "aim": lambda: initialised(aim.ViT_CLIP(**aim_options)),
        "aim ssv2": lambda: initialised(aim.ViT_CLIP(**aim_options, num_tadapter=2, adapter_scale=1.0)),
        "zeroi2v": lambda: initialised(
            zero.ViT_Zero_CLIP(**shape, num_frames=num_frames, num_tadapter=2, stdha_cfg=shift)
        ),
        "zeroi2v merged": lambda: merged.ViT_Zero_CLIP_eval(**shape, num_frames=num_frames, stdha_cfg=shift),
    }
