"""I2VForVideoClassification: made from an image checkpoint, trained, saved, loaded."""

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import randomize_adapter, tiny_image_model
from transformers import (
    AutoConfig,
    AutoModelForVideoClassification,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    VitPoseBackboneConfig,
)

from hf_i2v import I2VConfig, I2VForVideoClassification, ZeroI2VConfig


def test_logits_and_loss(tmp_path, clip_pixels):
    tiny_image_model("vit").save_pretrained(tmp_path)
    model = I2VForVideoClassification.from_image_model(tmp_path, num_frames=4, num_labels=3)
    outputs = model(clip_pixels)
    assert outputs.logits.shape == (2, 3) and outputs.loss is None
    labels = torch.tensor([0, 2])
    outputs = model(pixel_values=clip_pixels, labels=labels)
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, labels))
    folded = model(clip_pixels.flatten(0, 1), num_frames=4)
    assert torch.equal(folded.logits, outputs.logits)
    loss, logits = model(clip_pixels, labels=labels, return_dict=False)
    assert torch.equal(logits, outputs.logits) and torch.equal(loss, outputs.loss)


@pytest.mark.parametrize(
    ("shape", "num_frames", "message"),
    [
        ((8, 3, 16, 16), None, "4-D .* say num_frames=T"),
        ((7, 3, 16, 16), 4, "7 frames .* cannot be split into clips of num_frames=4"),
        ((2, 4, 3, 16, 16), 8, "num_frames .8. does not agree"),
        ((3, 16, 16), None, r"must be \(B, T, C, h, w\)"),
    ],
)
def test_pixels_of_the_wrong_shape(shape, num_frames, message, tmp_path):
    tiny_image_model("vit").save_pretrained(tmp_path)
    model = I2VForVideoClassification.from_image_model(tmp_path, num_frames=4, num_labels=3)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape), num_frames=num_frames)


def test_a_finished_model_is_no_image_model(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2)
    model.save_pretrained(tmp_path / "video")
    with pytest.raises(ValueError, match=r"finished video model.*I2VForVideoClassification\.from_pretrained"):
        I2VForVideoClassification.from_image_model(tmp_path / "video", num_frames=4, num_labels=2)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 3, 4, 16, 16), r"the 3 channels: .* need \.transpose\(1, 2\)"),
        (torch.zeros(2, 4, 16, 16, 3), r"\.permute\(0, 1, 4, 2, 3\)"),
        (torch.zeros(2, 4, 3, 16, 16, dtype=torch.uint8), "torch.uint8: .* normalised"),
        (None, "pixel_values is missing"),
    ],
)
def test_pixels_of_another_layout(pixels, message, tmp_path):
    tiny_image_model("vit").save_pretrained(tmp_path)
    model = I2VForVideoClassification.from_image_model(tmp_path, num_frames=4, num_labels=3)
    with pytest.raises(ValueError, match=message):
        model(pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, r"num_frames \(0\) must be >= 1"),
        ({"id2label": ["a", "b"]}, "must be a dictionary"),
        ({"num_labels": 7, "id2label": {0: "a", 1: "b"}}, "num_labels is 7, but id2label names 2"),
    ],
)
def test_arguments_that_make_no_model(arguments, message, tmp_path):
    tiny_image_model("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        I2VForVideoClassification.from_image_model(tmp_path, **arguments)


def test_a_folder_with_something_else(tmp_path):
    tiny_image_model("vit").save_pretrained(tmp_path / "image")
    with pytest.raises(ValueError, match=r"holds a 'vit' model, .*from_image_model\("):
        I2VForVideoClassification.from_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3)
    get_peft_model(model, ZeroI2VConfig()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds an adapter, .*AutoPeftModelForVideoClassification"):
        I2VForVideoClassification.from_pretrained(tmp_path / "adapter")


def test_a_merged_model_is_one_artefact(tmp_path, clip_pixels):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    labels = {0: "left", 1: "right", 2: "up"}
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, id2label=labels)
    merged = randomize_adapter(get_peft_model(model, ZeroI2VConfig())).eval().merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert AutoConfig.from_pretrained(tmp_path / "merged").model_type == "i2v"
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "merged")
    assert isinstance(loaded, I2VForVideoClassification)
    assert torch.equal(loaded(clip_pixels).logits, merged(clip_pixels).logits)
    assert loaded.config.time_offsets == [-1, 1] and loaded.config.temporal_embedding
    assert loaded.config.id2label == labels
    loaded.train()  # it can be adapted again
    again = get_peft_model(loaded, ZeroI2VConfig()).eval()
    assert torch.equal(again(clip_pixels).logits, merged(clip_pixels).logits)


def test_a_merge_that_adds_biases_is_saved_with_them(tmp_path, clip_pixels):
    tiny_image_model("dinov3").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3)
    merged = randomize_adapter(get_peft_model(model, ZeroI2VConfig())).eval().merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "merged")
    assert loaded.config.image_config.key_bias
    assert torch.equal(loaded(clip_pixels).logits, merged(clip_pixels).logits)


def test_the_attention_kernel_can_be_changed(tmp_path, clip_pixels):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3).with_stdha()
    assert model.config._attn_implementation == "sdpa"
    logits = model(clip_pixels).logits
    model.set_attn_implementation("eager")
    outputs = model(clip_pixels, output_attentions=True)
    assert [a.shape for a in outputs.attentions] == [(2, 4, 4, 5, 5)] * 3
    torch.testing.assert_close(outputs.logits, logits, atol=1e-5, rtol=1e-5)


def test_offsets_may_differ_from_block_to_block(tmp_path, clip_pixels):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3)
    merged = get_peft_model(model, ZeroI2VConfig(layers_to_transform=[1]))
    merged = randomize_adapter(merged).eval().merge_and_unload()
    assert merged.config.time_offsets == [[], [-1, 1], []]
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(clip_pixels).logits, merged(clip_pixels).logits)


def test_the_vision_half_of_a_clip_checkpoint(tmp_path):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**text, "image_size": 16, "patch_size": 8}))
    clip.save_pretrained(tmp_path)
    model = I2VForVideoClassification.from_image_model(tmp_path, num_labels=3)
    key = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(model.i2v.image_model.get_parameter(key), clip.vision_model.get_parameter(key))


def test_an_image_classifier_checkpoint_needs_no_pooler(tmp_path, clip_pixels):
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    model = I2VForVideoClassification.from_image_model(tmp_path, num_labels=3)
    assert model(clip_pixels).logits.shape == (2, 3)


@pytest.mark.parametrize("damage", ["missing", "mismatched"])
def test_an_incomplete_checkpoint_is_refused_unless_allowed(tmp_path, damage):
    tiny_image_model("clip").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith("layers.1.mlp.fc1.weight"))
    if damage == "missing":
        del state[key]
    else:
        state[key] = torch.zeros(3, 3)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"(?s)1 weights .* uninitialised.*{damage}: .*layers\.1\.mlp\.fc1\.weight"):
        I2VForVideoClassification.from_image_model(tmp_path, num_labels=3)
    I2VForVideoClassification.from_image_model(tmp_path, num_labels=3, allow_random_base=True)


def test_a_checkpoint_without_an_image_model(tmp_path):
    VitPoseBackboneConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no image model"):
        I2VForVideoClassification.from_image_model(tmp_path)


def test_config_checks_its_offsets():
    image_config = tiny_image_model("vit").config
    with pytest.raises(ValueError, match="2 lists, but the model has 3 blocks"):
        I2VForVideoClassification(I2VConfig(image_config=image_config, time_offsets=[[1], [1]]))
    with pytest.raises(ValueError, match="names 5 heads"):
        I2VForVideoClassification(I2VConfig(image_config=image_config, time_offsets=[1, 1, 1, 1, 1]))
