"""The cards in `model_cards/`: one for each recipe, valid as far as that can be checked without the Hub."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tiny import tiny_image_model

from hf_i2v import I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.cards import create_card

ROOT = Path(__file__).parent.parent.parent
CARDS = sorted(path for path in (ROOT / "model_cards").glob("*.md") if path.stem != "README")


def test_every_recipe_has_a_card():
    recipes = [path.stem for path in sorted((ROOT / "examples" / "recipes").glob("*.yaml"))]
    if not recipes:
        pytest.skip("no recipes in this checkout")
    assert [path.stem for path in CARDS] == recipes


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card(path):
    card = ModelCard.load(path, ignore_metadata_errors=False)
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("peft", "video-classification")
    assert data.license and data.base_model.startswith("openai/clip-vit") and data.base_model_relation == "adapter"
    assert data.eval_results is None  # nothing was measured
    assert "no weights are published" in card.text and "import hf_i2v" in card.text
    assert re.search(r"\| MACs per clip \| [\d.]+ G \| [\d.]+ G \|", card.text)
    assert not re.search(r"(/home|/tmp|/root|/Users|file://)", card.content)
    (expected,) = re.findall(r"\| expected top-1 \| (.*?) \| (.*?) \|", card.text)
    assert "%" not in expected[0] or expected[1] != "none"  # a figure has a source


def test_cards_of_other_tuners_and_of_bare_models(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    model = I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2).with_stdha()
    card = create_card(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), repo_id="user/lora")
    assert {"stdha", "lora"} <= set(card.data.tags) and ".with_stdha([-1, 1])" in card.text
    adapter = get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4))
    assert "AutoModel.from_pretrained(" in create_card(adapter).text
    card = create_card(adapter.merge_and_unload(), repo_id="user/features")
    assert card.data.pipeline_tag == "feature-extraction" and "pooler_output" in card.text
