"""Two processes (gloo, on the CPU), started as a user would: the losses of one process, every video once, all stop."""

import csv
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands import accelerate_cli
from accelerate.commands.config.config_args import load_config_from_file
from processes import StandBy, finish, start
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_image_model
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from training import EXAMPLES, ROOT, command_line, start_script, write_video_folders

CONFIGS = EXAMPLES / "accelerate_configs"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny image model, 14 videos to train on and 5 to validate: a remainder for 2 processes with batches of 2."""
    place = tmp_path_factory.mktemp("distributed")
    tiny_image_model("clip").save_pretrained(place / "image")
    write_video_folders(place / "videos", train=7, validation=3)
    (place / "videos/validation/light/2.mp4").unlink()
    return place


@pytest.fixture(scope="module")
def arguments(place) -> dict:
    return {
        "model_name_or_path": place / "image",
        "train_dir": place / "videos/train",
        "validation_dir": place / "videos/validation",
        "tuner": "zeroi2v",
        "tuner_config": ["adapter_dropout=0"],
        "classifier_dropout": 0,
        "num_frames": 4,
        "max_train_steps": 5,
        "learning_rate": 1e-2,
        "per_device_eval_batch_size": 2,
        "with_tracking": True,
        "logging_steps": 1,
        "max_grad_norm": 1.0,
        "ema_decay": 0.5,
        "checkpointing_steps": 3,
    }


@pytest.fixture(scope="module")
def one_process(place, arguments) -> Path:
    output_dir = place / "one"
    argv = command_line(arguments | {"output_dir": output_dir, "per_device_train_batch_size": 4})
    finish(start_script(argv, place / "one.log"), log=place / "one.log")
    return output_dir


def launch(config: str, argv: list[str], script: str, taken_port: socket.socket, log: Path, **more: str) -> int:
    """Start a script of this folder with `accelerate launch`, one of our configs, 2 processes and no mixed precision;
    `more` of the environment. As the port is taken, accelerate lets torchrun choose one; a port that was free when a
    test looked for it could be taken by now."""
    options = {"config_file": CONFIGS / f"{config}.yaml", "num_processes": 2, "mixed_precision": "no"}
    options |= {"main_process_port": taken_port.getsockname()[1]}
    command = ["launch", *command_line(options), str(ROOT / "tests" / script), *argv]
    launcher = start(accelerate, command, more, log=log)
    try:
        launcher.join()
    except BaseException:  # as after the time limit of a test; the processes that it started go, too
        os.killpg(launcher.pid, signal.SIGKILL)
        raise
    return launcher.exitcode


def accelerate(command: list[str], more: dict[str, str]) -> None:
    """The launcher has imported torch already, and so have the two processes that it starts."""
    os.setsid()
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ |= {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **more}
    waiting = [StandBy(), StandBy()]
    SubprocessHandler._popen = lambda self, args, environment: waiting.pop().popen(args, environment)
    sys.argv = ["accelerate", *command]
    accelerate_cli.main()


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def losses(output_dir: Path) -> list[float]:
    events = EventAccumulator(str(output_dir / "logs" / "run_video_cls")).Reload()
    return [event.value for event in events.Scalars("train_loss")]


def scores(output_dir: Path) -> dict[str, float]:
    """Score of the first class of each video, as the table of predictions has it."""
    with open(output_dir / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row["video"] for row in rows}) == len(rows) == 5
    return {row["video"]: float(row["score1"]) for row in rows}


def assert_equals(output_dir: Path, one_process: Path) -> None:
    assert losses(output_dir) == pytest.approx(losses(one_process), abs=1e-5)
    assert scores(output_dir) == pytest.approx(scores(one_process), abs=2e-4)
    assert json.loads((output_dir / "all_results.json").read_text())["eval_num_videos"] == 5
    for file in ("adapter/adapter_model.safetensors", "checkpoint-3/weights.safetensors"):
        mine, other = load_file(output_dir / file), load_file(one_process / file)
        assert mine.keys() == other.keys()
        assert all(torch.allclose(mine[key], other[key], atol=1e-4) for key in mine)


def test_ddp_equals_one_process_and_all_stop_when_one_fails(place, arguments, one_process, taken_port):
    output_dir, bad, log = place / "ddp", place / "with_bad_video", place / "ddp.log"
    two = arguments | {"per_device_train_batch_size": 2}
    write_video_folders(bad, train=4, validation=1)
    (bad / "train/dark/0.mp4").write_bytes(b"no video")
    stops = {"train_dir": bad / "train", "validation_dir": bad / "validation", "on_bad_video": "error"}
    stops |= {"output_dir": place / "stopped"}
    argv = [*command_line(two | {"output_dir": output_dir}), "--and_then", *command_line(two | stops)]
    # without a GPU two processes find each other, also where nobody says that it is the CPU they run on
    cpu = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    assert launch("ddp", argv, "in_a_row.py", taken_port, log, **cpu) == 1
    said = log.read_text()
    assert "VideoDecodeError" in said, said[-3000:]
    assert not (place / "stopped" / "all_results.json").exists()
    assert said.count("4 clips per step") == 2 and said.count("top-1") == 1
    assert said.count("1 clips × 1 crops = 1 forward passes per video") == 2
    assert_equals(output_dir, one_process)

    # its checkpoint carries the run on in one process
    moved = {"output_dir": place / "moved", "resume_from_checkpoint": output_dir / "checkpoint-3"}
    log = place / "moved.log"
    argv = command_line(arguments | moved | {"per_device_train_batch_size": 4})
    finish(start_script(argv, log), log=log)
    assert "going on after step 3" in log.read_text(), log.read_text()[-3000:]
    assert losses(place / "moved") == pytest.approx(losses(one_process)[3:], abs=1e-5)


def test_fsdp_equals_one_process(place, arguments, one_process, taken_port, monkeypatch):
    """Frozen and trained weights sharded together, block by block; from a checkpoint of another number of processes;
    and to the Hub, with a card."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "hub"))
    from hub_server import TOKEN, HubServer

    log = place / "fsdp.log"
    sharded = arguments | {"per_device_train_batch_size": 2}
    moved = {"output_dir": place / "fsdp-moved", "resume_from_checkpoint": one_process / "checkpoint-3"}
    with HubServer() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        moved |= {"push_to_hub": True, "hub_model_id": "tester/sharded", "hub_token": TOKEN}
        first, second = sharded | {"output_dir": place / "fsdp"}, sharded | moved
        runs = [*command_line(first), "--and_then", *command_line(second)]
        ended = launch("fsdp2", runs, "fsdp_on_cpu.py", taken_port, log, ACCELERATE_USE_CPU="true")
    said = log.read_text()
    assert ended == 0, said[-3000:]
    parameters, units = map(int, re.search(r"^(\d+) of \1 parameters sharded, (\d+) units, 0.5", said, re.M).groups())
    assert parameters > 100 and units >= 4  # three blocks and the rest
    assert_equals(place / "fsdp", one_process)

    card = hub.repositories["tester/sharded"].files["README.md"].decode()
    assert re.search(r"trained parameters \| 0.0\d M", card) and "latency" not in card
    assert "going on after step 3" in said
    assert losses(place / "fsdp-moved") == pytest.approx(losses(one_process)[3:], abs=1e-5)
    mine, other = (load_file(p / "checkpoint-5/weights.safetensors") for p in (place / "fsdp-moved", one_process))
    assert all(torch.allclose(mine[key], other[key], atol=1e-4) for key in other)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_equals_one_process(place, arguments, one_process, taken_port, stage):
    pytest.importorskip("deepspeed")
    output_dir = place / f"zero{stage}"
    options = {"output_dir": output_dir, "per_device_train_batch_size": 2, "checkpointing_steps": "no"}
    argv, log = command_line(arguments | options | {"ema_decay": None}), place / f"zero{stage}.log"
    cpu = {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    ended = launch(f"deepspeed_zero{stage}", argv, "deepspeed_on_cpu.py", taken_port, log, **cpu)
    assert ended == 0, log.read_text()[-3000:]
    assert losses(output_dir) == pytest.approx(losses(one_process), abs=1e-5)
    mine, other = (load_file(p / "adapter" / "adapter_model.safetensors") for p in (output_dir, one_process))
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in other.items()}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configs(path):
    config = load_config_from_file(str(path))
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert config.distributed_type.value == kind and config.num_processes == 8
    if kind == "DEEPSPEED":
        values = yaml.safe_load(path.read_text())["deepspeed_config"]
        assert values["zero_stage"] == int(path.stem[-1])
