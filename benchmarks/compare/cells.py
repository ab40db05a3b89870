"""What is compared: methods, tasks, and the one recipe of all; and one cell of it, trained and looked at.

A cell is a method on a task with a seed. It is trained by the training script as a user would, then its model answers
the validation videos once, as they are and in four forms that take time away (`controls.py`).
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
RECIPE = {
    "per_device_train_batch_size": 8,
    "crop_scale": (0.7, 1.0),
    "flip": 0.5,
    "classifier_dropout": 0.0,
    "weight_decay": 0.05,
    "num_warmup_steps": 0.1,
    "checkpointing_steps": "no",
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        title: as tables show it.
        options: of the training script.
        learning_rates: those of the sweep; a single one needs none.
        cached: whether it trains from features of the frozen model, computed once.
    """

    title: str
    options: dict
    learning_rates: tuple[float, ...] = (1e-3,)
    cached: bool = False


def _method(title: str, tuner: str, *pairs: str, **more) -> Method:
    return Method(title, {"tuner": tuner, **({"tuner_config": list(pairs)} if pairs else {})}, **more)


def _adapter(title: str, tuner: str, *pairs: str, learning_rates=(1e-3,), **options) -> Method:
    """A slower head: DINOv2's features have a norm of 40, and the head's noise would drown what the adapter learns."""
    method = _method(title, tuner, *pairs, learning_rates=learning_rates)
    return dataclasses.replace(method, options=method.options | {"head_learning_rate": 2e-4} | options)


METHODS = {
    "linear_probe": _method("linear probe on the mean", "linear_probe", cached=True),
    "late_minus_early": Method("linear fit on (mean, late − early)", {}, (0.0,), cached=True),
    "attentive_probe": _method(
        "attentive probe", "attentive_probe", "num_blocks=1", learning_rates=(3e-4,), cached=True
    ),
    "frame_probe": _method(
        "frame probe (recipe small)", "attentive_probe", "num_blocks=0", "frame_positions=true", cached=True
    ),
    "step": _method("STEP", "step", learning_rates=(3e-3,), cached=True),
    "m_adapter": _method("M-adapter", "m_adapter", cached=True),
    "m_adapter_without_time": _method(
        "M-adapter without its temporal module", "ablations:MAdapterWithoutTimeConfig", cached=True
    ),
    "full": _method("full fine-tuning", "full", learning_rates=(5e-5,)),
    "lora": _adapter("LoRA", "lora"),
    "stdha_lora": _adapter("STDHA + LoRA", "stdha+lora"),
    "stdha_lora_causal": _adapter("STDHA + LoRA, causal", "stdha+lora", "causal=true"),
    "zeroi2v": _adapter("ZeroI2V", "zeroi2v"),
    "zeroi2v_causal": _adapter("ZeroI2V, causal", "zeroi2v", "causal=true"),
    "st_adapter": _adapter("ST-Adapter", "st_adapter"),
    "st_adapter_causal": _adapter("ST-Adapter, causal", "st_adapter", "causal=true"),
    "frame2freq": _adapter("Frame2Freq", "frame2freq"),
    "aim": _adapter("AIM", "aim", learning_rates=(1e-4,), temporal_embedding_learning_rate=3e-3),  # its defaults
    "zeroi2v_inti": _adapter("ZeroI2V + InTI", "zeroi2v+inti", learning_rates=(3e-4,)),
    "zeroi2v_average": _adapter(
        "ZeroI2V + plain averaging", "zeroi2v+ablations:PlainAverageConfig", learning_rates=(3e-4,)
    ),
    "st_adapter_inti": _adapter("ST-Adapter + InTI", "st_adapter+inti"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """Videos, and how many clips a method may see while it trains.

    Attributes:
        folder: below the folder of the videos.
        clips_seen: the budget of every method.
        shots: videos of each class to train on; None: all.
        num_frames: of a clip.
        size: of the model's crop, in pixels.
    """

    title: str
    folder: str
    clips_seen: int
    shots: int | None = None
    num_frames: int = 4
    size: int = 70


NUM_CLASSES = {"getup": 2, "order": 12, "actions": 15}  # of the folders that human_motion.py fills
TASKS = {
    "getup": Task("stand up or lie down: 2 classes, 600 videos", "getup", 1600),
    "getup_long": Task("stand up or lie down: 600 videos, three times as many clips", "getup", 4800),
    "getup_8": Task("stand up or lie down: 600 videos, 8 frames a clip", "getup", 1600, num_frames=8),
    "order": Task("6 motions forwards and backwards: 12 classes, 720 videos", "order", 4800),
    "actions": Task("15 actions: 600 videos", "actions", 2400),
    "getup_small": Task("stand up or lie down: 96 videos", "getup", 4800, shots=48, num_frames=8),
    "getup_small_4": Task("stand up or lie down: 96 videos, 4 frames a clip", "getup", 4800, shots=48),
    "getup_small_16": Task(
        "stand up or lie down: 96 videos, 16 frames a clip", "getup", 4800, shots=48, num_frames=16
    ),
    "order_16": Task("6 motions forwards and backwards: 16 videos a class", "order", 4800, shots=16, num_frames=8),
    "order_4": Task("6 motions forwards and backwards: 4 videos a class", "order", 2400, shots=4, num_frames=8),
    "getup_224": Task("stand up or lie down at 224 px: 600 videos", "getup", 4800, size=224),
    "order_224": Task("6 motions forwards and backwards at 224 px: 720 videos", "order", 4800, size=224),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}/{self.method}-{self.seed}"


def command(
    cell: Cell, model: Path, videos: Path, output_dir: Path, more: list[str], *, learning_rate: float, held_out: float
) -> list[str]:
    """The options of the training script for a cell, then `more`. With `held_out`, that share of the training videos
    is what it is evaluated on, and it sees a quarter of the clips."""
    task, method = TASKS[cell.task], METHODS[cell.method]
    clips = task.clips_seen // 4 if held_out else task.clips_seen
    options = RECIPE | method.options
    options |= {
        "model_name_or_path": model,
        "train_dir": videos / task.folder / "train",
        "output_dir": output_dir,
        "num_frames": task.num_frames,
        "learning_rate": learning_rate,
        "max_train_steps": clips // RECIPE["per_device_train_batch_size"],
        "seed": cell.seed,
    }
    options |= {"validation_split": held_out} if held_out else {"validation_dir": videos / task.folder / "validation"}
    if task.shots:
        options["shots_per_class"] = task.shots
    if method.cached:
        options |= {"cache_features": output_dir.parent / f"cache-{cell.method}", "cache_views": 4}
    argv = []
    for name, value in options.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return [*argv, *more]


def train(argv: list[str], log: Path, history: Path) -> None:
    """Run the training script in a process of its own, and keep what it logs as lines of json."""
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    call = [sys.executable, __file__, str(history), *argv]
    with open(log, "w") as file:
        if subprocess.run(call, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode:
            raise RuntimeError(f"The training failed. The end of {log}:\n{log.read_text()[-2000:]}")


def _train_here(history: Path, argv: list[str]) -> None:
    import torch
    from accelerate import Accelerator

    from hf_i2v.examples import load_example

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def log(self, values, step=None, **_):
        with history.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")

    history.unlink(missing_ok=True)
    with mock.patch.object(Accelerator, "log", log):
        load_example("run_video_cls").main(argv)


if __name__ == "__main__":
    _train_here(Path(sys.argv[1]), sys.argv[2:])
