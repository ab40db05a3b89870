"""What a step of a stream costs, beside the image model on one frame and beside the clip run anew at every frame.

    python benchmarks/streaming.py            # writes streaming.md; about five minutes on one core

CLIP ViT-B/16, 224², 8 frames a clip, random weights, float32, one thread. Times are CPU times, which other processes
do not take, in turns in one process; a ratio is the median over the rounds.
"""

import argparse
import functools
import time
from pathlib import Path

import torch
from interleaved import interleaved
from peft import get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_i2v import AIMConfig, I2VConfig, I2VForVideoClassification, STAdapterConfig, STEPConfig, ZeroI2VConfig
from hf_i2v.cost import on_meta

PAGE = Path(__file__).with_suffix(".md")
B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
T, SIDE = 8, 224
CONFIGS = {
    "ZeroI2V, merged": functools.partial(ZeroI2VConfig, causal=True),
    "ST-Adapter, baked": functools.partial(STAdapterConfig, causal=True),
    "AIM, baked": functools.partial(AIMConfig, causal=True),
    "STEP, baked": functools.partial(STEPConfig, causal=True),
}
FRAMES_A_SECOND = 25


def image_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(**B16, image_size=SIDE, patch_size=16)


def finished(config) -> I2VForVideoClassification:
    base = I2VForVideoClassification(I2VConfig(image_config=image_config(), num_frames=T, num_labels=400))
    model = get_peft_model(base, config)
    return (model.merge_and_unload() if config.merges else model.base_model.bake()).eval()


def macs(call) -> int:
    """MACs of a call on the meta device."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops() // 2


def macs_of_step(model: I2VForVideoClassification) -> int:
    """MACs of one step on one frame, all tokens in all blocks: as papers count, and as the image model computes."""
    model = on_meta(model).eval()
    model.i2v.image_model.feature_reads_prefix = False  # else the last block's MLP leaves out the patches
    state = model.new_stream()
    return macs(lambda: model.step(torch.empty(1, 3, SIDE, SIDE, device="meta"), state))


def measure(rounds: int) -> list[str]:
    frame, clip = torch.randn(1, 3, SIDE, SIDE), torch.randn(1, T, 3, SIDE, SIDE)
    image_model = CLIPVisionModel(image_config()).eval()
    models = {name: finished(config()) for name, config in CONFIGS.items()}
    states = {}
    for name, model in models.items():
        state = model.new_stream()
        for _ in range(T):  # a stream that has run for a while
            _, state = model.step(frame, state)
        states[name] = state
    calls = {"image": lambda: image_model(frame)}
    calls |= {name: functools.partial(model.step, frame, states[name]) for name, model in models.items()}
    with torch.inference_mode():
        times = interleaved(calls, rounds=rounds, warmup=2, clock=time.process_time)
    image_macs = macs(lambda: on_meta(image_model)(torch.empty(1, 3, SIDE, SIDE, device="meta")))
    lines = [
        "| model | step / image model on one frame | MACs of a step / of the image model | clip anew / step | "
        "memory of a stream |",
        "|---|---|---|---|---|",
    ]
    for name, model in models.items():
        pair = {"step": calls[name], "anew": functools.partial(model, clip)}
        with torch.inference_mode():
            pair = interleaved(pair, rounds=max(3, rounds // 5), clock=time.process_time)
        if name == "ZeroI2V, merged":
            seconds, anew = pair["step"].median, pair["anew"].median
        lines.append(
            f"| {name} | {times[name].over(times['image']):.3f} ± {times[name].spread:.3f} | "
            f"{macs_of_step(model) / image_macs:.3f} | {pair['anew'].over(pair['step']):.2f} | "
            f"{states[name].nbytes / 1e6:.1f} MB |"
        )
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Streams of {FRAMES_A_SECOND} frames a second that one core keeps up with, ZeroI2V merged, an answer after "
        f"every stride-th frame ({1000 * seconds:.0f} ms of CPU time a step, {1000 * anew:.0f} ms for the clip anew):",
        "",
        "| stride | frames a second that a stream needs | streams, by step | streams, the clip anew |",
        "|---|---|---|---|",
    ]
    for stride in (1, 2, 4):
        rate = FRAMES_A_SECOND / stride
        lines.append(f"| {stride} | {rate:.4g} | {1 / seconds / rate:.2g} | {1 / anew / rate:.2g} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=PAGE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = (
        "Made by `python benchmarks/streaming.py`: CLIP ViT-B/16, 224², clips of 8 frames, random weights, float32, "
        "one core. CPU times, in turns in one process, medians over the rounds; ± half the distance between the "
        "quartiles. MACs with all tokens in all blocks; a step leaves the last block's patches out of its MLP, where "
        "only CLS is read, and the image model does not."
    )
    args.output.write_text("\n".join([head, "", *measure(args.rounds)]) + "\n")


if __name__ == "__main__":
    main()
