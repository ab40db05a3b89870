"""Someone who knows peft and transformers is never surprised: every method on four backbones."""

import copy
import functools
import operator
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from method_table import BLOCKS_WITH_WEIGHTS, CONFIGS, MERGEABLE, NOT_MERGEABLE, finish, small_config
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from tiny import randomize_adapter, tiny_image_model
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForVideoClassification, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_module_class_from_name

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification, ZeroI2VConfig
from hf_i2v.frames import logger

BACKBONES = ("clip", "vit", "siglip", "dinov2")
LABELS = {0: "jump", 1: "run", 2: "sit"}

every = pytest.mark.parametrize("backbone", BACKBONES)
every_method = pytest.mark.parametrize("method", CONFIGS)
# every method on one backbone, every backbone with one method: for what does not depend on both
each_once = pytest.mark.parametrize(
    ("method", "backbone"), [*((method, "clip") for method in CONFIGS), *(("zeroi2v", b) for b in BACKBONES[1:])]
)


@pytest.fixture(scope="session")
def image_models(tmp_path_factory):
    """Folders with the image models, by backbone; and CLIPs of other sizes. "shallow" is for where a block costs
    seconds."""
    others = {"shallow": {"num_hidden_layers": 2}, "deep": {"num_hidden_layers": 4}, "wide": {"hidden_size": 64}}
    models = {backbone: tiny_image_model(backbone) for backbone in BACKBONES}
    models |= {name: tiny_image_model("clip", **changes) for name, changes in others.items()}
    folders = {name: tmp_path_factory.mktemp(name) for name in models}
    for name, model in models.items():
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def video_model(image_models):
    """Makes the same video model each time, loaded once and copied, and the same adapters on it."""

    @functools.cache
    def load(backbone: str, **kwargs) -> I2VForVideoClassification:
        torch.manual_seed(3)
        return I2VForVideoClassification.from_image_model(
            image_models[backbone], num_frames=4, id2label=LABELS, label2id={n: i for i, n in LABELS.items()}, **kwargs
        )

    def make(backbone: str, **kwargs) -> I2VForVideoClassification:
        model = copy.deepcopy(load(backbone, **kwargs))
        torch.manual_seed(3)
        return model

    return make


def same(backbone: str, logits, expected) -> bool:
    """Identical; but torch's MultiheadAttention, of SigLIP's head, rounds by where its weights lie in memory."""
    return torch.equal(logits, expected) or (backbone == "siglip" and torch.allclose(logits, expected, atol=1e-5))


def adapt(model, method: str, **kwargs) -> PeftModel:
    return randomize_adapter(get_peft_model(model, small_config(method, **kwargs))).eval()


@every
@every_method
def test_the_life_of_an_adapter(method, backbone, video_model, clip_pixels, tmp_path, capsys):
    base = video_model(backbone)
    weights = {name: p.clone() for name, p in base.state_dict().items()}
    plain = base(clip_pixels).logits
    model = adapt(base, method)
    adapted = model(clip_pixels).logits

    model.print_trainable_parameters()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"trainable params: {trainable:,}" in capsys.readouterr().out

    model.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    model.load_adapter(tmp_path, adapter_name="default_2")  # one name is a part of the other
    model.add_adapter("def", small_config(method))
    for name in ("default_2", "default"):
        model.set_adapter(name)
        assert torch.equal(model(clip_pixels).logits, adapted), name
    model.set_adapter("def")
    assert not torch.equal(model(clip_pixels).logits, adapted)
    with model.disable_adapter():
        assert torch.equal(model(clip_pixels).logits, plain)

    with pytest.raises(ValueError, match=r"Adapter nobody .*not"):
        model.delete_adapter("nobody")
    model.delete_adapter("default_2")  # inactive
    with pytest.warns(UserWarning, match="Adapter def was active"):
        model.delete_adapter("def")
    assert model.active_adapters == ["default"] and list(model.peft_config) == ["default"]
    assert torch.equal(model(clip_pixels).logits, adapted)

    unloaded = model.unload()
    assert unloaded is base and not any(isinstance(m, BaseTunerLayer) for m in base.modules())
    assert base.state_dict().keys() == weights.keys()
    assert all(torch.equal(p, weights[name]) for name, p in base.state_dict().items())
    assert torch.equal(base(clip_pixels).logits, plain)


@every
@pytest.mark.parametrize("method", MERGEABLE)
def test_merging(method, backbone, video_model, clip_pixels):
    model = adapt(video_model(backbone), method)
    adapted = model(clip_pixels).logits
    before = {name: p.clone() for name, p in model.state_dict().items()}
    model.merge_adapter()
    torch.testing.assert_close(model(clip_pixels).logits, adapted, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert torch.equal(model(clip_pixels).logits, adapted)

    model.add_adapter("broken", small_config(method))
    if method in BLOCKS_WITH_WEIGHTS:
        weight = next(p for name, p in model.named_parameters() if ".broken.linear_adapter.up.weight" in name
                      or f".broken.{method}.up.weight" in name)  # fmt: skip
        weight.data[0, 0] = float("nan")
        for merge in (model.merge_and_unload, model.merge_adapter):
            before = {name: p.clone() for name, p in model.state_dict().items() if ".broken." not in name}
            with pytest.raises(ValueError, match="NaNs detected"):
                merge(safe_merge=True, adapter_names=["broken"])
            after = model.state_dict()
            assert all(torch.equal(after[name], p) for name, p in before.items())
            assert model.active_adapters == ["default"] and torch.equal(model(clip_pixels).logits, adapted)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match=r"no adapter 'nobody' to merge, only \['default', 'broken'\]"):
            merge(adapter_names=["nobody"])
    trained = dict(model.named_parameters())["base_model.model.classifier.modules_to_save.broken.bias"]
    trained.data[0] = float("inf")
    with pytest.raises(ValueError, match="NaNs detected in classifier"):
        model.merge_and_unload(safe_merge=True, adapter_names=["broken"])
    assert torch.equal(model(clip_pixels).logits, adapted)
    merged = model.merge_and_unload(safe_merge=True, adapter_names=["default"])
    assert not any(isinstance(m, BaseTunerLayer) for m in merged.modules())
    torch.testing.assert_close(merged(clip_pixels).logits, adapted, atol=1e-5, rtol=1e-5)


@every
@pytest.mark.parametrize("method", NOT_MERGEABLE)
def test_what_does_not_merge_says_so_and_is_baked(method, backbone, video_model, clip_pixels):
    model = adapt(video_model(backbone), method)
    adapted = model(clip_pixels).logits
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=rf"{method} is no linear map .* bake\(\)"):
            merge()
    assert torch.equal(model(clip_pixels).logits, adapted)
    torch.testing.assert_close(model.bake()(clip_pixels).logits, adapted, atol=1e-5, rtol=1e-5)


@each_once
def test_an_adapter_brings_its_model(method, backbone, video_model, clip_pixels, tmp_path):
    model = adapt(video_model(backbone), method)
    model.base_model.model.config.id2label[2] = "stand"  # named after the adapter was attached
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path)
    assert same(backbone, loaded(clip_pixels).logits, model(clip_pixels).logits)
    assert loaded.config.id2label == {**LABELS, 2: "stand"} and loaded.config.label2id["stand"] == 2
    assert not any(p.requires_grad for p in loaded.parameters())

    trainable = AutoPeftModelForVideoClassification.from_pretrained(
        tmp_path, adapter_name="other", is_trainable=True, low_cpu_mem_usage=True, dtype=torch.bfloat16
    )
    assert trainable.base_model.model.dtype == torch.bfloat16
    assert trainable.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    saved = PeftConfig.from_pretrained(tmp_path)
    assert type(saved) is CONFIGS[method] and saved.inference_mode


@every
@pytest.mark.parametrize("method", BLOCKS_WITH_WEIGHTS)
def test_chosen_blocks_and_further_modules(method, backbone, video_model, clip_pixels, tmp_path):
    head = {"clip": "pre_layrnorm", "vit": "layernorm", "siglip": "post_layernorm", "dinov2": "layernorm"}[backbone]
    model = adapt(video_model(backbone), method, layers_to_transform=[1], modules_to_save=[head])
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    blocks = {name.split(".sites.")[0].rpartition(".")[2] for name in saved if ".sites." in name}
    assert blocks == {"1"} and any(f".{head}." in name for name in saved)
    loaded = PeftModel.from_pretrained(video_model(backbone), tmp_path)
    assert same(backbone, loaded(clip_pixels).logits, model(clip_pixels).logits)
    frozen = get_peft_model(video_model(backbone), small_config(method, inference_mode=True))
    assert not any(p.requires_grad for p in frozen.parameters())


def test_the_saved_card_opens_with_the_import(video_model, tmp_path):
    model = get_peft_model(video_model("clip"), ZeroI2VConfig())
    model.add_adapter("second", ZeroI2VConfig())
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "second"):
        card = (folder / "README.md").read_text()
        assert card.count("import hf_i2v") == 1
        _, _, text = card.split("---\n", 2)
        assert text.strip().startswith("# How to load this adapter\n\n```python\nimport hf_i2v")
        assert "AutoPeftModelForVideoClassification.from_pretrained" in text
    get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4)).save_pretrained(tmp_path / "bare")
    assert "from peft import PeftModel\n\nmodel = PeftModel." in (tmp_path / "bare" / "README.md").read_text()


def test_what_an_adapter_cannot_bring(video_model, image_models, tmp_path):
    bare = get_peft_model(tiny_image_model("clip"), ZeroI2VConfig(num_frames=4))
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="without a classifier"):
        AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "bare")
    finished = adapt(video_model("clip"), "zeroi2v").merge_and_unload()
    adapt(finished, "st_adapter").save_pretrained(tmp_path / "on_finished")
    with pytest.raises(ValueError, match="changed in memory"):
        AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "on_finished")
    with pytest.raises(OSError, match="from_pretrained"):
        AutoPeftModelForVideoClassification()


def test_an_adapter_on_a_video_model_brings_that(video_model, clip_pixels, tmp_path):
    adapt(video_model("clip"), "zeroi2v").merge_and_unload().save_pretrained(tmp_path / "video")
    base = I2VForVideoClassification.from_pretrained(tmp_path / "video")
    model = adapt(base, "st_adapter")
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(clip_pixels).logits, model(clip_pixels).logits)

    shifted = adapt(video_model("clip").with_stdha([1, -1, 2]), "linear_adapter")
    shifted.save_pretrained(tmp_path / "shifted")
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "shifted")
    assert torch.equal(loaded(clip_pixels).logits, shifted(clip_pixels).logits)


def test_a_base_that_is_not_what_it_was_is_noticed(video_model, clip_pixels, tmp_path):
    merged = adapt(video_model("clip"), "linear_adapter").merge_and_unload()
    lora = get_peft_model(video_model("clip"), LoraConfig(target_modules=["q_proj"]))
    adapt(video_model("clip"), "zeroi2v").merge_and_unload().save_pretrained(tmp_path / "video")
    video = I2VForVideoClassification.from_pretrained(tmp_path / "video")
    again = adapt(I2VForVideoClassification.from_pretrained(tmp_path / "video"), "zeroi2v").merge_and_unload()
    for name, base in (
        ("merged", merged),
        ("lora", randomize_adapter(lora).merge_and_unload()),
        ("again", again),
    ):
        model = adapt(base, "st_adapter")
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="changed in memory"):
            AutoPeftModelForVideoClassification.from_pretrained(tmp_path / name)
    with pytest.warns(UserWarning, match="trained on a clip_vision_model with other weights"):
        PeftModel.from_pretrained(video_model("clip"), tmp_path / "merged")

    shifted = adapt(video.with_stdha([2, -1]), "st_adapter")
    shifted.save_pretrained(tmp_path / "shifted")
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "shifted")
    assert torch.equal(loaded(clip_pixels).logits, shifted(clip_pixels).logits)


def test_one_configuration_serves_two_models(image_models, tmp_path):
    shared = ZeroI2VConfig()
    models = []
    for names in ({0: "a", 1: "b", 2: "c"}, {0: "x", 1: "y", 2: "z"}):
        base = I2VForVideoClassification.from_image_model(
            image_models["clip"], num_frames=4 + len(models) * 4, id2label=names
        )
        models.append(get_peft_model(base, shared))
    models[0].save_pretrained(tmp_path)
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"} and loaded.config.num_frames == 4
    assert shared.num_frames is None and shared.trained_on is None


def test_adapters_come_in_safetensors_only(video_model, tmp_path):
    adapt(video_model("clip"), "zeroi2v").save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").exists()
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        AutoPeftModelForVideoClassification.from_pretrained(tmp_path)


def test_a_file_that_lacks_weights_is_noticed(video_model, tmp_path):
    adapt(video_model("clip"), "zeroi2v").save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if ".sites." in name)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, file)
    with pytest.raises(ValueError, match=rf"missing: .*{lost.rpartition('.')[2]}\n"):
        PeftModel.from_pretrained(video_model("clip"), tmp_path)


def logits_unchanged(model, pixels, refused):
    """Calls `refused`, which must raise ValueError, and checks that the model computes what it did; the message."""
    before, names = model(pixels).logits, list(model.state_dict())
    with warnings.catch_warnings(), pytest.raises(ValueError) as error:
        warnings.simplefilter("ignore")  # peft's own, about a second adaptation
        refused()
    assert list(model.state_dict()) == names and torch.equal(model(pixels).logits, before)
    return str(error.value)


@every_method
def test_refused_before_anything_changes(method, video_model, clip_pixels, tmp_path):
    model = video_model("clip")
    message = logits_unchanged(
        model, clip_pixels, lambda: get_peft_model(model, small_config(method, modules_to_save=["clasifier"]))
    )
    assert "'clasifier'" in message and "'classifier'" in message

    adapted = adapt(video_model("clip"), method)
    inner = adapted.base_model.model
    for again in (adapted, inner):
        message = logits_unchanged(
            adapted, clip_pixels, lambda again=again: get_peft_model(again, small_config(method))
        )
        assert "adapted already" in message and "add_adapter" in message

    adapted.save_pretrained(tmp_path / "adapter")
    for name, found in (("wide", "hidden_size 32 (here 64)"), ("deep", "num_hidden_layers 3 (here 4)")):
        other = video_model(name)
        message = logits_unchanged(
            other, clip_pixels, lambda other=other: PeftModel.from_pretrained(other, tmp_path / "adapter")
        )
        assert found in message


def test_another_kind_of_backbone_is_refused(video_model, clip_pixels, tmp_path):
    adapt(video_model("clip"), "st_adapter").save_pretrained(tmp_path)
    other = video_model("siglip")
    message = logits_unchanged(other, clip_pixels, lambda: PeftModel.from_pretrained(other, tmp_path))
    assert "model_type clip_vision_model (here siglip_vision_model)" in message


@pytest.mark.parametrize(
    "method, name",
    [("zeroi2v", "fc1"), ("linear_adapter", "k_proj")]
    + [("st_adapter", name) for name in ("mlp", "self_attn", "layers", "embeddings", "encoder", "image_model", "i2v")],
)
def test_what_the_methods_act_on_cannot_be_trained_whole(method, name, video_model, clip_pixels):
    model = video_model("clip")
    message = logits_unchanged(
        model, clip_pixels, lambda: get_peft_model(model, small_config(method, modules_to_save=[name]))
    )
    assert ("fold into" if name in ("fc1", "k_proj") else "cannot be trained whole") in message


def test_layers_that_nothing_acts_on_train_beside_an_adapter(video_model, clip_pixels, tmp_path):
    model = adapt(video_model("clip"), "st_adapter", modules_to_save=["fc1", "layer_norm2", "patch_embedding"])
    adapted = model(clip_pixels).logits
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(clip_pixels).logits, adapted)
    assert torch.equal(model.bake()(clip_pixels).logits, adapted)


def test_other_tuners_and_ours_do_not_lose_one_another(video_model, clip_pixels, tmp_path):
    lora = randomize_adapter(get_peft_model(video_model("clip"), LoraConfig(target_modules=["q_proj"])))
    for model in (lora, lora.base_model.model):
        message = logits_unchanged(lora, clip_pixels, lambda model=model: get_peft_model(model, ZeroI2VConfig()))
        assert "another tuner of peft" in message and "with_stdha" in message
    ours = adapt(video_model("clip"), "linear_adapter")
    over = get_peft_model(ours.base_model.model, LoraConfig(target_modules=["q_proj"])).merge_and_unload()
    with pytest.raises(ValueError, match="still holds an adapter"):
        over.save_pretrained(tmp_path)


def test_mixed_batches_are_refused(video_model, clip_pixels):
    model = adapt(video_model("clip"), "zeroi2v")
    with pytest.raises(ValueError, match="mixed batches are not supported"):
        model(clip_pixels, adapter_names=["default", "default"])


def test_labels_must_agree(video_model, image_models, clip_pixels, tmp_path):
    adapt(video_model("clip"), "zeroi2v").save_pretrained(tmp_path)
    five = I2VForVideoClassification.from_image_model(image_models["clip"], num_frames=4, num_labels=5)
    message = logits_unchanged(five, clip_pixels, lambda: PeftModel.from_pretrained(five, tmp_path))
    assert "3 labels" in message and "has 5" in message
    names = {0: "run", 1: "jump", 2: "sit"}
    other = I2VForVideoClassification.from_image_model(image_models["clip"], num_frames=4, id2label=names)
    with pytest.warns(UserWarning, match="name 2 classes differently"):
        PeftModel.from_pretrained(other, tmp_path)
    unnamed = I2VForVideoClassification.from_image_model(image_models["clip"], num_frames=4, num_labels=3)
    PeftModel.from_pretrained(unnamed, tmp_path)


def test_what_could_never_learn_is_refused(video_model, clip_pixels):
    model = video_model("clip")
    message = logits_unchanged(
        model,
        clip_pixels,
        lambda: get_peft_model(model, small_config("m_adapter", modules_to_save=["post_layernorm"])),
    )
    assert "would never learn" in message
    baked = adapt(model, "m_adapter").bake()
    message = logits_unchanged(baked, clip_pixels, lambda: get_peft_model(baked, small_config("st_adapter")))
    assert "would never learn" in message


def test_a_finished_model_loads_with_a_device_map(video_model, clip_pixels, tmp_path):
    merged = adapt(video_model("clip"), "zeroi2v").merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(loaded(clip_pixels).logits, merged(clip_pixels).logits)


@pytest.mark.parametrize("method", ["zeroi2v", "st_adapter", "aim", "inti", "m_adapter"])
def test_a_finished_model_may_lie_on_the_disk(method, video_model, clip_pixels, tmp_path):
    model = adapt(video_model("clip"), method)
    finished = finish(model)
    finished.save_pretrained(tmp_path / "model")
    places = {f"i2v.image_model.{part}": "cpu" for part in ("embeddings", "pre_layrnorm", "post_layernorm")}
    places |= {"classifier": "cpu", "i2v.image_model.encoder": "disk", "i2v.image_model.baked_branch": "disk"}
    loaded = I2VForVideoClassification.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    assert any(p.is_meta for p in loaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded(clip_pixels).logits, finished(clip_pixels).logits)


@every
@every_method
def test_outputs_of_transformers(method, backbone, video_model, clip_pixels):
    model = adapt(video_model(backbone, attn_implementation="eager"), method)
    outputs = model(clip_pixels, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 4 and outputs.hidden_states[0].shape[:2] == (2, 4)
    spatial = outputs.attentions[1::2] if method == "aim" else outputs.attentions  # AIM's blocks attend twice
    assert [layer.shape[1] for layer in spatial] == ([4, 2, 2] if method == "inti" else [4, 4, 4])
    assert all(a.shape[-1] == a.shape[-2] for a in outputs.attentions)
    as_tuple = model(clip_pixels, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.logits)
    assert model(clip_pixels).hidden_states is None


@every
@every_method
def test_reduced_precision(method, backbone, video_model, clip_pixels):
    expected = adapt(video_model(backbone), method)(clip_pixels).logits
    model = adapt(video_model(backbone), method)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(clip_pixels, labels=torch.tensor([0, 2])).loss
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.eval()(clip_pixels).logits.float(), expected, atol=0.3, rtol=0.1)
    for dtype in (torch.bfloat16, torch.float16):
        logits = model.to(dtype)(clip_pixels.to(dtype)).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), expected, atol=0.3, rtol=0.1)


def kept_for_backward(model, pixels) -> int:
    """Elements of the tensors that autograd keeps between forward and backward, parameters left out."""
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(pixels, labels=torch.tensor([0, 2])).loss
    loss.backward()
    return sum(kept.values())


@each_once
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_checkpointing_keeps_less_and_gives_the_same(method, backbone, use_reentrant, video_model, clip_pixels):
    # a branch's frozen model runs without a graph: there is nothing to checkpoint, and torch says so
    if not CONFIGS[method].has_branch:
        warnings.filterwarnings("error", "None of the inputs have requires_grad")
    model = adapt(video_model(backbone), method).train()
    torch.manual_seed(4)  # dropout and drop path are the same in both runs, and when a block runs again
    plain = kept_for_backward(model, clip_pixels)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.manual_seed(4)
    less = kept_for_backward(model, clip_pixels)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == gradients.keys()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-6, rtol=1e-5, msg=name)
    if method in BLOCKS_WITH_WEIGHTS:  # otherwise the frozen model keeps nothing anyway
        assert less < 0.5 * plain, (less, plain)


def assert_compiles_once(model, pixels):
    """Without a graph break, and with the model's own logits."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    compiled(pixels)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (pixels + 1, pixels + 2):
            torch.manual_seed(4)  # dropout and drop path are the same
            logits = compiled(batch).logits
    torch.manual_seed(4)
    torch.testing.assert_close(logits, model(pixels + 2).logits)


COMPILED = ["zeroi2v+st_adapter+inti+adaptformer+token_shift", "aim+frame2freq"]
COMPILED += ["m_adapter", "attentive_probe", "step"]  # side branches go alone


@pytest.mark.parametrize("methods", COMPILED)
def test_compiles_once_in_training(methods, video_model, clip_pixels):
    """Every method, as many in a graph as compose, for each costs seconds. In inference: see
    `test_compiles_once_for_another_number_of_frames`, for those that compute there what they do not here."""
    config = functools.reduce(operator.add, map(small_config, methods.split("+")))
    model = randomize_adapter(get_peft_model(video_model("shallow"), config))
    assert_compiles_once(model.train(), clip_pixels)


def test_every_method_is_compiled():
    parts = {"stdha", "linear_adapter"}  # of zeroi2v
    assert {*"+".join(COMPILED).split("+")} | parts == CONFIGS.keys()


def test_exports(video_model, clip_pixels):
    """Every method of the package: see test_abilities.py."""
    model = adapt(video_model("shallow"), "token_shift")
    finished = finish(model)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    finished(clip_pixels)
    program = torch.export.export(finished, (clip_pixels,), dynamic_shapes=(batch,), strict=False)
    pixels = torch.cat([clip_pixels, -clip_pixels, clip_pixels + 1])
    torch.testing.assert_close(program.module()(pixels).logits, finished(pixels).logits, atol=1e-5, rtol=1e-5)


@every
@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flex_attention"])
def test_stdha_keeps_the_kernel(kernel, backbone, video_model, clip_pixels):
    expected = adapt(video_model(backbone), "zeroi2v")(clip_pixels).logits
    # transformers compiles flex_attention, to C++ here; run without that it is the same function
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model = adapt(video_model(backbone, attn_implementation=kernel), "zeroi2v")
        assert model.base_model.model.config._attn_implementation == kernel
        torch.testing.assert_close(model(clip_pixels).logits, expected, atol=1e-4, rtol=1e-4)


@every_method
def test_other_numbers_of_frames(method, video_model, clip_pixels, monkeypatch):
    told = []
    logger.warning_once.cache_clear()  # other tests may have been told already
    monkeypatch.setattr(logger, "warning", told.append)
    model = adapt(video_model("shallow"), method)
    with torch.no_grad():
        for pixels in (clip_pixels.repeat(1, 2, 1, 1, 1), clip_pixels[:, :2], clip_pixels.repeat(1, 2, 1, 1, 1)):
            assert torch.isfinite(model(pixels).logits).all()
        lengths = ["8 frames", "2 frames"] if CONFIGS[method].uses_temporal_embedding or method == "step" else []
    assert len(told) == len(lengths)
    assert all("interpolated linearly" in text and new in text for text, new in zip(told, lengths, strict=True))


@pytest.mark.parametrize("methods", ["stdha+linear_adapter+aim", "step"])
def test_compiles_once_for_another_number_of_frames(methods, video_model, clip_pixels):
    """Without gradients. The first has the temporal embedding and all parts of zeroi2v and AIM, who interpolate it."""
    config = functools.reduce(operator.add, map(small_config, methods.split("+")))
    model = randomize_adapter(get_peft_model(video_model("shallow"), config)).eval()
    with torch.no_grad():
        assert_compiles_once(model, clip_pixels[:, :2].contiguous())


@pytest.mark.parametrize("method", ["zeroi2v", "st_adapter", "aim"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_for_another_number_of_frames(method, video_model, image_models, clip_pixels, tmp_path):
    model = adapt(video_model("clip"), method)
    model.save_pretrained(tmp_path / "adapter")
    longer = clip_pixels.repeat_interleave(2, dim=1)
    expected = model(longer).logits
    auto = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "adapter", num_frames=8)
    base = I2VForVideoClassification.from_image_model(image_models["clip"], num_frames=8, num_labels=3)
    for loaded in (auto, PeftModel.from_pretrained(base, tmp_path / "adapter")):
        assert loaded.config.num_frames == 8 and torch.equal(loaded(longer).logits, expected)
    finished = finish(copy.deepcopy(auto))
    finished.save_pretrained(tmp_path / "finished")
    torch.testing.assert_close(finished(longer).logits, expected)

    same_length = finish(model)
    same_length.save_pretrained(tmp_path / "four")
    for folder in ("finished", "four"):
        for model_class in (I2VForVideoClassification, AutoModelForVideoClassification):
            loaded = model_class.from_pretrained(tmp_path / folder, num_frames=8)
            assert loaded.config.num_frames == 8
            torch.testing.assert_close(loaded(longer).logits, expected)


@every_method
def test_threads_with_clips_of_different_lengths(method, video_model, clip_pixels):
    model = adapt(video_model("vit"), method)
    inputs = [clip_pixels, clip_pixels.repeat(1, 2, 1, 1, 1)]

    @torch.no_grad()
    def run(i):
        return [model(inputs[i]).logits for _ in range(8)]

    expected = [run(i)[0] for i in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        for logits, one in zip(expected, pool.map(run, (0, 1)), strict=True):
            assert all(torch.equal(again, logits) for again in one)


@every
def test_wrap_policies_find_the_blocks(backbone, video_model):
    model = adapt(video_model(backbone), "zeroi2v")
    name = next(n for n in model.base_model.model._no_split_modules if n.endswith("Layer"))
    block_class = get_module_class_from_name(model, name)
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={block_class})
    wrapped = [m for m in model.modules() if policy(module=m, recurse=False, nonwrapped_numel=0)]
    assert len(wrapped) == 3 and all("sites" in m._modules for m in wrapped)


class Clips(torch.utils.data.Dataset):
    """Clips that one pixel value tells apart."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return {"pixel_values": torch.randn(4, 3, 16, 16, generator=generator) + i % 3 - 1, "labels": i % 3}


# the first trains most kinds of weights, the second none but the head; the others merge frames, and stand beside it
@pytest.mark.parametrize("method", ["zeroi2v", "token_shift", "inti", "m_adapter"])
def test_trainer(method, video_model, tmp_path):
    def trainer(**kwargs):
        arguments = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=4,
            num_train_epochs=3,
            learning_rate=1e-2,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="early",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
            **kwargs,
        )
        torch.manual_seed(0)
        evaluations = []

        def compute_metrics(prediction):
            evaluations.append((prediction.predictions.argmax(-1) == prediction.label_ids).mean())
            return {"accuracy": evaluations[-1], "early": -abs(trained.state.global_step - 6)}  # the second is best

        trained = Trainer(
            get_peft_model(video_model("clip"), small_config(method)),
            arguments,
            train_dataset=Clips(),
            eval_dataset=Clips(),
            compute_metrics=compute_metrics,
        )
        return trained

    first = trainer()
    first.train()
    saved = {f.name for f in (tmp_path / "checkpoint-3").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= saved and "model.safetensors" not in saved
    kept = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "checkpoint-6")
    last = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "checkpoint-9")
    classifiers = [m.classifier.modules_to_save["default"].weight for m in (kept, first.model, last)]
    assert torch.equal(classifiers[0], classifiers[1]) and not torch.equal(classifiers[1], classifiers[2])
    accuracies = [entry["eval_accuracy"] for entry in first.state.log_history if "eval_accuracy" in entry]
    assert first.evaluate()["eval_accuracy"] == accuracies[1]

    shutil.rmtree(tmp_path / "checkpoint-9")
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    losses = [
        [entry["eval_loss"] for entry in t.state.log_history if "eval_loss" in entry][:3] for t in (first, resumed)
    ]
    assert losses[0] == losses[1] and resumed.state.best_model_checkpoint.endswith("checkpoint-6")
