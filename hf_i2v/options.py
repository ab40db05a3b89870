"""A tuner and its options from a command line."""

import dataclasses
import importlib
import os
import sys

import yaml
from peft import PeftConfig

from .methods.config import METHODS, I2VTunerConfig


def tuner_config(tuner: str, pairs: list[str]) -> I2VTunerConfig:
    """A tuner and its options, as a command line has them, as a configuration.

    Args:
        tuner: methods joined by +, as in "st_adapter+inti"; an outside method is named `package.module:Config`.
        pairs: options such as "adapter_width=128" and "insert_before=[3]"; values are YAML. Every method that has an
            option gets it.

    Raises:
        SystemExit: a method or an option that does not exist.
    """
    names = [_imported(name) if ":" in name else name for name in tuner.split("+")]
    if unknown := [name for name in names if name not in METHODS]:
        raise SystemExit(
            f"--tuner {tuner}: {unknown} is not among the methods {', '.join(METHODS)}, nor a package.module:Config. "
            "(The training script also takes linear_probe, full, lora and stdha+lora.)"
        )
    if len(set(names)) < len(names):
        raise SystemExit(f"--tuner {tuner} names a method twice.")
    options = tuner_options("+".join(names), METHODS, pairs)
    first, *others = [METHODS[name](**options[name]) for name in names]
    return sum(others, start=first)


BESIDE_METHODS = {"linear_probe": 1e-3, "full": 5e-5, "lora": 5e-4}  # learning rates usual for image transformers


def default_learning_rate(tuner: str) -> float:
    """Of AdamW for a tuner of the training script: that of its method; of several joined by +, the lowest."""
    rates = BESIDE_METHODS | {name: method.learning_rate for name, method in METHODS.items()}
    # an unknown tuner is refused where it is made
    return min(rates.get(name, I2VTunerConfig.learning_rate) for name in _method_names(tuner))


def default_temporal_embedding_learning_rate(tuner: str) -> float | None:
    """Of the temporal embedding, where a method of the tuner has one of its own; else None."""
    rates = {name: method.temporal_embedding_learning_rate for name, method in METHODS.items()}
    return min(filter(None, map(rates.get, _method_names(tuner))), default=None)


def _method_names(tuner: str) -> list[str]:
    return [_imported(name) if ":" in name else name for name in tuner.split("+")]


def _imported(place: str) -> str:
    """The name of the method that `package.module:Config` registers."""
    module, _, name = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise SystemExit(f"--tuner {place} cannot be imported: {error}") from error
    if found not in METHODS.values():
        raise SystemExit(
            f"--tuner {place} is no configuration class registered with hf_i2v.register_method, but {found!r}."
        )
    return found.method_name


def tuner_options(tuner: str, methods: dict[str, type], pairs: list[str]) -> dict[str, dict]:
    """The options of each method that `tuner` names, from `KEY=VALUE` pairs."""
    options = {name: {} for name in tuner.split("+")}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        takers = [name for name in options if key in {field.name for field in dataclasses.fields(methods[name])}]
        if not equals or not takers:
            inherited = {field.name for field in dataclasses.fields(PeftConfig)}
            known = {field.name for name in options for field in dataclasses.fields(methods[name])} - inherited
            raise SystemExit(
                f"--tuner_config takes KEY=VALUE with options of {tuner}, not {pair!r}. There are {sorted(known)}."
            )
        for name in takers:
            options[name][key] = _value(value)
    return options


def _value(text: str):
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value  # YAML reads 5e-1 as a string
    except ValueError:
        return value
