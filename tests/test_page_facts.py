"""The pages of docs/ and the README say what is so: figures, defaults, lines of code and messages are those of the
files that they come from, and links lead somewhere."""

import ast
import csv
import dataclasses
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, rows, tables

from hf_i2v import METHODS, I2VTunerConfig
from hf_i2v.options import default_learning_rate

TABLES = [table for page in PAGES for table in tables(page)]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

# ------------------------------------------------------------------------------------- tables and their sources


def of(kind: str) -> list:
    found = [pytest.param(t, id=f"{t.page.stem}-{i}") for i, t in enumerate(TABLES) if t.kind == kind]
    assert found
    return found


@pytest.mark.parametrize("table", of("lines"))
def test_lines_of_code_are_those_of_the_file(table):
    lines = {line.strip() for line in (ROOT / table.about).read_text().splitlines()}
    assert [row[-1] for row in table.rows if row[-1].strip("`") not in lines] == []


@pytest.mark.parametrize("table", of("figures"))
def test_figures_are_those_of_the_benchmark(table):
    """A row begins with the name of a row of that file and has no other figures."""
    measured = {}
    for row in rows((ROOT / table.about).read_text()):
        measured.setdefault(row[0], []).append(row)
    for name, *figures in table.rows:
        assert any(set(filter(None, figures)) <= set(row) for row in measured.get(name, [])), (name, figures)


@pytest.mark.parametrize("table", of("defaults"))
def test_defaults_are_those_of_the_configuration(table):
    config = METHODS[table.about]()
    fields = {field.name for field in dataclasses.fields(config)}
    for name, default, *_ in table.rows:
        option = name.strip("`")
        assert option in fields
        assert repr(getattr(config, option)) == default.strip("`"), option
    described = {name.strip("`") for name, *_ in table.rows}
    bases = [base for base in type(config).__mro__ if base.__module__.startswith("hf_i2v.methods.")]
    shared = {field.name for field in dataclasses.fields(I2VTunerConfig)}
    assert {f.name for base in bases for f in dataclasses.fields(base)} - shared <= described


@pytest.mark.parametrize("table", of("recipes"))
def test_recipes_expect_what_the_page_says(table):
    for name, expected in table.rows:
        head = (ROOT / "examples" / "recipes" / f"{name.strip('`')}.yaml").read_text()
        assert re.search(rf"^# Expected top-1: {re.escape(expected)}", head, re.MULTILINE), name


def test_every_recipe_is_on_a_page():
    named = {row[0].strip("`") for table in TABLES if table.kind == "recipes" for row in table.rows}
    assert named == {path.stem for path in (ROOT / "examples" / "recipes").glob("*.yaml")}


@pytest.mark.parametrize("table", of("bounds"))
def test_lower_bounds_are_those_of_the_package(table):
    bounds = {name: version for name, version in (re.split(">=", r) for r in PYPROJECT["project"]["dependencies"])}
    assert {row[0].split(" ")[0]: row[1] for row in table.rows} == bounds


def test_the_readme_counts_what_the_benchmark_counts():
    """Trainable parameters and MACs of its table of methods."""
    counted = {
        row[0].replace(", in training", "").lower(): row
        for row in rows((ROOT / "benchmarks" / "methods.md").read_text())
    }
    table = [row for row in rows((ROOT / "README.md").read_text()) if len(row) == 8][1:]
    assert len(table) == 11
    for row in table:
        name = row[0].lower().replace("attentive probe", "attentive probe, 3+1 blocks")
        if name in counted and "merged" not in row[4]:
            assert [row[3].split(" ")[0], row[4].split(" ")[0], row[5]] == [
                counted[name][1],
                counted[name][3],
                counted[name][7],
            ]
    assert {"aim", "inti", "frame2freq"} <= set(counted)


OWN = [name for name in METHODS if METHODS[name].__module__.startswith("hf_i2v.methods.")]
COST, MACS = "benchmarks/training_cost.md", "benchmarks/methods.md"
SENTENCES = [  # page, words with figures, the file that has them, rows and columns there; or per cent more than plain
    (
        "README.md",
        r"ZeroI2V (\S+) and ([\d.]+), ST-Adapter (\S+) and ([\d.]+)\), and AIM .*? \((\S+) and ([\d.]+)\)",
        COST,
        [(method, column) for method in ("ZeroI2V", "ST-Adapter", "AIM") for column in (4, 5)],
    ),
    (
        "README.md",
        r"plain image model: (\S+) G and (\S+) G",
        MACS,
        [("plain image model", 3), ("plain image model", 7)],
    ),
    ("docs/methods/st_adapter.md", r"at B/16 it adds\s(\d+) %", MACS, [("ST-Adapter 12×384", "more")]),
    ("docs/methods/aim.md", r"costs (\d+) % more than", MACS, [("AIM", "more")]),
]


@pytest.mark.parametrize(("page", "words", "source", "places"), SENTENCES)
def test_figures_in_sentences_are_those_of_the_benchmark(page, words, source, places):
    measured = {row[0]: row for row in rows((ROOT / source).read_text())}
    expected = []
    for name, place in places:
        if place == "more":
            more = float(measured[name][3]) / float(measured["plain image model"][3]) - 1
            expected.append(f"{100 * more:.0f}")
        else:
            expected.append(measured[name][place])
    assert list(re.search(words, (ROOT / page).read_text(), re.DOTALL).groups()) == expected


def test_the_training_page_says_what_a_cache_gains():
    with open(ROOT / "benchmarks" / "from_cache.csv") as file:
        ratios = {row["what"]: float(row["ratio"]) for row in csv.DictReader(file)}
    names = {
        "attentive probe without self-attention (`num_blocks=0`)": "attentive probe, 0+1 blocks",
        "attentive probe, V-JEPA 2's": "attentive probe, 3+1 blocks",
        "ST-Adapter in the last 3 of 12 blocks": "ST-Adapter in the last 3 of 12",
        "Frame2Freq in the last 3 of 12 blocks": "Frame2Freq in the last 3 of 12",
    }
    parts = (": epoch without / with cache", ": 20 heads / 1 head, an epoch from the cache")
    found = 0
    for row in rows((ROOT / "docs" / "training.md").read_text()):
        for said, part in zip(row[1:3], parts, strict=False):
            what = names.get(row[0], row[0]) + part
            if what in ratios:
                assert said == (f"{ratios[what]:.0f}" if ratios[what] >= 10 else f"{ratios[what]:.1f}"), what
                found += 1
    assert found == len(ratios)


def test_the_training_page_says_the_learning_rates():
    text = (ROOT / "docs" / "training.md").read_text()
    table = text[text.index("| tuner | default learning rate |") :].partition("\n\n")[0]
    said = {name: float(row[1]) for row in rows(table)[1:] for name in re.findall(r"`([a-z0-9_+]+)`", row[0])}
    assert said == {name: default_learning_rate(name) for name in said}
    assert set(OWN) <= said.keys()


@pytest.mark.parametrize("method", OWN)
def test_every_method_has_a_page(method):
    page = (ROOT / "docs" / "methods" / f"{method}.md").read_text()
    for heading in (
        "Equation and code",
        "Defaults",
        "When",
        "When not",
        "Cost",
        "The paper's and ours",
        "Against LoRA",
    ):
        assert f"\n## {heading}\n" in page
    number = re.search(r"[\d.:]{6,}", METHODS[method].paper)[0]
    assert number in page and number in (ROOT / "docs" / "papers.md").read_text().replace(
        "volume  = {249},\n  pages   = {", "249:"
    )


# --------------------------------------------------------------------------------- messages, links and the site


def texts() -> str:
    """All strings of the code, one a line, with … where a value is filled in."""
    found = []
    files = [*(ROOT / "hf_i2v").rglob("*.py"), *(ROOT / "examples").glob("*.py"), ROOT / "hf_i2v_cli.py"]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return "\n".join(found)


def test_messages_are_those_of_the_code():
    headings = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 50
    said = texts()
    assert [heading for heading in headings if heading not in said] == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_links_lead_somewhere():
    for page in PAGES:
        if page.parent == ROOT:
            continue
        name = page.relative_to(ROOT / "docs").as_posix()
        for link in hooks.links(page.read_text()):
            hooks.target_of(link, name)  # raises where there is no such file
            path, _, anchor = link.partition("#")
            file = (page.parent / path).resolve() if path else page
            if anchor and file.suffix == ".md":
                assert anchor in anchors(file), f"{name}: {link}"


def test_the_site_has_every_page():
    def leaves(node) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [leaf for part in (node.values() if isinstance(node, dict) else node) for leaf in leaves(part)]

    pages = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    own = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert sorted(pages) == sorted(own | hooks.MOUNTED.keys())
