"""What a training run consists of besides the frozen model: taken out of it for a checkpoint, and put back.

The same on one process, under DDP and under FSDP2, whose shards are gathered; so a run may go on with another number
of processes.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.utils import logging

from ..data.fingerprints import videos_fingerprint  # noqa: F401, part of the public path
from ..data.loader import ClipLoader
from .checkpoints import Checkpoint
from .meter import Meter

logger = logging.get_logger(__name__)


class ExponentialMovingAverage:
    """Averages of the trained parameters: a ← a + (1 − decay)(p − a) after every step."""

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay ({decay}) must lie between 0 and 1")
        self.decay = decay
        self.parameters = list(trained_parameters(model).values())
        self.take_over()

    @torch.no_grad()
    def take_over(self) -> None:
        """Start anew from the parameters as they are."""
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averages as its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def frozen_fingerprint(model: nn.Module) -> str:
    """Changes with the frozen weights: a checkpoint without them fits these only."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class TrainingState:
    """Collects and restores the state of a run. All processes call `collect` and `restore` together.

    Args:
        model: as prepared by accelerate, without its wrapper (`accelerator.unwrap_model`).
        optimizer: torch's, not accelerate's wrapper.
        scheduler: torch's.
        loader: the `ClipLoader` of the training.
        ema: averages, where there are any.
        scaler: of the gradients in fp16, where there is one.
        meter: which counts the time and the clips of the whole training.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        loader: ClipLoader,
        ema: ExponentialMovingAverage | None = None,
        scaler: torch.amp.GradScaler | None = None,
        meter: Meter | None = None,
    ):
        self.parameters = trained_parameters(model)
        self.optimizer = optimizer
        self.stateful = {"scheduler": scheduler, "loader": loader}
        if scaler is not None:
            self.stateful["scaler"] = scaler
        if meter is not None:
            self.stateful["meter"] = meter
        self.ema = ema

    def collect(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights and state for `CheckpointFolder.save`, on the CPU; the loader's position is that after the batch
        that it gave last."""
        weights = {name: _whole(p) for name, p in self.parameters.items()}
        if self.ema is not None:
            weights |= {f"ema.{name}": _whole(a) for name, a in zip(self.parameters, self.ema.averages, strict=True)}
        state = {key: part.state_dict() for key, part in self.stateful.items()}
        state["optimizer"] = {
            name: {key: _whole(value) for key, value in self.optimizer.state.get(p, {}).items()}
            for name, p in self.parameters.items()
        }
        state["random"] = gather_object([_random_state()])
        return weights, state

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint | None) -> int:
        """Put a checkpoint back; only the first process needs to have it.

        Returns:
            The step that it was made after.
        """
        (checkpoint,) = broadcast_object_list([checkpoint])
        step, weights, state = checkpoint
        for name, parameter in self.parameters.items():
            parameter.copy_(_like(parameter, weights[name]))
            moments = state["optimizer"][name]
            if moments:
                self.optimizer.state[parameter] = {key: _like(parameter, value) for key, value in moments.items()}
        if self.ema is not None:
            for name, average in zip(self.parameters, self.ema.averages, strict=True):
                average.copy_(_like(average, weights[f"ema.{name}"]))
        for key, part in self.stateful.items():
            if key in state or key != "meter":  # which older checkpoints do not have
                part.load_state_dict(state[key])
        for group, rate in zip(self.optimizer.param_groups, state["scheduler"]["_last_lr"], strict=True):
            group["lr"] = rate
        _restore_random_state(state["random"], step)
        return step


def _whole(value: Any) -> Any:
    """A tensor on the CPU, gathered from all processes if it is sharded; other values as they are."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value


def _like(parameter: torch.Tensor, value: Any) -> Any:
    """The reverse: on the parameter's device and sharded as it is. Counters of steps stay scalars on the CPU."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements) if _is_sharded(parameter) else value


def _is_sharded(parameter: torch.Tensor) -> bool:
    return isinstance(parameter, DTensor)


def _random_state() -> dict[str, Any]:
    name, keys, *position = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *position],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random_state(states: list[Mapping[str, Any]], step: int) -> None:
    rank, world_size = _place()
    if len(states) != world_size:
        logger.warning(
            "the checkpoint was made by %d processes, now there are %d: the run goes on with new random numbers for "
            "dropout (the order and the crops of the videos stay the same)",
            len(states),
            world_size,
        )
        set_seed(hash((step, rank)) % 2**32)
        return
    state = states[rank]
    name, keys, *position = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _place() -> tuple[int, int]:
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
