"""The rule for the number of workers."""

from types import SimpleNamespace

import pytest

from hf_i2v.data import default_num_workers

GIB = 2**30


@pytest.mark.parametrize(
    ("device", "cores", "processes", "free", "batch_bytes", "workers"),
    [
        ("cpu", 64, 1, 64 * GIB, 1, 0),  # the model needs the cores
        ("cuda", 1, 1, 64 * GIB, 1, 1),
        ("cuda", 8, 1, 64 * GIB, 1, 7),
        ("cuda", 64, 1, 64 * GIB, 1, 16),
        ("cuda", 64, 8, 64 * GIB, 1, 7),
        ("cuda", 64, 1, GIB, 2**26, 2),  # 8 batches of 64 MiB fit in half of it, a worker takes 3
        ("cuda", 64, 1, 2**26, 2**26, 0),  # nothing fits
    ],
)
def test_default(monkeypatch, device, cores, processes, free, batch_bytes, workers):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    assert default_num_workers(device, batch_bytes=batch_bytes, processes=processes) == workers
