"""What comes from strangers: configurations, weights and checkpoints that must be refused."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import randomize_adapter, tiny_image_model
from transformers import AutoModel, AutoModelForVideoClassification, CLIPVisionConfig, pipeline

from hf_i2v import (
    AutoPeftModelForVideoClassification,
    I2VConfig,
    I2VForVideoClassification,
    STAdapterConfig,
    ZeroI2VConfig,
    load_released_checkpoint,
)
from hf_i2v.cards import CardFacts, create_card, dataset_fingerprint, one_line
from hf_i2v.hub import push_folder
from hf_i2v.untrusted import check_values

DEEP = eval("[" * 20 + "]" * 20)
PIXELS = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


def test_lists_in_lists_as_deep_as_the_message_says():
    eight = eval("[" * 8 + "1" + "]" * 8)
    check_values({"levels": eight})
    with pytest.raises(ValueError, match="levels is refused: lists in lists, 8 deep at most"):
        check_values({"levels": [eight]})


@pytest.fixture
def model(tmp_path):
    tiny_image_model("clip").save_pretrained(tmp_path / "image")
    return I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2)


@pytest.fixture
def artefact(tmp_path, model):
    """The folder of a baked model."""
    adapted = get_peft_model(model, STAdapterConfig(adapter_width=8))
    adapted.base_model.bake().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "../../etc/cron.d/x", "1": "b"}}, "label '../../etc/cron.d/x' is refused"),
        ({"id2label": {"0": "C:\\..\\x", "1": "b"}}, "is refused"),
        ({"id2label": {"0": "/etc/passwd", "1": "b"}}, "is refused"),
        ({"id2label": {"0": "a\u202eb", "1": "b"}}, "is refused"),  # turns the direction of writing
        ({"id2label": {"0": "a\n---\nlicense: mit", "1": "b"}}, "is refused"),
        ({"id2label": {"0": "a" * 501, "1": "b"}}, "is refused"),
        ({"id2label": None, "num_labels": 10**10}, r"num_labels \(10000000000\) is refused"),
        ({"num_frames": 10**9}, "num_frames .* is refused"),
        ({"image_config": {"hidden_size": 10**8}}, "hidden_size .* is refused"),
        ({"image_config": {"num_hidden_layers": 10**7}}, "num_hidden_layers .* is refused"),
        ({"image_config": {"image_size": 8192, "patch_size": 1, "hidden_size": 4096}}, "parameters .* is refused"),
        (
            {"baked": [{"peft_type": "ST_ADAPTER", "num_frames": 4, "adapter_width": 10**8}]},
            "adapter_width .* is",
        ),
        ({"id2label": {"0": "C:\\Windows\\x", "1": "b"}}, "is refused"),
        ({"id2label": {"0": "~root/x", "1": "b"}}, "is refused"),
        ({"preprocessing": {**PIXELS, "size": 10**9}}, r"preprocessing size \(1000000000\) is refused"),
        ({"preprocessing": {**PIXELS, "std": [0.5, 0, 0.5]}}, r"std \(\[0.5, 0, 0.5\]\) are refused"),
        ({"preprocessing": {**PIXELS, "mean": [float("nan")] * 3}}, r"mean \(nan\) is refused"),
        ({"preprocessing": {**PIXELS, "mean": None}}, r"mean \(None\) .* are refused"),
        ({"baked": [{"peft_type": "os.system", "command": "true"}]}, "is none of"),
        ({"num_frames": 0}, r"num_frames \(0\) must be >= 1"),
        ({"num_frames": -1}, r"num_frames \(-1\) must be >= 1"),
        ({"time_offsets": [1] * 300_000}, "time_offsets is refused: 300000 entries"),
        ({"time_offsets": ["x"]}, r"time_offsets \(\['x'\]\) of I2VConfig must be list\[int\]"),
        ({"time_offsets": [[0, 10**12]]}, r"time_offsets \(1000000000000\) is refused"),
        ({"temporal_embedding": 10**9}, r"temporal_embedding \(1000000000\) is refused"),
        ({"temporal_embedding": "long"}, "temporal_embedding"),
        ({"id2label": ["a", "b"]}, r"id2label \(\['a', 'b'\]\) must be a dictionary"),
        ({"id2label": {"0": {"1": {"2": "a"}}, "1": "b"}}, "label {'1': {'2': 'a'}} is refused: it is no text"),
        ({"id2label": {"first": "a", "1": "b"}}, "the key 'first', which is no class number"),
        ({"methods": [{"a": 1}]}, r"methods .* must be list\[str\]"),
        ({"baked": ["ST_ADAPTER"]}, r"baked .* must be list\[dict\]"),
        ({"baked": [{"peft_type": "INTI", "insert_before": [10**9]}]}, r"insert_before \(1000000000\) is refused"),
        ({"baked": [{"peft_type": "INTI", "insert_before": 1}]}, r"insert_before \(1\) of InTIConfig must be list"),
        (
            {"baked": [{"peft_type": "ST_ADAPTER", "adapter_sites": "between"}]},
            r"adapter_sites .* must be list\[str\]",
        ),
        ({"new": DEEP}, "new is refused: lists in lists"),
        ({"new": {"sizes": [[1, 10**30]]}}, "sizes .* is refused"),
        ({"preprocessing": {**PIXELS, "size": None}}, r"preprocessing size \(None\) is refused"),
        ({"image_config": {"num_attention_heads": 0}}, r"num_attention_heads \(0\) must be >= 1"),
        (
            {"image_config": {"num_attention_heads": 5}},
            "not a multiple of the number of attention heads",
        ),
        ({"image_config": {"image_size": [16, 10**6]}}, r"image_size \(1000000\) is refused"),
        ({"image_config": {"model_type": "swan"}}, "swan"),
        ({"image_config": {"model_type": "swin"}}, "cannot be loaded .TypeError: .*Its files are damaged"),
    ],
)
def test_hostile_configurations(artefact, changes, message):
    path = artefact / "config.json"
    config = json.loads(path.read_text())
    config["image_config"] |= changes.pop("image_config", {})
    path.write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        I2VForVideoClassification.from_pretrained(artefact)


def test_labels_of_the_image_model_are_its_own():
    image = CLIPVisionConfig(id2label={0: "/a path", 1: "b"})
    assert I2VConfig(image_config=image).image_config.id2label == image.id2label


def test_labels_of_any_script(artefact):
    labels = {0: "می\u200cرود", 1: "क\u094d\u200dष", 2: "A: to the left/right of", 3: "~50 apples"}
    model = I2VForVideoClassification.from_pretrained(artefact, id2label=labels, ignore_mismatched_sizes=True)
    assert model.config.id2label == labels


@pytest.fixture
def adapter(tmp_path, model):
    adapted = get_peft_model(model, STAdapterConfig(adapter_width=8))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.unload()
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_width": 10**6}, r"adapter_width \(1000000\) is refused"),
        ({"adapter_width": "wide"}, r"adapter_width \('wide'\) of STAdapterConfig must be int"),
        ({"num_frames": 0}, r"num_frames \(0\) must be >= 1"),
        ({"kernel_size": [3, 1, 10**9]}, r"kernel_size \(1000000000\) is refused"),
        ({"layers_to_transform": [0] * 1_000_000}, "layers_to_transform is refused: 1000000 entries"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform .* must be"),
        ({"modules_to_save": [["classifier"]]}, "modules_to_save .* must be"),
        ({"trained_on": {"video_model": {"id2label": {"0": "/etc/passwd"}}}}, "label '/etc/passwd' is refused"),
        ({"trained_on": {"a": DEEP}}, "a is refused: lists in lists"),
        ({"trained_on": {"video_model": {}}}, "cannot be loaded .KeyError: 'id2label'.. Its files are damaged"),
        ({"peft_type": "I2V_COMPOSED", "methods": [{"peft_type": "INTI", "context_width": 10**8}]}, "context_width"),
        ({"peft_type": "M_ADAPTER", "levels": [10**9]}, r"levels \(1000000000\) is refused"),
        ({"peft_type": "STDHA", "time_offsets": [1] * 300_000}, "time_offsets is refused: 300000 entries"),
    ],
)
def test_hostile_adapters(adapter, changes, message):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        AutoPeftModelForVideoClassification.from_pretrained(adapter)


def rewrite(file, change):
    """Change the tensors of a safetensors file, given as a dictionary, in place."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.weight"), r"missing: classifier\.weight"),
        (lambda t: t.pop("i2v.image_model.pre_layrnorm.bias"), r"missing: i2v\.image_model\.pre_layrnorm\.bias"),
        (lambda t: t.update({"classifier.weight": torch.zeros(5, 32)}), r"misshapen: .*classifier\.weight.*5, 32"),
        (lambda t: t.update({"spare": torch.zeros(1)}), "left over: spare"),
        (dict.clear, "missing: "),
    ],
)
def test_finished_models_are_complete(artefact, change, message):
    rewrite(artefact / "model.safetensors", change)
    for load in (
        I2VForVideoClassification.from_pretrained,
        AutoModelForVideoClassification.from_pretrained,
        partial(pipeline, "video-classification"),
    ):
        with pytest.raises(ValueError, match=message):
            load(str(artefact))


def test_what_may_be_missing_if_it_is_said(artefact, model):
    load = I2VForVideoClassification.from_pretrained
    _, info = load(artefact, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    AutoModel.from_pretrained(artefact)  # without the classifier, which the file has
    model.i2v.save_pretrained(artefact)  # a model without one
    assert load(artefact, num_labels=5, ignore_mismatched_sizes=True).classifier.out_features == 5
    with pytest.raises(ValueError, match=r"missing: classifier\.bias"):
        load(artefact)


def test_adapters_are_complete(adapter, model):
    file = adapter / "adapter_model.safetensors"
    whole = file.read_bytes()
    for change, message in (
        (lambda t: t.pop(next(name for name in t if "down.weight" in name)), r"missing: .*\.down\.weight"),
        (lambda t: t.update({"base_model.model.spare": torch.zeros(1)}), r"left over: .*spare"),
    ):
        file.write_bytes(whole)
        rewrite(file, change)
        with pytest.raises(ValueError, match=message):
            AutoPeftModelForVideoClassification.from_pretrained(adapter)
        with pytest.raises(ValueError, match=message):
            PeftModel.from_pretrained(copy.deepcopy(model), adapter)
    file.write_bytes(whole)
    PeftModel.from_pretrained(model, adapter)
    rewrite(file, lambda t: t.pop("base_model.model.classifier.weight"))
    with pytest.raises(ValueError, match=r"classifier\.weight"):
        AutoPeftModelForVideoClassification.from_pretrained(adapter)


@pytest.mark.parametrize(
    "shard",
    [
        "pytorch_model.bin",
        "../stolen.safetensors",
        "/etc/stolen.safetensors",
        "C:\\x.safetensors",
        "a\\..\\b.safetensors",
    ],
)
def test_an_index_names_safetensors_of_its_own_folder(artefact, shard):
    tensors = load_file(artefact / "model.safetensors")
    torch.save(tensors, artefact / "pytorch_model.bin")
    (artefact / "model.safetensors").rename(artefact.parent / "stolen.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    for name, variant in (("model.safetensors.index.json", None), ("model.safetensors.index.fp16.json", "fp16")):
        (artefact / name).write_text(json.dumps(index))
        with pytest.raises(
            ValueError, match=r"is refused: it names .* It may name safetensors files in its own folder"
        ):
            I2VForVideoClassification.from_pretrained(artefact, variant=variant)
        (artefact / name).write_text('{"weight_map": []}')
        with pytest.raises(ValueError, match="is no index of weights"):
            I2VForVideoClassification.from_pretrained(artefact, variant=variant)
        (artefact / name).unlink()


def test_weights_too_few_for_the_configuration(artefact):
    path = artefact / "config.json"
    config = json.loads(path.read_text())
    config["image_config"] |= {
        "hidden_size": 16_384,
        "intermediate_size": 16_384,
    }  # 10 GB, taken before shapes are met
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"describes about .* parameters, but its weights are \d+ bytes"):
        I2VForVideoClassification.from_pretrained(artefact)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, model, value):
    adapted = randomize_adapter(get_peft_model(model, ZeroI2VConfig()))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "model")
    loaders = {
        tmp_path / "model" / "model.safetensors": I2VForVideoClassification.from_pretrained,
        tmp_path / "adapter" / "adapter_model.safetensors": AutoPeftModelForVideoClassification.from_pretrained,
    }
    for file, load in loaders.items():
        load(file.parent)
        state = load_file(file)
        state[min(state)].view(-1)[0] = value
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="is refused: NaN or infinite"):
            load(file.parent)
    state = load_file(tmp_path / "image" / "model.safetensors")
    state[min(state)].view(-1)[0] = value
    save_file(state, tmp_path / "image" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is refused: NaN or infinite"):
        I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_released_checkpoint({"temporal_embedding": torch.full((1, 4, 32), value)}, "zeroi2v")


class Bomb:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def test_pickles_are_never_run(tmp_path, artefact):
    trace = tmp_path / "it ran"
    file = tmp_path / "released.pth"
    torch.save({"state_dict": Bomb(trace)}, file)
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        load_released_checkpoint(file, "zeroi2v")
    (artefact / "model.safetensors").unlink()
    torch.save({"weight": Bomb(trace)}, artefact / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        I2VForVideoClassification.from_pretrained(artefact)
    assert not trace.exists()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*may run code"):
        push_folder(artefact, "tester/model")


def test_cards_tell_nothing_of_the_machine(tmp_path, model):
    settings = {"output_dir": tmp_path, "train_dir": [str(tmp_path)], "cache_dir": "~/videos", "hub_token": "hf_x"}
    settings |= {
        "here": "file:///home/alice/k400",
        "gone": "runs/alice/first",
        "glob": "alice/*.parquet",
        "d": "D:\\v",
    }
    kept = {"base": "openai/clip-vit-base-patch16", "tuner": "st_adapter+inti", "eval_views": "3x1"}
    facts = CardFacts(
        dataset="x`</td>\n---\nlicense: mit",
        arguments=settings | kept | {"learning_rate": 0.001},
        published=[("top-1 | K400", "80 %", "paper\n# Heading")],
        license="apache-2.0",
    )
    card = create_card(model, facts, "user/name")
    text = str(card)
    assert not any(word in text for word in (str(tmp_path), *(f'"{key}"' for key in settings), "hf_x", "alice"))
    assert all(f'"{key}": "{value}"' in text for key, value in kept.items())
    assert '"learning_rate": 0.001' in text and card.data.license == "apache-2.0"
    assert "# Heading" not in text.splitlines() and text.count("\n---\n") == 1
    assert one_line("a|b`c\n<script>") == "a b c script"


def test_fingerprint(tmp_path, monkeypatch):
    for name, size in (("b/2.mp4", 3), ("a/1.mp4", 2)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x" * size)
    files = sorted(tmp_path.rglob("*.mp4"))
    first = dataset_fingerprint(files, tmp_path)
    assert dataset_fingerprint(files[::-1], tmp_path) == first
    files[0].write_bytes(b"xxx")
    assert dataset_fingerprint(files, tmp_path) != first
    monkeypatch.chdir(tmp_path)
    assert dataset_fingerprint(["a/1.mp4", tmp_path / "b" / "2.mp4"]) == dataset_fingerprint(files)
    assert dataset_fingerprint([*files, "gone.mp4"], tmp_path) == f"{dataset_fingerprint(files)}, 1 of 3 files missing"
    assert dataset_fingerprint(["hf://datasets/x/0.tar", "gone.mp4"]) is None
    with pytest.raises(ValueError, match="not in the subpath"):
        dataset_fingerprint(["/etc/hostname"], tmp_path)
