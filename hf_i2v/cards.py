"""Model cards: costs are counted here, the caller hands in the facts of the training, nothing else is written."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftConfig, PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, PreTrainedConfig

from .configuration_i2v import I2VConfig, hub_name
from .counting import Cost, cost, count_macs, latency
from .data.fingerprints import dataset_fingerprint  # noqa: F401, part of the public path
from .image_checkpoint import pooler_argument
from .methods.config import METHODS, I2VTunerConfig, method_to_dict
from .version import __version__

TEMPLATE = Path(__file__).with_name("model_card_template.md")
LORA = ("LoRA", "arXiv 2106.09685")  # the only tuner of peft that cards name
LATENCY_SECONDS = 10  # at most, unless a single forward pass takes longer
LIMITS_OF_FEATURES = """\
It describes a short, trimmed video by one vector, for a classifier or a search that is built on it; it names nothing.
It sees {frames} frames at a time: what happens between them is not seen. It has the biases of its image model and of
the videos it was trained on. Not meant for identifying or judging people."""
LIMITS = """\
It names what happens in a short, trimmed video, as one of the classes it was trained on; it always names one, also for
a video that shows none of them. It sees {frames} frames at a time: what happens between them is not seen, and a short
action in a long video may be missed. It has the biases of its image model and of the videos it was trained on. Not
meant for identifying or judging people."""


@dataclass
class CardFacts:
    """What a card says beyond the model itself. The card leaves out unknown facts.

    Args:
        method: name of the method ("zeroi2v", "st_adapter+inti"), for a model whose configuration does not name it.
        dataset: the data set's name; `dataset_id`: its name on the Hub.
        fingerprint: of the training files, see `dataset_fingerprint`.
        num_train_videos, num_eval_videos: numbers of videos; `failures`: how many of them could not be read.
        metrics: measured on the evaluation videos, "accuracy" and so on, as shares of 1.
        published: rows (metric, value, source) quoted from papers.
        view_protocol: clips and crops per video in the evaluation.
        trained_parameters: number of trained parameters, for a merged model, from which it cannot be counted.
        cost: of the model, counted before it was sharded.
        merge_error: largest difference of a logit before and after merging, see `merge_error`.
        arguments: further resolved settings; local paths among them are left out.
        license: of the weights. None: the card refers to the base model's licence.
        recipe: the file, for the card of a recipe that was not run.
        measure_latency: time a forward pass of this model and of the plain image model, a few seconds each. A model
            that is sharded or on the meta device is not timed.
        relative_latency: a benchmark's figure instead: this model's latency over the plain image model's.
    """

    method: str | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    fingerprint: str | None = None
    num_train_videos: int | None = None
    num_eval_videos: int | None = None
    failures: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    published: list[tuple[str, str, str]] = field(default_factory=list)
    view_protocol: str | None = None
    trained_parameters: int | None = None
    cost: Cost | None = None
    merge_error: float | None = None
    arguments: dict = field(default_factory=dict)
    license: str | None = None
    measure_latency: bool = True
    relative_latency: str | None = None
    recipe: str | None = None


def write_card(
    model: nn.Module, folder: str | os.PathLike, facts: CardFacts | None = None, repo_id: str | None = None
) -> None:
    """Write `README.md` for a model or adapter that is saved in `folder`. Arguments as in `create_card`."""
    create_card(model, facts, repo_id).save(Path(folder) / "README.md")


def create_card(model: nn.Module, facts: CardFacts | None = None, repo_id: str | None = None) -> ModelCard:
    """The card of a merged or baked model, or of a `PeftModel` (then of its active adapter).

    Args:
        model: an `I2VForVideoClassification` or `I2VModel`, or a `PeftModel` over one or over an image model.
        facts: of the training.
        repo_id: the future repository ("user/name"), for the snippets and the title.

    Raises:
        ValueError: a sharded model without `facts.cost`.
    """
    facts = facts or CardFacts()
    adapter = model.active_peft_config if isinstance(model, PeftModel) else None
    base = model.get_base_model() if adapter is not None else model
    config = base.config
    num_frames = getattr(config, "num_frames", None) or adapter.num_frames
    methods = _methods(adapter, config, facts)
    papers = [paper for method in methods if (paper := _paper(method)) is not None]
    name = " + ".join(title for title, _ in papers)
    classifies = hasattr(base, "classifier")
    base_model = hub_name(getattr(config, "base_model", None) or config.name_or_path)
    mergeable = all(METHODS[m].merges if m in METHODS else m == "lora" for m in methods)
    relation = "adapter" if adapter is not None else "finetune"
    title = repo_id.split("/")[-1] if repo_id else f"{name or 'Video model'} on {base_model or config.model_type}"

    card_data = ModelCardData(
        language="en",
        license=facts.license or "other",
        license_name=None if facts.license else "as-the-base-model",
        library_name="peft" if adapter is not None else "transformers",
        pipeline_tag="video-classification" if classifies else "feature-extraction",
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=sorted(facts.metrics) or (["accuracy"] if facts.published else None),
        tags=["hf_i2v", "video", *methods],
        model_name=title if facts.metrics else None,
        eval_results=_eval_results(facts) or None,
        ignore_metadata_errors=False,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        title=one_line(title),
        summary=_summary(name, base_model, num_frames, relation, classifies),
        recipe=facts.recipe,
        relation=relation,
        classifier=classifies,
        repo_id=repo_id or "user/name",
        loading=_loading(adapter, config, base_model, repo_id or "user/name"),
        finish="merge_and_unload()" if mergeable else "bake()",
        finished_cost=" and needs the MACs of the plain image model and of the classifier" if mergeable else "",
        results=_results(facts),
        view_protocol=one_line(facts.view_protocol or f"one clip of {num_frames} frames per video, one centre crop"),
        cost=_costs(model, config, num_frames, facts),
        merge_error=None if facts.merge_error is None else f"{facts.merge_error:.1e}",
        configuration=json.dumps(_configuration(adapter, config, facts), indent=2, default=str).replace("```", ""),
        data=_data(facts),
        limits=(LIMITS if classifies else LIMITS_OF_FEATURES).format(frames=num_frames),
        sources=_sources(papers),
    )


def one_line(text: object) -> str:
    """Text from outside (names, labels) for Markdown: one line without characters of Markdown or HTML."""
    return re.sub(r"[\x00-\x1f\x7f`|<>{}\[\]]+", " ", str(text)).strip()[:300]


def _methods(adapter: PeftConfig | None, config: PreTrainedConfig, facts: CardFacts) -> list[str]:
    """Names of the methods in the adapter, or in the model."""
    if isinstance(adapter, I2VTunerConfig):
        return [part.method_name for part in adapter.parts()]
    if adapter is not None:  # another tuner of peft
        return ["stdha"] * bool(getattr(config, "time_offsets", None)) + [adapter.peft_type.value.lower()]
    if facts.method:
        return facts.method.split("+")
    finished = getattr(config, "methods", None) or []
    return [m for m in finished if _paper(m)] or ["stdha"] * bool(getattr(config, "time_offsets", None))


def _paper(method: str) -> tuple[str, str] | None:
    """A method's name in the literature, and its paper."""
    if method in METHODS:
        return METHODS[method].title, METHODS[method].paper
    return LORA if method == "lora" else None


def _loading(adapter: PeftConfig | None, config: PreTrainedConfig, base_model: str | None, repo_id: str) -> str:
    """The statements that load an adapter, after `import hf_i2v`."""
    base = base_model or "the-image-model"
    if not isinstance(config, I2VConfig):
        model = f'AutoModel.from_pretrained("{base}")'
    elif isinstance(adapter, I2VTunerConfig):
        return f'model = hf_i2v.AutoPeftModelForVideoClassification.from_pretrained("{repo_id}")'
    else:
        options = f"num_frames={config.num_frames}, num_labels={config.num_labels}"
        model = f'hf_i2v.I2VForVideoClassification.from_image_model("{base}", {options})'
        model += f".with_stdha({config.time_offsets})" if config.time_offsets else ""
    lines = (
        ["from peft import PeftModel", "from transformers import AutoModel"]
        if "AutoModel" in model
        else ["from peft import PeftModel"]
    )
    return "\n".join(
        [*lines, "", f"image_model = {model}", f'model = PeftModel.from_pretrained(image_model, "{repo_id}")']
    )


def _summary(name: str, base_model: str | None, num_frames: int, relation: str, classifies: bool) -> str:
    image_model = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "an image model"
    model = "video classifier" if classifies else "model of video features"
    what = f"An adapter that makes a {model} of" if relation == "adapter" else f"A {model} made from"
    method = f" with {name}" if name else ""
    return f"{what} {image_model}{method}, for clips of {num_frames} frames. Made with hf_i2v {__version__}."


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    dataset = one_line(facts.dataset or facts.dataset_id or "the evaluation videos")
    return [
        EvalResult(
            task_type="video-classification",
            dataset_type=facts.dataset_id or "other",
            dataset_name=dataset,
            metric_type=metric,
            metric_value=round(float(value), 4),
        )
        for metric, value in facts.metrics.items()
    ]


def _results(facts: CardFacts) -> list[dict]:
    measured = [
        (metric, f"{100 * value:.2f} %", "measured by the training script") for metric, value in facts.metrics.items()
    ]
    return [
        dict(zip(("name", "value", "source"), map(one_line, row), strict=True)) for row in measured + facts.published
    ]


def _costs(model: nn.Module, config: PreTrainedConfig, num_frames: int, facts: CardFacts) -> dict:
    image_config = config.image_config if isinstance(config, I2VConfig) else config
    size = getattr(image_config, "vision_config", image_config).image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    frames, clip = (num_frames, 3, height, width), (1, num_frames, 3, height, width)
    place = next(model.parameters())
    is_sharded = any(isinstance(p, DTensor) for p in model.parameters())
    if is_sharded and facts.cost is None:
        raise ValueError(
            "The model is sharded over processes, so its cost cannot be counted. Count it before sharding and hand it "
            "in: CardFacts(cost=hf_i2v.cost.cost(model, clip_shape))."
        )
    times = facts.measure_latency and not (facts.relative_latency or is_sharded or place.is_meta)
    with torch.device(place.device if times else "meta"):
        plain = AutoModel.from_config(image_config, dtype=place.dtype, **pooler_argument(type(image_config), False))
    counted = facts.cost or cost(model, clip)
    trained = counted.trainable_parameters if isinstance(model, PeftModel) else facts.trained_parameters
    rows = {
        "parameters": f"{counted.total_parameters / 1e6:.2f} M",
        "trained": "not recorded" if trained is None else f"{trained / 1e6:.2f} M",
        "macs": f"{counted.macs / 1e9:.4g} G",
        "plain_parameters": f"{sum(p.numel() for p in plain.parameters()) / 1e6:.2f} M",
        "plain_macs": f"{count_macs(plain, frames) / 1e9:.4g} G",
    }
    if facts.relative_latency:
        rows |= {"latency": facts.relative_latency, "plain_latency": "1 ×"}
    if times:
        seconds = latency(model, clip, rounds=5, max_seconds=LATENCY_SECONDS)[0]
        plain_seconds = latency(plain, frames, rounds=5, max_seconds=LATENCY_SECONDS)[0]
        machine = torch.cuda.get_device_name(place.device) if place.is_cuda else _cpu(place.device)
        rows["latency"] = f"{1000 * seconds:.3g} ms ({machine}, {str(place.dtype).removeprefix('torch.')})"
        rows["plain_latency"] = f"{1000 * plain_seconds:.3g} ms"
    return rows


def _cpu(device: torch.device) -> str:
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def _configuration(adapter: PeftConfig | None, config: PreTrainedConfig, facts: CardFacts) -> dict:
    """The method's resolved options or the finished model's configuration, and the settings of the training."""
    if adapter is not None:
        resolved = method_to_dict(adapter)
    else:
        own = ("num_frames", "time_offsets", "temporal_embedding", "pooling", "baked", "classifier_dropout")
        resolved = {
            "model_type": config.model_type,
            **{key: getattr(config, key) for key in own if hasattr(config, key)},
        }
    settings = {
        key: value for key, value in facts.arguments.items() if not _is_local(value) and not key.endswith("token")
    }
    return resolved | ({"training": settings} if settings else {})


def _is_local(value: object) -> bool:
    """Whether a setting may be private to the machine: a path, a folder, a user's name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_is_local, value))
    if isinstance(value, os.PathLike):
        return True
    if not isinstance(value, str):
        return False
    return os.path.exists(value) or (bool(set(value) & set("/\\~*:")) and hub_name(value) is None)


def _data(facts: CardFacts) -> str:
    rows = [
        ("data set", facts.dataset or facts.dataset_id),
        ("fingerprint (names and sizes)", facts.fingerprint),
        ("videos to train on", facts.num_train_videos),
        ("videos to evaluate on", facts.num_eval_videos),
        ("videos that could not be read", facts.failures),
    ]
    known = [f"- {name}: {one_line(value)}" for name, value in rows if value is not None]
    return "\n".join(known) or "Not recorded."


def _sources(papers: list[tuple[str, str]]) -> str:
    lines = []
    for title, source in papers:
        kind, _, number = source.partition(" ")
        link = f"[{source}](https://arxiv.org/abs/{number})" if kind == "arXiv" else source
        lines.append(f"- {title}: {link}")
    return "\n".join([*lines, "- hf_i2v, Apache-2.0: any Hugging Face image transformer becomes a video model"])
