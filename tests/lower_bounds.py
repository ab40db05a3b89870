"""The exact lowest versions that pyproject.toml allows, as a constraints file for pip: `make test-oldest` tests them.

python tests/lower_bounds.py train export test > oldest.txt
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def lower_bounds(*extras: str) -> dict[str, str]:
    """Package → lowest version, of what hf_i2v needs and of these extras.

    Raises:
        ValueError: a requirement without a lower bound, or one that has more than that.
    """
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    waiting, bounds = list(project["dependencies"]), {}
    waiting += [f"{project['name']}[{','.join(extras)}]"] if extras else []
    while waiting:
        requirement = waiting.pop()
        if own := re.fullmatch(rf"{project['name']}\[([\w,]+)\]", requirement):
            waiting += [part for extra in own[1].split(",") for part in project["optional-dependencies"][extra]]
        elif bound := re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement):
            bounds[bound[1]] = bound[2]
        else:
            raise ValueError(f"pyproject.toml asks for {requirement!r}; expected name>=version")
    return bounds


if __name__ == "__main__":
    for name, version in sorted(lower_bounds(*sys.argv[1:]).items()):
        print(f"{name}=={version}")
