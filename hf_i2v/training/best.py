"""The evaluations of a run: which step is the best, when to stop, and whether training and validation drift apart."""

import json
import shutil
from pathlib import Path

from ..whole_files import write_text_whole

DRIFT = 1.1  # validation loss over its lowest


class Evaluations:
    """One line of `evaluations.jsonl` each: step, train_loss (mean since the line of the log before), eval_loss and
    eval_accuracy. The weights of the best step (highest accuracy, then lowest loss) are in `best-<step>/`.

    A run that goes on after step s forgets what came later, and comes to the same again. So the best one up to the
    last checkpoint stays beside a better one that is younger.

    Args:
        folder: of the run.
        step: after which the run goes on; 0 for a new one.
    """

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        self._file = folder / "evaluations.jsonl"
        lines = self._file.read_text().splitlines() if step and self._file.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["step"] <= step]
        self._warned = False

    def best(self, up_to: float = float("inf")) -> dict | None:
        """The row of the best step."""
        rows = [row for row in self.rows if row["step"] <= up_to]
        return max(rows, key=lambda row: (row["eval_accuracy"], -row["eval_loss"]), default=None)

    def has(self, step: int) -> bool:
        return any(row["step"] == step for row in self.rows)

    def add(self, step: int, *, accuracy: float, loss: float, train_loss: float | None) -> bool:
        """Write an evaluation down; on the main process.

        Returns:
            Whether it is the best so far.
        """
        row = {"step": step, "train_loss": train_loss, "eval_loss": loss, "eval_accuracy": accuracy}
        self.rows = [row for row in self.rows if row["step"] != step] + [row]
        write_text_whole(self._file, "".join(json.dumps(row) + "\n" for row in self.rows))
        return self.best() is row

    def weights(self, step: int) -> Path:
        """Where the weights of the best step are."""
        return self.folder / f"best-{step}"

    def forget_worse(self, last_checkpoint: float) -> None:
        """Remove the weights that are neither the best now nor the best where the run may go on from."""
        kept = {self.weights(row["step"]) for row in (self.best(), self.best(last_checkpoint)) if row}
        for folder in set(self.folder.glob("best-*")) - kept:
            shutil.rmtree(folder)

    def without_progress(self) -> int:
        """Evaluations since the best one."""
        return sum(row["step"] > self.best()["step"] for row in self.rows) if self.rows else 0

    def drift(self) -> str | None:
        """A warning, once, where the validation loss has risen while the training loss fell."""
        lowest, last = min(self.rows, key=lambda row: row["eval_loss"]), self.rows[-1]
        known = lowest["train_loss"] is not None and last["train_loss"] is not None
        if self._warned or not known or last["eval_loss"] <= DRIFT * lowest["eval_loss"]:
            return None
        if last["train_loss"] >= lowest["train_loss"]:
            return None
        self._warned = True
        return (
            f"training and validation drift apart: from step {lowest['step']} to {last['step']} the training loss "
            f"fell from {lowest['train_loss']:.3g} to {last['train_loss']:.3g}, and the validation loss rose from "
            f"{lowest['eval_loss']:.3g} to {last['eval_loss']:.3g}. The model learns the training videos by heart: "
            "--load_best_model_at_end keeps the best step, --early_stopping_patience stops there; more videos, "
            "stronger augmentation or --config small help (docs/small_data.md)"
        )
