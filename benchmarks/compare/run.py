"""Compare every method on a real image model and real human motion, under one recipe.

    python benchmarks/compare/run.py --model dinov2-small --videos motion --task getup --method zeroi2v --seed 0

A cell is one method on one task with one seed (`cells.py`). Its result is one json file below `results/`; a cell whose
file is there is not run again. The learning rate of a method on a task comes from a sweep on a part of the training
videos (`results/<task>/<method>.sweep.json`). The validation videos are looked at once, when a cell has been trained.
"""

import argparse
import dataclasses
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import ablations  # noqa: F401 - registers what it defines
import torch
from cells import METHODS, TASKS, Cell, command, train
from controls import accuracies, batches_of
from linear_fit import features, fit
from tqdm import tqdm

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification
from hf_i2v.data import VideoClips, eval_transform, preprocessing_from_pretrained
from hf_i2v.data.folders import load_video_folder
from hf_i2v.training.results import write_json
from hf_i2v.training.videos import few_shot

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 0.2  # of the training videos, for the sweep


def clips_of(folder: Path, model: Path, num_frames: int) -> VideoClips:
    """The clips of a class folder, cropped as in evaluation."""
    transform = eval_transform(**dataclasses.asdict(preprocessing_from_pretrained(model)))
    videos = load_video_folder(folder)["train"]
    return VideoClips(videos, num_frames=num_frames, transform=transform, train=False)


def learning_rate(cell: Cell, args: argparse.Namespace, work: Path) -> float:
    """The best of the method's learning rates on held-out training videos, after a quarter of the clips."""
    if len(METHODS[cell.method].learning_rates) == 1:
        return METHODS[cell.method].learning_rates[0]
    record = RESULTS / cell.task / f"{cell.method}.sweep.json"
    if not record.exists():
        tried = []
        for rate in METHODS[cell.method].learning_rates:
            output_dir = work / f"sweep-{rate:g}"
            first = Cell(cell.task, cell.method, 0)
            argv = command(first, args.model, args.videos, output_dir, learning_rate=rate, held_out=HELD_OUT)
            train(argv, work / f"sweep-{rate:g}.log", work / f"sweep-{rate:g}.jsonl")
            found = json.loads((output_dir / "all_results.json").read_text())
            tried.append({"learning_rate": rate, "accuracy": found["eval_accuracy"], "loss": found["eval_loss"]})
        write_json(record, {"tried": tried})
    tried = json.loads(record.read_text())["tried"]
    return max(tried, key=lambda result: (round(result["accuracy"], 2), -result["loss"]))["learning_rate"]


def trained_cell(cell: Cell, args: argparse.Namespace, validation) -> dict:
    work = args.work_dir / cell.name
    rate = learning_rate(cell, args, work)
    output_dir, history = work / "run", work / "history.jsonl"
    began = time.time()
    shutil.rmtree(output_dir, ignore_errors=True)
    train(command(cell, args.model, args.videos, output_dir, learning_rate=rate, held_out=0), work / "log", history)
    whole = output_dir / "model"
    if whole.exists():
        model = I2VForVideoClassification.from_pretrained(whole)
    else:
        model = AutoPeftModelForVideoClassification.from_pretrained(str(output_dir / "adapter"))
    logged = [json.loads(line) for line in history.read_text().splitlines()]
    return {
        "learning_rate": rate,
        "accuracy": accuracies(model, validation),
        "results": json.loads((output_dir / "all_results.json").read_text()),
        "history": [{k: round(v, 5) for k, v in row.items() if k in ("step", "train_loss")} for row in logged],
        "seconds": round(time.time() - began),
    }


def fitted_cell(cell: Cell, args: argparse.Namespace, validation) -> dict:
    task = TASKS[cell.task]
    clips = clips_of(args.videos / task.folder / "train", args.model, task.num_frames)
    if task.shots:
        clips.dataset = few_shot(clips.dataset, task.shots, cell.seed)
    x_NF, labels_N = features(str(args.model), batches_of(clips, 16))
    v_NF, v_labels_N = features(str(args.model), validation)
    num_classes, width = int(labels_N.max()) + 1, x_NF.shape[1] // 2
    accuracy = {}
    for name, part in (
        ("as_it_is", slice(None)),
        ("mean_only", slice(width)),
        ("difference_only", slice(width, None)),
    ):
        linear = fit(x_NF[:, part], labels_N, num_classes)
        accuracy[name] = float((linear(v_NF[:, part]).argmax(-1) == v_labels_N).float().mean())
    return {"accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="image checkpoint, as dinov2_small.py makes")
    parser.add_argument("--videos", type=Path, required=True, help="folder that human_motion.py has filled")
    parser.add_argument("--work_dir", type=Path, help="for runs and logs; default: a temporary folder")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    args.work_dir = args.work_dir or Path(tempfile.mkdtemp(prefix="compare-"))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cells = [Cell(task, method, seed) for seed in args.seed for task in args.task for method in args.method]
    missing = [cell for cell in cells if not (RESULTS / f"{cell.name}.json").exists()]
    validation = {}
    for cell in tqdm(missing, unit="cell"):
        if cell.task not in validation:
            task = TASKS[cell.task]
            clips = clips_of(args.videos / task.folder / "validation", args.model, task.num_frames)
            validation = {cell.task: list(batches_of(clips, 16))}
        run = trained_cell if METHODS[cell.method].options else fitted_cell
        (RESULTS / cell.task).mkdir(parents=True, exist_ok=True)
        result = run(cell, args, validation[cell.task])
        write_json(RESULTS / f"{cell.name}.json", {"threads": torch.get_num_threads(), **result})
        tqdm.write(f"{cell.name}: {json.dumps(result['accuracy'])}")


if __name__ == "__main__":
    main()
