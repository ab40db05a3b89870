"""Windows in a row that show the same become one event."""

from collections.abc import Iterable
from typing import NamedTuple

_SAME = 1e-6  # seconds


class Event(NamedTuple):
    """A class, from `start` to `end` in seconds; `score` is the mean over its windows."""

    start: float
    end: float
    label: str
    score: float


def events_of(
    windows: Iterable[tuple[float, float, dict[str, float]]], *, threshold: float, min_length: float = 0.0
) -> list[Event]:
    """The events of a video. For windows of 2 s every 1 s and a threshold of 0.5:

        seconds      0   1   2   3   4   5   6
        run  0.9     |-------|
        run  0.7         |-------|
        run  0.2             |-------|
        run  0.6                     |-------|
        event        [---------- )   [-------)      scores 0.8 and 0.6

    Args:
        windows: start and end in seconds and the scores of classes, in the order of their starts.
        threshold: a class is on in the windows that score it as high or higher. Several may be on at once.
        min_length: in seconds; events that are shorter are left out.

    Returns:
        Events in the order of their starts. Two windows make one event if the later one is the next in the list, and
        begins before the earlier one ends or just there.
    """
    done: list[Event] = []
    running: dict[str, tuple[float, float, list[float]]] = {}
    for start, end, scores in [*windows, (float("inf"), float("inf"), {})]:
        on = {label: score for label, score in scores.items() if score >= threshold}
        for label in list(running):
            began, until, seen = running[label]
            if label in on and start <= until + _SAME:
                running[label] = began, end, [*seen, on.pop(label)]
            else:
                done.append(Event(began, until, label, sum(seen) / len(seen)))
                del running[label]
        running |= {label: (start, end, [score]) for label, score in on.items()}
    long = [event for event in done if event.end - event.start >= min_length - _SAME]
    return sorted(long, key=lambda event: (event.start, event.label))
