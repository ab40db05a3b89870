"""What each method can do, found by running a tiny model: `python docs/abilities.py` writes docs/abilities.md.

    python docs/abilities.py --tuner my_package.my_method:MyConfig --output my_abilities.md

Nothing is looked up in the configuration classes. A value is "yes" where the probe ran and its numbers agreed, "no"
where it was refused (the refusals stand below the table), and "unknown" where a library is missing. Any other error is
raised.
"""

import argparse
import copy
import dataclasses
import importlib.util
import itertools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from peft import get_peft_model
from torch.utils.data import DataLoader, Dataset
from transformers import BitsAndBytesConfig, CLIPVisionConfig, CLIPVisionModel, TorchAoConfig

from hf_i2v import I2VConfig, I2VForVideoClassification, I2VTunerConfig
from hf_i2v.export import export_program
from hf_i2v.feature_cache import FeatureCache, collate_features
from hf_i2v.methods import OWN
from hf_i2v.options import tuner_config

PAGE = Path(__file__).with_name("abilities.md")
FRAMES, LABELS = 4, 3
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}
SMALL = {
    "adapter_width": 8,
    "branch_width": 8,
    "context_width": 8,
    "window_divisors": [1, 2],
}  # narrower than the defaults, only for speed
LIBRARIES = {"8-bit": "bitsandbytes", "4-bit": "bitsandbytes", "int8": "torchao"}


@dataclass(frozen=True)
class Found:
    """A value, and the refusals that led to it."""

    value: str
    reasons: tuple[str, ...] = ()


YES = Found("yes")


class Clips(Dataset):
    """Two clips that do not change."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return {"pixel_values": pixels()[index], "labels": index}

    def fingerprint(self) -> str:
        return "two clips"


def pixels() -> torch.Tensor:
    """Two clips, (2, T, 3, 16, 16)."""
    return torch.randn(2, FRAMES, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def method_config(config_class: type[I2VTunerConfig]) -> I2VTunerConfig:
    names = {field.name for field in fields(config_class)}
    return config_class(**{name: value for name, value in SMALL.items() if name in names})


def base_model(num_blocks: int = 2) -> I2VForVideoClassification:
    torch.manual_seed(0)
    image = CLIPVisionConfig(**SIZES, num_hidden_layers=num_blocks)
    return I2VForVideoClassification(I2VConfig(image_config=image, num_frames=FRAMES, num_labels=LABELS)).eval()


@torch.no_grad()
def adapted(config: I2VTunerConfig, base: torch.nn.Module | None = None) -> torch.nn.Module:
    """An adapter whose every weight matters."""
    model = get_peft_model(base_model() if base is None else base, config).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def finish(model: torch.nn.Module) -> torch.nn.Module:
    try:
        return copy.deepcopy(model).merge_and_unload()
    except ValueError:
        return model.base_model.bake()


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> Found:
    if (difference := (found - expected).abs().max().item()) > tolerance:
        raise AssertionError(f"logits differ by {difference}")
    return YES


def refusal(call: Callable[[], object]) -> Found | None:
    """ "no", with the first sentence of the ValueError; None if the call is not refused."""
    try:
        call()
    except ValueError as error:
        return Found("no", (str(error).split(". ")[0].rstrip("."),))
    return None


@torch.no_grad()
def merges(config: I2VTunerConfig) -> Found:
    model = adapted(config)
    expected = model(pixels()).logits
    if refused := refusal(lambda: copy.deepcopy(model).merge_and_unload()):
        return refused
    return agree(model.merge_and_unload()(pixels()).logits, expected)


@torch.no_grad()
def bakes(config: I2VTunerConfig) -> Found:
    """Baked, saved and loaded."""
    model = adapted(config)
    expected = model(pixels()).logits
    if refused := refusal(lambda: copy.deepcopy(model).base_model.bake()):
        return refused
    with tempfile.TemporaryDirectory() as folder:
        model.base_model.bake().save_pretrained(folder)
        loaded = I2VForVideoClassification.from_pretrained(folder)
    return agree(loaded(pixels()).logits, expected)


def trains_from_a_cache(config: I2VTunerConfig) -> Found:
    """The cached features give the logits of the pixels, and a gradient to the adapter."""
    model = adapted(config)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        cache = None

        def build() -> None:
            nonlocal cache
            cache = FeatureCache.build(folder, model, Clips())

        if refused := refusal(build):
            return refused
        batch = next(iter(DataLoader(cache, batch_size=2, collate_fn=collate_features)))
    outputs = model(**batch)
    outputs.loss.backward()
    if all(p.grad is None for p in model.parameters() if p.requires_grad):
        raise AssertionError("no gradient from the cache")
    with torch.no_grad():
        return agree(outputs.logits, model(pixels()).logits)


@torch.no_grad()
def exports(config: I2VTunerConfig) -> Found:
    """`torch.export` of the finished model, run on another number of clips."""
    model = finish(adapted(config, base_model(num_blocks=1))).eval()
    clips = pixels()[[0, 1, 0]]
    return agree(export_program(model).module()(clips), model(clips).logits, 1e-5)


def on_a_quantised_base(config: I2VTunerConfig, kind: str) -> Found:
    """One step on the frozen quantised base gives every weight a gradient; then the model is finished."""
    if importlib.util.find_spec(LIBRARIES[kind]) is None:
        return Found("unknown", (f"{LIBRARIES[kind]} is not installed",))
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        quantization = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        bits = {"load_in_8bit": kind == "8-bit", "load_in_4bit": kind == "4-bit"}
        quantization = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        CLIPVisionModel(CLIPVisionConfig(**SIZES, num_hidden_layers=2)).save_pretrained(folder)
        base = I2VForVideoClassification.from_image_model(
            folder, num_frames=FRAMES, num_labels=LABELS, quantization_config=quantization
        )
    model = adapted(config, base).train()
    model(pixels(), labels=torch.tensor([0, 1])).loss.backward()
    if all(p.grad is None for p in model.parameters() if p.requires_grad):
        raise AssertionError("no gradient on the quantised base")
    if not finish(model.eval())(pixels()).logits.isfinite().all():
        raise AssertionError("not finite once finished")
    return YES


@torch.no_grad()
def streams(config: I2VTunerConfig) -> Found:
    """In its causal form, if there is one: frame by frame, the logits are those of the clip of all frames so far."""
    causal = None

    def make() -> None:
        nonlocal causal
        causal = dataclasses.replace(config, causal=True)

    if refused := refusal(make):
        return refused
    model = adapted(causal)
    video = torch.cat((pixels(), pixels().flip(1)), dim=1)  # twice as long as a clip
    state = model.new_stream(batch_size=2)
    for frames_SChw in video.unbind(1):
        logits, state = model.step(frames_SChw, state)
    return agree(logits, model(video).logits)


@torch.no_grad()
def composes(first: I2VTunerConfig, second: I2VTunerConfig) -> Found:
    """`first + second` runs as one adapter."""
    composed = None

    def compose() -> None:
        nonlocal composed
        composed = copy.deepcopy(first) + copy.deepcopy(second)

    if refused := refusal(compose):
        return refused
    if not adapted(composed)(pixels()).logits.isfinite().all():
        raise AssertionError("not finite")
    return YES


def probe(config_classes: list[type[I2VTunerConfig]]) -> dict[str, dict[str, Found]]:
    """For each method, by name: what was found, by ability."""
    configs = {config_class.method_name: method_config(config_class) for config_class in config_classes}
    table = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = {name: {} for name in configs}  # by the other method
        for a, b in itertools.combinations(configs, 2):
            if (result := composes(configs[a], configs[b])) is not YES:
                refused[a][b] = refused[b][a] = result.reasons[0].rpartition(": ")[2]
        for name, config in configs.items():
            partners = [other for other in configs if other not in (name, *refused[name])]
            listed = f"all but {', '.join(refused[name])}" if refused[name] else "all"
            table[name] = {
                "merges": merges(copy.deepcopy(config)),
                "bakes": bakes(copy.deepcopy(config)),
                "composes with": Found(listed if partners else "none", tuple(dict.fromkeys(refused[name].values()))),
                "trains from a cache": trains_from_a_cache(copy.deepcopy(config)),
                "exports": exports(copy.deepcopy(config)),
                **{
                    f"{kind} base ({library})": on_a_quantised_base(copy.deepcopy(config), kind)
                    for kind, library in LIBRARIES.items()
                },
                "streams": streams(copy.deepcopy(config)),
            }
    return table


def page(table: dict[str, dict[str, Found]]) -> str:
    """The table as Markdown, with the refusals below it."""
    abilities = list(next(iter(table.values())))
    lines = [
        "# What each method can do",
        "",
        "Found by running a tiny model, and written by `python docs/abilities.py`; do not edit.",
        "With `--tuner package.module:Config` it probes an outside method too.",
        "`exports`: `torch.export` of the finished model. `streams`: frame by frame, with `causal=True`.",
        "",
        f"| method | {' | '.join(abilities)} |",
        "|---" * (len(abilities) + 1) + "|",
    ]
    lines += [f"| `{name}` | {' | '.join(row[a].value for a in abilities)} |" for name, row in table.items()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for (name, row), ability in itertools.product(table.items(), abilities):
        for reason in row[ability].reasons:
            general = reason if ability == "composes with" else reason.replace(name, "it")
            reasons.setdefault((ability, general), []).append(f"`{name}`")
    lines += ["", "Why not:", ""]
    lines += [f"- {ability}: {reason} ({', '.join(names)})." for (ability, reason), names in reasons.items()]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tuner", nargs="*", default=[], metavar="PACKAGE.MODULE:CONFIG", help="further methods to probe"
    )
    parser.add_argument("--output", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.output.write_text(page(probe([*OWN, *(type(tuner_config(name, [])) for name in args.tuner)])))


if __name__ == "__main__":
    main()
