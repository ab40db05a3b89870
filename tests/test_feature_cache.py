"""Training an M-adapter from cached frozen features: the same losses, and no stale cache."""

import pytest
import torch
from peft import get_peft_model
from tiny import tiny_image_model
from torch.utils.data import DataLoader, Dataset

from hf_i2v import I2VForVideoClassification, MAdapterConfig, ZeroI2VConfig
from hf_i2v.feature_cache import FeatureCache, StaleCacheError, collate_features


class Clips(Dataset):
    def __init__(self, name: str = "a"):
        self.name = name

    def __len__(self):
        return 6

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator), "labels": index % 3}

    def fingerprint(self):
        return self.name


@pytest.fixture
def make_model(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")

    def make(**config):
        torch.manual_seed(0)
        base = I2VForVideoClassification.from_image_model(
            tmp_path / "image", num_frames=4, num_labels=3, classifier_dropout=0
        )
        return get_peft_model(base, MAdapterConfig(**config)).train()

    return make


def losses(model, loader):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(3):
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return found


def test_losses_are_identical_with_and_without_the_cache(make_model, tmp_path):
    model = make_model()
    cache = FeatureCache.build(tmp_path / "cache", model, Clips(), batch_size=2)
    assert model.training
    expected = losses(make_model(), DataLoader(Clips(), batch_size=2))
    assert losses(make_model(), DataLoader(cache, batch_size=2, collate_fn=collate_features)) == expected
    reopened = FeatureCache(tmp_path / "cache", make_model(), Clips())
    assert losses(make_model(), DataLoader(reopened, batch_size=2, collate_fn=collate_features)) == expected


def test_a_stale_cache_is_refused(make_model, tmp_path):
    model = make_model()
    FeatureCache.build(tmp_path / "cache", model, Clips())
    with pytest.raises(StaleCacheError, match="other clips or preprocessing"):
        FeatureCache(tmp_path / "cache", model, Clips("b"))
    with pytest.raises(StaleCacheError, match="other levels"):
        FeatureCache(tmp_path / "cache", make_model(token_pooling=1), Clips())
    with pytest.raises(FileExistsError, match="not empty"):
        FeatureCache.build(tmp_path / "cache", model, Clips())
    with torch.no_grad():
        model.base_model.model.i2v.image_model.encoder.layers[1].mlp.fc1.bias[0] += 1e-3
    with pytest.raises(StaleCacheError, match="other model weights"):
        FeatureCache(tmp_path / "cache", model, Clips())
    (tmp_path / "cache" / "index.json").unlink()  # as when it was broken off
    with pytest.raises(StaleCacheError, match="no finished cache"):
        FeatureCache(tmp_path / "cache", model, Clips())


def test_a_cache_of_other_offsets_or_pooling_is_stale(make_model, tmp_path):
    FeatureCache.build(tmp_path / "cache", make_model(), Clips())
    shifted = get_peft_model(make_model().unload().with_stdha(), MAdapterConfig())
    pooled = make_model(pooling="before_norm")
    for model in (shifted, pooled):
        with pytest.raises(StaleCacheError, match="other model weights"):
            FeatureCache(tmp_path / "cache", model, Clips())


def test_only_a_side_branch_can_be_cached_and_fed(make_model, tmp_path):
    base = make_model().unload()
    model = get_peft_model(base, ZeroI2VConfig())
    with pytest.raises(ValueError, match="no active M-adapter"):
        FeatureCache.build(tmp_path / "cache", model, Clips())
    features = make_model().base_model.model.i2v.image_model.frozen_features(Clips()[0]["pixel_values"][None])
    with pytest.raises(ValueError, match="no active adapter has a side branch"):
        model(frozen_features=features)


def test_clips_without_a_fingerprint_are_refused(make_model, tmp_path):
    with pytest.raises(TypeError, match=r"no fingerprint\(\)"):
        FeatureCache.build(tmp_path / "cache", make_model(), [Clips()[0]])
