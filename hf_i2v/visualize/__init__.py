"""Pictures that explain a video model: where its shifted heads look, which frame InTI takes, what each frame says.

Computed from a model and a video as plain tensors, drawn with matplotlib (`pip install "hf_i2v[train]"`).

```python
from hf_i2v import visualize
from hf_i2v.predict import load_model

model = load_model("my-video-model")
seen = visualize.attention_over_time(model, "clip.mp4", frame=3, position=(0.5, 0.4))
seen.weights_THrc[3]  # of each head: its attention from the patch at this position of frame 3
visualize.save(seen, "attention.png")  # or .gif, .mp4: one picture a frame
```
"""

from .attention import AttentionOverTime, attention_over_time
from .command import main
from .evidence import Evidence, evidence
from .inti import InTIWeights, inti_weights
from .pictures import save

__all__ = [
    "AttentionOverTime",
    "Evidence",
    "InTIWeights",
    "attention_over_time",
    "evidence",
    "inti_weights",
    "main",
    "save",
]
