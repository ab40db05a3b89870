"""How many processes decode, where nobody says."""

import os
import shutil

MOST = 16  # each takes memory, and time to start
SHARED = "/dev/shm"  # where workers hand over what they have decoded
AHEAD = 2  # batches that a worker makes in advance: torch's prefetch_factor


def default_num_workers(device_type: str, *, batch_bytes: int, processes: int = 1) -> int:
    """Workers of a loader.

    Where the model computes on the CPU, none: they would take its cores. Beside a GPU, one for each core that is left
    to this process, at least one and at most 16, but no more than half of the free shared memory can hold the batches
    of; containers often have 64 MB of it, and a worker that finds it full dies.

    Args:
        device_type: "cpu", "cuda", …
        batch_bytes: of a batch as workers hand it over, uint8.
        processes: that train on this machine, each with a loader.
    """
    if device_type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(max(cores // processes - 1, 1), MOST)
    if os.path.isdir(SHARED):
        room = shutil.disk_usage(SHARED).free // 2 // processes
        workers = min(workers, room // ((AHEAD + 1) * max(batch_bytes, 1)))
    return workers
