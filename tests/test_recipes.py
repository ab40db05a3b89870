"""Every recipe resolves, builds its model in full size (without memory), and says in its header what was counted."""

import re

import pytest
import torch
import yaml
from training import EXAMPLES, load_script

RECIPES = sorted(path for path in (EXAMPLES / "recipes").glob("*.yaml") if path.stem != "small")  # small: no model
PUBLISHED = {  # MACs of a video (G) and trainable parameters (M) in the tables of papers and repositories
    "zeroi2v_b16_k400": (422, None),
    "zeroi2v_l14_k400": (7783, None),
    "zeroi2v_b16_ssv2": (422, None),
    "zeroi2v_l14_ssv2": (7783, None),
    "st_adapter_b16_k400": (455, 7),
    "st_adapter_b16_ssv2": (489, 14),
    "aim_b16_k400": (606, 11),
    "aim_b16_ssv2": (624, 14.3),
    "aim_b16_diving48": (809, 11),
}


@pytest.fixture(scope="module")
def script():
    return load_script("run_video_cls")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe(script, recipe, capsys):
    script.main(["--config", str(recipe), "--output_dir", "unused", "--dry_run"])
    lines = capsys.readouterr().out.strip().splitlines()
    header = recipe.read_text()
    assert all(f"#   {line}\n" in header for line in lines), "\n".join(lines)
    options = yaml.safe_load(header)
    clips = options["per_device_train_batch_size"] * options.get("gradient_accumulation_steps", 1)
    assert f"clips of a step: {clips} on each process" in lines
    for part in ("Expected top-1:", "Source:", "Hardware:", f"--config examples/recipes/{recipe.name}"):
        assert part in header

    macs, trainable = PUBLISHED.get(recipe.stem, (None, None))
    if macs:
        assert int(re.search(r"MACs of a video: (\d+) G", lines[-1])[1]) == pytest.approx(macs, rel=0.003)
    if trainable:
        total, head = map(float, re.search(r": ([\d.]+) M, of which the head ([\d.]+) M", header).groups())
        assert min(abs(total - trainable), abs(total - head - trainable)) < 0.5


def test_all_published_runs_have_one():
    assert {path.stem for path in RECIPES} >= {*PUBLISHED, "zeroi2v_b16_ucf101", "zeroi2v_b16_hmdb51"}
    assert {path.stem for path in RECIPES} >= {"inti_l14_k400", "m_adapter_b16_ssv2"}


def test_command_line_overrides_the_recipe(script, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model_name_or_path": "x",
                "tuner": "st_adapter",
                "learning_rate": 0.5,
                "crop_scale": [0.1, 0.9],
                "gradient_checkpointing": True,
                "tuner_config": {"adapter_sites": ["before"], "adapter_width": 8},
            }
        )
    )
    common = ["--config", str(recipe), "--output_dir", "unused"]
    args = script.parse_args([*common, "--learning_rate", "0.1", "--no-gradient_checkpointing"])
    assert (args.learning_rate, args.crop_scale, args.gradient_checkpointing) == (0.1, [0.1, 0.9], False)
    one_more = script.parse_args([*common, "--tuner_config", "adapter_width=16"])
    config = script.tuner_config("st_adapter", one_more.tuner_config)
    assert (config.adapter_sites, config.adapter_width) == (["before"], 16)
    assert script.parse_args([*common, "--tuner", "aim"]).tuner_config == []  # those were st_adapter's


def test_mistakes_in_a_recipe_are_refused(script, tmp_path, capsys):
    for text, message in (
        ("learning_rat: 1", "'learning_rat' is no option"),
        ("learning_rate: fast", "invalid float value: 'fast'"),
        ("eval_views: 3x2", "3x2"),
        ("checkpointing_steps: often", "often"),
        ("checkpointing_steps: 0", "--checkpointing_steps (0)"),
        ("checkpoints_total_limit: 0", "0 must be at least 1"),
        ("shots_per_class: -1", "-1 must be at least 1"),
        ("ema_decay: 1.5", "--ema_decay (1.5)"),
        ("lr_scheduler_type: reduce_lr_on_plateau", "invalid choice: 'reduce_lr_on_plateau'"),
        ('streaming: "false"', "streaming is 'false', but must be true or false"),
        ("tuner: full\ntuner_config: {x: 1}", "--tuner full has no options"),
        ("- learning_rate", "expected lines 'option: value'"),
        ("", "--model_name_or_path"),
    ):
        (tmp_path / "recipe.yaml").write_text(f"model_name_or_path: x\n{text}\n" if ":" in text else text)
        with pytest.raises(SystemExit):
            script.parse_args(["--config", str(tmp_path / "recipe.yaml"), "--output_dir", "unused"])
        assert message in capsys.readouterr().err


def test_options_are_not_abbreviated(script, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--conf", "recipe.yaml", "--model_name_or_path", "x", "--output_dir", "unused"])
    assert "unrecognized arguments: --conf" in capsys.readouterr().err


def test_every_schedule_needs_the_steps_only(script):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))])
    for name in script.SCHEDULES:
        optimizer.step()
        script.get_scheduler(name, optimizer, 1, 2).step()


def test_recipe_for_few_videos(script):
    common = ["--model_name_or_path", "x", "--output_dir", "y", "--validation_split", "0.2"]
    args = script.parse_args(["--config", "small", *common, "--cache_features", "z", "--cache_views", "4"])
    assert args.tuner == "attentive_probe" and args.load_best_model_at_end and args.early_stopping_patience
