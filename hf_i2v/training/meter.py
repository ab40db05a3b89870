"""What the progress bar shows: the loss, and where the time goes."""

import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator


class Meter:
    """Since it was read last: mean loss, clips per second of all processes, the share of time spent waiting for data;
    and the peak of memory (of the device, or of the process where that is the CPU).

    Its state is the time, the waiting and the clips of the whole training, so that a run that goes on counts on.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.total = {"seconds": 0.0, "waited": 0.0, "clips": 0, "loss": None}
        self._start()

    def _start(self) -> None:
        self.loss = torch.zeros((), device=self.accelerator.device)
        self.batches = self.clips = 0
        self.waited = 0.0
        self.since = time.perf_counter()

    def waiting(self, loader: Iterable) -> Iterator:
        """The loader's batches; the time that they take is counted."""
        iterator = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time inside is not counted, as that of an evaluation."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def add(self, loss: torch.Tensor, clips: int) -> None:
        """Count a batch. The loss stays on the device until it is read."""
        self.loss += loss.detach()
        self.batches += 1
        self.clips += clips * self.accelerator.num_processes

    def read(self) -> dict[str, float]:
        """The values; all processes call it together."""
        loss = self.accelerator.reduce(self.loss, "mean").item() / self.batches
        seconds = time.perf_counter() - self.since
        values = {
            "train_loss": loss,
            "clips_per_second": self.clips / seconds,
            "data_wait": self.waited / seconds,
            "peak_memory_gib": self.peak_memory_gib(),
        }
        self.total = self.state_dict() | {"loss": loss}
        self._start()
        return values

    def peak_memory_gib(self) -> float:
        if self.accelerator.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def results(self) -> dict[str, float]:
        """Of the whole training: seconds without evaluations, clips per second, the share of the time spent waiting
        for data, the loss as read last, memory."""
        total = self.state_dict()
        return {
            "train_runtime": round(total["seconds"], 3),
            "train_clips_per_second": round(total["clips"] / max(total["seconds"], 1e-9), 3),
            "train_data_wait": round(total["waited"] / max(total["seconds"], 1e-9), 4),
            "train_loss": total["loss"],
            "peak_memory_gib": round(self.peak_memory_gib(), 3),
        }

    def state_dict(self) -> dict[str, Any]:
        seconds = self.total["seconds"] + (time.perf_counter() - self.since if self.batches else 0.0)
        waited = self.total["waited"] + (self.waited if self.batches else 0.0)
        return self.total | {"seconds": seconds, "waited": waited, "clips": self.total["clips"] + self.clips}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = {"waited": 0.0, **state}  # younger than some checkpoints
        self._start()
