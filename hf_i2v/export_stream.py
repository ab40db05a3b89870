"""Export one step of a stream: an ONNX graph whose inputs and outputs are frames, logits and what is kept between.

`python -m hf_i2v.export my-video-model exported --stream` writes it. Inputs: `pixel_values` (S, C, h, w), `age` (S,),
and what each part of the model keeps, (S, …). Outputs: `logits` (S, num_labels), and the same again as `new_age`,
`new_…`, which are the inputs of the next step. All zeros is a stream without frames. S is any number of streams.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .modeling_i2v import I2VForVideoClassification
from .stream_state import Step, StreamState


class StepOfTensors(nn.Module):
    """`model.step` with a state that is taken apart into its tensors."""

    def __init__(self, model: I2VForVideoClassification, state: StreamState):
        super().__init__()
        self.model = model.eval()
        self.state = state  # only for the names

    def forward(self, pixel_values: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = self.state.replaced(tensors)
        step = Step(state.age, self.model.config.num_frames, state.kept)
        logits = self.model._run_step(pixel_values, step)
        after = StreamState(state.age + 1, {place: step.after[place] for place in state.kept}, state.frame_shape)
        return logits, *after.tensors().values()


@torch.no_grad()
def export_step(model: I2VForVideoClassification) -> torch.export.ExportedProgram:
    """One step as one graph, for any number of streams.

    Raises:
        ValueError: the model cannot run frame by frame.
    """
    state = model.new_stream(batch_size=2)
    batch = torch.export.Dim("batch")
    tensors = tuple(state.tensors().values())
    frames = torch.randn(2, *state.frame_shape)
    program = torch.export.export(
        StepOfTensors(model, state),
        (frames, *tensors),
        dynamic_shapes={"pixel_values": {0: batch}, "tensors": tuple({0: batch} for _ in tensors)},
        strict=False,
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def step_names(model: I2VForVideoClassification) -> dict[str, list[str]]:
    """The names of an exported step's inputs and outputs, as `torch.onnx.export` takes them."""
    kept = list(model.new_stream().tensors())
    return {
        "input_names": ["pixel_values", *kept],
        "output_names": ["logits", *(f"new_{name}" for name in kept)],
    }


def step_description(model: I2VForVideoClassification) -> dict:
    """What a program without transformers must know to run a stream, besides what clips need."""
    state = model.new_stream()
    kept = {name: {"shape": ["batch", *x.shape[1:]], "dtype": str(x.dtype)[6:]} for name, x in state.tensors().items()}
    return {
        "frames": ["batch", *state.frame_shape],
        "state": kept,
        "first_state": "zeros",
        "next_state": "the outputs new_…",
        "bytes_of_a_stream": state.nbytes,
    }


class OnnxStream:
    """An exported step, run by onnxruntime: call it with one frame of each stream, (S, C, h, w) → logits.

    Args:
        path: `model.stream.onnx`.
        batch_size: number of streams S.
    """

    def __init__(self, path: str | Path, batch_size: int = 1):
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
        types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
        self.state = {
            x.name: np.zeros((batch_size, *x.shape[1:]), types[x.type])
            for x in self.session.get_inputs()
            if x.name != "pixel_values"
        }

    def __call__(self, frames_SChw: torch.Tensor) -> torch.Tensor:
        logits, *kept = self.session.run(None, {"pixel_values": frames_SChw.numpy(), **self.state})
        self.state = dict(zip(self.state, kept, strict=True))
        return torch.from_numpy(logits)

    def reset(self, index: int) -> None:
        """Let stream `index` start anew."""
        for x in self.state.values():
            x[index] = 0


@torch.no_grad()
def largest_step_difference(path: str | Path, model: I2VForVideoClassification, num_frames: int = 50) -> float:
    """Largest difference between the logits of `model.step` and of the exported step over so many frames, of one
    stream and of three; NaN if a difference is not finite."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch_size in (1, 3):
        run, state = OnnxStream(path, batch_size), model.new_stream(batch_size=batch_size)
        for _ in range(num_frames):
            frames_SChw = torch.randn(batch_size, *state.frame_shape, generator=generator)
            logits, state = model.step(frames_SChw, state)
            difference = run(frames_SChw) - logits
            if not difference.isfinite().all():
                return math.nan
            largest = max(largest, difference.abs().max().item())
    return largest
