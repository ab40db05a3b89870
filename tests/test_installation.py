"""What pip installs, what PyPI shows, and the command `hf-i2v`."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import BytesParser
from importlib.util import find_spec
from pathlib import Path

import pytest
from lower_bounds import lower_bounds

import hf_i2v_cli

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCE = PYPROJECT["project"]["urls"]["Source"]


def build(kind: str, source: Path, target: Path) -> Path:
    """An sdist or wheel of a source tree, by setuptools alone."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return target / result.stdout.splitlines()[-1]


@pytest.fixture(scope="session")
def sdist(tmp_path_factory):
    """A source tree unpacked from an sdist of this one."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("pyproject.toml needs setuptools 77 to build")
    folder = tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.egg-info", "build", "dist", "*_output")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    with tarfile.open(build("sdist", folder / "checkout", folder)) as file:
        file.extractall(folder, filter="data")
    (unpacked,) = folder.glob("hf_i2v-*/")
    return unpacked


def test_the_sdist_can_test_itself(sdist):
    def files(root: Path) -> set[str]:
        kinds = ("*.py", "*.md", "*.yaml", "*.png", "*.csv", "*.safetensors")
        found = (path.relative_to(root) for kind in kinds for path in root.rglob(kind))
        return {str(path) for path in found if not {".venv", "build"} & set(path.parts) and path.parts[0][0] != "."}

    assert not files(ROOT) - files(sdist)
    for name in ("Makefile", "constraints.txt", "setup.cfg", ".ci/run"):
        assert (sdist / name).is_file(), name


def test_the_wheel_has_the_scripts_and_says_where_it_is_from(sdist, tmp_path):
    with zipfile.ZipFile(build("wheel", sdist, tmp_path)) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        about = BytesParser().parsebytes(wheel.read(metadata))
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_i2v").rglob("*.py")}
    scripts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*") if path.suffix != ".pyc"}
    scripts = {name.replace("examples/", "hf_i2v/_examples/") for name in scripts if (ROOT / name).is_file()}
    assert modules | scripts | {"hf_i2v_cli.py", "hf_i2v/model_card_template.md"} <= names
    assert not [name for name in names if name.startswith("tests/")]
    assert f"Source, {SOURCE}" in about.get_all("Project-URL")
    assert "Typing :: Typed" in about.get_all("Classifier")


def test_links_of_the_readme_work_on_pypi():
    """PyPI shows README.md alone, so that a relative link leads nowhere there."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r"^\[.+\]: (.+)$", text, re.MULTILINE)
    assert not [link for link in links if not link.startswith("https://")]
    raw = SOURCE.replace("github.com", "raw.githubusercontent.com")
    own = [link for link in links if link.startswith((SOURCE, raw))]
    assert own
    for link in own:
        path = re.fullmatch(rf"(?:{SOURCE}/(?:blob|tree)|{raw})/main/([^#]+)(?:#.*)?", link)
        assert path and (ROOT / path[1]).exists(), link


def test_every_requirement_has_a_lower_bound_that_development_meets():
    bounds = lower_bounds(*PYPROJECT["project"]["optional-dependencies"])

    def number(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {name.lower(): version for name, version in pinned.items()}
    assert bounds.keys() - pinned.keys() <= {"gradio", "einops"}  # in no environment that constraints.txt describes
    assert not {name for name in bounds.keys() & pinned.keys() if number(pinned[name]) < number(bounds[name])}


def test_help_needs_no_torch():
    code = (
        "import sys, hf_i2v_cli; sys.argv = ['hf-i2v', '--help']; hf_i2v_cli.main(); assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(hf_i2v_cli.COMMANDS)


@pytest.mark.parametrize("name", hf_i2v_cli.COMMANDS)
def test_commands(name, monkeypatch, capsys):
    command = hf_i2v_cli.COMMANDS[name]
    missing = [module for module in command.needs if find_spec(module) is None]
    monkeypatch.setattr(sys, "argv", [])  # put back after the test
    if missing:
        assert hf_i2v_cli.main([name]) == 1
        assert f"hf-i2v {name} needs {missing[0]}" in capsys.readouterr().err
        return
    with pytest.raises(SystemExit) as stopped:
        hf_i2v_cli.main([name, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_command_that_is_none(capsys):
    assert hf_i2v_cli.main(["tran"]) == 2
    assert "no command 'tran'; the commands are train, predict" in capsys.readouterr().err


def test_an_expected_error_is_a_sentence(monkeypatch, capsys, tmp_path):
    """Also for commands whose parser does not know `--debug`."""
    monkeypatch.setattr(sys, "argv", [])
    assert hf_i2v_cli.main(["compare", str(tmp_path)]) == 1
    assert f"ValueError: no all_results.json in {tmp_path}" in (said := capsys.readouterr().err)
    assert "Traceback" not in said
    assert hf_i2v_cli.main(["compare", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
