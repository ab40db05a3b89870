"""What the README and the pages of docs/ say is so: their code runs, their command lines are understood; figures,
defaults and quotations are those of the files that they come from."""

import argparse
import ast
import csv
import dataclasses
import importlib.util
import os
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from pages import PAGES, ROOT, blocks, commands, inline_code, rows, tables
from peft import get_peft_model
from tiny import tiny_image_model, write_moving_texture
from torch.distributed.run import get_args_parser as torchrun_parser

import hf_i2v_cli
from hf_i2v import METHODS, I2VForVideoClassification, I2VTunerConfig, ZeroI2VConfig
from hf_i2v.data import Preprocessing
from hf_i2v.examples import load_example
from hf_i2v.options import default_learning_rate

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [block for block in BLOCKS if block.language in ("", "bash")]
TABLES = [table for page in PAGES for table in tables(page)]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)

NAMES = ["sit_down", "stand_up"]
IN_THE_TEST = {"rtsp://192.168.0.7/stream": "clip.mp4", "num_workers=4": "num_workers=0"}


def test_no_block_is_of_another_kind():
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "text", "bibtex"}
    assert len(PYTHON) > 20 and len(COMMANDS) > 20


# ------------------------------------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the pages name: image models, a finished model, an adapter, videos."""
    folder = tmp_path_factory.mktemp("pages")
    look = Preprocessing(16, (0.5,) * 3, (0.5,) * 3, "bicubic")
    # as many blocks as the real ones; DINOv2's pixels are of another size than its configuration's, as there
    for name, kind, size in (("facebook/dinov2-small", "dinov2", 24), ("openai/clip-vit-base-patch16", "clip", 16)):
        tiny_image_model(kind, num_hidden_layers=12, image_size=size).save_pretrained(folder / name)
        look.image_processor().save_pretrained(folder / name)
    for causal in (False, True):
        model = I2VForVideoClassification.from_image_model(
            folder / "facebook/dinov2-small", num_frames=8, id2label=dict(enumerate(NAMES))
        )
        model = get_peft_model(model, ZeroI2VConfig(causal=causal))
        if not causal:
            model.save_pretrained(folder / "runs" / "first" / "adapter")
        model.merge_and_unload().save_pretrained(folder / ("my-causal-model" if causal else "my-video-model"))
    clip = write_moving_texture(folder / "clip.mp4").read_bytes()
    for split in ("data/train", "data/validation", "videos"):
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                (folder / split / name / f"{i}.mp4").write_bytes(clip)
    return folder


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON), ids=lambda page: page.stem)
def test_python_runs(page, place, monkeypatch):
    """The blocks of a page, one after the other as a reader would run them."""
    monkeypatch.chdir(place)
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    namespace = {"torch": torch}
    for block in PYTHON:
        if block.page == page and not block.comments.keys() & {"not run", "from"}:
            text = block.text
            for named, instead in IN_THE_TEST.items():
                text = text.replace(named, instead)
            exec(block.comments.get("with", ""), namespace)
            exec(compile(text, str(block), "exec"), namespace)


def test_what_is_not_run_says_why():
    assert all(len(block.comments.get("not run", "a reason")) > 5 for block in BLOCKS)


def test_excerpts_stand_in_their_files():
    excerpts = [block for block in PYTHON if "from" in block.comments]
    assert excerpts
    for block in excerpts:
        assert _lines(block.text) in _lines((ROOT / block.comments["from"]).read_text()), str(block)


def _lines(code: str) -> str:
    """However deep it stands, and without empty lines."""
    return "\n".join(filter(None, (line.strip() for line in code.splitlines())))


# ------------------------------------------------------------------------------------------------ command lines


class _Understood(Exception):
    """A parser has read all of a command line."""


@pytest.fixture
def only_parsed(monkeypatch):
    """Commands end when their parser has read their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise _Understood

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["command"])
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


def understood(words: list[str]) -> None:
    """Raise AssertionError or SystemExit where a command line does not hold."""
    program, *arguments = words
    if program == "hf-i2v":
        if arguments[0] not in ("--help", "--version"):
            _runs_main(hf_i2v_cli.COMMANDS[arguments[0]].source, arguments[1:])
    elif program == "accelerate":
        assert arguments[0] == "launch"
        parser = launch_command_parser()
        args = parser.parse_known_args(arguments[1:])[0]
        if args.config_file:
            assert (ROOT / args.config_file).is_file(), args.config_file
        _runs(args.training_script, args.training_script_args, args.module)
    elif program == "torchrun":
        args = torchrun_parser().parse_known_args(arguments)[0]
        _runs(args.training_script, args.training_script_args, args.module)
    elif program == "python":
        is_module = arguments[0] == "-m"
        script, *rest = arguments[1:] if is_module else arguments
        _runs(script, rest, is_module)
    elif program == "make":
        made = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(made)
    elif program == "pip":
        extras = set(re.findall(r"\[(.+?)\]", " ".join(arguments)))
        assert {name for extra in extras for name in extra.split(",")} <= set(
            PYPROJECT["project"]["optional-dependencies"]
        )
    else:
        assert program in ("git", "cd", "ffmpeg", "apt", "pre-commit"), words


def _runs(script: str, arguments: list[str], is_module: bool) -> None:
    modules = {
        "hf_i2v.train": "run_video_cls",
        "hf_i2v.archives": "predict_videos",
        "hf_i2v.visualize": "hf_i2v.visualize",
    }
    if is_module:
        _runs_main(modules.get(script, script), arguments)
    elif script.startswith("examples/"):
        assert (ROOT / script).is_file(), script
        _runs_main(Path(script).stem, arguments)
    else:
        assert (ROOT / script).is_file(), script
        main = runpy.run_path(str(ROOT / script))["main"]
        _main(main, arguments)


def _runs_main(source: str, arguments: list[str]) -> None:
    module = importlib.import_module(source) if "." in source else load_example(source)
    _main(getattr(module, "parse_args", module.main), arguments)


def _main(main, arguments: list[str]) -> None:
    if main.__code__.co_argcount:
        with pytest.raises(_Understood):
            main(arguments)
    else:
        sys.argv = ["command", *arguments]
        with pytest.raises(_Understood):
            main()


def test_command_lines_are_understood(only_parsed, capsys):
    for block in COMMANDS:
        if "not run" not in block.comments:
            for words in commands(block):
                try:
                    understood(words)
                except (SystemExit, AssertionError, KeyError) as error:
                    pytest.fail(f"{block}: {' '.join(words)}\n{error!r}\n{capsys.readouterr().err[-500:]}")


def test_command_lines_in_the_text_are_understood(only_parsed, capsys):
    """Whole ones between backticks, such as `hf-i2v demo --model my-video-model`."""
    lines = [code.split() for page in PAGES for code in inline_code(page.read_text()) if code.startswith("hf-i2v ")]
    for words in lines:
        if len(words) > 2 and "…" not in "".join(words) and not _lacks(words[1]):
            try:
                understood(words)
            except SystemExit:
                pytest.fail(f"{' '.join(words)}\n{capsys.readouterr().err[-300:]}")


def _lacks(command: str) -> bool:
    return not all(map(importlib.util.find_spec, hf_i2v_cli.COMMANDS[command].needs))


OF_OTHERS = {  # options that the pages name, of pip, accelerate, torchrun, ffmpeg, hf_i2v_cli
    *(
        "--constraint",
        "--index-url",
        "--mixed_precision",
        "--cpu",
        "--num_processes",
        "--machine_rank",
        "--nproc_per_node",
    ),
    *("--help", "--debug", "--version"),
}


def test_options_in_the_text_exist(only_parsed, monkeypatch):
    """What the pages say between backticks, such as `--eval_steps 100`."""
    parsers = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, *a, **k: parsers.append(self) or (1 / 0))
    sources = {command.source for name, command in hf_i2v_cli.COMMANDS.items() if not _lacks(name)}
    for source in sources:
        module = importlib.import_module(source) if "." in source else load_example(source)
        with pytest.raises(ZeroDivisionError):
            module.main([])
    with pytest.raises(ZeroDivisionError):
        runpy.run_path(str(ROOT / "docs" / "abilities.py"))["main"]([])
    known = {name for parser in parsers for name in parser._option_string_actions} | OF_OTHERS
    for page in PAGES:
        for code in inline_code(page.read_text()):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert option in known, f"{page.name}: {code}"


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
        r"ZeroI2V (\S+) and ([\d.]+), ST-Adapter (\S+) and ([\d.]+)\), and a step of AIM .*? \((\S+) and ([\d.]+)\)",
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
