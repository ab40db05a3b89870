"""Everything goes to a Hub and comes back: pushed by one process, used by others whose caches are empty."""

import ast
import csv
import hashlib
import json
import sys

import pytest
from hub_server import TOKEN, git_oid
from huggingface_hub import ModelCard
from transformers.dynamic_module_utils import get_imports

from hf_i2v import AutoPeftModelForVideoClassification
from hf_i2v.remote_code import FILES, flat_file

# products may round by where matrices lie in memory: those of a file lie elsewhere
NEARLY_THE_SAME = dict.fromkeys(("frame2freq", "attentive_probe", "step"), pytest.approx(0, abs=1e-5))


@pytest.fixture(scope="module")
def pushed(hub, run_user, tmp_path_factory):
    """The folder with the logits, and what the pushing process said."""
    folder = tmp_path_factory.mktemp("pushed")
    hub.breaks["tester/run"] = 1
    result, output = run_user("user_pushes.py", folder, token=TOKEN)
    return folder, result, output


def test_what_is_pushed(hub, pushed):
    _, result, _ = pushed
    assert result["refused"] == 403
    files = hub.repositories["tester/merged"].files
    model = {"config.json", "model.safetensors", "README.md", "modeling_i2v.py", "pipeline_i2v.py"}
    processors = {"preprocessor_config.json", "video_preprocessor_config.json"}
    assert set(files) == model | processors | {".gitattributes"}
    assert len(hub.repositories["tester/merged"].commits) == 2  # the empty repository, and all of it at once
    for name in ("baked", *NEARLY_THE_SAME):
        assert set(hub.repositories[f"tester/{name}"].files) == set(files)
    assert ("POST", "/tester/merged.git/info/lfs/objects/batch") in hub.log
    adapter = hub.repositories["tester/adapter"].files
    assert set(adapter) == {"adapter_config.json", "adapter_model.safetensors", "README.md", ".gitattributes"}


@pytest.mark.parametrize("name", ["merged", "baked", "adapter"])
def test_cards_of_pushed_models(hub, pushed, name):
    folder, _, _ = pushed
    text = hub.repositories[f"tester/{name}"].files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "video-classification" and card.data.base_model == "tester/image"
    assert card.data.library_name == ("peft" if name == "adapter" else "transformers")
    assert f'"tester/{name}"' in text and "import hf_i2v" in text
    assert str(folder) not in text and "train_dir" not in text and TOKEN not in text
    if name == "merged":
        assert card.data.eval_results[0].metric_value == 0.75 and "latency per clip" in text
        assert "before and after merging" in text


def test_a_base_on_this_machine_is_not_named(hub, pushed):
    folder, _, _ = pushed
    for name in ("of-a-local-base", "folder"):
        files = hub.repositories[f"tester/{name}"].files
        assert not [path for path, content in files.items() if str(folder).encode() in content or b"secret" in content]
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] is None
        assert b"hf_i2v.AutoPeftModelForVideoClassification" in files["README.md"]
    adapter = AutoPeftModelForVideoClassification.from_pretrained(folder / "adapter")  # at home it still loads
    assert adapter.peft_config["default"].base_model_name_or_path == str(folder / "secret" / "image")


def test_an_interrupted_upload_goes_on_where_it_stopped(hub, pushed):
    _, result, output = pushed
    run = hub.repositories["tester/run"]
    weights = {f"last-checkpoint/{i}.safetensors": f"{i}" for i in range(3)}
    assert run.private and set(run.files) == {*weights, ".gitattributes"}
    attempts = [hub.log.count(("PUT", f"/lfs/{hashlib.sha256(run.files[path]).hexdigest()}")) for path in weights]
    assert sum(attempts) > 3 and attempts.count(1) >= 1  # what had arrived was not sent again
    assert result["started"] and "training goes on" in output


@pytest.fixture(scope="module")
def used_with_hf_i2v(hub, pushed, run_user, video):
    hub.log.clear()
    return run_user("user_with_hf_i2v.py", pushed[0], video, TOKEN)[0]


def test_with_hf_i2v(hub, pushed, used_with_hf_i2v):
    folder, result = pushed[0], used_with_hf_i2v
    weights = [path for method, path in hub.log if method == "GET" and path.endswith("model.safetensors")]
    assert len(weights) == len(set(weights))  # loaded several times, downloaded once: the ETag is the same
    assert result["differences"] == {"merged": 0, "baked": 0, "adapter": 0} | NEARLY_THE_SAME
    script = result["script"]
    assert result["pipeline"] == {label: pytest.approx(p, abs=1e-3) for label, p in script.items()}
    for other in ("backwards", "other_filter"):  # what is compared would show another order, and other pixels
        assert max(abs(p - script[label]) for label, p in result[other].items()) > 4e-3
    row = next(csv.DictReader((folder / "predictions.csv").open()))
    assert row["class1"] == max(result["pipeline"], key=result["pipeline"].get)
    assert result["refused"] == 401 and "tester/without-a-token" not in hub.repositories
    assert "model.safetensors" in hub.repositories["tester/with-a-token"].files
    assert "last-checkpoint/state" in hub.repositories["tester/run-with-a-token"].files


def test_without_hf_i2v(hub, pushed, run_user, video, used_with_hf_i2v):
    folder, _, _ = pushed
    result, output = run_user("user_without_hf_i2v.py", folder, video)
    assert result["differences"] == {"merged": 0, "baked": 0} | NEARLY_THE_SAME
    assert result["pipeline"] == result["again"] == used_with_hf_i2v["pipeline"]
    assert "tester/merged" not in (folder / "again" / "config.json").read_text()  # all that it needs is beside it
    assert result["feature"] == [2, 32]
    for found, expected in zip(
        result["broken"], ("missing: classifier.bias", "is refused: it names", ">= 1"), strict=True
    ):
        assert expected in found
    assert "trust_remote_code" in result["refusals"][0] and len(result["refusals"]) == 3
    assert "not a valid model identifier" in result["refusals"][1]  # private, and this user has no token
    assert set(hub.repositories["tester/private"].files) == set(hub.repositories["tester/merged"].files)
    assert hub.status("/tester/private/resolve/main/config.json") == 401
    assert hub.status("/tester/private/resolve/main/config.json", TOKEN) == 200
    assert result["loaded_as_image_model"] == 0 and "MISSING" in output


def test_flat_files_need_torch_and_transformers_only(tmp_path):
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for name in FILES:
        path = tmp_path / f"{name}.py"
        path.write_text(flat_file(name))
        tree = ast.parse(path.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        modules = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
        roots = {module.split(".")[0] for module in modules}
        # reading videos: what transformers' own pipeline needs too, and it loads without
        others = {"pipeline_i2v"} if name == "modeling_i2v" else {"av", "numpy", "huggingface_hub"}
        assert roots - allowed <= others
        assert "av" not in get_imports(path)


def test_git_oid():
    assert git_oid(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
