"""A causal model frame by frame: every step gives what the clip of all frames so far gives."""

import copy
import io
import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from adaptformer import AdaptFormerConfig
from method_table import finish
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import randomize_adapter, tiny_image_model
from token_shift import TokenShiftConfig

from hf_i2v import (
    AIMConfig,
    AttentiveProbeConfig,
    AutoPeftModelForVideoClassification,
    Frame2FreqConfig,
    I2VForVideoClassification,
    I2VModel,
    InTIConfig,
    LinearAdapterConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from hf_i2v.block import VideoBlock
from hf_i2v.methods.stdha import default_time_offsets
from hf_i2v.options import tuner_config

T = 4
CAUSAL = {
    "stdha": lambda: STDHAConfig(causal=True),
    "stdha, far": lambda: STDHAConfig(causal=True, time_offsets=[-2, 0, -3, -1]),
    "zeroi2v": lambda: ZeroI2VConfig(causal=True),
    "st_adapter": lambda: STAdapterConfig(causal=True, adapter_width=8),
    "st_adapter 3×3×3": lambda: STAdapterConfig(
        causal=True, adapter_width=8, kernel_size=(3, 3, 3), adapter_sites=["before", "between"]
    ),
    "st_adapter 5×1×1": lambda: STAdapterConfig(causal=True, adapter_width=8, kernel_size=(5, 1, 1)),
    "aim": lambda: AIMConfig(causal=True),
    "aim, ssv2": lambda: AIMConfig(causal=True, temporal_adapter_in=True),
    "st_adapter + zeroi2v": lambda: STAdapterConfig(causal=True, adapter_width=8) + ZeroI2VConfig(causal=True),
    "aim + stdha + linear": lambda: AIMConfig(causal=True) + STDHAConfig(causal=True) + LinearAdapterConfig(),
    "token_shift + adaptformer": lambda: TokenShiftConfig(causal=True) + AdaptFormerConfig(bottleneck=8),
    "attentive_probe": lambda: AttentiveProbeConfig(causal=True, num_blocks=1),
    "frame_probe": lambda: AttentiveProbeConfig(causal=True, num_blocks=0, frame_positions=True),
    "step": lambda: STEPConfig(causal=True),
}
# each kind of state once
EVERY_STATE = ["st_adapter 3×3×3", "st_adapter + zeroi2v", "aim + stdha + linear", "attentive_probe", "step"]


def base_model(backbone: str = "clip", dtype: torch.dtype = torch.float32) -> I2VForVideoClassification:
    image_model = tiny_image_model(backbone).to(dtype)
    torch.manual_seed(3)
    return I2VForVideoClassification.from_image_model(image_model, num_frames=T, num_labels=3)


def adapted(method: str, backbone: str = "clip", dtype: torch.dtype = torch.float32) -> PeftModel:
    return randomize_adapter(get_peft_model(base_model(backbone, dtype), CAUSAL[method]())).eval()


def videos(num_frames: int, side: int = 16, count: int = 2) -> torch.Tensor:
    return torch.randn(count, num_frames, 3, side, side, generator=torch.Generator().manual_seed(5))


def steps(model, pixels_STChw: torch.Tensor, state=None) -> torch.Tensor:
    """The logits after every frame, (S, T, num_labels)."""
    if state is None:
        state = model.new_stream(batch_size=len(pixels_STChw), image_size=pixels_STChw.shape[-1])
    answers = []
    for frames_SChw in pixels_STChw.unbind(1):
        logits, state = model.step(frames_SChw, state)
        answers.append(logits)
    return torch.stack(answers, dim=1)


@torch.no_grad()
def clips(model, pixels_STChw: torch.Tensor) -> torch.Tensor:
    """The logits of the clip of all frames so far, for every frame."""
    return torch.stack([model(pixels_STChw[:, : t + 1]).logits for t in range(pixels_STChw.shape[1])], dim=1)


def outputs_of_blocks(model, run) -> list[torch.Tensor]:
    """What every block gives while `run()` runs: by block (calls · M, N, D)."""
    blocks = [module for module in model.modules() if isinstance(module, VideoBlock)]
    seen = {block.number: [] for block in blocks}
    handles = [block.register_forward_hook(lambda b, args, output: seen[b.number].append(output)) for block in blocks]
    run()
    for handle in handles:
        handle.remove()
    return [torch.cat(outputs) for outputs in seen.values()]


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * max(1, expected.abs().max())


@pytest.mark.parametrize("method", CAUSAL)
@torch.no_grad()
def test_every_block_and_every_logit_of_long_videos(method):
    num_frames = 120 if method in EVERY_STATE else 40
    model, video = adapted(method, "dinov2"), videos(num_frames, 24, count=1)  # not the 16 of the position embedding
    state, found = model.new_stream(image_size=24), []
    in_clip = outputs_of_blocks(model, lambda: model(video))
    in_steps = outputs_of_blocks(model, lambda: found.append(steps(model, video, state)))
    for expected, output in zip(in_clip, in_steps, strict=True):
        assert output.shape[0] == num_frames
        assert_close(output, expected)
    ages = [
        *range(12),
        *range(12, num_frames, 27),
        num_frames - 1,
    ]  # every one would cost a minute
    assert_close(found[0][:, ages], torch.stack([model(video[:, : age + 1]).logits for age in ages], dim=1))


@pytest.mark.parametrize("backbone", ["vit", "siglip"])
@pytest.mark.parametrize("method", [*EVERY_STATE, "token_shift + adaptformer"])
def test_other_backbones(method, backbone):
    model, video = adapted(method, backbone), videos(9)
    assert_close(steps(model, video), clips(model, video))


@pytest.mark.parametrize("method", CAUSAL)
def test_finished_saved_and_loaded(method, tmp_path):
    model, video = adapted(method), videos(7)
    expected = clips(model, video)
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base_model(), tmp_path / "adapter").eval()
    assert_close(steps(loaded, video), expected)
    finished = finish(model).eval()
    assert finished.config.causal and not finished.config.temporal_embedding
    assert_close(steps(finished, video), expected)
    finished.save_pretrained(tmp_path / "model")
    loaded = I2VForVideoClassification.from_pretrained(tmp_path / "model")
    assert_close(steps(loaded, video), expected)
    assert_close(clips(loaded, video), expected)
    headless = I2VModel.from_pretrained(tmp_path / "model")
    feature_SD, _ = headless.step(video[:, 0], headless.new_stream(batch_size=2))
    assert_close(loaded.classifier(feature_SD), expected[:, 0])


@pytest.mark.parametrize("method", [method for method in CAUSAL if "adaptformer" not in method])  # takes one dtype
def test_bfloat16_to_its_rounding(method):
    """The adapter stays in float32, as peft has it; then it is finished in bfloat16."""
    model, video = adapted(method, dtype=torch.bfloat16), videos(7).bfloat16()
    exact = clips(copy.deepcopy(model).float(), video.float())

    def check(model):
        in_clips, found = clips(model, video), steps(model, video)
        rounding = (in_clips.float() - exact).abs().max()
        assert found.dtype == in_clips.dtype
        assert (found.float() - exact).abs().max() <= 2 * rounding + 1e-6

    check(model)
    check(finish(model).eval())


@pytest.mark.parametrize("method", CAUSAL)
def test_streams_start_stop_and_join(method):
    """Streams of different ages in one batch give what each gives alone."""
    model, video = adapted(method), videos(14, count=4)
    alone = steps(model, video)
    state = model.new_stream(batch_size=2)
    for t in range(5):
        logits, state = model.step(video[:2, t], state)
    state.reset(1)  # stream 2 takes the place of stream 1
    assert state.age.tolist() == [5, 0]
    for t in range(3):
        logits, state = model.step(torch.stack((video[0, 5 + t], video[2, t])), state)
        assert_close(logits, torch.stack((alone[0, 5 + t], alone[2, t])))
    state = state.join(model.new_stream(batch_size=1))  # stream 3 joins
    for t in range(3):
        logits, state = model.step(torch.stack((video[0, 8 + t], video[2, 3 + t], video[3, t])), state)
        assert_close(logits, torch.stack((alone[0, 8 + t], alone[2, 3 + t], alone[3, t])))
    state = state.select([2, 0])  # stream 2 leaves
    assert state.batch_size == 2 and state.age.tolist() == [3, 11]
    logits, state = model.step(torch.stack((video[3, 3], video[0, 11])), state)
    assert_close(logits, torch.stack((alone[3, 3], alone[0, 11])))
    state.reset()
    assert_close(steps(model, video[:2], state), alone[:2])


def test_a_state_is_left_as_it_was():
    model, video = adapted("st_adapter + zeroi2v"), videos(6)
    first = model.new_stream(batch_size=2)
    logits, second = model.step(video[:, 0], first)
    assert torch.equal(model.step(video[:, 0], first)[0], logits)
    assert first.age.tolist() == [0, 0] and all((x == 0).all() for x in first.tensors().values())
    expected = steps(model, video[:, 1:], second)
    torch.save(second, buffer := io.BytesIO())  # and it can be stored
    buffer.seek(0)
    assert torch.equal(steps(model, video[:, 1:], torch.load(buffer, weights_only=False)), expected)
    with torch.inference_mode():
        _, state = model.step(video[:, 0], first)
    state.reset(0)
    assert state.age.tolist() == [0, 1]


def test_memory_does_not_grow(capsys):
    """The shifted heads' keys and values as far back as each looks; two bottleneck rows; T − 1 keys and values."""
    N, D, heads, blocks, floats = 5, 32, 4, 3, 4
    pooling = (T - 1) * D
    expected = {
        "stdha": blocks * 2 * 2 * N * D // heads + pooling,  # two heads, one frame
        "stdha, far": blocks * 2 * (2 + 3 + 1) * N * D // heads + pooling,
        "st_adapter": blocks * 2 * N * 8 + pooling,
        "aim": blocks * 2 * (T - 1) * N * D + pooling,
    }
    for method, numbers in expected.items():
        model = adapted(method)
        state = model.new_stream(batch_size=2)
        assert state.nbytes == 2 * (floats * numbers + 8)  # and the age
        for frames in videos(30).unbind(1):
            _, state = model.step(frames, state)
        assert state.nbytes == 2 * (floats * numbers + 8)
    state.print_memory()
    assert capsys.readouterr().out == "streams: 2 || memory of each, however long it is: 0.0119 MB\n"


def test_lora_on_a_causal_shift():
    model = base_model().with_stdha(causal=True)
    assert model.config.time_offsets == [-1, -1] and model.config.causal
    model = randomize_adapter(get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))).eval()
    video = videos(8)
    expected = clips(model, video)
    assert_close(steps(model, video), expected)
    assert_close(steps(model.merge_and_unload(), video), expected)


def test_an_adapter_tells_its_causal_base(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    base = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=T, num_labels=3)
    model = randomize_adapter(get_peft_model(base.with_stdha(causal=True), LinearAdapterConfig())).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "adapter").eval()
    video = videos(8)
    assert_close(steps(loaded, video), clips(model, video))


def test_a_model_of_single_frames_streams_as_it_is():
    """A linear probe, or adapters that see one frame: the mean over a sliding window of T frames."""
    for model in (base_model(), randomize_adapter(get_peft_model(base_model(), LinearAdapterConfig()))):
        found = steps(model.eval(), video := videos(9))
        with torch.no_grad():
            windows = [model(video[:, max(0, t + 1 - T) : t + 1]).logits for t in range(9)]
        assert_close(found, torch.stack(windows, dim=1))


def test_causal_offsets_are_the_same_share_of_the_heads():
    for heads, frames in itertools.product((12, 16), (8, 16, 32)):
        config = STDHAConfig(num_frames=frames, causal=True)
        config.resolve(SimpleNamespace(num_heads=heads, blocks={}))
        assert config.time_offsets == [-abs(offset) for offset in default_time_offsets(heads, frames)]


def test_the_command_line_says_causal():
    composed = tuner_config("st_adapter+zeroi2v", ["causal=true"])
    assert composed.causal and all(part.causal for part in composed.parts())
    with pytest.raises(ValueError, match="InTI cannot be causal"):
        tuner_config("inti", ["causal=true"])


@pytest.mark.parametrize("method", ["zeroi2v", "st_adapter", "aim"])
def test_a_causal_model_trains(method):
    model = adapted(method).train()
    model(videos(T), labels=torch.tensor([0, 1])).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())
    assert not any("i2v_embedding" in name for name in trained)


NOT_CAUSAL = {
    "stdha": (STDHAConfig(), "heads of block 0 look 1 frame ahead, and the look-ahead adds up over the blocks"),
    "stdha, far": (STDHAConfig(time_offsets=[-1, 3]), "heads of block 0 look 3 frames ahead"),
    "zeroi2v, past": (ZeroI2VConfig(time_offsets=[-1]), "its temporal embedding numbers the frames of a clip"),
    "st_adapter": (
        STAdapterConfig(adapter_width=8),
        "the STAdapter in block 0 convolves over later frames too; causal",
    ),
    "aim": (AIMConfig(), "temporal embedding"),
    "inti": (InTIConfig(), "the InTI in block 0 merges each frame with the next one"),
    "m_adapter": (MAdapterConfig(), "its MAdapterBranch convolves over the next frame too"),
    "frame2freq": (Frame2FreqConfig(adapter_width=8, window_divisors=[1]), "transforms whole windows of frames"),
    "attentive_probe": (AttentiveProbeConfig(num_blocks=0), "its AttentiveProbeBranch reads whole clips; causal=True"),
    "token_shift": (TokenShiftConfig(), "the TokenShift in block 0 shifts later frames in; causal=True"),
}


@pytest.mark.parametrize("method", NOT_CAUSAL)
def test_what_looks_ahead_says_so(method):
    config, reason = NOT_CAUSAL[method]
    model = get_peft_model(base_model(), config).eval()
    with pytest.raises(ValueError, match=f"cannot run frame by frame: .*{re.escape(reason)}.* Call it on clips"):
        model.new_stream()
    assert reason in model.why_not_streaming()
    assert config.why_not_streaming
    with model.disable_adapter():  # the image model alone
        assert model.why_not_streaming() is None
    assert reason in finish(model).why_not_streaming()


def test_what_cannot_be_causal():
    for config_class, reason in (
        (InTIConfig, "merges"),
        (MAdapterConfig, "convolves"),
        (Frame2FreqConfig, "transform"),
    ):
        with pytest.raises(ValueError, match=f"cannot be causal: it {reason}"):
            config_class(causal=True)
    with pytest.raises(ValueError, match="look ahead, and a causal model looks back only"):
        get_peft_model(base_model(), STDHAConfig(causal=True, time_offsets=[-1, 1]))
    with pytest.raises(ValueError, match=r"st_adapter \+ aim is half causal: AIM looks at later frames too"):
        STAdapterConfig(causal=True) + AIMConfig()
    with pytest.raises(ValueError, match="is half causal: InTI merges each frame with the next one"):
        STAdapterConfig(causal=True) + InTIConfig()


def test_what_does_not_fit():
    model, video = adapted("zeroi2v"), videos(1)
    frames, state = video[:, 0], model.new_stream(batch_size=2)
    other = adapted("zeroi2v")
    refused = {
        r"frames are \(2, 3, 24, 24\), but the streams take .* of \(2, 3, 16, 16\)": (
            torch.zeros(2, 3, 24, 24),
            state,
        ),
        r"frames are \(2, 1, 16, 16\), but": (frames[:, :1], state),
        r"frames are \(2, 1, 3, 16, 16\), but .*: one frame of each stream": (video, state),
        r"one for each of 1 streams, but the state has 2\..*new_stream\(batch_size=1\)": (frames[:1], state),
        r"frames are torch\.uint8: a step takes normalised floating-point pixels": (frames.to(torch.uint8), state),
        r"frames as a tensor \(S, C, h, w\), not a NoneType": (None, state),
        "takes the state that new_stream or the step before gave, not a Tensor": (frames, state.age),
        "The state is of another model": (frames, other.new_stream(batch_size=2)),
    }
    for message, (wrong_frames, wrong_state) in refused.items():
        with pytest.raises(ValueError, match=message):
            model.step(wrong_frames, wrong_state)
    with model.disable_adapter():
        plain = model.new_stream(batch_size=2)
        with pytest.raises(ValueError, match=r"state is of this model with another adapter: .*block0\.heads"):
            model.step(frames, state)
    with pytest.raises(ValueError, match=r"state is of this model with another adapter: .*block0\.heads"):
        model.step(frames, plain)
    with pytest.raises(ValueError, match=r"training mode.*eval\(\)"):
        model.train().step(frames, state)
    with pytest.raises(IndexError, match="no stream 2: the state has streams 0 to 1"):
        state.reset(2)
    with pytest.raises(ValueError, match="cannot join: they are of different models"):
        state.join(other.new_stream())
    with pytest.raises(ValueError, match=r"batch_size \(0\) must be >= 1"):
        model.new_stream(batch_size=0)
