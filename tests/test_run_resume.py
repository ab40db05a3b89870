"""`kill -9`, and the same command again: the weights are those of a run that was left alone, bit for bit."""

import functools
import random
from pathlib import Path

import pytest
from processes import finish, kill_when
from tiny import tiny_image_model
from training import command_line, start_script, start_two, trained_on, write_shards, write_video_folders


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny image model and 14 + 6 videos, as class folders and as shards."""
    place = tmp_path_factory.mktemp("resume")
    tiny_image_model("clip", num_hidden_layers=1).save_pretrained(place / "image")
    write_shards(write_video_folders(place / "videos", train=7, validation=3), place / "shards")
    return place


def arguments(place, source: str, workers: int) -> dict:
    videos = {"train_dir": place / "videos/train", "validation_dir": place / "videos/validation"}
    return {
        "model_name_or_path": place / "image",
        **(videos if source == "map" else {"dataset_name": place / "shards", "streaming": True}),
        "tuner": "zeroi2v",
        "num_frames": 4,
        "dataloader_num_workers": workers,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,  # 7 batches an epoch: steps lie across its end
        "max_train_steps": 8,
        "checkpointing_steps": 2,
        "mixup_alpha": 0.8,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "learning_rate": 1e-2,
    }


@pytest.fixture(scope="module")
def alone(place):
    """The folder of a run that was left alone, without workers, by its source; made when it is asked for."""

    @functools.cache
    def make(source: str) -> Path:
        run(arguments(place, source, 0) | {"output_dir": place / f"alone-{source}"}, place / "log")
        return place / f"alone-{source}"

    return make


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["map", "streaming"])
def test_killed_and_started_again(place, alone, tmp_path, source, workers):
    common = arguments(place, source, workers)
    log = tmp_path / "log"

    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    moments = [f"checkpoint-{step}" for step in sorted(chance.sample([2, 4, 6], 2))]
    if (source, workers) == ("map", 0):
        moments = ["run.json", moments[0], "checkpoint-8", "adapter"]  # at the start, in evaluation, in the final save
    print(f"seed {seed}: killed after {moments}")
    killed = tmp_path / "killed"
    for name in moments:
        process = start_script(command_line(common | {"output_dir": killed}), log)
        kill_when(killed / name, chance.uniform(0, 0.1), process, log=log)
    finish(start_script(command_line(common | {"output_dir": killed}), log), log=log)

    assert "going on after step" in log.read_text()  # once or twice: a kill may also hit the start
    for file in ("adapter/adapter_model.safetensors", "checkpoint-8/weights.safetensors", "predictions.csv"):
        assert (killed / file).read_bytes() == (alone(source) / file).read_bytes(), (file, seed, moments)


def run(arguments: dict, log: Path) -> str:
    """What the script says in a process of its own, which must end well."""
    log.unlink(missing_ok=True)
    finish(start_script(command_line(arguments), log), log=log)
    return log.read_text()


def test_damaged_checkpoint_and_a_start_from_elsewhere(place, tmp_path):
    """From a damaged checkpoint the run goes back to the one before it; --resume_from_checkpoint starts a run, and
    does not take it back when the same command is given again."""
    common = arguments(place, "map", 0) | {
        "max_train_steps": 6,
        "checkpointing_steps": 2,
        "output_dir": tmp_path / "a",
    }
    run(common, tmp_path / "log")
    weights = tmp_path / "a/checkpoint-6/weights.safetensors"
    expected = weights.read_bytes()
    weights.write_bytes(expected[:-1])
    assert "going on after step 4" in run(common, tmp_path / "log")
    assert weights.read_bytes() == expected

    moved = common | {"output_dir": tmp_path / "b", "resume_from_checkpoint": tmp_path / "a/checkpoint-4"}
    assert "going on after step 4" in run(moved, tmp_path / "log")
    said = run(moved, tmp_path / "log")
    assert "going on after step 6" in said and "b has checkpoints of its own" in said
    assert (tmp_path / "b/checkpoint-6/weights.safetensors").read_bytes() == expected


@pytest.mark.parametrize(("source", "workers", "buffer"), [("map", 0, None), ("streaming", 2, 5)])
def test_two_processes_killed_and_started_again(place, tmp_path, source, workers, buffer):
    """Each rank goes on with precisely the samples that it would have seen; together they see none twice an epoch."""
    common = arguments(place, source, workers) | {"shuffle_buffer_size": buffer}
    log, alone, killed = tmp_path / "log", tmp_path / "alone", tmp_path / "killed"
    finish(*start_two(command_line(common | {"output_dir": alone}), log, alone.with_suffix(".ids")), log=log)

    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    for step in sorted(chance.sample([2, 4, 6], 2)):
        print(f"seed {seed}: killed after checkpoint {step}")
        processes = start_two(command_line(common | {"output_dir": killed}), log, killed.with_suffix(".ids"))
        at, seconds = killed / f"checkpoint-{step}", chance.uniform(0, 0.1)
        kill_when(at, seconds, *chance.sample(processes, 2), log=log)
    finish(*start_two(command_line(common | {"output_dir": killed}), log, killed.with_suffix(".ids")), log=log)
    assert "going on after step" in log.read_text(), log.read_text()[-3000:]

    ranks = [trained_on(alone.with_suffix(".ids"), rank, 2) for rank in range(2)]
    assert [trained_on(killed.with_suffix(".ids"), rank, 2) for rank in range(2)] == ranks
    assert [len(batches) for batches in ranks] == [16, 16]  # 8 steps of 2
    for start in range(0, 15, 3):  # 3 steps of the loader an epoch, of 14 videos 2 are left out
        ids = [i for batches in ranks for batch in batches[start : start + 3] for i in batch]
        assert len(ids) == len(set(ids)) == 12
    for file in ("adapter/adapter_model.safetensors", "predictions.csv"):
        assert (killed / file).read_bytes() == (alone / file).read_bytes(), (file, seed)
