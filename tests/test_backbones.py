"""The table in docs/backbones.md says what the code does, and refusals say why."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTMAEConfig, ViTMAEModel, ViTModel

from hf_i2v.backbones import UnsupportedBackboneError, find_backbone

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import backbones  # noqa: E402


def test_the_table_is_what_comes_out():
    def rows(text):
        return re.sub(r"transformers [\d.]+", "", text).splitlines()

    assert rows((ROOT / "docs" / "backbones.md").read_text()) == rows(backbones.table())


def test_the_weights_of_a_masked_autoencoder_fit_a_vit():
    theirs = ViTMAEModel(ViTMAEConfig(**backbones.SQUARE))
    result = ViTModel(ViTConfig(**backbones.SQUARE), add_pooling_layer=False).load_state_dict(theirs.state_dict())
    assert not result.missing_keys and not result.unexpected_keys


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)


class FusedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(8), FusedAttention(), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def test_a_fused_projection_is_the_reason():
    model = nn.Module()
    model.patch_embed, model.blocks, model.norm = nn.Conv2d(3, 8, 4), nn.ModuleList([FusedBlock()]), nn.LayerNorm(8)
    before = list(model.state_dict())
    with pytest.raises(UnsupportedBackboneError, match=r"its FusedBlock: attn.qkv is one projection"):
        find_backbone(model)
    assert list(model.state_dict()) == before and torch.equal(model.norm.weight, torch.ones(8))
