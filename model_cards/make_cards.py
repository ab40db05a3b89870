"""Write the card of every recipe: the model is built at full size without memory, what can be counted is counted.

    python model_cards/make_cards.py

What a recipe expects, and the source of that, is read from the head of its file. Nothing here was trained; the card of
a run is written by `hf_i2v.cards.write_card`, with what the run measured.
"""

import argparse
import csv
import json
import re
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from peft import get_peft_model

from hf_i2v import I2VForVideoClassification, I2VTunerConfig
from hf_i2v.architectures import video_config
from hf_i2v.cards import CardFacts, create_card
from hf_i2v.options import tuner_config

HERE = Path(__file__).parent
LICENSES = {"openai/clip-": "mit"}  # of the base model, which an adapter of it may have too: github.com/openai/CLIP
DATASETS = {"Something-Something-v2": "HuggingFaceM4/something_something_v2"}  # names on the Hub, where they are sure
SPEED = HERE.parent / "benchmarks" / "speed.csv"


def recipe_config(recipe: dict) -> I2VTunerConfig:
    """The recipe's tuner with its options."""
    options = [f"{key}={json.dumps(value)}" for key, value in recipe.get("tuner_config", {}).items()]
    return tuner_config(recipe["tuner"], options)


def relative_latency(recipe: dict) -> str | None:
    """What `benchmarks/speed.py` measured of the recipe's method, if it did at that size and number of frames."""
    if recipe["model_name_or_path"] != "openai/clip-vit-base-patch16" or recipe["num_frames"] != 8:
        return None
    name, options = recipe["tuner"], recipe.get("tuner_config", {})
    name += " ssv2" if options.get("temporal_adapter_in") else ""
    name += " 24x384" if options.get("adapter_sites") == ["before", "between"] else ""
    rows = {row["what"]: row["ratio"] for row in csv.DictReader(SPEED.open()) if row["part"] == "inference"}
    if f"{name} / image model" not in rows:
        return None
    merged = rows.get(f"{name} merged / image model")
    also = f" (merged {merged} ×)" if merged else ""
    return f"{rows[f'{name} / image model']} ×{also}: benchmarks/speed.md, CPU, float32"


def recipe_card(path: Path) -> ModelCard:
    """The card of a recipe, with what its full-size model costs."""
    text = path.read_text()
    recipe = yaml.safe_load(text)
    head = re.sub(r"\n# +(?=\S)", "\n# ", text.split("\n#\n")[0])
    _, _, dataset, *_ = head.splitlines()[0].split(", ")
    expected, source = (re.search(rf"# {key}: (.*)", head)[1] for key in ("Expected top-1", "Source"))
    clips, crops = recipe["eval_views"].split("x")
    base = recipe["model_name_or_path"]
    config = video_config(base, num_frames=recipe["num_frames"], num_labels=recipe["num_labels"])
    with torch.device("meta"):
        model = get_peft_model(I2VForVideoClassification(config), recipe_config(recipe))
    facts = CardFacts(
        dataset_id=DATASETS.get(dataset),
        license=next((licence for start, licence in LICENSES.items() if base.startswith(start)), None),
        dataset=f"{dataset}, {recipe['num_labels']} classes",
        published=[("expected top-1", expected, source.split(". ")[0] if "%" in expected else "none")],
        view_protocol=f"{clips} clip(s) × {crops} crop(s) per video, {recipe['sampling']} sampling",
        recipe=f"examples/recipes/{path.name}",
        relative_latency=relative_latency(recipe),
    )
    return create_card(model, facts, f"user/{path.stem}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--recipes", type=Path, default=HERE.parent / "examples" / "recipes")
    for path in sorted(parser.parse_args().recipes.glob("*.yaml")):
        recipe_card(path).save(HERE / f"{path.stem}.md")
        print(path.stem)
