"""The compressed packets of a video stream, and which of them is which frame.

A packet that is shown has a time stamp of its own, so the sorted time stamps number the frames, where they can be
trusted. Packets are in decoding order: a picture comes after those that it is predicted from, whenever it is shown.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import av

from .media import Clock, ReadLimits, VideoDecodeError

# These store the time a frame is shown at. Others (AVI, program streams) number packets as they come, which is not the
# order of showing where there are B-frames.
_FORMATS_WITH_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv", "nut"}

# MPEG-4 says "same picture as before" in packets of at most this size, which decode to nothing.
_MAX_EMPTY_MPEG4 = 19

# Where a slice is damaged, these show what was decoded before it, over key frames too, and do not mark it.
_SHOW_THE_LAST = {"ffv1", "utvideo"}

# Where the data of a picture end early, these show what its memory held before, and do not mark it.
HIDE_ERRORS = {"hevc", "vvc"}

# A picture that is not predicted from may still change the segments that later ones go by.
NEVER_SKIPPED = {"vp7", "vp8"}

# A picture is decoded at most this many before or after its turn to be shown; AV1 and VP9 hide pictures in between.
_MAX_REORDERED = 64


class Packets:
    """The packets of a stream.

    Args:
        container: open file, at its start.
        stream: video stream in it.
        open_again: opens the file a second time; only where packets do not fit in memory, it is needed.
        clock: looked at for each packet.
        limits: `packets` and `held` count.

    Raises:
        av.error.FFmpegError: the file cannot be read.
        VideoDecodeError: too many packets, or too little time.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        *,
        open_again: Callable[[], AbstractContextManager[av.container.InputContainer]],
        clock: Clock,
        limits: ReadLimits,
    ):
        self._format, self._stream, self._open = container.format.name, stream, open_again
        self._clock = clock
        self._held: list[av.Packet] | None = []
        self.pts: list[int | None] = []
        self._dts: list[int | None] = []
        self._is_key: list[bool] = []
        self._is_shown: list[bool] = []
        num_whole, smallest, num_bytes = 0, None, 0
        for packet in self._demux(container, stream):
            if len(self.pts) == limits.packets:
                raise VideoDecodeError(
                    f"{clock.name}: it has more than {limits.packets} packets, the most that are allowed "
                    "(ReadLimits.packets)"
                )
            self.pts.append(packet.pts)
            self._dts.append(packet.dts)
            self._is_key.append(packet.is_keyframe)
            self._is_shown.append(not packet.is_discard and not _is_hidden(packet, stream))  # edit lists discard
            num_bytes += packet.size
            if num_bytes > limits.held:  # by more than the file has, where its tables name the same bytes twice
                self._held = None
            if self._held is not None:
                self._held.append(packet)
            if not packet.is_corrupt:
                num_whole = len(self.pts)
            smallest = packet.size if smallest is None else min(smallest, packet.size)
        # the torn packet at the end of a truncated file
        for column in (self.pts, self._dts, self._is_key, self._is_shown, self._held or []):
            del column[num_whole:]
        self._smallest = smallest

    def __len__(self) -> int:
        return len(self.pts)

    def shown(self) -> list[int]:
        """Positions of the packets of the frames, in the order in which they are shown."""
        return sorted((i for i, shown in enumerate(self._is_shown) if shown), key=self.pts.__getitem__)

    def are_numbered(self) -> bool:
        """Whether the time stamps number the frames; otherwise only decoding everything does."""
        shown = [pts for pts, shown in zip(self.pts, self._is_shown, strict=True) if shown]
        context = self._stream.codec_context
        if None in self.pts or len(set(shown)) < len(shown):
            return False
        if context.has_b_frames and self._format not in _FORMATS_WITH_TIMES:
            return False
        if context.name in _SHOW_THE_LAST:
            return False
        at = [i for i, is_shown in enumerate(self._is_shown) if is_shown]
        reach = _MAX_REORDERED if context.has_b_frames else 0
        if any(abs(at[place] - position) > reach for place, position in enumerate(self.shown())):
            return False  # damaged time stamps
        if context.name == "mpeg4" and self._smallest is not None and self._smallest <= _MAX_EMPTY_MPEG4:
            return False
        # Pictures before the first key frame lack what they are predicted from; decoders drop some of them.
        return not self.pts or (self._is_key[0] and min(self.pts) == self.pts[0])

    def key_before(self, position: int) -> int:
        """Position from which to decode in order to get the picture at `position`: the last key frame that is neither
        decoded nor shown later. (Pictures that are decoded after a key frame but shown before it may need older ones.)
        """
        pts = self.pts[position]
        while position > 0 and not (self._is_key[position] and self.pts[position] <= pts):
            position -= 1
        return position

    def read(self, start: int = 0) -> Iterator[av.Packet]:
        """The packets from a position on."""
        if self._held is not None:
            return itertools.islice(self._held, start, None)
        return self._read_again(start)

    def _demux(self, container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
        """The packets of a stream, without the empty one at the end."""
        try:
            for packet in container.demux(stream):
                self._clock.check()
                if packet.size:
                    yield packet
            self._clock.check()
        except IndexError:
            pass  # behind the last packet, PyAV trips over streams that turned up late, as they do in damaged files

    def _read_again(self, start: int) -> Iterator[av.Packet]:
        """Open the file anew and seek; where seeking does not lead to a packet that is known, read from its start."""
        stamps = list(zip(self.pts, self._dts, strict=True))
        for seek in (True, False) if start > 0 and self._dts[start] is not None else (False,):
            with self._open() as container:
                stream = container.streams[self._stream.index]
                packets = self._demux(container, stream)
                position = 0
                if seek:
                    try:
                        container.seek(self._dts[start], stream=stream, backward=True)
                        first = next(packets)
                    except (av.error.FFmpegError, StopIteration):
                        continue
                    stamp = (first.pts, first.dts)
                    if stamps.count(stamp) != 1 or (position := stamps.index(stamp)) > start:
                        continue
                    packets = itertools.chain([first], packets)
                yield from itertools.islice(packets, start - position, len(self) - position)
                return


def _is_hidden(packet: av.Packet, stream: av.VideoStream) -> bool:
    """VP8 has pictures that are only predicted from, in packets of their own; a bit of the first byte says so."""
    return stream.codec_context.name in ("vp8", "libvpx") and not memoryview(packet)[0] >> 4 & 1
