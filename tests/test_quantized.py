"""Methods on a quantised frozen base: they train, and merging leaves ordinary weights."""

import warnings

import pytest
import torch
from method_table import OWN_NAMES, small_config
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model
from transformers import AutoModelForVideoClassification, BitsAndBytesConfig, TorchAoConfig

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification
from hf_i2v.quantized import is_quantized


def quantization(kind: str):
    if kind == "torchao":
        torchao = pytest.importorskip("torchao.quantization")
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(
        load_in_8bit=kind == "8bit", load_in_4bit=kind == "4bit", bnb_4bit_compute_dtype=torch.float32
    )


@pytest.fixture(scope="session")
def image_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_image_model("clip", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("method", OWN_NAMES)
@pytest.mark.parametrize("kind", ["8bit", "4bit", "torchao"])
def test_it_trains_on_a_quantised_base_and_finishes_without(kind, method, image_model, clip_pixels, tmp_path):
    options = {"quantization_config": quantization(kind)}
    base = I2VForVideoClassification.from_image_model(image_model, num_frames=4, num_labels=3, **options)
    config = small_config(method)
    model = get_peft_model(base, config).train()
    assert sum(map(is_quantized, base.modules())) >= 18  # three blocks of six projections
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(clip_pixels, labels=torch.tensor([0, 2])).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        # where the feature is the CLS token, patches that leave the last block reach nothing
        assert not without or (config.unused_parameters and all(".layers.2." in name for name in without))
        optimizer.step()
    randomize_adapter(model).eval()
    # saved before it runs in eval mode: after that, bitsandbytes 0.50 on a CPU breaks 4-bit layers whose state is read
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(clip_pixels).logits

    with pytest.warns(UserWarning, match="dequantised, merged in float32"):
        finished = model.merge_and_unload() if method in ("zeroi2v", "linear_adapter") else model.bake()
    assert not any(map(is_quantized, finished.modules()))
    # bitsandbytes rounds the activations too, so the dequantised model differs by that
    torch.testing.assert_close(finished(clip_pixels).logits, expected, atol=0.05, rtol=0.05)
    finished.save_pretrained(tmp_path / "finished")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "finished")
    # weights in a file's memory lie elsewhere than others, and products may round by where they lie
    torch.testing.assert_close(loaded(clip_pixels).logits, finished(clip_pixels).logits, atol=1e-5, rtol=1e-5)

    again = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "adapter", **options)
    assert any(map(is_quantized, again.modules()))
    with torch.no_grad():
        torch.testing.assert_close(again(clip_pixels).logits, expected)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("kind", ["8bit", "4bit", "torchao"])
def test_merging_is_undone_exactly(kind, image_model, clip_pixels):
    base = I2VForVideoClassification.from_image_model(
        image_model, num_frames=4, num_labels=3, quantization_config=quantization(kind)
    )
    model = randomize_adapter(get_peft_model(base, small_config("zeroi2v"))).eval()
    with torch.no_grad():
        expected = model(clip_pixels).logits
        with pytest.warns(UserWarning, match="dequantised"):
            model.merge_adapter()
        torch.testing.assert_close(model(clip_pixels).logits, expected, atol=0.05, rtol=0.05)
        model.unmerge_adapter()
        assert torch.equal(model(clip_pixels).logits, expected)
    with pytest.raises(ValueError, match=r"'fc1', which is quantised"):
        get_peft_model(
            I2VForVideoClassification.from_image_model(
                image_model, num_frames=4, num_labels=3, quantization_config=quantization(kind)
            ),
            small_config("st_adapter", modules_to_save=["fc1"]),
        )
