"""`hf_i2v.visualize`: what is found is what the model computes, and what is drawn can be read back."""

import itertools

import av
import numpy as np
import pytest
import torch
from method_table import CONFIGS, small_config
from peft import get_peft_model
from PIL import Image, ImageSequence
from tiny import IMAGE_MODELS, randomize_adapter, tiny_image_model, write_moving_texture
from transformers import AttentionInterface, CLIPVisionConfig, CLIPVisionModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_i2v import AIMConfig, I2VForVideoClassification, InTIConfig, LinearAdapterConfig, STDHAConfig, ZeroI2VConfig
from hf_i2v.backbones import find_backbone
from hf_i2v.data import Preprocessing, decode_frames, eval_transform, uniform_indices
from hf_i2v.methods.inti import InTI
from hf_i2v.visualize import attention_over_time, evidence, inti_weights, main, save

LOOK = Preprocessing(size=24, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")  # 3×3 patches of 8 pixels
LABELS = {0: "up", 1: "down $", 2: "手"}
SIDE = 3


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_moving_texture(tmp_path_factory.mktemp("visualize") / "clip.mp4")


def video_model(config=None, name: str = "dinov2"):
    """A tiny model for clips of 4 frames with 24 pixels a side; its configuration says 32."""
    model = I2VForVideoClassification.from_image_model(
        tiny_image_model(name, image_size=32 if "dino" in name else 24), num_frames=4, id2label=LABELS
    )
    model.config.preprocessing = vars(LOOK)
    torch.manual_seed(0)
    model.classifier.reset_parameters()
    return model.eval() if config is None else randomize_adapter(get_peft_model(model, config)).eval()


def pixels_of(video) -> torch.Tensor:
    frames_TChw = decode_frames(video, uniform_indices(num_video_frames=30, num_frames=4))
    return eval_transform(**vars(LOOK))(frames_TChw)[None]


def recorded(model, pixels, block: int) -> dict:
    """What the kernel of a block gets, and what it makes of it."""
    backbone, seen = find_backbone(model), {}
    attention = getattr(list(backbone.blocks.values())[block], backbone.parts.attention)

    def kernel(module, query, key, value, attention_mask, **kwargs):
        output = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        if module.q_proj is attention.q_proj:
            seen.update(q=query, k=key.clone(), v=value.clone(), scaling=kwargs["scaling"], output=output[0])
        return output

    AttentionInterface.register("test_recorder", kernel)
    for part in (find_backbone(model).model.config, attention.config.wrapped):
        part._attn_implementation = "test_recorder"
    model(pixels)
    for part in (find_backbone(model).model.config, attention.config.wrapped):
        part._attn_implementation = "sdpa"
    return seen


@pytest.mark.parametrize("name", IMAGE_MODELS)
@torch.no_grad()
def test_attention_is_what_the_block_computes_with(name, video):
    model = video_model(ZeroI2VConfig(time_offsets=[-1, 0, 2]), name)
    pixels, backbone = pixels_of(video), find_backbone(model)
    before = model(pixels).logits
    x = recorded(model, pixels, block=1)
    p_MHNN = (x["q"] @ x["k"].mT * x["scaling"]).softmax(-1)
    torch.testing.assert_close((p_MHNN @ x["v"]).transpose(1, 2), x["output"], atol=1e-5, rtol=1e-5)

    for column, row in ((0, 0), (2, 1)):
        seen = attention_over_time(
            model, video, frame=2, position=((column + 0.5) / SIDE, (row + 0.9) / SIDE), block=1
        )
        token = backbone.num_prefix_tokens + row * SIDE + column
        expected_THP = p_MHNN[:, :, token, backbone.num_prefix_tokens :]
        torch.testing.assert_close(seen.weights_THrc.flatten(2), expected_THP, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.positions_TX, (torch.tensor([[column, row]] * 4) + 0.5) / SIDE)
    assert (seen.offsets_H, seen.frame, seen.block) == ((-1, 0, 2, 0), 2, 1)
    assert seen.pictures_TChw.shape == (4, 3, 28, 28) and seen.pictures_TChw.dtype == torch.uint8
    assert torch.equal(model(pixels).logits, before)  # nothing is left behind


def test_a_shifted_head_reads_the_other_frame(video):
    """With q and k of the tokens alone: the first block of a model without anything else."""
    model = video_model(STDHAConfig(time_offsets=[-1]))
    shifted = attention_over_time(model, video, position=(0, 0), block=0)
    backbone, keys = find_backbone(model), []
    attention = backbone.first_block.attention
    handle = attention.k_proj.register_forward_hook(lambda module, args, output: keys.append(output.clone()))
    queries = []
    other = attention.q_proj.register_forward_hook(lambda module, args, output: queries.append(output.clone()))
    with torch.no_grad():
        model(pixels_of(video))
    handle.remove(), other.remove()
    q_MK, k_MNK = queries[0][:, 1, :8], keys[0][..., :8]  # head 0 of the first patch
    source = [0, 0, 1, 2]
    p_MN = torch.einsum("mk,mnk->mn", q_MK, k_MNK[source] / 8**0.5).softmax(-1)
    torch.testing.assert_close(shifted.weights_THrc[:, 0].flatten(1), p_MN[:, 1:])


def test_finished_causal_and_composed_models_look_too(video):
    adapted = video_model(ZeroI2VConfig(causal=True))
    expected = attention_over_time(adapted, video, position=(1, 1))
    assert set(expected.offsets_H) == {-1, 0} and expected.block == 1
    seen = attention_over_time(adapted.merge_and_unload(), video, position=(1, 1))
    torch.testing.assert_close(seen.weights_THrc, expected.weights_THrc, atol=1e-4, rtol=1e-3)
    with_aim = attention_over_time(video_model(AIMConfig() + STDHAConfig()), video)  # runs the attention over time too
    assert with_aim.weights_THrc.shape == (4, 4, SIDE, SIDE) and with_aim.weights_THrc.sum((2, 3)).max() < 1
    with_inti = video_model(STDHAConfig() + InTIConfig(insert_before=[1]))
    assert attention_over_time(with_inti, video, block=0).weights_THrc.shape == (4, 4, SIDE, SIDE)
    with pytest.raises(ValueError, match="Before block 1 the 4 frames were merged to 2"):
        attention_over_time(with_inti, video)


def test_without_a_position_it_follows_what_moves(tmp_path):
    frames = np.full((4, 24, 24, 3), 90, np.uint8)
    for t, (row, column) in enumerate([(0, 0), (0, 1), (1, 2), (2, 2)]):
        frames[t, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = (255, 240, 200)
        Image.fromarray(frames[t]).save(tmp_path / f"{t}.png")
    seen = attention_over_time(video_model(STDHAConfig()), tmp_path)
    assert ((seen.positions_TX * SIDE).int())[1:3].tolist() == [[1, 0], [2, 1]]
    assert seen.frame in (1, 2)


@torch.no_grad()
def test_inti_weights_make_the_merged_frames(video):
    model, seen = video_model(InTIConfig(insert_before=[2, 1])), []
    (first, _) = (module for module in model.modules() if isinstance(module, InTI))
    handle = first.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    found = inti_weights(model, video)
    handle.remove()
    (x_TND, merged_PND), w_TN = seen[0], found.weights_Trc.flatten(1)
    expected_PND = (w_TN[..., None] * x_TND[:, 1:]).unflatten(0, (2, 2)).sum(1)
    torch.testing.assert_close(merged_PND[:, 1:], expected_PND)
    assert found.block == 1 and w_TN.std() > 1e-3
    torch.testing.assert_close(w_TN[::2] + w_TN[1::2], torch.ones(2, SIDE**2))
    baked = inti_weights(model.bake(), video)
    torch.testing.assert_close(baked.weights_Trc, found.weights_Trc)


MEANS = [name for name, config in CONFIGS.items() if not config.has_branch]


@pytest.mark.parametrize("method", MEANS)
@torch.no_grad()
def test_evidence_of_all_frames_is_the_answer(method, video):
    model = video_model(small_config(method))
    found, logits_K = evidence(model, video), model(pixels_of(video)).logits[0]
    T = 2 if method == "inti" else 4
    assert found.alone_TK.shape == found.so_far_TK.shape == (T, 3) and found.labels == tuple(LABELS.values())
    torch.testing.assert_close(found.so_far_TK[-1], logits_K, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.so_far_TK[0], found.alone_TK[0], atol=1e-5, rtol=1e-4)
    assert found.alone_TK.std(0).min() > 1e-4
    if find_backbone(model).model.working_pooling() == "after_norm":  # the head is linear
        torch.testing.assert_close(found.alone_TK.mean(0), logits_K, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", IMAGE_MODELS)
@torch.no_grad()
def test_evidence_of_a_frame_is_the_answer_to_a_clip_of_it(name, video):
    """Where frames know nothing of one another."""
    model = video_model(LinearAdapterConfig(), name)
    found = evidence(model, video)
    for t, frame_Chw in enumerate(pixels_of(video)[0]):
        torch.testing.assert_close(found.alone_TK[t], model(frame_Chw[None, None]).logits[0], atol=1e-5, rtol=1e-4)


def looks(path) -> list[np.ndarray]:
    """All pictures of a file."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize(
    ("find", "config", "animation", "num_steps"),
    [
        (attention_over_time, ZeroI2VConfig(time_offsets=[-1, 1]), ".gif", 4),
        (inti_weights, InTIConfig(insert_before=[1]), ".gif", 2),
        (inti_weights, InTIConfig(insert_before=[1]), ".MP4", 2),
        (evidence, InTIConfig(insert_before=[1]), ".gif", 4),
    ],
)
def test_files(find, config, animation, num_steps, video, tmp_path):
    seen = find(video_model(config), video)
    for suffix, count in ((".png", 1), (animation, num_steps)):
        save(seen, path := tmp_path / f"out{suffix}", fps=5)
        pictures = looks(path.rename(path.with_suffix(suffix.lower())))
        assert len(pictures) == count, suffix
        assert {picture.shape[1] for picture in pictures} == {800} and pictures[0].std() > 10
        assert all((a != b).any() for a, b in itertools.pairwise(pictures))


def test_command(video, tmp_path, capsys):
    image = tiny_image_model("dinov2", image_size=32)
    image.save_pretrained(tmp_path / "image")
    LOOK.image_processor().save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, id2label=LABELS)
    get_peft_model(model, ZeroI2VConfig()).save_pretrained(tmp_path / "adapter")
    arguments = [str(tmp_path / "adapter"), str(video), "--what"]
    output = tmp_path / "attention.png"
    main(
        [*arguments, "attention", "--frame", "1", "--position", "0.5", "0.2", "--block", "0", "--output", str(output)]
    )
    assert capsys.readouterr().out == f"{output}\n" and len(looks(output)) == 1
    for wrong, message in (
        (["evidence", "--output", "out.jpg"], "out.jpg must end in .png, .gif or .mp4"),
        (["evidence", "--output", "out.png", "--block", "0"], "--block belongs to --what attention"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("find", "config", "options", "message"),
    [
        (attention_over_time, None, {}, "no heads that look at other frames"),
        (attention_over_time, STDHAConfig(layers_to_transform=[0, 2]), {"block": 1}, r"those with them are \[0, 2\]"),
        (attention_over_time, STDHAConfig(), {"block": 9}, "block 9 has no heads"),
        (
            attention_over_time,
            STDHAConfig(),
            {"frame": 4},
            r"frame \(4\) lies outside the clip: its 4 frames are 0 to",
        ),
        (attention_over_time, STDHAConfig(), {"frame": -1}, r"frame \(-1\) lies outside"),
        (attention_over_time, STDHAConfig(), {"position": (0.5, 1.1)}, r"position \(0.5, 1.1\) lies outside the pict"),
        (attention_over_time, STDHAConfig(), {"position": (float("nan"), 0)}, "lies outside the picture"),
        (attention_over_time, STDHAConfig(), {"position": (0.5,)}, "lies outside the picture"),
        (inti_weights, STDHAConfig(), {}, "has no InTI"),
        (evidence, small_config("step"), {}, "no mean over the frames: its STEPBranch"),
        (evidence, small_config("m_adapter"), {}, "no mean over the frames"),
    ],
)
def test_what_cannot_be_seen_is_said(find, config, options, message, video):
    with pytest.raises(ValueError, match=message):
        find(video_model(config), video, **options)


def test_what_cannot_be_drawn_or_looked_into_is_said(video, tmp_path):
    model = video_model(STDHAConfig())
    seen = evidence(model, video)
    with pytest.raises(ValueError, match=r"out.jpeg must end in .png, .gif or .mp4"):
        save(seen, tmp_path / "out.jpeg")
    with pytest.raises(ValueError, match=r"fps \(0\) must be above 0"):
        save(seen, tmp_path / "out.gif", fps=0)
    with pytest.raises(ValueError, match="CLIPVisionModel is no video classifier of hf_i2v"):
        evidence(CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=1)), video)
    model.config.preprocessing = None
    with pytest.raises(ValueError, match="does not say how its pixels are made"):
        evidence(model, video)
