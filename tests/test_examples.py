"""The training script, run as a user would, on a few tiny videos."""

import importlib
import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import tiny_image_model

from hf_i2v import I2VForVideoClassification

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run_video_cls(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("run_video_cls").main
    sys.modules.pop("run_video_cls", None)


def test_lora_with_stdha(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    tiny_image_model("clip").save_pretrained(tmp_path)
    main = importlib.import_module("lora_with_stdha").main
    main(["--model_name_or_path", str(tmp_path), "--num_frames", "4", "--num_labels", "3"])
    before, _, merged = capsys.readouterr().out.strip().splitlines()
    assert before.split("parameters")[0].split()[-2] == merged.split("parameters")[0].split()[-2]
    assert merged.endswith("time offsets [-1, 1]")


@pytest.fixture
def videos(tmp_path):
    for split, count in (("train", 3), ("validation", 1)):
        for name, color in (("dark", 30), ("light", 220)):
            for i in range(count):
                path = tmp_path / "videos" / split / name / f"{i}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                with av.open(str(path), "w") as container:
                    stream = container.add_stream("mpeg4", rate=8)
                    stream.width = stream.height = 16
                    for _ in range(6):
                        frame = np.full((16, 16, 3), color, np.uint8)
                        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                    container.mux(stream.encode())
    return tmp_path / "videos"


def test_tuners_and_their_options_come_from_the_command_line(run_video_cls):
    tuner_config = sys.modules["run_video_cls"].tuner_config
    config = tuner_config("st_adapter+inti", ["adapter_width=8", "insert_before=[2]", "num_frames=4"])
    assert [m.method_name for m in config.methods] == ["inti", "st_adapter"]
    assert (config.num_frames, config.methods[0].insert_before, config.methods[1].adapter_width) == (4, [2], 8)
    for tuner, pairs in (("adapter", []), ("aim", ["adapter_width=8"]), ("aim", ["drop_path"])):
        with pytest.raises(SystemExit):
            tuner_config(tuner, pairs)


@pytest.mark.parametrize("tuner", ["zeroi2v", "linear_probe"])
def test_training_script(run_video_cls, videos, tmp_path, tuner, capsys):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    arguments = {
        "model_name_or_path": tmp_path / "image",
        "train_dir": videos / "train",
        "validation_dir": videos / "validation",
        "tuner": tuner,
        "num_frames": 4,
        "output_dir": tmp_path / "run",
        "per_device_train_batch_size": 2,
        "max_train_steps": 20,
        "learning_rate": 1e-2,
        "classifier_dropout": 0,
    }
    command = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    if tuner == "zeroi2v":
        command += ["--tuner_config", "time_offsets={-1: 1}", "adapter_ratio=0.5"]
    run_video_cls(command)
    assert "memory of a training step: 0.0" in capsys.readouterr().out

    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["eval_accuracy"] == 1.0  # dark and light
    assert results["macs"] > 0 and 0 < results["trainable_parameters"] < results["total_parameters"]
    if tuner == "zeroi2v":
        base = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2)
        model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
        assert model.peft_config["default"].time_offsets == [-1]
    else:
        model = I2VForVideoClassification.from_pretrained(tmp_path / "run" / "model")
        assert model.config.id2label == {0: "dark", 1: "light"}
        frozen = tiny_image_model("clip").state_dict()
        trained = model.i2v.image_model.state_dict()
        assert all(torch.equal(frozen[key], trained[key]) for key in frozen)
    assert (tmp_path / "run" / ("adapter" if tuner == "zeroi2v" else "model") / "preprocessor_config.json").exists()
