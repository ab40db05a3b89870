"""Files from unknown sources: absurd sizes, labels and weights are refused before they are used."""

import json
import math
import os
import re
import reprlib
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, Union, get_args, get_origin

import torch
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

SIZE_LIMITS = {  # far above any published model
    "num_frames": 4096,
    "temporal_embedding": 4096,
    "num_labels": 1_000_000,
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "num_hidden_layers": 256,
    "num_attention_heads": 1024,
    "image_size": 8192,
    "patch_size": 8192,
    "num_channels": 1024,
    "num_register_tokens": 4096,
}
AT_LEAST_ONE = set(SIZE_LIMITS) - {"temporal_embedding", "num_labels", "num_register_tokens"}
MAX_NUMBER = 10**9  # in a configuration, where the name says nothing
MAX_LENGTH = 4096  # of a list or dictionary in a configuration
MAX_DEPTH = 8  # of lists and dictionaries in each other
MAX_PARAMETERS = 100_000_000_000
UNPROVEN_PARAMETERS = 100_000_000  # a model of more must have a share of the bytes that its configuration promises


def check_values(values: Mapping, *, largest: float = MAX_NUMBER) -> None:
    """Look through a configuration, at any depth, before anything is made of it.

    Args:
        values: what a JSON file holds, by name. A number in a list goes by the name of the list.
        largest: for numbers whose names say nothing; a `…_ratio` may be 64.

    Raises:
        ValueError: a number that is not finite or not believable, an odd label, too long a list, too deep a nesting.
    """
    todo = [("the configuration", values, 0)]
    while todo:
        name, value, depth = todo.pop()
        if name == "id2label":
            check_labels(value)
        elif isinstance(value, (Mapping, list, tuple)):
            longest = SIZE_LIMITS["num_labels"] if name == "label2id" else MAX_LENGTH
            if len(value) > longest:
                raise ValueError(f"{name} is refused: {len(value)} entries, at most {longest} are believable.")
            if depth > MAX_DEPTH:
                raise ValueError(f"{name} is refused: lists in lists, {MAX_DEPTH} deep at most are believable.")
            named = value.items() if isinstance(value, Mapping) else ((name, entry) for entry in value)
            todo += [(str(key), entry, depth + 1) for key, entry in named]
        elif isinstance(value, (int, float)):
            check_limit(name, value, SIZE_LIMITS.get(name, 64 if name.endswith("_ratio") else largest))
            if name in AT_LEAST_ONE and value < 1:
                raise ValueError(f"{name} ({value}) must be >= 1")


def check_limit(name: str, value: float, limit: float) -> None:
    """Raise ValueError if a number is larger than `limit`, as far below zero, or none."""
    if not -limit <= value <= limit:
        shown = f"{value}" if abs(value) < 10**30 or not math.isfinite(value) else "more than 10^30"
        raise ValueError(f"{name} ({shown}) is refused: at most {limit} is believable.")


def check_types(owner: str, values: Mapping, hints: Mapping) -> None:
    """Raise ValueError if one of the named values is not what its type hint says. A list may stand for a tuple, and
    text for a key that is a number: JSON has neither."""
    for name, hint in hints.items():
        if name in values and not fits(values[name], hint):
            wanted = hint.__name__ if isinstance(hint, type) else str(hint)
            raise ValueError(f"{name} ({reprlib.repr(values[name])}) of {owner} must be {wanted}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that may come from JSON is what a type hint says. Hints that are not plain data fit anything."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, choice) for choice in inner)
    if kind is Literal:
        return value in inner
    if kind in (list, tuple):
        inner = [choice for choice in inner if choice is not ...]
        of_kind = isinstance(value, (list, tuple))
        return of_kind and all(not inner or any(fits(v, choice) for choice in inner) for v in value)
    if kind is dict:
        keys, entries = inner or (object, object)
        same = isinstance(value, dict) and all(fits(v, entries) for v in value.values())
        return same and all(fits(k, keys) or (keys is int and _is_number(k)) for k in value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_number(text) -> bool:
    return isinstance(text, str) and re.fullmatch(r"-?\d{1,9}", text) is not None


def check_shape(config: PreTrainedConfig) -> None:
    """Raise ValueError for an image model's configuration that describes no transformer, or too large a one."""
    wanted = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: getattr(config, name, None) for name in wanted}
    check_values(sizes)
    if odd := [f"{name} ({reprlib.repr(size)})" for name, size in sizes.items() if not fits(size, int)]:
        raise ValueError(f"{', '.join(odd)} of the image_config must be whole numbers: it is no vision transformer.")
    width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    if width % heads:
        raise ValueError(f"hidden_size ({width}) must be a multiple of num_attention_heads ({heads}).")
    check_limit("number of parameters", estimated_parameters(config), MAX_PARAMETERS)


def estimated_parameters(config: PreTrainedConfig) -> int:
    """About how many parameters an image model has in its blocks and for its positions, without making it."""
    mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    image, patch = (getattr(config, name, None) or 1 for name in ("image_size", "patch_size"))
    sides = [max(size) if isinstance(size, (list, tuple)) else size for size in (image, patch)]
    block = config.hidden_size * (4 * config.hidden_size + 2 * mlp)
    return config.num_hidden_layers * block + (sides[0] // max(1, sides[1])) ** 2 * config.hidden_size


def check_preprocessing(preprocessing: dict) -> None:
    """Raise ValueError if a size, mean or std is not believable."""
    size, mean, std = (preprocessing.get(name) for name in ("size", "mean", "std"))
    if not isinstance(size, int) or not 0 < size <= SIZE_LIMITS["image_size"]:
        raise ValueError(
            f"preprocessing size ({reprlib.repr(size)}) is refused: 1 to {SIZE_LIMITS['image_size']} is believable."
        )
    lists = isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple)) and len(mean) == len(std) > 0
    if not lists or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in (*mean, *std)) or min(std) <= 0:
        raise ValueError(
            f"preprocessing mean ({reprlib.repr(mean)}) and std ({reprlib.repr(std)}) are refused: as many finite "
            "numbers each, std positive."
        )


def check_labels(id2label: Any) -> None:
    """Raise ValueError unless it is a dictionary from class numbers to labels, or None."""
    if id2label is None:
        return
    if not isinstance(id2label, Mapping):
        raise ValueError(f"id2label ({reprlib.repr(id2label)}) must be a dictionary, {{0: 'first', 1: 'second', …}}.")
    check_limit("num_labels", len(id2label), SIZE_LIMITS["num_labels"])
    for number, label in id2label.items():
        if not (fits(number, int) or _is_number(number)):
            raise ValueError(f"id2label has the key {reprlib.repr(number)}, which is no class number.")
        check_label(label)


def check_label(label: str) -> None:
    """Raise ValueError for a label that is no plain line of text, or that looks like a path: it is shown, and may be
    used to name a file."""
    if not isinstance(label, str):
        raise ValueError(f"The label {reprlib.repr(label)} is refused: it is no text.")
    parts = label.replace("\\", "/").split("/")
    plain = label.replace("\u200c", "").replace("\u200d", "").isprintable()  # joiners of some scripts
    place = parts[0] in ("", "~") or (len(parts) > 1 and re.fullmatch("~.*|[A-Za-z]:", parts[0]))
    if len(label) > 500 or not plain or place or ".." in parts:
        raise ValueError(
            f"The label {label[:60]!r} is refused: labels are printable lines of at most 500 characters that do not "
            "read like a path to somewhere else."
        )


def check_finite(tensors: dict[str, torch.Tensor], source: str | os.PathLike) -> None:
    """Raise ValueError if a weight is NaN or infinite. Quantised and meta tensors are not checked."""
    broken = [
        name
        for name, tensor in tensors.items()
        if type(tensor.data) is torch.Tensor and not (tensor.is_meta or _is_finite(tensor))
    ]
    if broken:
        raise ValueError(f"{source} is refused: NaN or infinite values in {len(broken)} weights, {broken[:3]} …")


def _is_finite(x: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. Their sum would be, and takes a twentieth of the time."""
    wide = torch.float32 if x.itemsize == 1 else None  # numbers of 8 bits cannot be summed as they are
    return bool(torch.isfinite(x.sum(dtype=wide)) or torch.isfinite(x).all())  # large finite values may have no sum


def check_complete(source: str | os.PathLike, **problems: Iterable) -> None:
    """Raise ValueError, with their names, if there are tensors in one of the lists (missing=[…], left_over=[…])."""
    lines = [
        f"{kind.replace('_', ' ')}: {name}" for kind, names in problems.items() for name in sorted(map(str, names))
    ]
    if lines:
        shown = "\n  ".join(lines[:20] + ["…"] * (len(lines) > 20))
        raise ValueError(
            f"The weights of {source} are not those of the model that its configuration describes:\n  {shown}\n"
            "Nothing was loaded. Get a complete copy."
        )


PASSED_ON = (ValueError, OSError, RuntimeError, ImportError, MemoryError, Warning)  # these say something


@contextmanager
def foreign_files(name: str | os.PathLike | None) -> Iterator[None]:
    """Whatever else transformers and peft raise over damaged files becomes a ValueError that names them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PASSED_ON) and not isinstance(error, RecursionError):
            raise
        raise ValueError(
            f"{name} cannot be loaded ({type(error).__name__}: {str(error)[:500]}). Its files are damaged, or an "
            "argument does not fit."
        ) from error


def check_weight_files(name: str, config: PreTrainedConfig, *, variant: str | None = None, **where: Any) -> None:
    """Look at the files with a model's weights before they are read.

    Args:
        name: folder or Hub repository.
        config: the model's configuration.
        variant: as in `from_pretrained`.
        where: what else says where the files lie (`revision`, `token`, `subfolder`, …).

    Raises:
        ValueError: an index that names other files than safetensors of its own folder, or that is none; weights too
            few by far for the configuration.
    """
    quiet = (f"_raise_exceptions_for_{what}" for what in ("missing_entries", "connection_errors", "gated_repo"))
    optional = {**dict.fromkeys(quiet, False), **where}  # a sharded model has no single file, nor a cache of it
    names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    if variant is not None:  # model.fp16.safetensors, model.safetensors.index.fp16.json
        names = [f".{variant}.".join(file.rsplit(".", 1)) for file in names]
    if explicit := getattr(config, "transformers_weights", None):
        names = [str(explicit)]
    for file in names:
        if (found := cached_file(name, file, **optional)) is not None:
            break
    else:
        return  # transformers says what is missing
    files = [found]
    if found.endswith(".json"):
        shards = _shards(Path(found))
        files = [path for shard in shards if (path := cached_file(name, shard, **optional)) is not None]
    promised = estimated_parameters(config.image_config) + config.num_labels * config.hidden_size
    there = sum(Path(file).stat().st_size for file in files)
    if promised > UNPROVEN_PARAMETERS and promised > 16 * there:
        raise ValueError(
            f"{name} is refused: its configuration describes about {promised:.1e} parameters, but its weights are "
            f"{there} bytes."
        )


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names."""
    try:
        content = json.loads(index.read_bytes())
        shards = sorted(set(content["weight_map"].values()))
        content["metadata"].items()
    except (ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{index.name} is no index of weights ({type(error).__name__}: {error}).") from error
    for shard in shards:
        path = PurePosixPath(str(shard))
        outside = path.is_absolute() or PureWindowsPath(str(shard)).anchor or ".." in re.split(r"[\\/]", str(shard))
        if outside or path.suffix != ".safetensors":
            raise ValueError(
                f"{index.name} is refused: it names {str(shard)[:80]!r} as a file of weights. It may name safetensors "
                "files in its own folder only."
            )
    return shards
