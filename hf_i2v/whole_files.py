"""Files that are whole or not there: written beside their place, brought to the disk, renamed."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside the path, then put it in its place. After a crash the path holds what it held
    before, or all of the new."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    write(beside)
    bring_to_disk(beside)
    beside.replace(path)
    bring_to_disk(path.parent)  # the new name too


def write_text_whole(path: str | os.PathLike, text: str) -> None:
    """Replace a file's text by another, as UTF-8."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", newline=""))


def bring_to_disk(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
