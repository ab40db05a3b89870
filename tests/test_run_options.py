"""Options of a run: which may change when it goes on, recipes by name, and what a record on disk must be."""

import json
import tomllib
from pathlib import Path

import pytest
from training import EXAMPLES, ROOT

from hf_i2v.examples import FOLDER
from hf_i2v.training.options import RunOptions
from hf_i2v.training.results import claim


@pytest.fixture
def options() -> RunOptions:
    options = RunOptions("A run.", recipes=EXAMPLES / "recipes")
    options.here("--config", type=Path)
    options.here("--output_dir", type=Path)
    options.fixed("--learning_rate", type=float, default=0.1)
    options.fixed("--crop_scale", type=float, nargs=2, default=(0.5, 1.0))
    options.free("--num_train_epochs", type=int, default=10)
    options.add_argument("--train_dir", default="videos")
    options.are_here("train_dir")
    return options


def test_what_is_saved_and_what_makes_a_run(options):
    args = options.parse(["--output_dir", "x", "--num_train_epochs", "3"])
    assert options.identity(args) == {"learning_rate": 0.1, "crop_scale": [0.5, 1.0]}
    assert options.saved(args) == options.identity(args) | {"num_train_epochs": 3}


def test_what_may_differ_when_a_run_goes_on(options):
    now = options.identity(options.parse(["--learning_rate", "0.2"])) | {"labels": ["a"]}
    same = json.loads(json.dumps(now))
    assert options.differences(same, now) == []
    assert options.differences(same | {"num_train_epochs": 5, "train_dir": "elsewhere"}, now) == []  # were fixed once
    assert options.differences({"learning_rate": 0.2, "labels": ["a"]}, now) == []  # --crop_scale is younger
    assert options.differences({"labels": ["a"]}, now) == ["learning_rate was 0.1, is 0.2"]
    assert options.differences(same | {"labels": ["b"]}, now) == ["labels was ['b'], is ['a']"]
    assert options.differences(same | {"mixup": 0.8}, now) == ["mixup was 0.8, is None"]


def test_recipes_by_name(options, capsys):
    options.fixed("--tuner", default="zeroi2v")
    recipe = EXAMPLES / "recipes" / "other.yaml"
    assert not recipe.exists()
    with pytest.raises(SystemExit):
        options.parse(["--config", "other"])
    said = capsys.readouterr().err
    assert "--config other is neither a file nor one of the recipes aim_b16_diving48, " in said


def test_a_record_that_cannot_be_read(tmp_path, options):
    record = tmp_path / "run.json"
    for text, found in (("", "nothing"), ('{"learning', r"'\{\"learning' \(Unterminated"), ("[1]", r"\[1\]")):
        record.write_text(text)
        with pytest.raises(
            ValueError, match=rf"run.json is damaged: it holds {found}.*remove the folder to start anew"
        ):
            claim(tmp_path, {}, options.differences)
        assert record.read_text() == text


def test_every_package_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "hf_i2v").rglob("__init__.py")}
    examples = {"hf_i2v._examples", "hf_i2v._examples.accelerate_configs", "hf_i2v._examples.recipes"}
    assert set(setuptools["packages"]) == found | examples
    assert (ROOT / setuptools["package-dir"]["hf_i2v._examples"]) == EXAMPLES == FOLDER
