"""A video that was stored as a folder of pictures.

Shape suffixes: T frame, C channel, h height, w width.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .media import DEFAULT_LIMITS, Clock, ReadLimits, VideoDecodeError, open_regular

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # Pillow reads others too, PostScript through a program among them


class FrameFolder:
    """Reads like a `VideoReader`: the pictures of a folder in the order of the numbers in their names.

    Args:
        path: folder of pictures of one size, e.g. `img_00001.jpg`.
        limits: what reading it may take.

    Raises:
        VideoDecodeError: it cannot be read, or has no picture in it.
    """

    def __init__(self, path: str | os.PathLike, *, limits: ReadLimits = DEFAULT_LIMITS):
        self.name = os.fspath(path)
        self._limits, self._clock = limits, Clock(self.name, limits.seconds)
        try:
            files = [file for file in Path(path).iterdir() if file.suffix.lower() in FRAME_SUFFIXES]
        except OSError as error:
            raise VideoDecodeError(f"{self.name}: the folder cannot be read ({error.strerror})") from error
        self._files = sorted(files, key=_number)
        self.num_frames = len(self._files)
        if not self._files:
            raise VideoDecodeError(f"{self.name}: the folder has no pictures ({', '.join(FRAME_SUFFIXES)})")

    def __enter__(self) -> "FrameFolder":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def times(self) -> list[float]:
        """Nobody knows: pictures have no time stamps.

        Raises:
            VideoDecodeError: always.
        """
        raise VideoDecodeError(
            f"{self.name}: a folder of frames has no time stamps, so that start and end mean nothing"
        )

    def frames(self, indices: Sequence[int]) -> torch.Tensor:
        """The frames of some numbers, uint8 RGB (T, C, h, w).

        Args:
            indices: frame numbers from 0, in any order, repeats allowed.

        Raises:
            VideoDecodeError: an index out of range, a damaged picture, pictures of several sizes, more than the limits
                allow.
        """
        self._clock.start()
        pictures: dict[int, np.ndarray] = {}
        for index in sorted(set(indices)):
            if not 0 <= index < self.num_frames:
                raise VideoDecodeError(
                    f"{self.name}: frame index {index} is out of range, the folder has {self.num_frames} pictures"
                )
            self._clock.check()
            pictures[index] = self._picture(self._files[index], len(indices))
        if len({picture.shape for picture in pictures.values()}) > 1:
            sizes = sorted({picture.shape[:2] for picture in pictures.values()})
            raise VideoDecodeError(f"{self.name}: the frame size changes: (height, width) {sizes}")
        video_ThwC = np.stack([pictures[index] for index in indices])
        return torch.from_numpy(video_ThwC).permute(0, 3, 1, 2)

    def _picture(self, file: Path, num_frames: int) -> np.ndarray:
        try:
            with open_regular(file, str(file)) as opened, Image.open(opened, formats=_FORMATS) as picture:
                if (pixels := picture.width * picture.height) > self._limits.pixels:
                    raise VideoDecodeError(
                        f"{file}: a picture of {picture.width} x {picture.height} pixels, at most "
                        f"{self._limits.pixels} pixels are allowed (ReadLimits.pixels)"
                    )
                if (size := 3 * pixels * num_frames) > self._limits.bytes:
                    raise VideoDecodeError(
                        f"{self.name}: {num_frames} such pictures take {size} bytes, at most {self._limits.bytes} are "
                        "allowed (ReadLimits.bytes)"
                    )
                return np.asarray(picture.convert("RGB"))
        except VideoDecodeError:
            raise
        except Exception as error:  # Pillow's readers raise whatever they stumble over, also ValueError and others
            raise VideoDecodeError(f"{file}: not a picture, or a damaged one ({error})") from error


def _number(file: Path) -> tuple[list[int], str]:
    return [int(part) for part in re.findall(r"\d+", file.stem)], file.name
