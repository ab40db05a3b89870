"""Sections of `gpu.py` about time, memory and arithmetic."""

import functools
import itertools
from collections.abc import Callable, Iterator

import torch
from gpu_setting import Result, Setting, left_out
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_i2v.cost import count_macs
from hf_i2v.step_memory import training_memory

RELEASED = "released code"
PEAKS = {  # of dense bf16, FLOP/s, from the makers' data sheets
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def forward(setting: Setting) -> Iterator[Result]:
    """Each method, as it is trained and merged, over the plain image model on the same frames."""
    for size in setting.sizes:
        models = {name: setting.video_model(size, name).eval().to(setting.dtype) for name in setting.methods}
        models["zeroi2v merged"] = setting.video_model(size, "zeroi2v").merge_and_unload().eval().to(setting.dtype)
        image_model = setting.image_model(size).to(setting.dtype)
        for batch in setting.batches:
            if setting.is_late():
                yield left_out(f"{size}, batch {batch}", "no time is left")
                continue
            pixels_BTChw = setting.pixels(size, batch, dtype=setting.dtype)
            calls: dict[str, Callable] = {"image model": functools.partial(image_model, pixels_BTChw.flatten(0, 1))}
            calls |= {name: functools.partial(model, pixels_BTChw) for name, model in models.items()}
            with torch.inference_mode():
                times = setting.times(calls)
            milliseconds = 1e3 * times["image model"].median
            yield Result(f"{size}, batch {batch}: image model", milliseconds, "ms")
            for name in models:
                ratio = times[name].over(times["image model"])
                yield Result(f"{size}, batch {batch}: {name} / image model", ratio, "×")


def training_step(model: nn.Module, pixels: torch.Tensor, setting: Setting) -> Callable[[], None]:
    """Forward and backward, under autocast where the device has it fast."""

    def step() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.device.type == "cuda"):
            output = model(pixels)
        getattr(output, "logits", output).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def peak_bytes(step: Callable[[], None], model: nn.Module, pixels: torch.Tensor, setting: Setting) -> float:
    """The most memory that a step takes beyond the weights; on a CPU what autograd keeps, counted."""
    if setting.device.type != "cuda":
        return training_memory(model, tuple(pixels.shape)).kept
    step()
    torch.cuda.synchronize(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    step()
    torch.cuda.synchronize(setting.device)
    return torch.cuda.max_memory_allocated(setting.device) - before


def training(setting: Setting) -> Iterator[Result]:
    """Time and memory of a step of each method over those of training the whole model; and over the released code."""
    made = functools.cache(lambda make, *which: make(setting, *which).train())
    for batch, size in itertools.product(setting.batches, setting.sizes):
        for name in setting.methods:
            what = f"{size}, batch {batch}: {name}"
            if setting.is_late():
                yield left_out(what, "no time is left")
                continue
            ours = made(our_model, size, name)
            yield from compared(what, "full fine-tuning", ours, made(our_model, size, None), size, batch, setting)
            if name in ("st_adapter", "aim", "zeroi2v") and setting.released is not None and not setting.is_small:
                theirs = made(released_model, size, name)
                yield from compared(what, RELEASED, ours, theirs, size, batch, setting)
    if setting.released is None:
        yield left_out("over the released code", "--released names no checkouts")


def our_model(setting: Setting, size: str, name: str | None) -> nn.Module:
    return setting.video_model(size, name)


def released_model(setting: Setting, size: str, name: str) -> nn.Module:
    from released import released_models, trained_parameters

    model = released_models(setting.released, setting.num_frames, size)[name]().to(setting.device)
    trained = trained_parameters(name)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in parameter_name for part in trained))
    return model


def compared(
    what: str, against: str, ours: nn.Module, other: nn.Module, size: str, batch: int, setting: Setting
) -> Iterator[Result]:
    """Time and memory of a step of our model over those of another one's, which takes (B, C, T, h, w) if released."""
    pixels = {"ours": setting.pixels(size, batch)}
    pixels["other"] = pixels["ours"].transpose(1, 2).contiguous() if against == RELEASED else pixels["ours"]
    models = {"ours": ours, "other": other}
    steps = {which: training_step(model, pixels[which], setting) for which, model in models.items()}
    try:
        peak = {which: peak_bytes(steps[which], model, pixels[which], setting) for which, model in models.items()}
        times = setting.times(steps)
    except torch.OutOfMemoryError:
        for model in models.values():
            model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        yield left_out(f"{what} / {against}", "out of memory")
        return
    yield Result(f"{what} / {against}, time of a step", times["ours"].over(times["other"]), "×")
    yield Result(f"{what} / {against}, memory of a step", peak["ours"] / peak["other"], "×")
    if against != RELEASED:
        yield Result(f"{what}, memory of a step", peak["ours"] / 2**20, "MiB")


def utilisation(setting: Setting) -> Iterator[Result]:
    """FLOP/s of a merged model's forward pass and of training steps, over the card's peak and over what a large
    product of matrices reaches on it."""
    side = 64 if setting.is_small else 8192
    left, right = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    matmul = 2 * side**3 / setting.times({"matmul": lambda: left @ right})["matmul"].median
    yield Result("product of matrices", matmul / 1e12, "TFLOP/s")
    card = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else "CPU"
    peak = next((flops for name, flops in PEAKS.items() if name in card), None)
    for size in setting.sizes:
        batch = setting.batches[-2:][0]
        pixels_BTChw = setting.pixels(size, batch, dtype=setting.dtype)
        merged = setting.video_model(size, "zeroi2v").merge_and_unload().eval().to(setting.dtype)
        macs = count_macs(merged, tuple(pixels_BTChw.shape), as_papers_count=False)
        with torch.inference_mode():
            seconds = setting.times({"merged": lambda: merged(pixels_BTChw)})["merged"].median  # noqa: B023
        reached = {"zeroi2v merged, forward": 2 * macs / seconds}
        model = setting.video_model(size, "st_adapter").train()
        step = training_step(model, pixels_BTChw.float(), setting)
        with FlopCounterMode(display=False) as counter:
            step()
        reached["st_adapter, step"] = counter.get_total_flops() / setting.times({"step": step})["step"].median
        for what, flops in reached.items():
            what = f"{size}, batch {batch}: {what}"
            yield Result(f"{what} / product of matrices", flops / matmul, "×")
            if peak is None:
                yield left_out(f"{what} / peak of the card", f"PEAKS has none of {card}")
            else:
                yield Result(f"{what} / peak of the card", flops / peak, "×")
