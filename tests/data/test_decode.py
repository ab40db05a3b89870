import io
import pickle
import resource

import av
import numpy as np
import pytest
import torch

from hf_i2v.data import ReadLimits, VideoDecodeError, VideoReader, decode_frames, probe

# file name, arguments of write_video
FILES = {
    "b_frames": ("clip.mp4", {"bf": "2", "g": "12"}),
    "many_b_frames": ("clip.mkv", {"bf": "4", "g": "250", "b-pyramid": "normal"}),
    "open_gop": ("clip.mp4", {"bf": "3", "g": "6", "x264-params": "open-gop=1"}),
    "no_b_frames": ("clip.mov", {"bf": "0", "g": "5"}),
    "odd_size": ("clip.mp4", {"height": 47, "width": 61, "pix_fmt": "yuv444p", "bf": "2"}),
    "sound": ("clip.mp4", {"sound": True, "bf": "2", "g": "12"}),
    "sound_mkv": ("clip.mkv", {"sound": True, "bf": "2", "g": "12"}),
    "vp9_alt_ref": (
        "clip.webm",
        {"codec": "libvpx-vp9", "num_frames": 40, "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"},
    ),
    "hevc": ("clip.mp4", {"codec": "libx265", "x265-params": "log-level=none:keyint=8:bframes=3"}),
    "av1": ("clip.mp4", {"codec": "libsvtav1", "preset": "12", "g": "8"}),
    "mpeg2_ts": ("clip.ts", {"codec": "mpeg2video", "bf": "2", "g": "6"}),
    "program_stream": ("clip.mpg", {"codec": "mpeg2video", "bf": "2", "g": "6"}),
    "mpeg4_asf": ("clip.asf", {"codec": "mpeg4", "bf": "2"}),
    "flv": ("clip.flv", {"bf": "2", "g": "6"}),
    "alpha": ("clip.mov", {"codec": "qtrle", "pix_fmt": "argb"}),
    "late_start": ("clip.mp4", {"bf": "2", "g": "6", "first_pts": 77}),
    "variable_rate": ("clip.mp4", {"bf": "2", "g": "6", "pts_step": [1, 4, 2]}),
    "variable_rate_mkv": ("clip.mkv", {"bf": "3", "g": "9", "pts_step": [1, 4, 2], "first_pts": 33}),
    "edit_list": (
        "clip.mp4",
        {
            "bf": "2",
            "g": "6",
            "first_pts": -50,
            "pts_step": [10],
            "container_options": {"avoid_negative_ts": "disabled"},
        },
    ),
    "one_frame": ("clip.mp4", {"num_frames": 1}),
    "fragments": ("clip.mp4", {"bf": "2", "container_options": {"movflags": "frag_keyframe+empty_moov"}, "g": "5"}),
    "transport_stream": ("clip.ts", {"bf": "2"}),
    "mpeg4_avi": ("clip.avi", {"codec": "mpeg4", "bf": "2"}),
    "raw_h264": ("clip.h264", {"bf": "2"}),  # no time stamps at all
    "vp9_webm": ("clip.webm", {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}),
    "vp8_hidden_frames": (
        "clip.webm",
        {
            "codec": "libvpx",
            "num_frames": 40,
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "b": "100k",
            "cpu-used": "4",
        },
    ),
    "ten_bit": ("clip.mp4", {"pix_fmt": "yuv420p10le"}),
    "grey": ("clip.mp4", {"pix_fmt": "gray"}),
}


@pytest.fixture
def video_file(tmp_path, write_video):
    def write(case="b_frames"):
        name, options = FILES[case]
        return write_video(tmp_path / name, **options)

    return write


@pytest.mark.parametrize("case", FILES)
def test_frames_are_those_of_decoding_everything(case, video_file, decode_all):
    path = video_file(case)
    every_ThwC = decode_all(path)
    num_frames = len(every_ThwC)
    info = probe(path)
    assert info.num_frames == num_frames
    assert (info.height, info.width) == every_ThwC.shape[1:3]

    rng = np.random.default_rng(1)
    draws = [list(range(num_frames)), [num_frames - 1], [0]]
    draws += [rng.integers(num_frames, size=5).tolist() for _ in range(4)]  # unsorted, with repeats
    with VideoReader(path) as video:
        for indices in draws:  # one open video can be asked again and again
            frames_TChw = video.frames(indices)
            assert frames_TChw.dtype == torch.uint8
            assert np.array_equal(frames_TChw.permute(0, 2, 3, 1).numpy(), every_ThwC[indices]), indices


@pytest.mark.parametrize("near", [0, 500])
@pytest.mark.parametrize("case", FILES)
def test_very_large_files_are_read_in_windows(case, near, video_file, decode_all, monkeypatch):
    monkeypatch.setattr("hf_i2v.data.decode._NEAR", near)
    path = video_file(case)
    every_ThwC = decode_all(path)
    with VideoReader(path, limits=ReadLimits(held=1)) as video:
        assert video._packets._held is None and video.num_frames == len(every_ThwC)
        for indices in ([len(every_ThwC) - 1, 0], [0], [len(every_ThwC) * 2 // 3], [0, len(every_ThwC) // 2]):
            frames_TChw = video.frames(indices)
            assert np.array_equal(frames_TChw.permute(0, 2, 3, 1).numpy(), every_ThwC[indices]), indices
        for indices in (range(len(every_ThwC)), range(0, len(every_ThwC), 5), [len(every_ThwC) - 1]):
            one_by_one = np.stack([frame_Chw.permute(1, 2, 0).numpy() for frame_Chw in video.each(indices)])
            assert np.array_equal(one_by_one, every_ThwC[list(indices)]), indices
        with pytest.raises(ValueError, match="must ascend"):
            next(video.each([1, 1]))


def test_times(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mkv", num_frames=6, pts_step=[1, 4, 2], first_pts=33, bf="2")
    with VideoReader(path) as video:
        assert video.times() == pytest.approx([0.0, 0.1, 0.5, 0.7, 0.8, 1.2])
        assert video.indices_at([0.0, 0.3, 0.5, 0.79, 99.0]) == [0, 1, 2, 3, 5]
        with pytest.raises(ValueError, match=r"seconds \(-1\)"):
            video.indices_at([-1])


@pytest.mark.parametrize(("height", "width", "new"), [(48, 64, (24, 32)), (64, 48, (32, 24)), (50, 60, (24, 29))])
def test_scaling_while_converting(tmp_path, write_video, height, width, new):
    path = write_video(tmp_path / "clip.mp4", height=height, width=width, num_frames=3)
    with VideoReader(path) as video:
        scaled_TChw = video.frames([0, 2], short_side=24)
        assert scaled_TChw.shape == (2, 3, *new)
        whole_TChw = torch.nn.functional.interpolate(video.frames([0, 2]), new, mode="bicubic", antialias=True)
        assert (scaled_TChw.float() - whole_TChw.float()).abs().mean() < 12  # other filters, on noise
        with pytest.raises(ValueError, match=r"short_side \(0\)"):
            video.frames([0], short_side=0)


def test_sources(video_file):
    path = video_file()
    indices = [7, 2, 2]
    expected_TChw = decode_frames(path, indices)
    assert torch.equal(decode_frames(str(path), indices), expected_TChw)
    assert torch.equal(decode_frames(path.read_bytes(), indices), expected_TChw)
    with open(path, "rb") as file:
        for _ in range(2):  # left open, and read from the start wherever it stands
            assert torch.equal(decode_frames(file, indices), expected_TChw)
    assert torch.equal(decode_frames(io.BytesIO(path.read_bytes()), np.array(indices)), expected_TChw)


def test_probe(video_file):
    info = probe(video_file())
    assert (info.num_frames, info.height, info.width, info.fps, info.codec) == (20, 48, 64, 10.0, "h264")


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(tmp_path, degrees, write_video, decode_all):
    path = write_video(tmp_path / "phone.mp4", rotation=degrees, num_frames=3)
    upright_ThwC = np.rot90(decode_all(path), degrees // 90, axes=(1, 2))  # both count counter-clockwise
    assert np.array_equal(decode_frames(path, [0, 1, 2]).permute(0, 2, 3, 1).numpy(), upright_ThwC)
    assert (probe(path).height, probe(path).width) == upright_ThwC.shape[1:3]


def test_decodes_no_more_than_it_must(tmp_path, monkeypatch, write_video):
    path = write_video(tmp_path / "clip.mp4", num_frames=60, bf="2", g="20")
    decoded, converted = [], []
    with VideoReader(path) as video:
        decode, convert = video._decode_parts, video._to_rgb
        monkeypatch.setattr(video, "_decode_parts", lambda at: (decoded.append(out) or out for out in decode(at)))
        monkeypatch.setattr(video, "_to_rgb", lambda *args: converted.append(args) or convert(*args))
        video.frames([9, 3, 9])
        assert len(decoded) <= 10 and len(converted) == 2  # no further than the last frame
        decoded.clear()
        video.frames([45])
        assert len(decoded) <= 6  # from the key frame before it


def test_cover_art_is_not_the_video(tmp_path, write_audio):
    path = write_audio(tmp_path / "song.mp4", cover_art=True)
    with av.open(str(path)) as container:
        assert [stream.type for stream in container.streams] == ["audio", "video"]
    with pytest.raises(VideoDecodeError, match=r"song\.mp4: no video stream .*audio"):
        probe(path)


def test_truncated_file_is_as_long_as_its_whole_frames(tmp_path, write_video):
    whole = write_video(tmp_path / "whole.mp4", bf="2", container_options={"movflags": "+faststart"})
    path = tmp_path / "torn.mp4"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20  # what the header still claims
    with VideoReader(path) as video:
        assert 5 < video.num_frames < 20
        frames_TChw = video.frames(range(video.num_frames))
    # The picture shown last may have lost a later one that it was predicted from; those before are intact.
    num_intact = video.num_frames - 4
    assert torch.equal(frames_TChw[:num_intact], decode_frames(whole, range(num_intact)))


def test_damaged_file(tmp_path, write_video):
    path = write_video(tmp_path / "clip.mp4", bf="0", g="100")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0)][10]
        start, size = packet.pos, packet.size
    damaged = bytearray(path.read_bytes())
    damaged[start : start + size] = bytes(size)
    path.write_bytes(damaged)
    assert len(decode_frames(path, [0, 9])) == 2  # before the damage
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4: .*(cannot be decoded|ended after|damaged)"):
        decode_frames(path, [19])


def test_unusable_files_are_named_with_the_reason(tmp_path, video_file, write_video, write_audio):
    fragmented = write_video(
        tmp_path / "fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}
    ).read_bytes()
    whole = video_file().read_bytes()
    headers_only = fragmented[: fragmented.index(b"moof") - 4]
    contents = {
        b"": "empty .0 bytes.",
        b"just some words\n" * 99: "not a video file",
        write_audio(tmp_path / "sound.m4a").read_bytes(): "no video stream .streams found: audio",
        whole[: len(whole) // 2]: "not a video file, or a damaged one",  # the index of an mp4 comes last
        headers_only: "zero frames",
    }
    path = tmp_path / "broken.mp4"
    for content, reason in contents.items():
        path.write_bytes(content)
        for function in (probe, lambda source: decode_frames(source, [0])):
            with pytest.raises(VideoDecodeError, match=f"broken.mp4: .*{reason}"):
                function(path)
        with pytest.raises(VideoDecodeError, match=reason):
            probe(content)


def test_text_and_pictures_are_not_videos(tmp_path, write_video):
    (tmp_path / "notes.txt").write_text("FFmpeg would play this as ANSI art\n" * 20)
    with pytest.raises(VideoDecodeError, match=r"notes\.txt: not a video file, but .* text"):
        probe(tmp_path / "notes.txt")
    write_video(tmp_path / "picture.mp4", num_frames=1, codec="png", pix_fmt="rgb24")
    with av.open(str(tmp_path / "picture.mp4")) as container:
        picture = next(packet for packet in container.demux(video=0))
        (tmp_path / "picture.mp4").write_bytes(bytes(picture))
    with pytest.raises(VideoDecodeError, match=r"picture\.mp4: not a video file, but .* picture"):
        probe(tmp_path / "picture.mp4")


def test_missing_file(tmp_path):
    with pytest.raises(VideoDecodeError, match=r"nowhere\.mp4: no such file"):
        probe(tmp_path / "nowhere.mp4")
    with pytest.raises(VideoDecodeError, match="not a video file"):
        probe(tmp_path)  # a folder


@pytest.mark.parametrize("index", [-1, 20, 1000])
def test_index_out_of_range(index, video_file):
    path = video_file()
    with pytest.raises(VideoDecodeError, match=rf"clip.mp4: frame index {index} .* 20 frames"):
        decode_frames(path, [0, index])


def test_no_index(video_file):
    with pytest.raises(ValueError, match="at least one frame"):
        decode_frames(video_file(), [])


def test_error_survives_a_worker():
    error = pickle.loads(pickle.dumps(VideoDecodeError("clip.mp4: gone")))
    again = type(error)(f"Caught in DataLoader worker: {error}")  # all that torch keeps of it: its kind and one text
    assert isinstance(again, ValueError) and "clip.mp4: gone" in str(again)


def test_files_are_closed(tmp_path, video_file, write_audio):
    good = video_file()
    bad = write_audio(tmp_path / "sound.m4a")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        for _ in range(300):
            with pytest.raises(VideoDecodeError, match="no video stream"):
                probe(bad)
            with pytest.raises(VideoDecodeError, match="out of range"):
                decode_frames(good, [99])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
