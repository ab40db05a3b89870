"""`hf-i2v COMMAND …`: all that hf_i2v does from a command line.

This module lies beside the package, because importing hf_i2v loads torch and transformers, and `hf-i2v --help` needs
neither.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple


class Command(NamedTuple):
    """What a command runs: `main(argv)` of a script of examples/, or of a module of hf_i2v."""

    source: str
    help: str
    needs: tuple[str, ...] = ()  # modules that hf_i2v itself does not need
    extra: str = ""  # which brings them


COMMANDS = {
    "train": Command("run_video_cls", "train on folders or lists of videos; --config takes a recipe by its name"),
    "predict": Command("hf_i2v.predict", "the best classes of videos, as a table, csv or json"),
    "archive": Command("predict_videos", "tables of whole archives and long files: windows, events, embeddings"),
    "check": Command("check_videos", "read every video of a data set and list those that cannot be used"),
    "prepare": Command("hf_i2v.prepare", "make videos quick to read: small, key frames close together, no sound"),
    "export": Command(
        "hf_i2v.export", "ONNX and torch.export files of a model", ("onnx", "onnxruntime", "onnxscript"), "export"
    ),
    "cost": Command("hf_i2v.cost", "parameters, multiply-accumulates, memory and latency of the methods"),
    "live": Command("live", "what a causal model sees in a camera, an RTSP or HTTP stream or a file, as it comes"),
    "demo": Command("demo", "a page on this machine to try a model on", ("gradio",), "gradio"),
    "visualize": Command(
        "hf_i2v.visualize", "draw what a model looks at in a video: png, gif, mp4", ("matplotlib",), "train"
    ),
    "compare": Command("hf_i2v.training.compare", "finished runs side by side: results, cost, options"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; `--debug` after it shows where an error comes from.

    Args:
        argv: default `sys.argv[1:]`; becomes `sys.argv`, as scripts read it.

    Returns:
        The exit status: that of the command, or 2 if there is no such command.
    """
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"hf_i2v {version('hf_i2v')}")
        return 0
    if name not in COMMANDS:
        print(f"hf-i2v: there is no command {name!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    if missing := [module for module in command.needs if find_spec(module) is None]:
        print(
            f"hf-i2v {name} needs {', '.join(missing)}: pip install 'hf_i2v[{command.extra}]'",
            file=sys.stderr,
        )
        return 1
    from hf_i2v.examples import load_example
    from hf_i2v.training.command import run_as_command

    sys.argv = [f"hf-i2v {name}", *arguments]  # usage lines name the first
    module = import_module(command.source) if "." in command.source else load_example(command.source)
    return run_as_command(module.main, [argument for argument in arguments if argument != "--debug"])


def _help() -> str:
    lines = [f"  {name:11}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-i2v COMMAND …",
            "",
            "Video recognition with image transformers.",
            "",
            *lines,
            "",
            "hf-i2v COMMAND --help says what a command takes. On several GPUs: accelerate launch -m hf_i2v.train …,",
            "and hf_i2v.archives.",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
