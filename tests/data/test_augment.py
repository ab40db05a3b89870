"""Augmentations: the same for all frames, decided by the generator, and labels that follow."""

import logging
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Video
from PIL import Image, ImageEnhance, ImageOps

from hf_i2v.data import (
    ClipLoader,
    ClipTransform,
    ColorJitter,
    Compose,
    Mix,
    Normalize,
    RandAugment,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ShortSideJitter,
    ThreeCrops,
    VideoClips,
    crops,
    eval_transform,
    train_transform,
)
from hf_i2v.data.augment import _OPERATIONS, _brightness, _contrast, _from_tall, _to_tall

LOOK = {"size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(num_frames=3, height=24, width=32):
    """Channels last in memory, as frames come out of the decoder."""
    frames_ThwC = torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator())
    return frames_ThwC.permute(0, 3, 1, 2)


RANDOM = [
    RandAugment(num_ops=3),
    ColorJitter(hue=0.1),
    RandomErasing(p=1.0),
    ShortSideJitter(16, (20, 30)),
    train_transform(**LOOK, flip=0.5, color_jitter=0.3, rand_augment=(2, 7), erase=0.5),
    train_transform(**LOOK, flip=0.5, short_side=(18, 26)),
]


@pytest.mark.parametrize("transform", RANDOM, ids=lambda transform: type(transform).__name__)
def test_same_for_all_frames_and_by_the_generator_only(transform):
    still_TChw = clip(num_frames=1).expand(4, -1, -1, -1)
    before_TChw = still_TChw.clone()
    outcomes = []
    for seed in range(20):
        out_TChw = transform(still_TChw, generator(seed))
        assert out_TChw.dtype == (torch.float32 if isinstance(transform, ClipTransform) else torch.uint8)
        assert all(torch.equal(frame_Chw, out_TChw[0]) for frame_Chw in out_TChw)
        torch.manual_seed(seed + 1)
        assert torch.equal(out_TChw, transform(still_TChw, generator(seed)))
        outcomes.append(tuple(out_TChw.flatten().tolist()))
    assert len(set(outcomes)) > 10
    assert torch.equal(still_TChw, before_TChw)


def test_rand_augment_operations():
    """Each of the 14 does what Pillow does to single pictures, and nothing leaks from frame to frame."""
    frames_TChw = clip() // 2 + 40  # a range that autocontrast can widen
    pictures = [Image.fromarray(frame_hwC.numpy()) for frame_hwC in frames_TChw.permute(0, 2, 3, 1)]
    assert len(_OPERATIONS) == 14
    outcomes = [_from_tall(op(_to_tall(frames_TChw), 3, 0.8, 1.0), 3) for op in _OPERATIONS]
    assert torch.equal(outcomes[0], frames_TChw)
    for number, expected in {
        4: lambda picture: ImageOps.solarize(picture, round(256 * 0.2)),
        5: lambda picture: ImageOps.posterize(picture, 5),
        6: lambda picture: ImageEnhance.Color(picture).enhance(1.72),
        8: lambda picture: ImageEnhance.Brightness(picture).enhance(1.72),
        9: lambda picture: ImageEnhance.Sharpness(picture).enhance(1.72),
    }.items():
        wanted_ThwC = np.stack([np.asarray(expected(picture)) for picture in pictures])
        assert np.array_equal(outcomes[number].permute(0, 2, 3, 1).numpy(), wanted_ThwC), number
    for number, out_TChw in enumerate(outcomes[1:], start=1):
        assert out_TChw.shape == frames_TChw.shape and not torch.equal(out_TChw, frames_TChw), number
    for number in (3, 9, 10, 11, 12, 13):  # operations that move pixels see one frame at a time
        alone = _from_tall(_OPERATIONS[number](_to_tall(frames_TChw[1:2]), 1, 0.8, 1.0), 1)
        assert torch.equal(outcomes[number][1:2], alone), number
    shifted_TChw = _from_tall(_OPERATIONS[12](_to_tall(frames_TChw), 3, 0.5 / 0.9, 1.0), 3)
    assert torch.equal(shifted_TChw[..., :24], frames_TChw[..., 8:])  # a quarter of 32 columns
    mild = RandAugment(num_ops=1, magnitude=0, magnitude_std=0)
    moved = [(mild(frames_TChw, generator(seed)).int() - frames_TChw.int()).abs().max() for seed in range(60)]
    assert sum(value <= 1 for value in moved) > 40  # at no strength only autocontrast and equalize do anything


@pytest.mark.parametrize("factor", [0, 0.4, 0.999, 1, 1.37, 2])
def test_brightness_and_contrast_are_pillows(factor):
    """A table of levels gives its pixels, to the bit."""
    tall = _to_tall(clip())
    assert _brightness(tall, factor).tobytes() == ImageEnhance.Brightness(tall).enhance(factor).tobytes()
    assert _contrast(tall, factor).tobytes() == ImageEnhance.Contrast(tall).enhance(factor).tobytes()


def test_color_jitter():
    frames_TChw = clip()
    for seed in range(5):
        grey_TChw = ColorJitter(0, 0, 1.0)(frames_TChw[:, :1].expand(-1, 3, -1, -1), generator(seed))
        assert (grey_TChw.amax(1) - grey_TChw.amin(1)).max() <= 1  # saturation leaves grey alone
        turned_TChw = ColorJitter(0, 0, 0, 0.5)(frames_TChw, generator(seed))
        assert (turned_TChw.amax(1).int() - frames_TChw.amax(1).int()).abs().max() <= 4  # the value of HSV stays
    bright = [ColorJitter(0.5, 0, 0)(frames_TChw, generator(seed)).float().mean() for seed in range(20)]
    assert max(bright) > frames_TChw.float().mean() * 1.1 and min(bright) < frames_TChw.float().mean() * 0.9
    assert torch.equal(ColorJitter(0, 0, 0)(frames_TChw, generator()), frames_TChw)


def test_each_colour_has_its_own_draw():
    """The factors are those of the first to the fourth number that the generator gives."""
    frames_TChw = clip(num_frames=1)
    drawn = (2 * torch.rand(4, dtype=torch.float64, generator=generator(5)) - 1).tolist()
    assert len({round(abs(value), 3) for value in drawn}) == 4
    (picture,) = (Image.fromarray(frame.numpy()) for frame in frames_TChw.permute(0, 2, 3, 1))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number, enhancer in enumerate(enhancers):
        widths = [0.0] * 3
        widths[number] = 0.4
        wanted = np.asarray(enhancer(picture).enhance(1 + 0.4 * drawn[number]))
        out_TChw = ColorJitter(*widths)(frames_TChw, generator(5))
        assert np.array_equal(out_TChw[0].permute(1, 2, 0).numpy(), wanted), number
    pure = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    hsv = picture.convert("HSV"), Image.fromarray(pure[0].permute(1, 2, 0).numpy()).convert("HSV")
    turned_TChw = ColorJitter(0, 0, 0, hue=0.5)(pure, generator(5))
    turned = Image.fromarray(turned_TChw[0].permute(1, 2, 0).contiguous().numpy()).convert("HSV")
    shift = (turned.getpixel((0, 0))[0] - hsv[1].getpixel((0, 0))[0]) % 256
    assert abs(shift - round(255 * 0.5 * drawn[3]) % 256) <= 1


def test_erased_boxes_are_as_often_wide_as_tall():
    """Ratios are drawn evenly on a logarithmic scale: r and 1/r are as likely."""
    frames_TChw = clip(num_frames=1, height=200, width=200)
    logs = []
    for seed in range(300):
        out_TChw = RandomErasing(p=1.0, scale=(0.05, 0.05))(frames_TChw, generator(seed))
        changed_hw = (out_TChw != frames_TChw).any(0).any(0)
        height, width = changed_hw.any(1).sum(), changed_hw.any(0).sum()
        logs.append(math.log(height / width))
    low, high = math.log(0.3), math.log(10 / 3)
    fractions = np.histogram(logs, bins=4, range=(low - 0.05, high + 0.05))[0] / 300
    assert abs(np.mean(logs)) < 0.15 and all(0.18 < fraction < 0.32 for fraction in fractions)


def test_short_side_jitter_reaches_both_ends(monkeypatch):
    sizes = set()
    resize = crops._resize
    monkeypatch.setattr(crops, "_resize", lambda frames, size, how: sizes.add(size) or resize(frames, size, how))
    for seed in range(60):
        ShortSideJitter(16, (20, 23))(clip(num_frames=1, height=24, width=48), generator(seed))
    assert sizes == {(20, 40), (21, 42), (22, 44), (23, 46)}


def test_random_erasing():
    frames_TChw = clip(height=50, width=50)
    shares = []
    for seed in range(100):
        out_TChw = RandomErasing(p=0.5)(frames_TChw, generator(seed))
        changed_hw = (out_TChw != frames_TChw).any(0).any(0)
        shares.append(float(changed_hw.float().mean()))
        rows, columns = changed_hw.any(1).nonzero(), changed_hw.any(0).nonzero()
        if len(rows):  # one box
            box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert changed_hw.sum() > 0.95 * box
    assert 0.35 < np.mean([share > 0 for share in shares]) < 0.65
    assert max(shares) < 0.36 and min(share for share in shares if share) > 0.01


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (16, 16)])
def test_three_crops(height, width, caplog):
    frames_TChw = clip(height=height, width=width)
    crops = ThreeCrops(16)(frames_TChw)
    assert crops.shape == (3, 3, 3, 16, 16)
    for crop_TChw, start in zip(crops, (0, (max(height, width) - 16) // 2, max(height, width) - 16), strict=True):
        rows, columns = (
            (slice(start, start + 16), slice(None)) if height > width else (slice(None), slice(start, start + 16))
        )
        assert torch.equal(crop_TChw, frames_TChw[..., rows, columns])
    assert ("its three crops are identical" in caplog.text) == (height == width)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandAugment(num_ops=0), r"num_ops \(0\)"),
        (lambda: RandAugment(magnitude=11), r"magnitude \(11\) must be in \[0, 10\]"),
        (lambda: ColorJitter(hue=0.6), r"hue \(0.6\) must be in \[0, 0.5\]"),
        (lambda: RandomErasing(p=2), r"erasing \(2\)"),
        (lambda: ShortSideJitter(224, (200, 300)), r"short_side \(\(200, 300\)\)"),
        (lambda: ThreeCrops(30)(clip()), r"24x32 .* smaller than the crops \(30\)"),
        (lambda: eval_transform(**LOOK, num_crops=2), r"num_crops \(2\) must be 1 or 3"),
        (lambda: Mix(3, mixup_alpha=-1), r"mixup_alpha \(-1\)"),
        (lambda: Mix(3, label_smoothing=1), r"label_smoothing \(1\)"),
        (lambda: Mix(2)(torch.zeros(1, 3, 4, 4), torch.tensor([2])), r"labels \(\[2\]\)"),
    ],
)
def test_bad_arguments_are_quoted(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)])
def test_mix(alphas):
    """What the labels say is what the pixels show: clips are constant, so pixel means give the shares."""
    labels_B = torch.tensor([0, 1, 2, 3])
    pixels = torch.eye(4).view(4, 1, 4, 1, 1).expand(4, 2, 4, 20, 20).contiguous()  # channel k is on in clip k
    shares = []
    for seed in range(30):
        mixed, labels_BK = Mix(4, *alphas)(pixels, labels_B, generator(seed))
        assert torch.allclose(mixed.mean((1, 3, 4)), labels_BK, atol=1e-5)
        assert torch.allclose(labels_BK.sum(1), torch.ones(4)) and torch.equal(mixed[:, 0], mixed[:, 1])
        shares.append(float(labels_BK[0, 0]))
    assert torch.equal(pixels.amax((1, 3, 4)), torch.eye(4))  # the input is left alone
    if alphas == (0.0, 0.0):
        assert set(shares) == {1.0}
    else:
        assert len(set(shares)) > 10 and 0.3 < np.mean(shares) < 0.7
    _, smooth_BK = Mix(4, 0, 0, label_smoothing=0.2)(pixels, labels_B)
    assert torch.allclose(smooth_BK[1], torch.tensor([0.05, 0.85, 0.05, 0.05]))


@pytest.fixture(scope="module")
def path(tmp_path_factory, write_video):
    return str(write_video(tmp_path_factory.mktemp("augment") / "v.mp4", num_frames=9, height=16, width=40))


def make_clips(path, names=("up", "down"), **arguments):
    rows = {"video": [{"path": path, "bytes": None}] * 8, "label": [i % len(names) for i in range(8)]}
    features = Features(video=Video(decode=False), label=ClassLabel(names=list(names)))
    defaults = {"num_frames": 2, "train": True, "transform": train_transform(**LOOK, flip=0.5, scale=(1, 1))}
    return VideoClips(Dataset.from_dict(rows, features=features), **defaults | arguments)


def test_flips_swap_labels(path):
    names = ("Pushing left", "Pushing right", "Stopping")
    clips = make_clips(path, names, flip_labels={"Pushing left": "Pushing right"})
    label = {0: set(), 1: set(), 2: set()}
    mirrored = make_clips(path, transform=train_transform(**LOOK, flip=1.0, scale=(1, 1)))
    straight = make_clips(path, transform=train_transform(**LOOK, flip=0.0, scale=(1, 1)))
    for epoch in range(6):
        for index in range(8):
            item = clips.clip(index, epoch=epoch)
            label[index % 3].add(item["labels"])
    assert label == {0: {0, 1}, 1: {0, 1}, 2: {2}}
    assert not torch.equal(mirrored[0]["pixel_values"], straight[0]["pixel_values"])


@pytest.mark.parametrize(
    "name", ["moves_left", "Turn Right", "swipeLeft", "leftwards", "turnleft", "Rightward", "lefthand", "clubRight"]
)
def test_no_flips_where_left_and_right_matter(path, name, caplog):
    clips = make_clips(path, ("up", name), transform=train_transform(**LOOK, flip=1.0, scale=(1, 1)))
    assert f"clips are not flipped: 1 classes speak of left or right ({name})" in caplog.text
    never = make_clips(path, transform=train_transform(**LOOK, flip=0, scale=(1, 1)))
    assert clips[0]["pixel_values"].shape == never[0]["pixel_values"].shape
    means = [
        make_clips(path, ("up", n), transform=train_transform(**LOOK, flip=1.0, scale=(1, 1)))
        for n in (name, "bright")
    ]
    unflipped, flipped = (clips[0]["pixel_values"] for clips in means)
    assert not torch.equal(unflipped, flipped)  # "bright" has no side


def test_words_that_hold_left_or_right_and_mean_neither(path, caplog):
    names = ("bright_light", "sit upright", "copyright", "Frighten", "playwright", "cleft", "OutrightWin", "righteous")
    flipped = train_transform(**LOOK, flip=1.0, scale=(1, 1))
    straight = make_clips(path, names, transform=train_transform(**LOOK, flip=0, scale=(1, 1)))
    assert torch.equal(
        make_clips(path, names, transform=flipped)[0]["pixel_values"], straight[0]["pixel_values"].flip(-1)
    )
    assert "not flipped" not in caplog.text


def test_a_callable_of_ones_own(path):
    """Labels cannot follow flips that nobody can see; transforms of ours in a row are sorted into their parts."""
    pairs = {"flip_labels": {"up": "down"}}
    with pytest.raises(ValueError, match=r"flip_labels \(\{'up': 'down'\}\) cannot follow the flips of <function"):
        make_clips(path, transform=lambda frames_TChw, generator: frames_TChw.flip(-1), **pairs)
    assert make_clips(path, transform=lambda frames_TChw, _: frames_TChw[..., :8])[0]["pixel_values"].shape[-1] == 8
    flip, normalize = RandomHorizontalFlip(1.0), Normalize((0.5,) * 3, (0.5,) * 3)
    row = Compose((RandomResizedCrop(16, scale=(1, 1)), flip, normalize))
    assert row == ClipTransform((RandomResizedCrop(16, scale=(1, 1)),), flip, normalize)
    for transform in (row, flip, ClipTransform(flip=flip)):
        item, straight = (make_clips(path, transform=transform, **more)[0] for more in (pairs, {}))
        assert (item["labels"], straight["labels"]) == (1, 0)
        assert torch.equal(item["pixel_values"], straight["pixel_values"])
    assert make_clips(path, ("go left", "up"), transform=flip).transform == ClipTransform()
    for wrong, message in (((flip, flip), "there are 2 flips"), ((normalize, flip, flip.draw), "must be the last")):
        with pytest.raises(ValueError, match=message):
            Compose(wrong)


def test_unusable_flip_labels(path):
    with pytest.raises(ValueError, match=r"flip_labels has \['across'\], which are not among the classes"):
        make_clips(path, flip_labels={"up": "across"})
    with pytest.raises(ValueError, match=r"flip_labels must say what \['go right'\] become"):
        make_clips(path, ("go left", "go right", "x"), flip_labels={"go left": "x"})


@pytest.mark.parametrize("frame_stride", [None, 1])
def test_views(path, frame_stride):
    clips = make_clips(
        path, train=False, num_clips=2, frame_stride=frame_stride, transform=eval_transform(**LOOK, num_crops=3)
    )
    views = clips[0]["pixel_values"]
    assert views.shape == (6, 2, 3, 16, 16)
    one = make_clips(path, train=False, num_frames=9, transform=eval_transform(**LOOK, num_crops=3))[0]["pixel_values"]
    indices = [[1, 5], [3, 7]] if frame_stride is None else [[0, 1], [7, 8]]
    for number, clip_indices in enumerate(indices):
        assert torch.equal(views[3 * number : 3 * number + 3], one[:, clip_indices])
    batch = next(iter(ClipLoader(clips, batch_size=2)))
    assert batch["pixel_values"].shape == (2, 6, 2, 3, 16, 16)
    missing = make_clips(  # the plan is known before a video is read
        "nowhere.mp4", train=False, num_clips=2, frame_stride=frame_stride, transform=clips.transform
    )
    assert missing.view_plan().endswith("× 2 clips × 3 crops = 6 forward passes per video")


def test_identical_clips_are_said(path, caplog):
    caplog.set_level(logging.WARNING)
    clips = make_clips(path, train=False, num_clips=4, num_frames=8, transform=eval_transform(**LOOK))
    for index in range(3):
        clips[index]
    assert caplog.text.count("too short for 4 different clips") == 1
    caplog.clear()
    assert make_clips(path, train=False, num_clips=3, transform=eval_transform(**LOOK))[0] and not caplog.text
    with pytest.raises(ValueError, match=r"num_clips \(2\) must be 1 for training"):
        make_clips(path, num_clips=2)


def test_mixing_in_the_loader_is_reproducible(path):
    def batches(num_workers=0):
        loader = ClipLoader(make_clips(path), batch_size=4, shuffle=True, mix=Mix(2), num_workers=num_workers)
        return list(loader)

    for here, there in zip(batches(), batches(2), strict=True):
        assert torch.equal(here["pixel_values"], there["pixel_values"])
        assert torch.equal(here["labels"], there["labels"]) and here["labels"].shape == (4, 2)


def test_streams_are_refused(path):
    stream = make_clips(path).dataset.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"load_videos\(streaming=True\)"):
        VideoClips(stream, num_frames=2, transform=eval_transform(**LOOK), train=False)
