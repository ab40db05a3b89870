"""Which frames of a video make up a clip. Pure functions: numbers in, frame numbers out."""

from itertools import pairwise
from typing import Literal

import torch

ShortVideoPolicy = Literal["repeat_last", "wrap", "error"]


class ShortVideoError(ValueError):
    """A video has fewer frames than the clip, and the policy is "error"."""


def uniform_indices(
    *,
    num_video_frames: int,
    num_frames: int,
    generator: torch.Generator | None = None,
    policy: ShortVideoPolicy = "repeat_last",
) -> list[int]:
    """Spread a clip over the whole video (temporal segments, TSN).

    The video is cut into `num_frames` segments that cover it without overlap and differ by at most one frame in
    length; segment `i` is the half-open range `[i * N // K, (i + 1) * N // K)` of N video frames for K clip frames.
    One frame is taken from each: a random one with a generator (training), the middle one without (testing; the later
    of the two middle ones where the length is even). For 10 video frames and 4 clip frames:

        frame     0 1 2 3 4 5 6 7 8 9
        segment   0 0 1 1 1 2 2 3 3 3
        middle      x   x     x   x         -> [1, 3, 6, 8]

    Args:
        num_video_frames: frames the video has.
        num_frames: frames the clip shall have.
        generator: source of randomness; None for the middle of each segment.
        policy: what to do with a video shorter than the clip, which is then never random:
            "repeat_last" plays it once and holds its last frame, "wrap" starts it again, "error" refuses it.

    Returns:
        `num_frames` frame numbers in `[0, num_video_frames)`, ascending except where "wrap" starts again.

    Raises:
        ValueError: a number below 1, an unknown policy; `ShortVideoError`, a short video under "error".
    """
    _check(num_video_frames=num_video_frames, num_frames=num_frames)
    _check_policy(policy)
    if num_video_frames < num_frames:
        if policy == "error":
            raise ShortVideoError(
                f"the video has {num_video_frames} frames, fewer than num_frames ({num_frames}); "
                "use the policy 'repeat_last' or 'wrap' to fill the clip"
            )
        if policy == "wrap":
            return [i % num_video_frames for i in range(num_frames)]
        return [min(i, num_video_frames - 1) for i in range(num_frames)]

    edges = [i * num_video_frames // num_frames for i in range(num_frames + 1)]
    segments = list(pairwise(edges))
    if generator is None:
        return [(start + stop) // 2 for start, stop in segments]
    return [int(torch.randint(start, stop, (), generator=generator)) for start, stop in segments]


def uniform_clips(
    *, num_video_frames: int, num_frames: int, num_clips: int, policy: ShortVideoPolicy = "repeat_last"
) -> list[list[int]]:
    """Several clips per video for testing, each spread over the whole video as by `uniform_indices`.

    Clip c of C takes the frame at `(2c + 1) / 2C` of each segment, so that one clip takes the middle. For 12 video
    frames, 2 clip frames and 3 clips:

        frame     0 1 2 3 4 5 6 7 8 9 . .
        segment   0 0 0 0 0 0 1 1 1 1 1 1
        clip        0   1   2   0   1   2       -> [[1, 7], [3, 9], [5, 11]]

    Args:
        num_video_frames, num_frames, policy: as in `uniform_indices`.
        num_clips: C.

    Returns:
        `num_clips` lists of frame numbers. Clips are identical where segments are shorter than `num_clips`.

    Raises:
        ValueError: see `uniform_indices`.
    """
    _check(num_clips=num_clips)
    middle = uniform_indices(num_video_frames=num_video_frames, num_frames=num_frames, policy=policy)
    if num_video_frames < num_frames:
        return [list(middle) for _ in range(num_clips)]
    edges = [i * num_video_frames // num_frames for i in range(num_frames + 1)]
    return [
        [start + (stop - start) * (2 * clip + 1) // (2 * num_clips) for start, stop in pairwise(edges)]
        for clip in range(num_clips)
    ]


def dense_indices(
    *,
    num_video_frames: int,
    num_frames: int,
    frame_stride: int,
    num_clips: int = 1,
    generator: torch.Generator | None = None,
    policy: ShortVideoPolicy = "repeat_last",
) -> list[list[int]]:
    """Clips of neighbouring frames: `num_frames` frames, `frame_stride` apart ("8x8" is 8 frames of stride 8).

    With a generator (training), clips start at random. Without (testing) a single clip lies in the middle, several are
    spread evenly from the first to the last possible start. For 10 video frames, 3 frames of stride 2 and 3 clips:

        frame     0 1 2 3 4 5 6 7 8 9
        clip 0    x   x   x
        clip 1        x   x   x             starts 0, 2, 5: the last possible one is 10 - (3 - 1) * 2 - 1 = 5
        clip 2              x   x   x

    Args:
        num_video_frames: frames the video has.
        num_frames: frames per clip.
        frame_stride: distance of a clip's frames in frames of the video; 1 takes neighbours.
        num_clips: clips per video.
        generator: source of randomness, or None.
        policy: what to do with a video shorter than the `(num_frames - 1) * frame_stride + 1` frames of a clip:
            "repeat_last" holds its last frame, "wrap" starts it again, "error" refuses it.

    Returns:
        `num_clips` lists of frame numbers in `[0, num_video_frames)`.

    Raises:
        ValueError: a number below 1, an unknown policy; `ShortVideoError`, a short video under "error".
    """
    _check(num_video_frames=num_video_frames, num_frames=num_frames, frame_stride=frame_stride, num_clips=num_clips)
    _check_policy(policy)
    span = (num_frames - 1) * frame_stride + 1
    last_start = max(num_video_frames - span, 0)
    if num_video_frames < span and policy == "error":
        raise ShortVideoError(
            f"the video has {num_video_frames} frames, fewer than the {span} of a clip of num_frames ({num_frames}) "
            f"with frame_stride ({frame_stride}); use the policy 'repeat_last' or 'wrap' to fill the clip"
        )
    if generator is not None:
        starts = torch.randint(last_start + 1, (num_clips,), generator=generator).tolist()
    elif num_clips == 1:
        starts = [last_start // 2]
    else:
        starts = [last_start * clip // (num_clips - 1) for clip in range(num_clips)]
    clips = [[start + frame_stride * i for i in range(num_frames)] for start in starts]
    if policy == "wrap":
        return [[index % num_video_frames for index in clip] for clip in clips]
    return [[min(index, num_video_frames - 1) for index in clip] for clip in clips]


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} ({number}) must be at least 1")


def _check_policy(policy: str) -> None:
    if policy not in ("repeat_last", "wrap", "error"):
        raise ValueError(f"policy ({policy!r}) must be 'repeat_last', 'wrap' or 'error'")
