"""A process that a test starts cannot stop the others, whatever it held when it was killed."""

import multiprocessing
import os
from pathlib import Path

from processes import finish, kill_when, start
from tqdm import tqdm


def hold_the_lock(ready: Path) -> None:
    with tqdm.get_lock():
        ready.touch()
        multiprocessing.Event().wait()


def show_progress() -> None:
    for _ in tqdm(range(3), desc=os.environ["WHAT"]):
        pass


def test_a_killed_process_stops_no_other(tmp_path, monkeypatch):
    monkeypatch.setenv("WHAT", "three steps")  # the server was started before
    log = tmp_path / "log"
    kill_when(tmp_path / "ready", 0, start(hold_the_lock, tmp_path / "ready", log=log), log=log)
    finish(start(show_progress, log=log), log=log)
    assert "three steps: 100%" in log.read_text()


def test_the_end_of_a_process_is_noticed(tmp_path):
    log = tmp_path / "log"
    for wait in (finish, lambda *processes, log: kill_when(tmp_path / "never", 0, *processes, log=log)):
        process = start(show_progress, "one argument too many", log=log)
        try:
            wait(process, log=log)
        except AssertionError as error:
            assert "show_progress() takes 0 positional arguments" in str(error)
        else:
            raise AssertionError("the end of the process was not noticed")
