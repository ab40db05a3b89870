"""The methods that the tables of tests run through: hf_i2v's own, and the two outside ones.

Read from here and not from `hf_i2v.METHODS`, which has whatever the files imported so far have registered.
"""

from adaptformer import AdaptFormerConfig
from tiny import tiny_image_model
from token_shift import TokenShiftConfig

from hf_i2v.backbones import find_backbone
from hf_i2v.methods import OWN

CONFIGS = {config.method_name: config for config in (*OWN, AdaptFormerConfig, TokenShiftConfig)}
OWN_NAMES = [config.method_name for config in OWN]
SMALL = {
    "st_adapter": {"adapter_width": 8},
    "inti": {"insert_before": [1]},
    "attentive_probe": {"num_blocks": 1},
    "frame2freq": {"adapter_width": 8, "window_divisors": [1, 2]},
    "adaptformer": {"bottleneck": 8},
}


def small_config(method: str, **kwargs):
    return CONFIGS[method](**SMALL.get(method, {}), **kwargs)


def finish(model):
    """An adapter merged, or baked where it does not merge."""
    merges = all(part.merges for part in model.active_peft_config.parts())
    return model.merge_and_unload() if merges else model.bake()


def _has_weights_in_every_block(method: str) -> bool:
    backbone = find_backbone(tiny_image_model("clip"))
    config = small_config(method, num_frames=4)
    config.resolve(backbone)
    modules = [[m for *_, m in config.block_modules(backbone, layer)] for layer in range(len(backbone.blocks))]
    return all(any(list(m.parameters()) for m in block) for block in modules)


MERGEABLE = [method for method, config in CONFIGS.items() if config.merges]
NOT_MERGEABLE = [method for method in CONFIGS if method not in MERGEABLE]
BLOCKS_WITH_WEIGHTS = [method for method in CONFIGS if _has_weights_in_every_block(method)]
