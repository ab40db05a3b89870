"""Equality with tensors recorded from the papers' released code (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_i2v.convert import _released_names, load_released_checkpoint, to_released_state_dict
from hf_i2v.data.transforms import CLIP_MEAN
from hf_i2v.methods.attentive_probe import AttentiveProbe

GOLDEN = Path(__file__).parent / "golden"
CASES = {
    "zeroi2v_a": ("zeroi2v", {}),
    "zeroi2v_c": ("zeroi2v", {"time_offsets": {-1: 1, 1: 1, -2: 1, 2: 1}}),
    "st_adapter_a": ("st_adapter", {"num_frames": 4}),
    "st_adapter_c": ("st_adapter", {"num_frames": 4}),
    "aim_a": ("aim", {}),
}


def load(case: str):
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        hyperparameters = json.loads(file.metadata()["hyperparameters"])
    method, options = CASES[case]
    model = load_released_checkpoint(part(tensors, "state."), method, num_heads=hyperparameters["heads"], **options)
    return tensors, model.eval()


def part(tensors: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("case", CASES)
def test_outputs_blocks_and_gradients_equal_the_released_code(case):
    tensors, model = load(case)
    pixels_BTChw = tensors["input.pixel_values"].transpose(1, 2)
    outputs = model(pixels_BTChw, labels=tensors["label"], output_hidden_states=True)

    torch.testing.assert_close(outputs.logits, tensors["output.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.loss, tensors["output.loss"][0], atol=1e-4, rtol=0)
    assert len(outputs.hidden_states) == 4
    torch.testing.assert_close(outputs.hidden_states[0], tensors["intermediate.ln_pre"], atol=1e-4, rtol=0)
    for i, x_BTND in enumerate(outputs.hidden_states[1:]):
        torch.testing.assert_close(x_BTND, tensors[f"intermediate.block.{i}"], atol=1e-4, rtol=0)
    feature_BD = model.base_model.model.i2v(pixels_BTChw).pooler_output
    recorded = tensors["output.features"]  # (B, T, D) or (B, D)
    expected_BD = recorded.mean(1) if recorded.ndim == 3 else recorded
    torch.testing.assert_close(feature_BD, expected_BD, atol=1e-4, rtol=0)

    outputs.loss.backward()
    recorded = part(tensors, "grad.")
    ours = dict(model.named_parameters())
    names = _released_names(CASES[case][0], model)
    for name, gradient in recorded.items():
        error = (ours[names[name][0]].grad.reshape(gradient.shape) - gradient).norm()
        assert error <= 1e-3 * gradient.norm() + 1e-9, (name, error, gradient.norm())
    trained = {n for n, p in ours.items() if p.requires_grad}
    assert trained == {names[name][0] for name in recorded}


@pytest.mark.parametrize("case", CASES)
def test_written_back_the_checkpoint_is_the_same(case):
    tensors, model = load(case)
    state, written = part(tensors, "state."), to_released_state_dict(model)
    assert state.keys() == written.keys()
    for key, value in state.items():
        torch.testing.assert_close(written[key], value, atol=0, rtol=0)


def test_merging_reproduces_the_released_merge_script():
    tensors, model = load("zeroi2v_a")
    pixels_BTChw = tensors["input.pixel_values"].transpose(1, 2)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(pixels_BTChw).logits, tensors["reparam.output.logits"], atol=1e-5, rtol=0)
    reparam = part(tensors, "reparam.state.")
    for i, block in enumerate(merged.i2v.image_model.encoder.layers):
        released = f"transformer.resblocks.{i}."
        attention = block.self_attn
        packed = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
        for ours, theirs in (
            (packed, "attn.in_proj_weight"),
            (attention.out_proj.bias, "attn.out_proj.bias"),
            (block.mlp.fc1.weight, "mlp.c_fc.weight"),
            (block.mlp.fc2.weight, "mlp.c_proj.weight"),
        ):
            torch.testing.assert_close(ours, reparam[released + theirs], atol=1e-5, rtol=0)


def test_a_checkpoint_that_does_not_fit_lists_every_problem():
    with safe_open(GOLDEN / "zeroi2v_a.safetensors", "pt") as file:
        state = part({key: file.get_tensor(key) for key in file.keys()}, "state.")  # noqa: SIM118
    state = {f"backbone.{key}" if "cls_head" not in key else key: value for key, value in state.items()}
    load_released_checkpoint(state, "zeroi2v", num_heads=4)  # with prefixes
    del state["backbone.ln_post.bias"]
    state["backbone.extra.weight"] = torch.zeros(1)
    state["backbone.ln_pre.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_released_checkpoint(state, "zeroi2v", num_heads=4)
    for line in ("missing: ln_post.bias", "left over: extra.weight", "wrong shape: ln_pre.weight (3,)"):
        assert line in str(error.value)
    del state["backbone.conv1.weight"]
    with pytest.raises(ValueError, match=r"missing: (conv1|patch_embed.proj).weight"):
        load_released_checkpoint(state, "zeroi2v", num_heads=4)
    with pytest.raises(ValueError, match="no adapter of aim"):
        load_released_checkpoint({"conv1.weight": torch.zeros(1)}, "aim")
    with pytest.raises(ValueError, match="must be one of"):
        load_released_checkpoint(state, "lora")


def test_the_imagenet_vit_of_aim_goes_there_and_back():
    """Its layout, made here: the recordings have none of it."""
    generator = torch.Generator().manual_seed(0)
    width, layers, patches, T = 32, 2, 4, 4

    def weights(*shape):
        return torch.randn(shape, generator=generator)

    state = {
        "backbone.cls_token": weights(1, 1, width),
        "backbone.pos_embed": weights(1, 1 + patches, width),
        "backbone.temporal_embedding": weights(1, T, width),
        "backbone.patch_embed.proj.weight": weights(width, 3, 8, 8),
        "backbone.patch_embed.proj.bias": weights(width),
        "cls_head.fc_cls.weight": weights(5, width),
        "cls_head.fc_cls.bias": weights(5),
    }
    shapes = {"attn.qkv": (96, 32), "attn.proj": (32, 32), "mlp.fc1": (128, 32), "mlp.fc2": (32, 128)}
    for adapter in ("T_Adapter", "S_Adapter", "MLP_Adapter", "T_Adapter_in"):
        shapes |= {f"{adapter}.D_fc1": (8, 32), f"{adapter}.D_fc2": (32, 8)}
    modules = {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}
    norms = ["ln_post", *(f"blocks.{i}.norm{j}" for i in range(layers) for j in (1, 2))]
    for name, shape in modules.items():
        state |= {f"backbone.{name}.weight": weights(*shape), f"backbone.{name}.bias": weights(shape[0])}
    for name in norms:
        state |= {f"backbone.{name}.weight": weights(width), f"backbone.{name}.bias": weights(width)}

    model = load_released_checkpoint({"state_dict": state}, "aim", num_heads=4)
    config = model.peft_config["default"]
    assert (config.temporal_adapter_in, config.adapter_ratio, config.num_frames) == (True, 0.25, T)
    image_config = model.config.image_config
    assert (image_config.model_type, image_config.layer_norm_eps, image_config.hidden_act) == ("vit", 1e-6, "gelu")
    written = to_released_state_dict(model)
    assert written.keys() == {key.removeprefix("backbone.") for key in state}
    for key, value in state.items():
        assert torch.equal(written[key.removeprefix("backbone.")], value), key


def test_files_are_opened_without_running_code(tmp_path):
    tensors, _ = load("st_adapter_a")
    state = {f"module.{key}": value.half() for key, value in part(tensors, "state.").items()}
    torch.save(state, tmp_path / "checkpoint.pyth")
    model = load_released_checkpoint(tmp_path / "checkpoint.pyth", "st_adapter", num_heads=4, num_frames=4)
    logits = model.eval()(tensors["input.pixel_values"].transpose(1, 2)).logits
    torch.testing.assert_close(logits, tensors["output.logits"], atol=0.05, rtol=0)  # as far as half precision goes
    model.save_pretrained(tmp_path / "adapter")
    baked = model.bake()
    baked.save_pretrained(tmp_path / "video")
    processor = json.loads((tmp_path / "video" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == list(CLIP_MEAN) and processor["resample"] == 3  # bicubic
    torch.save({"state_dict": state, "hook": print}, tmp_path / "evil.pyth")
    with pytest.raises(Exception, match="weights_only"):
        load_released_checkpoint(tmp_path / "evil.pyth", "st_adapter")


def test_the_attentive_probe_equals_the_one_of_vjepa2():
    with safe_open(GOLDEN / "vjepa2_probe_a.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        heads = json.loads(file.metadata()["hyperparameters"])["num_heads"]
    state = {f"module.{key}": value for key, value in part(tensors, "state.").items()}
    probe = AttentiveProbe.from_vjepa2_state_dict(state, num_heads=heads)
    feature_BD = probe(tensors["input.tokens"])
    torch.testing.assert_close(feature_BD, tensors["output.feature"], atol=1e-5, rtol=0)
    logits = torch.nn.functional.linear(feature_BD, tensors["state.linear.weight"], tensors["state.linear.bias"])
    torch.testing.assert_close(logits, tensors["output.logits"], atol=1e-5, rtol=0)
    loss = torch.nn.functional.cross_entropy(logits, tensors["label"])
    torch.testing.assert_close(loss, tensors["output.loss"][0], atol=1e-5, rtol=0)

    loss.backward()
    pool = probe.pool
    ours = {"query_tokens": pool.query.grad}
    blocks = {"cross_attention_block": pool, **{f"blocks.{i}": block for i, block in enumerate(probe.blocks)}}
    for kind in ("weight", "bias"):
        ours[f"cross_attention_block.xattn.q.{kind}"] = getattr(pool.q, kind).grad
        both = [getattr(layer, kind).grad for layer in (pool.k, pool.v)]
        ours[f"cross_attention_block.xattn.kv.{kind}"] = torch.cat(both)
        for name, block in blocks.items():
            parts = {"norm1": block.norm1, "norm2": block.norm2, "mlp.fc1": block.mlp[0], "mlp.fc2": block.mlp[2]}
            if block is not pool:
                parts |= {"attn.qkv": block.qkv, "attn.proj": block.out}
            ours |= {f"{name}.{theirs}.{kind}": getattr(layer, kind).grad for theirs, layer in parts.items()}
    recorded = part({key: value for key, value in tensors.items() if "grad.pooler" in key}, "grad.pooler.")
    assert ours.keys() == recorded.keys()
    for name, gradient in ours.items():
        error = (gradient.reshape(recorded[name].shape) - recorded[name]).norm()
        assert error <= 1e-4 * recorded[name].norm() + 1e-9, (name, error)


def test_weights_of_another_probe_are_refused():
    with pytest.raises(ValueError, match="no attentive probe of V-JEPA 2 with one query"):
        AttentiveProbe.from_vjepa2_state_dict({"linear.weight": torch.zeros(5, 32)}, num_heads=4)
    state = {"pooler.query_tokens": torch.zeros(1, 1, 32), "pooler.extra": torch.zeros(1)}
    with pytest.raises(ValueError, match="Missing key"):
        AttentiveProbe.from_vjepa2_state_dict(state, num_heads=4)
