"""Damaged files of many kinds: never a crash, a hang or a leak, and never wrong pixels under a label."""

import importlib
import json
import os
import random
import resource
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from processes import finish, start
from training import load_script

from hf_i2v.data import VideoDecodeError, VideoReader, decode_frames, uniform_indices

NUM_FRAMES = 24


def damaged_versions(whole: bytes, audio: bytes) -> dict[str, bytes]:
    draw = random.Random(0)
    versions = {"empty": b"", "renamed text": b"subtitles and other words\n" * 50, "audio only": audio}
    versions["zeros"] = bytes(5000)
    versions["random bytes"] = draw.randbytes(5000)
    versions["huge box"] = b"\xff\xff\xff\xf0ftypisom" + whole[12:]
    versions["huge 64 bit box"] = b"\0\0\0\1ftyp" + b"\x7f" + b"\xff" * 7 + whole[16:]
    at = whole.index(b"stsz")
    versions["huge sample count"] = whole[: at + 12] + b"\x7f\xff\xff\xff" + whole[at + 16 :]
    at = whole.index(b"mvhd")
    versions["zero duration"] = whole[: at + 20] + bytes(4) + whole[at + 24 :]
    for number in range(8):
        versions[f"truncated {number}"] = whole[: draw.randrange(20, len(whole))]
        flipped = bytearray(whole)
        for _ in range(2**number):
            flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        versions[f"flipped {number}"] = bytes(flipped)
        for place in range(draw.randrange(100, 200)):
            flipped[draw.randrange(len(whole)) if place else 0] ^= 0xFF
        versions[f"shredded {number}"] = bytes(flipped)
    return versions


@pytest.fixture(scope="module", params=["mp4", "webm", "avi", "ts"])
def versions(request, tmp_path_factory, write_video, write_audio):
    folder = tmp_path_factory.mktemp("fuzz")
    options = {
        "mp4": {"container_options": {"movflags": "+faststart"}, "bf": "2", "g": "8"},
        "webm": {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"},
        "avi": {"codec": "mpeg4", "bf": "2"},
        "ts": {"bf": "2", "g": "8"},
    }[request.param]
    whole = write_video(folder / f"whole.{request.param}", num_frames=NUM_FRAMES, **options)
    audio = write_audio(folder / "sound.m4a").read_bytes()
    mp4 = whole if request.param == "mp4" else write_video(folder / "boxes.mp4", num_frames=NUM_FRAMES)
    content = whole.read_bytes()
    boxes = ("huge box", "huge 64 bit box", "huge sample count", "zero duration")
    damaged = {name: v for name, v in damaged_versions(mp4.read_bytes(), audio).items() if name in boxes}
    if b"stsz" not in content:
        content += b"stsz mvhd" + bytes(40)  # only for the slicing above, behind the end
    rest = {name: v for name, v in damaged_versions(content, audio).items() if name not in boxes}
    rest["whole"] = whole.read_bytes()
    return decode_frames(whole, range(NUM_FRAMES)), rest | (damaged if request.param == "mp4" else {})


def test_damaged_files(tmp_path, versions):
    """Either an error that names the file, or a clip: of a truncated file its first frames (the last may lack B-frames
    before it), of a damaged one frames of the whole one, but for flipped bits that are a valid bitstream by chance."""
    whole_TChw, files = versions
    number_of = {frame_Chw.numpy().tobytes(): number for number, frame_Chw in enumerate(whole_TChw)}
    assert len(number_of) == NUM_FRAMES
    outcomes, wrong = {}, []
    for name, content in files.items():
        path = tmp_path / f"{name.replace(' ', '_')}.mp4"
        path.write_bytes(content)
        try:
            with VideoReader(path) as video:
                indices = uniform_indices(num_video_frames=video.num_frames, num_frames=8)
                if name.startswith("truncated"):
                    indices = range(video.num_frames)
                frames_TChw = video.frames(indices)
        except VideoDecodeError as error:
            assert path.name in str(error)
            outcomes[name] = "error"
            continue
        assert frames_TChw.shape[:2] == (len(indices), 3)
        outcomes[name] = "clip"
        numbers = [number_of.get(frame_Chw.numpy().tobytes()) for frame_Chw in frames_TChw]
        if name.startswith("truncated"):
            assert None not in numbers and numbers == sorted(set(numbers)), name
            assert numbers[:-2] == list(range(len(numbers)))[:-2], name
        wrong += [name] if None in numbers else []
    assert all(name.startswith("flipped") for name in wrong), wrong
    for name in ("empty", "renamed text", "audio only", "zeros", "random bytes"):
        assert outcomes[name] == "error", name
    assert "clip" in outcomes.values()


def test_damaged_headers(tmp_path, versions):
    """Bytes of the first 3 kB overwritten, which for mp4 is all of its tables: a `VideoDecodeError`, or a clip whose
    frames are of the size of the video, and several of each."""
    whole_TChw, files = versions
    path = tmp_path / "damaged.mp4"
    outcomes = {"error": 0, "whole": 0, "other": 0}
    for seed in range(100):
        draw = random.Random(seed)
        content = bytearray(files["whole"])
        for _ in range(draw.randrange(1, 20)):
            content[draw.randrange(min(3000, len(content)))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            with VideoReader(path) as video:
                frames_TChw = video.frames([0, video.num_frames - 1])
                assert torch.equal(video.frames([video.num_frames - 1])[0], frames_TChw[1])
        except VideoDecodeError as error:
            assert path.name in str(error)
            outcomes["error"] += 1
            continue
        assert frames_TChw.shape[:2] == (2, 3)
        is_whole = torch.equal(frames_TChw, whole_TChw[[0, -1]])
        outcomes["whole" if is_whole else "other"] += 1
    # some bytes matter and some do not
    assert outcomes["error"] >= 5 and outcomes["whole"] >= 1 and outcomes["whole"] + outcomes["other"] >= 5, outcomes


@pytest.mark.parametrize(
    ("name", "options", "seeds"),  # of damage that FFmpeg does not mark and that each of these hides in its way
    [
        ("clip.wmv", {"codec": "wmv1", "g": "6"}, (23, 49)),
        ("clip.wmv", {"codec": "wmv2", "g": "6"}, (8, 23)),
        ("clip.avi", {"codec": "msmpeg4v2", "g": "6"}, (21, 22)),
        ("clip.mkv", {"codec": "ffv1"}, (31, 35)),
        ("clip.avi", {"codec": "utvideo"}, (55,)),
        ("clip.mp4", {"codec": "libx265", "x265-params": "log-level=none:keyint=6"}, (381,)),
        ("clip.webm", {"codec": "libvpx", "g": "6"}, (442, 676)),
    ],
)
def test_a_request_gives_the_same_pixels_whatever_was_read_before(
    tmp_path, write_video, monkeypatch, name, options, seeds
):
    """Also those that the same frames have in the whole video."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    fuzz_videos = importlib.import_module("fuzz_videos")
    whole = write_video(tmp_path / name, num_frames=NUM_FRAMES, **options).read_bytes()
    for seed in seeds:
        draw, content = random.Random(seed), bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            damage = draw.choice((fuzz_videos.change_block, fuzz_videos.flip_bits))
            content = bytearray(damage(content, bytes(content), draw))
        for count in (4, 5):
            with VideoReader(bytes(content)) as video:
                indices = uniform_indices(num_video_frames=video.num_frames, num_frames=count)
                try:
                    first_TChw = video.frames(indices)
                except VideoDecodeError:  # another FFmpeg's encoder writes other bytes, in which this damage shows
                    continue
                assert torch.equal(video.frames(range(video.num_frames))[indices], first_TChw), seed
                assert torch.equal(video.frames(indices), first_TChw), seed


def test_key_frames_that_are_none(tmp_path, write_video, decode_all):
    """An AVI that lost its index says that every packet is a key frame."""
    path = write_video(tmp_path / "clip.avi", codec="msmpeg4v2", num_frames=NUM_FRAMES, g="12")
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"idx1")])
    every_ThwC = decode_all(path)
    with VideoReader(path) as video:
        assert all(video._packets._is_key)
        for indices in ([20], [5, 17], range(NUM_FRAMES)):
            frames_TChw = video.frames(indices)
            assert np.array_equal(frames_TChw.permute(0, 2, 3, 1).numpy(), every_ThwC[list(indices)])


def test_time_stamps_that_are_damaged(tmp_path, write_video, decode_all):
    """Without pictures predicted from later ones, the order of decoding is that of showing."""
    path = write_video(tmp_path / "clip.ivf", codec="libvpx", num_frames=NUM_FRAMES)
    content = bytearray(path.read_bytes())
    place = 32  # behind the header; each frame has 4 bytes of size and 8 of time
    for _ in range(7):
        place += 12 + int.from_bytes(content[place : place + 4], "little")
    content[place + 6] ^= 4
    path.write_bytes(content)
    frames_TChw = decode_frames(path, range(NUM_FRAMES))
    assert np.array_equal(frames_TChw.permute(0, 2, 3, 1).numpy(), decode_all(path))


def test_fuzzing(tmp_path, monkeypatch):
    """A short run of the fuzzer; `benchmarks/fuzz_videos.csv` is of a long one."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    fuzz_videos = importlib.import_module("fuzz_videos")
    few = {"mp4": ["libx264"], "mkv": ["ffv1"], "avi": ["msmpeg4v2"], "ts": ["mpeg2video"], "wmv": ["wmv1"]}
    kinds = {suffix: {codec: fuzz_videos.KINDS[suffix][codec] for codec in codecs} for suffix, codecs in few.items()}
    monkeypatch.setattr(fuzz_videos, "KINDS", kinds)
    output = tmp_path / "verdicts.csv"
    total = fuzz_videos.main(["--num_files", "60", "--seed", "3", "--output_file", str(output)])
    assert total.total() == 60 and output.read_text().startswith("file,read,refused,equal")
    assert total["raised"] == total["died"] == total["late"] == total["unstable"] == 0
    assert total["equal"] >= 5 and total["refused"] >= 5


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_title_that_is_not_utf_8(tmp_path, write_video, suffix):
    path = write_video(tmp_path / f"clip.{suffix}", num_frames=5, title="Caf\u00e9")
    content = path.read_bytes()
    assert "Caf\u00e9".encode() in content
    path.write_bytes(content.replace("Caf\u00e9".encode(), "Caf\u00e9s".encode("latin-1")))
    with VideoReader(path) as video:
        assert len(video.frames([0, 4])) == 2


def test_frames_that_cannot_be_converted(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", num_frames=5)

    def fails(*args):
        raise av.error.InvalidDataError(1, "odd pixels")

    monkeypatch.setattr(VideoReader, "_to_rgb", fails)
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4: frame 2 cannot be converted \(odd pixels\)"):
        decode_frames(path, [2])


def test_length_that_the_header_lies_about(tmp_path, write_video):
    whole = write_video(tmp_path / "whole.mp4", num_frames=NUM_FRAMES).read_bytes()
    at = whole.index(b"mdhd")
    for seconds in (0, 2**31 - 1):
        path = tmp_path / "lying.mp4"
        path.write_bytes(whole[: at + 20] + seconds.to_bytes(4, "big") + whole[at + 24 :])
        with VideoReader(path) as video:
            assert video.num_frames == NUM_FRAMES
            assert len(video.frames(range(NUM_FRAMES))) == NUM_FRAMES


def test_damage_before_a_wanted_frame_is_never_shown(tmp_path, write_video):
    """FFmpeg marks the damaged frame, but not those that are predicted from it."""
    path = write_video(tmp_path / "clip.mp4", num_frames=40, bf="0", g="20", height=96, width=128)
    whole_TChw = decode_frames(path, range(40))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    raised = 0
    for number, (first, size) in enumerate(places):
        damaged = bytearray(content)
        for offset in range(size // 2, min(size // 2 + 24, size)):
            damaged[first + offset] ^= 0x5A
        path.write_bytes(damaged)
        group = range(number // 20 * 20, number // 20 * 20 + 20)
        clean = [i for i in range(40) if i not in group]
        assert np.array_equal(decode_frames(path, clean).numpy(), whole_TChw[clean].numpy())
        with av.open(str(path)) as container:  # some damage is a valid bitstream again, which nobody can tell
            marked = any(frame.is_corrupt for frame in container.decode(video=0))
        if marked:
            with pytest.raises(VideoDecodeError, match=r"clip\.mp4: frame \d+ is damaged"):
                decode_frames(path, [group[-1]])
            raised += 1
    assert raised > 20


def measure_growth(folder: Path, measured: Path) -> None:
    """KiB of memory and number of files that repeated reading adds."""
    paths = sorted(folder.glob("*.mp4"))

    def read_all() -> tuple[int, int]:
        for path in paths:
            try:
                with VideoReader(path) as video:
                    video.frames([0, video.num_frames - 1])
            except VideoDecodeError:
                pass
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(os.listdir("/proc/self/fd"))

    for _ in range(4):
        before = read_all()
    for _ in range(8):
        after = read_all()
    measured.write_text(f"{after[0] - before[0]} {after[1] - before[1]}")


def test_no_leak(tmp_path, write_video, write_audio):
    """Memory and files after many readings, good and bad, in a process of its own."""
    whole = write_video(tmp_path / "good.mp4", num_frames=12, bf="2").read_bytes()
    audio = write_audio(tmp_path / "sound.m4a").read_bytes()
    for number, content in enumerate(damaged_versions(whole, audio).values()):
        (tmp_path / f"{number}.mp4").write_bytes(content)
    measured, log = tmp_path / "measured", tmp_path / "log"
    finish(start(measure_growth, tmp_path, measured, log=log), log=log)
    grown_kib, more_files = map(int, measured.read_text().split())
    assert grown_kib < 8 * 1024 and more_files == 0


def check_odd_video(row: dict, num_frames: int | None, seconds: float) -> str | None:
    """`check` in a worker, where the numbers of the videos say what reading them does."""
    check_videos = load_script("check_videos")
    number = int(Path(row["video"]["path"]).stem)
    if number in (3, 8):
        os._exit(1)

    def open_video(row, limits):
        if number == 5:
            raise MemoryError("too large")
        if number == 10:
            return open(os.open(row["video"]["path"], os.O_RDONLY)).read()  # a pipe that nobody writes to
        video = open_video_really(row, limits=limits)
        frames = video.frames
        video.frames = lambda wanted: frames(wanted) if max(wanted) < 3 else 1 / 0  # three begin before 0.3 s
        return video

    open_video_really, check_videos.open_video = check_videos.open_video, open_video
    try:
        return check_videos.check(row, num_frames, seconds)
    finally:
        check_videos.open_video = open_video_really


def test_check_videos_goes_on(tmp_path, write_video, monkeypatch):
    """After videos that kill the process, raise what nobody expects, have nothing between start and end, or hang in a
    call that Python cannot interrupt."""
    check_videos = load_script("check_videos")
    paths = [write_video(tmp_path / f"{i}.mp4", num_frames=5) for i in range(12)]  # of half a second
    paths[10].unlink()
    os.mkfifo(paths[10])
    lines = [f"{path},run,{9 if i == 7 else 0},{19 if i == 7 else 0.3}" for i, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    monkeypatch.setattr(check_videos, "check", check_odd_video)
    output = tmp_path / "bad.jsonl"
    arguments = ["--train_file", tmp_path / "list.csv", "--output_file", output, "--num_workers", 2]
    arguments += ["--video_timeout", 1]
    assert check_videos.main([str(argument) for argument in arguments]) == 1
    reasons = {bad["id"]: bad["reason"] for bad in map(json.loads, output.read_text().splitlines())}
    killed = (
        "decoding it kills the process, or one step of it takes longer than twice the 1 seconds of --video_timeout"
    )
    assert reasons == {
        3: f"{paths[3]}: {killed}",
        5: f"{paths[5]}: MemoryError: too large",
        7: f"{paths[7]}: no frame between 9.0 and 19.0 seconds, the last one is shown at 0.40",
        8: f"{paths[8]}: {killed}",
        10: f"{paths[10]}: {killed}",
    }


def test_check_videos(tmp_path, write_video, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    check_videos = load_script("check_videos")
    for name in ("run", "sit"):
        for number in range(3):
            write_video(tmp_path / "set" / name / f"{number}.mp4", num_frames=5)
    arguments = [
        "--train_dir",
        str(tmp_path / "set"),
        "--output_file",
        str(tmp_path / "bad.jsonl"),
        "--num_workers",
        "2",
    ]
    assert check_videos.main(arguments) == 0
    assert "all videos can be read" in capsys.readouterr().out and (tmp_path / "bad.jsonl").read_text() == ""
    for name in ("run/1", "sit/2"):
        (tmp_path / "set" / f"{name}.mp4").write_bytes(b"torn")
    assert check_videos.main([*arguments, "--all_frames"]) == 1
    assert "train: 2 of 6 videos cannot be used (33.33 %)" in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    listed.sort(key=lambda bad: bad["id"])  # they are written as they are found
    assert [bad["id"] for bad in listed] == [1, 5]
    assert listed[0]["path"].endswith("run/1.mp4") and "not a video file" in listed[0]["reason"]
