"""Many heads at once: a probe with several learning rates and weight decays, trained in one pass over a feature cache.

As in V-JEPA 2's evaluation (20 heads: 5 learning rates × 4 weight decays, cosine to zero, no warm-up). The heads share
every batch; their weights are stacked, so that classifiers and optimiser work on all of them at once. The best is
chosen on a part of the training data, which none of them trains on; never on the validation set.
"""

import csv
import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from .backbones import find_backbone, without_peft
from .data.loader import ClipLoader
from .data.order import seeded_generator
from .feature_cache import FeatureCache
from .methods.branch import Branch, FrozenFeatures

VJEPA2 = "0.005,0.003,0.001,0.0003,0.0001x0.01,0.1,0.4,0.8"  # the 20 pairs of its evaluation


@dataclass(frozen=True)
class Setting:
    """How one head is trained."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Result(Setting):
    """What became of a head: loss of the last epoch of training; loss and accuracy on the held-out part."""

    training_loss: float
    held_out_loss: float
    held_out_accuracy: float
    best: bool


def sweep_settings(text: str = VJEPA2) -> list[Setting]:
    """All pairs of learning rates and weight decays, from "1e-3,1e-4x0.01,0.1".

    Raises:
        ValueError: no such text, or a number that is negative.
    """
    try:
        rates, decays = ([float(number) for number in part.split(",")] for part in text.split("x"))
    except ValueError as error:
        raise ValueError(f"{text!r} must be RATE,RATE,…xDECAY,DECAY,… such as {VJEPA2}") from error
    if not min(rates) > 0 or not min(decays) >= 0:
        raise ValueError(f"{text!r}: learning rates must be > 0 and weight decays >= 0")
    return [Setting(rate, decay) for decay, rate in itertools.product(decays, rates)]


class Head(nn.Module):
    """What is trained on frozen features: the side branch, if there is one, and the classifier."""

    def __init__(self, branch: Branch | None, dropout: nn.Module, classifier: nn.Linear):
        super().__init__()
        self.branch, self.dropout, self.classifier = branch, dropout, classifier

    @classmethod
    def of(cls, model: nn.Module) -> "Head":
        """The model's own modules.

        Raises:
            ValueError: the model has no classifier, or something in its vision model is trained besides a branch.
        """
        video_model = model.get_base_model() if hasattr(model, "get_base_model") else model
        backbone = find_backbone(video_model).model
        if not hasattr(video_model, "classifier"):
            raise ValueError(f"A {type(video_model).__name__} has no classifier. Use I2VForVideoClassification.")
        inside = [name for name, p in backbone.named_parameters() if p.requires_grad and "clip_head." not in name]
        if inside:
            raise ValueError(f"A sweep trains probes only, but {inside[0]} in the vision model is trained too.")
        classifier = video_model.classifier
        trained = getattr(classifier, "modules_to_save", None)
        if trained is not None:
            classifier = trained[classifier.active_adapters[0]]
        return cls(backbone.working_branch(), video_model.dropout, without_peft(classifier))

    def forward(self, features: FrozenFeatures) -> torch.Tensor:
        """Logits (B, num_labels)."""
        dtype = self.classifier.weight.dtype
        feature_BD = features.feature.to(dtype)
        if self.branch is not None:
            feature_BD = self.branch(features.levels.to(dtype), feature_BD)
        return self.classifier(self.dropout(feature_BD))


class StackedHeads(nn.Module):
    """Copies of a head with weights of their own, each trained by AdamW with its own setting.

    The classifiers of a linear probe work on a batch all at once. Branches work one after another, each forward and
    backward before the next begins, so that memory is that of one; their products are large enough to fill a machine.
    """

    def __init__(self, head: Head, settings: Sequence[Setting], *, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__()
        self.settings = list(settings)
        self.__dict__["head"] = head  # not a submodule: its weights are not used
        named = {name: p for name, p in head.named_parameters() if p.requires_grad}
        self.stacked = {name: p.detach().expand(len(settings), *p.shape).clone() for name, p in named.items()}
        self.gradients = {name: torch.zeros_like(p) for name, p in self.stacked.items()}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.stacked.items()}
        self.betas = betas
        self.steps = 0

    def forward(self, features: FrozenFeatures) -> torch.Tensor:
        """Logits of all heads, (K, B, num_labels), without a graph."""
        with torch.no_grad():
            if self.head.branch is None:
                return self._logits_of_linear_probes(features, self.stacked)
            return torch.stack([self._logits(features, self._own(number)) for number in range(len(self.settings))])

    def backward(self, batch: dict, label_smoothing: float = 0.0) -> torch.Tensor:
        """Each head's mean loss, (K,), whose gradients `step` will use; clips that stand for an unreadable video count
        nothing."""
        features = batch["frozen_features"]
        if self.head.branch is None:
            leaves = {name: _leaf(weight, self.gradients[name]) for name, weight in self.stacked.items()}
            losses_K = _losses(self._logits_of_linear_probes(features, leaves), batch, label_smoothing)
            losses_K.sum().backward()
            return losses_K.detach()
        losses = []
        for number in range(len(self.settings)):
            leaves = {name: _leaf(own, self.gradients[name][number]) for name, own in self._own(number).items()}
            (loss,) = _losses(self._logits(features, leaves)[None], batch, label_smoothing)
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses)

    def _own(self, number: int) -> dict[str, torch.Tensor]:
        return {name: weight[number] for name, weight in self.stacked.items()}

    def _logits(self, features: FrozenFeatures, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        self.head.train(self.training)
        return functional_call(self.head, weights, (features,))

    def _logits_of_linear_probes(self, features: FrozenFeatures, weights: dict[str, torch.Tensor]) -> torch.Tensor:
        self.head.train(self.training)
        weight_KLD, bias_K1L = weights["classifier.weight"], weights["classifier.bias"][:, None]
        feature_KBD = features.feature.to(weight_KLD.dtype).expand(len(self.settings), -1, -1)
        return torch.baddbmm(bias_K1L, self.head.dropout(feature_KBD), weight_KLD.mT)

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One step of AdamW (arXiv 1711.05101), of every head with its own learning rate times `scale`; biases and
        norms without decay. Gradients are cleared."""
        self.steps += 1
        first, second = self.betas
        for name, parameter in self.stacked.items():
            gradient, (mean, square) = self.gradients[name], self.moments[name]
            shape = (-1, *[1] * (parameter.ndim - 1))
            rate = parameter.new_tensor([setting.learning_rate * scale for setting in self.settings]).view(shape)
            if parameter.ndim > 2:  # a matrix in each head
                decay = parameter.new_tensor([setting.weight_decay for setting in self.settings]).view(shape)
                parameter.mul_(1 - rate * decay)
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            # the gradient's memory is free now: new tensors of this size would take longer than the arithmetic
            size = torch.sqrt(square, out=gradient).div_(math.sqrt(1 - second**self.steps)).add_(1e-8)
            parameter.sub_(torch.div(mean, size, out=size).mul_(rate / (1 - first**self.steps)))
            gradient.zero_()

    @torch.no_grad()
    def put_into_the_model(self, number: int) -> None:
        """Give the model the weights of one head."""
        named = dict(self.head.named_parameters())
        for name, weight in self._own(number).items():
            named[name].copy_(weight)


def _leaf(weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The weight as a variable, whose gradient is added to this tensor."""
    leaf = weight.detach().requires_grad_()
    leaf.grad = gradient
    return leaf


def probe_sweep(
    model: nn.Module,
    cache: FeatureCache,
    heads: Sequence[Setting],
    *,
    num_epochs: int = 20,
    batch_size: int = 8,
    held_out: float = 0.1,
    label_smoothing: float = 0.0,
    seed: int = 0,
    num_workers: int = 0,
    show: bool = True,
) -> list[Result]:
    """Train the heads, choose the best and give it to the model.

    Args:
        model: with an active side branch, or for a linear probe with a frozen vision model.
        cache: of the training clips.
        heads: how each is trained.
        num_epochs: passes over the clips that are not held out; the learning rates fall as a cosine to zero.
        batch_size: clips of a step.
        label_smoothing: share of the target that is given to all classes alike.
        seed: of the clips that are held out, and of their order.
        num_workers: processes that read the cache.
        show: a bar of its progress.
        held_out: share of each class's clips to choose on; one clip at least.

    Returns:
        One result a head, in their order. The best has the highest accuracy, then the lowest loss.

    Raises:
        ValueError: no heads, a class with a single clip, or a model that trains more than a probe.
    """
    if not heads:
        raise ValueError("There are no heads to train.")
    device = next(model.parameters()).device
    training, choosing = (cache.part(part) for part in split(cache.labels(), held_out, seed))
    stacked = StackedHeads(Head.of(model), heads)
    common = {"num_workers": num_workers, "device": device, "max_bad_fraction": 1.0}
    batch_size = min(batch_size, len(training))
    loader = ClipLoader(training, batch_size=batch_size, shuffle=True, seed=seed, drop_last=True, **common)
    total, done = num_epochs * len(loader), 0
    stacked.train()
    with tqdm(total=total, desc=f"{len(heads)} heads", unit="step", disable=not show) as progress:
        for _ in range(num_epochs):
            losses_K = torch.zeros(len(heads), device=device)
            for batch in loader:
                losses_of_step_K = stacked.backward(batch, label_smoothing)
                stacked.step(0.5 * (1 + math.cos(math.pi * done / total)))
                losses_K += losses_of_step_K / len(loader)
                done += 1
                progress.update()
    found = _choose(stacked, losses_K, ClipLoader(choosing, batch_size=batch_size, **common))
    stacked.put_into_the_model(next(number for number, result in enumerate(found) if result.best))
    return found


def _losses(logits_KBL: torch.Tensor, batch: dict, label_smoothing: float) -> torch.Tensor:
    """Each head's mean loss, (K,)."""
    labels_KB = batch["labels"].expand(len(logits_KBL), -1)
    losses_KB = F.cross_entropy(
        logits_KBL.float().flatten(0, 1), labels_KB.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view(labels_KB.shape)
    return (losses_KB * ~batch["is_padding"]).mean(1)


@torch.no_grad()
def _choose(stacked: StackedHeads, training_losses_K: torch.Tensor, loader: ClipLoader) -> list[Result]:
    stacked.eval()
    right_K, loss_K, count = 0, 0, 0
    for batch in loader:
        kept = ~batch["is_padding"]
        logits_KBC = stacked(batch["frozen_features"])[:, kept].float()
        labels_KB = batch["labels"][kept].expand(len(logits_KBC), -1)
        right_K = right_K + (logits_KBC.argmax(-1) == labels_KB).sum(1)
        loss_K = loss_K + F.cross_entropy(logits_KBC.movedim(2, 1), labels_KB, reduction="none").sum(1)
        count += labels_KB.shape[1]
    scores = [(right / count, loss / count) for right, loss in zip(right_K.tolist(), loss_K.tolist(), strict=True)]
    best = max(range(len(scores)), key=lambda number: (scores[number][0], -scores[number][1]))
    return [
        Result(**asdict(setting), training_loss=training, held_out_loss=loss, held_out_accuracy=share, best=k == best)
        for k, (setting, training, (share, loss)) in enumerate(
            zip(stacked.settings, training_losses_K.tolist(), scores, strict=True)
        )
    ]


def split(labels: Sequence[int], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on, and those held out: this share of each class, one at least.

    Raises:
        ValueError: a share that leaves nothing, or a class with a single clip.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out ({held_out}) must lie between 0 and 1")
    training, choosing = [], []
    for label in sorted(set(labels)):
        own = [index for index, other in enumerate(labels) if other == label]
        if len(own) < 2:
            raise ValueError(f"Class {label} has a single clip, so none can be held out to choose a head on.")
        order = torch.randperm(len(own), generator=seeded_generator("sweep", seed, label)).tolist()
        count = min(len(own) - 1, max(1, round(held_out * len(own))))
        choosing += [own[place] for place in order[:count]]
        training += [own[place] for place in order[count:]]
    return sorted(training), sorted(choosing)


def write_table(path: str | os.PathLike, results: Sequence[Result]) -> None:
    """The results as CSV."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(results[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
