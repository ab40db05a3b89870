"""Every method on every backbone: what it is when fresh, its life in peft, and the one artefact it ends as."""

import pytest
import torch
from adaptformer import AdaptFormerConfig
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import IMAGE_MODELS, per_frame_feature, randomize, randomize_adapter, tiny_image_model
from token_shift import TokenShiftConfig
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2ForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_i2v import (
    AIMConfig,
    AttentiveProbeConfig,
    ComposedConfig,
    Frame2FreqConfig,
    I2VForVideoClassification,
    InTIConfig,
    LinearAdapterConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from hf_i2v.backbones import grid_side
from hf_i2v.methods.inti import InTI
from hf_i2v.methods.m_adapter import FusionAdapter

T = {"num_frames": 4}
METHODS = {
    "st_adapter": lambda: STAdapterConfig(**T, adapter_width=8),
    "st_adapter_3x3x3": lambda: STAdapterConfig(
        **T, adapter_width=8, kernel_size=(3, 3, 3), adapter_sites=["before", "between"], layers_to_transform=[1, 2]
    ),
    "aim": lambda: AIMConfig(**T),
    "aim_ssv2": lambda: AIMConfig(**T, temporal_adapter_in=True, adapter_scale=1.0),
    "inti": lambda: InTIConfig(**T, insert_before=[1]),
    "m_adapter": lambda: MAdapterConfig(**T),
    "attentive_probe": lambda: AttentiveProbeConfig(**T, num_blocks=1),
    "step": lambda: STEPConfig(**T),
    "frame2freq": lambda: Frame2FreqConfig(**T, adapter_width=8),
    "frame2freq_ssv2": lambda: Frame2FreqConfig(**T, adapter_width=8, adapter_sites=["before", "between"]),
    "frame2freq+aim": lambda: Frame2FreqConfig(**T, adapter_width=8) + AIMConfig(),
    "st_adapter+inti": lambda: STAdapterConfig(**T, adapter_width=8) + InTIConfig(),
    "zeroi2v+inti": lambda: ZeroI2VConfig(**T) + InTIConfig(),
    "aim+inti": lambda: AIMConfig(**T) + InTIConfig(insert_before=[0, 2], context_width=8),
    "linear_adapter+aim": lambda: LinearAdapterConfig(**T) + AIMConfig(),
    "adaptformer": lambda: AdaptFormerConfig(**T, bottleneck=8),
    "token_shift": lambda: TokenShiftConfig(**T),
}
# when fresh, and pooled after the norm
SAME_AS_IMAGE_MODEL = {"aim", "aim_ssv2", "m_adapter", "linear_adapter+aim", "adaptformer"}
VARIANTS = [name for name in METHODS if "+" in name or name.endswith(("_ssv2", "_3x3x3"))]


def each_method(*backbones: str):
    """Every method on every backbone; its variants and compositions on the first and the last."""
    return pytest.mark.parametrize(
        ("method", "backbone"),
        [(m, b) for m in METHODS for b in backbones if m not in VARIANTS or b in (backbones[0], backbones[-1])],
    )


@each_method(*IMAGE_MODELS)
def test_life_of_an_adapter(method, backbone, clip_pixels, tmp_path):
    image_model = tiny_image_model(backbone)
    expected_BD = per_frame_feature(image_model, clip_pixels)
    names = image_model.state_dict().keys()
    model = get_peft_model(image_model, METHODS[method]()).eval()
    fresh_BD = model(clip_pixels).pooler_output
    if method in SAME_AS_IMAGE_MODEL:
        torch.testing.assert_close(fresh_BD, expected_BD, atol=1e-6, rtol=1e-6)

    randomize_adapter(model)
    adapted_BD = model(clip_pixels).pooler_output
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if method == "token_shift":  # without parameters, it acts from the start
        assert not trained and (adapted_BD - expected_BD).abs().max() > 1e-3
    else:
        assert (adapted_BD - fresh_BD).abs().max() > 1e-3
        adapted_BD.square().sum().backward()
        assert all(p.grad is not None for p in trained.values())

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_image_model(backbone), tmp_path, low_cpu_mem_usage=True)
    torch.testing.assert_close(loaded(clip_pixels).pooler_output, adapted_BD, atol=1e-5, rtol=1e-5)
    loaded.load_adapter(tmp_path, adapter_name="default_2")  # a name that holds the other's
    loaded.set_adapter("default_2")
    torch.testing.assert_close(loaded(clip_pixels).pooler_output, adapted_BD, atol=1e-5, rtol=1e-5)

    with model.disable_adapter():
        assert torch.equal(model(clip_pixels).pooler_output, expected_BD)
    unloaded = model.unload()
    assert unloaded.state_dict().keys() == names
    assert torch.equal(per_frame_feature(unloaded, clip_pixels), expected_BD)


@each_method("clip", "siglip", "dinov3")
def test_it_ends_as_one_artefact(method, backbone, clip_pixels, tmp_path):
    model = randomize_adapter(get_peft_model(tiny_image_model(backbone), METHODS[method]())).eval()
    expected_BD = model(clip_pixels).pooler_output
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"cannot be merged: .* Call bake\(\)"):
        model.merge_and_unload()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    baked = model.bake().eval()
    torch.testing.assert_close(baked(clip_pixels).pooler_output, expected_BD, atol=1e-5, rtol=1e-5)
    baked.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    weights = loaded.state_dict()
    assert weights.keys() == baked.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in baked.state_dict().items())
    # not to the last bit: torch's own attention pooling (SigLIP) rounds by where in memory its weights lie
    torch.testing.assert_close(loaded(clip_pixels).pooler_output, baked(clip_pixels).pooler_output, atol=2e-6, rtol=0)
    assert not any(p.requires_grad for name, p in baked.named_parameters() if "baked" in name)


def test_a_baked_classifier(tmp_path, clip_pixels):
    tiny_image_model("vit").save_pretrained(tmp_path / "image")
    base = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3)
    baked = randomize_adapter(get_peft_model(base, STAdapterConfig(adapter_width=8) + InTIConfig())).eval().bake()
    baked.save_pretrained(tmp_path / "baked")
    loaded = I2VForVideoClassification.from_pretrained(tmp_path / "baked")
    assert torch.equal(loaded(clip_pixels).logits, baked.eval()(clip_pixels).logits)
    assert loaded.config.pooling == "before_norm"
    assert [method["peft_type"] for method in loaded.config.baked] == ["INTI", "ST_ADAPTER"]
    assert str(tmp_path) not in (tmp_path / "baked" / "config.json").read_text()
    again = randomize_adapter(get_peft_model(loaded, ZeroI2VConfig())).eval()  # and can be adapted once more
    logits = again(clip_pixels).logits
    torch.testing.assert_close(again.merge_and_unload()(clip_pixels).logits, logits, atol=1e-5, rtol=1e-5)


def test_what_would_act_twice_is_not_merged(clip_pixels):
    """AIM reuses the attention over time, so linear adapters on it must not enter its weights."""
    baked = randomize_adapter(get_peft_model(tiny_image_model("clip"), AIMConfig(**T))).eval().bake()
    model = randomize_adapter(get_peft_model(baked, LinearAdapterConfig())).eval()
    expected_BD = model(clip_pixels).pooler_output
    with pytest.raises(ValueError, match="baked AIM uses the attention twice"):
        model.merge_and_unload()
    again = model.bake().eval()
    torch.testing.assert_close(again(clip_pixels).pooler_output, expected_BD, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="baked AIM already"):
        get_peft_model(again, AIMConfig()).bake()


def test_m_adapter_returns_hidden_states_only_when_asked(clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), MAdapterConfig(**T))
    assert model(clip_pixels).hidden_states is None
    assert [h.shape for h in model(clip_pixels, output_hidden_states=True).hidden_states] == [(2, 4, 5, 32)] * 4


def test_patches_that_make_no_square_are_an_error():
    with pytest.raises(ValueError, match="6 patches make no square"):
        grid_side(6)


def test_stdha_and_linear_adapters_composed_are_zeroi2v(clip_pixels):
    composed = get_peft_model(tiny_image_model("clip"), STDHAConfig(**T) + LinearAdapterConfig())
    zeroi2v = get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(**T))
    theirs = dict(zeroi2v.named_parameters())
    with torch.no_grad():
        for name, p in randomize_adapter(composed).named_parameters():
            if p.requires_grad:
                theirs[name.replace("linear_adapter", "zeroi2v")].copy_(p)
    expected_BD = zeroi2v.eval()(clip_pixels).pooler_output
    assert torch.equal(composed.eval()(clip_pixels).pooler_output, expected_BD)
    merged = composed.merge_and_unload()
    torch.testing.assert_close(merged(clip_pixels).pooler_output, expected_BD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("compose", "message"),
    [
        (lambda: AIMConfig() + AIMConfig(), "aim twice"),
        (lambda: MAdapterConfig() + STAdapterConfig(), "unchanged frozen model"),
        (lambda: Frame2FreqConfig() + AttentiveProbeConfig(), "Attentive probe reads an unchanged"),
        (lambda: STEPConfig() + InTIConfig(), "STEP reads an unchanged"),
        (lambda: ZeroI2VConfig() + STDHAConfig(), "zeroi2v already includes stdha"),
        (lambda: ComposedConfig(methods=[AIMConfig(), InTIConfig()], layers_to_transform=[0]), "each method.s own"),
        (lambda: AIMConfig(num_frames=4) + InTIConfig(num_frames=8), r"disagree on num_frames: \[4, 8\]"),
        (lambda: ComposedConfig(methods=[AIMConfig()]), "two methods or more"),
    ],
)
def test_compositions_that_make_no_sense(compose, message):
    with pytest.raises(ValueError, match=message):
        compose()


def test_a_foreign_configuration_cannot_be_added():
    with pytest.raises(TypeError, match="not with LoraConfig"):
        AIMConfig() + LoraConfig()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: InTIConfig(num_frames=3), r"num_frames \(3\) must be a multiple of 2"),
        (lambda: InTIConfig(num_frames=4, insert_before=[0, 1, 2]), "multiple of 8"),
        (lambda: InTIConfig(num_frames=4, insert_before=[3]), "0 to 2"),
        (lambda: InTIConfig(num_frames=4, insert_before=[1, 1]), "twice"),
        (lambda: STDHAConfig(num_frames=4, time_offsets=[2]) + InTIConfig(insert_before=[1]), "num_frames=2"),
        (lambda: STAdapterConfig(num_frames=4, kernel_size=(2, 1, 1)), "odd"),
        (lambda: STAdapterConfig(num_frames=4, adapter_sites=["after"]), "adapter_sites"),
        (lambda: AIMConfig(num_frames=4, drop_path=1.0), "drop_path"),
        (lambda: AIMConfig(num_frames=4, pooling="max"), "pooling 'max'"),
        (lambda: MAdapterConfig(num_frames=4, levels=[2, 1]), "ascending"),
        (lambda: AttentiveProbeConfig(num_frames=4, num_heads=5), r"num_heads \(5\) .* width 32, as 4"),
        (lambda: AttentiveProbeConfig(num_frames=4, num_blocks=-1), "num_blocks"),
        (lambda: STEPConfig(num_frames=4, layers_to_transform=[1]), "leave out layers_to_transform"),
        (lambda: Frame2FreqConfig(num_frames=6), r"num_frames \(6\) cannot be cut into 4 windows"),
        (lambda: Frame2FreqConfig(num_frames=4) + InTIConfig(), r"num_frames \(2\) cannot be cut"),
        (lambda: Frame2FreqConfig(num_frames=4, adapter_width=7), "even"),
        (lambda: Frame2FreqConfig(num_frames=4, adapter_sites=["mlp_in"]), "adapter_sites"),
        (lambda: Frame2FreqConfig(num_frames=4, kernel_size=2), "odd"),
        (lambda: Frame2FreqConfig(num_frames=4, window_divisors=[]), "window_divisors"),
    ],
)
def test_bad_values_name_what_is_allowed(config, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny_image_model("clip"), config())


def test_the_smallest_values_are_allowed():
    for config in (
        MAdapterConfig(num_frames=1, levels=[0], token_pooling=1),
        InTIConfig(num_frames=2, context_width=1),
    ):
        get_peft_model(tiny_image_model("clip"), config)


def test_a_level_of_m_adapter_is_its_equation():
    """h ← σ(G[h; u]) ⊙ u + (1 − σ(G[h; u])) ⊙ h for u = W norm(x); h ← h + conv(norm h); h + MLP(norm h)."""
    level = randomize_adapter(FusionAdapter(12, 8, 2.0, first=False))
    below_BTPd, x_BTPD = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 12)
    u_BTPd = level.project(level.norm_in(x_BTPD))
    gate_BTPd = level.gate(torch.cat((below_BTPd, u_BTPd), dim=-1)).sigmoid()
    h_BTPd = gate_BTPd * u_BTPd + (1 - gate_BTPd) * below_BTPd
    h_NdT = level.norm_time(h_BTPd).permute(0, 2, 3, 1).flatten(0, 1)  # N = B·P
    moved_NdT = F.conv1d(h_NdT, level.time.weight, level.time.bias, padding=1, groups=8)
    h_BTPd = h_BTPd + moved_NdT.unflatten(0, (2, 5)).permute(0, 3, 1, 2)
    expected_BTPd = h_BTPd + level.mlp(level.norm_mlp(h_BTPd))
    torch.testing.assert_close(level(below_BTPd, x_BTPD), expected_BTPd)


def test_m_adapter_reads_every_second_block_at_half_its_width():
    model = get_peft_model(tiny_image_model("clip", num_hidden_layers=6), MAdapterConfig(**T))
    config = model.peft_config["default"]
    assert config.levels == [1, 3, 5] and config.branch_width == 16


def test_inti_starts_as_plain_averaging(clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), InTIConfig(**T, insert_before=[0]))
    entering_BTND = []
    block = model.base_model.model.encoder.layers[0]
    block.layer_norm1.register_forward_pre_hook(lambda _, args: entering_BTND.append(args[0].unflatten(0, (2, -1))))
    states = model(clip_pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(entering_BTND[0], states[0].unflatten(1, (2, 2)).mean(2))
    assert [tuple(state.shape[:2]) for state in states] == [(2, 4), (2, 2), (2, 2), (2, 2)]


def test_inti_without_pairs_is_an_error_at_run_time(clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), InTIConfig(**T))
    with pytest.raises(ValueError, match="the clip has 3 frames"):
        model(clip_pixels[:, :3])


def test_m_adapter_sends_nothing_into_the_frozen_model(clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), MAdapterConfig(**T)).train()
    frozen = {id(p) for name, p in model.named_parameters() if "clip_head" not in name}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        feature_BD = model(clip_pixels).pooler_output
    assert not any(id(x) in frozen for x in saved)
    block_width = (
        32 * 5 * 8
    )  # elements of a block's activation: every one of them is larger than what the branch keeps
    assert all(x.numel() <= block_width * len(model.peft_config["default"].levels) for x in saved)
    feature_BD.sum().backward()
    assert all(p.grad is None for p in model.parameters() if id(p) in frozen)
    assert any(p.grad is not None for p in model.parameters())


def test_drop_path_grows_over_depth_and_drops_whole_frames(clip_pixels):
    model = randomize_adapter(get_peft_model(tiny_image_model("clip"), AIMConfig(**T, drop_path=0.5)))
    blocks = model.base_model.model.encoder.layers
    assert [block.sites.i2v_before["default"]["aim"].drop_path for block in blocks] == [0, 0.25, 0.5]
    module, block = blocks[2].sites.i2v_before["default"]["aim"].train(), blocks[2]
    x_MND = torch.randn(8, 5, 32)
    own = {"norm1": block.first_norm, "attend": block.attend}
    kept = (module.eval()(x_MND, num_frames=4, **own) - x_MND) / 0.5
    torch.manual_seed(0)
    moved = module.train()(x_MND, num_frames=4, **own) - x_MND
    for m in range(8):
        assert torch.allclose(moved[m], kept[m], atol=1e-5) or not moved[m].any()
    assert 0 < sum(bool(moved[m].any()) for m in range(8)) < 8


@pytest.mark.parametrize("pooling", ["after_norm", "before_norm"])
def test_pooling_can_be_chosen(pooling, clip_pixels):
    image_model = tiny_image_model("clip")
    model = get_peft_model(image_model, LinearAdapterConfig(**T, pooling=pooling))
    outputs = model(clip_pixels)
    cls_BTD = outputs.last_hidden_state[:, :, 0]
    trained = image_model.post_layernorm.modules_to_save["default"]

    def norm(x):
        return torch.nn.functional.layer_norm(x, (32,), trained.weight, trained.bias, trained.eps)

    expected_BD = norm(cls_BTD).mean(1) if pooling == "after_norm" else norm(cls_BTD.mean(1))
    torch.testing.assert_close(outputs.pooler_output, expected_BD)


def test_lora_rides_on_native_stdha(tmp_path, clip_pixels):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    base = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3)
    still = base(clip_pixels).logits
    base.with_stdha()
    moving = base(clip_pixels).logits
    assert base.config.time_offsets == [-1, 1] and not torch.allclose(still, moving)
    parameters = sum(p.numel() for p in base.parameters())
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], r=4))
    assert torch.equal(model(clip_pixels).logits, moving)
    randomize_adapter(model).eval()
    logits = model(clip_pixels).logits
    assert not torch.allclose(logits, moving)
    model(clip_pixels, labels=torch.tensor([0, 1])).loss.backward()
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(clip_pixels).logits, logits, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in merged.parameters()) == parameters
    merged.save_pretrained(tmp_path / "merged")
    loaded = I2VForVideoClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(clip_pixels).logits, merged(clip_pixels).logits)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_IMAGE = {**SMALL, "image_size": 16, "patch_size": 8}


def image_classifiers():
    labels = {"num_labels": 3}
    yield ViTForImageClassification(ViTConfig(**SMALL_IMAGE, intermediate_size=64, **labels))
    yield Dinov2ForImageClassification(Dinov2Config(**SMALL_IMAGE, **labels))
    vision = {**SMALL_IMAGE, "intermediate_size": 64}
    yield SiglipForImageClassification(SiglipConfig(vision_config=vision, text_config=SMALL, **labels))


@pytest.mark.parametrize("model", image_classifiers(), ids=lambda model: type(model).__name__)
def test_an_image_classifier_keeps_its_head(model, clip_pixels):
    model.eval()
    expected = model(clip_pixels.flatten(0, 1)).logits.unflatten(0, (2, 4)).mean(1)
    adapted = get_peft_model(model, AIMConfig(**T)).eval()
    torch.testing.assert_close(adapted(clip_pixels).logits, expected, atol=1e-5, rtol=1e-5)
    assert any("classifier.modules_to_save" in name for name, p in adapted.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="changes the clip feature only"):
        get_peft_model(adapted.unload(), MAdapterConfig(**T))


def test_clip_matches_text_and_video(clip_pixels):
    vision = {**SMALL_IMAGE, "intermediate_size": 64}
    clip = CLIPModel(CLIPConfig(text_config={**SMALL, "eos_token_id": 1}, vision_config=vision, projection_dim=16))
    clip.eval()
    inputs = {"input_ids": torch.tensor([[0, 5, 1], [0, 7, 1]]), "pixel_values": clip_pixels}
    frames = clip.get_image_features(clip_pixels.flatten(0, 1)).pooler_output
    model = get_peft_model(clip, AIMConfig(**T)).eval()
    expected = frames.unflatten(0, (2, 4)).mean(1)
    torch.testing.assert_close(model.get_image_features(clip_pixels).pooler_output, expected, atol=1e-5, rtol=1e-5)
    assert model(**inputs).logits_per_image.shape == (2, 2)


def test_a_vision_model_with_projection(clip_pixels):
    config = CLIPVisionConfig(**SMALL_IMAGE, intermediate_size=64, projection_dim=16)
    model = CLIPVisionModelWithProjection(config).eval()
    expected = model(clip_pixels.flatten(0, 1)).image_embeds.unflatten(0, (2, 4)).mean(1)
    adapted = get_peft_model(model, AIMConfig(**T)).eval()
    torch.testing.assert_close(adapted(clip_pixels).image_embeds, expected, atol=1e-5, rtol=1e-5)


def test_inti_against_a_plain_reference():
    """Token by token, with a CLS token and no weight zero."""
    torch.manual_seed(0)
    module = InTI(width=6, context_width=4, num_prefix_tokens=1)
    randomize(module, module.named_parameters(), std=0.5)
    x_MND = torch.randn(4, 1 + 9, 6)  # two pairs of frames, CLS and 3×3 patches
    expected_PND = torch.empty(2, 10, 6)
    for p, (x0_ND, x1_ND) in enumerate(((x_MND[0], x_MND[1]), (x_MND[2], x_MND[3]))):
        z_NR = torch.cat((x0_ND, x1_ND), dim=1) @ module.project.weight.T + module.project.bias
        for n in range(10):
            context_R = z_NR[n] + z_NR.mean(0)
            if n > 0:  # patches: the neighbours on the grid
                row, column = divmod(n - 1, 3)
                context_R = context_R + module.spatial.bias
                for r in range(max(row - 1, 0), min(row + 2, 3)):
                    for c in range(max(column - 1, 0), min(column + 2, 3)):
                        tap_R = module.spatial.weight[:, 0, r - row + 1, c - column + 1]
                        context_R = context_R + tap_R * z_NR[1 + 3 * r + c]
            logits = module.logits.weight @ torch.nn.functional.gelu(context_R) + module.logits.bias
            weights = logits.softmax(0)
            expected_PND[p, n] = weights[0] * x0_ND[n] + weights[1] * x1_ND[n]
    torch.testing.assert_close(module(x_MND, num_frames=4), expected_PND, atol=1e-5, rtol=1e-5)


def test_inti_acts_first_in_either_order(clip_pixels):
    adapter = STAdapterConfig(**T, adapter_width=8, adapter_sites=["before", "between"])
    inti = InTIConfig(insert_before=[1])
    first = randomize_adapter(get_peft_model(tiny_image_model("clip"), adapter + inti)).eval()
    second = get_peft_model(tiny_image_model("clip"), inti + adapter).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(clip_pixels).pooler_output, second(clip_pixels).pooler_output)


def test_a_merge_adds_to_the_models_own_temporal_embedding(clip_pixels):
    model = tiny_image_model("clip")
    for _ in range(2):
        model = randomize_adapter(get_peft_model(model, ZeroI2VConfig(**T))).eval()
        expected_BD = model(clip_pixels).pooler_output
        model = model.merge_and_unload()
        torch.testing.assert_close(model(clip_pixels).pooler_output, expected_BD, atol=1e-5, rtol=1e-5)
