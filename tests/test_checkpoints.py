"""Checkpoints on disk: whole or absent, verified, rotated, of one configuration."""

import importlib
import json
import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Video
from torch import nn

from hf_i2v.hub import CheckpointUploads
from hf_i2v.moved import MOVED
from hf_i2v.training.checkpoints import Checkpoint, CheckpointError, CheckpointFolder
from hf_i2v.training.state import ExponentialMovingAverage, TrainingState, frozen_fingerprint, videos_fingerprint

CONFIGURATION = {"learning_rate": 0.1, "labels": ["a", "b"]}


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((300, 100), value)}


def saved(tmp_path, *steps: int, **options) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path / "run", CONFIGURATION, **options)
    for step in steps:
        folder.save(step, weights(step), {"step": step, "rate": [0.1 + 0.2]})
    return folder


def test_round_trip_and_rotation(tmp_path):
    folder = saved(tmp_path, 8, 9, 10, total_limit=2)
    assert sorted(p.name for p in folder.folder.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    checkpoint = folder.load_last()
    assert checkpoint.step == 10 and torch.equal(checkpoint.weights["weight"], weights(10)["weight"])
    assert checkpoint.state == {"step": 10, "rate": [0.1 + 0.2]}
    assert folder.load(folder.path(9)).step == 9
    assert CheckpointFolder(tmp_path / "none", CONFIGURATION).load_last() is None


class SlowHub:
    """Uploads end when `go` is set; those of `refused` fail."""

    def __init__(self, refused=()):
        self.go, self.sent, self.refused, self.pool = Event(), [], refused, ThreadPoolExecutor(1)

    def upload_folder(self, *, folder_path, run_as_future, **_):
        return self.pool.submit(self.upload, folder_path)

    def upload(self, folder):
        assert self.go.wait(100)
        self.sent.append((folder.name, len(list(folder.iterdir()))))  # all files are still there
        if folder.name in self.refused:
            raise OSError("no way")


@pytest.mark.parametrize("refused", [[], ["checkpoint-3"], ["checkpoint-1", "checkpoint-3"]])
def test_a_slow_upload_keeps_its_checkpoint_and_not_the_result(tmp_path, monkeypatch, refused):
    said = []
    monkeypatch.setattr("hf_i2v.hub.logger.warning", lambda message, *args: said.append(message % args))
    monkeypatch.setattr("hf_i2v.hub.HfApi.create_repo", lambda *_, **__: SimpleNamespace(repo_id="user/name"))
    uploads = CheckpointUploads("user/name")
    uploads.api = hub = SlowHub(refused)
    folder = saved(tmp_path, total_limit=1)
    started = []
    for step in (1, 2, 3):
        path = folder.save(step, weights(step), {}, spare=uploads.under_way)
        started.append(uploads.start(path, f"step {step}"))
    assert started == [True, False, False] and folder.steps() == [1, 3]
    hub.go.set()
    uploads.wait()
    assert hub.sent == [("checkpoint-1", 3), ("checkpoint-3", 3)] and uploads.under_way is None
    assert len(said) == len(refused)


def test_rotation_spares_what_was_just_written_and_what_is_read(tmp_path):
    folder = saved(tmp_path, 4, 6, total_limit=2)
    assert folder.save(3, weights(3), {}).exists()  # a run that went back
    assert folder.steps() == [3, 6]
    folder.save(8, weights(8), {}, spare=folder.path(3))
    assert folder.steps() == [3, 6, 8]
    folder.save(9, weights(9), {})
    assert folder.steps() == [8, 9]


@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoint_falls_back(tmp_path, file, damage, monkeypatch):
    said = []
    monkeypatch.setattr(
        "hf_i2v.training.checkpoints.logger.warning", lambda message, *args: said.append(message % args)
    )
    folder = saved(tmp_path, 1, 2)
    path = folder.path(2) / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[0] ^= 1
        path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert folder.load_last().step == 1
    assert "checkpoint-2 is damaged" in said[0] and "going back to the checkpoint before it" in said[0]
    path = folder.path(1) / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"no whole checkpoint is left .*checkpoint-2 is damaged"):
        folder.load_last()


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    """Or changes nothing. Every byte of small files, 300 of the large one."""
    chance = random.Random(0)
    folder = CheckpointFolder(tmp_path, CONFIGURATION)
    path = folder.save(16, {"weight": torch.full((5, 5), 16)}, {"rates": [0.1 * i for i in range(40)]})
    whole = repr(folder.load(path))
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for place in range(len(content)) if len(content) < 1500 else chance.sample(range(len(content)), 300):
            file.write_bytes(flipped(content, place, chance.randrange(8)))
            try:
                assert repr(folder.load(path)) == whole, (file.name, place)
            except CheckpointError as error:
                assert "is damaged" in str(error)
        file.write_bytes(content)
    assert repr(folder.load(path)) == whole


def test_a_manifest_from_before_it_had_a_digest(tmp_path):
    folder = saved(tmp_path, 8, 9)
    path = folder.path(9) / "manifest.json"
    manifest = {key: value for key, value in json.loads(path.read_bytes()).items() if key != "sha256"}
    path.write_text(json.dumps(manifest, indent=2))
    assert folder.load_last().step == 9
    path.write_text(json.dumps(manifest | {"step": 8}, indent=2))
    with pytest.raises(CheckpointError, match=r"checkpoint-9 is damaged \(size or checksum of manifest.json\)"):
        folder.load(folder.path(9))
    path.write_text(json.dumps(manifest))
    folder.path(9).rename(tmp_path / "last-checkpoint")  # as it comes from the Hub
    assert folder.load(tmp_path / "last-checkpoint").step == 9


def test_everything_is_on_the_disk_before_the_name_appears(tmp_path, monkeypatch):
    events, sync, rename = [], os.fsync, type(tmp_path).rename

    def names(descriptor):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", names)
    monkeypatch.setattr(
        type(tmp_path), "rename", lambda self, to: (events.append(f"-> {to.name}"), rename(self, to))[1]
    )
    saved(tmp_path, 3)
    unfinished = ".unfinished-checkpoint-3"
    files = {"weights.safetensors", "state.pt", "manifest.json"}
    assert set(events[:3]) == files and events[3:] == [unfinished, "-> checkpoint-3", "run"]


def test_another_configuration_is_refused(tmp_path):
    saved(tmp_path, 1)
    other = CheckpointFolder(tmp_path / "run", CONFIGURATION | {"learning_rate": 0.2})
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.1, is 0\.2"):
        other.load_last()


def test_full_disk_loses_nothing(tmp_path):
    """A limit on the size of files stands in for the disk: writing beyond it fails in the same place."""
    folder = saved(tmp_path, 1, 2)
    before = {p: p.read_bytes() for p in folder.folder.rglob("*") if p.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"File too large(.|\n)*checkpoint-1, checkpoint-2"):
            folder.save(3, weights(3), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert before == {p: p.read_bytes() for p in folder.folder.rglob("*") if p.is_file()}
    assert folder.load_last().step == 2


def test_unwritable_folder_loses_nothing(tmp_path, monkeypatch):
    folder = saved(tmp_path, 1)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # chmod would not stop root, who runs the tests in containers
    with pytest.raises(CheckpointError, match="Permission denied"):
        folder.save(2, weights(2), {})
    assert folder.steps() == [1] and folder.load_last().step == 1


def test_what_a_crash_left_is_cleared(tmp_path):
    folder = saved(tmp_path, 1)
    (folder.folder / ".unfinished-checkpoint-2").mkdir()
    assert folder.load_last().step == 1
    folder.save(2, weights(2), {})
    assert sorted(p.name for p in folder.folder.iterdir()) == ["checkpoint-1", "checkpoint-2"]


class Loader:
    def __init__(self):
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


def training(seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    model[1].unused = nn.Parameter(torch.zeros(3))  # gets no gradient, so it has no moments
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    ema = ExponentialMovingAverage(model, 0.5)
    state = TrainingState(model, optimizer, scheduler, Loader(), ema)
    return model, optimizer, scheduler, ema, state


def steps(model, optimizer, scheduler, ema, count: int) -> None:
    for _ in range(count):
        model(torch.randn(3, 4) + random.random() + np.random.rand()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        ema.update()


def test_training_state_is_restored_exactly(tmp_path):
    model, optimizer, scheduler, ema, state = training(seed=0)
    steps(model, optimizer, scheduler, ema, 3)
    state.stateful["loader"].place = 7
    folder = CheckpointFolder(tmp_path, {})
    folder.save(3, *state.collect())
    steps(model, optimizer, scheduler, ema, 3)

    other = training(seed=1)
    other[0][0].load_state_dict(model[0].state_dict())  # the frozen part is not in the checkpoint
    assert set(folder.load_last().weights) == {f"{e}1.{n}" for e in ("", "ema.") for n in ("weight", "bias", "unused")}
    assert other[-1].restore(folder.load_last()) == 3
    assert other[-1].stateful["loader"].place == 7
    steps(*other[:4], 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other[0].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.averages, other[3].averages, strict=True))
    assert scheduler.get_last_lr() == other[2].get_last_lr()


def test_another_number_of_processes_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("hf_i2v.training.state.logger.warning", lambda message, *args: said.append(message % args))
    *_, state = training(seed=0)
    weights, values = state.collect()
    values["random"] *= 2
    state.restore(Checkpoint(1, weights, values))
    assert "made by 2 processes, now there are 1" in said[0]


def test_average_of_the_weights():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = ExponentialMovingAverage(model, 0.75)
    model.weight.data.fill_(4.0)
    ema.update()
    with ema.applied():
        assert model.weight.item() == 1.0
    assert model.weight.item() == 4.0
    with pytest.raises(ValueError, match=r"ema_decay \(1\)"):
        ExponentialMovingAverage(model, 1)


def test_fingerprint_of_videos_moves_with_the_folder():
    def fingerprint(root, names="abc", labels=(0, 1, 0), **columns):
        videos = [{"path": f"{root}/{name}.mp4", "bytes": None} for name in names]
        rows = Dataset.from_dict({"video": videos, "label": labels, **columns})
        return videos_fingerprint(rows.cast_column("video", Video(decode=False)))

    assert fingerprint("/data") == fingerprint("hf://datasets/user/name")
    others = [
        ("abd", (0, 1, 0), {}),
        ("acb", (0, 1, 0), {}),
        ("abc", (0, 1, 1), {}),
        ("abc", (0, 1, 0), {"start": [1] * 3}),
    ]
    assert all(fingerprint("/data", names, labels, **more) != fingerprint("/data") for names, labels, more in others)


def test_fingerprint_is_that_of_the_frozen_weights():
    model, *_ = training(seed=0)
    before = frozen_fingerprint(model)
    model[1].weight.data.add_(1)
    assert frozen_fingerprint(model) == before
    model[0].weight.data.add_(1)
    assert frozen_fingerprint(model) != before


def test_manifest_is_readable(tmp_path):
    folder = saved(tmp_path, 5)
    manifest = json.loads((folder.path(5) / "manifest.json").read_text())
    assert manifest["step"] == 5 and manifest["configuration"] == CONFIGURATION


@pytest.mark.parametrize("name", MOVED)
def test_modules_are_found_where_they_were(name):
    module = importlib.import_module(name)
    assert module is importlib.import_module(MOVED[name])
    assert module.__spec__.name == module.__name__ == MOVED[name]
