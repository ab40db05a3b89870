"""Numbers that are not finite: noticed a few steps late, so that the device never has to be waited for."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

LAG = 2  # steps between a check on the device and the reading of its outcome
MAX_SKIPPED = 25  # in a row: fp16 then has halved the scale of its loss from 65536 to 0.002


class NotFiniteError(RuntimeError):
    """The loss or a trained weight is NaN or infinite, or fp16 has found no scale for the gradients."""


class _Check(NamedTuple):
    step: int
    is_finite: torch.Tensor  # on the CPU, once `copied` has happened
    copied: torch.Event | None


class FiniteCheck:
    """Looks at the loss and the trained weights after every step.

    ```python
    check = FiniteCheck(parameters)
    check.after_step(step, loss, skipped=accelerator.optimizer_step_was_skipped)   # every step; LAG steps late
    check.now()                                                                    # before anything is saved
    ```

    A step that fp16's scaler has skipped, because the gradients were not finite at the scale of the loss, changed no
    weight and is no error; `MAX_SKIPPED` of them in a row are.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]):
        self.parameters = list(parameters)
        self.skipped = 0  # in a row
        self._checks: deque[_Check] = deque()

    @torch.no_grad()
    def after_step(self, step: int, loss: torch.Tensor, skipped: bool = False) -> None:
        """Look at a step's loss and at the weights after it.

        Raises:
            NotFiniteError: those of this step or of one that is `LAG` steps past.
        """
        self.skipped = self.skipped + 1 if skipped else 0
        if self.skipped >= MAX_SKIPPED:
            raise NotFiniteError(
                f"the gradients were not finite in fp16 in {self.skipped} steps in a row, up to step {step}. {_TRY}"
            )
        if skipped:
            return
        weights = [p.to_local() if isinstance(p, DTensor) else p for p in self.parameters]  # each process its own
        largest = get_total_norm([p for p in weights if p.numel()], norm_type=torch.inf)
        is_finite = torch.isfinite(loss.detach()) & torch.isfinite(largest)
        copied = None if is_finite.device.type == "cpu" else torch.Event(is_finite.device)
        on_cpu = is_finite.to("cpu", non_blocking=True)
        if copied is not None:
            copied.record()
        self._checks.append(_Check(step, on_cpu, copied))
        while len(self._checks) > LAG:
            self._read()

    def now(self) -> None:
        """Wait for all steps so far.

        Raises:
            NotFiniteError: loss or weights of one of them.
        """
        while self._checks:
            self._read()

    def _read(self) -> None:
        check = self._checks.popleft()
        if check.copied is not None:
            check.copied.synchronize()
        if not check.is_finite:
            raise NotFiniteError(f"the loss or a trained weight is not finite after step {check.step}. {_TRY}")


_TRY = (
    "Nothing is saved from there on; checkpoints from before stay. Start anew in another --output_dir, with a lower "
    "--learning_rate, --max_grad_norm 1 or a longer --num_warmup_steps, and with --mixed_precision bf16 or no where "
    "it is fp16."
)
