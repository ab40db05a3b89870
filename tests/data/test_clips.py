import importlib
import random
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Video
from torch.utils.data import DataLoader

from hf_i2v.data import (
    ClipLoader,
    VideoClips,
    VideoDecodeError,
    collate,
    decode_frames,
    eval_transform,
    load_video_folder,
    probe,
    train_transform,
)

LOOK = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLASSES = ["a walk [slow]", "jump", "test"]  # blanks, wildcards and the name of a split are fair names


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path, monkeypatch):
    connect = socket.socket.connect

    def connect_locally(self, address):
        assert self.family == socket.AF_UNIX, f"the network was asked: {address}"
        return connect(self, address)

    def refuse(host, *args, **kwargs):
        raise AssertionError(f"the network was asked: {host}")

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture(scope="module")
def original(tmp_path_factory, write_video):
    folder = tmp_path_factory.mktemp("videos") / "set"
    for split, count in (("train", 3), ("validation", 1)):
        for name in CLASSES:
            for number in range(count):
                write_video(folder / split / name / f"{number}.mp4", num_frames=12 + number, bf="2")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "set"))


@pytest.fixture
def train(folder):
    return load_video_folder(folder / "train")["train"]


def clips(dataset, *, train=True, **arguments):
    transform = train_transform(**LOOK, flip=0.5) if train else eval_transform(**LOOK)
    return VideoClips(dataset, **{"num_frames": 4, "transform": transform, "train": train, **arguments})


def test_folder(folder):
    videos = load_video_folder(folder / "train", folder / "validation")
    assert {split: len(rows) for split, rows in videos.items()} == {"train": 9, "validation": 3}
    for split, rows in videos.items():
        assert rows.features["video"] == Video(decode=False)
        assert rows.features["label"] == ClassLabel(names=CLASSES)
        for row in rows:
            path = Path(row["video"]["path"])
            assert path.parent == folder / split / CLASSES[row["label"]]
            assert row["video"]["bytes"] is None  # references, not pixels


def test_one_class_and_relative_paths(folder, monkeypatch):
    for name in CLASSES[1:]:
        shutil.rmtree(folder / "train" / name)
    monkeypatch.chdir(folder)
    videos = load_video_folder("train")
    assert list(videos) == ["train"] and videos["train"].features["label"].names == CLASSES[:1]
    monkeypatch.chdir("/")
    assert probe(videos["train"][0]["video"]["path"]).num_frames == 12


def test_folder_that_changed_is_read_again(folder):
    load_video_folder(folder / "train")
    shutil.copy(folder / "train" / "jump" / "0.mp4", folder / "train" / "jump" / "more.mp4")
    assert len(load_video_folder(folder / "train")["train"]) == 10


def test_other_files_are_ignored_aloud(folder, caplog):
    (folder / "train" / "jump" / "notes.txt").write_text("no video")
    (folder / "train" / "metadata.csv").write_text("file_name,label\njump/0.mp4,1\n")
    (folder / "train" / ".hidden").mkdir()
    assert len(load_video_folder(folder / "train")["train"]) == 9
    assert "jump: ignoring {'.txt': 1}" in caplog.text


def test_empty_class_folder(folder):
    (folder / "train" / "rest").mkdir()
    with pytest.raises(ValueError, match=r"rest has no videos \(it holds nothing\).*\.mp4"):
        load_video_folder(folder / "train")
    (folder / "train" / "rest" / "clip.gif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"rest has no videos \(it holds 'clip.gif'\).*\.mp4"):
        load_video_folder(folder / "train")


def test_no_class_folders(folder):
    with pytest.raises(
        ValueError, match=r"jump has no class folders \(it holds '0.mp4', '1.mp4', '2.mp4'\); expected"
    ):
        load_video_folder(folder / "train" / "jump")


def test_missing_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        load_video_folder(folder / "train", folder / "nowhere")


def test_classes_that_differ(folder):
    (folder / "validation" / "jump").rename(folder / "validation" / "jumping")
    with pytest.raises(ValueError, match=r"only in .*train: \['jump'\]; only in .*validation: \['jumping'\]"):
        load_video_folder(folder / "train", folder / "validation")


def test_items_and_batches(train):
    items = clips(train, train=False)
    item = items[4]
    path = train[4]["video"]["path"]
    # 13 frames in 4 segments [0,3) [3,6) [6,9) [9,13)
    expected_TChw = eval_transform(**LOOK)(decode_frames(path, [1, 4, 7, 11]))
    assert torch.equal(item["pixel_values"], expected_TChw)
    assert item["labels"] == train[4]["label"] == 1

    batch = collate([items[i] for i in range(len(items))])
    assert batch["pixel_values"].shape == (9, 4, 3, 16, 16)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and batch["labels"].dtype == torch.int64


def test_videos_as_bytes(train):
    row = train[0]
    with open(row["video"]["path"], "rb") as file:
        embedded = Dataset.from_dict({"video": [{"path": "in/a/shard.mp4", "bytes": file.read()}], "label": [0]})
    embedded = embedded.cast_column("video", Video(decode=False))
    assert torch.equal(clips(embedded)[0]["pixel_values"], clips(train)[0]["pixel_values"])


def test_short_videos(train):
    assert clips(train, num_frames=20)[0]["pixel_values"].shape[0] == 20
    refused = clips(train.select(range(3)), num_frames=14, policy="error")  # of 12, 13 and 14 frames
    for index in range(2):
        with pytest.raises(VideoDecodeError, match=rf"{index}\.mp4: the video has 1\d frames, fewer than .* \(14\)"):
            refused[index]
    batch = next(iter(ClipLoader(refused, batch_size=3, max_bad_fraction=1.0)))  # like any other bad video
    assert batch["ids"].tolist() == [2, 2, 2]
    with pytest.raises(VideoDecodeError, match=r"0\.mp4: .*frame_stride \(13\)"):
        clips(train, num_frames=2, frame_stride=13, policy="error")[0]


def test_broken_video_is_named(train):
    Path(train[2]["video"]["path"]).write_bytes(b"")
    with pytest.raises(VideoDecodeError, match=r"2\.mp4: the file is empty"):
        clips(train)[2]


def test_randomness_is_seed_epoch_and_index(train):
    def draw(index=0, seed=0, epoch=0):
        items = clips(train, seed=seed)
        items.set_epoch(epoch)
        return items[index]["pixel_values"]

    first_TChw = draw()
    torch.manual_seed(5)
    random.seed(5)
    assert torch.equal(draw(), first_TChw)
    assert not torch.equal(draw(seed=1), first_TChw)
    assert not torch.equal(draw(epoch=1), first_TChw)
    still = clips(train, train=False)
    before_TChw = still[0]["pixel_values"]
    still.set_epoch(1)
    assert torch.equal(still[0]["pixel_values"], before_TChw)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_do_not_matter(train, num_workers):
    """Neither their number, nor that persistent workers were started before the epoch was set."""
    alone, helped = clips(train), clips(train)
    loader = DataLoader(
        helped, batch_size=2, collate_fn=collate, num_workers=num_workers, persistent_workers=True, prefetch_factor=1
    )
    for epoch in range(2):
        alone.set_epoch(epoch)
        helped.set_epoch(epoch)
        expected = torch.stack([alone[i]["pixel_values"] for i in range(len(alone))])
        assert torch.equal(torch.cat([batch["pixel_values"] for batch in loader]), expected)


def test_moving_digits(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    digits = importlib.import_module("make_moving_digits")
    arguments = ["--num_train", "8", "--num_validation", "4", "--num_frames", "6", "--size", "32"]
    for name in ("one", "two"):
        digits.main(["--output_dir", str(tmp_path / name), *arguments])
    videos = load_video_folder(tmp_path / "one" / "train", tmp_path / "one" / "validation")
    names = ["moves_down", "moves_left", "moves_right", "moves_up"]
    assert videos["train"].features["label"].names == names
    assert (len(videos["train"]), len(videos["validation"])) == (8, 4)

    for row in videos["train"]:
        path = row["video"]["path"]
        assert (probe(path).num_frames, probe(path).height, probe(path).width) == (6, 32, 32)
        again = path.replace("/one/", "/two/")
        assert Path(path).read_bytes() == Path(again).read_bytes()  # the seed decides everything
        # The centre of the digit runs in the labelled direction, and along that axis only.
        frames_Thw = decode_frames(path, range(6))[:, 0].float()
        place_H, place_W = torch.arange(32.0)[:, None], torch.arange(32.0)
        mass_T = frames_Thw.sum((1, 2))
        down, right = ((frames_Thw * place).sum((1, 2)) / mass_T for place in (place_H, place_W))
        moved = {"moves_down": down, "moves_left": -right, "moves_right": right, "moves_up": -down}[
            names[row["label"]]
        ]
        still = right if row["label"] in (0, 3) else down
        assert (moved.diff() > 0).all() and (still - still[0]).abs().max() < 0.5
    train_images, held_out = digits.load_digit_images(train=True)[0], digits.load_digit_images(train=False)[0]
    assert len(train_images) + len(held_out) == 1797
    with pytest.raises(SystemExit):
        digits.main(["--output_dir", str(tmp_path / "one")])  # never mixes two sets


def test_moving_digits_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    digits = importlib.import_module("make_moving_digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match=r"pip install hf_i2v\[demo\]"):
        digits.main(["--output_dir", str(tmp_path / "digits")])
