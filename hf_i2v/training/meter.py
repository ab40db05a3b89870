"""What the progress bar shows: the loss, and where the time goes."""

import resource
import time
from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator


class Meter:
    """Since it was read last: mean loss, clips per second of all processes, the share of time spent waiting for data;
    and the peak of memory (of the device, or of the process where that is the CPU)."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
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

    def add(self, loss: torch.Tensor, clips: int) -> None:
        """Count a batch. The loss stays on the device until it is read."""
        self.loss += loss.detach()
        self.batches += 1
        self.clips += clips

    def read(self) -> dict[str, float]:
        """The values; all processes call it together."""
        loss = self.accelerator.reduce(self.loss, "mean").item() / self.batches
        seconds = time.perf_counter() - self.since
        if self.accelerator.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        values = {
            "train_loss": loss,
            "clips_per_second": self.clips * self.accelerator.num_processes / seconds,
            "data_wait": self.waited / seconds,
            "peak_memory_gib": peak,
        }
        self._start()
        return values
