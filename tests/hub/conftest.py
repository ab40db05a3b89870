"""A Hub of our own, and processes that know nothing but its address."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, HubServer
from tiny import write_moving_texture

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="session")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    return write_moving_texture(tmp_path_factory.mktemp("video") / "left" / "clip.mp4")


@pytest.fixture(scope="session")
def run_user(hub, tmp_path_factory):
    """Run a script of this folder as another user's process: an empty cache, and a token only if they have one."""

    def run(script: str, *args, token: str | None = None) -> tuple[dict, str]:
        home = tmp_path_factory.mktemp("home")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE.parent)]),
        }
        if token:
            environment["HF_TOKEN"] = token
        done = subprocess.run(
            [sys.executable, HERE / script, *map(str, args)], env=environment, capture_output=True, text=True
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output[-4000:]
        stored = [path for path in home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
        assert TOKEN not in output and not stored
        return json.loads(done.stdout.strip().splitlines()[-1]), output

    return run
