"""`benchmarks/gpu.py` in its small form, on the CPU: what a machine with a GPU will run has run."""

import csv
import importlib
from pathlib import Path

import pytest
from training import load_script


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module("gpu")


def rows_of(file: Path) -> list[dict]:
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_all_sections_but_the_kill(gpu, tmp_path, monkeypatch):
    """Which needs processes of its own; tests/test_run_resume.py kills. Nothing is compiled either, that takes long:
    see `test_compiles_once_in_training`."""

    def run_script(arguments, log):
        return load_script("run_video_cls").main(importlib.import_module("training").command_line(arguments))

    monkeypatch.setattr("gpu_runs.run_script", run_script)
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    sections = [section.__name__ for section in gpu.SECTIONS if section.__name__ != "resume"]
    arguments = ["--small", "--device", "cpu", "--output_file", str(tmp_path / "gpu.csv"), "--methods", "stdha"]
    assert gpu.main([*arguments, "--sections", *sections]) == 0
    rows = rows_of(tmp_path / "gpu.csv")
    assert {row["section"] for row in rows} == set(sections)
    assert all(row["card"].startswith("CPU") and row["status"] in ("ok", "left out") for row in rows)
    values = {row["what"]: float(row["value"]) for row in rows if row["status"] == "ok"}
    assert values["stdha, step: graph breaks"] == 0
    assert values["tiny, batch 1: stdha / full fine-tuning, memory of a step"] < 0.5
    assert 0 < values["share of the time spent waiting for data"] < 1


def test_a_section_that_fails_is_a_row(gpu, tmp_path, monkeypatch):
    check = importlib.import_module("gpu_setting").check

    def golden(setting):
        yield gpu.Result("before", 1.0)
        raise RuntimeError("no such kernel")

    def pixels(setting):
        yield check("error", float("nan"), 1.0)

    monkeypatch.setattr(gpu, "SECTIONS", {golden: 1, pixels: 1})
    arguments = ["--device", "cpu", "--output_file", str(tmp_path / "gpu.csv"), "--sections", "golden", "pixels"]
    assert gpu.main(arguments) == 1
    found = [(row["section"], row["status"], row["note"]) for row in rows_of(tmp_path / "gpu.csv")]
    assert found[:2] == [("golden", "ok", ""), ("golden", "failed", "RuntimeError: no such kernel")]
    assert found[3] == ("pixels", "failed", "at most 1")
