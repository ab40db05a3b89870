import json
import logging
import pickle
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, ViTConfig, ViTImageProcessor

from hf_i2v.data import (
    CenterCrop,
    Normalize,
    Preprocessing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeShortSide,
    eval_transform,
    preprocessing_from_pretrained,
    train_transform,
)
from hf_i2v.data.crops import _resize, _resize_as_floats

MEAN, STD = (0.1, 0.5, 0.9), (0.2, 0.25, 0.5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(num_frames=3, height=40, width=60):
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator())


def picture(height=180, width=240):
    """A smooth picture with edges, uint8 (h, w, C): noise would measure the rounding of the filters only."""
    rows, columns = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(columns / 9) * np.cos(rows / 13), columns % 64 * 4, (rows // 20 % 2) * 255]
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("height", "width", "new"), [(40, 60, (20, 30)), (60, 40, (30, 20)), (40, 59, (20, 29)), (20, 20, (20, 20))]
)
def test_short_side(height, width, new, interpolation):
    frames_TChw = clip(height=height, width=width)
    resized_TChw = ResizeShortSide(20, interpolation)(frames_TChw)
    assert resized_TChw.shape == (3, 3, *new)
    assert resized_TChw.dtype == torch.uint8


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_scaling_as_devices_do_it(interpolation):
    frames_TChw = torch.from_numpy(picture()).permute(2, 0, 1)[None]
    for size in ((112, 150), (200, 300)):
        scaled_TChw = _resize_as_floats(frames_TChw, size, interpolation)
        difference_TChw = scaled_TChw.int() - _resize(frames_TChw, size, interpolation).int()
        assert scaled_TChw.dtype == torch.uint8 and difference_TChw.abs().max() <= 1, difference_TChw.abs().max()


def test_center_crop():
    frames_TChw = clip(height=10, width=13)
    assert torch.equal(CenterCrop(8)(frames_TChw), frames_TChw[..., 1:9, 2:10])
    with pytest.raises(ValueError, match=r"10x13 .* smaller than the crop \(11\)"):
        CenterCrop(11)(frames_TChw)


def test_random_resized_crop_stays_inside_and_keeps_to_its_ranges():
    crop = RandomResizedCrop(16, scale=(0.3, 0.6), ratio=(0.75, 1.5))
    boxes = [crop.box(90, 120, generator(seed)) for seed in range(300)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 90 - height and 0 <= left <= 120 - width
        assert 0.29 <= height * width / (90 * 120) <= 0.61
        assert 0.72 <= width / height <= 1.55
    corners = {box[:2] for box in boxes}
    assert len(corners) > 200
    assert crop(clip(), generator()).shape == (3, 3, 16, 16)


def test_random_resized_crop_of_a_frame_no_box_fits():
    assert RandomResizedCrop(16, scale=(1, 1), ratio=(1, 1)).box(20, 200, generator()) == (0, 90, 20, 20)
    assert RandomResizedCrop(16, scale=(1, 1), ratio=(1, 1)).box(200, 20, generator()) == (90, 0, 20, 20)


def test_one_crop_and_flip_for_all_frames():
    still_TChw = clip(num_frames=1).expand(4, -1, -1, -1)
    transform = train_transform(size=16, mean=MEAN, std=STD, flip=0.5)
    outcomes = []
    for seed in range(8):
        out_TChw = transform(still_TChw, generator(seed))
        assert all(torch.equal(frame_Chw, out_TChw[0]) for frame_Chw in out_TChw)
        assert torch.equal(out_TChw, transform(still_TChw, generator(seed)))
        outcomes.append(out_TChw)
    assert not torch.equal(outcomes[0], outcomes[1])


def test_flip():
    frames_TChw = clip()
    mirrored = [
        torch.equal(RandomHorizontalFlip(0.3)(frames_TChw, generator(seed)), frames_TChw.flip(-1))
        for seed in range(300)
    ]
    assert 0.2 < np.mean(mirrored) < 0.4
    assert torch.equal(RandomHorizontalFlip(1)(frames_TChw), frames_TChw.flip(-1))
    assert torch.equal(RandomHorizontalFlip(0)(frames_TChw), frames_TChw)


def test_normalize():
    frames_TChw = clip()
    before_TChw = frames_TChw.clone()
    out_TChw = Normalize(MEAN, STD)(frames_TChw)
    expected_TChw = (frames_TChw.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(out_TChw.double(), expected_TChw, atol=1e-5, rtol=1e-5)
    assert out_TChw.dtype == torch.float32 and out_TChw.is_contiguous()
    assert torch.equal(frames_TChw, before_TChw)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop(16, scale=(0.5, 1.2)), r"scale \(\(0.5, 1.2\)\)"),
        (lambda: RandomResizedCrop(16, ratio=(2, 1)), r"ratio \(\(2, 1\)\)"),
        (lambda: train_transform(size=16, mean=MEAN, std=STD, flip=1.5), r"flip probability \(1.5\)"),
        (lambda: train_transform(size=16, mean=MEAN, std=STD, flip=True), r"flip probability \(True\)"),
        (lambda: Normalize((0.5,), (0.5, 0.5)), "one length"),
        (lambda: Normalize((0.5,), (0.0,)), "std positive"),
        (lambda: Normalize((0.5,), (0.5,))(clip()), "3 channels, mean and std have 1"),
    ],
)
def test_bad_arguments_are_quoted(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_picklable():
    for transform in (
        train_transform(size=16, mean=MEAN, std=STD, flip=0.5, interpolation="bicubic", scale=(0.5, 1)),
        eval_transform(size=16, mean=MEAN, std=STD),
    ):
        copy = pickle.loads(pickle.dumps(transform))
        assert copy == transform
        assert torch.equal(copy(clip(), generator()), transform(clip(), generator()))


@pytest.mark.parametrize("make_processor", [CLIPImageProcessor, ViTImageProcessor], ids=["clip", "vit"])
def test_agrees_with_the_image_processor(tmp_path, make_processor):
    """The image model must see what it was trained on: the same pixels within 1/255 on average."""
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    preprocessing = preprocessing_from_pretrained(tmp_path)
    # ViT's processor squeezes the whole picture into a square, ours crops: compare where both mean the same
    image_hwC = picture() if make_processor is CLIPImageProcessor else picture(240, 240)
    expected_Chw = processor(Image.fromarray(image_hwC), return_tensors="pt")["pixel_values"][0]
    frames_TChw = torch.from_numpy(image_hwC)[None].permute(0, 3, 1, 2)
    out_Chw = eval_transform(**asdict(preprocessing))(frames_TChw)[0]
    std_C11 = torch.tensor(preprocessing.std).view(3, 1, 1)
    assert out_Chw.shape == expected_Chw.shape
    assert ((out_Chw - expected_Chw) * std_C11 * 255).abs().mean() < 1


def test_preprocessing_is_read_from_the_model(tmp_path):
    ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=MEAN, image_std=STD, resample=3).save_pretrained(
        tmp_path
    )
    assert preprocessing_from_pretrained(str(tmp_path)) == Preprocessing(48, MEAN, STD, "bicubic")
    CLIPImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 240, "width": 240}).save_pretrained(tmp_path)
    assert preprocessing_from_pretrained(tmp_path).size == 240  # what the model sees, not what is cropped from
    ViTImageProcessor(size={"height": 48, "width": 64}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not square"):
        preprocessing_from_pretrained(tmp_path)
    ViTImageProcessor(do_normalize=False).save_pretrained(tmp_path)
    assert preprocessing_from_pretrained(tmp_path) == Preprocessing(224, (0.0,) * 3, (1.0,) * 3, "bilinear")


@pytest.mark.parametrize(
    ("config", "size", "interpolation", "mean"),
    [
        (ViTConfig(image_size=32), 32, "bilinear", 0.5),
        (CLIPConfig(vision_config={"image_size": 64}), 64, "bicubic", 0.48145466),
        (CLIPConfig(vision_config={"image_size": 64}).vision_config, 64, "bicubic", 0.48145466),
    ],
    ids=["vit", "clip", "clip_vision"],
)
def test_model_without_preprocessor_config(tmp_path, caplog, config, size, interpolation, mean):
    config.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="hf_i2v"):
        preprocessing = preprocessing_from_pretrained(tmp_path)
    assert (preprocessing.size, preprocessing.interpolation, preprocessing.mean[0]) == (size, interpolation, mean)
    assert "has no preprocessor_config.json" in caplog.text


def test_unusual_resampling_is_said(tmp_path, caplog):
    ViTImageProcessor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "resample": 1}))
    assert preprocessing_from_pretrained(tmp_path).interpolation == "bicubic"
    assert "bicubic filter instead" in caplog.text
