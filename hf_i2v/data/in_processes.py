"""A function over many videos in processes of their own: one that kills its process, or hangs in it, is found out and
the others go on."""

import faulthandler
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any


def why_lost(video: str, seconds: float) -> str:
    """What is wrong with a video at which `in_processes` lost a process that was `watched`."""
    return (
        f"{video}: decoding it kills the process, or one step of it takes longer than twice the {seconds:g} seconds "
        "of --video_timeout"
    )


@contextmanager
def watched(seconds: float) -> Iterator[Callable[[], None]]:
    """End this process when FFmpeg does not come back: a step may take twice so many seconds. What is given is to be
    called where a step begins; the first begins here."""

    def watch() -> None:
        faulthandler.dump_traceback_later(min(2 * seconds, threading.TIMEOUT_MAX), exit=True)

    watch()
    try:
        yield watch
    finally:
        faulthandler.cancel_dump_traceback_later()


def in_processes(
    function: Callable[..., Any], numbers: Sequence[int], arguments: Callable[[int], tuple], num_workers: int
) -> Iterator[tuple[int, Any, bool]]:
    """Call `function(*arguments(number))` for each number; (number, result, False) as they end, (number, None, True)
    for one that ends its process.

    Args:
        function: has to be picklable, as arguments and results have.
        numbers: of the videos.
        arguments: of a number, made when its turn comes.
        num_workers: processes.

    Raises:
        Exception: what `function` raises.
    """
    waiting = list(numbers)[::-1]
    while waiting:
        suspects: list[int] = []
        yield from _until_one_dies(function, waiting, arguments, num_workers, suspects)
        for number in suspects:  # each in a process of its own, one of them dies again
            lost: list[int] = []
            yield from _until_one_dies(function, [number], arguments, 1, lost)
            if lost:
                yield number, None, True


def _until_one_dies(
    function: Callable[..., Any],
    waiting: list[int],
    arguments: Callable[[int], tuple],
    num_workers: int,
    lost: list[int],
) -> Iterator[tuple[int, Any, bool]]:
    """Take numbers from the end of `waiting`, until none is left or a process dies; then `lost` are those that were
    under way."""
    at_work: dict[Future, int] = {}
    context = get_context("forkserver")  # a fork of this process would copy locks that its threads hold
    context.set_forkserver_preload(["hf_i2v.data"])
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_the_parent) as pool:
        while waiting or at_work:
            try:
                while waiting and len(at_work) < 2 * num_workers:
                    future = pool.submit(function, *arguments(waiting[-1]))
                    at_work[future] = waiting.pop()
                for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield at_work.pop(future), result, False
            except BrokenProcessPool:
                lost += sorted(at_work.values())
                return


def _end_with_the_parent() -> None:
    """A pool's process would outlive a parent that was killed, and go on writing."""

    def end() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
