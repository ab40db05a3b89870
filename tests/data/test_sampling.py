import pytest
import torch

from hf_i2v.data import uniform_indices


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
