"""The training script from a cache of the frozen part, and sweeps of probes."""

import csv

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import tiny_image_model
from training import command_line, load_script, write_video_folders

from hf_i2v.feature_cache import StaleCacheError

LAST_BLOCK = ["layers_to_transform=[1]", "adapter_width=8"]


@pytest.fixture(scope="module")
def script():
    return load_script("run_video_cls")


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    tiny_image_model("clip", num_hidden_layers=2).save_pretrained(folder / "image")
    write_video_folders(folder, train=3, validation=1)
    return {
        "model_name_or_path": folder / "image",
        "train_dir": folder / "train",
        "validation_dir": folder / "validation",
        "num_frames": 4,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "classifier_dropout": 0,
        "checkpointing_steps": "no",
        "learning_rate": 0.01,
    }


@pytest.mark.parametrize(
    "tuner", [{"tuner": "step"}, {"tuner": "frame2freq", "tuner_config": LAST_BLOCK}], ids=["step", "last block"]
)
def test_an_epoch_from_the_cache_is_that_without_it(tuner, script, arguments, tmp_path, capsys):
    weights = []
    for name, options in (("plain", {}), ("cached", {"cache_features": tmp_path / "cache", "cache_dtype": "float32"})):
        script.main(command_line(arguments | tuner | options | {"output_dir": tmp_path / name}))
        AcceleratorState._reset_state(reset_partial_state=True)
        weights.append(load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-4, msg=name)
    assert "GB of disk (6 clips x 1 views" in capsys.readouterr().out
    again = {"cache_features": tmp_path / "cache", "cache_dtype": "float32", "output_dir": tmp_path / "again"}
    script.main(command_line(arguments | tuner | again))
    assert "1 files are there" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(StaleCacheError, match="other clips or preprocessing"):
        script.main(command_line(arguments | tuner | again | {"seed": 1, "output_dir": tmp_path / "other"}))


def test_a_sweep_leaves_the_best_probe_and_the_table(script, arguments, tmp_path, capsys):
    run = tmp_path / "run"
    options = {
        "tuner": "attentive_probe",
        "tuner_config": ["num_blocks=1"],
        "cache_features": tmp_path / "cache",
        "cache_views": 2,
        "probe_sweep": "0.01,1e-6x0.1",
        "num_train_epochs": 4,
        "output_dir": run,
    }
    script.main(command_line(arguments | options))
    printed = capsys.readouterr().out
    assert "6 clips x 2 views" in printed and "the best of 2 heads: learning rate 0.01" in printed
    rows = list(csv.DictReader((run / "probe_sweep.csv").open()))
    assert [row["best"] for row in rows] == ["True", "False"]
    assert (run / "adapter" / "adapter_model.safetensors").exists() and (run / "all_results.json").exists()


def test_what_makes_no_sense_is_refused(script, arguments, tmp_path, capsys):
    for options, message in (
        ({"cache_views": 2}, "need --cache_features"),
        ({"probe_sweep": "1e-3x0.1"}, "need --cache_features"),
        ({"cache_features": "x", "mixup_alpha": 0.5}, "cannot mix them"),
        ({"cache_features": "x", "probe_sweep": "fast"}, "--probe_sweep 'fast' must be RATE"),
    ):
        with pytest.raises(SystemExit):
            script.parse_args(command_line(arguments | options | {"output_dir": tmp_path / "run"}))
        assert message in capsys.readouterr().err
    limited = {"tuner": "step", "cache_features": tmp_path / "cache", "cache_limit": 1e-9}
    with pytest.raises(ValueError, match="more than the limit"):
        script.main(command_line(arguments | limited | {"output_dir": tmp_path / "run"}))
