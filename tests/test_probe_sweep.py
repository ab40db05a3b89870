"""Many heads in one pass: each trains as it would alone, and the best on the held-out part goes into the model."""

import csv
import weakref
from dataclasses import dataclass

import datasets
import pytest
import torch
from peft import get_peft_model
from tiny import tiny_image_model
from torch.utils.data import Dataset

from hf_i2v import AttentiveProbeConfig, I2VForVideoClassification, MAdapterConfig, STAdapterConfig, STEPConfig
from hf_i2v.data.media import ReadLimits
from hf_i2v.feature_cache import FeatureCache
from hf_i2v.probe_sweep import Head, Setting, StackedHeads, probe_sweep, split, sweep_settings, write_table

VIDEOS = datasets.Dataset.from_dict(
    {"video": [{"path": f"{i}.mp4", "bytes": None} for i in range(12)], "label": [i % 2 for i in range(12)]}
)


class Clips(Dataset):
    """Two classes that differ in brightness."""

    train, seed, limits = False, 0, ReadLimits()
    dataset = VIDEOS

    def __len__(self):
        return 12

    def __getitem__(self, index):
        noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": 0.3 * noise + 2 * (index % 2), "labels": index % 2}

    def fingerprint(self):
        return "clips"


@dataclass(eq=False)
class Kept:
    """A tensor that autograd keeps."""

    tensor: torch.Tensor


@pytest.fixture
def make_model(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")

    def make(config=None):
        torch.manual_seed(0)
        base = I2VForVideoClassification.from_image_model(
            tmp_path / "image", num_frames=4, num_labels=2, classifier_dropout=0
        )
        base.i2v.requires_grad_(False)
        return base if config is None else get_peft_model(base, config)

    return make


@pytest.mark.parametrize(
    "config", [None, STEPConfig, MAdapterConfig, lambda: AttentiveProbeConfig(num_blocks=1)],
    ids=["linear_probe", "step", "m_adapter", "attentive_probe"],
)  # fmt: skip
def test_each_head_trains_as_it_would_alone(config, make_model, tmp_path):
    model = make_model(config and config())
    features = model.get_base_model() if config else model
    pixels = torch.stack([Clips()[index]["pixel_values"] for index in range(4)])
    batch = {
        "frozen_features": features.i2v.image_model.frozen_features(pixels),
        "labels": torch.tensor([0, 1, 0, 1]),
        "is_padding": torch.tensor([False, False, False, True]),
    }
    heads = [Setting(1e-2, 0.1), Setting(1e-3, 0.5)]
    stacked = StackedHeads(Head.of(model), heads).train()
    for scale in (1.0, 0.5, 0.1):
        stacked.backward(batch)
        stacked.step(scale)
    for number, setting in enumerate(heads):
        alone = make_model(config and config()).train()
        trained = [p for p in alone.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": setting.weight_decay}]
        groups += [{"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=setting.learning_rate)
        for scale in (1.0, 0.5, 0.1):
            for group in optimizer.param_groups:
                group["lr"] = scale * setting.learning_rate
            logits = alone(frozen_features=batch["frozen_features"]).logits
            loss_B = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
            (loss_B * ~batch["is_padding"]).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        stacked.put_into_the_model(number)
        expected = alone.eval()(frozen_features=batch["frozen_features"]).logits
        ours = model.eval()(frozen_features=batch["frozen_features"]).logits
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_memory_is_that_of_one_head(make_model):
    model = make_model(STEPConfig())
    features = model.get_base_model().i2v.image_model.frozen_features(Clips()[0]["pixel_values"][None])
    batch = {"frozen_features": features, "labels": torch.tensor([0]), "is_padding": torch.tensor([False])}
    most = {}
    for count in (1, 5):
        alive, sizes = weakref.WeakSet(), []

        def keep(tensor, alive=alive, sizes=sizes):
            alive.add(kept := Kept(tensor))
            sizes.append(len(alive))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            StackedHeads(Head.of(model), [Setting(1e-3, 0.1)] * count).backward(batch)
        most[count] = max(sizes)
    assert most[1] == most[5] > 5


def test_the_best_head_is_chosen_on_clips_that_were_held_out(make_model, tmp_path):
    model = make_model()
    cache = FeatureCache.build(tmp_path / "cache", model, Clips())
    heads = [Setting(1e-7, 0.0), Setting(3e-2, 0.01), Setting(1e-6, 0.0)]
    options = {"num_epochs": 10, "batch_size": 4, "held_out": 0.3, "show": False}
    results = probe_sweep(model, cache, heads, **options)
    assert [result.best for result in results] == [False, True, False]
    assert results[1].held_out_accuracy == 1 and results[1].training_loss < results[0].training_loss
    training, choosing = split(cache.labels(), 0.3, seed=0)
    assert len(choosing) == 4 and sorted(training + choosing) == list(range(12))
    pixels = torch.stack([Clips()[index]["pixel_values"] for index in choosing])
    loss = model.eval()(pixels, labels=torch.tensor([index % 2 for index in choosing])).loss
    assert loss.item() == pytest.approx(results[1].held_out_loss, rel=1e-4)
    write_table(tmp_path / "sweep.csv", results)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").open()))
    assert [row["best"] for row in rows] == ["False", "True", "False"] and rows[1]["learning_rate"] == "0.03"
    assert probe_sweep(make_model(), cache, heads, **options) == results  # the seed decides all


def test_what_cannot_be_swept_is_refused(make_model, tmp_path):
    with pytest.raises(ValueError, match="trains probes only"):
        Head.of(make_model(STAdapterConfig(adapter_width=8)))
    with pytest.raises(ValueError, match="has no classifier"):
        Head.of(get_peft_model(tiny_image_model("clip"), STEPConfig(num_frames=4)))
    with pytest.raises(ValueError, match=r"held_out \(1.0\)"):
        split([0, 0], 1.0, seed=0)
    with pytest.raises(ValueError, match="Class 1 has a single clip"):
        split([0, 0, 1], 0.5, seed=0)
    with pytest.raises(ValueError, match="no heads"):
        probe_sweep(make_model(), None, [])


def test_the_twenty_heads_of_vjepa2():
    heads = sweep_settings()
    assert len(heads) == len(set(heads)) == 20 and heads[0] == Setting(5e-3, 0.01)
    assert sweep_settings("1e-3,0.1x0") == [Setting(1e-3, 0), Setting(0.1, 0)]
    for text, message in (("1e-3", "must be RATE"), ("1x2x3", "must be RATE"), ("0x0.1", "rates must be > 0")):
        with pytest.raises(ValueError, match=message):
            sweep_settings(text)
