"""Exported programs give PyTorch's logits, for any number of clips."""

import json
import math
import re
import zipfile

import pytest
import torch
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model

from hf_i2v import (
    AIMConfig,
    AttentiveProbeConfig,
    Frame2FreqConfig,
    I2VForVideoClassification,
    InTIConfig,
    STAdapterConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from hf_i2v.data import Preprocessing
from hf_i2v.export import (
    OnnxClassifier,
    export_onnx,
    export_program,
    largest_difference,
    main,
    save_program,
    validation_clips,
)
from hf_i2v.export_stream import OnnxStream, export_step

CROP = 24  # the tiny models' position embeddings are made for 16 or 40


def video_model(tmp_path, config, backbone="clip", **changes):
    tiny_image_model(backbone, **changes).save_pretrained(tmp_path / "image")
    if backbone == "dinov2":  # takes pictures of any size
        pixels = Preprocessing(CROP, (0.5,) * 3, (0.5,) * 3, "bicubic")
        pixels.image_processor().save_pretrained(tmp_path / "image")
    labels = {0: "first", 1: "second"}
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, id2label=labels)
    model = randomize_adapter(get_peft_model(model, config)).eval()
    return model.merge_and_unload() if isinstance(config, ZeroI2VConfig) else model.base_model.bake()


def test_the_command(tmp_path, video, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    causal = ZeroI2VConfig(causal=True, time_offsets=[-1, -3])
    model = video_model(tmp_path, causal, "dinov2", num_hidden_layers=1, image_size=40)
    model.save_pretrained(tmp_path / "model")
    folder = tmp_path / "validation" / "first"
    folder.mkdir(parents=True)
    (folder / "clip.mp4").write_bytes(video.read_bytes())
    arguments = [str(tmp_path / "model"), str(tmp_path / "exported"), "--int8", "--stream"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--int8 needs --validation_dir" in capsys.readouterr().err
    main([*arguments, "--validation_dir", str(folder.parent)])
    lines = capsys.readouterr().out.splitlines()
    differences = {line.split(":")[0]: float(line.rpartition(" ")[2]) for line in lines if "difference" in line}
    assert differences["model.pt2"] <= 1e-5 and differences["model.onnx"] <= 1e-4
    assert differences["model.stream.onnx"] <= 1e-4  # over 50 frames
    check_stream(tmp_path / "exported", model)
    assert 1e-4 < differences["model.int8.onnx"] < 1  # quantised it is, and not nonsense
    top1 = [re.fullmatch(r"top-1 (100.00|0.00) % (\S+)", line) for line in lines if line.startswith("top-1")]
    assert b"stack_trace" not in (tmp_path / "exported" / "model.onnx").read_bytes()
    with zipfile.ZipFile(tmp_path / "exported" / "model.pt2") as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    assert b".py" not in content  # no place in a file of this machine
    assert [match[2] for match in top1] == ["PyTorch", "model.pt2", "model.onnx", "model.int8.onnx"]
    assert top1[0][1] == top1[2][1]
    described = json.loads((tmp_path / "exported" / "model.json").read_text())
    assert described["labels"] == ["first", "second"] and described["preprocessing"]["size"] == CROP
    assert described["pixel_values"] == ["batch", 4, 3, CROP, CROP]
    for name in ("model.onnx", "model.int8.onnx", "model.stream.onnx"):
        session = OnnxClassifier(tmp_path / "exported" / name).session
        shape = described["stream"]["frames"] if "stream" in name else described["pixel_values"]
        assert session.get_inputs()[0].shape[1:] == shape[1:]
        own = session.get_modelmeta().custom_metadata_map
        assert {key: json.loads(own[key]) for key in described} == described
    extra = {"model.json": ""}
    torch.export.load(tmp_path / "exported" / "model.pt2", extra_files=extra)
    assert json.loads(extra["model.json"]) == described
    folder.rename(folder.with_name("third"))
    with pytest.raises(ValueError, match=r"has folders \['third'\]"):
        validation_clips(model, folder.parent)
    model.config.preprocessing = None
    with pytest.raises(ValueError, match="no preprocessing"):
        validation_clips(model, folder.parent)


def test_a_composition_of_baked_methods(tmp_path):  # each by itself: docs/abilities.py
    config = STAdapterConfig(adapter_width=8) + InTIConfig(insert_before=[1])
    model = video_model(tmp_path, config, num_hidden_layers=2)
    assert largest_difference(export_program(model).module(), model) <= 1e-5


@pytest.mark.parametrize(
    "config", [Frame2FreqConfig(adapter_width=8), AttentiveProbeConfig(num_blocks=1), STEPConfig()],
    ids=["frame2freq", "attentive_probe", "step"],
)  # fmt: skip
def test_baked_models_in_onnx(tmp_path, config):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = video_model(tmp_path, config, num_hidden_layers=1)
    program = export_program(model)
    assert largest_difference(program.module(), model) <= 1e-5
    export_onnx(program, tmp_path / "model.onnx")
    assert largest_difference(OnnxClassifier(tmp_path / "model.onnx"), model) <= 1e-4


@pytest.mark.parametrize("backbone", ["vit", "siglip"])  # DINOv2: see test_the_command
def test_other_backbones(tmp_path, backbone):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = video_model(tmp_path, ZeroI2VConfig(), backbone, num_hidden_layers=1)
    program = export_program(model)
    assert largest_difference(program.module(), model) <= 1e-5
    if backbone != "siglip":  # ONNX takes half a minute for them all; SigLIP's pooling is the odd one
        return
    export_onnx(program, tmp_path / "model.onnx")
    assert largest_difference(OnnxClassifier(tmp_path / "model.onnx"), model) <= 1e-4


def check_stream(exported, model):
    """As described; a stream that starts anew beside another."""
    described = json.loads((exported / "model.json").read_text())["stream"]
    run = OnnxStream(exported / "model.stream.onnx", batch_size=2)
    assert described["frames"] == ["batch", 3, CROP, CROP]
    assert described["state"]["age"] == {"shape": ["batch"], "dtype": "int64"}
    assert {name: ["batch", *x.shape[1:]] for name, x in run.state.items()} == {
        name: kept["shape"] for name, kept in described["state"].items()
    }
    state = model.new_stream(batch_size=2)
    for t in range(8):
        if t == 5:
            state.reset(1)
            run.reset(1)
        frames = torch.randn(2, 3, CROP, CROP, generator=torch.Generator().manual_seed(t))
        logits, state = model.step(frames, state)
        assert (run(frames) - logits).abs().max() <= 1e-4


@pytest.mark.parametrize(
    "config", [STAdapterConfig(causal=True, adapter_width=8) + AIMConfig(causal=True), STEPConfig(causal=True)]
)
def test_a_step_as_a_program(tmp_path, config):
    model = video_model(tmp_path, config, num_hidden_layers=2)
    program, state = export_step(model).module(), model.new_stream(batch_size=3)
    tensors = state.tensors().values()
    for t in range(6):
        frames = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(t))
        expected, state = model.step(frames, state)
        with torch.no_grad():
            logits, *tensors = program(frames, *tensors)
        assert (logits - expected).abs().max() <= 1e-5


def test_a_step_of_a_model_that_looks_ahead(tmp_path, capsys):
    video_model(tmp_path, ZeroI2VConfig(), num_hidden_layers=1).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "model"), str(tmp_path / "exported"), "--stream"])
    assert "cannot run frame by frame: its temporal embedding" in capsys.readouterr().err
    assert not (tmp_path / "exported").exists()


def test_a_difference_that_is_not_finite_shows(tmp_path):
    model = video_model(tmp_path, ZeroI2VConfig())
    broken = {2: math.nan, 3: math.inf}
    for batch_size, value in broken.items():
        difference = largest_difference(lambda x: model(x).logits * (value if len(x) == batch_size else 1), model)  # noqa: B023
        assert math.isnan(difference)


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory):
    """A model whose example clips have 2.5 MB, and its program."""
    model = video_model(tmp_path_factory.mktemp("large"), ZeroI2VConfig(), num_hidden_layers=1, image_size=160)
    return model, export_program(model)


def test_a_program_is_as_large_as_its_model(large_pictures, tmp_path):
    model, program = large_pictures
    save_program(program, tmp_path / "model.pt2")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (tmp_path / "model.pt2").stat().st_size < weights + 500_000
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert largest_difference(loaded, model) <= 1e-5


def test_the_command_does_not_pass_a_program_that_differs(large_pictures, tmp_path, monkeypatch):
    model, program = large_pictures
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("hf_i2v.export.export_program", lambda model: program)
    for name in ("export_onnx", "OnnxClassifier"):
        monkeypatch.setattr(f"hf_i2v.export.{name}", lambda *args, **kwargs: None)
    for difference in (math.nan, math.inf, 1e-3):
        monkeypatch.setattr("hf_i2v.export.largest_difference", lambda run, model, found=difference: found)
        with pytest.raises(SystemExit, match=r"model\.pt2 differs by more than 0\.0001: do not use it"):
            main([str(tmp_path / "model"), str(tmp_path / "exported")])
