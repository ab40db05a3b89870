"""The notebook runs from its first cell to its last, on a few tiny videos, and holds no outputs."""

import json
import os
from pathlib import Path

from processes import finish, start
from tiny import tiny_image_model
from training import write_video

from hf_i2v.data import Preprocessing

NOTEBOOK = Path(__file__).parents[1] / "examples" / "adapt_your_own.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [("".join(cell["source"]), cell) for cell in CELLS if cell["cell_type"] == "code"]
PARAMETERS = {"VIDEOS": "videos", "IMAGE_MODEL": "image", "NUM_FRAMES": 4, "STEPS": 2, "OUTPUT": "adapted"}


def test_outputs_are_stripped():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for _, cell in CODE)


def run_cells(folder: Path) -> None:
    """The cells as a kernel runs them; after the first, which has the parameters, other values for these."""
    os.chdir(folder)
    namespace = {"__name__": "__main__"}
    for number, (text, cell) in enumerate(CODE):
        exec(compile(text, f"cell {number}", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            assert namespace.keys() >= PARAMETERS.keys()
            namespace.update(PARAMETERS)


def test_the_cells_run(tmp_path):
    tiny_image_model("dinov2", num_hidden_layers=2).save_pretrained(tmp_path / "image")
    Preprocessing(16, (0.5,) * 3, (0.5,) * 3, "bicubic").image_processor().save_pretrained(tmp_path / "image")
    for name, brightness in (("dark", 30), ("light", 220)):
        for i in range(5):
            write_video(tmp_path / "videos" / name / f"{i}.mp4", brightness + i)
    log = tmp_path / "log"
    finish(start(run_cells, tmp_path, log=log), log=log)
    for made in ("run/confusion_matrix.png", "model/model.safetensors", "attention.png", "evidence.png"):
        assert (tmp_path / "adapted" / made).is_file()
    said = log.read_text()
    assert "zeroi2v" in said and "top-1 of held-out videos" in said and said.count("Prediction(video=") == 2
