"""Several runs side by side; what the comparison of methods leaves out of two of them."""

import json
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model
from tiny import randomize_adapter, tiny_image_model

from hf_i2v import InTIConfig, MAdapterConfig
from hf_i2v.training.compare import compare, main

ABLATIONS = runpy.run_path(
    str(Path(__file__).parents[1] / "benchmarks" / "compare" / "ablations.py"), run_name="ablations"
)


def test_a_table_of_runs(tmp_path, capsys):
    for name, accuracy, options in (
        ("a", 0.917, {"learning_rate": 5e-4, "seed": 1, "crop_scale": [0.7, 1.0], "tuner": "zeroi2v"}),
        ("b", 0.48, {"learning_rate": 1e-3, "seed": 1, "crop_scale": [0.5, 1.0], "tuner": "st_adapter", "flip": 0.5}),
    ):
        (tmp_path / name / "adapter").mkdir(parents=True)
        results = {"tuner": options["tuner"], "eval_accuracy": accuracy, "train_loss": None, "macs": 4.5e9}
        (tmp_path / name / "all_results.json").write_text(json.dumps(results))
        (tmp_path / name / "adapter" / "training_config.yaml").write_text(yaml.safe_dump(options))
    (tmp_path / "unfinished").mkdir()
    main([str(tmp_path / name) for name in ("a", "b", "unfinished")])
    first, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()
    ]
    assert first == ["run", "tuner", "top-1 %", "train loss", "GMACs", "crop_scale", "flip", "learning_rate"]
    assert rows[0] == [str(tmp_path / "a"), "zeroi2v", "91.7", "", "4.5", "0.7 1.0", "", "0.0005"]
    assert rows[1] == [str(tmp_path / "b"), "st_adapter", "48.0", "", "4.5", "0.5 1.0", "0.5", "0.001"]
    with pytest.raises(ValueError, match=r"no all_results.json in .*unfinished"):
        compare([tmp_path / "unfinished"])
    (tmp_path / "a" / "all_results.json").write_text("")
    with pytest.raises(ValueError, match=r"a/all_results.json is damaged: it holds nothing"):
        compare([tmp_path / "a"])


def pooled(config, clips: torch.Tensor, *, random: bool) -> torch.Tensor:
    model = get_peft_model(tiny_image_model("dinov2"), config)
    return (randomize_adapter(model) if random else model).eval()(clips).pooler_output.detach()


def test_methods_without_a_part(clip_pixels):
    average = ABLATIONS["PlainAverageConfig"](num_frames=4)
    torch.testing.assert_close(
        pooled(average, clip_pixels, random=False), pooled(InTIConfig(num_frames=4), clip_pixels, random=False)
    )
    without, with_time = ABLATIONS["MAdapterWithoutTimeConfig"](num_frames=4), MAdapterConfig(num_frames=4)
    for config, knows_order in ((without, False), (with_time, True)):
        forwards, backwards = (pooled(config, clips, random=True) for clips in (clip_pixels, clip_pixels.flip(1)))
        assert ((forwards - backwards).abs().max() > 1e-3) == knows_order
