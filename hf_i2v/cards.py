"""Model cards: costs are counted here, the caller hands in the facts of the training, nothing else is written."""

import json
import os
from pathlib import Path

import torch
import yaml
from huggingface_hub import (
    HfApi,
    ModelCard,
    ModelCardData,
    is_offline_mode,
)
from huggingface_hub.utils import httpx
from peft import PeftConfig, PeftModel
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, PreTrainedConfig
from transformers.utils import logging

from .card_facts import CardFacts, eval_result_files, model_index, one_line, result_rows, shown_metrics
from .configuration_i2v import I2VConfig, hub_name, image_shape, write_video_model
from .counting import cost, count_macs, latency
from .data.fingerprints import dataset_fingerprint  # noqa: F401, part of the public path
from .image_checkpoint import known_preprocessing, pooler_argument
from .methods.config import METHODS, I2VTunerConfig, method_to_dict
from .version import __version__

logger = logging.get_logger(__name__)
TEMPLATE = Path(__file__).with_name("model_card_template.md")
LORA = ("LoRA", "arXiv 2106.09685")  # the only tuner of peft that cards name
LICENSE_SECONDS = 5  # for asking the Hub
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


def write_card(
    model: nn.Module, folder: str | os.PathLike, facts: CardFacts | None = None, repo_id: str | None = None
) -> None:
    """Write `README.md` for a model or adapter that is saved in `folder`; `facts` and `repo_id` as in `create_card`.

    For an adapter of another tuner of peft (LoRA) also what `AutoPeftModelForVideoClassification` needs of its video
    model; and what was measured, in the form that the Hub's leaderboards read (`.eval_results/`).
    """
    folder = Path(folder)
    create_card(model, facts, repo_id).save(folder / "README.md")
    if isinstance(model, PeftModel):
        write_video_model(model, folder)
    for name, entries in eval_result_files(facts or CardFacts(), repo_id).items():
        (folder / ".eval_results").mkdir(exist_ok=True)
        (folder / ".eval_results" / name).write_text(yaml.safe_dump(entries, sort_keys=False))


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
    title = repo_id.split("/")[-1] if repo_id else f"{name or 'Video model'} on {_base_title(base_model, config)}"
    license = facts.license or (_license_of(base_model) if repo_id else None)
    metrics = shown_metrics(facts.metrics, len(getattr(config, "id2label", None) or ()))

    card_data = ModelCardData(
        language="en",
        license=license or "other",
        license_name=None if license else "as-the-base-model",
        library_name="peft" if adapter is not None else "transformers",
        pipeline_tag="video-classification" if classifies else "feature-extraction",
        base_model=base_model,
        base_model_relation=relation if base_model else None,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=sorted(metrics) or (["accuracy"] if facts.published else None),
        tags=["hf_i2v", "video", *methods],
        model_name=title if metrics else None,
        eval_results=model_index(facts, metrics) or None,
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
        loading=_loading(config, base_model, repo_id or "user/name"),
        finish="merge_and_unload()" if mergeable else "bake()",
        finished_cost=" and needs the MACs of the plain image model and of the classifier" if mergeable else "",
        results=result_rows(facts, metrics),
        view_protocol=one_line(facts.view_protocol or f"one clip of {num_frames} frames per video, one centre crop"),
        cost=_costs(model, config, num_frames, facts),
        merge_error=None if facts.merge_error is None else f"{facts.merge_error:.1e}",
        configuration=json.dumps(_configuration(adapter, config, facts), indent=2, default=_plain).replace("```", ""),
        data=_data(facts),
        limits=(LIMITS if classifies else LIMITS_OF_FEATURES).format(frames=num_frames),
        sources=_sources(papers),
    )


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


def _loading(config: PreTrainedConfig, base_model: str | None, repo_id: str) -> str:
    """The statements that load an adapter, after `import hf_i2v`."""
    if isinstance(config, I2VConfig):
        return f'model = hf_i2v.AutoPeftModelForVideoClassification.from_pretrained("{repo_id}")'
    base = base_model or "the-image-model"
    return "\n".join(
        [
            "from peft import PeftModel",
            "from transformers import AutoModel",
            "",
            f'image_model = AutoModel.from_pretrained("{base}")',
            f'model = PeftModel.from_pretrained(image_model, "{repo_id}")',
        ]
    )


def _summary(name: str, base_model: str | None, num_frames: int, relation: str, classifies: bool) -> str:
    image_model = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else "an image model"
    model = "video classifier" if classifies else "model of video features"
    what = f"An adapter that makes a {model} of" if relation == "adapter" else f"A {model} made from"
    method = f" with {name}" if name else ""
    return f"{what} {image_model}{method}, for clips of {num_frames} frames. Made with hf_i2v {__version__}."


def _base_title(base_model: str | None, config: PreTrainedConfig) -> str:
    """What the base is called in a title: its name on the Hub, or of its folder, or its kind."""
    if base_model:
        return base_model
    image_config = config.image_config if isinstance(config, I2VConfig) else config
    is_finished = bool(getattr(config, "methods", None))  # then it may have been loaded from a folder of its own
    return ("" if is_finished else Path(config.name_or_path).name) or image_config.model_type


def _license_of(base_model: str | None) -> str | None:
    """The licence of a model on the Hub; None if the Hub does not say, or cannot be asked."""
    if base_model is None or is_offline_mode():
        return None
    try:
        tags = HfApi().model_info(base_model, timeout=LICENSE_SECONDS).tags or []
    except (OSError, ValueError, httpx.HTTPError):  # offline, no such model, not ours to see
        tags = []
    found = next((tag.removeprefix("license:") for tag in tags if tag.startswith("license:")), None)
    if found is None:
        logger.warning(
            "The licence of %s is not known: the card says that it is the base model's. Say it with license=, for "
            'example "apache-2.0".',
            base_model,
        )
    return found


def _costs(model: nn.Module, config: PreTrainedConfig, num_frames: int, facts: CardFacts) -> dict:
    is_video = isinstance(config, I2VConfig)
    image_config = config.image_config if is_video else config
    preprocessing = config.preprocessing if is_video else known_preprocessing(config.name_or_path)
    frames = (num_frames, *image_shape(image_config, preprocessing))
    clip = (1, *frames)
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
        own = ("num_frames", "time_offsets", "temporal_embedding", "pooling", "causal", "baked", "classifier_dropout")
        resolved = {
            "model_type": config.model_type,
            **{key: getattr(config, key) for key in own if hasattr(config, key)},
        }
    settings = {
        key: value for key, value in facts.arguments.items() if not _is_local(value) and not key.endswith("token")
    }
    return resolved | ({"training": settings} if settings else {})


def _plain(value: object) -> list | str:
    """For json: sets, which peft keeps names in, as sorted lists."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


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
