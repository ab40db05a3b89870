"""The table of methods: parameters and MACs at ViT-B/16 and ViT-L/14, counted, beside the published figures.

    python benchmarks/methods.py        # writes benchmarks/methods.md; seconds, on the meta device

One clip of 8 frames at 224², CLIP's vision model with a 400-class head. Trainable parameters are without that head, as
the papers count them. "MACs" is what the papers print as GFLOPs; where they print three views, a third of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import CLIPVisionConfig

from hf_i2v import (
    AIMConfig,
    AttentiveProbeConfig,
    Frame2FreqConfig,
    I2VConfig,
    I2VForVideoClassification,
    I2VTunerConfig,
    InTIConfig,
    LinearAdapterConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from hf_i2v.cost import count_macs, count_parameters

SIZES = {
    "B/16": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "L/14": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
CLIP_SHAPE = (1, 8, 3, 224, 224)


@dataclass(frozen=True)
class Row:
    """A method, and what was published for it at B/16: MACs (G) and trainable parameters (M) of one clip."""

    name: str
    config: I2VTunerConfig | None
    merges: str
    composes: str
    macs: float | None = None
    trainable: float | None = None


def rows() -> list[Row]:
    return [
        Row("plain image model", None, "", "", 140.6),
        Row("STDHA", STDHAConfig(), "yes", "all but ZeroI2V, probes, M-adapter"),
        Row("linear adapter", LinearAdapterConfig(), "yes", "all but ZeroI2V, probes, M-adapter"),
        Row("ZeroI2V, in training", ZeroI2VConfig(), "yes", "ST-Adapter, AIM, InTI", None, 14.2),
        Row("ST-Adapter 12×384", STAdapterConfig(), "bakes in", "all but probes, M-adapter", 455 / 3, 7),
        Row(
            "ST-Adapter 24×384",
            STAdapterConfig(adapter_sites=["before", "between"]),
            "bakes in",
            "all but probes, M-adapter",
            489 / 3,
            14,
        ),
        Row("AIM", AIMConfig(), "bakes in", "all but probes, M-adapter", 606 / 3, 11),
        Row(
            "AIM, SSv2",
            AIMConfig(temporal_adapter_in=True, adapter_scale=1.0),
            "bakes in",
            "all but probes, M-adapter",
            624 / 3,
            14.3,
        ),
        Row("InTI", InTIConfig(), "bakes in", "all but probes, M-adapter"),
        Row("Frame2Freq", Frame2FreqConfig(), "bakes in", "all but probes, M-adapter"),
        Row("M-adapter", MAdapterConfig(), "bakes in", "none"),
        Row("attentive probe, 3+1 blocks", AttentiveProbeConfig(), "bakes in", "none"),
        Row("STEP", STEPConfig(), "bakes in", "none"),
    ]


def measure(config: I2VTunerConfig | None, size: str) -> tuple[float, float, float]:
    """Total and trainable parameters (M), the head not counted, and MACs of a clip (G)."""
    patch_size = int(size.split("/")[1])
    image_config = CLIPVisionConfig(**SIZES[size], image_size=224, patch_size=patch_size)
    with torch.device("meta"):
        model = I2VForVideoClassification(I2VConfig(image_config=image_config, num_frames=8, num_labels=400))
        head = sum(p.numel() for p in model.classifier.parameters())
        if config is None:
            model.requires_grad_(False)
            head_trained = 0
        else:
            model, head_trained = get_peft_model(model, config), head
    total, trainable = count_parameters(model)
    return (total - head) / 1e6, (trainable - head_trained) / 1e6, count_macs(model, CLIP_SHAPE) / 1e9


def table() -> str:
    lines = [
        "| method | trainable M (B/16) | total M | GMACs | published: trainable M, GMACs | trainable M (L/14) "
        "| total M | GMACs | merges | composes with |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for b16, l14 in zip(rows(), rows(), strict=True):  # a configuration is resolved for one model
        total, trainable, macs = measure(b16.config, "B/16")
        total_l, trainable_l, macs_l = measure(l14.config, "L/14")
        published = ", ".join(
            "–" if value is None else f"{value:.{digits}f}" for value, digits in ((b16.trainable, 1), (b16.macs, 1))
        )
        lines.append(
            f"| {b16.name} | {trainable:.2f} | {total:.1f} | {macs:.1f} | {published} | {trainable_l:.2f} | "
            f"{total_l:.1f} | {macs_l:.1f} | {b16.merges} | {b16.composes} |"
        )
    lines += [
        "",
        "Made by `python benchmarks/methods.py`. One clip of 8 frames at 224²; heads are not counted. AIM's published "
        "counts include the head of its data set (0.31 M on Kinetics-400, 0.13 M on Something-Something-v2).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = table()
    Path(__file__).with_suffix(".md").write_text(text)
    print(text, end="")
