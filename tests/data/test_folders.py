"""Class folders as people have them: nested, linked, with suffixes of all kinds; and a validation split of them."""

import logging
import os

import pytest
from PIL import Image

from hf_i2v.data import load_video_folder, load_videos, split_validation
from hf_i2v.data.references import VIDEO_SUFFIXES


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a video")
    return path


def listed(videos):
    """Class and path below the class folder of each video."""
    names = videos.features["label"].names
    found = [(names[row["label"]], row["video"]["path"]) for row in videos]
    return [(name, path.rpartition(f"/{name}/")[2]) for name, path in found]


def test_every_suffix_of_a_list_and_nested_folders(tmp_path, caplog, capfd):
    for number, suffix in enumerate(VIDEO_SUFFIXES):
        touch(tmp_path / "set/run" / f"{number:02d}.{suffix if number % 2 else suffix.upper()}")
    touch(tmp_path / "set/sit/person 1/morning/b.webm")
    touch(tmp_path / "set/sit/person 1/a.m4v")
    touch(tmp_path / "set/sit/a.3gp")
    touch(tmp_path / "set/sit/person 1/.hidden.mp4")
    touch(tmp_path / "set/sit/__pycache__/x.mp4")
    videos = load_videos(train_dir=tmp_path / "set")["train"]
    found = listed(videos)
    assert [path for name, path in found if name == "sit"] == ["a.3gp", "person 1/a.m4v", "person 1/morning/b.webm"]
    assert len(found) == len(VIDEO_SUFFIXES) + 3
    assert "ignoring" not in caplog.text and "Downloading" not in "".join(capfd.readouterr())


def test_nested_folders_of_frames(tmp_path, caplog):
    for folder in ("run/a", "run/day/b", "sit/c"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (4, 4)).save(tmp_path / "set" / folder / f"{number}.png")
    (tmp_path / "set/sit/d").mkdir()
    assert listed(load_video_folder(tmp_path / "set")["train"]) == [("run", "a"), ("run", "day/b"), ("sit", "c")]
    assert "sit: ignoring {'empty folders': 1}" in caplog.text


def test_links_are_followed_and_lost_ones_named(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    touch(tmp_path / "elsewhere/0.mp4")
    touch(tmp_path / "one.mp4")
    touch(tmp_path / "set/run/1.mp4")
    (tmp_path / "set/sit").symlink_to(tmp_path / "elsewhere", target_is_directory=True)  # a class folder
    (tmp_path / "set/run/2.mp4").symlink_to(tmp_path / "one.mp4")
    (tmp_path / "set/run/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    videos = load_video_folder(tmp_path / "set", tmp_path / "set")["train"]
    assert listed(videos) == [("run", "1.mp4"), ("run", "2.mp4"), ("run", "more/0.mp4"), ("sit", "0.mp4")]
    assert not caplog.text

    (tmp_path / "set/run/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "set/run/itself.mp4").symlink_to("itself.mp4")
    (tmp_path / "set/run/more_of_it").symlink_to("..", target_is_directory=True)
    (tmp_path / "set/jump").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    (tmp_path / "set/turn").symlink_to(tmp_path / "set", target_is_directory=True)
    assert listed(load_video_folder(tmp_path / "set")["train"]) == listed(videos)
    assert "left out 5 links that lead nowhere or to a folder around them" in caplog.text
    for name in ("jump", "turn", "run/gone.mp4", "run/itself.mp4", "run/more_of_it"):
        assert f"'{tmp_path}/set/{name}'" in caplog.text


def test_the_order_of_rows(tmp_path):
    """That of the whole paths, as HF Datasets' folder builder has it, so that older runs go on."""
    for name in ("a", "a b", "B", "a-1"):
        for number in (10, 2):
            touch(tmp_path / "set" / name / f"{number}.mp4")
    paths = [row["video"]["path"] for row in load_video_folder(tmp_path / "set")["train"]]
    assert paths == sorted(paths)
    assert [os.path.relpath(path, tmp_path / "set") for path in paths[2:5]] == [
        "a b/10.mp4",
        "a b/2.mp4",
        "a-1/10.mp4",
    ]


def test_validation_split(tmp_path, caplog):
    for name, count in (("run", 10), ("sit", 2), ("turn", 7), ("once", 1)):
        for number in range(count):
            touch(tmp_path / "set" / name / f"{number}.mp4")
    videos = load_video_folder(tmp_path / "set")["train"]
    split = split_validation(videos, fraction=0.2, seed=3)
    counts = [[rows["label"].count(label) for label in range(4)] for rows in split.values()]
    assert list(split) == ["train", "validation"] and counts == [[1, 8, 1, 6], [0, 2, 1, 1]]  # of once, run, sit, turn
    assert sorted(listed(split["train"]) + listed(split["validation"])) == sorted(listed(videos))
    assert "1 classes have one video, which stays in training: ['once']" in caplog.text
    chosen = set(listed(split["validation"]))
    assert chosen != set(listed(split_validation(videos, fraction=0.2, seed=4)["validation"]))

    (tmp_path / "set").rename(tmp_path / "moved")
    (tmp_path / "moved/run/11.mp4").write_bytes(b"a video")
    moved = load_video_folder(tmp_path / "moved")["train"].shuffle(seed=0)
    assert len(chosen - set(listed(split_validation(moved, fraction=0.2, seed=3)["validation"]))) <= 1
    with pytest.raises(ValueError, match=r"validation \(1\) must lie between 0 and 1"):
        split_validation(videos, fraction=1)
    with pytest.raises(ValueError, match="no class has two videos"):
        split_validation(videos.filter(lambda row: row["label"] == 0), fraction=0.5)
