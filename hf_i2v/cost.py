"""What a model costs: parameters, multiply-accumulates (MACs, which papers print as "GFLOPs"), memory and latency.

Counted operation by operation, attention included, on the meta device: no weights are copied and nothing is computed.

    python -m hf_i2v.cost --model openai/clip-vit-base-patch16 --tuner zeroi2v st_adapter aim --views 3x1
    python -m hf_i2v.cost --model path/to/model --tuner st_adapter+inti --latency 5 --format json
"""

import argparse
import copy
import csv
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .architectures import image_config
from .modeling_i2v import I2VConfig, I2VForVideoClassification
from .options import tuner_config


@dataclass(frozen=True)
class Cost:
    """Parameters in all, those that are trained, and MACs of one forward pass."""

    total_parameters: int
    trainable_parameters: int
    macs: int

    def __str__(self) -> str:
        return (
            f"{self.total_parameters / 1e6:.2f} M parameters, {self.trainable_parameters / 1e6:.2f} M trainable, "
            f"{self.macs / 1e9:.3f} GMACs"
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that a forward pass uses, and those that are trained. Originals that an adapter's copy stands in
    for (peft's `modules_to_save`) are not counted."""
    used = [p for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(p.numel() for p in used), sum(p.numel() for p in used if p.requires_grad)


def count_macs(model: nn.Module, pixel_values_shape: tuple[int, ...], *, as_papers_count: bool = True) -> int:
    """MACs of one forward pass on pixels of the given shape, (B, T, C, h, w) for a video model.

    Args:
        as_papers_count: all tokens of all blocks; False leaves out those that a classifier which reads the CLS token
            skips in the last block.
    """
    model = on_meta(model).eval()
    pixel_values = torch.empty(pixel_values_shape, device="meta", dtype=next(model.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    # the fused CPU kernel is unknown to torch's counter; the math kernel is two plain matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pixel_values, output_hidden_states=as_papers_count or None)
    return counter.get_total_flops() // 2


def cost(model: nn.Module, pixel_values_shape: tuple[int, ...]) -> Cost:
    """Parameters and MACs of `model` for an input of the given shape."""
    return Cost(*count_parameters(model), count_macs(model, pixel_values_shape))


def merged_macs(model: PeftModel, pixel_values_shape: tuple[int, ...]) -> int | None:
    """MACs of one forward pass once the adapter is merged, which this does; None where it cannot be."""
    try:
        return count_macs(model.merge_and_unload(), pixel_values_shape)
    except ValueError:
        return None


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the model whose tensors have shapes but no memory."""
    memo = {id(p): nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    memo |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)


def activation_bytes(model: nn.Module, pixel_values_shape: tuple[int, ...]) -> int:
    """Bytes that a training step keeps between forward and backward pass: what autograd saves, without parameters.

    Dropout's masks included, the caching of the allocator and temporary buffers not.
    """
    model = on_meta(model).train()
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
        return tensor

    pixel_values = torch.empty(pixel_values_shape, device="meta", dtype=next(model.parameters()).dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(pixel_values)
    del output
    return sum(storage.nbytes() for storage in kept.values())


def latency(
    model: nn.Module, pixel_values_shape: tuple[int, ...], rounds: int, *, max_seconds: float = math.inf
) -> tuple[float, float]:
    """Median seconds of a forward pass where the model is, and half the distance between the quartiles.

    Args:
        rounds: forward passes, after one to warm up; fewer, but one at least, once `max_seconds` have gone by.
    """
    was_training = model.training
    model.eval()
    place = next(model.parameters())
    pixel_values = torch.randn(pixel_values_shape, device=place.device, dtype=place.dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            started = time.perf_counter()
            model(pixel_values)
            if place.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
            if len(seconds) > 1 and sum(seconds) > max_seconds:
                break
    model.train(was_training)
    del seconds[0]  # warming up
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return statistics.median(seconds), (high - low) / 2


@dataclass
class Row:
    """One line of the table: a model with a tuner, on one clip unless it says views."""

    tuner: str
    total_parameters: int
    trainable_parameters: int
    clip_macs: int
    merged_clip_macs: int | None  # None: cannot be merged
    views: str
    video_macs: int
    activation_bytes: int
    latency_seconds: float | None = None
    latency_spread_seconds: float | None = None


def _row(tuner: str, args: argparse.Namespace) -> Row:
    def model(device: str) -> nn.Module:
        with torch.device(device):
            return _adapted(tuner, args)

    on_the_meta_device = model("meta")
    shape = (args.batch_size, args.num_frames, 3, args.image_size, args.image_size)
    clips, crops = _views(args.views)
    macs = count_macs(on_the_meta_device, (1, *shape[1:]))
    row = Row(
        tuner,
        *count_parameters(on_the_meta_device),
        macs,
        None,
        args.views,
        macs * clips * crops,
        activation_bytes(on_the_meta_device, shape),
    )
    if isinstance(on_the_meta_device, PeftModel):
        row.merged_clip_macs = merged_macs(on_the_meta_device, (1, *shape[1:]))
    if args.latency:
        row.latency_seconds, row.latency_spread_seconds = latency(model(args.device), shape, args.latency)
    return row


def _adapted(tuner: str, args: argparse.Namespace) -> nn.Module:
    image = image_config(args.model)
    args.image_size = args.image_size or image.image_size
    base = I2VForVideoClassification(
        I2VConfig(image_config=image, num_frames=args.num_frames, num_labels=args.num_labels)
    )
    if tuner == "none":
        return base.requires_grad_(False)
    return get_peft_model(base, tuner_config(tuner, args.tuner_config))


def _views(text: str) -> tuple[int, int]:
    clips, _, crops = text.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise SystemExit(f"--views {text!r} must be CLIPSxCROPS, as 3x1")
    return int(clips), int(crops)


def _table(rows: list[Row]) -> str:
    heads = (
        "tuner",
        "params M",
        "trainable M",
        "GMACs/clip",
        "merged",
        "views",
        "GMACs/video",
        "activations MiB",
        "latency s",
    )
    lines = [heads]
    for row in rows:
        seconds = (
            "" if row.latency_seconds is None else f"{row.latency_seconds:.3f} ± {row.latency_spread_seconds:.3f}"
        )
        lines.append(
            (
                row.tuner,
                f"{row.total_parameters / 1e6:.2f}",
                f"{row.trainable_parameters / 1e6:.2f}",
                f"{row.clip_macs / 1e9:.1f}",
                "" if row.merged_clip_macs is None else f"{row.merged_clip_macs / 1e9:.1f}",
                row.views,
                f"{row.video_macs / 1e9:.1f}",
                f"{row.activation_bytes / 2**20:.0f}",
                seconds,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def main(argv: list[str] | None = None) -> None:
    """The command line; see the text of this module."""
    parser = argparse.ArgumentParser(prog="python -m hf_i2v.cost", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="openai/clip-vit-base-patch16", help="an image model: folder or Hub id")
    parser.add_argument("--tuner", nargs="+", default=["none"], help="methods, several joined by +; none: no tuner")
    parser.add_argument("--tuner_config", nargs="*", default=[], metavar="KEY=VALUE", help="options of the tuner")
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--num_labels", type=int, default=400)
    parser.add_argument("--image_size", type=int, help="default: the image model's own")
    parser.add_argument("--batch_size", type=int, default=1, help="clips, for activations and latency")
    parser.add_argument("--views", default="1x1", metavar="CLIPSxCROPS")
    parser.add_argument("--latency", type=int, default=0, metavar="ROUNDS", help="also time so many forward passes")
    parser.add_argument("--device", default="cpu", help="where the latency is measured")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    args = parser.parse_args(argv)
    rows = [_row(tuner, args) for tuner in args.tuner]
    if args.format == "table":
        print(_table(rows))
    elif args.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        writer = csv.DictWriter(sys.stdout, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()
