"""Workers that are forked from a process in which somebody has decoded videos."""

import gc
import multiprocessing
from pathlib import Path

import av
import processes
from test_predict_videos import write_long


def fork_beside_a_forgotten_decoder(video: Path) -> None:
    """Leave a decoder with threads in a cycle, and have a forked worker collect garbage."""
    gc.disable()  # until the fork, so that the cycle is still there
    container = av.open(str(video))
    stream = container.streams.video[0]
    stream.thread_type, stream.codec_context.thread_count = "SLICE", 2
    next(container.decode(video=0))
    cycle = [container, stream]
    cycle.append(cycle)
    del container, stream, cycle
    worker = multiprocessing.get_context("fork").Process(target=gc.collect)
    worker.start()
    worker.join(20)
    worker.kill()
    print("exit code", worker.exitcode)


def test_a_worker_does_not_close_decoders_of_its_parent(tmp_path):
    process = processes.start(fork_beside_a_forgotten_decoder, write_long(tmp_path / "a.mp4"), log=tmp_path / "log")
    process.join(60)
    assert process.exitcode == 0 and (tmp_path / "log").read_text() == "exit code 0\n"
