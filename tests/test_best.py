"""The best evaluated step is what a run leaves, it stops where nothing gets better, and says when it overfits."""

import json

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny import tiny_image_model
from training import command_line, load_script, write_video_folders

from hf_i2v import METHODS
from hf_i2v.options import default_learning_rate
from hf_i2v.training.best import Evaluations
from hf_i2v.training.evaluation import Predictions


@pytest.fixture(scope="module")
def script():
    return load_script("run_video_cls")


@pytest.fixture
def run(tmp_path, script, monkeypatch):
    """Train, with a planned number of right answers at every evaluation."""
    AcceleratorState._reset_state(reset_partial_state=True)
    image_model = tiny_image_model("dinov2")
    torch.nn.init.constant_(image_model.layernorm.weight, 7.0)  # so features have a norm of 40, as DINOv2-small's
    image_model.save_pretrained(tmp_path / "image")
    write_video_folders(tmp_path / "videos", train=4, validation=2)
    options = {
        "model_name_or_path": tmp_path / "image",
        "train_dir": tmp_path / "videos/train",
        "validation_dir": tmp_path / "videos/validation",
        "tuner": "st_adapter",
        "num_frames": 4,
        "per_device_train_batch_size": 4,
        "max_train_steps": 8,
        "checkpointing_steps": 1,
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "early_stopping_patience": 3,
    }

    def start(name: str, right_of_4: list[int | BaseException], **more) -> dict:
        plan = iter(right_of_4)

        def planned(*args):
            right = next(plan)
            if isinstance(right, BaseException):
                raise right
            labels_N = np.array([0, 0, 1, 1])
            answers_N = np.where(np.arange(4) < right, labels_N, 1 - labels_N)
            return Predictions(np.arange(4), labels_N, 0.8 * np.eye(2)[answers_N] + 0.1)

        monkeypatch.setattr(script, "predict", planned)
        AcceleratorState._reset_state(reset_partial_state=True)
        script.main(command_line(options | {"output_dir": tmp_path / name} | more))
        assert next(plan, None) is None  # all were asked for
        return load_file(tmp_path / name / "adapter/adapter_model.safetensors")

    yield start
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_best_step_is_the_result(run, tmp_path, capsys):
    weights = run("run", [1, 3, 2, 3, 2, 3])  # step 2 is the first of the best; the last is the final evaluation
    at_2 = load_file(tmp_path / "run/checkpoint-4/weights.safetensors")  # later than the best
    assert [p.name for p in (tmp_path / "run").glob("best-*")] == ["best-2"]
    best = load_file(tmp_path / "run/best-2/adapter_model.safetensors")
    assert weights.keys() == best.keys() and all(torch.equal(weights[name], best[name]) for name in best)
    assert not any(torch.equal(value, best.get(name, value + 1)) for name, value in at_2.items() if value.ndim > 1)
    rows = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["eval_accuracy"]) for row in rows] == [
        (1, 0.25),
        (2, 0.75),
        (3, 0.5),
        (4, 0.75),
        (5, 0.5),
    ]
    assert "the best step is 2: top-1 75.0 %" in capsys.readouterr().out


def test_the_last_step_may_be_the_best(run, tmp_path):
    run("run", [1, 1, 2, 3, 3], max_train_steps=4)  # that of step 4 is asked for at the end, and the final one
    assert [p.name for p in (tmp_path / "run").glob("best-*")] == ["best-4"]


def test_a_stopped_run_comes_to_the_same(run, tmp_path):
    whole = run("whole", [1, 3, 2, 2, 1, 3])
    with pytest.raises(KeyboardInterrupt):
        run("stopped", [1, 3, 2, KeyboardInterrupt()])
    again = run("stopped", [2, 1, 3])  # the evaluation of step 4 is made up for
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    texts = [(tmp_path / name / "evaluations.jsonl").read_text() for name in ("whole", "stopped")]
    assert texts[0] == texts[1]


def test_the_first_loss_is_near_ln_k(run, tmp_path):
    run("run", [2], max_train_steps=1, eval_steps=None, load_best_model_at_end=None, early_stopping_patience=None)
    results = json.loads((tmp_path / "run/all_results.json").read_text())
    assert results["train_loss"] == pytest.approx(np.log(2), abs=0.2)
    table = (tmp_path / "run/per_class.csv").read_text().splitlines()
    assert table == ["class,videos,accuracy,most_often_taken_for,times", "dark,2,1.0000,,0", "light,2,0.0000,dark,2"]


def test_evaluations_that_came_after_the_checkpoint_are_forgotten(tmp_path):
    evaluations = Evaluations(tmp_path, 0)
    for step, accuracy in ((2, 0.5), (4, 0.6), (6, 0.7), (8, 0.7)):
        is_best = evaluations.add(step, accuracy=accuracy, loss=1.0 - step / 100, train_loss=None)
        evaluations.weights(step).mkdir()
        evaluations.forget_worse(last_checkpoint=5)
    assert is_best and evaluations.best()["step"] == 8  # as good, with a lower loss
    assert sorted(p.name for p in tmp_path.glob("best-*")) == ["best-4", "best-8"]
    again = Evaluations(tmp_path, 5)
    assert again.best()["step"] == 4 and again.weights(4).is_dir() and not again.has(6)
    assert Evaluations(tmp_path, 0).rows == []  # a new run


def test_drift_is_said_once(tmp_path):
    evaluations = Evaluations(tmp_path, 0)
    said = []
    for step, train_loss, loss in ((1, 0.7, 0.70), (2, 0.5, 0.65), (3, 0.4, 0.70), (4, 0.3, 0.72), (5, 0.2, 0.9)):
        evaluations.add(step, accuracy=0.5, loss=loss, train_loss=train_loss)
        said.append(evaluations.drift())
    assert said[:3] == [None] * 3 and said[4] is None
    assert "from step 2 to 4 the training loss fell from 0.5 to 0.3" in said[3] and "0.65 to 0.72" in said[3]
    assert evaluations.without_progress() == 3  # by accuracy all are alike, and the lowest loss counts then


def test_looking_for_the_best_needs_evaluations(script, capsys):
    for option in (["--load_best_model_at_end"], ["--early_stopping_patience", "2"]):
        with pytest.raises(SystemExit):
            script.parse_args(["--model_name_or_path", "x", "--output_dir", "y", *option])
        assert "need --eval_steps" in capsys.readouterr().err


def test_default_learning_rates(script):
    common = ["--model_name_or_path", "x", "--output_dir", "y"]
    assert script.parse_args([*common, "--tuner", "step"]).learning_rate == 3e-3
    assert script.parse_args([*common, "--tuner", "step", "--learning_rate", "0.1"]).learning_rate == 0.1
    assert default_learning_rate("st_adapter+inti") == 3e-4  # the lower one
    assert default_learning_rate("stdha+lora") == default_learning_rate("lora") == 5e-4
    assert default_learning_rate("linear_probe") == 1e-3
    assert all(1e-5 < default_learning_rate(name) < 1e-2 for name in METHODS if name != "i2v_composed")
