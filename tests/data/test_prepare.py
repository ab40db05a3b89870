"""`hf-i2v prepare`: the same frames at the same times, in every layout, whatever stops it."""

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from processes import finish, kill_when, start

from hf_i2v.data import VideoReader, load_videos, open_video
from hf_i2v.prepare import Form, main, prepare_video
from hf_i2v.prepare.layout import _as_mp4, _below, _sample_keys
from hf_i2v.prepare.video import sample_video

ODD = {
    "b_frames.mp4": {"bf": "3", "g": "50"},
    "variable.mkv": {"pts_step": [1, 4, 2], "first_pts": 33, "bf": "2"},
    "rotated.mp4": {"rotation": 90},
    "odd.avi": {"codec": "mpeg4", "height": 47, "width": 61},
    "stream.ts": {"codec": "mpeg2video", "bf": "2"},
    "colours.mkv": {"codec": "ffv1", "pix_fmt": "yuv444p"},
    "sound.mp4": {"sound": True},
}


def run(*arguments) -> int:
    return main([*map(str, arguments), "--num_workers", "1"])


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("short_side", [32, 256])
def test_the_same_frames_at_the_same_times(tmp_path, write_video, name, short_side):
    path, prepared = write_video(tmp_path / name, num_frames=40, **ODD[name]), tmp_path / "prepared.mp4"
    row = {"video": {"path": str(path), "bytes": None}}
    assert prepare_video(row, prepared, Form(short_side=short_side), 60) is None
    with VideoReader(path) as video, VideoReader(prepared) as small:
        assert small.times() == video.times()
        originals_TChw, frames_TChw = (reader.frames(range(40)).float() for reader in (video, small))
        assert small.frames([7]).equal(small.frames(range(40))[[7]])
    height, width = originals_TChw.shape[-2:]
    assert frames_TChw.shape[-2:] == (
        (height // 2 * 2, width // 2 * 2)
        if short_side > min(height, width)
        else tuple(round(side * short_side / min(height, width)) // 2 * 2 for side in (height, width))
    )
    originals_TChw = torch.nn.functional.interpolate(originals_TChw, frames_TChw.shape[-2:], mode="area")
    distance_TT = torch.cdist(frames_TChw.flatten(1), originals_TChw.flatten(1))
    assert distance_TT.argmin(1).tolist() == list(range(40))  # each is nearest to its own
    with av.open(str(prepared)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert [packet.is_keyframe for packet in container.demux(video=0) if packet.size] == [
            number % 16 == 0 for number in range(40)
        ]


def classes(folder: Path, write_video) -> Path:
    for split, count in (("train", 2), ("validation", 1)):
        for name in ("run", "sit"):
            for number in range(count):
                write_video(folder / split / name / "deeper" / f"{number}.avi", num_frames=5 + number, codec="mpeg4")
    return folder


def split_facts(videos) -> dict[str, list]:
    """Of every video the name of its class, its length and where the list says it is."""
    facts = {}
    for split, rows in videos.items():
        names = rows.features["label"].names
        facts[split] = []
        for row in rows:
            with open_video(row) as video:
                facts[split].append((names[row["label"]], video.num_frames, row.get("start"), row.get("end")))
    return facts


def test_class_folders(tmp_path, write_video, capsys):
    folder, output = classes(tmp_path / "set", write_video), tmp_path / "prepared"
    torn = folder / "train" / "sit" / "deeper" / "1.avi"
    torn.write_bytes(b"torn")
    source = ("--train_dir", folder / "train", "--validation_dir", folder / "validation")
    assert run(*source, "--output_dir", output, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "6 videos" in said and "GB of disk" in said and "minutes in 1 processes" in said and not output.exists()

    assert run(*source, "--output_dir", output) == 1
    said = capsys.readouterr().out
    assert f"--train_dir {output / 'train'} --validation_dir {output / 'validation'}" in said
    (bad,) = map(json.loads, (output / "bad_videos.jsonl").read_text().splitlines())
    assert (bad["split"], bad["id"], bad["path"]) == ("train", 3, str(torn)) and "not a video file" in bad["reason"]
    videos = load_videos(train_dir=output / "train", validation_dir=output / "validation")
    assert split_facts(videos) == {"train": [("run", 5, None, None), ("run", 6, None, None), ("sit", 5, None, None)],
                                   "validation": [("run", 5, None, None), ("sit", 5, None, None)]}  # fmt: skip
    assert (output / "train" / "run" / "deeper" / "0.mp4").is_file()

    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    (output / "train" / "run" / ".0.mp4.part").write_bytes(b"half")
    write_video(torn, num_frames=7, codec="mpeg4")  # mended: tried again
    changed = folder / "train" / "run" / "deeper" / "0.avi"
    os.utime(changed, (2e9, 2e9))  # newer than what was made of it
    assert run(*source, "--output_dir", output) == 0
    assert "6 videos, 4 of them done" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*.mp4")}
    assert len(after) == 6 and not list(output.rglob("*.part"))
    assert [path.name for path, at in before.items() if after[path] != at] == ["0.mp4"]

    with pytest.raises(ValueError, match="short_side was 256, is 32"):
        run(*source, "--output_dir", output, "--short_side", 32)
    for within in (folder, folder / "train"):
        with pytest.raises(ValueError, match="would lie among the originals"):
            run(*source, "--output_dir", within)


def test_lists_and_shards(tmp_path, write_video, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = classes(tmp_path / "set", write_video)
    (tmp_path / "names.txt").write_text("sit\nrun\n")  # not sorted
    lists = {}
    for split in ("train", "validation"):
        paths = sorted((folder / split).rglob("*.avi"))
        lines = [f"{path},{path.parent.parent.name},0.1,0.4" for path in [*paths, paths[0]]]
        lists[split] = tmp_path / f"{split}.csv"
        lists[split].write_text("\n".join(lines))
        (tmp_path / "shards" / split).mkdir(parents=True)
        with tarfile.open(tmp_path / "shards" / split / "0.tar", "w") as tar:
            for number, path in enumerate(paths):
                for suffix, content in (("x.avi", path.read_bytes()), ("cls", path.parent.parent.name.encode())):
                    member = tarfile.TarInfo(f"some/{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    named = {"class_names_file": tmp_path / "names.txt"}
    listed = {"train_file": lists["train"], "validation_file": lists["validation"]}
    sharded = {"train_dir": tmp_path / "shards" / "train", "validation_dir": tmp_path / "shards" / "validation"}
    for source, result, kind in (
        (listed, {"train_file": "train.csv", "validation_file": "validation.csv"}, "list"),
        (sharded, {"train_dir": "train", "validation_dir": "validation"}, "tars"),
    ):
        output = tmp_path / kind
        flags = [part for name, value in (source | named).items() for part in (f"--{name}", value)]
        assert run(*flags, "--output_dir", output) == 0
        labels = output / "labels.json"
        prepared = load_videos(**{name: output / path for name, path in result.items()}, class_names_file=labels)
        originals = load_videos(**source, **named)
        assert prepared["train"].features["label"] == originals["train"].features["label"]
        assert split_facts(prepared) == split_facts(originals)
    assert len(list((tmp_path / "list" / "videos").rglob("*.mp4"))) == 6  # a video that is listed twice is made once
    with tarfile.open(tmp_path / "tars" / "train" / "0.tar") as tar:
        assert tar.getnames()[:2] == ["some/0.mp4", "some/0.cls"]
    assert not (tmp_path / "tars" / ".parts").exists()
    before = (tmp_path / "tars" / "train" / "0.tar").stat().st_mtime_ns
    assert run(*flags, "--output_dir", tmp_path / "tars") == 0
    assert (tmp_path / "tars" / "train" / "0.tar").stat().st_mtime_ns == before


def run_in_forks(*arguments) -> None:
    """The command, whose pools fork: a fork server of its own would import torch again."""
    from hf_i2v.data import in_processes

    in_processes.get_context = lambda method: multiprocessing.get_context("fork")
    run(*arguments)


def test_killed_while_it_writes(tmp_path, write_video):
    """The process of the pool ends with the one that is killed, and what it was writing does not count."""
    path = write_video(tmp_path / "set" / "run" / "0.mp4", num_frames=300)
    for number in range(1, 4):
        shutil.copy(path, path.with_name(f"{number}.mp4"))
    alone, killed, log = tmp_path / "alone.mp4", tmp_path / "killed", tmp_path / "log"
    assert prepare_video({"video": {"path": str(path), "bytes": None}}, alone, Form(), 60) is None
    arguments = ("--train_dir", tmp_path / "set", "--output_dir", killed)
    for first in ("train/run/0.mp4", "train/run/1.mp4"):
        kill_when(killed / first, 0.03, start(run_in_forks, *arguments, log=log), log=log)
    assert 2 <= len(list(killed.rglob("*.mp4"))) < 4
    finish(start(run_in_forks, *arguments, log=log), log=log)
    made = sorted((killed / "train" / "run").iterdir())
    assert [path.name for path in made] == [f"{number}.mp4" for number in range(4)]
    assert all(path.read_bytes() == alone.read_bytes() for path in made)


def test_a_folder_of_pictures_and_a_full_disk(tmp_path, write_video, monkeypatch):
    with VideoReader(write_video(tmp_path / "clip.mp4", num_frames=3)) as video:
        frames_TChw = video.frames(range(3))
    (tmp_path / "pictures").mkdir()
    for number, frame_Chw in enumerate(frames_TChw):
        Image.fromarray(frame_Chw.permute(1, 2, 0).numpy()).save(tmp_path / "pictures" / f"{number}.png")
    row = {"video": {"path": str(tmp_path / "pictures"), "bytes": None}}
    assert prepare_video(row, tmp_path / "new" / "pictures.mp4", Form(short_side=24), 60) is None
    with VideoReader(tmp_path / "new" / "pictures.mp4") as video:
        assert video.times() == pytest.approx([0, 1 / 30, 2 / 30]) and video.frames([2]).shape == (1, 3, 24, 32)

    monkeypatch.setattr("hf_i2v.prepare.video.encoder", lambda: "mjpeg")  # an FFmpeg without x264
    assert prepare_video(row, tmp_path / "new" / "pictures.mp4", Form(short_side=24), 60) is None
    with VideoReader(tmp_path / "new" / "pictures.mp4") as video:
        assert video.times() == pytest.approx([0, 1 / 30, 2 / 30]) and video.codec == "mjpeg"
        small_TChw = torch.nn.functional.interpolate(frames_TChw.float(), (24, 32), mode="area")
        assert (video.frames(range(3)).float().mean((1, 2, 3)) - small_TChw.mean((1, 2, 3))).abs().max() < 3

    monkeypatch.undo()
    (tmp_path / "full").symlink_to("/dev/full")  # a link, for what could not be written is removed
    monkeypatch.setattr("hf_i2v.prepare.video.write_whole", lambda path, write: write(tmp_path / "full"))
    with pytest.raises(OSError, match=r"other\.mp4 cannot be written \(No space left"):
        prepare_video(row, tmp_path / "new" / "other.mp4", Form(), 60)


def test_names():
    assert _as_mp4(["a/1.avi", "a/1.mp4", "a/2.webm", "a/v.1"]) == ["a/1.avi.mp4", "a/1.mp4", "a/2.mp4", "a/v.1.mp4"]
    assert _below(None, ["/x/a/1.avi", "/x/b/2.avi"]) == ["a/1.avi", "b/2.avi"]
    assert _below("/x", ["/x/a/1.avi"]) == ["a/1.avi"] and _below(None, ["/x/a/1.avi"]) == ["1.avi"]
    assert _below(None, ["http://host/1.avi", "http://other/../../1.avi"]) == ["host/1.avi", "1.avi"]
    assert _sample_keys(["a/b.x.mp4", "../a/b.mp4", "a/b-2.mp4", ".mp4"]) == ["a/b", "a/b-2", "a/b-2-2", "video"]


@pytest.mark.parametrize(("options", "message"), [({"short_side": 255}, "even number"), ({"crf": 52}, "crf")])
def test_forms_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        Form(**options)


def test_the_estimate_holds_roughly(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4", num_frames=200)
    row = {"video": {"path": str(path), "bytes": None}}
    sample = sample_video(row, Form(), 60)
    assert prepare_video(row, tmp_path / "prepared.mp4", Form(), 60) is None
    size = (tmp_path / "prepared.mp4").stat().st_size
    assert 0.7 < sample.bytes / size < 1.4 and sample.seconds > 0
