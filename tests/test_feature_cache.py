"""Training from a cache of what the frozen part makes: the same losses, and no stale, damaged or oversized cache."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_image_model
from torch.utils.data import DataLoader, Dataset

from hf_i2v import (
    AttentiveProbeConfig,
    Frame2FreqConfig,
    I2VForVideoClassification,
    InTIConfig,
    MAdapterConfig,
    STAdapterConfig,
    STDHAConfig,
    STEPConfig,
    ZeroI2VConfig,
)
from hf_i2v.caching import layout
from hf_i2v.data import ClipLoader
from hf_i2v.data.media import ReadLimits, VideoDecodeError
from hf_i2v.data.transforms import ClipTransform
from hf_i2v.feature_cache import CacheLimitError, FeatureCache, StaleCacheError, collate_features

LAST = {"layers_to_transform": [1, 2]}
TRAINED = {  # what is trained, and what is kept
    "m_adapter": (MAdapterConfig, "levels"),
    "attentive_probe": (lambda: AttentiveProbeConfig(num_blocks=1), "levels"),
    "step": (STEPConfig, "levels"),
    "linear_probe": (None, "feature"),
    "stdha": (STDHAConfig, "feature"),  # has no parameters, so the vision model is frozen
    "st_adapter": (lambda: STAdapterConfig(adapter_width=8, **LAST), "block 1"),
    "frame2freq": (lambda: Frame2FreqConfig(adapter_width=8, **LAST), "block 1"),
    "inti": (lambda: InTIConfig(insert_before=[2]), "block 2"),
    "lora": (lambda: LoraConfig(target_modules=r".*layers\.2.*q_proj"), "block 2"),
}


VIDEOS = datasets.Dataset.from_dict(
    {"video": [{"path": f"{i}.mp4", "bytes": None} for i in range(6)], "label": [i % 3 for i in range(6)]}
)


class Clips(Dataset):
    """Six fixed clips."""

    def __init__(self, name: str = "a"):
        self.name_of_all = name
        self.read = []

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.read.append(index)
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator), "labels": index % 3}

    def fingerprint(self):
        return self.name_of_all


class TrainingClips(Clips):
    """Six videos, with another clip in each epoch, as `VideoClips`; one of them cannot be read."""

    train, seed, limits, transform, bad = True, 0, ReadLimits(), ClipTransform(), 4
    dataset = VIDEOS

    def clip(self, index, *, epoch, normalize=True):
        if index == self.bad:
            raise VideoDecodeError(f"video {index} is broken")
        generator = torch.Generator().manual_seed(100 * epoch + index)
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator), "labels": index % 3}

    def fingerprint(self, *, of_epochs):
        return f"random {of_epochs}"

    def name(self, index):
        return f"video {index}"


@pytest.fixture
def make_model(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")

    def make(config=MAdapterConfig, backbone="image"):
        torch.manual_seed(0)
        base = I2VForVideoClassification.from_image_model(
            tmp_path / backbone, num_frames=4, num_labels=3, classifier_dropout=0
        )
        if config is None:
            base.i2v.requires_grad_(False)
            return base.train()
        return get_peft_model(base, config()).train()

    return make


def losses(model, loader):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(2):
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return found


def from_cache(cache) -> DataLoader:
    return DataLoader(cache, batch_size=2, collate_fn=collate_features)


@pytest.mark.parametrize("trained", TRAINED)
def test_losses_are_identical_with_and_without_the_cache(trained, make_model, tmp_path):
    config, kept = TRAINED[trained]
    model = make_model(config)
    cache = FeatureCache.build(tmp_path / "cache", model, Clips(), batch_size=2)
    assert model.training and kept in (tmp_path / "cache" / "cache.json").read_text()
    expected = losses(make_model(config), DataLoader(Clips(), batch_size=2))
    assert losses(model, from_cache(cache)) == expected
    reopened = FeatureCache(tmp_path / "cache", model, Clips())  # what is trained does not make it stale
    assert losses(make_model(config), from_cache(reopened)) == expected
    compact = FeatureCache.build(tmp_path / "half", make_model(config), Clips(), dtype="float16")
    assert compact.layout.total_bytes == cache.layout.total_bytes / 2
    assert losses(make_model(config), from_cache(compact)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("backbone", ["vit", "siglip", "dinov2", "dinov3"])
def test_it_goes_on_at_a_block_of_any_backbone(backbone, make_model, tmp_path):
    fixed = {"pos_embed_rescale": None} if backbone == "dinov3" else {}  # else its positions are random in training
    tiny_image_model(backbone, **fixed).save_pretrained(tmp_path / backbone)
    config = TRAINED["st_adapter"][0]
    cache = FeatureCache.build(tmp_path / "cache", make_model(config, backbone), Clips(), batch_size=2)
    expected = losses(make_model(config, backbone), DataLoader(Clips(), batch_size=2))
    assert losses(make_model(config, backbone), from_cache(cache)) == pytest.approx(expected, rel=1e-5)


def test_a_stale_cache_is_refused(make_model, tmp_path, monkeypatch):
    model = make_model()
    FeatureCache.build(tmp_path / "cache", model, Clips())
    with pytest.raises(StaleCacheError, match="other clips or preprocessing"):
        FeatureCache(tmp_path / "cache", model, Clips("b"))
    with pytest.raises(StaleCacheError, match="other levels"):
        FeatureCache(tmp_path / "cache", make_model(lambda: MAdapterConfig(token_pooling=1)), Clips())
    with pytest.raises(StaleCacheError, match="has dtype float32, not bfloat16"):
        FeatureCache.build(tmp_path / "cache", model, Clips(), dtype="bfloat16")
    with monkeypatch.context() as patched, pytest.raises(StaleCacheError, match="other version of hf_i2v"):
        patched.setattr("hf_i2v.caching.part.__version__", "9")
        FeatureCache(tmp_path / "cache", model, Clips())
    with torch.no_grad():
        model.base_model.model.i2v.image_model.encoder.layers[1].mlp.fc1.bias[0] += 1e-3
    for use in (FeatureCache, FeatureCache.build):
        with pytest.raises(StaleCacheError, match="other model weights"):
            use(tmp_path / "cache", model, Clips())
    with pytest.raises(FileExistsError, match="holds no cache"):
        FeatureCache.build(tmp_path / "image", model, Clips())


def test_a_damaged_cache_is_refused_and_mended(make_model, tmp_path):
    model = make_model(None)
    cache = FeatureCache.build(tmp_path / "cache", model, Clips(), batch_size=2)
    expected = [cache[index]["frozen_features"].feature.clone() for index in range(6)]
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    whole = file.read_bytes()
    for broken in (whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:], whole[: len(whole) // 2]):
        file.write_bytes(broken)
        cache = FeatureCache(tmp_path / "cache", model, Clips())
        with pytest.raises(StaleCacheError, match=rf"{file.name} is damaged"):
            list(map(cache.__getitem__, range(6)))
    file.unlink()
    with pytest.raises(StaleCacheError, match="no finished cache: 1 files are missing"):
        FeatureCache(tmp_path / "cache", model, Clips())
    cache = FeatureCache.build(tmp_path / "cache", model, Clips(), batch_size=2)
    assert all(torch.equal(cache[index]["frozen_features"].feature, expected[index]) for index in range(6))
    (tmp_path / "cache" / "cache.json").write_text("{")
    with pytest.raises(StaleCacheError, match=r"cache.json is damaged"):
        FeatureCache.build(tmp_path / "cache", model, Clips())
    with pytest.raises(StaleCacheError, match="no finished cache"):
        FeatureCache(tmp_path / "nothing", model, Clips())


def test_a_build_goes_on_where_it_stopped_and_is_shared(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_i2v.caching.build.FILE_BYTES", 1)  # one batch a file
    expected = FeatureCache.build(tmp_path / "alone", make_model(), Clips(), batch_size=2)
    barrier, clips = threading.Barrier(2, timeout=60), [Clips(), Clips()]

    def slow_to_look(folder, expected):
        found = layout.read_index(folder, expected)
        if threading.current_thread().name.endswith("_1"):
            time.sleep(0.2)  # the other has gone on: what it writes must not surprise this one
        return found

    def build(rank):
        shared = {"rank": rank, "world_size": 2, "wait": barrier.wait}
        return FeatureCache.build(tmp_path / "shared", make_model(), clips[rank], batch_size=2, **shared)

    monkeypatch.setattr("hf_i2v.caching.build.read_index", slow_to_look)
    with ThreadPoolExecutor(2) as pool:
        caches = list(pool.map(build, range(2)))
    assert [sorted(set(each.read[1:])) for each in clips] == [[0, 1, 4, 5], [2, 3]]  # the first shows the shapes
    for cache in caches:
        for index in range(6):
            mine, theirs = (each[index]["frozen_features"].levels for each in (cache, expected))
            assert torch.equal(mine, theirs)
    (tmp_path / "shared" / "view0-000001.safetensors").unlink()
    (tmp_path / "shared" / ".view0-000001.safetensors.part").write_bytes(b"broken off")
    clips = Clips()
    FeatureCache.build(tmp_path / "shared", make_model(), clips, batch_size=2)
    assert clips.read == [2, 3]
    assert len(list((tmp_path / "shared").iterdir())) == 4


def test_the_disk_is_asked_first(make_model, tmp_path, capsys, monkeypatch):
    need = 4 * (1 * 4 * 2 * 32 + 32)  # levels (1, T, P, D) and feature (D,), float32; 2×2 patches are averaged
    with pytest.raises(CacheLimitError, match=r"6 clips x 1 views .* more than the limit of 1e-06 GB"):
        FeatureCache.build(tmp_path / "cache", make_model(), Clips(), limit_bytes=1000)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(CacheLimitError, match="only 1e-07 GB are free"):
        FeatureCache.build(tmp_path / "cache", make_model(), Clips())
    monkeypatch.undo()
    cache = FeatureCache.build(tmp_path / "cache", make_model(), Clips(), limit_bytes=6 * need)
    assert cache.layout.total_bytes == 6 * need
    assert f"{6 * need / 1e9:.3g} GB of disk" in capsys.readouterr().out


def test_views_are_drawn_per_epoch(make_model, tmp_path):
    clips, model = TrainingClips(), make_model(None)
    cache = FeatureCache.build(tmp_path / "cache", model, clips, views=3)
    frozen = model.i2v.image_model
    for index in (0, 1, 5):
        views = [frozen.frozen_features(clips.clip(index, epoch=v)["pixel_values"][None]).feature[0] for v in range(3)]
        seen = [cache.clip(index, epoch=epoch)["frozen_features"].feature for epoch in range(3)]
        order = [next(v for v in range(3) if torch.allclose(views[v], one, atol=1e-6)) for one in seen]
        assert sorted(order) == [0, 1, 2]
    with pytest.raises(VideoDecodeError, match="video 4 is broken"):
        cache.clip(4, epoch=0)
    for kwargs, message in (({"views": 0}, "views"), ({"dtype": "int8"}, "dtype"), ({"batch_size": 0}, "batch_size")):
        with pytest.raises(ValueError, match=message):
            FeatureCache.build(tmp_path / "other", model, clips, **kwargs)
    with pytest.raises(ValueError, match=r"views \(2\) must be 1"):
        FeatureCache.build(tmp_path / "other", model, Clips(), views=2)


@pytest.mark.parametrize("num_workers", [1, 0])
def test_it_takes_the_place_of_clips_in_a_loader(num_workers, make_model, tmp_path):
    clips, model = TrainingClips(), make_model()
    clips.bad = bad = None if num_workers else 4
    cache = FeatureCache.build(tmp_path / "cache", model, clips, views=2)
    loaders = [
        ClipLoader(each, batch_size=2, shuffle=True, num_workers=num_workers, max_bad_fraction=1, device="cpu")
        for each in (clips, cache)
    ]
    for with_pixels, with_features in zip(*loaders, strict=True):
        for name in ("labels", "ids", "is_padding"):
            assert torch.equal(with_pixels[name], with_features[name])
        logits = model(frozen_features=with_features["frozen_features"]).logits
        assert logits.shape == (2, 3) and bad not in with_features["ids"].tolist()
    expected = [["video 4 is broken"]] * 2 if bad else [[], []]
    assert [[failure["reason"] for failure in loader.failures] for loader in loaders] == expected


def test_a_cache_of_other_offsets_or_pooling_is_stale(make_model, tmp_path):
    FeatureCache.build(tmp_path / "cache", make_model(), Clips())
    shifted = get_peft_model(make_model().unload().with_stdha(), MAdapterConfig())
    pooled = make_model(lambda: MAdapterConfig(pooling="before_norm"))
    for model in (shifted, pooled):
        with pytest.raises(StaleCacheError, match="other model weights"):
            FeatureCache(tmp_path / "cache", model, Clips())


def test_only_what_is_frozen_can_be_cached_and_fed(make_model, tmp_path):
    model = make_model(ZeroI2VConfig)
    with pytest.raises(ValueError, match=r"embeddings.temporal.* is trained and acts before the blocks"):
        FeatureCache.build(tmp_path / "cache", model, Clips())
    with pytest.raises(ValueError, match="is trained and acts before the blocks"):
        FeatureCache.build(tmp_path / "cache", make_model(None).requires_grad_(True), Clips())
    branch = make_model()
    features = branch.base_model.model.i2v.image_model.frozen_features(Clips()[0]["pixel_values"][None])
    with pytest.raises(ValueError, match="no active adapter has a side branch"):
        model(frozen_features=features)
    with pytest.raises(ValueError, match="these frozen_features have none"):
        branch(frozen_features=features._replace(levels=None))
    entering = model.base_model.model.i2v.image_model.frozen_features(Clips()[0]["pixel_values"][None], first_block=1)
    with pytest.raises(ValueError, match="there is no side branch"):
        branch(frozen_features=entering)


def test_what_does_not_fit_half_precision_is_an_error(make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.base_model.model.i2v.image_model.encoder.layers[2].mlp.fc2.bias += 1e6
    with pytest.raises(ValueError, match=r"not finite in float16\. Use dtype bfloat16"):
        FeatureCache.build(tmp_path / "cache", model, Clips(), dtype="float16")


def test_clips_without_a_fingerprint_are_refused(make_model, tmp_path):
    with pytest.raises(TypeError, match=r"no fingerprint\(\)"):
        FeatureCache.build(tmp_path / "cache", make_model(), [Clips()[0]])


def test_the_index_is_plain(make_model, tmp_path):
    FeatureCache.build(tmp_path / "cache", make_model(), Clips())
    index = json.loads((tmp_path / "cache" / layout.INDEX).read_text())
    assert index["layout"]["shapes"] == {"levels": [1, 4, 2, 32], "feature": [32]}
