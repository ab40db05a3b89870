"""A short run of benchmarks/fuzz_artefacts.py: damaged artefacts are refused in a sentence, or load."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fuzz_artefacts.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_artefacts", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def artefacts(fuzz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefacts")
    fuzz.make_artefacts(folder)
    return folder, {name: fuzz.loaded(load, folder / Path(name).parts[0]) for name, load in fuzz.FILES.items()}


def test_damaged_artefacts(fuzz, artefacts):
    folder, expected = artefacts
    found = {}
    for (name, kind), number in {case: number for number, case in enumerate(fuzz.CASES)}.items():
        verdict, error = fuzz.try_case(folder, 1, number, expected)
        assert verdict in fuzz.PROMISED, (number, name, kind.__name__, error)
        if name.startswith(("run/", "claimed/")):
            assert verdict in ("refused", "equal"), (number, name, kind.__name__, error)
        found.setdefault(verdict, []).append(name)
    assert len(found["refused"]) > 5 and len(found["equal"]) > 5


def test_what_it_counts(fuzz, artefacts):
    folder, expected = artefacts
    name = "model/config.json"
    assert fuzz.verdict(fuzz.load_model, folder / "model", expected[name])[0] == "equal"
    assert fuzz.verdict(fuzz.load_model, folder / "model", ("something else", set()))[0] in ("warned", "different")
    assert fuzz.verdict(lambda folder: 1 / 0, folder, expected[name])[0] == "bare"
