"""Every source of videos ends as the same data set of references, and its clips are those of the files."""

import argparse
import io
import json
import logging
import shutil
import tarfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Video
from PIL import Image

from hf_i2v.data import (
    ClipLoader,
    FrameFolder,
    VideoClips,
    VideoDecodeError,
    add_data_arguments,
    decode_frames,
    eval_transform,
    load_videos,
    open_video,
    read_class_names,
    read_list,
    uniform_indices,
    videos_from_args,
)
from hf_i2v.data.references import parquet_references, tar_references

LOOK = {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLASSES = ["climb", "dive in"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def files(tmp_path_factory, write_video):
    """(class number, path) of three videos per class, all different."""
    folder = tmp_path_factory.mktemp("sources") / "videos"
    return [
        (label, write_video(folder / name / f"{name[0]}{i}.mp4", num_frames=5 + 3 * label + i, height=16, width=24))
        for label, name in enumerate(CLASSES)
        for i in range(3)
    ]


def clips_of(rows):
    return VideoClips(rows, num_frames=3, transform=eval_transform(**LOOK), train=False)


def assert_holds(rows, expected, names=CLASSES):
    """Rows with the two columns, and the pixels of the files, whatever their order."""
    assert rows.features["video"] == Video(decode=False)
    assert rows.features["label"] == ClassLabel(names=names)
    key = lambda label, clip_TChw: (label, float(clip_TChw.double().sum()))  # noqa: E731
    clips = clips_of(rows)
    found = sorted(key(clips[i]["labels"], clips[i]["pixel_values"]) for i in range(len(clips)))
    direct = [
        (label, decode_frames(path, uniform_indices(num_video_frames=length, num_frames=3)))
        for label, path, length in expected
    ]
    wanted = sorted(key(label, eval_transform(**LOOK)(frames_TChw)) for label, frames_TChw in direct)
    assert [label for label, _ in found] == [label for label, _ in wanted]
    assert torch.allclose(torch.tensor([v for _, v in found]), torch.tensor([v for _, v in wanted]))


def lengths(files):
    return [(label, path, 5 + 3 * label + int(path.stem[1])) for label, path in files]


def write_tar(path, files, label_file="cls", middle=lambda label: str(label)):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (label, video) in enumerate(files):
            for suffix, content in (("mp4", video.read_bytes()), (label_file, middle(label).encode())):
                member = tarfile.TarInfo(f"{path.stem}/{number:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(path, files, row_group_size=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        "video": [{"path": video.name, "bytes": video.read_bytes()} for _, video in files],
        "label": [label for label, _ in files],
    }
    dataset = Dataset.from_dict(rows, features=Features(video=Video(decode=False), label=ClassLabel(names=CLASSES)))
    dataset.to_parquet(path, batch_size=row_group_size)


def test_class_folders_and_flags(files):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    folder = files[0][1].parents[1]
    videos = videos_from_args(parser.parse_args(["--train_dir", str(folder), "--validation_dir", str(folder)]))
    assert list(videos) == ["train", "validation"]
    assert_holds(videos["validation"], lengths(files))


def test_folders_of_frames(tmp_path):
    pixels = torch.randint(0, 256, (2, 12, 16, 16, 3), dtype=torch.uint8)
    for video, name in enumerate(CLASSES):
        folder = tmp_path / "set" / name / "v"
        folder.mkdir(parents=True)
        for number in range(12):  # 2 comes before 10
            Image.fromarray(pixels[video, number].numpy()).save(folder / f"img_{number}.png")
    (tmp_path / "set" / ".cache").mkdir()
    videos = load_videos(train_dir=tmp_path / "set")["train"]
    assert videos.features["label"].names == CLASSES
    for video, item in enumerate([clips_of(videos)[0], clips_of(videos)[1]]):
        frames_TChw = pixels[video, [2, 6, 10]].permute(0, 3, 1, 2)
        assert item["labels"] == video and torch.equal(item["pixel_values"], eval_transform(**LOOK)(frames_TChw))
    for file in (tmp_path / "set" / CLASSES[0] / "v").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(VideoDecodeError, match=r"img_2\.png: not a picture"):
        clips_of(videos)[0]


def write_frames(folder, number=3):
    folder.mkdir(parents=True)
    for i in range(number):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.jpg")


def test_classes_of_frame_folders_are_names(tmp_path):
    for name in ("1", "01", "2", "10"):
        write_frames(tmp_path / "set" / name / "v")
    videos = load_videos(train_dir=tmp_path / "set", validation_dir=tmp_path / "set")
    for rows in videos.values():
        assert rows.features["label"].names == ["01", "1", "10", "2"]
        assert {row["video"]["path"].split("/")[-2]: row["label"] for row in rows} == {
            "01": 0,
            "1": 1,
            "10": 2,
            "2": 3,
        }


@pytest.mark.parametrize("same_class", [True, False])
def test_files_and_frame_folders_together_are_refused(files, tmp_path, same_class):
    shutil.copytree(files[0][1].parents[1], tmp_path / "set")
    write_frames(tmp_path / "set" / CLASSES[0 if same_class else 1] / "a_video")
    with pytest.raises(ValueError, match=r"both video files \(.*c0\.mp4\) and folders of frames \(.*a_video\)"):
        load_videos(train_dir=tmp_path / "set")
    with pytest.raises(ValueError, match="both video files"):
        load_videos(train_dir=files[0][1].parents[1], validation_dir=tmp_path / "set")


@pytest.mark.parametrize("damage", ["bomb", "ValueError", "times"])
def test_frames_that_cannot_be_read(tmp_path, monkeypatch, damage):
    """Whatever Pillow raises is a bad video, and so are seconds in a folder of frames."""
    write_frames(tmp_path / "v")
    row = {"video": {"path": str(tmp_path / "v"), "bytes": None}, "label": 0, "start": None, "end": None}
    message = r"0\.jpg: not a picture, or a damaged one"
    if damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    elif damage == "ValueError":

        def raises(*args):
            raise ValueError("odd header")

        monkeypatch.setattr(Image.Image, "convert", raises)
    else:
        row, message = row | {"start": 1.0}, "v: a folder of frames has no time stamps"
    clips = clips_of(Dataset.from_list([row], features=None).cast_column("video", Video(decode=False)))
    with pytest.raises(VideoDecodeError, match=message):
        clips[0]
    with pytest.raises(VideoDecodeError, match="nowhere: the folder cannot be read"):
        FrameFolder(tmp_path / "nowhere")


def test_names_for_classes_that_have_names(files, tmp_path):
    """Numbered as the file says, whatever the source; names that differ are refused."""
    folder = files[0][1].parents[1]
    write_parquet(tmp_path / "data" / "a.parquet", files)
    for i in range(2):
        write_frames(tmp_path / "frames" / CLASSES[i] / "v")
    (tmp_path / "names.txt").write_text("dive in\nnone of these\nclimb\n")
    (tmp_path / "other.txt").write_text("dive\nclimb\n")
    for train_dir in (folder, tmp_path / "data", tmp_path / "frames"):
        videos = load_videos(train_dir=train_dir, validation_dir=train_dir, class_names_file=tmp_path / "names.txt")
        for rows in videos.values():
            assert rows.features["label"].names == ["dive in", "none of these", "climb"]
            assert sorted(set(rows["label"])) == [0, 2] and rows[0]["label"] == 2
        with pytest.raises(ValueError, match=r"\['dive in'\] \(1 in all\).* are not among the 2 "):
            load_videos(train_dir=train_dir, class_names_file=tmp_path / "other.txt")


def test_arguments_that_mean_nothing_are_refused(files, tmp_path):
    folder = files[0][1].parents[1]
    (tmp_path / "list.txt").write_text("".join(f"{path} {i}\n" for i, path in files))
    sources = {"train_dir": folder, "train_file": tmp_path / "list.txt", "dataset_name": str(folder)}
    for source, argument, value in (
        ("dataset_name", "validation_dir", folder),
        ("dataset_name", "validation_file", "x.txt"),
        ("dataset_name", "video_dir", folder),
        ("train_dir", "validation_file", "x.txt"),
        ("train_dir", "video_dir", folder),
        ("train_dir", "streaming", True),
        ("train_dir", "dataset_config_name", "x"),
        ("train_file", "validation_dir", folder),
        ("train_file", "streaming", True),
    ):
        with pytest.raises(ValueError, match=rf"{argument} \(.*\) goes with .* come from {source}; leave it out"):
            load_videos(**{source: sources[source], argument: value})
    for source in ("train_dir", "train_file"):
        with pytest.raises(ValueError, match=r"has no columns, but video_column_name is 'clip'"):
            load_videos(**{source: sources[source]}, video_column_name="clip")


@pytest.mark.parametrize("suffix", ["txt", "csv"])
@pytest.mark.parametrize("by_name", [False, True])
def test_path_and_label(files, tmp_path, suffix, by_name):
    folder = files[0][1].parents[1]
    label = (lambda i: CLASSES[i].split()[0]) if by_name else str
    lines = [f"{path.relative_to(folder)} {label(i)}" for i, path in files]  # a blank in the path is fair
    (tmp_path / f"list.{suffix}").write_text("\n".join(lines) + "\n\n")
    videos = load_videos(train_file=tmp_path / f"list.{suffix}", video_dir=folder)
    assert_holds(videos["train"], lengths(files), ["climb", "dive"] if by_name else ["0", "1"])


@pytest.mark.parametrize("header", [None, "video,label", "clip,label"])
def test_csv(files, tmp_path, header):
    lines = [f"{path},{CLASSES[i]}" for i, path in files]
    (tmp_path / "list.csv").write_text("\n".join(([header] if header else []) + lines))
    column = header.split(",")[0] if header else "video"
    videos = load_videos(train_file=tmp_path / "list.csv", video_column_name=column)
    assert_holds(videos["train"], lengths(files))
    if header == "clip,label":
        with pytest.raises(ValueError, match=r"no columns 'video' and 'label', found \['clip', 'label'\]"):
            load_videos(train_file=tmp_path / "list.csv")


def test_kinetics(tmp_path, write_video, caplog):
    whole = write_video(tmp_path / "videos" / "abc-d_1.mp4", num_frames=40)  # 10 frames a second
    cut = write_video(tmp_path / "videos" / "jump" / "xyz_000003_000013.mp4", num_frames=6)
    rows = ["abc-d_1,1,3,train,run", "xyz,3,13,train,jump", "gone,0,10,train,jump"]
    (tmp_path / "k.csv").write_text("youtube_id,time_start,time_end,split,label\n" + "\n".join(rows))
    videos = load_videos(train_file=tmp_path / "k.csv", video_dir=tmp_path / "videos")["train"]
    assert "1 videos (33.3 %) are not in" in caplog.text and "gone" in caplog.text
    assert videos.features["label"].names == ["jump", "run"] and videos["label"] == [1, 0]
    items = clips_of(videos)
    for item, path, indices in ((items[0], whole, [13, 19, 26]), (items[1], cut, [1, 3, 5])):
        assert torch.equal(item["pixel_values"], eval_transform(**LOOK)(decode_frames(path, indices)))
    assert items.fingerprint() != clips_of(videos.remove_columns(["start", "end"])).fingerprint()
    late = videos.map(lambda row: {"start": 9.0, "end": 19.0})
    with pytest.raises(VideoDecodeError, match=r"no frame between 9.0 and 19.0 seconds"):
        clips_of(late)[0]


def test_something_something(tmp_path, write_video):
    for number in (7, 9):
        write_video(tmp_path / "videos" / f"{number}.mp4", num_frames=3)
    entries = [
        {"id": "7", "label": "moving cup", "template": "Moving [something] up"},
        {"id": "9", "template": "Tip it"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(json.dumps({"Tip it": "0", "Moving something up": "1"}))
    flags = {"train_file": tmp_path / "train.json", "video_dir": tmp_path / "videos"}
    videos = load_videos(**flags, class_names_file=tmp_path / "labels.json")["train"]
    assert videos.features["label"].names == ["Tip it", "Moving something up"] and videos["label"] == [1, 0]
    for name in ("7.json", "7.jpg", "9.txt"):  # beside them, and no videos
        (tmp_path / "videos" / name).write_text("{}")
    again = load_videos(**flags)["train"]
    assert [row["video"]["path"].split("/")[-1] for row in again] == ["7.mp4", "9.mp4"]
    write_frames(tmp_path / "videos" / "more" / "9")
    with pytest.raises(ValueError, match=r"which of \['.*videos/9\.mp4', '.*more/9'\] is meant"):
        load_videos(**flags)
    with pytest.raises(FileNotFoundError, match="none of its 2 videos is in"):
        load_videos(**{**flags, "video_dir": tmp_path})["train"] if shutil.rmtree(
            tmp_path / "videos"
        ) is None else None


def test_ucf101(files, tmp_path):
    folder = files[0][1].parents[1]
    (tmp_path / "trainlist01.txt").write_text("".join(f"{p.parent.name}/{p.name} {i + 1}\n" for i, p in files))
    (tmp_path / "testlist01.txt").write_text("".join(f"{p.parent.name}/{p.name}\n" for _, p in files))
    (tmp_path / "classInd.txt").write_text("1 climb\n2 dive in\n")
    lists = {"train_file": tmp_path / "trainlist01.txt", "validation_file": tmp_path / "testlist01.txt"}
    videos = load_videos(**lists, class_names_file=tmp_path / "classInd.txt", video_dir=folder)
    assert read_class_names(tmp_path / "classInd.txt") == CLASSES
    for rows in videos.values():
        assert_holds(rows, lengths(files))


def test_hmdb51(files, tmp_path):
    folder = files[0][1].parents[1]
    (tmp_path / "climb_test_split1.txt").write_text("c0.mp4 1 \nc1.mp4 2\nc2.mp4 0\n")
    (tmp_path / "dive in_test_split1.txt").write_text("d0.mp4 1\nd1.mp4 1\nd2.mp4 2\n")
    lists = {split: tmp_path / "*_test_split1.txt" for split in ("train_file", "validation_file")}
    videos = load_videos(**lists, video_dir=folder)
    assert_holds(videos["train"], [lengths(files)[i] for i in (0, 3, 4)])
    assert_holds(videos["validation"], [lengths(files)[i] for i in (1, 5)])


@pytest.mark.parametrize("label_file", ["cls", "json", "label"])
def test_tars(files, tmp_path, label_file):
    name = (lambda i: json.dumps({"label": CLASSES[i]})) if label_file == "json" else (lambda i: CLASSES[i])
    for shard, part in (("a", files[:4]), ("b", files[4:5]), ("c", files[5:])):
        write_tar(tmp_path / "shards" / f"{shard}.tar", part, label_file, name)
    videos = load_videos(train_dir=tmp_path / "shards")["train"]
    assert_holds(videos, lengths(files))
    by_name = load_videos(str(tmp_path / "shards"), streaming=True)["train"]  # what load_dataset would call webdataset
    assert_holds(by_name, lengths(files))


def test_torn_and_odd_tars(files, tmp_path):
    path = tmp_path / "shards" / "a.tar"
    write_tar(path, files)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="torn"):
        load_videos(train_dir=path.parent)
    write_tar(path, files)
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for header in headers[2], headers[-1]:
        for cut in (header, header + 200):  # `tarfile` takes both for the end of the archive
            path.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=rf"a\.tar: the tar file is torn, .*byte {header} "):
                load_videos(train_dir=path.parent)
        path.write_bytes(whole[: header + 9] + b"\xff" + whole[header + 10 :])
        with pytest.raises(ValueError, match=rf"a\.tar: damaged, .* stands at byte {header}, after a/000"):
            load_videos(train_dir=path.parent)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match=r"several tar files in one"):
        load_videos(train_dir=path.parent)
    write_tar(path, files, label_file="txt")
    with pytest.raises(ValueError, match=r"has no label in \.label, \.json \('label'\) or \.cls"):
        load_videos(train_dir=path.parent)
    assert len(load_videos(train_dir=path.parent, label_column_name="txt")["train"]) == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet(files, tmp_path, streaming):
    write_parquet(tmp_path / "data" / "train-0.parquet", files[:5])
    write_parquet(tmp_path / "data" / "train-1.parquet", files[5:])
    videos = load_videos(str(tmp_path / "data"), streaming=streaming)["train"]
    assert_holds(videos, lengths(files))
    assert "bytes" not in str(videos["video"][0]["bytes"])  # references only
    with pytest.raises(ValueError, match=r"no column 'clip', it has \['video', 'label'\]"):
        load_videos(str(tmp_path / "data"), video_column_name="clip")


def test_parquet_of_plain_bytes(files, tmp_path):
    table = pa.table({"mp4": [path.read_bytes() for _, path in files], "text": [CLASSES[i] for i, _ in files]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "x.parquet", row_group_size=4)
    videos = load_videos(train_dir=tmp_path / "data", video_column_name="mp4", label_column_name="text")
    assert_holds(videos["train"], lengths(files))


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_set_of_files(files, tmp_path, streaming, caplog):
    """A folder stands in for a repository: load_dataset treats both alike."""
    for split in ("train", "test"):
        shutil.copytree(files[0][1].parents[1], tmp_path / "repo" / split)
    videos = load_videos(str(tmp_path / "repo"), streaming=streaming)
    assert_holds(videos["train"], lengths(files))
    assert_holds(videos["validation"], lengths(files))
    assert "no split 'validation', its split 'test' is taken" in caplog.text
    with pytest.raises(ValueError, match=r"has no column class, it has \['video', 'label'\]"):
        load_videos(str(tmp_path / "repo"), label_column_name="class", streaming=streaming)


def test_hub_data_set_of_paths(files, tmp_path):
    """A csv that names the files, which pandas reads as large strings."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.csv").write_text("path,verb\n" + "".join(f"{p},{CLASSES[i]}\n" for i, p in files))
    columns = {"video_column_name": "path", "label_column_name": "verb"}
    assert_holds(load_videos(str(tmp_path / "repo"), **columns)["train"], lengths(files))
    assert_holds(load_videos(str(tmp_path / "repo"), streaming=True, **columns)["train"], lengths(files))


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_cells(files, tmp_path, streaming):
    (tmp_path / "repo").mkdir()
    for line, message in (
        (f"{files[0][1]},", r"no label in rows \[1\] \(1 in all\)"),
        (",jump", r"no video in rows \[1\]"),
    ):
        (tmp_path / "repo" / "train.csv").write_text(f"video,label\n{files[0][1]},run\n{line}\n")
        with pytest.raises(ValueError, match=message):
            load_videos(str(tmp_path / "repo"), streaming=streaming)


def test_torn_and_odd_parquet(files, tmp_path):
    path = tmp_path / "data" / "a.parquet"
    write_parquet(path, files)
    whole = path.read_bytes()
    videos = load_videos(train_dir=path.parent)["train"]
    for damaged in (whole[:-100], whole[:-300] + bytes(250) + whole[-50:], b"PAR1"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.parquet: not a parquet file, or a damaged one"):
            load_videos(train_dir=path.parent)
        with pytest.raises(VideoDecodeError, match=r"a\.parquet: cannot be read"):
            open_video(videos[4])
    pq.write_table(pa.table({"video": [b"x", b"y"], "label": ["a", None]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: row 1 of group 0 has no label in 'label'"):
        load_videos(train_dir=path.parent)


def test_a_changed_shard_is_indexed_again(files, tmp_path):
    write_tar(tmp_path / "shards" / "a.tar", files[:2])
    assert len(load_videos(train_dir=tmp_path / "shards")["train"]) == 2
    write_tar(tmp_path / "shards" / "a.tar", files)
    assert len(load_videos(train_dir=tmp_path / "shards")["train"]) == 6


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_fewer_and_uneven_shards(files, tmp_path, kind, world_size, caplog):
    """Each sample is read once over all ranks and workers, and every rank has as many batches."""
    write = write_tar if kind == "tar" else write_parquet
    write(tmp_path / "shards" / f"a.{kind}", files[:5])
    write(tmp_path / "shards" / f"b.{kind}", files[5:])
    clips = clips_of(load_videos(train_dir=tmp_path / "shards")["train"])
    loaders = [
        ClipLoader(
            clips, batch_size=1, shuffle=True, shuffle_buffer_size=3, rank=r, world_size=world_size, num_workers=2
        )
        for r in range(world_size)
    ]
    assert caplog.text.count(f"dealt out to {2 * world_size} processes") == (kind == "parquet")
    batches = [list(loader) for loader in loaders]
    assert len({len(rank) for rank in batches}) == 1
    ids = [i for rank in batches for batch in rank for i in batch["ids"][~batch["is_padding"]].tolist()]
    assert sorted(ids) == list(range(6))


def test_labels_that_do_not_fit(files, tmp_path):
    (tmp_path / "a.txt").write_text(f"{files[0][1]} run\n")
    (tmp_path / "b.txt").write_text(f"{files[0][1]} walk\n")
    with pytest.raises(ValueError, match=r"labels \['walk'\] \(1 in all\) are not among the 1 classes"):
        load_videos(train_file=tmp_path / "a.txt", validation_file=tmp_path / "b.txt")
    (tmp_path / "b.txt").write_text(f"{files[0][1]} 3\n")
    with pytest.raises(ValueError, match="label 3 is out of range, there are 2 class names"):
        (tmp_path / "names.txt").write_text("x\ny\n")
        load_videos(train_file=tmp_path / "b.txt", class_names_file=tmp_path / "names.txt")


def test_unusable_sources(tmp_path):
    with pytest.raises(ValueError, match=r"exactly one of dataset_name, train_dir, train_file .* got none"):
        load_videos()
    with pytest.raises(ValueError, match=r"got \['train_dir', 'train_file'\]"):
        load_videos(train_dir="a", train_file="b")
    for name, content, message in (
        ("a.txt", "video.mp4\n", r"a\.txt, line 1: expected 'path label', found 'video.mp4'"),
        ("b.csv", "video,label\nx.mp4\n", r"b\.csv, line 2: expected 2 columns"),
        ("c.csv", "video,label\nx.mp4,\n", r"c\.csv, line 2: no video or no label"),
        ("d.csv", "x.mp4,run,a,b\n", r"d\.csv, line 1: start and end must be seconds"),
        ("e.txt", "\n", "is empty"),
        ("f.json", "[1]", "expected entries with 'id' and 'template', found 1"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_list(tmp_path / name, split="train")
    for name in ("nowhere.txt", "*_test_split9.txt"):
        with pytest.raises(FileNotFoundError):
            read_list(tmp_path / name, split="train")


def test_nothing_is_logged_about_good_lists(files, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="hf_i2v")
    (tmp_path / "list.txt").write_text("".join(f"{path} {i}\n" for i, path in files))
    load_videos(train_file=tmp_path / "list.txt")
    assert not caplog.records


def test_shards_and_files_elsewhere(files, tmp_path):
    """Through fsspec, as on the Hub: headers and the ranges of the videos are all that is read of a tar."""
    write_tar(tmp_path / "a.tar", files)
    write_parquet(tmp_path / "a.parquet", files)
    memory = fsspec.filesystem("memory")
    for name in ("a.tar", "a.parquet"):
        memory.pipe(f"/shards/{name}", (tmp_path / name).read_bytes())
    memory.pipe("/video.mp4", files[0][1].read_bytes())
    tar = tar_references([("memory://shards/a.tar", "")], "video", "label")
    parquet = parquet_references([("memory://shards/a.parquet", "")], "video", "label")
    for rows in (list(tar), list(parquet)):
        for row, (label, path) in zip(rows, files, strict=True):
            row = {"row_group": None, **row, "video": {"path": row["path"], "bytes": None}}
            with open_video(row) as video:
                assert torch.equal(video.frames([0, 4]), decode_frames(path, [0, 4])) and row["label"] == str(label)
    with open_video({"video": {"path": "memory://video.mp4", "bytes": None}}) as video:
        assert video.num_frames == 5
    memory.rm("/shards/a.tar")
    with pytest.raises(VideoDecodeError, match=r"memory://shards/a\.tar: cannot be read"):
        open_video(
            {
                **rows[0],
                "shard": "memory://shards/a.tar",
                "row_group": None,
                "size": 9,
                "video": {"path": "x", "bytes": None},
            }
        )
