"""Checkpoints on disk: written whole or not at all, verified when read, the last few kept.

    output_dir/checkpoint-500/manifest.json        size and SHA-256 of the others, step, configuration of the run,
                                                   and the SHA-256 of all that
                              weights.safetensors  what is trained; not the frozen base
                              state.pt             optimiser, scheduler, random states, position in the data

A checkpoint is written under another name, brought to the disk with fsync and then renamed: whatever stops the
process, `checkpoint-*` is complete. Older ones go only after that.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save
from transformers.utils import logging

from ..whole_files import bring_to_disk

logger = logging.get_logger(__name__)

_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
_DIGEST = "sha256"  # key of the manifest's own
_UNFINISHED = ".unfinished-checkpoint-"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, is damaged, or belongs to another run."""


class Checkpoint(NamedTuple):
    """One checkpoint, read and verified."""

    step: int
    weights: dict[str, torch.Tensor]
    state: dict[str, Any]


def configuration_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`["learning_rate was 0.001, is 0.01", …]`."""
    keys = sorted({*then, *now})
    return [f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in keys if then.get(key) != now.get(key)]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: holds the `checkpoint-<step>` folders.
        configuration: what makes the run what it is, as plain values; a checkpoint of another one is refused.
        total_limit: how many checkpoints to keep. With one only, a damaged checkpoint has none before it to go back
            to.
        differences: compares the configuration of a checkpoint with that of the run, and gives what differs.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        configuration: Mapping[str, Any],
        total_limit: int = 2,
        differences: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]] = configuration_differences,
    ):
        if total_limit < 1:
            raise ValueError(f"total_limit ({total_limit}) must be at least 1")
        self.folder = Path(folder)
        self.configuration = json.loads(json.dumps(configuration))  # as it will be read back
        self.total_limit = total_limit
        self.differences = differences

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in self.folder.glob("checkpoint-*"))
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def save(
        self,
        step: int,
        weights: Mapping[str, torch.Tensor],
        state: Mapping[str, Any],
        spare: Path | None = None,
    ) -> Path:
        """Write the checkpoint of a step, then delete others beyond the limit: first those of later steps, which a run
        that went back has left behind, then the oldest; never `spare`, which somebody still reads.

        Raises:
            CheckpointError: it could not be written (full disk, no permission). What was saved before is untouched.
        """
        unfinished = self.folder / f"{_UNFINISHED}{step}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._discard_unfinished()
            unfinished.mkdir()
            weights = {name: tensor.contiguous() for name, tensor in weights.items()}
            (unfinished / _WEIGHTS).write_bytes(save(weights))  # save_file has an error of its own for a full disk
            torch.save(dict(state), unfinished / _STATE)
            files = {name: _describe(unfinished / name) for name in (_WEIGHTS, _STATE)}
            manifest = {"step": step, "files": files, "configuration": self.configuration}
            manifest[_DIGEST] = _digest(manifest)
            (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            for path in (*unfinished.iterdir(), unfinished):
                bring_to_disk(path)
            if self.path(step).exists():  # damaged, or a run that went back over it
                shutil.rmtree(self.path(step))
            unfinished.rename(self.path(step))
            bring_to_disk(self.folder)
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = ", ".join(path.name for path in map(self.path, self.steps())) or "none"
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {error}. Checkpoints there: "
                f"{kept}. Make room or give permission, and start the same command again to go on from the last one."
            ) from error
        others = sorted(set(self.steps()) - {step}, key=lambda other: (other < step, other))
        for other in others[: max(0, len(others) + 1 - self.total_limit)]:
            if self.path(other) != spare:
                shutil.rmtree(self.path(other), ignore_errors=True)
        return self.path(step)

    def load_last(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is no checkpoint at all. Damaged ones are reported.

        Raises:
            CheckpointError: it belongs to another configuration, or all checkpoints are damaged.
        """
        damage = []
        for step in reversed(self.steps()):
            try:
                checkpoint = self.load(self.path(step))
            except _DamagedError as error:
                damage.append(str(error))
                logger.warning("%s; going back to the checkpoint before it", error)
                continue
            return checkpoint
        if damage:
            raise CheckpointError(
                f"no whole checkpoint is left in {self.folder}: {'; '.join(damage)}. Remove them to start anew."
            )
        return None

    def load(self, path: str | os.PathLike) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            CheckpointError: it is damaged or belongs to another configuration.
        """
        path = Path(path)
        try:
            manifest = json.loads((path / _MANIFEST).read_bytes())
            step, files, configuration = (manifest[key] for key in ("step", "files", "configuration"))
            dict.items(configuration)  # a TypeError where it is none
            wrong = [name for name in (_WEIGHTS, _STATE) if files[name] != _describe(path / name)]
            if manifest.keys() == {
                "step",
                "files",
                "configuration",
            }:  # an older one: the folder's name has the step, too
                is_whole = path.name in (self.path(step).name, "last-checkpoint")
            else:
                is_whole = manifest.pop(_DIGEST) == _digest(manifest)
            if not is_whole:
                wrong.append(_MANIFEST)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _DamagedError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        if wrong:
            raise _DamagedError(f"{path} is damaged (size or checksum of {', '.join(wrong)})")
        if differences := self.differences(configuration, self.configuration):
            raise CheckpointError(
                f"{path} belongs to another configuration: {'; '.join(differences)}. Use the configuration that it "
                "was made with, or another --output_dir."
            )
        return Checkpoint(step, load_file(path / _WEIGHTS), torch.load(path / _STATE, weights_only=True))

    def _discard_unfinished(self) -> None:
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)


class _DamagedError(CheckpointError):
    pass


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
