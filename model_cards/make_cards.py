"""Write the card of every recipe: the model is built at full size without memory, what can be counted is counted.

    python model_cards/make_cards.py

What a recipe expects, and the source of that, is read from the head of its file. Nothing here was trained; the card of
a run is written by `hf_i2v.cards.write_card`, with what the run measured.
"""

import argparse
import dataclasses
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from peft import get_peft_model
from transformers import CLIPVisionConfig

from hf_i2v import METHODS, I2VConfig, I2VForVideoClassification, I2VTunerConfig
from hf_i2v.cards import CardFacts, create_card

HERE = Path(__file__).parent
IMAGE_MODELS = {  # sizes of what the recipes start from, so that nothing has to be downloaded
    "openai/clip-vit-base-patch16": {"patch_size": 16},
    "openai/clip-vit-large-patch14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
}


def tuner_config(recipe: dict) -> I2VTunerConfig:
    """The recipe's tuner, several joined by "+"; an option goes to every method that has it."""
    configs = []
    for name in recipe["tuner"].split("+"):
        known = {field.name for field in dataclasses.fields(METHODS[name])}
        options = {key: value for key, value in recipe.get("tuner_config", {}).items() if key in known}
        configs.append(METHODS[name](**options))
    return sum(configs[1:], start=configs[0])


def recipe_card(path: Path) -> ModelCard:
    """The card of a recipe, with what its full-size model costs."""
    text = path.read_text()
    recipe = yaml.safe_load(text)
    head = re.sub(r"\n# +(?=\S)", "\n# ", text.split("\n#\n")[0])
    _, _, dataset, *_ = head.splitlines()[0].split(", ")
    expected, source = (re.search(rf"# {key}: (.*)", head)[1] for key in ("Expected top-1", "Source"))
    clips, crops = recipe["eval_views"].split("x")
    base = recipe["model_name_or_path"]
    config = I2VConfig(
        image_config=CLIPVisionConfig(**IMAGE_MODELS[base]),
        num_frames=recipe["num_frames"],
        num_labels=recipe["num_labels"],
        base_model=base,
    )
    with torch.device("meta"):
        model = get_peft_model(I2VForVideoClassification(config), tuner_config(recipe))
    facts = CardFacts(
        dataset=f"{dataset}, {recipe['num_labels']} classes",
        published=[("expected top-1", expected, source.split(". ")[0] if "%" in expected else "none")],
        view_protocol=f"{clips} clip(s) × {crops} crop(s) per video, {recipe['sampling']} sampling",
        recipe=f"examples/recipes/{path.name}",
    )
    return create_card(model, facts, f"user/{path.stem}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipes", type=Path, default=HERE.parent / "examples" / "recipes")
    for path in sorted(parser.parse_args().recipes.glob("*.yaml")):
        recipe_card(path).save(HERE / f"{path.stem}.md")
        print(path.stem)
