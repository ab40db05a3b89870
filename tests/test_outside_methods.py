"""Somebody's own method, in a file of their own, lives as the methods of the package do (the tables of test_citizen.py
and test_methods.py have them too)."""

import copy
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from adaptformer import AdaptFormerConfig
from load import load_adapter
from peft import get_peft_model
from processes import finish, start
from safetensors.torch import save_file
from tiny import randomize_adapter, tiny_image_model
from token_shift import TokenShift, TokenShiftConfig
from torch import nn

import hf_i2v
from hf_i2v import I2VForVideoClassification, I2VTunerConfig, SiteModule, STDHAConfig, ZeroI2VConfig, register_method
from hf_i2v.cards import create_card
from hf_i2v.cost import main as cost_main
from hf_i2v.options import tuner_config

OUTSIDE = Path(__file__).parent / "outside"
CONFIGS = {
    "token_shift": lambda: TokenShiftConfig(),
    "adaptformer": lambda: AdaptFormerConfig(bottleneck=8),
    "token_shift, causal": lambda: TokenShiftConfig(causal=True) + ZeroI2VConfig(causal=True),
    "both+zeroi2v": lambda: TokenShiftConfig() + AdaptFormerConfig(bottleneck=8) + ZeroI2VConfig(),
}


@pytest.fixture
def base(tmp_path):
    tiny_image_model("dinov2").save_pretrained(tmp_path / "image")
    torch.manual_seed(3)
    return I2VForVideoClassification.from_image_model(tmp_path / "image", num_frames=4, num_labels=3)


def test_each_is_one_short_file():
    for method in ("token_shift", "adaptformer"):
        assert len((OUTSIDE / f"{method}.py").read_text().splitlines()) < 60


def test_they_travel(base, tmp_path):
    """An adapter loads in a new process that imports the file; a finished model where hf_i2v is not installed."""
    pixels, log, finished = torch.randn(2, 4, 3, 24, 24), tmp_path / "log", []
    for method, config in CONFIGS.items():
        folder, expected = tmp_path / method, tmp_path / f"{method} expected"
        model = randomize_adapter(get_peft_model(copy.deepcopy(base), config())).eval()
        with torch.no_grad():
            adapted = model(pixels).logits
        save_file({"pixel_values": pixels, "logits": adapted}, expected)
        model.save_pretrained(folder / "adapter")
        module = "adaptformer" if method == "adaptformer" else "token_shift"
        if method == module:
            finish(start(load_adapter, folder / "adapter", expected, module, log=log), log=log)

        baked = model.base_model.bake().eval()
        with torch.no_grad():
            torch.testing.assert_close(baked(pixels).logits, adapted, atol=1e-5, rtol=1e-5)
        baked.save_pretrained(folder / "finished")
        assert (folder / "finished" / f"{module}.py").exists()
        if method != module:  # the two by themselves are parts of the others
            finished += [folder / "finished", expected]
    assert re.findall("difference (.*)", log.read_text()) == ["0.0", "0.0"]

    done = subprocess.run(
        [sys.executable, OUTSIDE / "load.py", *finished], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    differences = [float(number) for number in re.findall("difference (.*)", done.stdout)]
    assert len(differences) == 2 and max(differences) < 1e-5


def test_command_lines_and_cards_know_it(base, capsys):
    assert isinstance(tuner_config("token_shift", ["share=0.125"]), TokenShiftConfig)
    composed = tuner_config("adaptformer:AdaptFormerConfig+inti", ["bottleneck=8"])
    assert [part.method_name for part in composed.parts()] == ["inti", "adaptformer"]
    with pytest.raises(SystemExit, match=r"nowhere:Config.*No module named 'nowhere'"):
        tuner_config("nowhere:Config", [])
    with pytest.raises(SystemExit, match=r"token_shift:TokenShift is no configuration class"):
        tuner_config("token_shift:TokenShift", [])
    cost_main(["--model", base.config.name_or_path, "--tuner", "token_shift", "adaptformer", "--format", "json"])
    assert '"tuner": "adaptformer"' in capsys.readouterr().out
    card = str(create_card(get_peft_model(base, CONFIGS["both+zeroi2v"]())))
    assert "Token shift: [arXiv 1811.08383](https://arxiv.org/abs/1811.08383)" in card
    assert "AdaptFormer: [arXiv 2205.13535]" in card and "bake()" in card


class Wrong(nn.Module):
    pass


class Halves(SiteModule):
    frames_merged = 2


class Folds(SiteModule):
    folds = True


@pytest.mark.parametrize(
    ("site", "module", "message"),
    [
        ("inside", TokenShift(0.25), r"at 'inside'; it can stand at \['before', 'attention_in'"),
        ("between", Halves(), r"a Halves at 'between'; it can stand at \['before'\]"),
        ("between", Folds(), "a Folds at 'between'; it can stand at .*'mlp_out'"),
        ("between", Wrong(), r"a Wrong at 'between'; it must be a hf_i2v\.SiteModule"),
    ],
)
def test_what_cannot_stand_at_a_site(site, module, message, monkeypatch):
    monkeypatch.setattr(TokenShiftConfig, "site_modules", lambda self, backbone, layer: {site: module})
    with pytest.raises((ValueError, TypeError), match=message):
        get_peft_model(tiny_image_model("clip"), TokenShiftConfig(num_frames=4))


class Numbered(SiteModule):
    """Adds a tenth of each frame's number; a step that needs nothing but the number of frames before."""

    def forward(self, x_MND, *, num_frames, **_):
        numbers_T = torch.arange(num_frames, dtype=x_MND.dtype)
        return x_MND + 0.1 * numbers_T.repeat(len(x_MND) // num_frames)[:, None, None]

    def step(self, x_SND, kept, *, age_S, **_):
        return x_SND + 0.1 * age_S.to(x_SND.dtype)[:, None, None], kept


def test_a_step_that_keeps_nothing(base, monkeypatch):
    monkeypatch.setattr(TokenShiftConfig, "site_modules", lambda self, backbone, layer: {"before": Numbered()})
    model = get_peft_model(base, TokenShiftConfig(causal=True)).eval()
    pixels = torch.randn(2, 4, 3, 24, 24)
    state = model.new_stream(batch_size=2, image_size=24)
    for frames in pixels.unbind(1):
        logits, state = model.step(frames, state)
    torch.testing.assert_close(logits, model(pixels).logits, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_registered():
    with pytest.raises(TypeError, match=r"subclass of hf_i2v\.I2VTunerConfig, not <class 'dict'>"):
        register_method(dict)

    @dataclass
    class NoPaper(I2VTunerConfig):
        method_name = "no_paper"

    with pytest.raises(ValueError, match="NoPaper has no title, paper"):
        register_method(NoPaper)
    NoPaper.title = NoPaper.paper = "none"
    NoPaper.method_name = "aim"
    with pytest.raises(ValueError, match=r"'aim' of NoPaper is taken by AIMConfig of hf_i2v\.methods\.aim"):
        register_method(NoPaper)
    assert hf_i2v.METHODS["aim"] is hf_i2v.AIMConfig


def test_a_method_whose_file_cannot_travel_says_what_to_install(base, tmp_path):
    """Typed into a notebook, for example."""
    source = (OUTSIDE / "token_shift.py").read_text().replace("token_shift", "typed_in").replace("TokenShift", "Typed")
    notebook = sys.modules["notebook_cell"] = ModuleType("notebook_cell")
    exec(compile(source, "<cell>", "exec"), vars(notebook))
    baked = get_peft_model(base, notebook.TypedConfig()).base_model.bake()
    with pytest.warns(UserWarning, match="first import the module that registers the method 'typed_in'"):
        baked.save_pretrained(tmp_path / "finished")
    loaded = I2VForVideoClassification.from_pretrained(tmp_path / "finished")
    assert loaded.config.baked[0]["peft_type"] == "TYPED_IN"
    del hf_i2v.METHODS["typed_in"], sys.modules["notebook_cell"]
    with pytest.raises(ValueError, match="import the file that registers it first"):
        I2VForVideoClassification.from_pretrained(tmp_path / "finished")


def test_a_method_that_has_another_in_it_does_not_compose_with_that():
    with pytest.raises(ValueError, match="zeroi2v already includes stdha"):
        STDHAConfig() + ZeroI2VConfig()


def test_a_side_branch_does_not_compose(monkeypatch):
    """Its module would silently be missing."""
    monkeypatch.setattr(AdaptFormerConfig, "has_branch", True)
    with pytest.raises(ValueError, match=r"token_shift \+ adaptformer makes no sense: AdaptFormer is a side branch"):
        TokenShiftConfig() + AdaptFormerConfig()
