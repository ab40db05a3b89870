"""Files from unknown sources: absurd sizes, labels and weights are refused before they are used."""

import math
import re

import torch

SIZE_LIMITS = {  # far above any published model
    "num_frames": 4096,
    "temporal_embedding": 4096,
    "num_labels": 1_000_000,
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "image_size": 8192,
    "patch_size": 8192,
    "num_channels": 1024,
    "num_register_tokens": 4096,
}
MAX_PARAMETERS = 100_000_000_000


def check_limit(name: str, value, limit: int) -> None:
    """Raise ValueError if a size, or one in a list of sizes, is larger than `limit`, or as far below zero."""
    for size in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(size, (int, float)) and not -limit <= size <= limit:
            raise ValueError(f"{name} ({size}) is refused: at most {limit} is believable.")


def check_sizes(config) -> None:
    """Raise ValueError if a configuration names a size that is not believable."""
    for name, limit in SIZE_LIMITS.items():
        check_limit(name, getattr(config, name, None), limit)


def check_method_sizes(method: dict) -> None:
    """Raise ValueError if a method's option names a size that is not believable."""
    for name, value in method.items():
        check_limit(name, value, 64 if name.endswith("_ratio") else SIZE_LIMITS["hidden_size"])


def check_preprocessing(preprocessing: dict) -> None:
    """Raise ValueError if a size, mean or std is not believable."""
    size, mean, std = (preprocessing.get(name) for name in ("size", "mean", "std"))
    if not isinstance(size, int) or not 0 < size <= SIZE_LIMITS["image_size"]:
        raise ValueError(f"preprocessing size ({size}) is refused: 1 to {SIZE_LIMITS['image_size']} is believable.")
    lists = isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and len(mean) == len(std)
    if not lists or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in (*mean, *std)) or min(std) <= 0:
        raise ValueError(
            f"preprocessing mean ({mean}) and std ({std}) are refused: as many finite numbers each, std positive."
        )


def check_label(label: str) -> None:
    """Raise ValueError for a label that is no plain line of text, or that looks like a path."""
    parts = label.replace("\\", "/").split("/")
    plain = label.replace("\u200c", "").replace("\u200d", "").isprintable()  # joiners of some scripts
    place = parts[0] in ("", "~") or (len(parts) > 1 and re.fullmatch("~.*|[A-Za-z]:", parts[0]))
    if len(label) > 500 or not plain or place or ".." in parts:
        raise ValueError(
            f"The label {label[:60]!r} is refused: labels are printable lines of at most 500 characters that do not "
            "read like a path to somewhere else."
        )


def check_finite(tensors: dict[str, torch.Tensor], source) -> None:
    """Raise ValueError if a weight is NaN or infinite. Quantised and meta tensors are not checked."""
    broken = [
        name
        for name, tensor in tensors.items()
        if type(tensor.data) is torch.Tensor and not (tensor.is_meta or torch.isfinite(tensor).all())
    ]
    if broken:
        raise ValueError(f"{source} is refused: NaN or infinite values in {len(broken)} weights, {broken[:3]} …")
