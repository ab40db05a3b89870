"""The life cycle in peft that all methods share."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from tiny import per_frame_feature, randomize_adapter, tiny_image_model
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ResNetConfig, ResNetModel
from transformers.models.vit.modeling_vit import ViTLayer

from hf_i2v import (
    METHODS,
    I2VForVideoClassification,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    UnsupportedBackboneError,
    ZeroI2VConfig,
)


@pytest.fixture
def base(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "clip")
    torch.manual_seed(3)
    return I2VForVideoClassification.from_image_model(tmp_path / "clip", num_frames=4, num_labels=3)


@pytest.fixture
def adapted(base):
    return randomize_adapter(get_peft_model(base, ZeroI2VConfig())).eval()


def test_every_option_says_what_it_is():
    of_peft = {field.name for field in dataclasses.fields(PeftConfig)}
    for name, config in METHODS.items():
        own = [field for field in dataclasses.fields(config) if field.name not in of_peft]
        assert own and not [field.name for field in own if "help" not in field.metadata], name


def test_the_number_of_frames_may_be_said_again(adapted, clip_pixels):
    expected = adapted(clip_pixels).logits
    assert torch.equal(adapted(clip_pixels, num_frames=4).logits, expected)
    assert torch.equal(adapted(clip_pixels.flatten(0, 1), num_frames=4).logits, expected)


def test_a_saved_adapter_loads_to_identical_logits(adapted, base, tmp_path, clip_pixels):
    expected = adapted(clip_pixels).logits
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = I2VForVideoClassification.from_image_model(tmp_path / "clip", num_frames=4, num_labels=3)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert torch.equal(loaded(clip_pixels).logits, expected)
    loaded.load_adapter(tmp_path / "adapter", adapter_name="other")
    loaded.set_adapter("other")
    assert torch.equal(loaded(clip_pixels).logits, expected)


def test_the_adapter_file_holds_only_what_is_trained(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    image = "base_model.model.i2v.image_model."
    expected = {f"{image}embeddings.temporal.i2v_embedding"}
    expected |= {f"{image}post_layernorm.{p}" for p in ("weight", "bias")}
    expected |= {f"base_model.model.classifier.{p}" for p in ("weight", "bias")}
    for layer in range(3):
        for site in ("attention_in", "attention_out", "mlp_in", "mlp_out"):
            adapter = f"{image}encoder.layers.{layer}.sites.i2v_{site}.zeroi2v."
            expected |= {f"{adapter}{linear}.{p}" for linear in ("down", "up") for p in ("weight", "bias")}
    assert set(saved) == expected


def test_the_saved_configuration_rebuilds_the_adapter(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "ZEROI2V"
    assert saved["num_frames"] == 4
    assert saved["time_offsets"] == [-1, 1]
    assert (saved["adapter_ratio"], saved["adapter_scale"]) == (0.25, 0.5)
    config = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert isinstance(config, ZeroI2VConfig)
    assert config.time_offsets == [-1, 1]


def test_trainable_is_the_adapter_final_norm_and_classifier(adapted):
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(any(part in name for part in ("sites", "temporal", "modules_to_save")) for name in trained)
    assert sum(".modules_to_save." in name for name in trained) == 4
    assert len(trained) == 3 * 4 * 4 + 1 + 4


def test_disabled_the_adapter_is_not_there(adapted, base, clip_pixels, tmp_path):
    image_model = tiny_image_model("clip")
    with adapted.disable_adapter():
        feature_BD = base.i2v(clip_pixels).pooler_output
    assert torch.equal(feature_BD, per_frame_feature(image_model, clip_pixels))
    assert not torch.equal(base.i2v(clip_pixels).pooler_output, feature_BD)


def test_unload_gives_the_image_model_back(clip_pixels):
    image_model = tiny_image_model("clip")
    expected_BD = per_frame_feature(image_model, clip_pixels)
    original_class, state = type(image_model), {k: v.clone() for k, v in image_model.state_dict().items()}
    model = randomize_adapter(get_peft_model(image_model, ZeroI2VConfig(num_frames=4)))
    model.merge_adapter()
    unloaded = model.unload()
    assert type(unloaded) is original_class
    assert unloaded.state_dict().keys() == state.keys()
    assert torch.equal(per_frame_feature(unloaded, clip_pixels), expected_BD)


def test_two_adapters(adapted, clip_pixels):
    first = adapted(clip_pixels).logits
    adapted.add_adapter("second", ZeroI2VConfig(time_offsets=[1], adapter_ratio=0.5))
    assert torch.equal(adapted(clip_pixels).logits, first)
    adapted.set_adapter("second")
    randomize_adapter(adapted).eval()
    second = adapted(clip_pixels).logits
    assert not torch.allclose(first, second)
    adapted.set_adapter("default")
    assert torch.equal(adapted(clip_pixels).logits, first)
    adapted.delete_adapter("default")
    adapted.set_adapter("second")
    assert torch.equal(adapted(clip_pixels).logits, second)


def test_merging_a_named_adapter(adapted, clip_pixels):
    adapted.add_adapter("second", ZeroI2VConfig(time_offsets=[1]))
    adapted.set_adapter("second")
    expected = randomize_adapter(adapted).eval()(clip_pixels).logits
    adapted.set_adapter("default")
    merged = adapted.merge_and_unload(adapter_names=["second"])
    torch.testing.assert_close(merged(clip_pixels).logits, expected, atol=1e-5, rtol=1e-5)
    assert merged.config.time_offsets == [1]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant, clip_pixels):
    image_model = tiny_image_model("clip")
    model = randomize_adapter(get_peft_model(image_model, ZeroI2VConfig(num_frames=4, adapter_dropout=0.0))).train()

    def gradients():
        model.zero_grad()
        model(clip_pixels).pooler_output.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    runs = []
    image_model.encoder.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    image_model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for name, gradient in gradients().items():
        assert torch.equal(gradient, expected[name]), name
    assert len(runs) == 2  # recomputed


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": True}, {"use_reentrant": False}])
def test_no_graph_below_the_first_adapted_block(checkpointing, clip_pixels):
    image_model = tiny_image_model("clip")
    config = STAdapterConfig(num_frames=4, adapter_width=8, layers_to_transform=[2])
    model = randomize_adapter(get_peft_model(image_model, config)).train()
    model(clip_pixels).last_hidden_state.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()

    graphs, runs = [], []
    for block in image_model.encoder.layers:
        block.register_forward_hook(lambda module, args, output: graphs.append(output.requires_grad))
        block.self_attn.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    if checkpointing:
        image_model.activation_checkpointing_enable(checkpointing)
        image_model.enable_input_require_grads()  # as peft does
    model(clip_pixels).last_hidden_state.square().sum().backward()
    assert graphs[:3] == [False, False, True]
    assert len(runs) == (4 if checkpointing else 3)  # only the adapted block runs again
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_hidden_states_and_tuples(clip_pixels):
    model = get_peft_model(tiny_image_model("vit"), ZeroI2VConfig(num_frames=4))
    outputs = model(clip_pixels, output_hidden_states=True)
    assert [h.shape for h in outputs.hidden_states] == [(2, 4, 5, 32)] * 4
    last_hidden_state, pooler_output = model(clip_pixels, return_dict=False)
    assert torch.equal(pooler_output, outputs.pooler_output)
    assert torch.equal(last_hidden_state, outputs.last_hidden_state)


def test_copies_and_pickles_work_alone(adapted, clip_pixels):
    expected = adapted(clip_pixels).logits
    twins = copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))
    with torch.no_grad():
        for p in adapted.parameters():
            p.zero_()  # the twins must not feel it
    for twin in twins:
        assert torch.equal(twin(clip_pixels).logits, expected)


def test_two_models_interleaved_under_checkpointing(clip_pixels):
    """The second run of a block, in backward, sees the frames of its own first run."""
    models, gradients = [], []
    for frames in (4, 2):
        image_model = tiny_image_model("clip")
        model = get_peft_model(image_model, ZeroI2VConfig(num_frames=frames, adapter_dropout=0.0))
        models.append(randomize_adapter(model).train())
        model(clip_pixels[:, :frames]).pooler_output.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.zero_grad()
        image_model.gradient_checkpointing_enable({"use_reentrant": False})
    losses = [
        model(clip_pixels[:, :frames]).pooler_output.square().sum()
        for model, frames in zip(models, (4, 2), strict=True)
    ]
    for loss in losses:
        loss.backward()
    for model, expected in zip(models, gradients, strict=True):
        found = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "model",
    [
        lambda: BertModel(
            BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        ),
        lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])),
        lambda: torch.nn.Linear(2, 2),
    ],
)
def test_a_model_that_is_no_vision_transformer_is_refused(model):
    model = model()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UnsupportedBackboneError, match="CLIP, ViT"):
        get_peft_model(model, ZeroI2VConfig(num_frames=4))
    assert [name for name, _ in model.named_modules()] == names


def test_a_replaced_forward_is_refused_and_nothing_changes(clip_pixels):
    image_model = tiny_image_model("vit")
    image_model.layers[0].forward = lambda x, *args, **kwargs: x
    with pytest.raises(UnsupportedBackboneError, match="replaced by hand"):
        get_peft_model(image_model, ZeroI2VConfig(num_frames=4))
    del image_model.layers[0].forward
    expected_BD = per_frame_feature(tiny_image_model("vit"), clip_pixels)
    assert torch.equal(per_frame_feature(image_model, clip_pixels), expected_BD)


def test_a_block_that_computes_something_else_is_refused(clip_pixels):
    class Halved(ViTLayer):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) / 2

    image_model = tiny_image_model("vit")
    image_model.layers[0].__class__ = Halved
    with pytest.raises(UnsupportedBackboneError, match="its result differs"):
        get_peft_model(image_model, ZeroI2VConfig(num_frames=4))
    assert type(image_model.layers[0]) is Halved


def test_a_model_with_accelerates_hooks(clip_pixels):
    """As `device_map` leaves them: the hook must run our forward, not the one it once wrapped."""
    expected_BD = get_peft_model(tiny_image_model("vit"), STDHAConfig(num_frames=4))(clip_pixels).pooler_output
    image_model = tiny_image_model("vit")
    per_frame_BD = per_frame_feature(image_model, clip_pixels)
    for module in image_model.modules():
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    model = get_peft_model(image_model, STDHAConfig(num_frames=4))
    assert torch.equal(model(clip_pixels).pooler_output, expected_BD)
    unloaded = model.unload()
    assert torch.equal(per_frame_feature(unloaded, clip_pixels), per_frame_BD)
    assert hasattr(unloaded.layers[0], "_hf_hook")


def test_the_vision_model_inside_clip(clip_pixels):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model = get_peft_model(clip, ZeroI2VConfig(num_frames=4, time_offsets=[1]))
    assert model.get_image_features(clip_pixels).pooler_output.shape == (2, 16)


@pytest.mark.parametrize("config", [ZeroI2VConfig(num_frames=4), MAdapterConfig(num_frames=4)])
def test_the_dtype_of_an_adapter(config, clip_pixels):
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        base = tiny_image_model("clip").to(torch.bfloat16)
        model = get_peft_model(base, copy.deepcopy(config), autocast_adapter_dtype=autocast)
        assert {p.dtype for name, p in model.named_parameters() if "i2v_" in name} == {dtype}
        assert model(clip_pixels.bfloat16()).pooler_output.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [ZeroI2VConfig(num_frames=4), MAdapterConfig(num_frames=4)])
def test_injecting_by_a_state_dict(config, clip_pixels):
    trained = randomize_adapter(inject_adapter_in_model(copy.deepcopy(config), tiny_image_model("clip"))).eval()
    weights = get_peft_model_state_dict(trained)
    model = inject_adapter_in_model(copy.deepcopy(config), tiny_image_model("clip"), state_dict=weights)
    assert not set_peft_model_state_dict(model, weights).unexpected_keys
    assert torch.equal(model.eval()(clip_pixels).pooler_output, trained(clip_pixels).pooler_output)
    other = dict(list(weights.items())[1:]) | {"layers.9.sites.i2v_after.x": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"does not belong to this .*: it lacks \['.*'layers\.9\.sites"):
        inject_adapter_in_model(copy.deepcopy(config), tiny_image_model("clip"), state_dict=other)
