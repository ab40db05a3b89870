"""The door for foreign videos: no other file, no endless wait, no memory beyond the limits."""

import io
import os
import resource
import struct
import tarfile
import threading
import time

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Value, Video
from PIL import Image

from hf_i2v.data import (
    ClipLoader,
    FrameFolder,
    ReadLimits,
    VideoClips,
    VideoDecodeError,
    VideoReader,
    decode_frames,
    eval_transform,
    load_videos,
    open_video,
    probe,
)
from hf_i2v.data.media import DEFAULT_LIMITS, Clock, MediaFile, open_media
from hf_i2v.data.torchcodec_reader import TorchcodecReader

LOOK = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture
def folder(tmp_path, write_video):
    """A video, a transport stream and a text that playlists may name."""
    write_video(tmp_path / "secret.mp4", num_frames=5)
    write_video(tmp_path / "secret.ts", num_frames=5)
    (tmp_path / "secret.txt").write_text("a private line\n" * 40)
    (tmp_path / "below").mkdir()
    return tmp_path


def playlists(folder):
    """Texts that FFmpeg follows to other files, by name."""
    concat, hls = "ffconcat version 1.0\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n"
    (folder / "nested.m3u8").write_text(f"{hls}secret.ts\n#EXT-X-ENDLIST\n")
    (folder / "nested.ffconcat").write_text(f"{concat}file 'secret.txt'\n")
    return {
        "concat": f"{concat}file 'secret.mp4'\n",
        "concat of text": f"{concat}file 'secret.txt'\n",
        "concat, absolute": f"{concat}file '{folder}/secret.txt'\n",
        "concat, out of the folder": f"{concat}file '../secret.txt'\n",
        "concat of a playlist": f"{concat}file 'nested.m3u8'\n",
        "concat of concat": f"{concat}file 'nested.ffconcat'\n",
        "hls": f"{hls}secret.ts\n#EXT-X-ENDLIST\n",
        "hls, absolute": f"{hls}{folder}/secret.ts\n#EXT-X-ENDLIST\n",
        "hls, file:": f"{hls}file:{folder}/secret.ts\n#EXT-X-ENDLIST\n",
        "hls, crypto": f"{hls}crypto+file://{folder}/secret.ts\n#EXT-X-ENDLIST\n",
        "hls of hls": f"{hls}nested.m3u8\n#EXT-X-ENDLIST\n",
        "hls without an end": f"{hls}secret.ts\n",
        "hls of the net": f"{hls}http://127.0.0.1:9/secret.ts\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-live:2011"><Period><AdaptationSet contentType="video"><Representation '
        f'id="0"><BaseURL>{folder}/secret.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>\n',
        "rtsp": "[Reference]\nRef1=rtsp://127.0.0.1:9/secret\n",
        "text": "FFmpeg plays this as ANSI art\n" * 20,
    }


def test_playlists_are_refused(folder):
    """By path, whatever its suffix, from bytes and from file objects."""
    for kind, text in playlists(folder).items():
        for suffix in ("mp4", "m3u8", "ts"):
            path = folder / f"video.{suffix}"
            path.write_text(text)
            for source in (path, str(path), text.encode(), io.BytesIO(text.encode()), open(path, "rb")):  # noqa: SIM115
                with pytest.raises(VideoDecodeError, match="not a video file"):
                    print(kind, suffix, source)
                    decode_frames(source, [0])
    (folder / "below" / "video.mp4").write_text(playlists(folder)["concat, out of the folder"])
    with pytest.raises(VideoDecodeError, match="playlist"):
        probe(folder / "below" / "video.mp4")


def test_playlists_in_a_data_set_are_refused(folder, monkeypatch):
    """In class folders, tars and parquet files, and with the other backend."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    text = playlists(folder)["concat, absolute"].encode()
    for name in ("train/run/a.mp4", "tars/a.mp4", "parquet/a.mp4"):
        (folder / name).parent.mkdir(parents=True)
    (folder / "train/run/a.mp4").write_bytes(text)
    with tarfile.open(folder / "tars/x.tar", "w") as tar:
        for name, content in (("a.mp4", text), ("a.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    pq.write_table(pa.table({"video": [text], "label": [0]}), folder / "parquet/x.parquet")
    for source in ("train", "tars", "parquet"):
        row = load_videos(train_dir=folder / source)["train"][0]
        with pytest.raises(VideoDecodeError, match="not a video file, but a playlist"):
            open_video(row)


def test_a_sequence_of_pictures_is_not_a_video(tmp_path):
    for number in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"img{number}.png")
    with pytest.raises(VideoDecodeError, match=r"img%d\.png: no such file"):
        probe(tmp_path / "img%d.png")
    with pytest.raises(VideoDecodeError, match="not a video file"):
        probe(tmp_path / "img0.png")
    (tmp_path / "img%d.mp4").write_bytes((tmp_path / "img0.png").read_bytes())
    with pytest.raises(VideoDecodeError, match="not a video file"):
        probe(tmp_path / "img%d.mp4")


def test_other_sources_name_their_own_containers_and_protocols(folder):
    """What a live source needs; a playlist opens only where both are named."""
    (folder / "list.m3u8").write_text(playlists(folder)["hls"])
    clock = Clock("list", 20.0)
    own = {"formats": ("hls", "mpegts"), "protocols": ("file", "crypto")}
    with open_media(str(folder / "list.m3u8"), clock, DEFAULT_LIMITS, **own) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
    for less in ({"formats": ("hls", "mpegts")}, {"protocols": ("file", "crypto")}):
        with pytest.raises(VideoDecodeError), open_media(str(folder / "list.m3u8"), clock, DEFAULT_LIMITS, **less):
            pass


@pytest.mark.parametrize("suffix", ["mp4", "jpg"])
def test_pipes_and_devices_are_refused_at_once(tmp_path, suffix):
    path = tmp_path / f"video.{suffix}"
    os.mkfifo(path)
    with pytest.raises(VideoDecodeError, match=r"video\.\w+: not a video file but a pipe, a socket or a device"):
        probe(path)
    if suffix == "jpg":
        with pytest.raises(VideoDecodeError, match="not a video file but a pipe"):
            FrameFolder(tmp_path).frames([0])
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(VideoDecodeError, match="a device"):
            probe(device)


class Slow(io.BytesIO):
    """A file on a medium that answers slowly, or a file without end."""

    def read(self, size=-1):
        time.sleep(0.02)
        return super().read(size)


class Endless(io.BytesIO):
    """A transport stream that goes on and on."""

    def read(self, size=-1):
        if not (content := super().read(size)):
            super().seek(0)
            content = super().read(size)
        return content


@pytest.mark.parametrize("kind", [Slow, Endless])
def test_reading_has_a_time_limit(folder, kind):
    source = kind((folder / "secret.ts").read_bytes() * 300)
    with pytest.raises(VideoDecodeError, match=r"longer than the 0\.3 seconds that are allowed .*--video_timeout"):
        VideoReader(source, limits=ReadLimits(seconds=0.3))


def test_decoding_has_a_time_limit(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4", num_frames=40, g="40", bf="0")
    with VideoReader(path, limits=ReadLimits(seconds=1.0)) as video:
        convert = video._to_rgb
        video._to_rgb = lambda *args: time.sleep(0.4) or convert(*args)
        for _ in range(3):  # each call has the whole time
            assert len(video.frames([0])) == 1
        with pytest.raises(VideoDecodeError, match=r"clip\.mp4: reading it takes longer than"):
            video.frames(range(40))
    Image.new("RGB", (16, 16)).save(tmp_path / "1.png")
    frames = FrameFolder(tmp_path, limits=ReadLimits(seconds=1e-9))
    with pytest.raises(VideoDecodeError, match="takes longer than"):
        frames.frames([0])


def test_late_videos_are_bad_videos(folder, write_video):
    """In a worker and in the main process, through the data set's own limits."""
    paths = [str(write_video(folder / f"{i}.mp4", num_frames=4)) for i in range(3)]
    rows = {"video": [{"path": path, "bytes": None} for path in paths], "label": [0, 1, 2]}
    dataset = Dataset.from_dict(rows, features=Features(video=Video(decode=False), label=Value("int64")))
    for limits in (ReadLimits(seconds=1e-9), ReadLimits(pixels=100), ReadLimits(bytes=1000), ReadLimits(packets=3)):
        clips = VideoClips(dataset, num_frames=2, transform=eval_transform(**LOOK), train=False, limits=limits)
        with pytest.raises(VideoDecodeError, match="allowed"):
            clips[0]
    loader = ClipLoader(clips, batch_size=3, num_workers=1, on_bad_video="skip", max_bad_fraction=1.0)
    with pytest.raises(VideoDecodeError, match=r"ReadLimits\.packets"):
        next(iter(loader))


def promising(content: bytes, number: int) -> bytes:
    """An mp4 whose tables say that it has so many packets of one byte."""
    tables = {
        b"stsz": struct.pack(">III", 0, 1, number),
        b"stsc": struct.pack(">IIIII", 0, 1, 1, number, 1),
        b"stts": struct.pack(">IIII", 0, 1, number, 1000),
    }
    done, place = b"", 0
    while place + 8 <= len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        body, place = content[place + 8 : place + size], place + size
        body = promising(body, number) if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl") else body
        body = tables.get(kind, body)
        done += struct.pack(">I4s", 8 + len(body), kind) + body
    return done


def test_promised_packets_take_no_memory(tmp_path, write_video):
    content = write_video(tmp_path / "clip.mp4", num_frames=3).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in (10_000_000, 2**32 - 1):
        with pytest.raises(VideoDecodeError, match=f"says that it has {number} packets, at most 2000000 are allowed"):
            probe(promising(content, number))
    fragmented = write_video(
        tmp_path / "fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ).read_bytes()
    place = fragmented.index(b"trun") + 8
    with pytest.raises(VideoDecodeError, match=f"says that it has {2**31} packets"):
        probe(fragmented[:place] + (2**31).to_bytes(4, "big") + fragmented[place + 4 :])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # 77 bytes a packet in FFmpeg
    assert VideoReader(content, limits=ReadLimits(packets=3)).num_frames == 3
    with pytest.raises(VideoDecodeError, match="3 packets, at most 2 are allowed"):
        probe_with(content, ReadLimits(packets=2))
    webm = write_video(tmp_path / "clip.mkv", num_frames=3)
    with pytest.raises(VideoDecodeError, match="it has more than 2 packets"):
        probe_with(webm, ReadLimits(packets=2))


def probe_with(source, limits):
    with VideoReader(source, limits=limits) as video:
        return video.frames([0])


def test_samples_of_sound_are_not_packets(tmp_path):
    """Three hours of uncompressed sound are 500 million samples in a .mov."""
    path = tmp_path / "clip.mov"
    with av.open(str(path), "w") as container:
        picture, sound = container.add_stream("mpeg4", rate=10), container.add_stream("pcm_s16le", rate=48_000)
        picture.height, picture.width, sound.layout = 16, 16, "mono"
        for number in range(4):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
            noise.sample_rate, noise.pts = 48_000, 4800 * number
            container.mux(sound.encode(noise))
        container.mux(picture.encode())
        container.mux(sound.encode())
    assert len(probe_with(path, ReadLimits(packets=100))) == 1


def test_pixels_and_bytes_are_limited(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mkv", num_frames=4)
    with pytest.raises(VideoDecodeError, match=r"pictures of 64 x 48 pixels, at most 3071 pixels are allowed"):
        probe_with(path, ReadLimits(pixels=64 * 48 - 1))
    with VideoReader(path, limits=ReadLimits(bytes=3 * 64 * 48 * 3)) as video:
        assert len(video.frames([0, 1, 3])) == 3
        with pytest.raises(VideoDecodeError, match=r"4 frames of 64 x 48 pixels take 36864 bytes, at most 27648"):
            video.frames(range(4))
        assert len(video.frames(range(4), short_side=24)) == 4
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")
    with pytest.raises(VideoDecodeError, match=r"a picture of 64 x 48 pixels, at most 3071"):
        FrameFolder(tmp_path, limits=ReadLimits(pixels=3071)).frames([0])
    with pytest.raises(VideoDecodeError, match="2 such pictures take 18432 bytes"):
        FrameFolder(tmp_path, limits=ReadLimits(bytes=18431)).frames([0, 0])


def test_pictures_that_grow_within_the_video(tmp_path, write_video):
    """A raw stream may say another size at any key frame; the decoder refuses it before it takes memory."""
    small = write_video(tmp_path / "small.h264", num_frames=5).read_bytes()
    large = write_video(tmp_path / "large.h264", num_frames=5, height=96, width=128).read_bytes()
    with pytest.raises(VideoDecodeError):
        probe_with(small + large, ReadLimits(pixels=64 * 48))


def test_films_of_8k_and_three_hours_fit():
    assert DEFAULT_LIMITS.pixels >= 7680 * 4320 and DEFAULT_LIMITS.packets >= 3 * 3600 * 120
    assert DEFAULT_LIMITS.bytes >= 32 * 3 * 7680 * 4320
    with pytest.raises(ValueError, match=r"seconds \(0\) must be above 0"):
        ReadLimits(seconds=0)


@pytest.mark.parametrize(
    "path",
    [
        *("ssh://host/a.mp4", "smb://host/a.mp4", "reference://a.mp4", "data:video/mp4;base64,AAAA", "data://x"),
        *("nosuch://a.mp4", "http://127.0.0.1:9/a.mp4", "github://a", "zip://a.mp4::", "a\0b.mp4", "", "concat:a|b"),
        *("file:///nowhere/a.mp4", "pipe:0", "fd:0", "subfile,,start,0,end,0,,:a.mp4"),
    ],
)
def test_odd_places_are_bad_videos(path):
    row = {"video": {"path": path, "bytes": None}}
    with pytest.raises(VideoDecodeError):
        open_video(row)


def test_a_url_is_not_fetched_without_end(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4", num_frames=3)
    row = {"video": {"path": f"file://{path}", "bytes": None}}
    with open_video(row) as video:
        assert video.num_frames == 3
    with pytest.raises(VideoDecodeError, match="more than 1000 bytes, the most that are fetched"):
        open_video(row, limits=ReadLimits(bytes=1000))


def test_whatever_is_raised_over_foreign_bytes_is_a_bad_video(tmp_path, write_video, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", num_frames=3)

    class Torn(io.BytesIO):
        def read(self, size=-1):
            raise RuntimeError("the line is dead")

    with pytest.raises(VideoDecodeError, match=r"cannot be read \(RuntimeError: the line is dead\)") as raised:
        VideoReader(Torn(path.read_bytes()))
    assert isinstance(raised.value.__cause__, RuntimeError)
    for error in (MemoryError("too large"), IndexError("odd"), TypeError("None")):
        with VideoReader(path) as video:
            monkeypatch.setattr(video, "_decode_parts", lambda at, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(VideoDecodeError, match=rf"clip\.mp4: cannot be read \({type(error).__name__}"):
                video.frames([0])


def test_streams_that_turn_up_late(tmp_path, write_video, decode_all):
    """Two files joined: PyAV trips over the new streams behind the last packet. All packets were read by then."""
    one = write_video(tmp_path / "one.ts", num_frames=8, bf="0")
    two = write_video(tmp_path / "two.ts", num_frames=8, sound=True)
    (tmp_path / "both.ts").write_bytes(one.read_bytes() * 20 + two.read_bytes())
    with VideoReader(tmp_path / "both.ts") as video:
        assert video.num_frames >= 8 * 20
        assert np.array_equal(video.frames(range(8)).permute(0, 2, 3, 1).numpy(), decode_all(one))


def test_the_other_backend_passes_the_same_door(folder, monkeypatch):
    opened = []
    decoders = type("decoders", (), {"VideoDecoder": lambda source, **options: opened.append(source) or [0, 1]})
    monkeypatch.setitem(__import__("sys").modules, "torchcodec.decoders", decoders)
    (folder / "video.mp4").write_text(playlists(folder)["concat"])
    with pytest.raises(VideoDecodeError, match="playlist"):
        TorchcodecReader(folder / "video.mp4")
    with pytest.raises(VideoDecodeError, match=r"ReadLimits\.pixels"):
        TorchcodecReader(folder / "secret.mp4", limits=ReadLimits(pixels=100))
    assert not opened
    with TorchcodecReader(folder / "secret.mp4", limits=ReadLimits(bytes=3 * 64 * 48)) as video:
        assert isinstance(opened[0], MediaFile) and video.num_frames == 2  # no path that it might open again
        with pytest.raises(VideoDecodeError, match="2 frames take 18432 bytes, at most 9216"):
            video.frames([0, 1])


def test_files_are_closed_in_threads_too(folder):
    """A reader belongs to no thread, and its clock is its own."""
    frames = []
    thread = threading.Thread(target=lambda: frames.append(decode_frames(folder / "secret.mp4", [0, 4])))
    thread.start()
    thread.join()
    assert np.array_equal(frames[0].numpy(), decode_frames(folder / "secret.mp4", [0, 4]).numpy())
