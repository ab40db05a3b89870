"""Damage saved models, adapters and checkpoints in many ways and load them: what is refused, what becomes of the rest.

    python benchmarks/fuzz_artefacts.py --num_files 3000 --seed 0

Tiny artefacts are made on the spot, and one file of one of them is damaged at a time; case `i` depends on the seed and
`i` only. Processes with a limit on memory load them; one that dies or does not answer is replaced. Writes
`fuzz_artefacts.csv` beside this script: a row for each file and kind of damage, a column for each verdict.

- refused: an error with a sentence of hf_i2v. library: an error with a sentence of transformers, peft or safetensors.
- equal: it loads, and gives what the undamaged one gives (a checkpoint: this one or the one before it).
- warned: it loads and gives something else, after a warning.
- different: it loads and gives something else, although nothing was said.
- bare: any other exception (KeyError, TypeError, …). died: the process. late: no answer in time.
"""

import argparse
import csv
import json
import logging
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.utils import logging as transformers_logging

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification, STAdapterConfig, ZeroI2VConfig
from hf_i2v.data import Preprocessing, preprocessing_from_pretrained
from hf_i2v.training.checkpoints import CheckpointError, CheckpointFolder, configuration_differences
from hf_i2v.training.results import claim

VERDICTS = ("refused", "library", "equal", "warned", "different", "bare", "died", "late")
PROMISED = ("refused", "library", "equal", "warned", "different")
SENTENCES = (
    ValueError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)  # that a library raises on purpose
PACKAGE = str(Path(sys.modules["hf_i2v"].__file__).parent)
WORKER_BYTES = 8 * 2**30  # of address space, most of it the libraries'
ANSWER_SECONDS = 120
T, SIDE = 4, 16
RUN = {"learning_rate": 0.001, "tuner": "zeroi2v", "videos": ["a", "b"]}


def make_artefacts(folder: Path) -> None:
    """A finished model, the same in shards, an adapter, the checkpoints of a run, an image processor."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPVisionConfig(**sizes, image_size=SIDE, patch_size=8)
    torch.manual_seed(0)
    CLIPVisionModel(config).save_pretrained(folder / "image")
    preprocessing = Preprocessing(SIDE, (0.5,) * 3, (0.25,) * 3, "bilinear")
    preprocessing.image_processor().save_pretrained(folder / "image")
    preprocessing.save_processors(folder / "processor", num_frames=T)
    adapter = adapted(folder / "image", ZeroI2VConfig())
    adapter.save_pretrained(folder / "adapter")
    baked = adapted(folder / "image", STAdapterConfig(adapter_width=8) + ZeroI2VConfig()).base_model.bake()
    baked.save_pretrained(folder / "model")
    baked.save_pretrained(folder / "sharded", max_shard_size="40KB")
    claim(folder / "claimed", RUN, configuration_differences)
    run = CheckpointFolder(folder / "run", RUN)
    for step in (4, 8):
        run.save(step, {"weight": torch.full((8, 8), float(step))}, {"step": step, "random": torch.get_rng_state()})


def adapted(image: Path, config) -> nn.Module:
    labels = {0: "left", 1: "right", 2: "up"}
    model = I2VForVideoClassification.from_image_model(image, num_frames=T, id2label=labels)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def logits(load: Callable, folder: Path) -> list:
    pixels = torch.randn(1, T, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    model = load(folder).eval()
    return [model(pixels).logits.tolist(), dict(model.config.id2label)]


def load_model(folder: Path) -> list:
    return logits(I2VForVideoClassification.from_pretrained, folder)


def load_adapter(folder: Path) -> list:
    return logits(AutoPeftModelForVideoClassification.from_pretrained, folder)


def load_run(folder: Path) -> list:
    found = CheckpointFolder(folder, RUN).load_last()
    if found is not None and found.step == 4:
        found = found._replace(step=8, weights={name: 2 * weight for name, weight in found.weights.items()})
        found.state["step"] = 8
    return [found.step, found.weights["weight"].tolist(), found.state["step"], found.state["random"].tolist()]


def load_claimed(folder: Path) -> list:
    claim(folder, RUN, configuration_differences)  # as a run that is started again
    return []


def load_processor(folder: Path) -> list:
    return [str(preprocessing_from_pretrained(folder))]


FILES = {  # path of the file, and what loads the folder
    "model/config.json": load_model,
    "model/model.safetensors": load_model,
    "sharded/model.safetensors.index.json": load_model,
    "adapter/adapter_config.json": load_adapter,
    "adapter/adapter_model.safetensors": load_adapter,
    "run/checkpoint-8/manifest.json": load_run,
    "run/checkpoint-8/weights.safetensors": load_run,
    "run/checkpoint-8/state.pt": load_run,
    "claimed/run.json": load_claimed,
    "processor/preprocessor_config.json": load_processor,
}


def flip_bits(content: bytearray, draw: random.Random) -> bytes:
    for _ in range(2 ** draw.randrange(4)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def cut_off(content: bytearray, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def change_block(content: bytearray, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    block = content[start : start + 2 ** draw.randrange(8)]
    new = draw.choice([b"", block + block, bytes(len(block)), draw.randbytes(len(block))])
    return content[:start] + new + content[start + len(block) :]


def change_header(content: bytearray, draw: random.Random) -> bytes:
    """The part of a safetensors file that says names, types, shapes and places; its length is kept true."""
    size = int.from_bytes(content[:8], "little")
    header = change_json(content[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def change_json(content: bytearray, draw: random.Random) -> bytes:
    """A value, at any depth, becomes an odd one, goes, comes twice or changes places with another."""
    values = json.loads(content)
    if draw.random() < 0.02:
        return json.dumps(draw.choice(ODD)).encode()
    places = list(leaves(values))
    container, key = draw.choice(places)
    how = draw.random()
    if how < 0.7:
        container[key] = draw.choice(ODD)
    elif how < 0.8:
        del container[key]
    elif how < 0.9:
        other, name = draw.choice(places)
        container[key], other[name] = other[name], container[key]
    elif isinstance(container, dict):
        container[draw.choice(NAMES)] = draw.choice(ODD)
    else:
        container *= draw.choice([2, 1000])
    return json.dumps(values).encode()


def leaves(value) -> Iterator[tuple]:
    """Every place in a nested value, as (container, key or index)."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(places):
        yield value, key
        yield from leaves(inner)


NESTED = eval("[" * 60 + "]" * 60)
ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        2**31,
        10**30,
        -(10**12),
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "8",
    ),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "a\nb",
        "x" * 2000,
        [],
        [0],
        [1, 2],
        ["x"],
        [-1] * 5000,
        [[1], [2]],
        {},
        {"a": 1},
    ),
    *({"0": "a"}, {"x": {"y": {"z": 1}}}, NESTED, [10**9], [1] * 3_000_000),
]
NAMES = [
    "num_labels",
    "pooling",
    "transformers_weights",
    "quantization_config",
    "dtype",
    "peft_type",
    "new",
    "per_layer_config",
]
ANY_FILE = (flip_bits, cut_off, change_block)


def kinds(name: str) -> tuple:
    """The kinds of damage that a file is given."""
    if name.endswith(".json"):
        return (*ANY_FILE, change_json)
    return (*ANY_FILE, change_header) if name.endswith(".safetensors") else ANY_FILE


CASES = [(name, kind) for name in FILES for kind in kinds(name) for _ in range(4 if kind in (change_json,) else 1)]


class Said(logging.Handler):
    """Collects what is logged as a warning."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.add(str(record.msg))


def loaded(load: Callable, folder: Path) -> tuple[str, set[str]]:
    """What a folder gives, as text, and the warnings."""
    said = Said()
    loggers = [transformers_logging.get_logger(), logging.getLogger("hf_i2v"), logging.getLogger("peft")]
    for logger in loggers:
        logger.addHandler(said)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = json.dumps(load(folder))
    finally:
        for logger in loggers:
            logger.removeHandler(said)
    return found, said.texts | {str(warning.message) for warning in caught}


def verdict(load: Callable, folder: Path, expected: tuple[str, set[str]]) -> tuple[str, str]:
    """What comes of loading a folder, and the exception or what it gave instead."""
    try:
        found, said = loaded(load, folder)
    except (MemoryError, Exception) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = last.startswith(PACKAGE) and isinstance(error, (*SENTENCES, CheckpointError))
        kind = "refused" if ours else "library" if isinstance(error, SENTENCES) else "bare"
        return kind, f"{type(error).__name__}: {str(error)[:300]}"
    if found == expected[0]:
        return "equal", ""
    return ("warned" if said - expected[1] else "different"), found[:150]


def try_case(folder: Path, seed: int, number: int, expected: dict[str, tuple]) -> tuple[str, str]:
    """Damage one file, load its folder, put the file back."""
    name, kind = CASES[number % len(CASES)]
    file = folder / name
    whole = file.read_bytes()
    try:
        file.write_bytes(kind(bytearray(whole), random.Random(f"{seed} {number}")))
        return verdict(FILES[name], folder / Path(name).parts[0], expected[name])
    finally:
        if not file.parent.exists():
            file.parent.mkdir()
        file.write_bytes(whole)


def work(folder: Path, seed: int, first: int, last: int) -> None:
    """Print the verdict of each case, as a line of JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (WORKER_BYTES, WORKER_BYTES))
    torch.set_num_threads(1)
    own = Path(tempfile.mkdtemp()) / "artefacts"
    shutil.copytree(folder, own)
    try:
        expected = {name: loaded(load, own / Path(name).parts[0]) for name, load in FILES.items()}
        for number in range(first, last):
            started = time.monotonic()
            kind, error = try_case(own, seed, number, expected)
            print(json.dumps([number, kind, error, round(time.monotonic() - started, 1)]), flush=True)
    finally:
        shutil.rmtree(own.parent)


def answers(folder: Path, seed: int, first: int, last: int) -> Iterator[list]:
    """The verdicts of the cases, with a new process for each that dies or is late."""
    while first < last:
        command = [sys.executable, __file__, "--work", folder, "--seed", seed, "--first", first, "--num_files", last]
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        lost = "died"
        try:
            for line in process.stdout:
                answer = json.loads(line)
                first = answer[0] + 1
                yield answer
        finally:
            process.kill()
            process.wait()
        if first < last:
            yield [first, lost, "", 0]
            first += 1


def write_table(file: Path, counts: dict[tuple[str, str], Counter]) -> Counter:
    """A row for each file and kind of damage, and their sum, which is given back."""
    total = sum(counts.values(), Counter())
    with open(file, "w", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "damage", "loaded", *VERDICTS])
        for (name, kind), count in [*sorted(counts.items()), (("all", ""), total)]:
            writer.writerow([name, kind, count.total(), *(count[verdict] for verdict in VERDICTS)])
    return total


def main(argv: list[str] | None = None) -> Counter:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_files", type=int, default=3000, help="damaged files to load")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path, default=Path(__file__).with_suffix(".csv"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work is not None:
        work(args.work, args.seed, args.first, args.num_files)
        return Counter()
    counts, slowest = {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        make_artefacts(Path(folder))
        for number, found, error, seconds in answers(Path(folder), args.seed, args.first, args.num_files):
            name, kind = CASES[number % len(CASES)]
            counts.setdefault((name, kind.__name__), Counter())[found] += 1
            slowest = max(slowest, seconds)
            if found not in PROMISED[:4] or seconds > 10:
                print(f"case {number} ({name}, {kind.__name__}): {found} {error} {seconds} s", flush=True)
            if number % 100 == 0:
                write_table(args.output_file, counts)
    total = write_table(args.output_file, counts)
    print(dict(total), f"slowest {slowest} s")
    return total


if __name__ == "__main__":
    main()
