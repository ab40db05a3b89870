"""Which frames of a video make up a clip. Pure functions: numbers in, frame numbers out."""

from itertools import pairwise
from typing import Literal

import torch

ShortVideoPolicy = Literal["repeat_last", "wrap", "error"]


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
        ValueError: a number below 1, an unknown policy, a short video under "error".
    """
    if num_video_frames < 1:
        raise ValueError(f"num_video_frames ({num_video_frames}) must be at least 1")
    if num_frames < 1:
        raise ValueError(f"num_frames ({num_frames}) must be at least 1")
    if policy not in ("repeat_last", "wrap", "error"):
        raise ValueError(f"policy ({policy!r}) must be 'repeat_last', 'wrap' or 'error'")

    if num_video_frames < num_frames:
        if policy == "error":
            raise ValueError(
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
