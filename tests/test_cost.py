"""Counted costs against the published figures (B/16 and L/14 at 224²)."""

import csv
import io
import json
import time
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from method_table import small_config
from peft import get_peft_model
from tiny import tiny_image_model
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_i2v import (
    AIMConfig,
    I2VConfig,
    I2VForVideoClassification,
    InTIConfig,
    STAdapterConfig,
    ZeroI2VConfig,
)
from hf_i2v.architectures import video_config
from hf_i2v.cost import cost, count_macs, count_parameters, main, training_memory
from hf_i2v.counting import latency
from hf_i2v.data import Preprocessing
from hf_i2v.step_memory import LiveBytes
from hf_i2v.training.plan import memory_plan, plan

B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def clip_on_meta(size: dict, patch_size: int) -> CLIPVisionModel:
    with torch.device("meta"):
        return CLIPVisionModel(CLIPVisionConfig(**size, image_size=224, patch_size=patch_size))


def test_vit_b16_and_zeroi2v():
    image_model = clip_on_meta(B16, 16)
    assert count_macs(image_model, (8, 3, 224, 224)) == pytest.approx(140.6e9, rel=0.005)
    model = get_peft_model(image_model, ZeroI2VConfig(num_frames=8))
    _, trainable = count_parameters(model)
    assert trainable == pytest.approx(14.2e6, rel=0.005)
    merged = model.merge_and_unload()
    assert count_macs(merged, (1, 8, 3, 224, 224)) == count_macs(clip_on_meta(B16, 16), (8, 3, 224, 224))
    assert count_parameters(merged)[0] - count_parameters(clip_on_meta(B16, 16))[0] == 8 * 768


def test_vit_l14():
    assert count_macs(clip_on_meta(L14, 14), (1, 3, 224, 224)) == pytest.approx(81.08e9, rel=0.005)


PUBLISHED = {  # MACs of one clip of 8 frames at B/16; without the second sites: see THREE_VIEWS
    "ST-Adapter 24×384": (STAdapterConfig(adapter_sites=["before", "between"]), 489e9 / 3),
    "AIM SSv2": (AIMConfig(temporal_adapter_in=True), 624e9 / 3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_macs(name):
    config, macs = PUBLISHED[name]
    config.num_frames = 8
    model = get_peft_model(clip_on_meta(B16, 16), config)
    assert count_macs(model, (1, 8, 3, 224, 224)) == pytest.approx(macs, rel=0.005)


@pytest.mark.parametrize(("size", "patch_size", "layer"), [(B16, 16, 3), (L14, 14, 6)])
def test_inti_leaves_five_eighths_of_the_cost(size, patch_size, layer):
    whole = count_macs(clip_on_meta(size, patch_size), (8, 3, 224, 224))
    model = get_peft_model(clip_on_meta(size, patch_size), InTIConfig(num_frames=8))
    assert model.peft_config["default"].insert_before == [layer]
    assert count_macs(model, (1, 8, 3, 224, 224)) / whole == pytest.approx(0.625, abs=0.005)


def test_counting_leaves_the_model_alone_and_prints():
    from tiny import tiny_image_model

    model = tiny_image_model("vit").train()
    weights = [p.clone() for p in model.parameters()]
    text = str(cost(model, (2, 3, 16, 16)))
    assert "GMACs" in text and "M parameters" in text
    assert model.training and all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


THREE_VIEWS = {"none": 422e9, "st_adapter": 455e9, "aim": 606e9}  # MACs of three views, 8 frames, B/16


def test_the_command_line_gives_the_published_rows(capsys):
    main(["--tuner", *THREE_VIEWS, "--views", "3x1", "--format", "json"])
    rows = {row["tuner"]: row for row in json.loads(capsys.readouterr().out)}
    for tuner, macs in THREE_VIEWS.items():
        assert rows[tuner]["video_macs"] == pytest.approx(macs, rel=0.005)
    assert rows["none"]["activation_bytes"] < 10_000 < rows["aim"]["activation_bytes"]  # only the pooled feature


def test_formats_and_latency(tmp_path, capsys):
    tiny_image_model("clip", num_hidden_layers=1).save_pretrained(tmp_path)
    options = [
        "--model",
        str(tmp_path),
        "--num_frames",
        "4",
        "--latency",
        "2",
        "--tuner",
        "zeroi2v",
        "st_adapter+inti",
    ]
    main([*options, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["tuner"] for row in rows] == ["zeroi2v", "st_adapter+inti"]
    assert all(float(row["latency_seconds"]) > 0 for row in rows)
    assert 0 < int(rows[0]["merged_clip_macs"]) < int(rows[0]["clip_macs"]) and rows[1]["merged_clip_macs"] == ""
    main(options)
    heads, *lines = capsys.readouterr().out.splitlines()
    assert "GMACs/clip" in heads and len(lines) == 2 and "±" in lines[0]
    for wrong, message in (
        (["--views", "3"], "CLIPSxCROPS"),
        (["--tuner", "lora"], "'lora'. is not among the methods"),
        (["--tuner", "inti+inti"], "names a method twice"),
        (["--tuner_config", "width=8"], "takes KEY=VALUE with options of zeroi2v.*'adapter_ratio'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*options, *wrong])


@pytest.mark.parametrize("training", [True, False])
def test_a_timed_model_goes_on_as_it_was(training):
    model = get_peft_model(tiny_image_model("clip"), small_config("zeroi2v", num_frames=4)).train(training)
    model.to(torch.bfloat16)
    started = time.perf_counter()
    seconds, spread = latency(model, (1, 4, 3, 16, 16), rounds=1)
    assert 0 < seconds < time.perf_counter() - started and spread == 0
    assert model.training is training


def test_macs_in_use_leave_out_what_the_last_block_skips():
    image_config = tiny_image_model("clip").config
    model = I2VForVideoClassification(I2VConfig(image_config=image_config, num_frames=4, num_labels=3))
    clips = (1, 4, 3, 16, 16)
    skipped = 4 * 4 * 2 * image_config.hidden_size * image_config.intermediate_size  # patches' MLP in 4 frames
    assert count_macs(model, clips) - count_macs(model, clips, as_papers_count=False) == skipped


def test_latency_is_the_median_without_the_first_pass(monkeypatch):
    ticks = iter([0, 10, 20, 21, 30, 32, 40, 43])  # a pass of 10 s, then of 1, 2 and 3
    monkeypatch.setattr("hf_i2v.counting.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert latency(tiny_image_model("clip"), (1, 3, 16, 16), rounds=3) == (2, 1)


@pytest.mark.parametrize("method", ["zeroi2v", "st_adapter", "aim", "inti", "frame2freq", "m_adapter"])
def test_memory_is_that_of_a_real_step(method, tmp_path):
    tiny_image_model("vit").save_pretrained(tmp_path)
    base = I2VForVideoClassification.from_image_model(tmp_path, num_frames=4, num_labels=3)
    model = get_peft_model(base, small_config(method)).train()
    predicted = training_memory(model, (2, 4, 3, 16, 16))
    trained = [p for p in model.parameters() if p.requires_grad]
    live = LiveBytes()
    with live:
        live.see(*model.parameters(), *model.buffers())
        assert predicted.weights == live.now
        moments = [torch.zeros_like(p) for p in trained for _ in range(2)]
        model(torch.randn(2, 4, 3, 16, 16)).logits.square().mean().backward()
    assert predicted.trained == 3 * sum(p.nbytes for p in trained) == 1.5 * sum(m.nbytes for m in moments)
    assert predicted.peak == pytest.approx(live.highest, rel=0.1)


def test_memory_in_halves_and_under_checkpointing():
    model = get_peft_model(clip_on_meta({**B16, "num_hidden_layers": 2}, 16), STAdapterConfig(num_frames=2)).train()
    plain = training_memory(model, (16, 2, 3, 224, 224))
    assert training_memory(model, (16, 2, 3, 224, 224), autocast=torch.bfloat16).kept < 0.8 * plain.kept
    model.gradient_checkpointing_enable()
    assert training_memory(model, (16, 2, 3, 224, 224)).kept < 0.3 * plain.kept


def test_a_step_that_does_not_fit_is_told(monkeypatch, caplog):
    model, shape = tiny_image_model("vit"), (2, 3, 16, 16)
    where = {"mixed_precision": "no", "device": torch.device("cpu")}
    assert "free on cpu" in memory_plan(model, shape, **where) and not caplog.records
    monkeypatch.setattr("psutil.virtual_memory", lambda: Namespace(available=1000))
    memory_plan(model, shape, **where)
    assert "cpu has 0.0 GiB free. Lower --per_device_train_batch_size" in caplog.text


def test_pictures_of_the_size_of_the_preprocessing(tmp_path, capsys, monkeypatch):
    tiny_image_model("dinov2", image_size=40, num_hidden_layers=1).save_pretrained(tmp_path)
    options = ["--model", str(tmp_path), "--num_frames", "2", "--num_labels", "3", "--format", "json"]

    def macs(*more: str) -> int:
        main([*options, *more])
        return json.loads(capsys.readouterr().out)[0]["clip_macs"]

    unknown = macs()
    Preprocessing(24, (0.5,) * 3, (0.5,) * 3, "bicubic").image_processor().save_pretrained(tmp_path)
    assert macs() == macs("--image_size", "24") < macs("--image_size", "40") == unknown
    with torch.device("meta"):
        base = I2VForVideoClassification(video_config(tmp_path, num_frames=2, num_labels=3))
    assert macs() == cost(base, base.config.clip_shape()).macs
    # a dry run: the figures of a tiny model all round to 0.0 G, so the counted shape is looked at
    shapes = []
    monkeypatch.setattr("hf_i2v.training.plan.cost", lambda model, shape: shapes.append(shape) or cost(model, shape))
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_train_steps": 5}
    options |= {"num_frames": 2, "eval_views": "1x1", "num_warmup_steps": 0, "lr_scheduler_type": "cosine"}
    plan(base, Namespace(**options))
    assert shapes == [(1, 2, 3, 24, 24)]


def test_the_originals_that_peft_keeps_are_not_counted():
    """The final norm is trained as a copy, and its original is kept; a forward pass uses one of them."""
    image_model = tiny_image_model("clip")
    plain = sum(p.numel() for p in image_model.parameters())
    model = get_peft_model(image_model, small_config("zeroi2v", num_frames=4))
    adapter = sum(p.numel() for name, p in model.named_parameters() if ".i2v_" in name)
    norm = sum(p.numel() for p in tiny_image_model("clip").post_layernorm.parameters())
    assert count_parameters(model) == (plain + adapter, adapter + norm)
