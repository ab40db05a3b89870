"""How fast and small: every method beside the plain image model and the papers' released code, in one process.

    pip install -e ".[benchmarks]"
    python benchmarks/speed.py inference --released path/to/checkouts
    python benchmarks/speed.py training --released path/to/checkouts
    python benchmarks/speed.py compiled
    python benchmarks/speed.py memory --released path/to/checkouts
    python benchmarks/speed.py scaling
    python benchmarks/speed.py start
    python benchmarks/speed.py first_prediction
    python benchmarks/speed.py report          # speed.csv → speed.md

ViT-B/16 of CLIP, 224², one clip of 8 frames, float32 (`--dtype bfloat16 --device cuda` on a GPU), random weights.
Every figure is a ratio of times taken in turns, the median over the rounds; each part replaces its rows in speed.csv.
The plain image model is transformers' CLIPVisionModel with sdpa on the same frames; `benchmarks/released.py` says
which checkouts are meant. About ten minutes on two cores for all parts; nothing else should run beside them.
"""

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from interleaved import interleaved
from peft import PeftModel, get_peft_model
from rows import read_rows, replace_rows
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_i2v import (
    AIMConfig,
    I2VConfig,
    I2VForVideoClassification,
    InTIConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    ZeroI2VConfig,
)
from hf_i2v.cost import count_macs

HERE = Path(__file__).parent
B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CONFIGS = {
    "stdha": STDHAConfig,
    "zeroi2v": ZeroI2VConfig,
    "st_adapter": STAdapterConfig,
    "st_adapter 24x384": functools.partial(STAdapterConfig, adapter_sites=["before", "between"]),
    "aim": AIMConfig,
    "aim ssv2": functools.partial(AIMConfig, temporal_adapter_in=True, adapter_scale=1.0),
    "inti": InTIConfig,
    "m_adapter": MAdapterConfig,
}
TARGETS = {  # what each ratio must reach; "<" at most, ">" at least
    ("inference", "zeroi2v merged / image model"): ("<", 1.02),
    ("inference", "zeroi2v / image model"): ("<", 1.12),
    ("inference", "st_adapter / image model"): ("<", 1.10),
    ("inference", "st_adapter 24x384 / image model"): ("<", 1.20),
    ("inference", "image model with STDHA / inti"): (">", 1.55),
    ("inference", "FLOP/s of zeroi2v merged / matmul"): (">", 0.80),
    ("training", "m_adapter / st_adapter"): ("<", 0.6),
    ("memory", "m_adapter / st_adapter"): ("<", 0.35),
    ("start", "load and merge / load, ViT-L/14"): ("<", 1.2),
    ("start", "import hf_i2v beyond transformers and peft, s"): ("<", 0.3),
}


def image_config(size: dict = B16, patch_size: int = 16) -> CLIPVisionConfig:
    return CLIPVisionConfig(**size, image_size=224, patch_size=patch_size)


def video_model(method: str | None, num_frames: int) -> torch.nn.Module:
    base = I2VForVideoClassification(I2VConfig(image_config=image_config(), num_frames=num_frames, num_labels=400))
    return base if method is None else get_peft_model(base, CONFIGS[method]())


def released(args) -> dict:
    if args.released is None:
        return {}
    from released import released_models

    return released_models(args.released, args.num_frames)


def row(part: str, what: str, ratio: float, spread: float, target: tuple[str, float] | None = None) -> dict:
    sign, bound = TARGETS.get((part, what), (None, None)) if target is None else target
    met = "" if sign is None else ("yes" if (ratio <= bound if sign == "<" else ratio >= bound) else "no")
    asked = "" if sign is None else f"{'≤' if sign == '<' else '≥'} {bound:.3g}"
    print(f"{part}: {what}: {ratio:.3f} ± {spread:.3f}  {asked} {met}", flush=True)
    return {"part": part, "what": what, "ratio": f"{ratio:.3f}", "spread": f"{spread:.3f}", "asked": asked, "met": met}


def inference(args) -> list[dict]:
    pixels = torch.randn(1, args.num_frames, 3, 224, 224, dtype=args.dtype, device=args.device)
    place = {"dtype": args.dtype, "device": args.device}
    image_model = CLIPVisionModel(image_config()).to(**place).eval()
    models = {name: video_model(name, args.num_frames) for name in CONFIGS}
    models["zeroi2v merged"] = video_model("zeroi2v", args.num_frames).merge_and_unload()
    calls = {"image model": lambda: image_model(pixels[0])}
    for name, model in models.items():
        calls[name] = functools.partial(model.to(**place).eval(), pixels)
    for name, make in released(args).items():
        calls[f"released {name}"] = functools.partial(make().to(**place).eval(), pixels.transpose(1, 2).contiguous())
    large = torch.randn(2048, 2048, **place)
    calls["matmul"] = lambda: [large @ large for _ in range(8)]
    with torch.inference_mode():
        times = interleaved({name: _finished(call, args.device) for name, call in calls.items()}, rounds=args.rounds)

    plain = times["image model"]
    macs = {name: count_macs(model, tuple(pixels.shape)) for name, model in models.items()}
    image_macs = count_macs(image_model, tuple(pixels[0].shape))
    rows = []
    for name, measured in times.items():
        if name in ("image model", "matmul"):
            continue
        target = ("<", macs[name] / image_macs + 0.05) if name.startswith("aim") else None
        rows.append(row("inference", f"{name} / image model", measured.over(plain), measured.spread, target))
    rows.append(
        row("inference", "image model with STDHA / inti", times["stdha"].over(times["inti"]), times["inti"].spread)
    )
    done = count_macs(models["zeroi2v merged"], tuple(pixels.shape), as_papers_count=False)
    flops = 2 * done / times["zeroi2v merged"].median
    matmul = 8 * 2 * 2048**3 / times["matmul"].median
    rows.append(row("inference", "FLOP/s of zeroi2v merged / matmul", flops / matmul, times["matmul"].spread))
    return rows


def _finished(call, device: str):
    def run():
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def training_step(model: torch.nn.Module, pixels: torch.Tensor):
    def step():
        output = model(pixels)
        getattr(output, "logits", output).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def our_step(name: str, args):
    pixels = torch.randn(args.batch_size, args.num_frames, 3, 224, 224)
    return training_step(video_model(name, args.num_frames).train(), pixels)


def released_step(name: str, args):
    from released import trained_parameters

    model = released(args)[name]().train()
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in parameter_name for part in trained_parameters(name)))
    return training_step(model, torch.randn(args.batch_size, 3, args.num_frames, 224, 224))


def training(args) -> list[dict]:
    rows = []
    for name in ("zeroi2v", "st_adapter", "st_adapter 24x384", "aim", "aim ssv2") if args.released else ():
        calls = {"ours": our_step(name, args), "released": released_step(name, args)}
        times = interleaved(calls, rounds=args.rounds)
        ratio = times["ours"].over(times["released"])
        rows.append(row("training", f"{name} / released {name}", ratio, times["ours"].spread, ("<", 0.9)))
    times = interleaved({name: our_step(name, args) for name in ("m_adapter", "st_adapter")}, rounds=args.rounds)
    ratio = times["m_adapter"].over(times["st_adapter"])
    return [*rows, row("training", "m_adapter / st_adapter", ratio, times["m_adapter"].spread)]


def compiled(args) -> list[dict]:
    """What torch.compile (inductor) makes of a forward pass and of a training step."""
    pixels = torch.randn(1, args.num_frames, 3, 224, 224)
    image_model = CLIPVisionModel(image_config()).eval()
    forward = {
        "image model": (image_model, pixels[0]),
        "zeroi2v merged": (video_model("zeroi2v", args.num_frames).merge_and_unload().eval(), pixels),
        "st_adapter": (video_model("st_adapter", args.num_frames).eval(), pixels),
    }
    calls = {}
    for name, (model, clip) in forward.items():
        calls[name] = functools.partial(model, clip)
        calls[f"{name}, compiled"] = functools.partial(torch.compile(model), clip)
    with torch.inference_mode():
        times = interleaved(calls, rounds=args.rounds)
    calls = {}
    for name in ("zeroi2v", "st_adapter"):
        model = video_model(name, args.num_frames).train()
        calls[f"step of {name}"] = training_step(model, pixels)
        calls[f"step of {name}, compiled"] = training_step(torch.compile(model), pixels)
    times |= interleaved(calls, rounds=args.rounds)
    return [
        row("compiled", f"{name} / {plain}", times[name].over(times[plain]), times[name].spread)
        for name in times
        if (plain := name.removesuffix(", compiled")) != name
    ]


def memory(args) -> list[dict]:
    """Peak resident memory of a training step on 4 clips over what the process held before, each in a process of its
    own. What is freed goes back to the system at once: else the peak is that of malloc's heap and its holes."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}

    def peak(kind: str, name: str) -> float:
        command = [sys.executable, __file__, "one_peak", "--kind", kind, "--name", name]
        command += ["--batch_size", "4"]
        command += ["--released", str(args.released)] if args.released else []
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])

    rows, ours = [], {}
    for name in ("zeroi2v", "st_adapter", "st_adapter 24x384", "aim", "aim ssv2", "m_adapter"):
        ours[name] = peak("ours", name)
        if args.released and name != "m_adapter":
            ratio = ours[name] / peak("released", name)
            rows.append(row("memory", f"{name} / released {name}", ratio, 0.0, ("<", 0.6)))
    return [*rows, row("memory", "m_adapter / st_adapter", ours["m_adapter"] / ours["st_adapter"], 0.0)]


def one_peak(args) -> list[dict]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    {"ours": our_step, "released": released_step}[args.kind](args.name, args)()
    print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
    return []


def scaling(args) -> list[dict]:
    """Seconds per frame of ZeroI2V merged over those at 8 frames and batch 1; and the plot."""
    model = video_model("zeroi2v", 8).merge_and_unload().eval()
    sizes = [(1, 8), (1, 16), (1, 32), (1, 64), (2, 8), (4, 8), (8, 8)]
    calls = {size: functools.partial(model, torch.randn(*size, 3, 224, 224)) for size in sizes}
    with torch.inference_mode():
        times = interleaved(calls, rounds=args.rounds)
    rows = []
    for batch, frames in sizes[1:]:
        ratio = times[batch, frames].over(times[1, 8]) / (batch * frames / 8)
        what = f"time per frame, batch {batch} of {frames} frames / batch 1 of 8"
        rows.append(row("scaling", what, ratio, times[batch, frames].spread))
    _plot({size: times[size].median for size in sizes})
    return rows


def _plot(seconds: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    for label, chosen in (("T at batch 1", lambda b, t: b == 1), ("batch at T = 8", lambda b, t: t == 8)):
        points = sorted((b * t, s) for (b, t), s in seconds.items() if chosen(b, t))
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel="frames in all", ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(HERE / "scaling.png", dpi=110)


def start(args) -> list[dict]:
    """Seconds that `import hf_i2v` adds; loading a ViT-L/14 with its adapter and merging it, over loading the base."""
    with tempfile.TemporaryDirectory() as folder:
        CLIPVisionModel(image_config(L14, 14)).save_pretrained(f"{folder}/base")
        base = I2VForVideoClassification.from_image_model(f"{folder}/base", num_frames=8, num_labels=400)
        get_peft_model(base, ZeroI2VConfig()).save_pretrained(f"{folder}/adapter")

        def load():
            return I2VForVideoClassification.from_image_model(f"{folder}/base", num_frames=8, num_labels=400)

        def load_and_merge():
            adapter = PeftModel.from_pretrained(load(), f"{folder}/adapter", low_cpu_mem_usage=True)
            return adapter.merge_and_unload()

        load_base = functools.partial(CLIPVisionModel.from_pretrained, f"{folder}/base")
        pixels = torch.randn(1, 8, 3, 224, 224)
        calls = {
            "load": load_base,  # the weights are mapped, and read when they are first used
            "merge": load_and_merge,
            "load and classify": lambda: load_base()(pixels[0]),
            "merge and classify": lambda: load_and_merge()(pixels),
        }
        with torch.inference_mode():
            times = interleaved(calls, rounds=args.rounds)
        rows = [
            row(
                "start",
                f"load and merge{also} / load{also}, ViT-L/14",
                times[ours].over(times[base]),
                times[ours].spread,
            )
            for also, ours, base in (
                ("", "merge", "load"),
                (" and run a clip", "merge and classify", "load and classify"),
            )
        ]
    code = (
        "import time, torch, transformers, peft; from transformers import CLIPVisionModel, PreTrainedModel, Trainer; "
        "s = time.perf_counter(); import hf_i2v; print(time.perf_counter() - s)"
    )
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds = sorted(float(run().stdout) for _ in range(args.rounds))
    what = "import hf_i2v beyond transformers and peft, s"
    return [*rows, row("start", what, seconds[len(seconds) // 2], seconds[-1] - seconds[0])]


def first_prediction(args) -> list[dict]:
    """Loading a saved model and running a clip, over the same with the plain image model; CPU time of one thread, for
    threads that wait for one another would count."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        CLIPVisionModel(image_config()).save_pretrained(f"{folder}/image")
        video_model("zeroi2v", 8).merge_and_unload().save_pretrained(f"{folder}/zeroi2v merged")
        video_model("st_adapter", 8).base_model.bake().save_pretrained(f"{folder}/st_adapter baked")
        pixels = torch.randn(1, 8, 3, 224, 224)
        calls = {"image model": lambda: CLIPVisionModel.from_pretrained(f"{folder}/image")(pixels[0])}
        for name in ("zeroi2v merged", "st_adapter baked"):
            load = functools.partial(I2VForVideoClassification.from_pretrained, f"{folder}/{name}")
            calls[name] = lambda load=load: load()(pixels)
        with torch.inference_mode():
            times = interleaved(calls, rounds=args.rounds, clock=time.process_time)
    plain = times.pop("image model")
    return [
        row("first_prediction", f"{name} / image model, ViT-B/16", found.over(plain), found.spread, ("<", 1.1))
        for name, found in times.items()
    ]


def report(args) -> list[dict]:
    rows = read_rows(HERE / "speed.csv")
    lines = ["# Speed and memory, 2 CPU cores", "", "Written by `benchmarks/speed.py report` from speed.csv.", ""]
    lines += ["| part | ratio | measured | spread | asked | met |", "|---|---|---|---|---|---|"]
    lines += [
        "| " + " | ".join(r[key] for key in ("part", "what", "ratio", "spread", "asked", "met")) + " |" for r in rows
    ]
    lines += ["", "![time over frames](scaling.png)", ""]
    (HERE / "speed.md").write_text("\n".join(lines))
    return []


PARTS = {
    part.__name__: part
    for part in (inference, training, compiled, memory, scaling, start, first_prediction, report, one_peak)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--released", type=Path, help="folder with checkouts of the released code")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num_frames", type=int, default=8)
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = PARTS[args.part](args)
    if rows:
        replace_rows(HERE / "speed.csv", rows, key=lambda row: row["part"])


if __name__ == "__main__":
    main()
