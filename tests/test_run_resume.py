"""`kill -9`, and the same command again: the weights are those of a run that was left alone, bit for bit."""

import os
import random

import pytest
from tiny import tiny_image_model
from training import command_line, run_with_kills, start_forked, write_shards, write_video_folders


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny image model and 14 + 6 videos, as class folders and as shards."""
    place = tmp_path_factory.mktemp("resume")
    tiny_image_model("clip").save_pretrained(place / "image")
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
        "max_train_steps": 12,
        "checkpointing_steps": 2,
        "mixup_alpha": 0.8,
        "max_grad_norm": 1.0,
        "ema_decay": 0.9,
        "learning_rate": 1e-2,
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("source", ["map", "streaming"])
def test_killed_and_started_again(place, tmp_path, source, workers):
    common = arguments(place, source, workers)
    log = tmp_path / "log"
    alone = start_forked(command_line(common | {"output_dir": tmp_path / "alone"}), log)
    assert os.waitpid(alone, 0)[1] == 0, log.read_text()[-3000:]

    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    checkpoints = sorted(chance.sample([2, 4, 6, 8, 10], 2))
    print(f"seed {seed}: killed after checkpoints {checkpoints}")
    killed = tmp_path / "killed"
    run_with_kills(command_line(common | {"output_dir": killed}), killed, log, checkpoints, chance)

    assert "going on after step" in log.read_text()  # once or twice: a kill may also hit the start
    for file in ("adapter/adapter_model.safetensors", "checkpoint-12/weights.safetensors", "predictions.csv"):
        assert (killed / file).read_bytes() == (tmp_path / "alone" / file).read_bytes(), (file, seed, checkpoints)
