"""`examples/predict_videos.py`: rows equal to a slow reference, whoever makes them and however often it is killed."""

import csv
import json
import os
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
import torch
from method_table import finish
from peft import get_peft_model
from tiny import tiny_image_model, write_moving_texture
from training import command_line, load_script, write_shards, write_video_folders
from transformers import pipeline

from hf_i2v import I2VForVideoClassification, I2VModel, ZeroI2VConfig
from hf_i2v.archives import events_of
from hf_i2v.data import Preprocessing, TooManyBadVideosError, VideoDecodeError, decode_frames, eval_transform
from hf_i2v.data.archives import load_archive
from hf_i2v.data.decode import VideoReader
from hf_i2v.data.windows import Windows, windows_of

LABELS = {0: "=left", 1: "right", 2: "up"}
RATE = 8
LONG = 101  # frames of the long video: 12.625 seconds


def write_long(path: Path, num_frames: int = LONG) -> Path:
    """A video whose brightness wanders; a key frame every 12 frames, B-frames between them."""
    noise = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "12", "bf": "2", "qp": "18"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for t in range(num_frames):
            pixels = noise.integers(-20, 20, (16, 32, 3)) + 120 + 100 * np.sin(t / 9)
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a folder with a long video, three short ones and a broken one, and class folders of 14 videos."""
    place = tmp_path_factory.mktemp("archives")
    tiny_image_model("dinov2", image_size=32).save_pretrained(place / "image")  # crops are smaller
    look = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    look.image_processor().save_pretrained(place / "image")
    torch.manual_seed(0)
    model = I2VForVideoClassification.from_image_model(place / "image", num_frames=4, id2label=LABELS)
    model.classifier.weight.data.mul_(30)
    model.save_pretrained(place / "model")
    for name in ("b", "below/c"):
        (place / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_moving_texture(place / "videos" / f"{name}.mp4")
    write_long(place / "videos" / "a.mp4")
    write_long(place / "videos" / "short.mp4", num_frames=3)
    (place / "videos" / "broken.mp4").write_bytes(b"no video at all")
    write_video_folders(place / "many", train=7, validation=1)
    return place


def predict(place: Path, output_dir: Path, **options) -> list[dict]:
    """The rows of a run in this process."""
    defaults = {"model": place / "model", "videos": place / "videos", "dataloader_num_workers": 0, "batch_size": 3}
    load_script("predict_videos").main(command_line({**defaults, "output_dir": output_dir, **options}))
    (table,) = [path for path in output_dir.glob("*.parquet") if path.stem != "events"]
    return pq.read_table(table).to_pylist()


def scores_of(row: dict) -> dict[str, float]:
    return {row[f"class{i}"]: row[f"score{i}"] for i in range(1, 4)}


@pytest.fixture(scope="module")
def model(place):
    return I2VForVideoClassification.from_pretrained(place / "model").eval()


@pytest.fixture(scope="module")
def transform(model):
    return eval_transform(**vars(Preprocessing(**model.config.preprocessing)))


def test_a_row_of_a_whole_video_is_the_answer_of_the_pipeline(place, tmp_path):
    rows = predict(place, tmp_path / "out", dataloader_num_workers=1)
    names = [f"{place}/videos/{name}.mp4" for name in ("a", "b", "below/c", "short")]
    assert [row["video"] for row in rows] == names and list(rows[0]) == ["video", *_best_columns()]
    classify = pipeline("video-classification", model=str(place / "model"))
    for row in rows:
        expected = {one["label"]: one["score"] for one in classify(row["video"])}
        assert list(scores_of(row)) == list(expected)
        assert scores_of(row) == pytest.approx(expected, abs=1e-6)
    (bad,) = map(json.loads, (tmp_path / "out" / "bad_videos.jsonl").read_text().splitlines())
    assert bad["path"].endswith("broken.mp4") and "not a video file" in bad["reason"]


def _best_columns() -> list[str]:
    return [f"{column}{i}" for i in range(1, 4) for column in ("class", "score")]


@torch.no_grad()
def slow_windows(model, transform, path: str, window: float, stride: float) -> list[tuple]:
    """Start, end and scores of each window: everything decoded, every window cut out anew."""
    with VideoReader(path) as video:
        times, num_frames = video.times(), video.num_frames
    frames_TChw = decode_frames(path, range(num_frames))
    length, found = num_frames / RATE, []
    starts = [0.0]
    while starts[-1] + stride + window <= length:
        starts.append(starts[-1] + stride)
    if length > window and starts[-1] + window < length:
        starts.append(length - window)
    for start in starts:
        inside = [i for i, second in enumerate(times) if start <= second < start + window]
        edges = [k * len(inside) // 4 for k in range(5)]
        chosen = [inside[(a + b) // 2] for a, b in pairwise(edges)]
        if len(inside) < 4:
            chosen = (inside + inside[-1:] * 4)[:4]
        score_K = model(transform(frames_TChw[chosen])[None]).logits[0].softmax(-1)
        found.append((start, min(start + window, length), dict(zip(LABELS.values(), score_K.tolist(), strict=True))))
    return found


@pytest.mark.parametrize(("window", "stride"), [(2.0, 1.0), (1.5, 2.0), (0.25, 0.5), (1.0, 0.0625), (99.0, 1.0)])
def test_windows_equal_decoding_everything(place, tmp_path, model, transform, window, stride):
    rows = predict(place, tmp_path / "out", window=window, stride=stride)
    for name in ("a", "b", "short"):
        path = f"{place}/videos/{name}.mp4"
        own = [row for row in rows if row["video"] == path]
        expected = slow_windows(model, transform, path, window, stride)
        assert [(row["start"], row["end"]) for row in own] == [pytest.approx(one[:2]) for one in expected]
        for row, (_, _, scores) in zip(own, expected, strict=True):
            assert scores_of(row) == pytest.approx(scores, abs=1e-5)
    assert len({row["video"] for row in rows}) == 4


def test_one_decode_serves_all_windows(place, tmp_path, monkeypatch):
    """Of 26 overlapping windows, each frame that one of them takes is decoded once, and no file is opened twice."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").symlink_to(place / "videos/a.mp4")
    decoded, shown = [], []
    parts, convert = VideoReader._decode_parts, VideoReader._to_rgb

    def counted(self, positions):
        for frame, is_damaged in parts(self, positions):
            decoded.append(frame.pts)
            yield frame, is_damaged

    monkeypatch.setattr(VideoReader, "_decode_parts", counted)
    monkeypatch.setattr(VideoReader, "_to_rgb", lambda self, *args: shown.append(1) or convert(self, *args))
    rows = predict(place, tmp_path / "out", videos=tmp_path / "videos", window=2.0, stride=0.43, batch_size=4)
    times = [i / RATE for i in range(LONG)]
    windows = list(windows_of(times, Windows(2.0, 0.43), num_frames=4))
    assert len(rows) == len(windows) == 26
    assert 50 < len(decoded) == len(set(decoded)) <= LONG
    assert len(shown) == len({number for window in windows for number in window.frames}) < 4 * len(windows)


def test_windows_of_odd_times():
    def of(times, window=1.0, stride=1.0, **options):
        found = windows_of(times, Windows(window, stride), num_frames=2, **options)
        return [(round(one.start, 6), round(one.end, 6), one.frames) for one in found]

    assert of([0.0]) == [(0.0, 0.0, [0, 0])]
    tenths = [i / 10 for i in range(7)]
    assert of(tenths, window=0.3, stride=0.3) == [(0, 0.3, [0, 2]), (0.3, 0.6, [3, 5]), (0.4, 0.7, [4, 6])]
    # nothing new is shown from 0.5 to 3: the frame on show stands for it
    assert of([0.0, 0.5, 3.0, 3.5])[1:3] == [(1.0, 2.0, [1, 1]), (2.0, 3.0, [1, 1])]
    assert of(tenths, window=0.2, stride=0.2, start=0.1, end=0.4) == [(0.1, 0.3, [1, 2]), (0.2, 0.4, [2, 3])]
    for wrong in ({"window": 0.0}, {"stride": -1.0}):
        with pytest.raises(ValueError, match="must be above 0"):
            of(tenths, **wrong)


def test_events():
    windows = [
        (0.0, 2.0, {"run": 0.9, "sit": 0.1}),
        (1.0, 3.0, {"run": 0.7, "sit": 0.6}),
        (2.0, 4.0, {"run": 0.2, "sit": 0.8}),
        (3.0, 5.0, {"run": 0.6}),
        (9.0, 11.0, {"run": 0.6}),  # a gap before it
    ]
    assert [(*event[:3], round(event.score, 6)) for event in events_of(windows, threshold=0.5)] == [
        (0.0, 3.0, "run", 0.8),
        (1.0, 4.0, "sit", 0.7),
        (3.0, 5.0, "run", 0.6),
        (9.0, 11.0, "run", 0.6),
    ]
    assert [event.label for event in events_of(windows, threshold=0.5, min_length=3.0)] == ["run", "sit"]


def test_csv_and_events(place, tmp_path, model, transform):
    options = {"window": 2.0, "stride": 1.0, "event_threshold": 0.4, "min_event_length": 3.0}
    parquet = predict(place, tmp_path / "out", **options)
    predict(place, tmp_path / "out", **options, output_format="csv")  # of the same parts
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(parquet)
    for row, other in zip(rows, parquet, strict=True):
        for name, value in other.items():
            cell = row[name].removeprefix("'")  # so that a spreadsheet runs no name as a formula
            assert cell == value if isinstance(value, str) else float(cell) == pytest.approx(value, abs=1e-5)
    assert "'=left" in {row["class1"] for row in rows} | {row["class2"] for row in rows}

    found = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    expected = []
    for name in ("a", "b", "below/c", "short"):
        path = f"{place}/videos/{name}.mp4"
        windows = slow_windows(model, transform, path, 2.0, 1.0)
        expected += [(path, *event) for event in events_of(windows, threshold=0.4, min_length=3.0)]
    assert expected and [tuple(event.values())[:4] for event in found] == [event[:4] for event in expected]
    assert [event["score"] for event in found] == pytest.approx([event[4] for event in expected], abs=1e-5)
    with open(tmp_path / "out/events.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + len(found)


@torch.no_grad()
def test_features(place, tmp_path, model, transform):
    rows = predict(place, tmp_path / "out", features=True)
    assert list(rows[0]) == ["video", "feature"] and len(rows) == 4
    bare = I2VModel.from_pretrained(place / "model").eval()
    frames = decode_frames(rows[1]["video"], [3, 11, 18, 26])
    assert rows[1]["feature"] == pytest.approx(bare(transform(frames)[None]).pooler_output[0].tolist(), abs=1e-5)
    predict(place, tmp_path / "out", features=True, output_format="csv")
    with open(tmp_path / "out/features.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [np.float32(table[1][f"feature{i}"]) for i in range(1, 33)] == rows[1]["feature"]

    halves = predict(place, tmp_path / "half", features=True, dtype="bfloat16")
    assert halves[1]["feature"] != rows[1]["feature"]
    assert halves[1]["feature"] == pytest.approx(rows[1]["feature"], abs=0.1)


def _run(argv: list[str], rank: int | None = None, meeting: Path | None = None) -> None:
    """The script with parts of few rows, slowly; as one of two processes, if there is a meeting place."""
    script = load_script("predict_videos")
    from hf_i2v.archives import parts

    parts.PART_ROWS = 4
    if meeting is not None:
        os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"ACCELERATE_USE_CPU": "true"}
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    answers = script.answers

    def slowly(*args):
        time.sleep(0.1)
        return answers(*args)

    script.answers = slowly
    script.main(argv)


def start(argv: list[str], log: Path, meeting: Path | None = None) -> list:
    ranks = [None] if meeting is None else [0, 1]
    return [processes.start(_run, argv, rank, meeting, log=log) for rank in ranks]


@pytest.mark.parametrize("rows", ["videos", "windows"])
def test_killed_and_started_again_with_other_processes(place, tmp_path, rows):
    """SIGKILL in one process, then in two, then to the end in two: the table of a run that was left alone."""
    common = {"model": place / "model", "batch_size": 2, "min_bad_videos": 99, "dataloader_num_workers": 1}
    if rows == "videos":
        common["videos"] = place / "many"
        moments = ["000001-000000", "000004-000000"]
    else:
        common |= {"videos": place / "videos", "window": 2.0, "stride": 0.5, "event_threshold": 0.4}
        moments = ["000000-000001", "000000-000003"]  # in the middle of the long video
    log, alone, killed = tmp_path / "log", tmp_path / "alone", tmp_path / "killed"
    processes.finish(*start(command_line(common | {"output_dir": alone}), log), log=log)
    argv = command_line(common | {"output_dir": killed})
    part = killed / "parts" / f"{moments[0]}.parquet"
    processes.kill_when(part, 0.02, *start(argv, log), log=log)
    before = {path.name: path.stat().st_mtime_ns for path in (killed / "parts").glob("*.parquet")}
    part = killed / "parts" / f"{moments[1]}.parquet"
    processes.kill_when(part, 0.02, *start(argv, log, tmp_path / "meeting1"), log=log)
    processes.finish(*start(argv, log, tmp_path / "meeting2"), log=log)

    tables = sorted(path.name for path in alone.iterdir() if path.suffix == ".parquet")
    assert len(tables) == (1 if rows == "videos" else 2)
    for name in tables:
        assert pq.read_table(killed / name).equals(pq.read_table(alone / name)), name
    found = pq.read_table(killed / "predictions.parquet").to_pylist()
    assert len({(row["video"], row.get("start")) for row in found}) == len(found) >= 16
    assert (killed / "bad_videos.jsonl").read_text() == (alone / "bad_videos.jsonl").read_text()
    now = {path.name: path.stat().st_mtime_ns for path in (killed / "parts").glob("*.parquet")}
    assert before.items() <= now.items()  # what was done was not done again
    assert not list((killed / "parts").glob(".*"))
    if rows == "videos":  # of windows, no video need be whole by then
        assert "going on with" in log.read_text()


def test_two_processes_equal_one(place, tmp_path):
    common = {"model": place / "model", "videos": place / "many", "batch_size": 2, "dataloader_num_workers": 0}
    log = tmp_path / "log"
    argv = command_line(common | {"output_dir": tmp_path / "two"})
    processes.finish(*start(argv, log, tmp_path / "meeting"), log=log)
    rows = predict(place, tmp_path / "one", **common)
    assert pq.read_table(tmp_path / "two/predictions.parquet").to_pylist() == rows and len(rows) == 16


def test_sources_need_no_labels(place, tmp_path):
    """A list with and without labels, csv, tars, one file: the videos of the folder."""
    many = sorted((place / "many").rglob("*.mp4"))
    (tmp_path / "a.txt").write_text("".join(f"{path}\n" for path in many))
    (tmp_path / "b.txt").write_text("".join(f"{path} dark\n" for path in many))
    (tmp_path / "c.csv").write_text("video\n" + "".join(f"{path}\n" for path in many))
    (tmp_path / "d.csv").write_text("".join(f"{path},dark\n" for path in many))
    (tmp_path / "e.csv").write_text("video,start,end\n" + "".join(f"{path},0.1,0.5\n" for path in many))
    for source in ("a.txt", "b.txt", "c.csv", "d.csv", "e.csv"):
        rows = load_archive(tmp_path / source)
        assert [row["video"]["path"] for row in rows] == [str(path) for path in many], source
        assert "label" not in rows.column_names and ("start" in rows.column_names) == (source == "e.csv")
    assert [row["video"]["path"] for row in load_archive(many[0])] == [str(many[0])]
    shards = write_shards(place / "many", tmp_path / "shards")
    assert len(load_archive(shards)) == len(load_archive(dataset_name=shards, dataset_split="train")) + 2 == 16

    (tmp_path / "relative.csv").write_text("video,start,end\nbelow/c.mp4,1,3\nb.mp4,,\n")
    options = {"videos": tmp_path / "relative.csv", "video_dir": place / "videos", "window": 1.0}
    rows = predict(place, tmp_path / "out", **options)
    assert [(row["start"], row["end"]) for row in rows[:3]] == [(1.0, 2.0), (2.0, 3.0), (0.0, 1.0)]
    rows = predict(place, tmp_path / "shards-out", videos=shards)
    assert len(rows) == 16 and rows[0]["shard"].endswith("train-000.tar") and rows[0]["video"] == "0000.mp4"


def test_sources_that_are_none(place, tmp_path):
    with pytest.raises(ValueError, match="exactly one of videos"):
        load_archive()
    with pytest.raises(FileNotFoundError, match="no such"):
        load_archive(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no video in .*: expected files named \.mp4"):
        load_archive(tmp_path)
    with pytest.raises(ValueError, match=r"dataset_split \(test\) goes with dataset_name"):
        load_archive(tmp_path, dataset_split="test")
    shards = write_shards(place / "many", tmp_path / "shards")
    with pytest.raises(ValueError, match=r"has the splits .*'train'.*name one"):
        load_archive(dataset_name=shards)
    write_long(shards / "one.mp4", 3)
    with pytest.raises(ValueError, match="holds both shards"):
        load_archive(shards)
    (tmp_path / "bad.csv").write_text("path,label\na.mp4,x\n")
    with pytest.raises(ValueError, match=r"no columns 'video', found \['path', 'label'\]; see --video_column_name$"):
        load_archive(tmp_path / "bad.csv")
    (tmp_path / "bad.txt").write_text("one\n")
    with pytest.raises(ValueError, match="line 1: expected the path of a video"):
        load_archive(tmp_path / "bad.txt")


def test_bad_videos_end_a_run_by_policy_only(place, tmp_path):
    with pytest.raises(VideoDecodeError, match=r"broken\.mp4"):
        predict(place, tmp_path / "error", on_bad_video="error")
    with pytest.raises(TooManyBadVideosError, match=r"1 of 5 videos cannot be read"):
        predict(place, tmp_path / "many", min_bad_videos=1)
    rows = predict(place, tmp_path / "many", max_bad_fraction=0.5, min_bad_videos=1)  # goes on
    assert len(rows) == 4
    rows = predict(place, tmp_path / "without", exclude=tmp_path / "many/bad_videos.jsonl", min_bad_videos=1)
    assert len(rows) == 4 and (tmp_path / "without/bad_videos.jsonl").read_text() == ""


def test_a_video_that_is_damaged_behind_its_middle(place, tmp_path):
    """The windows before the damage are in the table, the video is in the list."""
    (tmp_path / "videos").mkdir()
    content = bytearray((place / "videos/a.mp4").read_bytes())
    start = content.index(b"mdat") + 4
    middle = start + (content.index(b"moov") - start) * 2 // 3
    content[middle : middle + 200] = bytes(200)
    (tmp_path / "videos/a.mp4").write_bytes(content)
    rows = predict(place, tmp_path / "out", videos=tmp_path / "videos", window=1.0)
    (bad,) = map(json.loads, (tmp_path / "out/bad_videos.jsonl").read_text().splitlines())
    assert 4 <= len(rows) < 12 and f"({len(rows)} windows before that could be read)" in bad["reason"]
    whole = predict(place, tmp_path / "whole", window=1.0)
    assert [scores_of(row) for row in rows] == [pytest.approx(scores_of(row), abs=1e-6) for row in whole[: len(rows)]]


@pytest.mark.parametrize("options", [{}, {"frame_stride": 1}])
def test_time_stamps_that_make_millions_of_windows(place, tmp_path, options):
    """Five frames, the last of which is due years later: a bad video, before its windows are made."""
    (tmp_path / "videos").mkdir()
    with av.open(str(tmp_path / "videos/years.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        packets = [packet for t in range(5) for packet in stream.encode(av.VideoFrame(32, 16, "yuv420p"))]
        for number, packet in enumerate(packets + stream.encode()):
            if packet.size and number == 4:
                packet.pts = packet.dts = packet.pts + round(1e8 / packet.time_base)
            container.mux(packet)
    if options:
        base = I2VForVideoClassification.from_pretrained(place / "model")
        options = {**options, "model": tmp_path / "causal"}
        finish(get_peft_model(base, ZeroI2VConfig(causal=True))).save_pretrained(tmp_path / "causal")
    assert predict(place, tmp_path / "out", videos=tmp_path / "videos", window=2.0, stride=1.0, **options) == []
    (bad,) = map(json.loads, (tmp_path / "out/bad_videos.jsonl").read_text().splitlines())
    assert "5 frames are spread over 1e+08 seconds" in bad["reason"] and "ReadLimits.packets" in bad["reason"]


def test_what_cannot_be_asked_for(place, tmp_path, capsys):
    predict(place, tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds another run: stride was None, is 2\.0; window was None, is 2\.0"):
        predict(place, tmp_path / "out", window=2.0, stride=2.0)
    with pytest.raises(ValueError, match=r"without being among the best --top_k \(1\); keep at least 2"):
        predict(place, tmp_path / "events", window=2.0, event_threshold=0.4, top_k=1)
    with pytest.raises(ValueError, match=r"window \(0.0\) and stride \(0.0\) .* must be above 0"):
        predict(place, tmp_path / "none", window=0.0)
    for options, message in {
        ("--stride", "1"): "--stride needs --window",
        ("--frame_stride", "1"): "--frame_stride needs --window",
        ("--event_threshold", "0.5"): "give --window, no --features",
        ("--window", "1", "--event_threshold", "2"): r"must be a score in (0, 1]",
        ("--min_event_length", "1"): "needs --event_threshold",
    }.items():
        with pytest.raises(SystemExit):
            load_script("predict_videos").parse_args(["--model", "m", "--output_dir", "o", *options])
        assert message in capsys.readouterr().err
    part = sorted((tmp_path / "out/parts").iterdir())[0]
    part.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"000000-000000\.parquet is damaged .* Remove it"):
        predict(place, tmp_path / "out")
