"""Compare every method on a real image model and real human motion, under one recipe.

    python benchmarks/compare/run.py --model dinov2-small --videos motion --task getup --method zeroi2v --seed 0
    python benchmarks/compare/run.py --model dinov2-small-224 --videos motion-224 --jobs 8 -- --mixed_precision bf16

What follows `--` is handed to the training script. A cell is one method on one task with one seed (`cells.py`). Its
result is one json file below `results/`; a cell whose file is there is not run again. Where a method has several
learning rates, a sweep on a part of the training videos takes one (`results/<task>/<method>.sweep.json`). The
validation videos are looked at once, when a cell has been trained.
"""

import argparse
import dataclasses
import functools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
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
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
READING = threading.Lock()


def clips_of(folder: Path, model: Path, num_frames: int) -> VideoClips:
    """The clips of a class folder, cropped as in evaluation."""
    transform = eval_transform(**dataclasses.asdict(preprocessing_from_pretrained(model)))
    videos = load_video_folder(folder)["train"]
    return VideoClips(videos, num_frames=num_frames, transform=transform, train=False)


@functools.lru_cache(maxsize=2)
def _validation(folder: Path, model: Path, num_frames: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches_of(clips_of(folder, model, num_frames), 16))


def validation_of(cell: Cell, args: argparse.Namespace) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The validation videos of a cell's task; read by one thread, for all that wait."""
    task = TASKS[cell.task]
    with READING:
        return _validation(args.videos / task.folder / "validation", args.model, task.num_frames)


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
            argv = command(
                first, args.model, args.videos, output_dir, args.more, learning_rate=rate, held_out=HELD_OUT
            )
            train(argv, work / f"sweep-{rate:g}.log", work / f"sweep-{rate:g}.jsonl")
            found = json.loads((output_dir / "all_results.json").read_text())
            tried.append({"learning_rate": rate, "accuracy": found["eval_accuracy"], "loss": found["eval_loss"]})
        write_json(record, {"tried": tried})
    tried = json.loads(record.read_text())["tried"]
    return max(tried, key=lambda result: (round(result["accuracy"], 2), -result["loss"]))["learning_rate"]


def trained_cell(cell: Cell, args: argparse.Namespace) -> dict:
    work = args.work_dir / cell.name
    rate = learning_rate(cell, args, work)
    output_dir, history = work / "run", work / "history.jsonl"
    began = time.time()
    shutil.rmtree(output_dir, ignore_errors=True)
    argv = command(cell, args.model, args.videos, output_dir, args.more, learning_rate=rate, held_out=0)
    train(argv, work / "log", history)
    whole = output_dir / "model"
    if whole.exists():
        model = I2VForVideoClassification.from_pretrained(whole)
    else:
        model = AutoPeftModelForVideoClassification.from_pretrained(str(output_dir / "adapter"))
    logged = [json.loads(line) for line in history.read_text().splitlines()]
    return {
        "learning_rate": rate,
        "accuracy": accuracies(model.to(DEVICE), validation_of(cell, args)),
        "results": json.loads((output_dir / "all_results.json").read_text()),
        "history": [{k: round(v, 5) for k, v in row.items() if k in ("step", "train_loss")} for row in logged],
        "seconds": round(time.time() - began),
    }


def fitted_cell(cell: Cell, args: argparse.Namespace) -> dict:
    task = TASKS[cell.task]
    clips = clips_of(args.videos / task.folder / "train", args.model, task.num_frames)
    if task.shots:
        clips.dataset = few_shot(clips.dataset, task.shots, cell.seed)
    x_NF, labels_N = features(str(args.model), batches_of(clips, 16), DEVICE)
    v_NF, v_labels_N = features(str(args.model), validation_of(cell, args), DEVICE)
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


def measure(cell: Cell, args: argparse.Namespace) -> dict:
    """Run a cell, and keep its result."""
    result = (trained_cell if METHODS[cell.method].options else fitted_cell)(cell, args)
    facts = {"threads": torch.get_num_threads(), "jobs": args.jobs, "options": args.more}
    if DEVICE == "cuda":
        facts["card"] = torch.cuda.get_device_name()
    record = RESULTS / f"{cell.name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, facts | result)
    return result["accuracy"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="image checkpoint, as dinov2_small.py makes")
    parser.add_argument("--videos", type=Path, required=True, help="folder that human_motion.py has filled")
    parser.add_argument("--work_dir", type=Path, help="for runs and logs; default: a temporary folder")
    parser.add_argument("--task", nargs="+", choices=TASKS, help="default: those for the size of the model's crop")
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time, each a process: for a GPU")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    args.more = sys.argv[split + 1 :]
    args.work_dir = args.work_dir or Path(tempfile.mkdtemp(prefix="compare-"))
    size = preprocessing_from_pretrained(args.model).size
    args.task = args.task or [name for name, task in TASKS.items() if task.size == size]
    for name in args.task:
        if TASKS[name].size != size:
            parser.error(f"--task {name} is for crops of {TASKS[name].size} px; {args.model} has {size} px")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cells = [Cell(task, method, seed) for seed in args.seed for task in args.task for method in args.method]
    missing = [cell for cell in cells if not (RESULTS / f"{cell.name}.json").exists()]
    num_failed = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        running = {pool.submit(measure, cell, args): cell for cell in missing}
        try:
            for done in tqdm(as_completed(running), total=len(running), unit="cell"):
                cell, error = running[done], done.exception()
                tqdm.write(f"{cell.name}: {error or json.dumps(done.result())}")
                num_failed += error is not None
        finally:  # Ctrl-C: the pool would go through all that wait
            pool.shutdown(wait=False, cancel_futures=True)
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
