"""A tuner and its options as a command line says them."""

import dataclasses

import yaml
from peft import PeftConfig

from .config import I2VTunerConfig
from .methods import METHODS


def tuner_config(tuner: str, pairs: list[str]) -> I2VTunerConfig:
    """`"st_adapter+inti"` and `["adapter_width=128", "insert_before=[3]"]` as a configuration; values are YAML.

    An option goes to every method of the tuner that has it.

    Raises:
        SystemExit: a method or an option that does not exist; these are a user's words on a command line.
    """
    names = tuner.split("+")
    if unknown := [name for name in names if name not in METHODS]:
        raise SystemExit(
            f"--tuner {tuner}: {unknown} is not among the methods {', '.join(METHODS)}. (The training script also "
            "takes linear_probe, full, lora and stdha+lora.)"
        )
    if len(set(names)) < len(names):
        raise SystemExit(f"--tuner {tuner} names a method twice.")
    first, *others = [METHODS[name](**options) for name, options in tuner_options(tuner, METHODS, pairs).items()]
    return sum(others, start=first)


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
        return float(value) if isinstance(value, str) else value  # YAML takes 5e-1 for a text
    except ValueError:
        return value
