"""Probes: they read patch tokens after the final norm, and what they make of them takes the pooled feature's place."""

import pytest
import torch
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model
from torch.nn import functional as F

from hf_i2v import AttentiveProbeConfig, STEPConfig
from hf_i2v.methods.attentive_probe import AttentiveProbe, attend_once, attention, nearest_num_heads

T = {"num_frames": 4}
NORMS = {"clip": "post_layernorm", "vit": "layernorm", "dinov2_registers": "layernorm", "siglip": "post_layernorm"}


@pytest.mark.parametrize("backbone", NORMS)
def test_the_probe_reads_patches_after_the_final_norm(backbone, clip_pixels):
    image_model = tiny_image_model(backbone)
    left = []
    blocks = next(m for m in image_model.modules() if isinstance(m, torch.nn.ModuleList))
    handle = blocks[-1].register_forward_hook(lambda _, args, output: left.append(output))
    with torch.no_grad():
        image_model(clip_pixels.flatten(0, 1))
        handle.remove()
        tokens_MND = getattr(image_model, NORMS[backbone])(left[0])
    num_patches = (clip_pixels.shape[-1] // 8) ** 2
    tokens_BND = tokens_MND[:, -num_patches:].unflatten(0, (2, 4)).flatten(1, 2)
    model = randomize_adapter(get_peft_model(image_model, AttentiveProbeConfig(**T, num_blocks=1))).eval()
    probe = model.base_model.model.clip_head.i2v_branch["default"].probe
    torch.testing.assert_close(model(clip_pixels).pooler_output, probe(tokens_BND), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [AttentiveProbeConfig, STEPConfig])
def test_nothing_is_kept_of_the_frozen_model(config, clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), config(**T)).train()
    frozen = {id(p) for name, p in model.named_parameters() if "clip_head" not in name}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        feature_BD = model(clip_pixels).pooler_output
    assert saved and not any(id(x) in frozen for x in saved)
    feature_BD.sum().backward()
    assert all((p.grad is None) == (id(p) in frozen) for p in model.parameters())


def test_only_probes_with_frame_positions_know_the_order_of_the_frames(clip_pixels):
    with_positions = AttentiveProbeConfig(**T, frame_positions=True)
    for config, same in ((AttentiveProbeConfig(**T), True), (with_positions, False), (STEPConfig(**T), False)):
        model = randomize_adapter(get_peft_model(tiny_image_model("clip"), config)).eval()
        features = [model(pixels).pooler_output for pixels in (clip_pixels, clip_pixels.flip(1))]
        assert torch.allclose(*features, atol=1e-5) == same


@pytest.mark.parametrize("config", [AttentiveProbeConfig(**T, num_blocks=0, frame_positions=True), STEPConfig(**T)])
def test_frame_positions_are_seen_from_the_start(config):
    """Beside tokens of any scale, or few videos teach no order."""
    torch.manual_seed(0)
    clips = torch.randn(2, 4, 3, 16, 16)
    image_model = tiny_image_model("dinov2")
    image_model.layernorm.weight.data.fill_(3.0)
    model = get_peft_model(image_model, config).eval()
    features = [model(pixels).pooler_output for pixels in (clips, clips.flip(1), clips.flip(0))]
    to_reversed, to_another = ((features[0] - other).norm() for other in features[1:])
    assert to_reversed > 0.005 * to_another  # a tenth of it with positions of 0.02 on tokens as they are


def test_step_has_a_third_of_a_block(clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), STEPConfig(**T))
    trained, D = sum(p.numel() for p in model.parameters() if p.requires_grad), 32
    assert trained == 4 * D * D + 4 * D + 2 * D + D + 4 * D  # projections, norm, CLS token, positions
    longer = torch.cat([clip_pixels, clip_pixels], dim=1)
    assert model.eval()(longer).pooler_output.shape == (2, D)  # positions are interpolated


def test_one_query_needs_no_keys_and_values():
    torch.manual_seed(0)
    key, value = torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)
    q_BD, x_BND = torch.randn(2, 12), torch.randn(2, 5, 12)
    expected = attention(q_BD[:, None], key(x_BND), value(x_BND), 3)[:, 0]
    torch.testing.assert_close(attend_once(q_BD, x_BND, key, value, 3), expected)


def test_later_blocks_start_with_smaller_weights():
    torch.manual_seed(0)
    probe = AttentiveProbe(256, num_heads=4)
    for i, block in enumerate(probe.blocks, start=1):
        for weight in (block.out.weight, block.mlp[-1].weight):
            assert weight.std().item() == pytest.approx(0.02 / (2 * i) ** 0.5, rel=0.02)
    assert probe.pool.mlp[-1].weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.02)
    assert probe.blocks[2].qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_sixteen_heads_or_the_nearest_number():
    nearest = {width: nearest_num_heads(16, width) for width in (1408, 1024, 768, 384, 100, 7)}
    assert nearest == {1408: 16, 1024: 16, 768: 16, 384: 16, 100: 20, 7: 7}


def test_gelu_is_the_exact_one():
    probe = AttentiveProbe(8, num_heads=2, num_blocks=0)
    x = torch.linspace(-3, 3, 8)
    assert torch.equal(probe.pool.mlp[1](x), F.gelu(x, approximate="none"))
