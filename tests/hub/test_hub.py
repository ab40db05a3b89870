"""Everything goes to a Hub and comes back: pushed by one process, used by others whose caches are empty."""

import ast
import hashlib
import sys

import pytest
from hub_server import TOKEN, git_oid
from huggingface_hub import ModelCard

from hf_i2v.remote_code import FILES, flat_file


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
    assert set(hub.repositories["tester/baked"].files) == set(files)
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
        assert card.data.eval_results[0].metric_value == 0.75
        assert "before and after merging" in text


def test_an_interrupted_upload_goes_on_where_it_stopped(hub, pushed):
    _, result, output = pushed
    run = hub.repositories["tester/run"]
    weights = {f"last-checkpoint/{i}.safetensors": f"{i}" for i in range(3)}
    assert run.private and set(run.files) == {*weights, ".gitattributes"}
    attempts = [hub.log.count(("PUT", f"/lfs/{hashlib.sha256(run.files[path]).hexdigest()}")) for path in weights]
    assert sum(attempts) > 3 and attempts.count(1) >= 1  # what had arrived was not sent again
    assert result["started"] and "training goes on" in output


def test_with_hf_i2v(hub, pushed, run_user, video):
    folder, _, _ = pushed
    hub.log.clear()
    result, _ = run_user("user_with_hf_i2v.py", folder, video)
    weights = [path for method, path in hub.log if method == "GET" and path.endswith("model.safetensors")]
    assert len(weights) == len(set(weights))  # loaded several times, downloaded once: the ETag is the same
    assert result["differences"] == {"merged": 0, "baked": 0, "adapter": 0}
    assert result["pipeline"] == {label: pytest.approx(p, abs=1e-5) for label, p in result["script"].items()}


def test_without_hf_i2v(hub, pushed, run_user, video):
    folder, _, _ = pushed
    result, output = run_user("user_without_hf_i2v.py", folder, video)
    assert result["differences"] == {"merged": 0, "baked": 0}
    assert result["feature"] == [2, 32] and len(result["pipeline"]) == 3
    assert "trust_remote_code" in result["refusals"][0] and len(result["refusals"]) == 3
    assert result["loaded_as_image_model"] == 0 and "MISSING" in output


def test_flat_files_need_torch_and_transformers_only():
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for name in FILES:
        tree = ast.parse(flat_file(name))
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        roots = {(n.module if isinstance(n, ast.ImportFrom) else n.names[0].name).split(".")[0] for n in imports}
        assert all(not isinstance(n, ast.ImportFrom) or n.level == 0 for n in imports)
        # reading videos: what transformers' own pipeline needs too
        assert roots - allowed <= (set() if name == "modeling_i2v" else {"av", "numpy", "huggingface_hub"})


def test_git_oid():
    assert git_oid(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
