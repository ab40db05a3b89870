"""What a run keeps of its videos: another size is another video, unless the video was bad and is listed."""

import json
import shutil

import pytest
from test_sources import write_parquet, write_tar

from hf_i2v.data import load_video_folder, load_videos, videos_fingerprint
from hf_i2v.data.failures import bad_video
from hf_i2v.data.fingerprints import _names_fingerprint, common_folder


@pytest.fixture
def folder(tmp_path):
    for name in ("run", "sit"):
        for number in range(4):
            path = tmp_path / "set" / name / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(10 + number))
    return tmp_path / "set"


def load(folder):
    return load_video_folder(folder)["train"]


def list_as_bad(folder, file, *names, split="train"):
    """As check_videos does."""
    videos = load(folder)
    for index, row in enumerate(videos):
        if row["video"]["path"].removeprefix(f"{folder}/") in names:
            with open(file, "a") as lines:
                lines.write(
                    json.dumps({"split": split, **bad_video(row, index, "torn", common_folder(videos))}) + "\n"
                )


def test_files_replaced_under_the_same_names(folder, tmp_path):
    before = videos_fingerprint(load(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert videos_fingerprint(load(tmp_path / "copy")) == before  # wherever they are, whenever they were copied
    (folder / "run" / "1.mp4").write_bytes(bytes(99))
    assert videos_fingerprint(load(folder)) != before
    assert videos_fingerprint(load(folder), before=before) != before


def test_frames_replaced_under_the_same_names(tmp_path):
    for number in range(3):
        (tmp_path / "set/run/v").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set/run/v" / f"{number}.jpg").write_bytes(bytes(9))
    before = videos_fingerprint(load(tmp_path / "set"))
    for change in (bytes(10), None):
        path = tmp_path / "set/run/v/2.jpg"
        path.write_bytes(change) if change else path.unlink()
        assert videos_fingerprint(load(tmp_path / "set")) != before


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_replaced_under_the_same_names(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def fingerprint(size):
        files = []
        for number in range(2):
            files.append((number, tmp_path / f"{number}.mp4"))
            files[-1][1].write_bytes(bytes(range(size)))
        write = {"tar": write_tar, "parquet": write_parquet}[kind]
        write(tmp_path / "shards" / f"a.{kind}", files)
        return videos_fingerprint(load_videos(train_dir=tmp_path / "shards")["train"])

    assert fingerprint(100) == fingerprint(100) != fingerprint(130)  # tars of the same size: a tar has whole blocks


def test_bad_videos_that_are_listed_may_change(folder, tmp_path):
    """Removed, repaired or excluded they leave the run what it was; nothing else may change with them."""
    lists = [tmp_path / "bad_videos.jsonl", tmp_path / "checked.jsonl", tmp_path / "missing.jsonl"]
    before = videos_fingerprint(load(folder))

    def same():
        return videos_fingerprint(load(folder), before=before, bad_videos=lists) == before

    list_as_bad(folder, lists[0], "run/1.mp4", "sit/3.mp4")
    list_as_bad(folder, lists[1], "sit/3.mp4")  # in both
    assert same()
    (folder / "run/1.mp4").write_bytes(bytes(500))
    assert same()
    (folder / "sit/3.mp4").unlink()
    assert same()
    list_as_bad(folder, lists[0], "sit/0.mp4")  # another one in a later start
    (folder / "sit/0.mp4").unlink()
    assert same()
    list_as_bad(folder, lists[1], "sit/1.mp4", split="validation")  # no video to train on
    assert same()
    (folder / "run/2.mp4").write_bytes(bytes(500))
    assert not same()


def test_a_list_from_the_beginning(folder, tmp_path):
    """A run that started without some videos goes on without more of them."""
    listed = tmp_path / "checked.jsonl"
    list_as_bad(folder, listed, "run/1.mp4")
    first = load_videos(train_dir=folder, exclude=listed)["train"]
    assert len(first) == 7
    before = videos_fingerprint(first, bad_videos=[listed])
    list_as_bad(folder, listed, "sit/2.mp4")
    second = load_videos(train_dir=folder, exclude=listed)["train"]
    assert len(second) == 6 and videos_fingerprint(second, before=before, bad_videos=[listed]) == before


def test_order_and_fingerprints_of_older_runs(folder):
    videos = load(folder)
    before, reversed_rows = videos_fingerprint(videos), videos.select(range(7, -1, -1))
    assert videos_fingerprint(reversed_rows, before=before) != before
    older = _names_fingerprint(videos)
    assert older == "8 videos, sha256 " + older[-16:] and videos_fingerprint(videos, before=older) == older
    assert videos_fingerprint(reversed_rows, before=older) != older
