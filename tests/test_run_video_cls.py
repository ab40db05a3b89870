"""The training script's options, tried on tiny videos, and what it refuses before days are lost."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, DistributedType
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_image_model
from training import ROOT, command_line, load_script, write_video, write_video_folders

from hf_i2v import AutoPeftModelForVideoClassification, I2VForVideoClassification
from hf_i2v.training.videos import few_shot


@pytest.fixture(scope="module")
def script():
    return load_script("run_video_cls")


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("script")
    tiny_image_model("clip", num_hidden_layers=2).save_pretrained(place / "image")
    write_video_folders(place / "videos", train=6, validation=2)
    return place


@pytest.fixture
def arguments(place, tmp_path) -> dict:
    return {
        "model_name_or_path": place / "image",
        "train_dir": place / "videos/train",
        "validation_dir": place / "videos/validation",
        "num_frames": 4,
        "per_device_train_batch_size": 4,
        "max_train_steps": 2,
        "output_dir": tmp_path / "run",
        "checkpointing_steps": "no",
    }


def test_everything_at_once(script, arguments, tmp_path, capsys):
    options = {
        "max_train_steps": 6,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "shots_per_class": 4,
        "sampling": "dense",
        "rand_augment": [2, 5],
        "color_jitter": 0.2,
        "random_erasing": 0.2,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "label_smoothing": 0.1,
        "head_learning_rate": 0.5,
        "learning_rate": 0.01,
        "num_warmup_steps": 0.5,
        "ema_decay": 0.5,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "eval_views": "2x3",
        "flip": 0.5,
        "flip_labels": tmp_path / "flip.json",
        "eval_steps": 3,
        "with_tracking": True,
        "logging_steps": 2,
        "checkpointing_steps": "epoch",
    }
    (tmp_path / "flip.json").write_text('{"dark": "dark"}')
    script.main(command_line(arguments | options))
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert "8 videos to train on, 4 to validate, 2 classes; 4 clips per step, 6 steps" in printed
    plan = "evaluation: 4 frames of stride 1 × 2 clips × 3 crops = 6 forward passes per video"
    assert printed.count(plan) == printed.count("forward passes") == 1
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]  # 2 steps an epoch
    (tracked,) = (yaml.safe_load(path.read_text()) for path in run.glob("logs/**/hparams.yml"))
    assert tracked["num_frames"] == 4 and tracked["gradient_checkpointing"] is True

    saved = load_file(run / "adapter" / "adapter_model.safetensors")
    checkpoint = load_file(run / "checkpoint-6" / "weights.safetensors")
    (head,) = (key for key in saved if key.endswith("classifier.weight"))
    last, averaged = (v for k, v in sorted(checkpoint.items()) if "classifier" in k and k.endswith("weight"))
    assert torch.equal(saved[head], averaged) and not torch.equal(averaged, last)

    events = EventAccumulator(str(run / "logs" / "run_video_cls")).Reload()
    assert [e.step for e in events.Scalars("train_loss")] == [2, 4, 6]
    assert [e.step for e in events.Scalars("eval_accuracy")] == [3, 6]
    warming = events.Scalars("learning_rate")[0].value * 3 / 2  # after 2 of the 3 steps of warm-up
    assert warming in (pytest.approx(0.5), pytest.approx(0.01))
    for name in ("clips_per_second", "data_wait", "peak_memory_gib"):
        assert events.Scalars(name)[0].value > 0

    results = json.loads((run / "all_results.json").read_text())
    assert {"eval_accuracy", "eval_top5_accuracy", "eval_mean_class_accuracy", "macs", "step"} <= results.keys()
    assert (results["eval_num_videos"], results["eval_failures"]) == (4, 0)
    with open(run / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["label"] for row in rows} == {"dark", "light"}
    assert Image.open(run / "confusion_matrix.png").size[0] > 48
    config = (run / "adapter" / "training_config.yaml").read_text()
    assert yaml.safe_load(config)["head_learning_rate"] == 0.5
    assert yaml.safe_load(config)["flip_labels"] == {"dark": "dark"}  # and not where the file lies
    for place in (tmp_path, arguments["train_dir"], arguments["model_name_or_path"]):
        assert str(place) not in config


def test_configuration_can_be_run_again(script, arguments, tmp_path):
    (tmp_path / "flip.json").write_text('{"dark": "dark"}')
    options = {"flip": 0.5, "flip_labels": tmp_path / "flip.json", "tuner_config": ["adapter_scale=0.7"]}
    options |= {"max_train_steps": None, "num_train_epochs": 1, "learning_rate": 1e-5, "rand_augment": [2, 5]}
    script.main(command_line(arguments | options))
    folder = tmp_path / "run" / "adapter"
    saved = yaml.safe_load((folder / "training_config.yaml").read_text())
    assert (saved["mixed_precision"], saved["max_train_steps"], saved["num_labels"]) == ("no", 3, 2)
    places = ("model_name_or_path", "train_dir", "validation_dir", "output_dir")
    again = {key: arguments[key] for key in places} | {"config": folder / "training_config.yaml"}
    args = script.parse_args(command_line(again))
    assert script.resolved_options(args) == saved
    script.main(command_line(again))  # the same run: it is not refused
    assert (folder / "run.json").read_text() == (tmp_path / "run" / "run.json").read_text()


def test_every_epoch_is_saved_under_accumulation(script, arguments, tmp_path):
    """12 videos, 6 batches, of which a step takes 4: the second epoch ends with a step, the others between two."""
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_train_steps": 7}
    script.main(command_line(arguments | options | {"checkpointing_steps": "epoch", "checkpoints_total_limit": 9}))
    assert sorted(int(p.name[11:]) for p in (tmp_path / "run").glob("checkpoint-*")) == [2, 3, 5, 6, 7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_trains_in_float32(script, arguments, tmp_path, dtype):
    tiny_image_model("clip", num_hidden_layers=2).to(dtype).save_pretrained(tmp_path / "half")
    args = script.parse_args(command_line(arguments | {"model_name_or_path": tmp_path / "half"}))
    assert {p.dtype for p in script.build_model(args, ["dark", "light"]).parameters()} == {torch.float32}


@pytest.mark.parametrize("tuner", ["full", "lora", "stdha+lora", "st_adapter+inti"])
def test_tuners(script, arguments, tuner, tmp_path):
    script.main(command_line(arguments | {"tuner": tuner}))
    folder = tmp_path / "run" / ("model" if tuner == "full" else "adapter")
    if tuner == "full":
        trained = I2VForVideoClassification.from_pretrained(folder).i2v.image_model.state_dict()
        before = tiny_image_model("clip", num_hidden_layers=2).state_dict()
        assert not all(torch.equal(before[key], trained[key]) for key in before)
    else:
        assert (folder / "adapter_model.safetensors").exists()


def optimiser_groups(script, options) -> tuple[torch.nn.Module, dict[tuple[float, float], set[str]]]:
    """The model, and {(learning rate, weight decay): names of its parameters}."""
    args = script.parse_args(command_line(options))
    model = script.build_model(args, ["dark", "light"])
    names = {id(p): name for name, p in model.named_parameters()}
    return model, {
        (group["lr"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in script.build_optimizer(args, model).param_groups
    }


def test_optimiser_groups(script, arguments):
    model, groups = optimiser_groups(script, arguments | {"head_learning_rate": 0.5, "weight_decay": 0.1})
    assert all("classifier" in name for name in groups[(0.5, 0.1)] | groups[(0.5, 0.0)])
    assert all(name.endswith("weight") for name in groups[(3e-4, 0.1)])
    assert any(".temporal." in name for name in groups[(3e-4, 0.0)])
    assert not any(".temporal." in name for name in groups[(3e-4, 0.1)])
    assert all(".temporal." in n or "bias" in n or "norm" in n for n in groups[(3e-4, 0.0)])
    assert sum(map(len, groups.values())) == sum(p.requires_grad for p in model.parameters())


def test_the_temporal_embedding_has_a_rate_of_its_own(script, arguments):
    def rates(**options) -> dict[bool, set[float]]:
        """Of the temporal embedding, and of the rest."""
        _, groups = optimiser_groups(script, arguments | {"tuner": "aim"} | options)
        found = {True: set(), False: set()}
        for (rate, _), names in groups.items():
            for name in names:
                found[".temporal." in name].add(rate)
        return found

    assert rates() == {True: {3e-3}, False: {1e-4}}
    assert rates(learning_rate=3e-4) == {True: {3e-4}, False: {3e-4}}  # as the paper's recipes
    assert rates(temporal_embedding_learning_rate=0.5) == {True: {0.5}, False: {1e-4}}
    assert rates(tuner="zeroi2v") == {True: {3e-4}, False: {3e-4}}


def test_clips_in_place_of_bad_videos_count_nothing(script, arguments):
    args = script.parse_args(command_line(arguments | {"classifier_dropout": 0, "tuner": "linear_probe"}))
    model = script.build_model(args, ["dark", "light"]).eval()
    batch = {"pixel_values": torch.randn(4, 4, 3, 16, 16), "labels": torch.tensor([0, 1, 1, 0])}
    batch["is_padding"] = torch.tensor([False, False, True, True])
    half = {key: value[:2] for key, value in batch.items()}
    assert script.batch_loss(args, model, batch).item() == pytest.approx(
        script.batch_loss(args, model, half).item() / 2
    )


def test_few_shot_is_seeded(place):
    from hf_i2v.data import load_videos

    videos = load_videos(train_dir=place / "videos/train")["train"]

    def drawn(shots, seed):
        return [row["video"]["path"] for row in few_shot(videos, shots, seed)]

    assert drawn(2, 0) == drawn(2, 0) and len(drawn(2, 0)) == 4
    assert len({tuple(drawn(2, seed)) for seed in range(5)}) > 1
    assert set(drawn(2, 0)) < set(drawn(4, 0))  # more shots add to fewer
    with pytest.raises(ValueError, match="--shots_per_class 8: the class 'dark' has 6 videos"):
        drawn(8, 0)


def test_push_to_hub(script, arguments, tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "hub"))
    from hub_server import TOKEN, HubServer

    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        options = {"push_to_hub": True, "hub_model_id": "tester/digits", "hub_token": TOKEN, "checkpointing_steps": 2}
        bad = Path(shutil.copytree(arguments["train_dir"], tmp_path / "train")) / "dark/1.mp4"
        bad.write_bytes(b"torn")  # in both epochs of 3 steps
        options |= {
            "train_dir": tmp_path / "train",
            "max_bad_fraction": 0.2,
            "max_train_steps": 6,
            "checkpointing_steps": 6,
        }
        options["flip_labels"] = tmp_path / "flip.json"
        options["flip_labels"].write_text('{"light": "light"}')
        script.main(command_line(arguments | options))
        files = server.repositories["tester/digits"].files
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= files.keys()
    assert "last-checkpoint/weights.safetensors" in files
    card = files["README.md"].decode()
    assert "1x1 (clips x crops) of 4 frames" in card and "videos to train on: 12" in card
    assert "latency per clip" in card and "before and after merging" in card and "fingerprint" in card
    AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "run" / "adapter")  # at home its base is known
    everything = b"".join(content for name, content in files.items() if not name.endswith(".safetensors"))
    assert re.search(r"videos that could not be read\W+1\b", card)
    assert "training, epoch 1: 1 failures to read a video" in caplog.text  # although the last step leaves the epoch
    assert b"light: light" in files["training_config.yaml"]
    for secret in (TOKEN, str(tmp_path), str(arguments["model_name_or_path"])):
        assert secret.encode() not in everything
    assert not [p for p in (tmp_path / "run").rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


# ----------------------------------------------------------------------------------------------- refusals


def test_a_random_base_is_refused(script, arguments, place, tmp_path):
    model = tiny_image_model("clip", num_hidden_layers=2)
    weights = {k: v for k, v in model.state_dict().items() if "layers.1.self_attn.q_proj" not in k}
    model.save_pretrained(tmp_path / "broken", state_dict=weights)
    broken = arguments | {"model_name_or_path": tmp_path / "broken"}
    with pytest.raises(ValueError, match=r"leaves 2 weights of its CLIPVisionModel uninitialised"):
        script.main(command_line(broken))
    assert not (tmp_path / "run").exists()
    script.main(command_line(broken | {"allow_random_base": True}))


def test_labels_that_differ_are_refused(script, arguments, tmp_path):
    write_video(tmp_path / "other/dark/0.mp4", 30)
    write_video(tmp_path / "other/bright/0.mp4", 30)
    with pytest.raises(ValueError, match=r"light.*bright"):
        script.main(command_line(arguments | {"validation_dir": tmp_path / "other"}))
    with pytest.raises(ValueError, match="--num_labels is 3, but the data set has 2 classes"):
        script.main(command_line(arguments | {"num_labels": 3}))
    with pytest.raises(ValueError, match="no videos for validation"):
        script.main(command_line(arguments | {"validation_dir": None}))


def test_labels_that_only_one_split_has(script, arguments, tmp_path, caplog):
    videos = {"train_dir": None, "validation_dir": None, "video_dir": arguments["train_dir"]}
    for name, lines in (("train", "dark/0.mp4 0\nlight/0.mp4 2\n"), ("validation", "dark/1.mp4 0\nlight/1.mp4 1\n")):
        videos[f"{name}_file"] = tmp_path / f"{name}.txt"
        videos[f"{name}_file"].write_text(lines)
    with pytest.raises(ValueError, match=r"validation has videos of \['1'\] \(1 classes in all\), but there are none"):
        script.main(command_line(arguments | videos))
    videos["validation_file"].write_text("dark/1.mp4 0\n")
    script.main(command_line(arguments | videos | {"per_device_train_batch_size": 2}))
    assert "validation has no videos of ['2'] (1 classes in all)" in caplog.text


def test_other_videos_are_refused(script, arguments, tmp_path):
    moved = Path(shutil.copytree(arguments["train_dir"], tmp_path / "moved"))
    script.main(command_line(arguments))
    script.main(command_line(arguments | {"train_dir": moved}))
    (moved / "dark/0.mp4").rename(moved / "light/9.mp4")
    with pytest.raises(ValueError, match=r"training_videos was '12 videos, sha256 .*, is '12 videos.* to start anew"):
        script.main(command_line(arguments | {"train_dir": moved}))


def test_the_cpu_is_said_where_there_is_no_gpu(script, arguments, monkeypatch):
    """Whatever torch was built for."""
    asked = {}
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(script, "Accelerator", lambda **options: asked.update(options) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        script.main(command_line(arguments))
    assert asked["cpu"]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_that_accelerate_passes_over_is_refused(script, monkeypatch, kind):
    """As it does on a CPU."""
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    accelerator = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU, num_processes=1)
    with pytest.raises(RuntimeError, match=f"configured for {kind}, but uses it on GPUs only"):
        script.check_distribution(accelerator, None)


def test_deepspeed_is_told_what_accelerate_would_guess(script, arguments):
    """The parts that need no DeepSpeed; with it tests/test_run_distributed.py runs the whole script."""
    config = {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.DEEPSPEED,
        num_processes=1,
        deepspeed_plugin=SimpleNamespace(deepspeed_config=config),
    )
    script.check_distribution(accelerator, script.parse_args(command_line(arguments)))
    assert config == {"train_micro_batch_size_per_gpu": 4, "gradient_clipping": 0.0}
    arguments |= {"eval_steps": 1}
    for option, value in (("ema_decay", 0.9), ("checkpointing_steps", 5), ("load_best_model_at_end", True)):
        with pytest.raises(RuntimeError, match=r"(?i)DeepSpeed"):
            script.check_distribution(accelerator, script.parse_args(command_line(arguments | {option: value})))


def test_clips_shorter_than_an_offset_are_refused(script, arguments):
    with pytest.raises(ValueError, match=r"time_offsets has \[-4\], but in a clip of num_frames=4"):
        script.main(command_line(arguments | {"tuner_config": ["time_offsets=[-4, 1]"]}))


def test_flip_labels_that_are_no_pairs_are_refused(script, arguments, tmp_path, capsys):
    (tmp_path / "flip.json").write_text('["left", "right"]')
    with pytest.raises(SystemExit):
        script.main(command_line(arguments | {"flip_labels": tmp_path / "flip.json"}))
    assert "flip.json holds ['left', 'right'], expected {class: class}" in capsys.readouterr().err


def test_a_stream_without_an_end_is_refused(script, arguments, capsys):
    with pytest.raises(SystemExit):
        script.main(command_line(arguments | {"streaming": True, "max_train_steps": None}))
    assert "--streaming needs --max_train_steps" in capsys.readouterr().err


def test_a_folder_with_another_run_is_refused(script, arguments, tmp_path):
    script.main(command_line(arguments))
    script.main(command_line(arguments | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}))
    with pytest.raises(ValueError, match=r"holds another run: learning_rate was 0\.0003, is 0\.5\. Choose another"):
        script.main(command_line(arguments | {"learning_rate": 0.5}))
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(ValueError, match=r"holds another run \(adapter, all_results.json, train_results.json\)"):
        script.main(command_line(arguments))


def test_another_base_is_refused(script, arguments, tmp_path):
    """A checkpoint without the frozen weights fits these frozen weights only, wherever they lie."""
    script.main(command_line(arguments | {"checkpointing_steps": 1}))
    other = tiny_image_model("clip", num_hidden_layers=2)
    other.save_pretrained(tmp_path / "moved")
    script.main(command_line(arguments | {"checkpointing_steps": 1, "model_name_or_path": tmp_path / "moved"}))
    other.embeddings.class_embedding.data.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="frozen_weights was"):
        script.main(command_line(arguments | {"model_name_or_path": tmp_path / "other"}))


# -------------------------------------------------------------------------------------- transformers.Trainer


def test_trainer_is_in_step(script, arguments, tmp_path, capsys):
    """All videos in one batch, whose order then does not matter: the same losses, step by step."""
    options = {
        "per_device_train_batch_size": 12,
        "max_train_steps": 4,
        "learning_rate": 0.02,
        "head_learning_rate": 0.05,
        "num_warmup_steps": 2,
        "label_smoothing": 0.1,
        "max_grad_norm": 1.0,
        "classifier_dropout": 0,
        "tuner_config": ["adapter_dropout=0"],
        "logging_steps": 1,
        "with_tracking": True,
    }
    script.main(command_line(arguments | options))
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "run_video_cls")).Reload()
    expected = [event.value for event in events.Scalars("train_loss")]
    AcceleratorState._reset_state(reset_partial_state=True)

    other = arguments | options | {"output_dir": tmp_path / "trainer", "with_tracking": None}
    trainer = load_script("run_video_cls_trainer").main(command_line(other))
    assert "4 frames over the video × 1 clips × 1 crops = 1 forward passes per video" in capsys.readouterr().out
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(expected, abs=1e-4)  # the Trainer rounds to 4 digits
    results = [json.loads((tmp_path / n / "all_results.json").read_text()) for n in ("run", "trainer")]
    for name in ("eval_accuracy", "eval_top5_accuracy", "eval_mean_class_accuracy"):
        assert results[0][name] == results[1][name]
    assert (tmp_path / "trainer" / "adapter" / "adapter_model.safetensors").exists()
    saved = tmp_path / "trainer" / "adapter"
    assert yaml.safe_load((saved / "training_config.yaml").read_text())["learning_rate"] == 0.02
    assert not list(saved.glob("*.bin"))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"trainer holds another run: learning_rate was 0\.02, is 0\.01"):
        load_script("run_video_cls_trainer").main(command_line(other | {"learning_rate": 0.01}))
    refused = {"ema_decay": 0.9, "on_bad_video": "skip", "max_bad_fraction": 0.1, "hub_private_repo": True}
    for option, value in refused.items():
        with pytest.raises(SystemExit, match=f"--{option}.*only with run_video_cls.py"):
            load_script("run_video_cls_trainer").main(command_line(other | {option: value}))


def test_a_finished_model_learns_other_classes(script, arguments, tmp_path):
    script.main(command_line(arguments | {"output_dir": tmp_path / "first"}))
    finished = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "first" / "adapter").merge_and_unload()
    finished.save_pretrained(tmp_path / "finished")
    for split in ("train", "validation"):
        for i, name in enumerate(("black", "grey", "white")):
            for video in range(2):
                write_video(tmp_path / "videos" / split / name / f"{video}.mp4", 20 + 100 * i + video)
    AcceleratorState._reset_state(reset_partial_state=True)
    options = {f"{split}_dir": tmp_path / "videos" / split for split in ("train", "validation")}
    options |= {"model_name_or_path": tmp_path / "finished", "tuner": "st_adapter"}
    script.main(command_line(arguments | options))
    loaded = AutoPeftModelForVideoClassification.from_pretrained(tmp_path / "run" / "adapter")
    assert loaded.config.id2label == {0: "black", 1: "grey", 2: "white"}
    assert loaded.config.time_offsets == finished.config.time_offsets != None  # noqa: E711


def test_the_card_beside_lora_says_how_the_base_sees_time(script, arguments, tmp_path):
    script.main(command_line(arguments | {"tuner": "stdha+lora"}))
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "AutoPeftModelForVideoClassification.from_pretrained(" in card and str(tmp_path) not in card
    assert json.loads((tmp_path / "run" / "adapter" / "video_model.json").read_text())["time_offsets"] == [-1, 1]
