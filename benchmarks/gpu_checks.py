"""Sections of `gpu.py` that ask whether the device computes what the CPU does."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterator

import torch
from gpu_setting import Result, Setting, check, left_out, relative_error
from tiny import randomize
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import is_flash_attn_2_available

from hf_i2v.data import CenterCrop, Normalize, RandomResizedCrop, ResizeShortSide, ShortSideJitter


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in float32, too; torch lets cuDNN round their inputs to 10 bits."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def equality(setting: Setting) -> Iterator[Result]:
    """Every method in three dtypes. Float32 has to agree with the CPU; a shorter dtype may be off from the CPU's
    float32 by three times as much as the CPU is in that dtype."""
    size, on_cpu = setting.sizes[0], dataclasses.replace(setting, device=torch.device("cpu"))
    changes = {} if setting.is_small else {"num_hidden_layers": 4, "image_size": 112}
    side = setting.image_config(size, **changes).image_size
    generator = torch.Generator().manual_seed(0)
    pixels_BTChw = torch.randn(2, setting.num_frames, 3, side, side, generator=generator)
    for name in setting.methods:
        model = on_cpu.video_model(size, name, **changes).eval()
        randomize(model, [(n, p) for n, p in model.named_parameters() if p.requires_grad], std=0.02)
        with torch.inference_mode(), full_float32():
            expected_BK = model(pixels_BTChw).logits
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                short = copy.deepcopy(model).to(dtype)
                error = relative_error(short(pixels_BTChw.to(dtype)).logits, expected_BK)
                here_BK = short.to(setting.device)(pixels_BTChw.to(setting.device, dtype)).logits
                allowed = 1e-4 if dtype == torch.float32 else max(3 * error, torch.finfo(dtype).eps)
                what = f"{name}, {str(dtype).removeprefix('torch.')}: largest difference of the logits"
                yield check(what, relative_error(here_BK, expected_BK), allowed, f"the CPU's: {error:.2g}")


def golden(setting: Setting) -> Iterator[Result]:
    """Tensors recorded from the papers' released code, on the device."""
    from test_golden import CASES, load, part

    from hf_i2v.convert import _released_names

    for case in CASES:
        tensors, model = load(case)
        model = model.to(setting.device)
        tensors = {name: tensor.to(setting.device) for name, tensor in tensors.items()}
        with full_float32():
            outputs = model(tensors["input.pixel_values"].transpose(1, 2), labels=tensors["label"])
            outputs.loss.backward()
        difference = (outputs.logits - tensors["output.logits"]).abs().max().item()
        yield check(f"{case}: largest difference of the logits", difference, 1e-4)
        ours, names = dict(model.named_parameters()), _released_names(CASES[case][0], model)
        errors = [
            ((ours[names[name][0]].grad.reshape(recorded.shape) - recorded).norm() / (recorded.norm() + 1e-9)).item()
            for name, recorded in part(tensors, "grad.").items()
        ]
        yield check(f"{case}: largest relative error of a gradient", max(errors), 1e-3)


def kernels(setting: Setting) -> Iterator[Result]:
    """STDHA around each attention kernel: the answers of torch's plain products, and the time over the image model
    with the same kernel."""
    size, batch = setting.sizes[0], setting.batches[-2:][0]
    pixels_BTChw = setting.pixels(size, batch, dtype=setting.dtype)
    model = setting.video_model(size, "stdha").eval().to(setting.dtype)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        expected_BK = model(pixels_BTChw).logits
    allowed = 1e-4 if setting.dtype == torch.float32 else 3e-2
    own = contextlib.nullcontext
    wanted = {"eager": ("eager", own), "sdpa": ("sdpa", own), "flex_attention": ("flex_attention", own)}
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        wanted[f"sdpa, {backend}"] = ("sdpa", lambda backend=backend: sdpa_kernel(getattr(SDPBackend, backend)))
    wanted["flash_attention_2"] = ("flash_attention_2", own)
    for name, (kernel, choosing) in wanted.items():
        if setting.device.type == "cpu" and name.endswith(("EFFICIENT_ATTENTION", "CUDNN_ATTENTION")):
            yield left_out(name, "a kernel of GPUs")
            continue
        if kernel == "flash_attention_2" and not (setting.device.type == "cuda" and is_flash_attn_2_available()):
            yield left_out(name, "the package flash_attn is not here; sdpa, FLASH_ATTENTION is the same kernel")
            continue
        # transformers compiles flex_attention, on a CPU to C++, which a machine without a compiler cannot
        as_it_is = kernel == "flex_attention" and setting.device.type == "cpu"
        stance = torch.compiler.set_stance("force_eager") if as_it_is else own()
        try:
            video = setting.video_model(size, "stdha", attn_implementation=kernel).eval().to(setting.dtype)
            video.load_state_dict(model.state_dict())
            image = setting.image_model(size, attn_implementation=kernel).to(setting.dtype)
            with torch.inference_mode(), choosing(), stance:
                error = relative_error(video(pixels_BTChw).logits, expected_BK)
                yield check(f"{name}: largest difference of the logits", error, allowed)
                frames_MChw = pixels_BTChw.flatten(0, 1)
                calls = {"image": lambda: image(frames_MChw), "video": lambda: video(pixels_BTChw)}  # noqa: B023
                times = setting.times(calls)
            yield Result(f"{name}: STDHA / image model, batch {batch}", times["video"].over(times["image"]), "×")
        except Exception as error:  # the other kernels go on
            yield Result(name, None, status="failed", note=f"{type(error).__name__}: {error}".split("\n")[0][:300])


def graphs(setting: Setting) -> Iterator[Result]:
    """Graph breaks that torch.compile finds: in a forward pass, and in a training step up to its loss, whose backward
    pass then runs. At last what inductor makes of them, where there is a GPU."""
    tiny = dataclasses.replace(setting, is_small=True)  # breaks do not depend on the size
    pixels_BTChw, labels_B = tiny.pixels("tiny", 2), torch.tensor([0, 2], device=setting.device)
    for name in setting.methods:
        model = tiny.video_model("tiny", name, num_hidden_layers=2)

        def forward(pixels, model=model):
            return model(pixels).logits

        def step(pixels, model=model):
            return model(pixels, labels=labels_B).loss

        for function in (forward, step):
            is_step = function is step
            backend = "aot_eager" if is_step and not setting.is_small else "eager"  # the first also traces backward
            model.train(is_step)
            torch._dynamo.reset()
            counters.clear()
            with torch.set_grad_enabled(is_step):
                result = torch.compile(function, backend=backend)(pixels_BTChw)
            if is_step:
                result.backward()
            breaks = counters["graph_break"]
            reasons = "; ".join(str(reason).split("\n")[0] for reason in breaks)[:300]
            yield check(f"{name}, {function.__name__}: graph breaks", sum(breaks.values()), 0, reasons)
    torch._dynamo.reset()
    if setting.is_small:
        return
    pixels_BTChw = setting.pixels("B/16", 8, dtype=setting.dtype)
    for name, method, is_training in (("zeroi2v merged", "zeroi2v", False), ("st_adapter", "st_adapter", True)):
        if setting.is_late():
            yield left_out(f"{name}: compiled / not", "no time is left")
            continue
        model = setting.video_model("B/16", method)
        model = (model.merge_and_unload() if not is_training else model).to(setting.dtype).train(is_training)
        compiled = torch.compile(model)

        def run(model):
            with torch.set_grad_enabled(is_training):  # noqa: B023
                loss = model(pixels_BTChw).logits.float().square().mean()
            if loss.requires_grad:
                loss.backward()

        times = setting.times({"as it is": lambda: run(model), "compiled": lambda: run(compiled)})  # noqa: B023
        kind = "step" if is_training else "forward"
        yield Result(f"{name}, {kind}: compiled / not", times["compiled"].over(times["as it is"]), "×")


def pixels(setting: Setting) -> Iterator[Result]:
    """Crops of whole clips and the normalisation: the CPU's pixels, and their time."""
    side = 24 if setting.is_small else 224
    sizes = (setting.num_frames, 3, side * 8 // 7, side * 3 // 2)
    t, c, y, x = torch.meshgrid(*map(torch.arange, sizes), indexing="ij")  # noise would measure rounding only
    clip_TChw = (128 + 100 * torch.sin((x + 3 * t) / (9 + c)) * torch.cos(y / 13)).to(torch.uint8)
    here_TChw = clip_TChw.to(setting.device)
    crops = {
        "random resized crop": RandomResizedCrop(side, interpolation="bicubic"),
        "short side jitter": ShortSideJitter(side, (side, side * 8 // 7)),
        "resize": ResizeShortSide(side, "bicubic"),
        "centre crop": CenterCrop(side),
    }
    for name, crop in crops.items():
        expected, found = (crop(x_TChw, torch.Generator().manual_seed(1)) for x_TChw in (clip_TChw, here_TChw))
        difference = (expected.int() - found.cpu().int()).abs().max().item()
        yield check(f"{name}: largest difference in levels", difference, 2)
        calls = {"cpu": clip_TChw, "device": here_TChw}
        calls = {
            where: lambda x_TChw=x_TChw, crop=crop: crop(x_TChw, torch.Generator().manual_seed(1))
            for where, x_TChw in calls.items()
        }
        times = setting.times(calls)
        yield Result(f"{name}: CPU / device, one clip", times["cpu"].over(times["device"]), "×")
    normalize = Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    expected, found = normalize(clip_TChw), normalize(here_TChw)
    yield check("normalise: largest difference", relative_error(found, expected), 1e-6)
    began = time.perf_counter()
    batch_BTChw = clip_TChw.repeat(8, 1, 1, 1, 1)
    if setting.device.type == "cuda":
        batch_BTChw = batch_BTChw.pin_memory()
        torch.cuda.synchronize()
        began = time.perf_counter()
    normalize(batch_BTChw.to(setting.device, non_blocking=True))
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    yield Result("8 clips of bytes to the device, normalised there", 1e3 * (time.perf_counter() - began), "ms")
