"""Where and how large: what the sections of `gpu.py` share."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from interleaved import Times, interleaved
from peft import get_peft_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

ROOT = Path(__file__).parent.parent
for folder in (ROOT / "tests", ROOT / "tests" / "outside"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from tiny import TINY  # noqa: E402

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification  # noqa: E402
from hf_i2v.methods import OWN  # noqa: E402

SIZES = {
    "B/16": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "L/14": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
NAMES = [config.method_name for config in OWN]
FOR_TINY = {  # options that fit three blocks of width 32
    "st_adapter": {"adapter_width": 8},
    "inti": {"insert_before": [1]},
    "attentive_probe": {"num_blocks": 1},
    "frame2freq": {"adapter_width": 8, "window_divisors": [1, 2]},
}


@dataclass(frozen=True)
class Result:
    """A row of the table, without where it was measured."""

    what: str
    value: float | None
    unit: str = ""
    status: str = "ok"
    note: str = ""


def check(what: str, error: float, allowed: float, note: str = "") -> Result:
    """A row that fails where an error is larger than allowed, or is no number."""
    is_right = error <= allowed
    note = f"at most {allowed:.2g}" + (f"; {note}" if note else "")
    return Result(what, error, status="ok" if is_right else "failed", note=note)


def left_out(what: str, reason: str) -> Result:
    return Result(what, None, status="left out", note=reason)


@dataclass
class Setting:
    """The device and the sizes.

    Attributes:
        device: to measure on.
        is_small: tiny models, for a machine without a GPU.
        released: folder with checkouts of the released code.
        methods: names of those to go through.
        ends: when the section that runs should be through, on `time.perf_counter`.
    """

    device: torch.device
    is_small: bool
    released: Path | None = None
    methods: Sequence[str] = tuple(NAMES)
    ends: float = 0.0

    def is_late(self) -> bool:
        return time.perf_counter() > self.ends

    @property
    def sizes(self) -> list[str]:
        return ["tiny"] if self.is_small else list(SIZES)

    @property
    def batches(self) -> list[int]:
        return [1] if self.is_small else [1, 4, 16, 64]

    @property
    def num_frames(self) -> int:
        return 4 if self.is_small else 8

    @property
    def rounds(self) -> int:
        return 1 if self.is_small else 3

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def image_config(self, size: str, **changes) -> CLIPVisionConfig:
        if size == "tiny":
            return CLIPVisionConfig(**{**TINY, **changes})
        return CLIPVisionConfig(**{**SIZES[size], "image_size": 224, "patch_size": int(size[2:]), **changes})

    def image_model(self, size: str, attn_implementation: str = "sdpa") -> CLIPVisionModel:
        config = self.image_config(size)
        config._attn_implementation = attn_implementation
        with self.device:
            return CLIPVisionModel(config).eval()

    def video_model(self, size: str, method: str | None, attn_implementation: str = "sdpa", **changes) -> nn.Module:
        """A model with random weights on the device, with a method's adapter or, None, without."""
        config = self.image_config(size, **changes)
        config._attn_implementation = attn_implementation
        options = FOR_TINY.get(method, {}) if size == "tiny" else {}
        with self.device:
            base = I2VForVideoClassification(
                I2VConfig(image_config=config, num_frames=self.num_frames, num_labels=400)
            )
            return base if method is None else get_peft_model(base, METHODS[method](**options)).to(self.device)

    def pixels(self, size: str, batch: int, **options) -> torch.Tensor:
        """Clips (B, T, 3, h, w)."""
        side = self.image_config(size).image_size
        return torch.randn(batch, self.num_frames, 3, side, side, device=self.device, **options)

    def times(self, calls: dict[str, Callable[[], object]]) -> dict[str, Times]:
        """Seconds of calls in turns, each waited for."""

        def waited_for(call):
            def run():
                call()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)

            return run

        return interleaved({name: waited_for(call) for name, call in calls.items()}, rounds=self.rounds)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()
