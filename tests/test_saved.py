"""Files written by an earlier state of the package load, and give the logits that they gave then."""

from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification

SAVED = Path(__file__).parent / "saved"


def load(name: str) -> torch.nn.Module:
    if name.endswith(".adapter"):
        config = PeftConfig.from_pretrained(SAVED / name)
        config.base_model_name_or_path = str(SAVED / config.base_model_name_or_path)
        return AutoPeftModelForVideoClassification.from_pretrained(SAVED / name, config=config)
    return (AutoModel if name.startswith("features") else I2VForVideoClassification).from_pretrained(SAVED / name)


@pytest.mark.parametrize(
    "name",
    [
        "zeroi2v.adapter",
        "zeroi2v.merged",
        "aim.baked",
        "st_adapter+inti.adapter",
        "st_adapter+inti.baked",
        "features.merged",
    ],
)
@torch.no_grad()
def test_what_was_saved_before_gives_the_same(name):
    expected = load_file(SAVED / "expected.safetensors")
    outputs = load(name).eval()(expected["pixel_values"])
    result = outputs.pooler_output if name.startswith("features") else outputs.logits
    with safe_open(SAVED / "expected.safetensors", "pt") as file:
        written_on = file.metadata()
    here = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    if here == written_on:  # else its kernels may round differently
        assert torch.equal(result, expected[name])
    torch.testing.assert_close(result, expected[name], atol=1e-5, rtol=1e-5)
