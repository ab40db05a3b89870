"""AutoPeftModelForVideoClassification: adapters of LoRA on a video model, bases that have moved, unknown methods."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import randomize_adapter, tiny_image_model

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.cards import CardFacts, write_card

LABELS = {0: "left", 1: "right", 2: "up"}


def save_adapter(folder, *, lora: bool):
    """An adapter on the image model in `image`, a place relative to the working directory, and its model."""
    tiny_image_model("clip").save_pretrained("image")
    model = I2VForVideoClassification.from_image_model("image", num_frames=4, id2label=LABELS)
    config = ZeroI2VConfig()
    if lora:
        model = model.with_stdha([-1, 1])
        config = LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = randomize_adapter(get_peft_model(model, config)).eval()
    model.save_pretrained(folder)
    return model


def test_a_lora_adapter_is_loaded_like_every_other(tmp_path, monkeypatch, clip_pixels):
    monkeypatch.chdir(tmp_path)
    trained = save_adapter("adapter", lora=True)
    with pytest.raises(ValueError, match=r"has no video_model\.json.*hf_i2v\.cards\.write_card"):
        AutoPeftModelForVideoClassification.from_pretrained("adapter")
    write_card(trained, "adapter", CardFacts(measure_latency=False))
    assert "AutoPeftModelForVideoClassification" in (tmp_path / "adapter" / "README.md").read_text()
    expected = trained(clip_pixels).logits
    video = AutoPeftModelForVideoClassification.from_pretrained("adapter").merge_and_unload()
    video.save_pretrained("video")
    loaded = I2VForVideoClassification.from_pretrained("video")
    assert loaded.config.id2label == LABELS and loaded.config.time_offsets == [-1, 1]
    torch.testing.assert_close(loaded(clip_pixels).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_local_base_is_found_from_another_folder_or_asked_for(tmp_path, monkeypatch, lora):
    monkeypatch.chdir(tmp_path)
    model = save_adapter("adapter", lora=lora)
    write_card(model, "adapter", CardFacts(measure_latency=False))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    load = AutoPeftModelForVideoClassification.from_pretrained
    load(tmp_path / "adapter")
    (tmp_path / "image").rename(tmp_path / "moved")
    with pytest.raises(OSError, match=r"adapter was trained on '.*image', which is not.*base_model_name_or_path="):
        load(tmp_path / "adapter")
    load(tmp_path / "adapter", base_model_name_or_path=tmp_path / "moved")


def test_an_adapter_of_an_unknown_method_says_what_to_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_adapter("adapter", lora=False)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "SOMEBODYS"}))
    with pytest.raises(ValueError, match=r"adapter is of the method 'somebodys', .*import the file that registers it"):
        AutoPeftModelForVideoClassification.from_pretrained("adapter")
