"""ZeroI2V: what it is when fresh, and that merging changes nothing but the weights."""

import copy

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tiny import IMAGE_MODELS, per_frame_feature, randomize_adapter, tiny_image_model
from transformers import AutoModel

from hf_i2v import I2VForVideoClassification, I2VModel, LinearAdapterConfig, STDHAConfig, ZeroI2VConfig
from hf_i2v.methods.stdha import default_time_offsets, shift_heads


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_fresh_with_offsets_zero_it_is_the_image_model_exactly(name, clip_pixels):
    image_model = tiny_image_model(name)
    expected_BD = per_frame_feature(image_model, clip_pixels)
    model = get_peft_model(image_model, ZeroI2VConfig(num_frames=4, time_offsets=[0]))
    outputs = model(clip_pixels)
    assert outputs.pooler_output.shape == (2, 32)
    assert torch.equal(outputs.pooler_output, expected_BD)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_heads_see_other_frames(name, clip_pixels):
    """A change of the last frame must not reach the first frame through one block, and its neighbour must feel it."""
    model = get_peft_model(tiny_image_model(name), STDHAConfig(num_frames=4, layers_to_transform=[0]))
    other = clip_pixels.clone()
    other[:, 3] += 1
    before, after = (model(x).last_hidden_state for x in (clip_pixels, other))
    moved = (before - after).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert moved.tolist() == [False, False, True, True]


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_merged_equals_unmerged(name, clip_pixels):
    model = get_peft_model(tiny_image_model(name), ZeroI2VConfig(num_frames=4))
    randomize_adapter(model).eval()
    expected_BD = model(clip_pixels).pooler_output
    merged = model.merge_and_unload()
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    torch.testing.assert_close(merged(clip_pixels).pooler_output, expected_BD, atol=1e-5, rtol=1e-5)
    assert isinstance(merged, I2VModel)  # not an image model that would ignore time
    assert merged.config.time_offsets == [-1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merged_in_half_precision_differs_by_its_rounding_only(dtype, clip_pixels):
    model = get_peft_model(tiny_image_model("clip").to(dtype), ZeroI2VConfig(num_frames=4))
    randomize_adapter(model).eval()
    exact = copy.deepcopy(model).float()
    expected_BD = exact(clip_pixels).pooler_output
    merged = model.merge_and_unload()
    assert merged.dtype == dtype
    exact_merged = exact.merge_and_unload().state_dict()
    for key, value in merged.state_dict().items():  # merged in float32, cast once
        assert torch.equal(value, exact_merged[key].to(value.dtype)), key
    error = (merged(clip_pixels.to(dtype)).pooler_output.float() - expected_BD).abs().max()
    assert error <= 16 * torch.finfo(dtype).eps * expected_BD.abs().max()


@pytest.mark.parametrize("name", ["vit", "dinov3"])  # one with a pooler, one whose keys get a bias by merging
def test_merged_model_on_disk_gives_the_same(name, tmp_path, clip_pixels):
    model = randomize_adapter(get_peft_model(tiny_image_model(name), ZeroI2VConfig(num_frames=4))).eval()
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(clip_pixels).pooler_output, merged(clip_pixels).pooler_output)


@pytest.mark.parametrize("name", ["clip", "dinov3"])
def test_merge_and_unmerge_are_exact(name, clip_pixels):
    model = randomize_adapter(get_peft_model(tiny_image_model(name), ZeroI2VConfig(num_frames=4))).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    image_config = model.base_model.model.config.to_dict()
    expected_BD = model(clip_pixels).pooler_output
    model.merge_adapter()
    torch.testing.assert_close(model(clip_pixels).pooler_output, expected_BD, atol=1e-5, rtol=1e-5)
    assert any(not torch.equal(value, state[key]) for key, value in model.state_dict().items() if key in state)
    model.unmerge_adapter()
    assert torch.equal(model(clip_pixels).pooler_output, expected_BD)
    assert model.state_dict().keys() == state.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert model.base_model.model.config.to_dict() == image_config  # no bias of the keys any more


def test_a_merged_adapter_that_is_disabled_is_taken_back(clip_pixels):
    image_model = tiny_image_model("clip")
    expected_BD = per_frame_feature(image_model, clip_pixels)
    model = randomize_adapter(get_peft_model(image_model, LinearAdapterConfig(num_frames=4))).eval()
    model.merge_adapter()
    with model.disable_adapter():
        disabled_BD = model(clip_pixels).pooler_output
    assert torch.equal(disabled_BD, expected_BD)


def test_each_weight_keeps_its_precision():
    image_model = tiny_image_model("clip").to(torch.bfloat16)
    image_model.encoder.layers[1].mlp.fc2.float()
    merged = get_peft_model(image_model, ZeroI2VConfig(num_frames=4)).merge_and_unload()
    kept = {name for name, p in merged.named_parameters() if p.dtype == torch.float32}
    assert {name.rpartition("layers.")[2] for name in kept} == {"1.mlp.fc2.weight", "1.mlp.fc2.bias"}


def test_safe_merge_refuses_nan_and_changes_nothing(clip_pixels):
    model = randomize_adapter(get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4))).eval()
    with torch.no_grad():
        model.base_model.model.encoder.layers[2].sites.i2v_mlp_out["default"]["zeroi2v"].up.weight[0, 0] = torch.nan
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="NaN"):
        model.merge_and_unload(safe_merge=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(7), before[key].nan_to_num(7)), key


def test_zeroi2v_is_stdha_in_the_model_and_linear_adapters_on_it(clip_pixels):
    zeroi2v = randomize_adapter(get_peft_model(tiny_image_model("vit"), STDHAConfig(num_frames=4))).eval()
    with_stdha = zeroi2v.merge_and_unload()
    expected_BD = with_stdha(clip_pixels).pooler_output
    model = get_peft_model(with_stdha, LinearAdapterConfig()).eval()
    assert torch.equal(model(clip_pixels).pooler_output, expected_BD)
    randomize_adapter(model)
    adapted_BD = model(clip_pixels).pooler_output
    assert not torch.allclose(adapted_BD, expected_BD)
    with model.disable_adapter():
        assert torch.equal(model(clip_pixels).pooler_output, expected_BD)
    torch.testing.assert_close(model.merge_and_unload()(clip_pixels).pooler_output, adapted_BD, atol=1e-5, rtol=1e-5)


def test_shift_heads_against_a_plain_loop():
    x_MHNK = torch.randn(2 * 5, 4, 3, 6)
    offsets = (-1, 2, 0, -4)
    expected = x_MHNK.clone()
    for b in range(2):
        for t in range(5):
            for head, offset in enumerate(offsets):
                if 0 <= t + offset < 5:
                    expected[b * 5 + t, head] = x_MHNK[b * 5 + t + offset, head]
    assert torch.equal(shift_heads(x_MHNK, 5, offsets), expected)
    with pytest.raises(ValueError, match="time offset of 4 frames"):
        shift_heads(x_MHNK[:8], 4, offsets)


def test_published_head_allocations():
    assert default_time_offsets(12, 8) == [-1, 1]
    assert default_time_offsets(12, 16) == default_time_offsets(12, 32) == [-1, 1, -2, 2]
    assert default_time_offsets(16, 8) == [-1, -1, 1, 1]
    assert default_time_offsets(16, 32) == [-1, -1, 1, 1, -2, 2, -3]


def test_the_kernel_that_the_user_chose_is_kept(clip_pixels):
    image_model = tiny_image_model("clip")
    model = get_peft_model(image_model, STDHAConfig(num_frames=4))
    sdpa_BD = model(clip_pixels).pooler_output
    image_model.set_attn_implementation("eager")
    outputs = model(clip_pixels, output_attentions=True)  # only eager can give them
    torch.testing.assert_close(outputs.pooler_output, sdpa_BD, atol=1e-5, rtol=1e-5)
    assert [a.shape for a in outputs.attentions] == [(2, 4, 4, 5, 5)] * 3


def test_a_kernel_that_reads_its_own_name_from_the_module(clip_pixels):
    """As transformers' flash attention does."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def kernel(module, *args, **kwargs):
        assert module.config._attn_implementation == "test_kernel"
        assert not module.training
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("test_kernel", kernel)
    model = get_peft_model(tiny_image_model("clip"), STDHAConfig(num_frames=4))
    expected_BD = model(clip_pixels).pooler_output
    model.config._attn_implementation = "test_kernel"
    assert torch.equal(model(clip_pixels).pooler_output, expected_BD)


def test_another_number_of_frames_interpolates_the_temporal_embedding(clip_pixels):
    model = randomize_adapter(get_peft_model(tiny_image_model("vit"), ZeroI2VConfig(num_frames=4))).eval()
    embedding_TD = model.base_model.model.embeddings.temporal.i2v_embedding["default"]
    with torch.no_grad():  # a straight line over time stays one
        embedding_TD.copy_(torch.arange(4.0)[:, None].expand(4, 32))
    from hf_i2v.frames import over_frames

    torch.testing.assert_close(over_frames(embedding_TD, 7), torch.linspace(0, 3, 7)[:, None].expand(7, 32))
    longer = clip_pixels.repeat_interleave(2, dim=1)
    assert model(longer).pooler_output.shape == (2, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"time_offsets": [1, -1, 0, 0, 1]}, "names 5 heads, but the model has 4"),
        ({"time_offsets": [4]}, r"time_offsets has \[4\], but in a clip of num_frames=4"),
        ({"time_offsets": {-4: 1}}, "must lie between -3 and 3"),
        ({"layers_to_transform": [3]}, "layers_to_transform has 3, but the model has blocks 0 to 2"),
        ({"num_frames": None}, "needs num_frames"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_and_changes_nothing(config, message, clip_pixels):
    image_model = tiny_image_model("clip")
    expected_BD = per_frame_feature(image_model, clip_pixels)
    with pytest.raises(ValueError, match=message):
        get_peft_model(image_model, ZeroI2VConfig(**{"num_frames": 4, **config}))
    assert torch.equal(per_frame_feature(image_model, clip_pixels), expected_BD)


@pytest.mark.parametrize("offset", [1, 3])
def test_a_clip_that_is_too_short_for_its_offsets(offset, clip_pixels):
    model = get_peft_model(tiny_image_model("clip"), STDHAConfig(num_frames=4, time_offsets=[offset]))
    with pytest.raises(ValueError, match=f"A time offset of {offset} frames needs clips of more than {offset} frames"):
        model(clip_pixels[:, :offset])
    assert model(clip_pixels).pooler_output.isfinite().all()


def test_offsets_by_their_number_of_heads():
    assert ZeroI2VConfig(time_offsets={1: 2, -1: 1}).time_offsets == [1, 1, -1]


def test_as_many_offsets_as_heads():
    get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4, time_offsets=[1, -1, 3, -3]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"adapter_sites": ["between"]}, "adapter_sites"),
        ({"adapter_ratio": 0}, "adapter_ratio"),
        ({"adapter_dropout": 1.0}, "adapter_dropout"),
        ({"num_frames": 0}, r"num_frames \(0\) must be >= 1"),
    ],
)
def test_impossible_values_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ZeroI2VConfig(**config)


def test_num_frames_must_agree_with_the_model(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path)
    model = I2VForVideoClassification.from_image_model(tmp_path, num_frames=4, num_labels=3)
    with pytest.raises(ValueError, match="has num_frames=8, but the model was made for 4"):
        get_peft_model(model, ZeroI2VConfig(num_frames=8))
