"""Live sources, what a model says about their frames, and the script that shows it."""

import csv
import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from live_servers import http_server, rtsp_server, send, write_stream
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model, write_moving_texture
from training import load_script

from hf_i2v import I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.data import LiveFrames, Preprocessing, ReadLimits, VideoDecodeError, VideoReader, eval_transform
from hf_i2v.data.live_media import LIVE_FORMATS, LIVE_PROTOCOLS
from hf_i2v.live import LiveClassifier

NAMES = {0: "=left", 1: "right", 2: "up"}


def tiny_model(*, causal: bool = True) -> I2VForVideoClassification:
    wanted = Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
    model = I2VForVideoClassification.from_image_model(
        tiny_image_model("clip"), num_frames=4, id2label=NAMES, image_processor=wanted.image_processor()
    )
    model = randomize_adapter(get_peft_model(model, ZeroI2VConfig(causal=causal)))
    return model.eval().merge_and_unload()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A saved model, a video and two transport streams."""
    folder = tmp_path_factory.mktemp("live")
    model.save_pretrained(folder / "model")
    write_moving_texture(folder / "video.mp4")
    write_stream(folder / "dark.ts", 20)
    write_stream(folder / "light.ts", 200, starts_at=1000)
    return folder


def brightness(frames) -> list[int]:
    return [round(float(frame.picture_Chw.float().mean())) for frame in frames]


# Sources


def test_of_a_file_nothing_is_dropped(folder):
    taken = []
    with LiveFrames(str(folder / "video.mp4")) as frames:
        for frame in frames:
            if not taken:
                wait_until(lambda: frames.num_read > 3)  # the reader is ahead as far as it may
            taken.append(frame)
    with VideoReader(folder / "video.mp4") as video:
        assert torch.equal(torch.stack([frame.picture_Chw for frame in taken]), video.frames(range(video.num_frames)))
        assert [frame.seconds for frame in taken] == pytest.approx(video.times())
    assert [frame.number for frame in taken] == list(range(30))
    assert (frames.num_read, frames.num_dropped, frames.num_damaged) == (30, 0, 0)


def test_a_slow_caller_gets_the_newest_frames(folder):
    content = (folder / "dark.ts").read_bytes()
    with http_server(lambda handler, _: send(handler, content)) as url, LiveFrames(url) as frames:
        taken = []
        for frame in frames:
            if not taken:
                wait_until(lambda: frames.num_read == 24)
            taken.append(frame)
    assert [frame.number for frame in taken[1:]] == [21, 22, 23]
    assert frames.num_dropped == 24 - len(taken) == 20
    assert taken[-1].seconds == pytest.approx(23 / 25)


def test_a_file_in_real_time_drops_too(folder):
    began = time.monotonic()
    with LiveFrames(str(folder / "video.mp4"), realtime=True) as frames:
        for number, _ in enumerate(frames):
            if number == 0:
                wait_until(lambda: frames.num_read >= 8)  # a reader that is late gives several at once
                break
    assert frames.num_dropped >= 3
    assert time.monotonic() - began >= 7 / 8  # never before it is due


def test_a_stream_that_breaks_is_connected_to_anew(folder):
    dark, light = ((folder / f"{name}.ts").read_bytes() for name in ("dark", "light"))

    def respond(handler, number):
        if number == 0:
            send(handler, dark[: len(dark) // 2], says_length=False)  # in the middle of a packet
        elif number == 1:
            handler.send_error(503)
        else:
            send(handler, light)

    taken = []
    with http_server(respond) as url, LiveFrames(url, first_wait=0.01) as frames:
        for frame in frames:
            taken.append(frame)
    assert [frame.number for frame in taken] == sorted({frame.number for frame in taken})
    values = brightness(taken)
    assert all((value > 100) == (frame.connection == 1) for frame, value in zip(taken, values, strict=True))
    assert frames.num_reconnects == taken[-1].connection == 1
    seconds = [frame.seconds for frame in taken]
    assert seconds == sorted(seconds) and seconds[-1] < 500  # the clocks of the two connections differ by 1000 s


def test_a_stream_that_breaks_for_good_is_given_up(folder):
    content, asked = (folder / "dark.ts").read_bytes(), []

    def respond(handler, number):
        asked.append(number)
        send(handler, content, says_length=False)

    taken = []
    reason = r"/stream: the stream has ended \(after 2 attempts to connect anew\)"
    with (
        http_server(respond) as url,
        pytest.raises(VideoDecodeError, match=reason),
        LiveFrames(url, first_wait=0.01, max_reconnects=2) as frames,
    ):
        for frame in frames:
            taken.append(frame)
    assert len(asked) == 3 and taken[-1].connection == frames.num_reconnects == 2


@pytest.mark.parametrize("says_more", [False, True], ids=["nothing", "no pictures"])
def test_a_stream_without_pictures_counts_as_broken(folder, says_more):
    content = (folder / "dark.ts").read_bytes()
    for seconds in (0.2, 1, 5):  # a busy machine may take longer than the shortest for the first picture
        done = threading.Event()

        def respond(handler, _, done=done):
            send(handler, content, says_length=False)
            while not done.wait(0.05):
                if says_more:
                    handler.wfile.write(b"\x47\x1f\xff\x10" + bytes(184))  # it fills up a transport stream

        with http_server(respond) as url:
            with (
                pytest.raises(VideoDecodeError, match=rf"longer than the {seconds} seconds|ReadTimeout"),
                LiveFrames(url, max_reconnects=0, limits=ReadLimits(seconds=seconds)) as frames,
            ):
                for _ in frames:
                    pass
            done.set()
        if frames.num_read > 0:
            break
    assert frames.num_read > 0


def test_rtsp(folder):
    with (
        rtsp_server((folder / "dark.ts").read_bytes()) as url,
        pytest.raises(VideoDecodeError, match="the stream has ended"),
        LiveFrames(url, max_reconnects=0) as frames,
    ):
        taken = []
        for frame in frames:
            taken.append(frame)
    assert frames.num_read >= 22 and 15 < brightness(taken)[0] <= brightness(taken)[-1] < 50


def test_jpegs_in_a_row_as_cameras_send_them(tmp_path):
    content = write_stream(tmp_path / "camera", 100, kind="mpjpeg").read_bytes()
    with http_server(lambda handler, _: send(handler, content)) as url, LiveFrames(url, max_reconnects=0) as frames:
        for _ in range(3):
            assert abs(brightness([next(iter(frames))])[0] - 110) < 20


def test_hostile_sources_are_refused(folder, tmp_path):
    """A playlist names other places; nothing of a live source may."""
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{folder}/dark.ts\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile {folder}/dark.ts\n"
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n"
    for text in (playlist, concat, session):
        with http_server(lambda handler, _, text=text: send(handler, text.encode())) as url:
            refused(url, "cannot be opened .*; expected one of the formats mpegts, flv")
        (tmp_path / "list.ts").write_text(text)
        refused(tmp_path / "list.ts", "not a video file")

    def redirect(handler, _):
        handler.send_response(302)
        handler.send_header("Location", f"file://{folder}/dark.ts")
        handler.end_headers()

    with http_server(redirect) as url:
        refused(url, "cannot be read")
    mp4 = (folder / "video.mp4").read_bytes()
    with http_server(lambda handler, _: send(handler, mp4)) as url:
        refused(url, "expected one of the formats")
    refused("/dev/zero", "a device")
    for source in (f"file://{folder}/dark.ts", f"concat://{folder}/dark.ts", "udp://127.0.0.1:5004"):
        with pytest.raises(ValueError, match="is no kind of live source"):
            LiveFrames(source)
    protocols = {name for names in LIVE_PROTOCOLS.values() for name in names or ()}
    assert not protocols & {"file", "concat", "data", "http", "crypto", "subfile"}
    assert not {name for names in LIVE_FORMATS.values() for name in names} & {"hls", "dash", "concat", "sdp", "mov"}


def refused(source, reason: str) -> None:
    started = threading.active_count()
    with pytest.raises(VideoDecodeError, match=reason), LiveFrames(str(source), first_wait=100) as frames:
        for _ in frames:
            pytest.fail("a frame came")
    assert threading.active_count() <= started + 1  # none that waits to connect anew


def wait_until(is_so) -> None:
    while not is_so():
        time.sleep(0.001)


# Answers


@torch.no_grad()
def test_answers_are_those_of_the_clip(model):
    """Of the frames that are taken, and of all of them so far."""
    pictures = torch.randint(0, 256, (13, 3, 24, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    live = LiveClassifier(model, stride=3)
    answers = [live.see(picture, 0.04 * number) for number, picture in enumerate(pictures)]
    assert [number for number, answer in enumerate(answers) if answer] == [0, 3, 6, 9, 12]
    clip = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))(pictures[::3])
    for last, answer in enumerate(filter(None, answers), start=1):
        expected_K = model(clip[None, :last]).logits.softmax(-1)[0]
        assert answer.scores_K.tolist() == pytest.approx(expected_K.tolist(), abs=1e-5)
        assert (answer.number, answer.label) == (int(expected_K.argmax()), NAMES[int(expected_K.argmax())])
    live.reset()
    assert live.see(pictures[0], 0.0).scores_K.tolist() == pytest.approx(answers[0].scores_K.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("source_fps", "fps", "taken"),
    [
        (30, 10, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (25, 10, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]),  # the nearest
        (4, 10, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),  # it has no more
    ],
)
def test_which_frames_are_taken(model, source_fps, fps, taken):
    live, picture = LiveClassifier(model, fps=fps), torch.zeros(3, 16, 16, dtype=torch.uint8)
    found = [number for number in range(30) if live.see(picture, number / source_fps)]
    assert [abs(a - b) <= 1 for a, b in zip(found, taken, strict=False)] == [True] * 10
    if source_fps != 25:  # the middle between two frames may go either way
        assert found[:10] == taken


def test_after_dropped_frames_the_stride_goes_on(model):
    live, picture = LiveClassifier(model, stride=4), torch.zeros(3, 16, 16, dtype=torch.uint8)
    came = [0, 1, 2, 5, 6, 7, 8, 15, 16, 17]
    assert [n for n in came if live.see(picture, n / 30, number=n)] == [0, 5, 8, 15, 16]


def test_scores_are_smoothed(model):
    dark, light = torch.full((3, 16, 16), 10, dtype=torch.uint8), torch.full((3, 16, 16), 240, dtype=torch.uint8)
    plain, smooth = LiveClassifier(model, stride=1), LiveClassifier(model, stride=1, smoothing=2.0)
    before = plain.see(dark, 0.0).scores_K
    assert torch.equal(smooth.see(dark, 0.0).scores_K, before)
    new_K, shown_K = (live.see(light, 2.0).scores_K for live in (plain, smooth))
    share = 1 - np.exp(-1)  # one time constant later
    assert shown_K.tolist() == pytest.approx((before + share * (new_K - before)).tolist(), abs=1e-6)
    assert (new_K - before).abs().max() > 1e-3


def test_threshold_and_no_action(model):
    picture = torch.full((3, 16, 16), 10, dtype=torch.uint8)
    sure = LiveClassifier(model).see(picture, 0.0)
    assert sure.label in NAMES.values() and sure.score < 1
    unsure = LiveClassifier(model, threshold=(1 + sure.score) / 2).see(picture, 0.0)
    assert (unsure.label, unsure.number, unsure.score) == ("no action", None, sure.score)
    named = LiveClassifier(model, no_action=sure.label).see(picture, 0.0)  # a class of the model
    assert (named.label, named.number) == (sure.label, None)


@torch.no_grad()
def test_a_model_that_is_not_causal():
    model = tiny_model(causal=False)
    with pytest.raises(ValueError, match=r"cannot run frame by frame: .*causal=True, or choose sliding clips"):
        LiveClassifier(model)
    live = LiveClassifier(model, stride=1, sliding_clips=True)
    pictures = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    clip = eval_transform(**vars(Preprocessing(**model.config.preprocessing)))(pictures)
    for number, picture in enumerate(pictures):
        rows = [max(row, 0) for row in range(number - 3, number + 1)]
        expected_K = model(clip[None, rows]).logits.softmax(-1)[0]
        assert live.see(picture, number / 8).scores_K.tolist() == pytest.approx(expected_K.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"fps": 2, "stride": 2}, "give one of them"),
        ({"fps": 0}, r"fps \(0\) must be above 0"),
        ({"stride": 0}, "at least 1"),
        ({"smoothing": -1}, "0 or more seconds"),
        ({"threshold": 1.5}, "between 0 and 1"),
    ],
)
def test_options_out_of_range(model, wrong, reason):
    with pytest.raises(ValueError, match=reason):
        LiveClassifier(model, **wrong)


# The script


def rows_of(output: Path) -> list[dict]:
    with open(output / "live.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_script_on_a_file(folder, tmp_path, capsys):
    arguments = [folder / "model", folder / "video.mp4", "--headless", "--stride", "2", "--output_dir", tmp_path]
    load_script("live").main([*map(str, arguments)])
    rows = rows_of(tmp_path)
    assert [int(row["frame"]) for row in rows] == list(range(0, 30, 2))
    assert [float(row["seconds"]) for row in rows] == [number / 8 for number in range(0, 30, 2)]
    assert {row["label"] for row in rows} == {"'=left"}  # no formula
    with VideoReader(tmp_path / "live.mp4") as shown, VideoReader(folder / "video.mp4") as original:
        assert (shown.num_frames, shown.times()) == (30, pytest.approx(original.times(), abs=1e-3))
    assert "30 frames, 15 answers, 0 frames dropped, 0 reconnections, 0 damaged" in capsys.readouterr().out


def test_the_timeline_shows_the_answers(model, folder):
    script = load_script("live")
    annotator, frames = script.Annotator(), []
    with LiveFrames(str(folder / "video.mp4")) as source:
        frames = list(source)
    for seconds, number in ((0.0, 0), (1.0, None), (2.0, 1)):
        label = "no action" if number is None else NAMES[number]
        annotator.add(script.LiveAnswer(seconds, label, 1.0, number, torch.zeros(3)))
    frame = frames[24]  # at 3 s: ten seconds are 44 pixels, so that the answers begin at 30.8, 35.2 and 39.6
    row = [annotator.draw(frame).getpixel((x, 27)) for x in (10, 33, 38, 42)]
    hexadecimal = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in row]
    assert hexadecimal[1:] == [script.COLOURS[0], script.NO_ACTION_COLOUR, script.COLOURS[1]]
    assert hexadecimal[0] not in (*script.COLOURS, script.NO_ACTION_COLOUR)
    later = annotator.draw(dataclasses.replace(frame, seconds=11.5))  # at 11 s the first answer has left the timeline
    assert f"#{bytes(later.getpixel((1, 27))).hex()}" == script.NO_ACTION_COLOUR
    long = script.LiveAnswer(3.0, "a label far longer than the picture is wide " * 4, 0.5, 1, torch.zeros(3))
    annotator.add(long)
    assert annotator.draw(frame).size == (44, 28)


def test_script_on_a_stream_that_breaks(folder, tmp_path, capsys, monkeypatch):
    script, begun = load_script("live"), []
    reset = LiveClassifier.reset
    monkeypatch.setattr(LiveClassifier, "reset", lambda live: (begun.append(live.num_steps), reset(live)))
    dark, light = ((folder / f"{name}.ts").read_bytes() for name in ("dark", "light"))

    def respond(handler, number):
        send(handler, (dark, light)[number], says_length=number > 0)

    with http_server(respond) as url:
        script.main([str(folder / "model"), url, "--headless", "--stride", "1", "--output_dir", str(tmp_path)])
    rows = rows_of(tmp_path)
    connections = [row["connection"] for row in rows]
    assert set(connections) == {"0", "1"}
    assert begun == [0, connections.index("1")]  # after so many answers the model begins anew
    said = capsys.readouterr().out
    assert "1 reconnections" in said and "0 damaged" in said
    with VideoReader(tmp_path / "live.mp4") as shown:
        assert shown.num_frames == len(rows)
        last_hw = shown.frames([len(rows) - 1])[0].float().mean(0)
    assert last_hw[22:27].mean() > 190 > 160 > last_hw[:9, :20].mean()  # the picture, and the label on it


def run_live(argv: list[str]) -> None:
    script = load_script("live")
    sys.exit(script.run_as_command(script.main, argv))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_readable_result(folder, tmp_path, number):
    content, done = (folder / "dark.ts").read_bytes(), threading.Event()

    def respond(handler, _):
        send(handler, content, says_length=False)
        done.wait(200)  # the camera stays, and shows nothing new

    output, log = tmp_path / "output", tmp_path / "log"
    with http_server(respond) as url:
        argv = [str(folder / "model"), url, "--headless", "--stride", "1", "--output_dir", str(output)]
        process = processes.start(run_live, [*argv, "--video_timeout", "200"], log=log)
        try:
            while not (output / "live.csv").exists() or len(rows_of(output)) < 3:
                assert process.is_alive(), log.read_text()[-3000:]
                time.sleep(0.01)
            os.kill(process.pid, number)
            processes.finish(process, log=log)
        finally:
            processes.kill(process)
            done.set()
    rows = rows_of(output)
    with VideoReader(output / "live.mp4") as shown:
        assert shown.num_frames == len(rows) >= 3
        assert shown.frames([0, len(rows) - 1]).shape == (2, 3, 32, 32)
    assert "written to" in log.read_text() and "Traceback" not in log.read_text()


def test_without_a_screen_the_script_says_what_to_do(folder, monkeypatch, tmp_path):
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(RuntimeError, match=r"no window can be opened .*; --headless writes"):
        load_script("live").main([str(folder / "model"), str(folder / "video.mp4")])
