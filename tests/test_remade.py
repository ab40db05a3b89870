"""What is made again in the backward pass: the same gradients from less memory."""

import contextlib

import pytest
import torch
from method_table import BLOCKS_WITH_WEIGHTS, CONFIGS, small_config
from peft import LoraConfig, get_peft_model
from tiny import randomize_adapter, tiny_image_model
from torch import nn

from hf_i2v import I2VForVideoClassification, ZeroI2VConfig, block
from hf_i2v.remade import Reader, remade, remaking
from hf_i2v.step_memory import LiveBytes

LABELS = torch.tensor([0, 2])


def video_model(config, arch: str = "clip"):
    base = I2VForVideoClassification.from_image_model(tiny_image_model(arch), num_frames=4, num_labels=3)
    return randomize_adapter(get_peft_model(base, config)).train()


def step(model, pixels, autocast: bool = False) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and the bytes that are kept between forward and backward pass."""
    model.zero_grad()
    torch.manual_seed(4)  # dropout and drop path
    live = LiveBytes()
    with live, torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext():
        loss = model(pixels, labels=LABELS).loss
    kept = live.now
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, kept


@pytest.fixture
def everything_kept(monkeypatch):
    """A context in which nothing is made again."""

    @contextlib.contextmanager
    def kept():
        with monkeypatch.context() as patch:
            patch.setattr(block, "remaking", contextlib.nullcontext)
            yield

    return kept


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("method", [name for name, config in CONFIGS.items() if not config.has_branch])
def test_same_gradients_from_less_memory(method, autocast, everything_kept, clip_pixels):
    model = video_model(small_config(method), "dinov2" if autocast else "clip")
    with everything_kept():
        expected, plain = step(model, clip_pixels, autocast)
    found, less = step(model, clip_pixels, autocast)
    assert_same(found, expected)
    if method in BLOCKS_WITH_WEIGHTS:
        assert less < plain, (less, plain)


def test_lora_on_a_video_model(everything_kept, clip_pixels):
    base = I2VForVideoClassification.from_image_model(tiny_image_model("clip"), num_frames=4, num_labels=3)
    lora = LoraConfig(target_modules=["q_proj", "out_proj", "fc2"], modules_to_save=["classifier"])
    model = randomize_adapter(get_peft_model(base.with_stdha(), lora)).train()
    with everything_kept():
        expected, plain = step(model, clip_pixels)
    found, less = step(model, clip_pixels)
    assert_same(found, expected)
    assert less < 0.9 * plain, (less, plain)


def test_two_backward_passes_through_one_graph(clip_pixels):
    model = video_model(ZeroI2VConfig())
    loss = model(clip_pixels, labels=LABELS).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, trained, retain_graph=True)
    second = torch.autograd.grad(loss, trained)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_checkpointing_and_hooks_of_the_caller_have_precedence(clip_pixels, monkeypatch):
    model = video_model(ZeroI2VConfig(adapter_dropout=0.0))
    made = []
    monkeypatch.setattr(Reader, "read", lambda *_: made.append(1))
    with torch.autograd.graph.save_on_cpu():
        model(clip_pixels)
    model.activation_checkpointing_enable()
    model(clip_pixels)
    model.activation_checkpointing_disable()
    model.eval()(clip_pixels)
    assert not made
    model.train()(clip_pixels)
    assert made


def test_under_torch_func(clip_pixels):
    """It forbids hooks on what autograd keeps."""
    model = video_model(ZeroI2VConfig(adapter_dropout=0.0), "vit")
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters):
        torch.manual_seed(4)
        return torch.func.functional_call(model, parameters, (clip_pixels,), {"labels": LABELS}).loss

    found = torch.func.grad(loss)(trained)
    expected, _ = step(model, clip_pixels)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def test_a_tensor_changed_in_place_is_not_made_again():
    """The change is in the gradient where autograd keeps the changed tensor, and an error where it keeps the first."""
    x, weight = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    with remaking():
        y = remade(torch.exp, x * 1)
        z = y.detach() * 0 + y  # so that the change below is no error of exp's own
        z.mul_(3)
        loss = (z * weight).sum()
    loss.backward()
    torch.testing.assert_close(weight.grad, torch.full((3,), 3.0).exp() * 0 + 3 * torch.e)
    with remaking():
        kept = x * 1
        loss = (kept * weight).sum()
        kept.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_a_module_with_hooks_is_called_once():
    module, calls = nn.Linear(2, 2), []
    module.register_forward_hook(lambda *_: calls.append(1))
    weight = torch.ones(2, requires_grad=True)
    with remaking():
        loss = (remade(module, torch.ones(1, 2, requires_grad=True) * 1) * weight).sum()
    loss.backward()
    assert calls == [1]
