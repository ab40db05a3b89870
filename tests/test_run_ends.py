"""How a run ends: well and without noise, stopped, with numbers that are not finite, with an evaluation that fails."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import tiny_image_model
from training import ROOT, command_line, load_script, write_video_folders
from transformers import CLIPImageProcessorPil

from hf_i2v.training.command import run_as_command
from hf_i2v.training.finite import NotFiniteError


@pytest.fixture(scope="module")
def script():
    return load_script("run_video_cls")


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("ends")
    tiny_image_model("clip", num_hidden_layers=1).save_pretrained(place / "image")
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessorPil(**size).save_pretrained(place / "image")
    write_video_folders(place / "videos", train=6, validation=2)
    return place


@pytest.fixture
def arguments(place, tmp_path) -> dict:
    return {
        "model_name_or_path": place / "image",
        "train_dir": place / "videos/train",
        "validation_dir": place / "videos/validation",
        "num_frames": 4,
        "per_device_train_batch_size": 4,
        "max_train_steps": 4,
        "checkpointing_steps": 1,
        "output_dir": tmp_path / "run",
    }


def test_a_plain_run_without_noise(arguments, tmp_path):
    """From any folder, by the module's name; its last lines say how good it is, and how to use it."""
    command = [sys.executable, "-m", "hf_i2v.train", *command_line(arguments | {"gradient_checkpointing": True})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    noise = re.findall(r"(?i).*(?:warn|deprecat|torchvision|traceback).*", run.stdout + run.stderr)
    assert noise == []
    lines = run.stdout.splitlines()[-4:]
    assert re.fullmatch(r"top-1 \d+\.\d % of 4 videos", lines[0])
    assert lines[1].startswith(f"results: {tmp_path / 'run' / 'all_results.json'}, predictions.csv")
    assert str(tmp_path / "run" / "adapter") in lines[2] and str(tmp_path / "run" / "adapter") in lines[3]
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    for key in (
        "train_runtime",
        "train_clips_per_second",
        "train_data_wait",
        "train_loss",
        "peak_memory_gib",
        "eval_runtime",
        "eval_loss",
    ):
        assert results[key] > 0


def test_numbers_that_are_not_finite_stop_a_run(script, arguments, tmp_path):
    """The learning rate rises to infinity in its warm-up: the first steps are good, and what they saved stays."""
    options = {"learning_rate": 1e38, "num_warmup_steps": 3, "max_train_steps": 9, "weight_decay": 0}
    with pytest.raises(NotFiniteError, match=r"not finite after step [2-5]\. Nothing is saved.*--learning_rate"):
        script.main(command_line(arguments | options))
    kept = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert kept[0].name == "checkpoint-1" and len(kept) <= 2
    assert all(w.isfinite().all() for path in kept for w in load_file(path / "weights.safetensors").values())
    assert not (tmp_path / "run" / "adapter").exists() and not (tmp_path / "run" / "all_results.json").exists()


def test_what_only_changes_the_future_may_change(script, arguments, tmp_path, capsys):
    script.main(command_line(arguments | {"max_train_steps": None, "num_train_epochs": 1}))
    longer = {"max_train_steps": None, "num_train_epochs": 2, "max_bad_fraction": 0.5, "on_bad_video": "skip"}
    longer |= {"eval_views": "2x1", "gradient_checkpointing": True, "checkpointing_steps": "no"}
    capsys.readouterr()
    script.main(command_line(arguments | longer))
    assert "going on after step 3" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["step"] == 6


@pytest.mark.parametrize("tuner", ["zeroi2v", "full"])
def test_an_evaluation_that_fails_is_made_up_for(script, arguments, place, tmp_path, tuner):
    """The trained weights stay, and are evaluated alone, without a checkpoint, once the videos are repaired."""
    options = arguments | {"tuner": tuner, "max_train_steps": 2, "checkpointing_steps": "no", "ema_decay": 0.5}
    script.main(command_line(options | {"output_dir": tmp_path / "good"}))
    bad = write_video_folders(tmp_path / "bad", train=0, validation=2) / "validation"
    for path in bad.rglob("*.mp4"):
        path.write_bytes(b"no video")
    with pytest.raises(Exception, match=r"cannot be read|could be read") as caught:
        script.main(command_line(options | {"validation_dir": bad}))
    folder = tmp_path / "run" / ("model" if tuner == "full" else "adapter")
    (note,) = caught.value.__notes__
    assert note.startswith(f"Trained weights are in {folder}. The same command with --evaluate_only")
    script.main(command_line(options | {"evaluate_only": True}))
    again, good = (json.loads((tmp_path / n / "all_results.json").read_text()) for n in ("run", "good"))
    assert again["eval_loss"] == good["eval_loss"] and again["step"] == good["step"] == 2
    predictions = [(tmp_path / name / "predictions.csv").read_text() for name in ("run", "good")]
    assert predictions[0] == predictions[1]
    weights = [next((tmp_path / n / folder.name).glob("*model.safetensors")).read_bytes() for n in ("run", "good")]
    assert weights[0] == weights[1] and (folder / "README.md").exists()


def test_evaluation_needs_what_was_trained(script, arguments):
    with pytest.raises(FileNotFoundError, match=r"--evaluate_only: there is no .*adapter\. Train first"):
        script.main(command_line(arguments | {"evaluate_only": True}))


def test_stopped_by_hand(script, arguments, monkeypatch, capsys):
    losses, batch_loss = [], script.batch_loss

    def stopping(*args):
        losses.append(batch_loss(*args))
        if len(losses) == 3:
            raise KeyboardInterrupt
        return losses[-1]

    monkeypatch.setattr(script, "batch_loss", stopping)
    monkeypatch.setattr(sys, "argv", ["run_video_cls.py", *command_line(arguments)])
    assert run_as_command(script.main) == 130
    said = capsys.readouterr().err
    assert said.endswith("Stopped. The same command goes on after step 2.\n") and "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "debug", "traceback"),
    [
        (ValueError("of ours"), False, False),
        (ValueError("of ours"), True, True),
        (FileNotFoundError("no such folder: x"), False, False),
        (KeyError("a defect"), False, True),
    ],
)
def test_errors_of_the_user_are_a_sentence(error, debug, traceback, monkeypatch, capsys):
    def main():
        raise error

    error.add_note("And a note.")
    monkeypatch.setattr(sys, "argv", ["script", *["--debug"] * debug])
    assert run_as_command(main) == 1
    said = capsys.readouterr().err
    assert ("Traceback" in said) == traceback and str(error) in said and "And a note." in said


def test_errors_of_libraries_have_a_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])

    for main in (json.loads, lambda _: torch.zeros(2).view(3)):
        assert run_as_command(main, "{") == 1
    assert capsys.readouterr().err.count("Traceback") == 2


def test_a_few_bad_videos_of_a_small_folder(script, arguments, place, tmp_path, caplog):
    """One of twelve stops nothing. The list that it leaves excludes it, and so does --exclude while the run goes on;
    the videos for validation come out of the same folder."""
    folder = write_video_folders(tmp_path / "videos", train=6, validation=0) / "train"
    (folder / "dark/0.mp4").write_bytes(b"no video")
    options = arguments | {"train_dir": folder, "validation_dir": None, "validation_split": 0.34, "max_train_steps": 2}
    script.main(command_line(options))
    listed = tmp_path / "run" / "bad_videos.jsonl"
    assert {json.loads(line)["path"] for line in listed.read_text().splitlines()} == {str(folder / "dark/0.mp4")}
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["eval_num_videos"] + results["eval_failures"] == 4
    script.main(command_line(options | {"exclude": listed, "max_train_steps": 3}))
    assert "left out 1 of the 1 bad videos" in caplog.text
    with pytest.raises(
        ValueError, match=r"--validation_split 0\.34 is for data without .*, but there are 4\. Leave it"
    ):
        script.main(command_line(options | {"validation_dir": place / "videos/validation"}))


def test_exit_status_of_a_command():
    assert [run_as_command(lambda argv, status=status: status, ["x"]) for status in (None, 0, 3)] == [0, 0, 3]
