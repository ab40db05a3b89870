"""What comes from strangers: configurations, weights and checkpoints that must be refused."""

import json
import pickle

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import randomize_adapter, tiny_image_model

from hf_i2v import (
    AutoPeftModelForVideoClassification,
    I2VForVideoClassification,
    STAdapterConfig,
    ZeroI2VConfig,
    load_released_checkpoint,
)
from hf_i2v.cards import CardFacts, create_card, dataset_fingerprint, one_line
from hf_i2v.hub import push_folder

PIXELS = {"size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


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
    ],
)
def test_hostile_configurations(artefact, changes, message):
    path = artefact / "config.json"
    config = json.loads(path.read_text())
    config["image_config"] |= changes.pop("image_config", {})
    path.write_text(json.dumps(config | changes))
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        I2VForVideoClassification.from_pretrained(artefact)


def test_labels_of_any_script(artefact):
    labels = {0: "می\u200cرود", 1: "क\u094d\u200dष", 2: "A: to the left/right of", 3: "~50 apples"}
    model = I2VForVideoClassification.from_pretrained(artefact, id2label=labels, ignore_mismatched_sizes=True)
    assert model.config.id2label == labels


def test_hostile_adapters(tmp_path, model):
    get_peft_model(model, STAdapterConfig(adapter_width=8)).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"adapter_width": 10**6}))
    with pytest.raises(ValueError, match=r"adapter_width \(1000000\) is refused"):
        AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "adapter")


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
