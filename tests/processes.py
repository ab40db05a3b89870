"""Processes that have torch and the training script imported already, forked from a server that was started clean.

The server is one process per pytest process. It is started by exec, imports `preloaded` and has one thread. A fork of
the pytest process would copy the locks that its threads hold, and would share tqdm's lock with all other forks: a
child that is killed while it holds that lock stops the others.
"""

import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from tqdm import tqdm

HERE = Path(__file__).parent


def use_fork_server() -> None:
    """From now on multiprocessing starts its processes through the server, those of a DataLoader too."""
    start_server = forkserver._forkserver.ensure_running

    def start_server_with_imports():
        forkserver.set_forkserver_preload(["preloaded"])
        path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
        without_threads = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}  # BLAS, Arrow
        with mock.patch.dict(os.environ, without_threads, PYTHONPATH=path):
            start_server()

    forkserver._forkserver.ensure_running = start_server_with_imports
    multiprocessing.set_start_method("forkserver", force=True)


def start(function: Callable, *args, log: Path) -> BaseProcess:
    """`function(*args)` in a process of its own, in this process's folder and environment. What it prints is added to
    `log`. All of it has to be picklable."""
    process = multiprocessing.Process(target=_call, args=(function, args, log, dict(os.environ)))
    process.start()
    return process


def _call(function: Callable, args: tuple, log: Path, environment: dict[str, str]) -> None:
    import preloaded

    assert os.getppid() == preloaded.SERVER, "the fork server has not imported `preloaded`"
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    tqdm.set_lock(threading.RLock())
    multiprocessing.set_start_method("fork", force=True)  # as where the script is started by hand
    function(*args)


class StandBy:
    """A fork of this process, made while it has one thread, for a launcher that starts `python script.py …` when it
    has more: `popen` takes the place of `subprocess.Popen`, and the script finds its imports made."""

    def __init__(self):
        reading, self._writing = os.pipe()
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            _run_what_is_sent(reading)
        os.close(reading)

    def popen(self, args: tuple[str, ...], environment: dict[str, str]) -> "StandBy":
        with open(self._writing, "wb") as pipe:
            pickle.dump((args, environment), pipe)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("the script", timeout)
            time.sleep(0.01)
        return self.returncode


def _run_what_is_sent(reading: int) -> None:
    try:
        with open(reading, "rb") as pipe:
            args, environment = pickle.load(pipe)  # it does not end: later forks hold its other end too
    except EOFError:  # the launcher has ended, and the later forks with it
        sys.exit(1)
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(args[next(i for i, arg in enumerate(args) if arg.endswith(".py")) :])
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def finish(*processes: BaseProcess, log: Path) -> None:
    """Wait for processes, which must end well. None is left, also where the test ends here."""
    try:
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * len(processes), log.read_text()[-3000:]
    finally:
        kill(*processes)


def kill(*processes: BaseProcess) -> None:
    """SIGKILL, in this order."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def kill_when(exists: Path, seconds: float, *processes: BaseProcess, log: Path) -> None:
    """SIGKILL so many seconds after a file or folder appeared, which must be before one of the processes ends."""
    try:
        while not exists.exists():
            assert all(process.is_alive() for process in processes), f"no {exists.name}: {log.read_text()[-3000:]}"
            time.sleep(0.001)
        time.sleep(seconds)
    finally:
        kill(*processes)
