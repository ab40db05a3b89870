import pytest
import torch

from hf_i2v.data import dense_indices, uniform_clips, uniform_indices


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("num_video_frames", "num_frames", "expected"),
    [
        (10, 4, [1, 3, 6, 8]),  # the picture in the docstring
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (32, 4, [4, 12, 20, 28]),
        (9, 1, [4]),
        (9, 3, [1, 4, 7]),
        (1, 1, [0]),
    ],
)
def test_middle_of_each_segment(num_video_frames, num_frames, expected):
    assert uniform_indices(num_video_frames=num_video_frames, num_frames=num_frames) == expected


@pytest.mark.parametrize(("num_video_frames", "num_frames"), [(10, 4), (8, 8), (9, 8), (300, 16), (5, 4), (7, 1)])
def test_one_frame_of_each_segment(num_video_frames, num_frames):
    seen = [set() for _ in range(num_frames)]
    for seed in range(400):
        indices = uniform_indices(num_video_frames=num_video_frames, num_frames=num_frames, generator=generator(seed))
        for segment, index in zip(seen, indices, strict=True):
            segment.add(index)
    middle = uniform_indices(num_video_frames=num_video_frames, num_frames=num_frames)
    assert all(index in segment for index, segment in zip(middle, seen, strict=True)) or num_video_frames > 100
    # The segments do not overlap, and together they are the whole video: no frame is left out at either end.
    everything = [index for segment in seen for index in sorted(segment)]
    assert everything == sorted(set(everything))
    if num_video_frames <= 10:
        assert everything == list(range(num_video_frames))
        sizes = [len(segment) for segment in seen]
        assert max(sizes) - min(sizes) <= 1


def test_random_is_the_generator_alone():
    arguments = {"num_video_frames": 100, "num_frames": 8}
    torch.manual_seed(1)
    first = uniform_indices(**arguments, generator=generator(3))
    torch.manual_seed(2)
    assert uniform_indices(**arguments, generator=generator(3)) == first
    assert uniform_indices(**arguments, generator=generator(4)) != first


@pytest.mark.parametrize("source", [None, generator()])
def test_short_videos(source):
    arguments = {"num_video_frames": 3, "num_frames": 8, "generator": source}
    assert uniform_indices(**arguments) == [0, 1, 2, 2, 2, 2, 2, 2]
    assert uniform_indices(**arguments, policy="wrap") == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"3 frames, fewer than num_frames \(8\)"):
        uniform_indices(**arguments, policy="error")
    assert uniform_indices(num_video_frames=8, num_frames=8, policy="error") == list(range(8))  # just long enough


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_video_frames": 0}, r"num_video_frames \(0\)"),
        ({"num_frames": -2}, r"num_frames \(-2\)"),
        ({"policy": "loop"}, r"policy \('loop'\) must be 'repeat_last', 'wrap' or 'error'"),
    ],
)
def test_bad_arguments_are_quoted(bad, message):
    with pytest.raises(ValueError, match=message):
        uniform_indices(**{"num_video_frames": 10, "num_frames": 4, **bad})


def test_dense_clips():
    assert dense_indices(num_video_frames=10, num_frames=3, frame_stride=2, num_clips=3) == [
        [0, 2, 4],
        [2, 4, 6],
        [5, 7, 9],
    ]
    assert dense_indices(num_video_frames=10, num_frames=3, frame_stride=2) == [[2, 4, 6]]  # the middle
    assert dense_indices(num_video_frames=5, num_frames=3, frame_stride=2, num_clips=2) == [[0, 2, 4]] * 2


def test_dense_clips_are_anywhere_in_training():
    generator = torch.Generator().manual_seed(0)
    clips = [
        dense_indices(num_video_frames=10, num_frames=3, frame_stride=2, generator=generator)[0] for _ in range(200)
    ]
    assert all(clip == [clip[0], clip[0] + 2, clip[0] + 4] for clip in clips)
    assert {clip[0] for clip in clips} == set(range(6))


@pytest.mark.parametrize(
    ("policy", "expected"), [("repeat_last", [0, 2, 4, 4, 4]), ("wrap", [0, 2, 4, 1, 3]), ("error", None)]
)
def test_dense_clip_of_a_short_video(policy, expected):
    arguments = {"num_video_frames": 5, "num_frames": 5, "frame_stride": 2, "policy": policy}
    if expected is None:
        with pytest.raises(ValueError, match=r"5 frames, fewer than the 9 of a clip of num_frames \(5\)"):
            dense_indices(**arguments)
    else:
        assert dense_indices(**arguments) == [expected]
        assert dense_indices(**arguments, generator=torch.Generator()) == [expected]


@pytest.mark.parametrize("name", ["num_video_frames", "num_frames", "frame_stride", "num_clips"])
def test_bad_dense_arguments(name):
    with pytest.raises(ValueError, match=rf"{name} \(0\) must be at least 1"):
        dense_indices(**{"num_video_frames": 9, "num_frames": 2, "frame_stride": 1, "num_clips": 1, name: 0})


def test_uniform_clips():
    assert uniform_clips(num_video_frames=12, num_frames=2, num_clips=3) == [[1, 7], [3, 9], [5, 11]]
    for length in range(1, 40):
        middle = uniform_indices(num_video_frames=length, num_frames=5)
        assert uniform_clips(num_video_frames=length, num_frames=5, num_clips=1) == [middle]
        clips = uniform_clips(num_video_frames=length, num_frames=5, num_clips=3)
        assert length < 15 or len(set(map(tuple, clips))) == 3
        assert all(0 <= index < length for clip in clips for index in clip)
