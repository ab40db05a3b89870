"""Export a saved video model for runtimes without transformers: `torch.export` and ONNX, float32 and int8.

    python -m hf_i2v.export my-video-model exported --int8 --validation_dir data/validation

Both programs take `pixel_values` (B, T, C, h, w) float32 with any B and give `logits` (B, num_labels). T, h and w are
those of the model's clips; model.json, and each file's own metadata, name them with the labels and the preprocessing.
`--stream` also writes one step of a stream, see `export_stream`.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from .data import Preprocessing, VideoClips, collate, eval_transform, load_video_folder
from .export_stream import export_step, largest_step_difference, step_description, step_names
from .modeling_i2v import I2VForVideoClassification

TOLERANCE = 1e-4  # largest difference of a logit from PyTorch's
OPSET = 20
NAMES = {"input_names": ["pixel_values"], "output_names": ["logits"]}
Run = Callable[[torch.Tensor], torch.Tensor]  # (B, T, C, h, w) → logits (B, num_labels)


class Logits(nn.Module):
    """`pixel_values` → `logits`, as tensors."""

    def __init__(self, model: I2VForVideoClassification):
        super().__init__()
        self.model = model.eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


def example_clips(model: I2VForVideoClassification, batch_size: int) -> torch.Tensor:
    """Random pixels (B, T, C, h, w) of the size that the model takes."""
    return torch.randn(model.config.clip_shape(batch_size), generator=torch.Generator().manual_seed(batch_size))


def description(model: I2VForVideoClassification) -> dict:
    """What a program without transformers must know to feed the model and to read its answer."""
    config = model.config
    return {
        "labels": [config.id2label[i] for i in range(config.num_labels)],
        "num_frames": config.num_frames,
        "sampling": "the middle frame of each of num_frames equal segments of the video",
        "preprocessing": config.preprocessing,
        "pixel_values": ["batch", *config.clip_shape()[1:]],
    }


def export_program(model: I2VForVideoClassification) -> torch.export.ExportedProgram:
    """The model as one graph, for any number of clips."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Logits(model), (example_clips(model, 2),), dynamic_shapes={"pixel_values": {0: batch}}, strict=False
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def save_program(program: torch.export.ExportedProgram, path: str | Path, metadata: dict | None = None) -> None:
    """Write the program without the clips that it was traced with.

    Args:
        program: of `export_program`.
        path: the file, usually `model.pt2`.
        metadata: becomes its extra file model.json.
    """
    kept, program.example_inputs = program.example_inputs, None
    torch.export.save(program, path, extra_files={"model.json": json.dumps(metadata or {})})
    program.example_inputs = kept


def export_onnx(
    program: torch.export.ExportedProgram,
    path: str | Path,
    *,
    opset: int = OPSET,
    metadata: dict | None = None,
    names: dict[str, list[str]] = NAMES,
) -> None:
    """Write the program as ONNX, its batch dynamic.

    Args:
        program: of `export_program`.
        path: the file, usually `model.onnx`.
        opset: ONNX's version of the operators.
        metadata: for the file's own, each value as json.
        names: of inputs and outputs, as `torch.onnx.export` takes them.

    Raises:
        ImportError: onnx and onnxscript are not installed.
    """
    onnx = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **names)
    for node in onnx.model.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # paths of this machine
    onnx.model.metadata_props.update({key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.save(path)


def quantize(path: str | Path, int8_path: str | Path) -> None:
    """Dynamic int8: the weights of all matrix products are int8, activations are quantised at run time.

    Args:
        path: an ONNX file of `export_onnx`.
        int8_path: the file to write.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes of intermediate values, which quantising changes
    quantize_dynamic(model, int8_path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


class OnnxClassifier:
    """The exported file at `path`, run by onnxruntime: call it with (B, T, C, h, w) → logits (B, num_labels)."""

    def __init__(self, path: str | Path):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"pixel_values": pixel_values.numpy()})[0])


@torch.no_grad()
def largest_difference(run: Run, model: I2VForVideoClassification) -> float:
    """Largest difference between the model's logits and those of `run`, on batches of 1, 2 and 3 clips; NaN if a
    difference is not finite."""
    logits = Logits(model)
    batches = [example_clips(model, batch_size) for batch_size in (1, 2, 3)]
    differences_BK = torch.cat([run(clips) - logits(clips) for clips in batches])
    return differences_BK.abs().max().item() if differences_BK.isfinite().all() else math.nan


def validation_clips(model: I2VForVideoClassification, folder: Path) -> tuple[VideoClips, np.ndarray]:
    """Clips of folders of videos, one folder per label of the model; and for each folder the model's class number.

    Raises:
        ValueError: the model does not say how its pixels are made, or a folder's name is none of its labels.
    """
    config = model.config
    if config.preprocessing is None:
        raise ValueError("The model has no preprocessing in its configuration, so its accuracy cannot be measured.")
    videos = next(iter(load_video_folder(folder).values()))
    names = videos.features["label"].names
    label2id = {name: i for i, name in config.id2label.items()}
    if unknown := sorted(set(names) - label2id.keys()):
        raise ValueError(f"{folder} has folders {unknown}, but the model's labels are {list(label2id)}")
    transform = eval_transform(**vars(Preprocessing(**config.preprocessing)))
    clips = VideoClips(videos, num_frames=config.num_frames, transform=transform, train=False)
    return clips, np.array([label2id[name] for name in names])


@torch.no_grad()
def accuracy(run: Run, clips: VideoClips, labels: np.ndarray, batch_size: int = 8) -> float:
    """Top-1 of `run` on what `validation_clips` gives."""
    right = 0
    for batch in DataLoader(clips, batch_size=batch_size, collate_fn=collate):
        right += (run(batch["pixel_values"]).argmax(-1).numpy() == labels[batch["labels"]]).sum()
    return right / len(clips)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hf_i2v.export", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("model", help="merged or baked video model: a folder or a Hub repository")
    add("output_dir", type=Path, help="gets model.pt2, model.onnx and model.json, and what --int8 and --stream add")
    add("--opset", type=int, default=OPSET, help="of the ONNX file")
    add("--int8", action="store_true", help="also quantise dynamically to int8; prints the accuracy of both")
    add("--stream", action="store_true", help="also write one step of a stream, model.stream.onnx (a causal model)")
    add("--validation_dir", type=Path, help="one sub-folder of videos per class, to measure accuracy on")
    args = parser.parse_args(argv)
    if args.int8 and args.validation_dir is None:
        parser.error("--int8 needs --validation_dir: a quantised model is of no use while its accuracy is unknown")

    model = I2VForVideoClassification.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.stream and (why := model.why_not_streaming()):
        parser.error(f"--stream: {args.model} cannot run frame by frame: {why}")
    if args.validation_dir is not None:
        try:  # before what takes minutes
            validation = validation_clips(model, args.validation_dir)
        except ValueError as error:
            parser.error(str(error))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    pt2, onnx, int8, stream = (
        args.output_dir / f"model.{kind}" for kind in ("pt2", "onnx", "int8.onnx", "stream.onnx")
    )
    program, metadata = export_program(model), description(model)
    if args.stream:
        metadata["stream"] = step_description(model)
    (args.output_dir / "model.json").write_text(json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
    save_program(program, pt2, metadata)
    export_onnx(program, onnx, opset=args.opset, metadata=metadata)
    runs = {pt2: torch.export.load(pt2).module(), onnx: OnnxClassifier(onnx)}
    for path, run in runs.items():
        difference = largest_difference(run, model)
        print(f"{path.name}: {_megabytes(path)}, largest difference of a logit from PyTorch {difference:.1e}")
        if not difference <= TOLERANCE:
            raise SystemExit(f"{path.name} differs by more than {TOLERANCE}: do not use it")
    if args.stream:
        export_onnx(export_step(model), stream, opset=args.opset, metadata=metadata, names=step_names(model))
        difference = largest_step_difference(stream, model)
        print(f"{stream.name}: {_megabytes(stream)}, largest difference from step over 50 frames {difference:.1e}")
        if not difference <= TOLERANCE:
            raise SystemExit(f"{stream.name} differs by more than {TOLERANCE}: do not use it")
    if args.int8:
        quantize(onnx, int8)
        runs[int8] = OnnxClassifier(int8)
        difference = largest_difference(runs[int8], model)
        print(f"{int8.name}: {_megabytes(int8)}, largest difference {difference:.1e}")
        if not math.isfinite(difference):
            raise SystemExit(f"{int8.name} gives logits that are not finite: do not use it")
    if args.validation_dir is not None:
        for path, run in {"PyTorch": Logits(model), **{p.name: run for p, run in runs.items()}}.items():
            print(f"top-1 {100 * accuracy(run, *validation):.2f} % {path}")


def _megabytes(path: Path) -> str:
    files = path.parent.glob(f"{path.name}*")  # ONNX may write large weights to a second file
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
