"""An adapter's card opens with how to load it, because its type is unknown to peft until hf_i2v is imported."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig

LOADING = """
# How to load this adapter

```python
import hf_i2v  # first: it makes the adapter type {peft_type} known to peft, which else fails with a KeyError
{imports}
model = {loading}
```
"""


def open_card_with_loading(folder: str, config: PeftConfig) -> None:
    """Put how to load the adapter of `config` at the top of the README.md in `folder`, unless it is there already."""
    path = Path(folder) / "README.md"
    card = ModelCard.load(path) if path.exists() else ModelCard.from_template(ModelCardData(library_name="peft"))
    if "import hf_i2v" in card.text:
        return
    here = '"path/or/repository"'
    imports, loading = "from peft import PeftModel\n", f"PeftModel.from_pretrained(image_model, {here})"
    if (config.trained_on or {}).get("video_model"):
        imports, loading = "", f"hf_i2v.AutoPeftModelForVideoClassification.from_pretrained({here})"
    card.text = LOADING.format(peft_type=config.peft_type.value, imports=imports, loading=loading) + card.text
    card.save(path)
