"""A script as a command: an error that its user can put right is one sentence, only the unexpected has a traceback."""

import linecache
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoints import CheckpointFolder

OURS = Path(__file__).parent.parent


def run_as_command(main: Callable[..., object], argv: list[str] | None = None) -> int:
    """Call `main`, with `argv` if there is one, and give the exit status: what `main` returns as a number, else 0; 130
    after Ctrl-C; 1 after an error.

    An error that hf_i2v or the script raises itself, and a file that is not there, are expected: their message is for
    the user. Anything else may be a defect, and is shown with its traceback. With `--debug` on the command line, all
    are.
    """
    try:
        status = main() if argv is None else main(argv)
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'Stopped.'}", file=sys.stderr)
        return 130
    except Exception as error:
        if "--debug" in sys.argv or not _is_expected(error, Path(main.__code__.co_filename)):
            traceback.print_exc()
        else:
            message = "\n".join([str(error), *getattr(error, "__notes__", [])])
            print(f"\n{type(error).__name__}: {message}\n(--debug shows where it comes from)", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0


@contextmanager
def interrupts_explained(checkpoints: CheckpointFolder) -> Iterator[None]:
    """Ctrl-C inside says from where the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        steps = checkpoints.steps()
        after = f"goes on after step {steps[-1]}" if steps else "starts anew, for there is no checkpoint yet"
        raise KeyboardInterrupt(f"Stopped. The same command {after}.") from None


def _is_expected(error: Exception, script: Path) -> bool:
    if isinstance(error, OSError):  # also transformers' and the Hub's, of models that are not there
        return True
    if isinstance(error, (AttributeError, LookupError, AssertionError, NotImplementedError)):
        return False
    *_, (last, line) = traceback.walk_tb(error.__traceback__)
    raised_in = Path(last.f_code.co_filename)
    is_ours = raised_in == script or OURS in raised_in.parents
    return is_ours and linecache.getline(str(raised_in), line).lstrip().startswith("raise ")  # and not torch's
