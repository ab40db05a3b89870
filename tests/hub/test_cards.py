"""The cards in `model_cards/`: one for each recipe, valid as far as that can be checked without the Hub."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard, ModelInfo, parse_eval_result_entries
from huggingface_hub.utils import get_session
from peft import LoraConfig, get_peft_model
from tiny import randomize_adapter, tiny_image_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModel, Dinov2Config, Dinov2Model

from hf_i2v import (
    AutoPeftModelForVideoClassification,
    I2VConfig,
    I2VForVideoClassification,
    STAdapterConfig,
    ZeroI2VConfig,
)
from hf_i2v.cards import CardFacts, create_card, write_card
from hf_i2v.cost import cost, count_macs
from hf_i2v.data import Preprocessing
from hf_i2v.merging import merge_difference, merge_error

ROOT = Path(__file__).parent.parent.parent
COMPARED = ROOT / "benchmarks" / "compare" / "results"
A_LOCAL_PATH = re.compile(r"(/home|/tmp|/root|/Users|file://)")
CARDS = sorted(path for path in (ROOT / "model_cards").glob("*.md") if path.stem != "README")


def test_every_recipe_has_a_card():
    recipes = [path.stem for path in sorted((ROOT / "examples" / "recipes").glob("*.yaml")) if path.stem != "small"]
    if not recipes:
        pytest.skip("no recipes in this checkout")
    assert [path.stem for path in CARDS] == recipes


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card(path):
    card = ModelCard.load(path, ignore_metadata_errors=False)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("peft", "video-classification")
    assert data.license and data.base_model.startswith("openai/clip-vit") and data.base_model_relation == "adapter"
    assert data.eval_results is None and data.metrics == ["accuracy"]  # nothing was measured
    assert data.datasets == (["HuggingFaceM4/something_something_v2"] if "ssv2" in path.stem else None)
    assert "no weights are published" in card.text and "import hf_i2v" in card.text
    assert re.search(r"\| MACs per clip \| [\d.]+ G \| [\d.]+ G \|", card.text)
    assert not A_LOCAL_PATH.search(card.content)
    (expected,) = re.findall(r"\| expected top-1 \| (.*?) \| (.*?) \|", card.text)
    assert "%" not in expected[0] or expected[1] != "none"  # a figure has a source


def test_the_trained_example(tmp_path):
    folder = ROOT / "model_cards" / "stand_up"
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=70, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    model = AutoPeftModelForVideoClassification.from_pretrained(folder, base_model_name_or_path=tmp_path)
    assert model.config.causal and model.config.id2label == {0: "lie_down", 1: "stand_up"}
    adapted = model.merge_and_unload().eval()
    clip = torch.randn(1, 4, 3, 70, 70)
    assert not torch.equal(adapted(clip).logits, adapted(clip.flip(1)).logits)
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    cell = json.loads((COMPARED / "getup" / "stdha_lora_causal-0.json").read_text())
    assert card.data.eval_results[0].metric_value == cell["accuracy"]["as_it_is"]
    for form, told in (
        ("reversed", r"played backwards it is right for ([\d.]+) %"),
        ("shuffled", r"ones for ([\d.]+) %"),
    ):
        assert float(re.search(told, card.text.replace("\n", " "))[1]) == pytest.approx(
            100 * cell["accuracy"][form], abs=0.05
        )
    assert not A_LOCAL_PATH.search(card.content)


def test_cards_of_other_tuners_and_of_bare_models(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2).with_stdha()
    card = create_card(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), repo_id="user/lora")
    assert {"stdha", "lora"} <= set(card.data.tags)
    assert 'hf_i2v.AutoPeftModelForVideoClassification.from_pretrained("user/lora")' in card.text
    adapter = get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4))
    assert "AutoModel.from_pretrained(" in create_card(adapter).text
    card = create_card(adapter.merge_and_unload(), repo_id="user/features")
    assert card.data.pipeline_tag == "feature-extraction" and "pooler_output" in card.text
    assert "features made from an image model with ZeroI2V" in card.text
    assert "It describes" in card.text and "It names" not in card.text and "video classifier" not in card.text
    full = create_card(I2VForVideoClassification.from_pretrained(finished(tmp_path)), CardFacts(method="full"))
    assert "Video model" in full.text and "image model, for clips" in full.text and "CVIU" not in full.text


def finished(tmp_path):
    """The folder of a model that was merged."""
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2)
    get_peft_model(model, ZeroI2VConfig()).merge_and_unload().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def test_the_hub_would_take_the_cards(hub, tmp_path, monkeypatch):
    post = get_session().post  # huggingface_hub 1 asks huggingface.co, whatever its ENDPOINT is

    def post_to_hub(url, **options):
        return post(url.replace("https://huggingface.co", hub.url), **options)

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: SimpleNamespace(post=post_to_hub))
    model = I2VForVideoClassification.from_pretrained(finished(tmp_path))
    facts = CardFacts(metrics={"accuracy": 0.5}, dataset="a: b # c", dataset_id="user/videos", license="apache-2.0")
    for card in (*map(ModelCard.load, CARDS), create_card(model, facts, "user/name"), create_card(model)):
        card.validate()
    card.data.datasets = ["/home/alice/videos"]
    with pytest.raises(ValueError, match=r"not valid.*datasets"):
        card.validate()


def test_what_a_model_tells_without_facts(tmp_path):
    model = I2VForVideoClassification.from_pretrained(finished(tmp_path))
    assert model.config.methods == ["zeroi2v"]
    text = create_card(model).text
    assert "with ZeroI2V" in text and re.search(
        r"\| latency per clip \| .* ms \(CPU, 1 threads, float32\) \| .* ms \|", text
    )
    assert "latency" not in create_card(model, CardFacts(measure_latency=False)).text
    adapted = get_peft_model(model, STAdapterConfig(adapter_width=8))
    assert adapted.base_model.bake().config.methods == ["zeroi2v", "st_adapter"]


def test_features_keep_the_pixels_of_their_image_model(tmp_path):
    """A bare vision model, merged: its preprocessing and its base come along."""
    pixels = Preprocessing(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    tiny_image_model("clip").save_pretrained(tmp_path)
    pixels.image_processor().save_pretrained(tmp_path)
    model = get_peft_model(AutoModel.from_pretrained(tmp_path), ZeroI2VConfig(num_frames=4)).merge_and_unload()
    assert Preprocessing(**model.config.preprocessing) == pixels
    assert model.config.base_model is None and str(tmp_path) not in str(model.config)  # a place, not a name
    in_code = get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4)).merge_and_unload()
    assert in_code.config.preprocessing is None


def test_merge_difference_leaves_the_adapter_on(tmp_path, clip_pixels):
    tiny_image_model("clip").save_pretrained(tmp_path)
    for config in (ZeroI2VConfig(), STAdapterConfig(adapter_width=8)):
        model = I2VForVideoClassification.from_image_model(tmp_path, num_frames=4, num_labels=2)
        model = randomize_adapter(get_peft_model(model, config)).eval()
        before = model(clip_pixels).logits
        difference = merge_difference(model, clip_pixels)
        assert torch.equal(model(clip_pixels).logits, before)
        assert difference == (merge_error(model, clip_pixels)[1] if isinstance(config, ZeroI2VConfig) else None)


def test_a_sharded_model(tmp_path):
    config = I2VConfig(image_config=tiny_image_model("clip").config, num_frames=4, num_labels=2)
    model = get_peft_model(I2VForVideoClassification(config), ZeroI2VConfig())
    facts = CardFacts(cost=cost(model, (1, 4, 3, 16, 16)), measure_latency=False)
    whole = create_card(model, facts).text
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"sharded.*CardFacts\(cost="):
            create_card(model)
        facts.measure_latency = True  # which needs all processes, and is left out
        assert create_card(model, facts).text == whole
    finally:
        torch.distributed.destroy_process_group()


def test_a_card_of_a_model_that_works_on_smaller_pictures(tmp_path):
    """Its figures are for the preprocessing's size, and its title has the base's name."""
    folder = tmp_path / "tiny-dinov2"
    tiny_image_model("dinov2", image_size=40).save_pretrained(folder)
    Preprocessing(24, (0.5,) * 3, (0.5,) * 3, "bicubic").image_processor().save_pretrained(folder)
    model = I2VForVideoClassification.from_image_model(folder, num_frames=4, num_labels=2)
    facts = CardFacts(measure_latency=False)
    bare = get_peft_model(AutoModel.from_pretrained(folder), STAdapterConfig(num_frames=4, adapter_width=8))
    for adapted in (get_peft_model(model, STAdapterConfig(adapter_width=8)), bare):
        card = create_card(adapted, facts)
        assert card.text.startswith("\n# ST-Adapter on tiny-dinov2\n") and str(tmp_path) not in card.content
        plain_macs = count_macs(AutoModel.from_pretrained(folder), (4, 3, 24, 24))
        macs = cost(adapted, (1, 4, 3, 24, 24)).macs
        assert f"| MACs per clip | {macs / 1e9:.4g} G | {plain_macs / 1e9:.4g} G |" in card.text
    adapted = get_peft_model(I2VForVideoClassification.from_image_model(folder, num_frames=4), ZeroI2VConfig())
    assert create_card(adapted.merge_and_unload(), facts).text.startswith("\n# ZeroI2V on dinov2\n")


@pytest.mark.parametrize(("num_labels", "shown"), [(9, False), (10, True)])
def test_results(tmp_path, num_labels, shown):
    config = I2VConfig(image_config=tiny_image_model("clip").config, num_frames=4, num_labels=num_labels)
    metrics = {"accuracy": 0.91666, "top5_accuracy": 0.99}
    facts = CardFacts(
        metrics=metrics, dataset_id="user/videos", view_protocol="1x1 views", license="mit", measure_latency=False
    )
    write_card(I2VForVideoClassification(config), tmp_path, facts, "me/model")
    card = ModelCard.load(tmp_path / "README.md")
    assert ("top5_accuracy" in card.text) == shown and "| accuracy | 91.67 % |" in card.text
    assert [r.metric_type for r in card.data.eval_results] == ["accuracy", "top5_accuracy"][: 1 + shown]
    (file,) = (tmp_path / ".eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert file.name == "videos.yaml" and (entry.dataset_id, entry.task_id) == ("user/videos", "default")
    assert entry.value == 0.9167 and entry.notes == "1x1 views" and entry.source_url.endswith("/me/model")
    (tmp_path / "local").mkdir()
    facts.dataset_id = None
    write_card(I2VForVideoClassification(config), tmp_path / "local", facts)
    assert not (tmp_path / "local" / ".eval_results").exists()  # a folder of videos has no leaderboard


def test_the_licence_of_the_base_is_asked_for(monkeypatch, caplog):
    config = I2VConfig(image_config=tiny_image_model("clip").config, num_frames=4, base_model="user/base")
    model, facts = I2VForVideoClassification(config), CardFacts(measure_latency=False)
    tags = {"user/base": ["license:mit", "vision"]}
    monkeypatch.setattr(HfApi, "model_info", lambda self, name, timeout: ModelInfo(id=name, tags=tags.get(name, [])))
    assert create_card(model, facts, "me/model").data.license == "mit"
    assert create_card(model, facts).data.license == "other"  # a card for no repository asks nobody
    facts.license = "apache-2.0"
    assert create_card(model, facts, "me/model").data.license == "apache-2.0"
    tags.clear()
    facts.license = None
    with caplog.at_level("WARNING"):
        logging.getLogger("hf_i2v").addHandler(caplog.handler)
        assert create_card(model, facts, "me/model").data.license == "other"
    assert "The licence of user/base is not known" in caplog.text and "license=" in caplog.text
