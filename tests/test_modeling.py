"""I2VForVideoClassification: made from an image checkpoint, trained, saved, loaded."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import randomize_adapter, tiny_image_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForVideoClassification,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    VitPoseBackboneConfig,
)

from hf_i2v import I2VConfig, I2VForVideoClassification, MAdapterConfig, ZeroI2VConfig
from hf_i2v.architectures import video_config
from hf_i2v.data import Preprocessing

CROP = 24  # of a model whose position embedding is made for 40


def dinov2(folder):
    """An image model in a folder, whose pictures are smaller than its configuration's `image_size`."""
    tiny_image_model("dinov2", image_size=40).save_pretrained(folder)
    Preprocessing(CROP, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic").image_processor().save_pretrained(folder)
    return folder


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


def test_the_size_is_that_of_the_preprocessing(tmp_path):
    model = I2VForVideoClassification.from_image_model(dinov2(tmp_path / "image"), num_frames=4, num_labels=3)
    assert model.config.clip_shape(2) == (2, 4, 3, CROP, CROP)
    assert video_config(tmp_path / "image", num_frames=2).clip_shape() == (1, 2, 3, CROP, CROP)
    model.save_pretrained(tmp_path / "video")
    assert video_config(tmp_path / "video", num_labels=7).clip_shape() == (1, 4, 3, CROP, CROP)
    assert video_config("openai/clip-vit-base-patch16").clip_shape() == (1, 8, 3, 224, 224)  # without the Hub
    in_code = I2VConfig(image_config=tiny_image_model("clip").config, num_frames=4)
    assert in_code.clip_shape() == (1, 4, 3, 16, 16)


def test_from_an_image_model_in_memory(tmp_path):
    by_name = I2VForVideoClassification.from_image_model(dinov2(tmp_path), num_frames=4, num_labels=3)
    image_model = AutoModel.from_pretrained(tmp_path)
    before, config = image_model.config.to_dict(), image_model.config
    model = I2VForVideoClassification.from_image_model(image_model, num_frames=4, num_labels=3)
    assert model.config.preprocessing == by_name.config.preprocessing and model.name_or_path == str(tmp_path)
    model.classifier.load_state_dict(by_name.classifier.state_dict())
    clips = torch.randn(model.config.clip_shape(2))
    assert torch.equal(model(clips).logits, by_name(clips).logits)
    get_peft_model(model, ZeroI2VConfig())
    assert image_model(clips[0]).pooler_output.shape == (4, 32)  # an image model as before
    assert image_model.config is config and config.to_dict() == before
    assert model.i2v.image_model.embeddings.cls_token is image_model.embeddings.cls_token


def test_an_image_model_in_memory_after_lora_and_in_another_dtype(tmp_path):
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(tiny_image_model("dinov2", image_size=40), lora)
    with pytest.raises(ValueError, match=r"holds an adapter of peft.*merge_and_unload"):
        I2VForVideoClassification.from_image_model(adapted)
    merged = adapted.merge_and_unload()
    processor = Preprocessing(CROP, (0.5,) * 3, (0.5,) * 3, "bilinear").image_processor()
    model, info = I2VForVideoClassification.from_image_model(
        merged, num_frames=4, image_processor=processor, dtype="bfloat16", output_loading_info=True
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and merged.dtype == torch.float32
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    clips = torch.randn(model.config.clip_shape(2))
    assert clips.shape[-1] == CROP
    feature = model.i2v(clips.bfloat16()).pooler_output.float()
    expected = merged(clips.flatten(0, 1)).pooler_output.unflatten(0, (2, 4)).mean(1)
    torch.testing.assert_close(feature, expected, atol=0.1, rtol=0.1)
    with pytest.raises(ValueError, match=r"\['revision'\] are for loading a checkpoint"):
        I2VForVideoClassification.from_image_model(merged, revision="main")
    with pytest.raises(ValueError, match="is a video model already"):
        I2VForVideoClassification.from_image_model(model)


def test_an_image_classifier_in_memory_gives_its_vision_model(clip_pixels):
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    classifier = ViTForImageClassification(config).eval()
    model = I2VForVideoClassification.from_image_model(classifier, num_frames=4)
    expected = classifier.vit(clip_pixels.flatten(0, 1)).last_hidden_state[:, 0].unflatten(0, (2, 4)).mean(1)
    torch.testing.assert_close(model.i2v(clip_pixels).pooler_output, expected)


def test_arguments_for_where_and_how_to_load(tmp_path):
    hub = {"subfolder": "image", "cache_dir": tmp_path / "cache", "local_files_only": True}
    dinov2(tmp_path / "a" / "image")
    from_image_model, load = I2VForVideoClassification.from_image_model, I2VForVideoClassification.from_pretrained
    model, info = from_image_model(tmp_path / "a", num_frames=4, output_loading_info=True, **hub)
    assert model.config.preprocessing["size"] == CROP and "classifier.weight" in info["missing_keys"]
    model.save_pretrained(tmp_path / "b" / "image")
    loaded, info = load(tmp_path / "b", output_loading_info=True, **hub)
    assert not info["missing_keys"] and loaded.config.num_frames == 4
    load(tmp_path / "b", num_labels=5, ignore_mismatched_sizes=True, **hub)
    file = tmp_path / "a" / "image" / "model.safetensors"
    state = load_file(file)
    key = next(key for key in state if key.endswith("layer.1.mlp.fc1.weight"))
    save_file(state | {key: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="mismatched"):
        from_image_model(tmp_path / "a", **hub)
    from_image_model(tmp_path / "a", ignore_mismatched_sizes=True, **hub)


@pytest.mark.parametrize("num_labels", [1, 3])
def test_regression_is_trained_as_such(tmp_path, clip_pixels, num_labels):
    tiny_image_model("vit").save_pretrained(tmp_path)
    options = {"problem_type": "regression"} if num_labels > 1 else {}
    model = I2VForVideoClassification.from_image_model(
        tmp_path, num_frames=4, num_labels=num_labels, return_dict=False, **options
    )
    labels = torch.rand(2, num_labels)
    loss, logits = model(clip_pixels, labels=labels)  # a tuple, as the configuration says
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(logits, labels))
    model.save_pretrained(tmp_path / "saved")
    assert model.config.problem_type == "regression"
    assert AutoConfig.from_pretrained(tmp_path / "saved").problem_type == "regression"


@pytest.mark.parametrize("method", [None, ZeroI2VConfig(), MAdapterConfig()])
def test_outputs_that_the_configuration_asks_for(tmp_path, clip_pixels, method):
    asked = {"output_hidden_states": True, "output_attentions": True, "attn_implementation": "eager"}
    model = I2VForVideoClassification.from_image_model(tiny_image_model("clip"), num_frames=4, num_labels=3, **asked)
    adapted = model if method is None else get_peft_model(model, method).eval()
    outputs = adapted(clip_pixels)
    assert [x.shape for x in outputs.hidden_states] == [(2, 4, 5, 32)] * 4
    assert [x.shape for x in outputs.attentions] == [(2, 4, 4, 5, 5)] * 3
    assert adapted(clip_pixels, output_hidden_states=False).hidden_states is None
    model.config.return_dict = False
    assert isinstance(model.i2v(clip_pixels), tuple) and isinstance(adapted(clip_pixels), tuple)
    assert model.i2v(clip_pixels, return_dict=True).pooler_output.shape == (2, 32)
