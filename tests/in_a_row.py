"""run_video_cls.py for what `accelerate launch` starts in the tests. With `--and_then` between their options, runs
come one after the other in the same processes, until one fails."""

import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import run_video_cls

from hf_i2v.training.command import run_as_command


def run_all(argv: list[str]) -> int:
    """Exit status of the last run."""
    PartialState.destroy_process_group = lambda *args: None  # the next run goes on with it
    while "--and_then" in argv:
        at = argv.index("--and_then")
        if status := run_as_command(run_video_cls.main, argv[:at]):
            return status
        AcceleratorState._reset_state(reset_partial_state=True)
        argv = argv[at + 1 :]
    return run_as_command(run_video_cls.main, argv)


if __name__ == "__main__":
    raise SystemExit(run_all(sys.argv[1:]))
