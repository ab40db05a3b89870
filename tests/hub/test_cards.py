"""The cards in `model_cards/`: one for each recipe, valid as far as that can be checked without the Hub."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

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
