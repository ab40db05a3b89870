"""The options of a run: each is said once, with its help, and with what it means when the run goes on."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .checkpoints import configuration_differences


class RunOptions(argparse.ArgumentParser):
    """A parser of three kinds of options.

    `fixed` makes the run what it is: a run does not go on with another value. `free` may have another value then: it
    changes nothing in the weights, or the future only. `here` is free, and so much of this machine and this start that
    it is not written beside the weights. Options that others add (`add_argument`) are free; `are_here` names those of
    them that are places.

    Args:
        description: for --help.
        recipes: folder of the yaml files that `--config` takes by name.
    """

    def __init__(self, description: str, recipes: Path):
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )
        self.recipes = recipes
        self._fixed, self._here = set(), {"help"}

    def fixed(self, *names: str, **options: Any) -> None:
        self._fixed.add(self.add_argument(*names, **options).dest)

    def free(self, *names: str, **options: Any) -> None:
        self.add_argument(*names, **options)

    def here(self, *names: str, **options: Any) -> None:
        self._here.add(self.add_argument(*names, **options).dest)

    def are_here(self, *keys: str) -> None:
        self._here.update(keys)

    def parse(self, argv: list[str] | None) -> argparse.Namespace:
        """The command line (default: this process's) over the options of its `--config`."""
        argv = sys.argv[1:] if argv is None else [str(part) for part in argv]
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config", type=Path)
        first.add_argument("--tuner")
        given = first.parse_known_args(argv)[0]
        return self.parse_args([*(self._recipe(given.config, given.tuner) if given.config else []), *argv])

    def saved(self, args: argparse.Namespace) -> dict[str, Any]:
        """What another run needs to know: plain values, without the places of this machine."""
        return {key: plain(value) for key, value in vars(args).items() if key not in self._here}

    def identity(self, args: argparse.Namespace) -> dict[str, Any]:
        """The fixed options: what makes a run what it is."""
        return {key: value for key, value in self.saved(args).items() if key in self._fixed}

    def differences(self, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """What forbids a run with the configuration `then` to go on with that of `now`.

        An option that `then` does not have, because it is younger, counts with its default; free ones do not count.
        """
        defaults = {key: plain(self.get_default(key)) for key in self._fixed}
        is_free = {action.dest for action in self._actions} - self._fixed
        kept = {key: value for key, value in then.items() if key not in is_free}
        return configuration_differences(defaults | kept, defaults | dict(now))

    def _recipe(self, path: Path, tuner: str | None) -> list[str]:
        """The options of a yaml file as a command line, so that they are checked like one; without those of the
        file's tuner where the command line names another `tuner`."""
        if not path.is_file() and (self.recipes / f"{path}.yaml").is_file():
            path = self.recipes / f"{path}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(recipe.stem for recipe in self.recipes.glob("*.yaml")))
            self.error(f"--config {path} is neither a file nor one of the recipes {names}")
        options = yaml.safe_load(path.read_text()) or {}
        if not isinstance(options, dict):
            self.error(f"{path} holds {options!r:.60}, expected lines 'option: value'")
        if tuner not in (None, options.get("tuner", self.get_default("tuner"))):
            options.pop("tuner_config", None)
        arguments = []
        for key, value in options.items():
            action = self._option_string_actions.get(f"--{key}")
            if action is None:
                self.error(f"{path}: {key!r} is no option of this script; see --help")
            if isinstance(action, (argparse.BooleanOptionalAction, argparse._StoreTrueAction)):
                if not isinstance(value, bool):
                    self.error(f"{path}: {key} is {value!r}, but must be true or false, without quotes")
                arguments += [f"--{key}"] if value else []
            elif isinstance(value, dict) and action.nargs:  # tuner_config
                arguments += [f"--{key}", *(f"{k}={json.dumps(v)}" for k, v in value.items())]
            elif isinstance(value, dict):  # flip_labels
                arguments += [f"--{key}", json.dumps(value)]
            elif value is not None:
                arguments += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        return arguments


def plain(value: Any) -> Any:
    """For json and yaml."""
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def positive(text: str) -> int:
    """The type of an option: a whole number from 1 on."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def json_pairs(text: str) -> dict:
    """The type of an option: {text: text}, in a json file or as json."""
    pairs = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())
    if not isinstance(pairs, dict):
        raise argparse.ArgumentTypeError(f"{text} holds {pairs!r:.60}, expected {{class: class}}")
    return pairs
