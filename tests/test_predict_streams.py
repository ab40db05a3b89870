"""Windows of a causal model in `examples/predict_videos.py`: read off a stream, equal to the clip of all frames."""

import json
from pathlib import Path

import processes
import pyarrow.parquet as pq
import pytest
import torch
from method_table import finish
from peft import get_peft_model
from test_predict_videos import LABELS, LONG, RATE, predict, scores_of, start, write_long
from tiny import randomize_adapter, tiny_image_model, write_moving_texture
from training import command_line

from hf_i2v import AIMConfig, I2VForVideoClassification, I2VModel, STAdapterConfig, ZeroI2VConfig
from hf_i2v.data import Preprocessing, decode_frames, eval_transform
from hf_i2v.data.decode import VideoReader
from hf_i2v.data.windows import Windows, stream_of

T = 4
METHODS = {"zeroi2v": ZeroI2VConfig, "st_adapter": STAdapterConfig, "aim": AIMConfig}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Causal models and one that is not, a folder with a long video, a short one and a broken one."""
    place = tmp_path_factory.mktemp("streams")
    tiny_image_model("dinov2", image_size=32).save_pretrained(place / "image")  # crops are smaller
    look = Preprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    look.image_processor().save_pretrained(place / "image")
    for name, config in METHODS.items():
        torch.manual_seed(0)
        base = I2VForVideoClassification.from_image_model(place / "image", num_frames=T, id2label=LABELS)
        adapted = randomize_adapter(get_peft_model(base, config(causal=True)))
        adapted.save_pretrained(place / f"{name}-adapter")
        finish(adapted).save_pretrained(place / name)
    base = I2VForVideoClassification.from_image_model(place / "image", num_frames=T, id2label=LABELS)
    base.save_pretrained(place / "clips")
    (place / "videos").mkdir()
    write_long(place / "videos/a.mp4")
    write_long(place / "videos/short.mp4", num_frames=3)
    write_moving_texture(place / "videos/b.mp4")
    (place / "videos/broken.mp4").write_bytes(b"no video at all")
    return place


def streamed(place: Path, output_dir: Path, method: str = "zeroi2v", **options) -> list[dict]:
    return predict(place, output_dir, model=place / method, **options)


def taken_by(window: float, frame_stride: int | None, length: float) -> list[tuple[float, int]]:
    """When each frame of the stream is due, and its number, of a video of so many seconds."""
    num_frames = round(length * RATE)
    if frame_stride is not None:
        return [(number / RATE, number) for number in range(0, num_frames, frame_stride)]
    apart = min(window, length) / T
    due = [(k + 0.5) * apart for k in range(num_frames * 100) if (k + 0.5) * apart < length]
    return [(second, int(second * RATE)) for second in due]


@torch.no_grad()
def expected_windows(model, path: str, window: float, stride: float, frame_stride: int | None) -> list[tuple]:
    """Start, end and what the model gives for the clip of all frames of the stream up to the window's end."""
    with VideoReader(path) as video:
        length = video.num_frames / RATE
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    taken, found = taken_by(window, frame_stride, length), []
    starts = [k * stride for k in range(1000) if k == 0 or k * stride + window <= length]
    if starts[-1] + window < length:
        starts.append(length - window)
    for begin in starts:
        end = min(begin + window, length)
        numbers = [number for second, number in taken if second < end]
        clip_1TChw = transform(decode_frames(path, numbers))[None]
        found.append((begin, end, model(clip_1TChw)))
    return found


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("zeroi2v", {"window": 2.0, "stride": 1.0}),
        ("zeroi2v", {"window": 1.5, "stride": 2.0, "frame_stride": 3}),
        ("zeroi2v", {"window": 0.25, "stride": 0.5, "batch_size": 1}),  # faster than the video: frames stand still
        ("zeroi2v", {"window": 99.0, "stride": 1.0}),
        ("zeroi2v-adapter", {"window": 3.0, "stride": 0.75, "frame_stride": 2, "batch_size": 2}),
        ("st_adapter", {"window": 2.0, "stride": 1.0, "batch_size": 1}),
        ("aim", {"window": 2.0, "stride": 1.0, "frame_stride": 1}),
    ],
)
def test_a_window_equals_the_clip_of_all_frames_so_far(place, tmp_path, method, options):
    rows = streamed(place, tmp_path / "out", method, **options)
    model = I2VForVideoClassification.from_pretrained(place / method.removesuffix("-adapter")).eval()
    for name in ("a", "b", "short"):
        path = f"{place}/videos/{name}.mp4"
        own = [row for row in rows if row["video"] == path]
        where = (options["window"], options["stride"], options.get("frame_stride"))
        expected = expected_windows(model, path, *where)
        assert [(row["start"], row["end"]) for row in own] == [pytest.approx(one[:2]) for one in expected]
        for row, (_, _, outputs) in zip(own, expected, strict=True):
            score_K = outputs.logits[0].softmax(-1).tolist()
            assert scores_of(row) == pytest.approx(dict(zip(LABELS.values(), score_K, strict=True)), abs=1e-5)
    (bad,) = map(json.loads, (tmp_path / "out/bad_videos.jsonl").read_text().splitlines())
    assert bad["path"].endswith("broken.mp4")


def test_features_of_windows(place, tmp_path):
    rows = streamed(place, tmp_path / "out", "st_adapter", window=2.0, stride=1.0, features=True)
    model = I2VModel.from_pretrained(place / "st_adapter").eval()
    expected = expected_windows(model, f"{place}/videos/a.mp4", 2.0, 1.0, None)
    own = [row for row in rows if row["video"].endswith("a.mp4")]
    for row, (_, _, outputs) in zip(own, expected, strict=True):
        assert row["feature"] == pytest.approx(outputs.pooler_output[0].tolist(), abs=1e-4)


def test_a_frame_goes_through_the_model_once(place, tmp_path, monkeypatch):
    """Twelve windows of 2 s every second: 101 frames at 8 a second, of which the model takes every second one."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a.mp4").symlink_to(place / "videos/a.mp4")
    seen, step, convert = [], I2VForVideoClassification.step, VideoReader._to_rgb
    decoded = []
    monkeypatch.setattr(
        I2VForVideoClassification,
        "step",
        lambda self, frames, state: seen.append(len(frames)) or step(self, frames, state),
    )
    monkeypatch.setattr(VideoReader, "_to_rgb", lambda self, *args: decoded.append(1) or convert(self, *args))
    options = {"videos": tmp_path / "videos", "window": 2.0, "stride": 1.0, "frame_stride": 2}
    assert len(streamed(place, tmp_path / "out", **options)) == 12
    assert len(seen) == len(decoded) == -(-LONG // 2)


def test_the_part_of_a_video_is_its_stream(place, tmp_path):
    (tmp_path / "list.csv").write_text(f"video,start,end\n{place}/videos/a.mp4,2,7\n")
    rows = streamed(place, tmp_path / "out", videos=tmp_path / "list.csv", window=2.0, stride=2.0, frame_stride=2)
    assert [(row["start"], row["end"]) for row in rows] == [(2.0, 4.0), (4.0, 6.0), (5.0, 7.0)]
    model = I2VForVideoClassification.from_pretrained(place / "zeroi2v").eval()
    transform = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))
    for row in rows:
        frames = decode_frames(f"{place}/videos/a.mp4", range(16, round(RATE * row["end"]), 2))
        with torch.no_grad():
            score_K = model(transform(frames)[None]).logits[0].softmax(-1).tolist()
        assert scores_of(row) == pytest.approx(dict(zip(LABELS.values(), score_K, strict=True)), abs=1e-5)


def test_which_frames_a_stream_takes():
    tenths = [i / 10 for i in range(10)]
    two = Windows(0.4, 0.2)
    taken, windows = stream_of(tenths, two, num_frames=2)
    assert taken == [1, 3, 5, 7, 9]
    assert [(round(w.start, 6), round(w.end, 6), w.num_seen) for w in windows] == [
        (0.0, 0.4, 2),
        (0.2, 0.6, 3),
        (0.4, 0.8, 4),
        (0.6, 1.0, 5),
    ]
    assert stream_of(tenths, two, num_frames=2, frame_stride=3)[0] == [0, 3, 6, 9]
    assert stream_of(tenths, two, num_frames=2, frame_stride=3, start=0.2, end=0.7)[0] == [2, 5]
    assert stream_of(tenths, two, num_frames=8)[0][:6] == [0, 0, 1, 1, 2, 2]  # on show for two segments each
    assert stream_of(tenths, Windows(9.0, 1.0), num_frames=5) == ([1, 3, 5, 7, 9], [(0.0, 1.0, 5)])
    assert stream_of([0.0], two, num_frames=2) == ([0], [(0.0, 0.0, 1)])
    assert stream_of([0.0], two, num_frames=2, frame_stride=2) == ([0], [(0.0, 0.0, 1)])
    assert stream_of(tenths, Windows(0.01, 0.3), num_frames=2, frame_stride=4)[0] == [0, 4, 8]


def test_killed_in_the_middle_of_a_stream(place, tmp_path):
    common = {"model": place / "zeroi2v", "videos": place / "videos", "min_bad_videos": 99, "batch_size": 1}
    common |= {"window": 2.0, "stride": 0.5, "dataloader_num_workers": 1}
    log, killed = tmp_path / "log", tmp_path / "killed"
    part = killed / "parts/000000-000001.parquet"
    argv = command_line(common | {"output_dir": killed})
    processes.kill_when(part, 0.02, *start(argv, log), log=log)
    processes.finish(*start(argv, log, tmp_path / "meeting"), log=log)
    processes.finish(*start(command_line(common | {"output_dir": tmp_path / "alone"}), log), log=log)
    rows, alone = (pq.read_table(run / "predictions.parquet").to_pylist() for run in (killed, tmp_path / "alone"))
    assert [(row["video"], row["start"]) for row in rows] == [(row["video"], row["start"]) for row in alone]
    for row, other in zip(rows, alone, strict=True):  # two processes have fewer threads each, which round differently
        assert scores_of(row) == pytest.approx(scores_of(other), abs=1e-6)
    assert len(rows) > 20


def test_what_cannot_be_asked_of_a_stream(place, tmp_path):
    with pytest.raises(ValueError, match=r"--frame_stride \(2\) .* is not causal"):
        streamed(place, tmp_path / "out", "clips", window=2.0, frame_stride=2)
    streamed(place, tmp_path / "out", window=2.0)
    with pytest.raises(ValueError, match="frame_stride was None, is 2"):
        streamed(place, tmp_path / "out", window=2.0, frame_stride=2)
