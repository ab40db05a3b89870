"""The README and the pages of docs/: their code runs, and their command lines are understood."""

import argparse
import importlib.util
import re
import runpy
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from pages import PAGES, ROOT, blocks, commands, inline_code
from peft import get_peft_model
from tiny import tiny_image_model, write_moving_texture
from torch.distributed.run import get_args_parser as torchrun_parser

import hf_i2v_cli
from hf_i2v import I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.data import Preprocessing
from hf_i2v.examples import load_example

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [block for block in BLOCKS if block.language in ("", "bash")]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

NAMES = ["sit_down", "stand_up"]
IN_THE_TEST = {"rtsp://192.168.0.7/stream": "clip.mp4", "num_workers=4": "num_workers=0"}


def test_no_block_is_of_another_kind():
    assert {block.language for block in BLOCKS} <= {"", "bash", "python", "text", "bibtex"}
    assert len(PYTHON) > 20 and len(COMMANDS) > 20


# ------------------------------------------------------------------------------------------------------- Python


@pytest.fixture(scope="module")
def made(tmp_path_factory):
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


@pytest.fixture
def place(made, tmp_path):
    """A copy of it for each page, for pages write over what they name."""
    return shutil.copytree(made, tmp_path / "place")


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON), ids=lambda page: page.stem)
def test_python_runs(page, place, monkeypatch):
    """The blocks of a page, one after the other as a reader would run them."""
    monkeypatch.chdir(place)
    torch.manual_seed(0)
    namespace = {}
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
